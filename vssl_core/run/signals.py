"""Ctrl-C and SIGTERM during training: remembered, so that the run can save and leave between two steps."""

from __future__ import annotations

import signal
from pathlib import Path

from vssl_core.errors import VsslError


class Interrupted(VsslError):
    """A signal asked the run to leave; it has saved."""

    def __init__(self, number: int, folder: Path) -> None:
        name = signal.Signals(number).name
        super().__init__(f"{folder}: interrupted by {name} and saved; start the same command again to go on")
        self.exit_code = 128 + number


class Signals:
    """While it is open, the first SIGINT or SIGTERM is remembered in `asked`.

    A second of its kind does what it always did.
    """

    def __init__(self) -> None:
        self.asked = 0  # the number of the first signal that came

    def __enter__(self) -> Signals:
        self._before = {number: signal.signal(number, self._remember) for number in (signal.SIGINT, signal.SIGTERM)}
        return self

    def __exit__(self, *error: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _remember(self, number: int, frame: object) -> None:
        self.asked = self.asked or number
        signal.signal(number, self._before[number])
