"""One function over many items, in processes that may hang or crash: each item has a time limit and an outcome."""

from __future__ import annotations

import multiprocessing
import signal
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from typing import Any

from vssl_core.errors import ConfigError


@dataclass(frozen=True)
class Lost:
    """What is known of an item whose process hung, crashed or raised."""

    reason: str


def each(
    function: Callable[[Any], Any], items: Sequence[Any], workers: int, seconds: float = float("inf")
) -> Iterator[tuple[int, Any]]:
    """Pairs of an item's position and `function(item)`, or Lost, as they are done; raises ConfigError on bad numbers.

    The processes are spawned: the function must be importable, and nothing of the caller's state reaches them.
    """
    if workers < 1:
        raise ConfigError(f"--workers: must be at least 1, got {workers}")
    if not seconds > 0:
        raise ConfigError(f"--seconds: must be more than 0, got {seconds:g}")
    pool = [_Worker(function) for _ in range(min(workers, len(items)))]
    try:
        yield from _shared_out(pool, items, seconds)
    finally:
        for worker in pool:
            worker.end()


def _shared_out(pool: list[_Worker], items: Sequence[Any], seconds: float) -> Iterator[tuple[int, Any]]:
    waiting = iter(range(len(items)))
    busy = list(pool)
    while busy:
        nearest = min(worker.deadline for worker in busy)
        timeout = None if nearest == float("inf") else max(0.0, nearest - time.monotonic())
        ready = set(wait([worker.connection for worker in busy], timeout))
        for worker in list(busy):
            position, outcome = worker.position, None
            if worker.connection in ready:
                outcome = worker.receive()
            elif worker.deadline <= time.monotonic():
                outcome = Lost(f"took longer than {seconds:g} seconds")
                worker.restart()
            else:
                continue
            if position is not None:
                yield position, outcome
            if worker.started and not worker.give(items, next(waiting, None), seconds):
                busy.remove(worker)


class _Worker:
    """A process that takes one item at a time, and is replaced when it hangs or dies."""

    def __init__(self, function: Callable[[Any], Any]) -> None:
        self._function = function
        self._start()

    def _start(self) -> None:
        context = multiprocessing.get_context("spawn")
        self.connection, theirs = context.Pipe()
        self._process = context.Process(target=_serve, args=(theirs, self._function), daemon=True)
        self._process.start()
        theirs.close()
        self.started = False  # until it has said that its imports are done: they are not the first item's time
        self.position: int | None = None
        self.deadline = float("inf")

    def give(self, items: Sequence[Any], position: int | None, seconds: float) -> bool:
        """Send the item at this position, if there is one."""
        self.position, self.deadline = position, float("inf")
        if position is None:
            return False
        self.deadline = time.monotonic() + seconds
        try:
            self.connection.send(items[position])
        except OSError:
            pass  # it died in between: `receive` will tell
        return True

    def receive(self) -> Any:
        """What the process sends: the outcome of its item, or that it is ready for one; Lost where it died."""
        try:
            outcome = self.connection.recv()
        except (EOFError, OSError):
            if not self.started:
                raise RuntimeError("a worker process ended while it started; its error stands above") from None
            self._process.join()
            outcome = Lost(f"the decoder crashed ({_last_words(self._process.exitcode)})")
            self.restart()
            return outcome
        self.started = True
        return outcome

    def restart(self) -> None:
        """Replace the process."""
        self.end()
        self._start()

    def end(self) -> None:
        """Kill the process and close what leads to it."""
        self._process.kill()
        self._process.join()
        self._process.close()
        self.connection.close()


def _last_words(exit_code: int | None) -> str:
    if exit_code is not None and exit_code < 0:
        return signal.Signals(-exit_code).name
    return f"exit code {exit_code}"


def _serve(connection: Connection, function: Callable[[Any], Any]) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent ends us
    connection.send(None)
    while True:
        try:
            item = connection.recv()
        except EOFError:
            return
        try:
            outcome = function(item)
        except Exception as error:
            outcome = Lost(f"{type(error).__name__}: {error}")
        connection.send(outcome)
