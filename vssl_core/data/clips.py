"""Loader workers: windows -> one decode -> uint8 clips -> batches.

Everything here is NumPy; tensors begin with the batch.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from vssl_core.data import decode
from vssl_core.data.videos import Videos
from vssl_core.errors import DataError, VideoError
from vssl_core.joining import Group
from vssl_core.looks import Recipe
from vssl_core.looks import draw as draw_appearance
from vssl_core.requests import Measure
from vssl_core.views import window_arrays
from vssl_core.windows import Sample, Window, draw_windows

REPLACEMENTS = 50  # other videos that are tried for one that cannot be read

scan = lru_cache(maxsize=65536)(decode.scan)  # of each process; a scan reads packets, never pixels


@dataclass(frozen=True)
class CutClip:
    """One clip of one video, and all that was drawn for it and measured of it."""

    frames: np.ndarray  # (T + tail, S, S, 3) uint8
    window: Window
    looks: dict[str, np.ndarray]  # its appearance, not yet applied
    measures: dict[str, np.ndarray]


@dataclass(frozen=True)
class Cutter:
    """From one video to the clips of every group: one decode for all of them. Picklable, shared by all workers."""

    groups: tuple[Group, ...]
    recipes: tuple[Recipe, ...]  # the appearance of each group
    decoder: str = "pyav"

    def cut(self, path: str, sample: Sample) -> list[list[CutClip]]:
        """The clips of each group.

        `VideoError` where the video cannot be read.
        """
        facts = scan(path)
        size = (facts.height, facts.width)
        windows = [draw_windows(group.request, sample, group.stream, facts.frames, size, path) for group in self.groups]
        try:
            frames = decode.read(path, _union(windows), facts, self.decoder)
        except decode.EndedEarly as early:  # fewer frames than packets: draw again, for the frames that exist
            for number, group in enumerate(self.groups):
                if any(window.indices.max() >= early.frames for window in windows[number]):
                    windows[number] = draw_windows(group.request, sample, group.stream, early.frames, size, path)
            frames = decode.read(path, _union(windows), facts, self.decoder)
        return [
            [self._clip(number, frames, window, sample) for window in drawn] for number, drawn in enumerate(windows)
        ]

    def _clip(self, number: int, frames: decode.Frames, window: Window, sample: Sample) -> CutClip:
        request, stream = self.groups[number].request, f"{self.groups[number].stream}/appearance"
        pixels = _orient(frames.resized(window.indices, window.box, request.size), window)
        looks = draw_appearance(self.recipes[number], sample.generator(stream, window.clip), len(pixels))
        measures = _measure(request.measures, frames, pixels, window) if request.measures else {}
        return CutClip(pixels, window, looks, measures)


def _union(windows: Sequence[Sequence[Window]]) -> np.ndarray:
    return np.unique(np.concatenate([window.indices for group in windows for window in group]))


def _orient(clip: np.ndarray, window: Window) -> np.ndarray:
    """Flip, then turn last: a flip after a turn would make 90 and 270 degrees alike."""
    if window.flip:
        clip = torch.from_numpy(clip).flip(2).numpy()  # ten times faster than NumPy's copy of a mirrored view
    return np.ascontiguousarray(np.rot90(clip, window.turns, axes=(1, 2)))


def _measure(
    measures: Sequence[Measure], frames: decode.Frames, clip: np.ndarray, window: Window
) -> dict[str, np.ndarray]:
    """What each measure says of a clip; pixels at source resolution are converted only where one looks at them."""
    pixels = {}
    for whole in {measure.whole for measure in measures}:
        box = frames.rgb(window.indices) if whole else _orient(frames.rgb(window.indices, window.box), window)
        pixels[whole] = np.ascontiguousarray(box)
    return {measure.name: np.asarray(measure.function(pixels[measure.whole], clip, window)) for measure in measures}


# Samples and batches --------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Visit:
    """One place in an epoch's order: which video, and how often it came before in this epoch."""

    epoch: int
    visit: int
    video: int


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


class Clips(Dataset):
    """Samples by visit; a video that cannot be read is replaced by another one, drawn from the same visit."""

    def __init__(self, videos: Videos, cutter: Cutter, seed: int, *, replace: bool = True) -> None:
        self.videos, self.cutter, self.seed, self.replace = videos, cutter, seed, replace

    def __len__(self) -> int:
        return len(self.videos)

    def __getitem__(self, visit: Visit) -> dict[str, Any]:
        ledger: list[dict[str, Any]] = []
        failure = ""
        for video in self._candidates(visit):
            path = self.videos.path(video)
            try:
                groups = self.cutter.cut(path, Sample(self.seed, visit.epoch, visit.visit, video))
            except VideoError as error:
                failure = failure or f"{error}; {error.advice}"
                ledger.append(
                    {"path": path, "reason": error.reason, "video": video, "epoch": visit.epoch, "replacement": None}
                )
                continue
            for line in ledger:
                line["replacement"] = path
            return {"visit": Visit(visit.epoch, visit.visit, video), "groups": groups, "ledger": ledger}
        return {"visit": visit, "groups": None, "ledger": ledger, "failure": failure}

    def _candidates(self, visit: Visit) -> Iterator[int]:
        yield visit.video
        if self.replace:
            generator = Sample(self.seed, visit.epoch, visit.visit, visit.video).generator("replacement")
            for _ in range(REPLACEMENTS):
                yield int(generator.integers(len(self.videos)))


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


