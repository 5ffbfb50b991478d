"""Loader workers: windows -> one decode -> uint8 clips -> batches.

Everything here is NumPy; tensors begin with the batch.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset

from vssl_core.data import decode
from vssl_core.data.raw import CutClip, RawBatch, Visit, collate
from vssl_core.data.videos import Videos
from vssl_core.errors import DataError, VideoError
from vssl_core.joining import Group
from vssl_core.looks import Recipe
from vssl_core.looks import draw as draw_appearance
from vssl_core.requests import Measure
from vssl_core.windows import Sample, Window, draw_windows

REPLACEMENTS = 50  # other videos that are tried for one that cannot be read

scan = lru_cache(maxsize=65536)(decode.scan)  # of each process; a scan reads packets, never pixels


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
