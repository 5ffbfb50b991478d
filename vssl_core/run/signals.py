"""Ctrl-C, SIGTERM and SIGUSR2 during training: remembered, so that the run can save and leave between two steps."""

from __future__ import annotations

import signal
from pathlib import Path

from vssl_core.errors import VsslError

ASKED_BY_YOU = (signal.SIGINT, signal.SIGTERM)  # asked twice, a process ends at once
ASKED_BY_JOBS = signal.SIGUSR2  # what job managers send before a time limit, and may send again


class Interrupted(VsslError):
    """A signal asked the run to leave; it has saved."""

    def __init__(
        self, number: int, folder: Path, how: str = "and saved; start the same command again to go on"
    ) -> None:
        super().__init__(f"{folder}: interrupted by {signal.Signals(number).name} {how}")
        self.number = number
        self.exit_code = 128 + number


class Signals:
    """While it is open, the first SIGINT, SIGTERM or SIGUSR2 is remembered in `asked`.

    A second SIGINT or SIGTERM does what it always did; a second SIGUSR2 changes nothing.
    """

    def __init__(self) -> None:
        self.asked = 0  # the number of the first signal that came

    def __enter__(self) -> Signals:
        numbers = (*ASKED_BY_YOU, ASKED_BY_JOBS)
        self._before = {number: signal.signal(number, self._remember) for number in numbers}
        return self

    def __exit__(self, *error: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _remember(self, number: int, frame: object) -> None:
        self.asked = self.asked or number
        if number in ASKED_BY_YOU:
            signal.signal(number, self._before[number])
