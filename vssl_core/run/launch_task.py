"""What each task of a job does: join the other ranks, do the work, and go back into the queue when told to leave."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vssl_core.config import LaunchSection
from vssl_core.errors import VsslError
from vssl_core.run import launch_records as records
from vssl_core.run import slurm
from vssl_core.run.files import write_json
from vssl_core.run.signals import Interrupted

if TYPE_CHECKING:
    from torch.distributed import Store

POLL = 0.1  # seconds between two looks for rank 0


class LaunchError(VsslError):
    """A job cannot go on; its text says why."""


class LostRank(LaunchError):
    """Another rank is not there: nothing that starting again would repeat for sure."""


@dataclass(frozen=True)
class Here:
    """Which task of which job this process is."""

    cluster: str
    job: str
    restart: int  # how often Slurm has started the job before
    rank: int
    ranks: int
    local_rank: int
    local_ranks: int
    hosts: tuple[str, ...]

    @classmethod
    def found(cls) -> Here:
        """As submitit tells it."""
        from submitit import JobEnvironment

        environment = JobEnvironment()
        return cls(
            cluster=environment.cluster,
            job=environment.job_id,
            restart=int(os.environ.get("SLURM_RESTART_COUNT", 0)),
            rank=environment.global_rank,
            ranks=environment.num_tasks,
            local_rank=environment.local_rank,
            local_ranks=environment.num_tasks // environment.num_nodes,
            hosts=tuple(environment.hostnames),
        )


class Task:
    """The work of one rank, as submitit pickles it: the same for all ranks and all starts of a job."""

    def __init__(self, work: Callable[[], Any], launched: Path, limits: LaunchSection) -> None:
        """`work` trains, as the rank that it finds itself to be; `launched` is the run's launch folder."""
        self.work, self.launched, self.limits = work, launched, limits

    def __call__(self) -> None:
        """Train to the end.

        Raises `SystemExit` where the job was told to leave and has saved, and whatever `work` raises.
        """
        here = Here.found()
        os.environ.update(_ranks_of(here), **({} if self.limits.gpus_per_node else {"CUDA_VISIBLE_DEVICES": ""}))
        if here.rank == 0:
            self._begin(here)
        try:
            _check_gpus(self.limits)
            with joined(here, self.launched, self.limits):
                self._work(here)
        except Exception as error:
            if not of_other_ranks(error):
                self._note(here, error)
            raise

    def checkpoint(self) -> Any:
        """What submitit starts next time: the same, since the run resumes from its folder."""
        from submitit.helpers import DelayedSubmission

        reason = records.given_up(self.launched, Here.found().job, self.limits.requeues, self.limits.tries)
        if reason:
            raise LaunchError(f"{self.launched.parent}: the job is not started again: {reason}")
        return DelayedSubmission(self)

    def _begin(self, here: Here) -> None:
        for left in self.launched.glob(f"{here.job}_*.save_tmp"):
            left.unlink(missing_ok=True)  # of a start that was killed while submitit wrote: it would refuse to go on
        records.note_start(self.launched, here.job)

    def _work(self, here: Here) -> None:
        try:
            self.work()
        except Interrupted as left:
            self._leave(here, left)
        except Exception as error:
            if not of_other_ranks(error):
                self._note(here, error)  # before the others lose us: they look for who began
            raise

    def _leave(self, here: Here, left: Interrupted) -> None:
        """Go back into the queue, unless the job is not wanted any more."""
        from vssl_core.distributed import any_rank

        name = signal.Signals(left.number).name
        print(f"vssl train: {self.launched.parent}: told to leave by {name}, and saved", file=sys.stderr, flush=True)
        try:
            if here.rank == 0 and wanted(here, left.number):
                _requeue()
        finally:
            any_rank(True)  # no rank ends before the job is back in the queue: Slurm would end the others with it
        raise SystemExit(left.exit_code)

    def _note(self, here: Here, error: Exception) -> None:
        said = str(error) if isinstance(error, VsslError) else f"{type(error).__name__}: {error}"
        records.note_failure(self.launched, here.job, here.restart, here.rank, " ".join(said.split()))


def wanted(here: Here, number: int) -> bool:
    """Whether a job that was told to leave is to go on: its manager asks for the room, and nobody has ended it."""
    if here.cluster != "slurm":
        return number == signal.SIGUSR2
    state = slurm.state_of(here.job)
    return state is None or state.name == "RUNNING"


