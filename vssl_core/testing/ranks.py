"""Two ranks on this machine, for the whole life of this process; also the program that each of them runs."""

from __future__ import annotations

import atexit
import json
import os
import shutil
import subprocess
import sys
import tempfile
import traceback
from dataclasses import asdict
from datetime import timedelta
from functools import cache
from multiprocessing.connection import wait
from pathlib import Path
from time import monotonic

import torch

from vssl_core.errors import VsslError
from vssl_core.testing.recording import Job, Recording, plain, record

RANKS = 2
PATIENCE = 60  # seconds that one rank waits for the other
LIMIT = 600  # seconds for a job, the start of the processes included


def on_two_ranks(job: Job) -> list[Recording]:
    """The same run on two ranks, as each of them saw it. Raises `VsslError` with what a rank raised."""
    return _pool().do(job)


@cache
def _pool() -> Ranks:
    pool = Ranks()
    atexit.register(pool.close)
    return pool


class Ranks:
    """Two processes that are started when first needed, and again after a job that failed."""

    def __init__(self) -> None:
        self.processes: list[subprocess.Popen] = []

    def do(self, job: Job) -> list[Recording]:
        """What each rank recorded."""
        if not self.processes or any(process.poll() is not None for process in self.processes):
            self._start()
        for process in self.processes:
            process.stdin.write(json.dumps({"path": sys.path, "job": asdict(job)}) + "\n")  # type: ignore[union-attr]
            process.stdin.flush()  # type: ignore[union-attr]
        self._wait()
        return [Recording(**torch.load(self.folder / f"answer.{rank}", weights_only=True)) for rank in range(RANKS)]

    def close(self) -> None:
        """Let the processes go."""
        for process in self.processes:
            process.kill()
            process.wait()
            for pipe in (process.stdin, process.stdout):
                pipe.close()  # type: ignore[union-attr]
        if self.processes:
            shutil.rmtree(self.folder, ignore_errors=True)
        self.processes = []

    def _start(self) -> None:
        self.close()
        self.folder = Path(tempfile.mkdtemp(prefix="vssl-ranks-"))
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path)), "OMP_NUM_THREADS": "1"}
        for rank in range(RANKS):
            with open(self.folder / f"log.{rank}", "wb") as log:
                self.processes.append(
                    subprocess.Popen(
                        [sys.executable, "-m", __name__, str(rank), str(self.folder)],
                        env=environment,
                        text=True,
                        stdin=subprocess.PIPE,
                        stdout=subprocess.PIPE,
                        stderr=log,
                    )
                )

    def _wait(self) -> None:
        open_answers = {process.stdout: rank for rank, process in enumerate(self.processes)}
        deadline = monotonic() + LIMIT
        while open_answers:
            ready = wait(list(open_answers), timeout=max(deadline - monotonic(), 0))  # type: ignore[type-var]
            for answer in ready:
                said, rank = answer.readline().strip(), open_answers.pop(answer)  # type: ignore[union-attr, index]
                if said != "done":
                    self._fail(rank, said)
            if not ready:
                self._fail(next(iter(open_answers.values())), f"did not answer within {LIMIT} seconds")

    def _fail(self, rank: int, said: str) -> None:
        log = (self.folder / f"log.{rank}").read_text(errors="replace").strip().splitlines()
        self.close()  # the other rank may wait for this one for ever
        raise VsslError(f"rank {rank} of {RANKS}: {said or (log or ['its process ended'])[-1]}")


# In each of the two processes -----------------------------------------------------------------------------------------


def serve(rank: int, folder: Path) -> None:
    """Do jobs until the input ends; what they recorded lies in the folder, and a line says how it went."""
    import torch.distributed as dist

    answers = os.fdopen(os.dup(1), "w")  # what plugins print goes to the log
    os.dup2(2, 1)
    store = dist.FileStore(str(folder / "store"), RANKS)
    dist.init_process_group("gloo", store=store, rank=rank, world_size=RANKS, timeout=timedelta(seconds=PATIENCE))
    for line in sys.stdin:
        answers.write(_answer(line, folder / f"answer.{rank}") + "\n")
        answers.flush()


def _answer(line: str, place: Path) -> str:
    told = json.loads(line)
    sys.path[:] = told["path"]
    try:
        torch.save(plain(record(Job(**told["job"]))), place)
    except Exception as error:
        traceback.print_exc()
        return " ".join((str(error) if isinstance(error, VsslError) else f"{type(error).__name__}: {error}").split())
    return "done"


if __name__ == "__main__":
    serve(int(sys.argv[1]), Path(sys.argv[2]))
