"""Runs of a sweep side by side, each command in a process of its own, so that none can take the others with it."""

from __future__ import annotations

import ctypes
import os
import shlex
import signal
import subprocess
import sys
import time
from collections import deque
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from vssl_core.errors import VsslError
from vssl_core.run.files import explained
from vssl_core.run.sweep_runs import SweepRun

POLL = 0.1  # seconds between two looks at the processes
VSSL = [sys.executable, "-P", "-m", "vssl_core.cli"]  # the console command, whether or not it is on the path
LEFT = {128 + signal.SIGINT, 128 + signal.SIGTERM, -signal.SIGINT, -signal.SIGTERM}  # told to leave, and nothing broken
PR_SET_PDEATHSIG = 1

Tell = Callable[[SweepRun, str, str], None]  # (run, what: started, done, failed or interrupted; more words)


@dataclass(frozen=True)
class Child:
    """A process that works for a run."""

    run: SweepRun
    slot: int  # from 0: one of the places side by side
    command: list[str]
    process: subprocess.Popen[bytes]
    since: int  # where its words begin in the run's log

    @property
    def doing(self) -> str:
        """'train' or 'evaluate'."""
        return self.command[0]


class SideBySide:
    """At most `parallel` runs at a time, each led from where it stands to its last evaluation."""

    def __init__(self, runs: Iterable[SweepRun], parallel: int, held: int, tell: Tell) -> None:
        """`held` is the number that keeps the sweep's folder ours; the processes inherit it."""
        self.waiting = deque(runs)
        self.children: list[Child] = []
        self._free = list(range(parallel))
        self._held = held
        self._tell = tell

    def work(self, asked: Callable[[], int], tick: Callable[[], None]) -> None:
        """Until everything is done or failed, or `asked` gives a signal.

        The signal is handed on, and the processes save and leave first. `tick` is called several times a second.
        """
        passed_on = False
        try:
            while self.children or (self.waiting and not asked()):
                while self.waiting and self._free and not asked():
                    self._go_on(self.waiting.popleft(), self._free.pop(0))
                if asked() and not passed_on:
                    passed_on = True
                    self._signal(asked())
                tick()
                time.sleep(POLL)
                for child in [child for child in self.children if child.process.poll() is not None]:
                    self._ended(child, bool(asked()))
        finally:  # something went wrong here, or we were told twice
            self._kill()

    def _go_on(self, run: SweepRun, slot: int, before: Child | None = None) -> None:
        """Start what the run needs next; where that is nothing, or cannot be, its place is free again."""
        try:
            command = run.next_command()
        except VsslError as error:
            self._failed(run, "prepare", str(error))
        else:
            if command is None:
                self._tell(run, "done", "")
            elif before is not None and before.command == command:
                self._failed(
                    run, command[0], f"ended without an error and left its work undone; see {run.beside('log')}"
                )
            else:
                self.children.append(self._start(run, slot, command))
                self._tell(run, "started", command[0])
                return
        self._free.append(slot)

    def _start(self, run: SweepRun, slot: int, command: list[str]) -> Child:
        path = run.beside("log")
        with explained(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            log = open(path, "ab")
        with log:
            log.write(f"$ vssl {shlex.join(command)}\n".encode())
            log.flush()
            process = subprocess.Popen(
                [*VSSL, *command],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                env={**os.environ, **devices(slot, visible_devices())},
                start_new_session=True,  # ctrl-C reaches us alone; we hand it on, once
                preexec_fn=_leave_with_parent,
                pass_fds=(self._held,),
            )
            return Child(run, slot, command, process, log.tell())

    def _ended(self, child: Child, leaving: bool) -> None:
        self.children.remove(child)
        code, run = child.process.returncode, child.run
        if code == 0 and not leaving:
            return self._go_on(run, child.slot, child)
        self._free.append(child.slot)
        if code == 0 and run.standing == "done":
            self._tell(run, "done", "")
        elif leaving or code in LEFT:
            self._tell(run, "interrupted", "start the sweep again to go on")
        else:
            self._failed(run, child.doing, reason(run.beside("log"), child.since, code))

    def _failed(self, run: SweepRun, doing: str, error: str) -> None:
        run.fail(doing, error)
        self._tell(run, "failed", f"{doing}: {error}")

    def _signal(self, number: int) -> None:
        for child in self.children:
            if child.process.poll() is None:
                child.process.send_signal(number)

    def _kill(self) -> None:
        for child in self.children:
            try:
                os.killpg(child.process.pid, signal.SIGKILL)  # with its loader processes
            except ProcessLookupError:
                pass
            child.process.wait()


# Called between fork and exec, where little may be done: the library is looked up here.
_LIBC = ctypes.CDLL(None)


def _leave_with_parent() -> None:
    """Have the kernel tell this process to leave when the sweep is killed: it saves, and none trains on unseen."""
    _LIBC.prctl(PR_SET_PDEATHSIG, signal.SIGTERM)


# What a process says and sees -----------------------------------------------------------------------------------------


def reason(log: Path, since: int, code: int) -> str:
    """Why a process ended: the sentence it told, else its last line, else the signal that ended it."""
    if code < 0:
        name = signal.Signals(-code).name
        hint = " (if nobody did that, the machine ran out of memory)" if code == -signal.SIGKILL else ""
        return f"killed by {name}{hint}; see {log}"
    with open(log, "rb") as file:
        file.seek(since)
        lines = [line.strip() for line in file.read().decode(errors="replace").splitlines() if line.strip()]
    told = [line.partition(": ")[2] for line in lines if line.startswith(("vssl train: ", "vssl evaluate: "))]
    return (told or lines or [f"ended with {code} and said nothing; see {log}"])[-1]


def visible_devices() -> list[str]:
    """The GPUs that this process may use, as CUDA_VISIBLE_DEVICES names them."""
    named = os.environ.get("CUDA_VISIBLE_DEVICES")
    if named is not None:
        return [name.strip() for name in named.split(",") if name.strip()]
    import torch

    return [str(number) for number in range(torch.cuda.device_count())]


def devices(slot: int, visible: list[str]) -> Mapping[str, str]:
    """The environment that gives a place side by side a GPU of its own, as far as there are enough."""
    return {"CUDA_VISIBLE_DEVICES": visible[slot % len(visible)]} if len(visible) > 1 else {}