def _requeue() -> None:
    """What submitit does on its signal: count time-outs, and have the job started again. Ends this process."""
    handler: Any = signal.getsignal(signal.SIGUSR2)
    try:
        handler(signal.SIGUSR2, None)
    except subprocess.SubprocessError as error:
        raise LaunchError(f"launch: the job has saved, and Slurm does not start it again ({error})") from error


def _check_gpus(limits: LaunchSection) -> None:
    if not limits.gpus_per_node:
        return
    import torch

    seen = torch.cuda.device_count()
    if seen < limits.gpus_per_node:
        raise LaunchError(
            f"launch.gpus_per_node: {limits.gpus_per_node} GPUs are asked for, and torch sees {seen} on "
            f"{socket.gethostname()}; run `vssl doctor` there, or load its driver in launch.setup"
        )


# Joining --------------------------------------------------------------------------------------------------------------


def _ranks_of(here: Here) -> dict[str, str]:
    """What torchrun would tell."""
    return {
        "RANK": str(here.rank),
        "WORLD_SIZE": str(here.ranks),
        "LOCAL_RANK": str(here.local_rank),
        "LOCAL_WORLD_SIZE": str(here.local_ranks),
    }


@contextmanager
def joined(here: Here, launched: Path, limits: LaunchSection) -> Iterator[None]:
    """The process group of all tasks, while it is open."""
    if here.ranks == 1:
        yield
        return
    from vssl_core.distributed import join_ranks, leave_ranks

    if alone(here.hosts):
        os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
    path = launched / f"{here.job}_{here.restart}_address.json"
    patience = timedelta(seconds=limits.rank_timeout_seconds)
    try:
        store = _serve(path, here, patience) if here.rank == 0 else _reach(path, here, patience)
        backend = "nccl" if limits.gpus_per_node else "gloo"
        join_ranks(backend, store=store, rank=here.rank, world_size=here.ranks, timeout=patience)
        yield
        leave_ranks()
    finally:
        if here.rank == 0:
            path.unlink(missing_ok=True)


def alone(hosts: Sequence[str]) -> bool:
    """Whether all tasks are on this machine, so that nobody else needs to reach them."""
    return len(hosts) == 1 or not any(_outside(host) for host in hosts)


def _outside(host: str) -> bool:
    try:
        return not socket.gethostbyname(host).startswith("127.")
    except OSError:  # a name that only Slurm knows, of a second node on this machine
        return False


def _serve(path: Path, here: Here, patience: timedelta) -> Store:
    """Rank 0: listen where the others can come, on loopback if they are all here, and say where that is."""
    from torch.distributed import TCPStore

    inside = alone(here.hosts)
    listener = socket.create_server(("127.0.0.1" if inside else "", 0))
    port = listener.getsockname()[1]
    host = "127.0.0.1" if inside else socket.gethostname()
    store = TCPStore(
        host, port, here.ranks, is_master=True, timeout=patience, wait_for_workers=False,
        master_listen_fd=listener.detach(),
    )  # fmt: skip
    write_json(path, {"host": host, "port": port})
    return store


def _reach(path: Path, here: Here, patience: timedelta) -> Store:
    """Any other rank: find out where rank 0 listens, through the run's folder, and go there."""
    from torch.distributed import TCPStore

    until = time.monotonic() + patience.total_seconds()
    while not path.exists():
        if time.monotonic() > until:
            raise LostRank(
                f"launch: rank {here.rank} has waited {patience.total_seconds():g} s for rank 0 to start "
                "(launch.rank_timeout_seconds); look at the log of rank 0"
            )
        time.sleep(POLL)
    address = json.loads(path.read_text(encoding="utf-8"))
    return TCPStore(address["host"], address["port"], here.ranks, is_master=False, timeout=patience)


#: In errors of gloo and NCCL, which torch raises as plain RuntimeErrors.
WORDS = ("gloo", "NCCL", "Connection closed by peer", "Connection reset by peer", "Broken pipe", "Timed out waiting")


def of_other_ranks(error: BaseException | None) -> bool:
    """Whether an error, or what caused it, says no more than that another rank has gone or is silent."""
    from torch.distributed import DistError

    while error is not None:
        if isinstance(error, LostRank | DistError):
            return True
        if isinstance(error, RuntimeError) and any(word in str(error) for word in WORDS):
            return True
        error = error.__cause__
    return False
