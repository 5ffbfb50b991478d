"""Ranks on this machine: processes that stay for the whole life of this one, and join in groups of any size over gloo.

The file is also the program that each of them runs.
"""

from __future__ import annotations

import atexit
import json
import os
import shutil
import subprocess
import sys
import tempfile
import traceback
from collections.abc import Callable, Mapping
from dataclasses import asdict
from datetime import timedelta
from functools import cache
from importlib.util import module_from_spec, spec_from_file_location
from inspect import getsourcefile
from multiprocessing.connection import wait
from pathlib import Path
from time import monotonic
from types import ModuleType
from typing import Any

import torch

from vssl_core.distributed import join_ranks, leave_ranks
from vssl_core.errors import VsslError
from vssl_core.testing.recording import Job, Recording, record

PATIENCE = 60  # seconds that one rank waits for another
LIMIT = 600.0  # seconds for a job, the start of processes on a busy machine included
LOG_END = 4000  # characters of a rank's log that go with an error


class RankError(VsslError):
    """A rank raised, died, or did not answer in time; what it had printed last is a note of the error."""


def on_two_ranks(job: Job) -> list[Recording]:
    """The same run on two ranks, as each of them saw it. Raises `RankError` with what a rank raised."""
    return pool().do(2, _recorded, {"job": asdict(job)}, LIMIT)


def _recorded(job: dict[str, Any]) -> Recording:
    return record(Job(**job))


@cache
def pool() -> Pool:
    """The one of this process."""
    started = Pool()
    atexit.register(started.close)
    return started


class Pool:
    """Processes that are started when first needed, and all anew after a job that failed."""

    def __init__(self) -> None:
        self.processes: list[subprocess.Popen[str]] = []
        self._folder, self._jobs = Path(), 0

    def do(self, ranks: int, job: Callable[..., Any], arguments: Mapping[str, Any], limit: float) -> list[Any]:
        """What each of the first `ranks` processes got, as `vssl_core.testing.on_ranks` says; the others rest."""
        if any(process.poll() is not None for process in self.processes):
            self.close()
        while len(self.processes) < ranks:
            self._start_one()
        self._jobs += 1
        told = {
            "module": [job.__module__, getsourcefile(job)],
            "function": job.__name__,
            "arguments": arguments,
            "ranks": ranks,
            "store": str(self._folder / f"store.{self._jobs}"),
            "path": sys.path,
            "environment": dict(os.environ),
        }
        for process in self.processes[:ranks]:
            process.stdin.write(json.dumps(told) + "\n")  # type: ignore[union-attr]
            process.stdin.flush()  # type: ignore[union-attr]
        self._wait(ranks, limit)
        # Written by our own processes into a folder of ours
        return [torch.load(self._folder / f"answer.{rank}", weights_only=False) for rank in range(ranks)]

    def close(self) -> None:
        """Let the processes go."""
        for process in self.processes:
            process.kill()
            process.wait()
            for pipe in (process.stdin, process.stdout):
                pipe.close()  # type: ignore[union-attr]
        if self.processes:
            shutil.rmtree(self._folder, ignore_errors=True)
        self.processes = []

    def _start_one(self) -> None:
        if not self.processes:
            self._folder = Path(tempfile.mkdtemp(prefix="vssl-ranks-"))
        rank = len(self.processes)
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path)), "OMP_NUM_THREADS": "1"}
        with open(self._folder / f"log.{rank}", "wb") as log:
            self.processes.append(
                subprocess.Popen(
                    [sys.executable, "-m", __name__, str(rank), str(self._folder)],
                    env=environment, text=True, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log,
                )
            )  # fmt: skip

    def _wait(self, ranks: int, limit: float) -> None:
        silent = {process.stdout: rank for rank, process in enumerate(self.processes[:ranks])}
        deadline = monotonic() + limit
        while silent:
            ready = wait(list(silent), timeout=max(deadline - monotonic(), 0))  # type: ignore[type-var]
            for answer in ready:
                rank, said = silent.pop(answer), answer.readline().strip()  # type: ignore[union-attr, index]
                if said != "done":
                    self._fail(ranks, rank, said)
            if not ready:
                self._fail(ranks, min(silent.values()), f"no answer in {limit:g} seconds")

    def _fail(self, ranks: int, rank: int, said: str) -> None:
        log = (self._folder / f"log.{rank}").read_text(errors="replace")
        self.close()  # the others may wait for this one for ever
        last = (log.strip().splitlines() or ["its process ended"])[-1]
        error = RankError(f"rank {rank} of {ranks}: {said or last}")
        error.add_note(log[-LOG_END:])
        raise error


# In each of the processes ---------------------------------------------------------------------------------------------


def serve(rank: int, folder: Path) -> None:
    """Do jobs until the input ends; what they gave lies in the folder, and a line says how it went."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what runs and plugins print goes to the log
    torch.set_num_threads(1)
    for line in sys.stdin:
        answers.write(_answer(rank, json.loads(line), folder / f"answer.{rank}") + "\n")
        answers.flush()


def _answer(rank: int, told: dict[str, Any], place: Path) -> str:
    import torch.distributed as dist

    sys.path[:] = told["path"]
    os.environ.update(told["environment"])
    ranks = told["ranks"]
    torch.manual_seed(1000 + rank)  # a job that leans on it tells ranks apart
    if ranks > 1:
        store = dist.FileStore(told["store"], ranks)
        join_ranks("gloo", store=store, rank=rank, world_size=ranks, timeout=timedelta(seconds=PATIENCE))
    try:
        torch.save(getattr(_module(*told["module"]), told["function"])(**told["arguments"]), place)
    except Exception as error:
        traceback.print_exc()
        sys.stderr.flush()
        return " ".join((str(error) if isinstance(error, VsslError) else f"{type(error).__name__}: {error}").split())
    finally:
        if ranks > 1:
            leave_ranks()
    return "done"


def _module(name: str, file: str) -> ModuleType:
    """By its file: a module of tests lies in no package."""
    if name not in sys.modules:
        spec = spec_from_file_location(name, file)
        assert spec and spec.loader
        module = sys.modules[name] = module_from_spec(spec)
        spec.loader.exec_module(module)
    return sys.modules[name]


if __name__ == "__main__":
    serve(int(sys.argv[1]), Path(sys.argv[2]))
