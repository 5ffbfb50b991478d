"""The demo data set: small H.264 videos of moving scenes, written once, then read like any other folder."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from hashlib import sha256
from pathlib import Path

import numpy as np
from iopath.common.file_io import file_lock

from vssl_core.data import scenes
from vssl_core.data.folders import folder_source
from vssl_core.data.videos import SourceOptions, Splits
from vssl_core.errors import DataError

MARKER = "demo.json"
FRAMES = (64, 96)  # fewest and most frames of a video
FRAMES_PER_SECOND = 25
VIDEOS = {"train": 30, "test": 12}  # per class
WRITERS = 2


@dataclass(frozen=True)
class Scene:
    """One video to be written: everything it shows follows from these four."""

    side: str
    motion: str
    pattern: str
    number: int

    @property
    def path(self) -> str:
        """Below the data set's folder; the class is the motion, the pattern is independent of it."""
        return f"{self.side}/{self.motion}/{self.pattern}_{self.number:02d}.mp4"

    def frames(self) -> Iterator[np.ndarray]:
        """Its frames, (96, 128, 3) uint8, one at a time; the same on every call."""
        sides, motions = list(VIDEOS), list(scenes.MOTIONS)
        generator = np.random.default_rng((sides.index(self.side), motions.index(self.motion), self.number))
        count = int(generator.integers(FRAMES[0], FRAMES[1] + 1))
        return scenes.render(self.motion, self.pattern, count, generator)


def demo_scenes() -> list[Scene]:
    """All videos of the demo, every pattern equally often in every class and on both sides."""
    return [
        Scene(side, motion, scenes.PATTERNS[number % len(scenes.PATTERNS)], number)
        for side, count in VIDEOS.items()
        for motion in scenes.MOTIONS
        for number in range(count)
    ]


def demo_source(root: str | None, options: SourceOptions) -> Splits:
    """Splits of the demo in `root`, else in the cache; written first where it is not there yet."""
    folder = Path(root or options.cache or default_folder()).expanduser().absolute()
    make_demo(folder)
    return replace(folder_source(str(folder), options), name="demo")


def default_folder() -> Path:
    """$VSSL_CACHE/demo, else vssl/demo in the user's cache folder."""
    if own := os.environ.get("VSSL_CACHE"):
        return Path(own) / "demo"
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "vssl" / "demo"


def make_demo(folder: Path) -> bool:
    """Write the demo into the folder unless it is there, complete and of this version; whether anything was written.

    It is written beside the folder and then renamed, one process at a time: whoever finds the folder finds all of it.
    """
    if _is_current(folder):
        return False
    if folder.exists() and not (folder.is_dir() and (not any(folder.iterdir()) or (folder / MARKER).is_file())):
        raise DataError(f"demo: {folder} holds something else; give another folder with demo:FOLDER")
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with file_lock(str(folder)):
            return not _is_current(folder) and _replace(folder)
    except OSError as error:
        reason = error.strerror or error
        raise DataError(f"demo: {folder} cannot be written ({reason}); give another with demo:FOLDER") from error


def _replace(folder: Path) -> bool:
    for left in folder.parent.glob(f".{folder.name}-partial-*"):
        shutil.rmtree(left, ignore_errors=True)  # of a process that was killed: the lock is ours
    partial = Path(tempfile.mkdtemp(prefix=f".{folder.name}-partial-", dir=folder.parent))
    try:
        _write_all(partial / "new")
        if folder.exists():
            folder.rename(partial / "old")
        (partial / "new").rename(folder)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return True


def _write_all(folder: Path) -> None:
    wanted = demo_scenes()
    for parent in {(folder / scene.path).parent for scene in wanted}:
        parent.mkdir(parents=True)
    with ThreadPoolExecutor(WRITERS) as threads:  # numpy and the encoder let go of the interpreter's lock
        for _ in threads.map(lambda scene: write_video(folder / scene.path, scene.frames()), wanted):
            pass
    (folder / MARKER).write_text(json.dumps({"version": _version(), "videos": len(wanted)}) + "\n")


def write_video(path: Path, frames: Iterator[np.ndarray], crf: int = 20, key_frame_every: int = 24) -> None:
    """Write RGB frames (H, W, 3) uint8 as H.264 in 4:2:0, at 25 frames a second."""
    import av

    with av.open(str(path), "w") as container:
        options = {"crf": str(crf), "preset": "superfast", "threads": "1"}
        stream = container.add_stream("libx264", rate=FRAMES_PER_SECOND, options=options)
        stream.pix_fmt, stream.codec_context.gop_size = "yuv420p", key_frame_every
        for number, pixels in enumerate(frames):
            if number == 0:
                stream.height, stream.width = pixels.shape[:2]
            container.mux(stream.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")))
        container.mux(stream.encode())


def _is_current(folder: Path) -> bool:
    try:
        marker = json.loads((folder / MARKER).read_text())
    except (OSError, ValueError):
        return False
    complete = all((folder / scene.path).is_file() for scene in demo_scenes())
    return isinstance(marker, dict) and marker.get("version") == _version() and complete


def _version() -> str:
    """Changes whenever the code that makes the videos does."""
    sources = b"".join(Path(file).read_bytes() for file in (__file__, scenes.__file__))
    return sha256(sources).hexdigest()[:16]