class ClipLoader:
    """Batches of given visits, in order, made by `workers` processes that live as long as the loader (0.

    By this process).
    """

    def __init__(self, dataset: Clips, workers: int, pin: bool = False) -> None:
        self._batches: Sequence[Sequence[Visit]] = ()
        self._loader = DataLoader(
            dataset,
            batch_sampler=_Given(self),
            num_workers=workers,
            collate_fn=collate,
            pin_memory=pin,
            prefetch_factor=2 if workers else None,
            persistent_workers=workers > 0,
            worker_init_fn=_start_worker if workers else None,
            generator=torch.Generator().manual_seed(0),  # its own, so that starting workers draws no global number
        )

    def load(
        self, batches: Sequence[Sequence[Visit]], lost: Callable[[list[dict[str, Any]]], object] | None = None
    ) -> Iterator[RawBatch]:
        """One pass over the batches.

        Raises `DataError` where a video and all its replacements cannot be read; `lost` is told of them first.
        """
        self._batches = batches
        for batch in self._loader:
            if batch.failure and self._loader.dataset.replace:
                if lost:
                    with suppress(DataError):  # too many of them: this batch has more to tell
                        lost(batch.ledger)
                raise DataError(
                    f"data: none of the {len({line['video'] for line in batch.ledger})} videos that were tried for one "
                    f"clip could be read, the first was {batch.failure}"
                )
            yield batch

    def close(self) -> None:
        """End the worker processes."""
        iterator, self._loader._iterator = self._loader._iterator, None
        if iterator is not None and hasattr(iterator, "_shutdown_workers"):
            iterator._shutdown_workers()

    @property
    def given(self) -> Sequence[Sequence[Visit]]:
        """The batches of the pass that is under way."""
        return self._batches


class _Given:
    """The sampler of a loader: the batches it was given."""

    def __init__(self, owner: ClipLoader) -> None:
        self.owner = owner

    def __iter__(self) -> Iterator[Sequence[Visit]]:
        return iter(self.owner.given)

    def __len__(self) -> int:
        return len(self.owner.given)


GRACE = 60  # seconds that a worker outlives a SIGTERM


def _start_worker(worker: int) -> None:
    """One thread each, and leave interrupts to the training process, which still needs batches until it has saved."""
    import gc
    import signal

    # What was inherited stays as it is: collecting another loader here would look for workers that are not ours
    gc.freeze()
    torch.set_num_threads(1)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGUSR2, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, lambda number, frame: signal.alarm(GRACE))  # job managers send it to every process


class Visits(Sequence[Visit]):
    """An epoch's order with visits counted.

    Two arrays, since an object for each of millions of videos would fill memory.
    """

    def __init__(self, epoch: int, videos: np.ndarray, counts: np.ndarray) -> None:
        self.epoch, self.videos, self.counts = epoch, videos, counts

    def __len__(self) -> int:
        return len(self.videos)

    def __getitem__(self, place: int) -> Visit:
        return Visit(self.epoch, int(self.counts[place]), int(self.videos[place]))


def visits_of(order: Sequence[int], epoch: int) -> Visits:
    """The epoch's order with visits counted."""
    videos = np.asarray(order, dtype=np.int64)
    by_video = np.argsort(videos, kind="stable")
    places = np.arange(len(videos))
    begins = np.diff(videos[by_video], prepend=-1) != 0  # where the next video begins; one video's visits stay in order
    counts = np.empty(len(videos), np.int32)
    counts[by_video] = places - np.maximum.accumulate(np.where(begins, places, 0))
    return Visits(epoch, videos, counts)


@dataclass(frozen=True)
class Batches(Sequence[Sequence[Visit]]):
    """Batches of `size` visits that begin at `starts`, each made when it is asked for."""

    visits: Sequence[Visit]
    starts: Sequence[int]
    size: int

    def __len__(self) -> int:
        return len(self.starts)

    def __getitem__(self, number: int) -> list[Visit]:
        start = self.starts[number]
        return [self.visits[place] for place in range(start, start + self.size)]
