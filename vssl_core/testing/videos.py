"""A dozen tiny videos, written once for each process: nine of twenty to sixty frames, three shorter than any clip."""

from __future__ import annotations

import atexit
import shutil
import tempfile
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import numpy as np

from vssl_core.data.sources import Splits, Videos

FRAMES = (20, 1, 25, 30, 3, 35, 40, 45, 5, 50, 55, 60)
SHORT = tuple(number for number, frames in enumerate(FRAMES) if frames < 8)
HEIGHT, WIDTH = 48, 64
CLASSES = ("left", "right")


@cache
def folder() -> Path:
    """Where the videos lie; removed when the process ends."""
    from vssl_core.data.demo import write_video

    place = Path(tempfile.mkdtemp(prefix="vssl-videos-"))
    atexit.register(shutil.rmtree, place, ignore_errors=True)
    for number, frames in enumerate(FRAMES):
        write_video(place / _name(number), _drifting(frames, number))
    return place


def splits(place: Path, rows: tuple[int, ...] = tuple(range(len(FRAMES)))) -> Splits:
    """The videos of these rows as a training list, labelled."""
    videos = Videos.build([_name(row) for row in rows], [row % 2 for row in rows], CLASSES, str(place))
    return Splits(videos, None, "conformance")


def _name(number: int) -> str:
    return f"{number:02d}.mp4"


def _drifting(frames: int, number: int) -> Iterator[np.ndarray]:
    """A coarse random texture that moves to one side: (48, 64, 3) uint8 each."""
    generator = np.random.default_rng(number)
    texture = (
        generator.integers(0, 256, (HEIGHT // 8, WIDTH // 8, 3), dtype=np.uint8).repeat(8, axis=0).repeat(8, axis=1)
    )
    speed = 1 + number % 3
    for frame in range(frames):
        yield np.ascontiguousarray(np.roll(texture, (-1) ** number * speed * frame, axis=1))
