"""Ranks for tests: four processes that stay for the whole session and join in groups of any size, over gloo.

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
from datetime import timedelta
from functools import cache
from importlib import import_module
from multiprocessing.connection import wait
from pathlib import Path
from time import monotonic
from typing import Any

import small_runs
import torch

PATIENCE = 60  # seconds that one rank waits for another
LIMIT = 300  # seconds for a job, the start of processes on a busy machine included


def on_ranks(ranks: int, job: str, limit: float = LIMIT, **arguments: Any) -> list[Any]:
    """What each of `ranks` processes got from 'module:function' with these plain arguments.

    Fails where a rank raises, dies, or does not answer within `limit` seconds: none may wait for ever.
    """
    return _pool().do(ranks, {"job": job, "arguments": arguments}, limit)


@cache
def _pool() -> Pool:
    pool = Pool()
    atexit.register(pool.close)
    return pool


class Pool:
    """Processes that are started when first needed, and all anew after a job that failed."""

    def __init__(self) -> None:
        self.processes: list[subprocess.Popen[str]] = []
        self.folder, self.jobs = Path(), 0

    def do(self, ranks: int, job: dict[str, Any], limit: float) -> list[Any]:
        """What each rank gave, in the order of ranks."""
        if any(process.poll() is not None for process in self.processes):
            self.close()
        while len(self.processes) < ranks:
            self._start_one()
        self.jobs += 1
        store = str(self.folder / f"store.{self.jobs}")
        told = {"path": sys.path, "ranks": ranks, "store": store, "videos": str(small_runs.videos_folder()), **job}
        for process in self.processes[:ranks]:
            process.stdin.write(json.dumps(told) + "\n")  # type: ignore[union-attr]
            process.stdin.flush()  # type: ignore[union-attr]
        self._wait(ranks, job["job"], limit)
        return [torch.load(self.folder / f"answer.{rank}", weights_only=False) for rank in range(ranks)]

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

    def _start_one(self) -> None:
        if not self.processes:
            self.folder = Path(tempfile.mkdtemp(prefix="vssl-pool-"))
        rank = len(self.processes)
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path)), "OMP_NUM_THREADS": "1"}
        with open(self.folder / f"log.{rank}", "wb") as log:
            self.processes.append(
                subprocess.Popen(
                    [sys.executable, __file__, str(rank), str(self.folder)],
                    env=environment, text=True, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log,
                )
            )  # fmt: skip

    def _wait(self, ranks: int, job: str, limit: float) -> None:
        silent = {process.stdout: rank for rank, process in enumerate(self.processes[:ranks])}
        deadline = monotonic() + limit
        while silent:
            ready = wait(list(silent), timeout=max(deadline - monotonic(), 0))  # type: ignore[type-var]
            for answer in ready:
                rank, said = silent.pop(answer), answer.readline().strip()  # type: ignore[union-attr, index]
                if said != "done":
                    self._fail(f"{job} on rank {rank} of {ranks}: {said or 'its process ended'}", rank)
            if not ready:
                rank = min(silent.values())
                self._fail(f"{job}: ranks {sorted(silent.values())} of {ranks} gave no answer in {limit} s", rank)

    def _fail(self, what: str, rank: int) -> None:
        log = (self.folder / f"log.{rank}").read_text(errors="replace")[-4000:]
        self.close()  # the others may wait for this one for ever
        raise AssertionError(f"{what}\n{log}")


# In each of the processes ---------------------------------------------------------------------------------------------


def serve(rank: int, folder: Path) -> None:
    """Do jobs until the input ends; what they gave lies in the folder, and a line says how it went."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what runs print goes to the log
    for line in sys.stdin:
        answers.write(_answer(rank, json.loads(line), folder / f"answer.{rank}") + "\n")
        answers.flush()


def _answer(rank: int, told: dict[str, Any], place: Path) -> str:
    import torch.distributed as dist

    sys.path[:] = told["path"]
    small_runs.videos_folder = lambda: Path(told["videos"])
    ranks, (module, function) = told["ranks"], told["job"].split(":")
    torch.set_num_threads(1)
    torch.manual_seed(1000 + rank)  # a job that leans on it tells ranks apart
    if ranks > 1:
        store = dist.FileStore(told["store"], ranks)
        dist.init_process_group("gloo", store=store, rank=rank, world_size=ranks, timeout=timedelta(seconds=PATIENCE))
    try:
        torch.save(getattr(import_module(module), function)(**told["arguments"]), place)
    except Exception as error:
        traceback.print_exc()
        sys.stderr.flush()
        return " ".join(f"{type(error).__name__}: {error}".split())
    finally:
        if ranks > 1:
            dist.destroy_process_group()
    return "done"


if __name__ == "__main__":
    sys.modules["rank_pool"] = sys.modules["__main__"]
    serve(int(sys.argv[1]), Path(sys.argv[2]))
