"""What a measured row is, and how two sides are timed against each other on a machine that does other things too."""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np

PACKAGES = ("vssl", "torch", "torchvision", "av", "numpy", "pytorchvideo", "decord")
Side = Callable[[int], object]  # one repetition, given its number


@dataclass(frozen=True)
class Bar:
    """What a row must reach."""

    limit: float
    at_least: bool  # else at most

    def met(self, value: float) -> bool:
        """Whether this value is good enough."""
        return value >= self.limit if self.at_least else value <= self.limit

    def __str__(self) -> str:
        return f"{'>=' if self.at_least else '<='} {self.limit:g}"


def at_least(limit: float) -> Bar:
    """A bar from below."""
    return Bar(limit, True)


def at_most(limit: float) -> Bar:
    """A bar from above."""
    return Bar(limit, False)


@dataclass(frozen=True)
class Spread:
    """A median and the range around it."""

    median: float
    low: float
    high: float

    @staticmethod
    def of(values: Sequence[float] | np.ndarray) -> Spread:
        """The spread of these values."""
        return Spread(float(np.median(values)), float(np.min(values)), float(np.max(values)))

    def __str__(self) -> str:
        return f"{_short(self.median)} [{_short(self.low)}..{_short(self.high)}]"


@dataclass(frozen=True)
class Row:
    """One line of the table; `value` is None where it could not be measured, and `note` says why."""

    name: str
    case: str
    bar: Bar
    value: Spread | None
    again: Spread | None = None  # A/A: the same code against itself, where times are compared
    ours: str = ""  # what this side took
    other: str = ""  # what the other side took
    repeats: int = 0
    files: tuple[str, ...] = ()
    note: str = ""
    holds: bool = True  # whether a second bar, which the note tells, is met too

    @property
    def met(self) -> bool | None:
        """Whether the bar is met; None where nothing was measured."""
        return None if self.value is None else self.bar.met(self.value.median) and self.holds

    def describe(self) -> dict[str, Any]:
        """The row as plain JSON values."""
        return {
            **asdict(replace(self, files=())),
            "bar": str(self.bar),
            "met": self.met,
            "files": list(self.files),
            "versions": versions(),
        }


@dataclass(frozen=True)
class Times:
    """Seconds of interleaved repetitions: this side twice, the other side once, all (N,)."""

    ours: np.ndarray
    again: np.ndarray
    other: np.ndarray

    def row(self, name: str, case: str, bar: Bar, *, per: float = 1.0, unit: str = "ms a clip", **more: Any) -> Row:
        """The row of these times; the ratio is other/ours where the bar is a least one, else ours/other.

        Each repetition gives one ratio, of neighbours in time; this side counts with the mean of its two runs.
        """
        mine = (self.ours + self.again) / 2
        ratios = self.other / mine if bar.at_least else mine / self.other
        ours, other = (f"{_short(1000 * float(np.median(side)) / per)} {unit}" for side in (mine, self.other))
        return Row(
            name, case, bar, Spread.of(ratios), Spread.of(self.again / self.ours), ours, other, len(ratios), **more
        )


def seconds_of(side: Side, number: int) -> float:
    """Seconds of CPU that one repetition takes in this process, whatever the others on this machine do meanwhile."""
    gc.collect()  # what was left behind before is not this side's
    start = time.process_time()
    side(number)
    return time.process_time() - start


def paired(
    ours: Side, other: Side, repeats: int, warm: bool = True, clock: Callable[[Side, int], float] = seconds_of
) -> Times:
    """Run both sides `repeats` times, one after the other in random order, on the CPU clock of this process.

    Other processes may take the wall clock, not this one. `warm` runs each side once before, uncounted.
    """
    import torch

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    generator = np.random.default_rng(0)
    seconds: dict[str, list[float]] = {"ours": [], "again": [], "other": []}
    sides = {"ours": ours, "again": ours, "other": other}
    try:
        for side in (ours, other) if warm else ():
            side(-1)
        for number in range(repeats):
            for name in generator.permutation(list(sides)):
                seconds[name].append(clock(sides[name], number))
    finally:
        torch.set_num_threads(threads)
    return Times(*(np.array(seconds[name]) for name in ("ours", "again", "other")))


def several(work: Callable[[], object], times: int) -> Side:
    """A side that does this work so many times in one repetition, for work that is done in microseconds."""

    def side(_: int) -> None:
        for _ in range(times):
            work()

    return side


def count(usual: int, share: float) -> int:
    """This share of the usual number of repetitions, at least one."""
    return max(1, round(usual * share))


def not_measured(name: str, case: str, bar: Bar, reason: str) -> Row:
    """The row of something that cannot be measured here."""
    return Row(name, case, bar, None, note=f"not measured: {reason}")


@cache
def versions() -> dict[str, str]:
    """What was measured with: packages and processor."""
    import platform

    found = {"python": platform.python_version(), "processor": _processor()}
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = "not installed"
    return found


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return "unknown"
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "unknown")


def _short(value: float) -> str:
    return f"{value:.3g}" if abs(value) < 1000 else f"{value:.0f}"
