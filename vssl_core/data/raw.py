"""What is between loader and net: a clip as it was cut, and clips of many videos as one batch, still uint8."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from vssl_core.views import window_arrays
from vssl_core.windows import Window


@dataclass(frozen=True)
class Visit:
    """One place in an epoch's order: which video, and how often it came before in this epoch."""

    epoch: int
    visit: int
    video: int


@dataclass(frozen=True)
class CutClip:
    """One clip of one video, and all that was drawn for it and measured of it."""

    frames: np.ndarray  # (T + tail, S, S, 3) uint8
    window: Window
    looks: dict[str, np.ndarray]  # its appearance, not yet applied
    measures: dict[str, np.ndarray]


@dataclass(frozen=True)
class RawClip:
    """One clip of each video of a batch as it leaves the loader."""

    frames: Tensor  # (B, T + tail, S, S, 3) uint8
    windows: dict[str, np.ndarray]  # {field of `Windows`: (B, ...)}: not tensors before somebody reads them
    looks: dict[str, Tensor]  # {name: (B, ...)}
    measures: dict[str, Tensor]  # {name: (B, ...)}

    def slice(self, start: int, stop: int) -> RawClip:
        """The rows from `start` to `stop`."""
        windows = {name: values[start:stop] for name, values in self.windows.items()}
        return self._each(lambda rows: rows[start:stop], windows)

    def to(self, device: torch.device) -> RawClip:
        """On another device, without waiting for it."""
        return self._each(lambda rows: rows.to(device, non_blocking=True), self.windows)

    def pin_memory(self) -> RawClip:
        """In memory that devices copy from while others work."""
        return self._each(Tensor.pin_memory, self.windows)

    def _each(self, change: Callable[[Tensor], Tensor], windows: dict[str, np.ndarray]) -> RawClip:
        looks, measures = ({name: change(rows) for name, rows in kind.items()} for kind in (self.looks, self.measures))
        return RawClip(change(self.frames), windows, looks, measures)


@dataclass(frozen=True)
class RawBatch:
    """A batch as it leaves the loader: uint8 clips, and all that was drawn for them."""

    index: Tensor  # (B,) int64: the videos that were really read
    visits: list[Visit]  # for each row, with the video that was really read
    groups: list[list[RawClip]]  # [group][clip]
    ledger: list[dict[str, Any]] = field(default_factory=list)  # videos that could not be read
    failure: str | None = None  # of the first row that could not be read at all: why, and what to do

    def slice(self, start: int, stop: int) -> RawBatch:
        """The rows from `start` to `stop`."""
        groups = [[clip.slice(start, stop) for clip in group] for group in self.groups]
        return RawBatch(self.index[start:stop], self.visits[start:stop], groups)

    def to(self, device: torch.device) -> RawBatch:
        """On another device, without waiting for it."""
        groups = [[clip.to(device) for clip in group] for group in self.groups]
        return replace(self, index=self.index.to(device, non_blocking=True), groups=groups)

    def pin_memory(self) -> RawBatch:
        """What the loader's own thread does to a batch that goes to a device."""
        groups = [[clip.pin_memory() for clip in group] for group in self.groups]
        return replace(self, index=self.index.pin_memory(), groups=groups)


def collate(samples: Sequence[dict[str, Any]]) -> RawBatch:
    """Samples as one batch; rows that could not be read at all are left out and stand in the ledger."""
    ledger = [line for sample in samples for line in sample["ledger"]]
    read = [sample for sample in samples if sample["groups"] is not None]
    visits = [sample["visit"] for sample in read]
    by_group = zip(*(sample["groups"] for sample in read), strict=True)
    groups = [[_together(clips) for clips in zip(*rows, strict=True)] for rows in by_group]
    failure = next((sample["failure"] for sample in samples if sample["groups"] is None), None)
    return RawBatch(torch.tensor([visit.video for visit in visits]), visits, groups, ledger, failure)


def _together(clips: Sequence[CutClip]) -> RawClip:
    """The same clip of B videos."""
    return RawClip(
        torch.from_numpy(np.stack([clip.frames for clip in clips])),  # (B, T + tail, S, S, 3)
        window_arrays([clip.window for clip in clips]),
        _stack([clip.looks for clip in clips]),
        _stack([clip.measures for clip in clips]),
    )


def _stack(rows: Sequence[dict[str, np.ndarray]]) -> dict[str, Tensor]:
    return {name: torch.from_numpy(np.stack([np.asarray(row[name]) for row in rows])) for name in rows[0]}
