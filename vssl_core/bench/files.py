"""The videos that rows are measured on: yours, or a few that are written for the purpose."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from fractions import Fraction
from functools import cached_property
from pathlib import Path
from types import TracebackType

import numpy as np

from vssl_core.data import decode
from vssl_core.data.folders import walk
from vssl_core.errors import DataError, VideoError

ORIGINALS = "ucf101_6_original"  # where it is there, what is timed; all of the folder is what is compared
MOST = 24  # videos that are timed
SHORTEST = 2.2  # seconds
OWN_VIDEOS, OWN_FRAMES, OWN_SIZE, OWN_RATE = 6, 200, (240, 320), 25


class Files:
    """The files of one bench, for a `with`: what is written for it lies in a temporary folder and goes with it."""

    def __init__(self, clips: str | None) -> None:
        self.root = None if clips is None else Path(clips).expanduser().absolute()
        if self.root is not None and not self.root.is_dir():
            raise DataError(f"--clips {clips}: there is no such folder; give a folder of videos, or leave it out")
        self._temporary = tempfile.TemporaryDirectory(prefix="vssl-bench-")
        self.scratch = Path(self._temporary.name)

    def __enter__(self) -> Files:
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._temporary.cleanup()

    @cached_property
    def everything(self) -> tuple[str, ...]:
        """Every video there is, to be compared frame by frame."""
        if self.root is None:
            return self.originals + self.h264
        return tuple(f"{self.root}/{path}" for path in walk(str(self.root)))

    @cached_property
    def originals(self) -> tuple[str, ...]:
        """Up to 24 videos as they were found, of at least two seconds: UCF101's own where they are there."""
        if self.root is None:
            return self._own
        folder = self.root / ORIGINALS if (self.root / ORIGINALS).is_dir() else self.root
        paths = [f"{folder}/{path}" for path in walk(str(folder))]
        found = [path for path in paths[:: max(1, len(paths) // MOST)] if _usable(path)][:MOST]
        if not found:
            raise DataError(f"--clips {self.root}: holds no readable video of two seconds or more; give another folder")
        return tuple(found)

    @cached_property
    def h264(self) -> tuple[str, ...]:
        """The same videos as H.264 in MP4, at the encoder's defaults."""
        folder = self.scratch / "h264"
        folder.mkdir()
        return tuple(
            _write(folder / f"{number:02d}_{Path(path).stem}.mp4", _decoded(path), "libx264", {})
            for number, path in enumerate(self.originals)
        )

    @cached_property
    def _own(self) -> tuple[str, ...]:
        """MPEG-4 in AVI, the first with B frames, whose time stamps AVI cannot hold."""
        folder = self.scratch / "mpeg4"
        folder.mkdir()
        return tuple(
            _write(
                folder / f"{number:02d}.avi",
                _scene(number),
                "mpeg4",
                {"qscale": "4", "flags": "+qscale", "bf": "0" if number else "2", "g": "50"},
            )
            for number in range(OWN_VIDEOS)
        )

    def name(self, path: str) -> str:
        """A path as rows quote it: below the folder that was given, or the temporary one."""
        folder = self.scratch if path.startswith(str(self.scratch)) else self.root or self.scratch
        return os.path.relpath(path, folder)

    def names(self, paths: tuple[str, ...]) -> tuple[str, ...]:
        """All of them."""
        return tuple(self.name(path) for path in paths)


def _usable(path: str) -> bool:
    try:
        facts = decode.scan(path)
    except VideoError:
        return False
    return facts.rate is not None and facts.frames >= SHORTEST * facts.rate


def _decoded(path: str) -> Iterator[object]:
    """The frames of a video in order; an odd last row or column is left out, since 4:2:0 has none."""
    frames = decode.sequence(path)
    try:
        for frame in frames:
            yield frame.reformat(frame.width // 2 * 2, frame.height // 2 * 2, "yuv420p")
    finally:
        frames.close()


def _scene(number: int) -> Iterator[object]:
    """A camera that wanders over a blotchy wall, with grain: what makes a codec work."""
    import av

    generator = np.random.default_rng(number)
    height, width = OWN_SIZE
    wall = np.kron(generator.integers(0, 256, (96, 128, 3)), np.ones((8, 8, 1))).astype(np.int16)
    path = np.sin(np.arange(OWN_FRAMES)[:, None] * generator.uniform(0.02, 0.06, 2)) * 0.5 + 0.5
    grain = generator.integers(-6, 7, (4, height, width, 1), dtype=np.int16)
    for frame, (down, right) in enumerate(path):
        top, left = int(down * (wall.shape[0] - height)), int(right * (wall.shape[1] - width))
        pixels = wall[top : top + height, left : left + width] + grain[frame % len(grain)]
        yield av.VideoFrame.from_ndarray(pixels.clip(0, 255).astype(np.uint8)).reformat(format="yuv420p")


def _write(path: Path, frames: Iterator[object], codec: str, options: dict[str, str]) -> str:
    """Write a video and give back its path."""
    import av

    with av.open(str(path), "w") as container:
        stream = None
        for number, frame in enumerate(frames):
            if stream is None:
                stream = container.add_stream(codec, rate=OWN_RATE, options={"threads": "1", **options})
                stream.height, stream.width, stream.pix_fmt = frame.height, frame.width, "yuv420p"
            frame.pts, frame.time_base, frame.pict_type = number, Fraction(1, OWN_RATE), 0
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return str(path)
