"""Flow that was computed ahead: for each pair of frames the means of small blocks, in a file for each video.

96 blocks along the short side, in steps of 1/32 pixel, take a fortieth of the bytes of a field of 240 x 320 vectors,
and keep 93 (TV-L1) to 98 (DIS) in a hundred of the labels that are read off its boundaries; docs/data.md has more.
"""

from __future__ import annotations

import json
import os
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from vssl_core.data.flow import METHODS, averaged, in_field, to_square
from vssl_core.errors import ConfigError, DataError, VideoError
from vssl_core.windows import Window

FACTS = "flow.json"
SUFFIX = ".npz"
PART = ".part"  # the end of a name under which something is being written, or was when its process was killed
STEP = 1 / 32  # pixel: what a stored number counts
PIECE = 32  # pairs of frames in one array: a clip reads one or two


@dataclass(frozen=True)
class Settings:
    """How a folder's flow was computed."""

    method: str
    stride: int = 1  # frames from the first to the second of a pair
    blocks: int = 96  # along the shorter side of a frame

    def __str__(self) -> str:
        return f"{self.method} with --stride {self.stride} and --blocks {self.blocks}"

    @property
    def sound(self) -> bool:
        """Whether flow could be computed like this: what stands in a file may be anything."""
        whole = all(type(number) is int and number >= 1 for number in (self.stride, self.blocks))
        return self.method in METHODS and whole


@dataclass(frozen=True)
class FlowStore:
    """A folder of flow, read by the path of a video."""

    folder: str
    root: str  # of the videos it was computed from
    settings: Settings

    @classmethod
    def open(cls, folder: str) -> FlowStore:
        """Raises DataError where the folder holds no flow."""
        try:
            facts = json.loads(Path(folder, FACTS).read_text(encoding="utf-8"))
            store = cls(folder, str(facts.pop("root")), Settings(**facts))
        except (FileNotFoundError, NotADirectoryError):
            raise DataError(f"{folder}: holds no {FACTS}, so no flow; compute it with `vssl data flow`") from None
        except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
            raise _unreadable(folder, str(error)) from error
        if not store.settings.sound:
            raise _unreadable(folder, f"it tells of {store.settings}")
        return store

    def write(self) -> None:
        """Write what the folder is."""
        Path(self.folder).mkdir(parents=True, exist_ok=True)
        text = json.dumps({"root": self.root, **asdict(self.settings)}, indent=1)
        temporary = Path(self.folder, f"{FACTS}.{os.getpid()}{PART}")
        temporary.write_text(text + "\n", encoding="utf-8")
        os.replace(temporary, Path(self.folder, FACTS))

    def check(self, where: str, stride: int) -> None:
        """Raise ConfigError where the flow is not that of a clip's stride."""
        if stride != self.settings.stride:
            raise ConfigError(
                f"{where}: the flow in {self.folder} was computed between frames {self.settings.stride} apart, and "
                f"clips have a stride of {stride}; set clip.stride={self.settings.stride}, or compute it with "
                f"`vssl data flow --stride {stride}`"
            )

    def place(self, path: str) -> str:
        """Where the flow of a video that lies below the root is kept."""
        return os.path.join(self.folder, os.path.splitext(os.path.relpath(path, self.root))[0] + SUFFIX)

    def find(self, path: str) -> str:
        """The file with the flow of this video, wherever the videos lie now; raises VideoError where there is none.

        A video that does not lie below the root is known by the longest end of its path that the folder knows.
        """
        video = true_path(path)
        parts = Path(os.path.splitext(video)[0] + SUFFIX).parts[1:]
        if video.startswith(self.root.rstrip(os.sep) + os.sep):
            candidates = [self.place(video)]  # and no other: one that was left out must not get its namesake's flow
        else:
            candidates = [os.path.join(self.folder, *parts[skip:]) for skip in range(len(parts))]
        for candidate in candidates:
            if os.path.isfile(candidate):
                return candidate
        raise VideoError(
            path,
            f"has no flow in {self.folder}, which is made of the videos below {self.root}",
            f"compute it with `vssl data flow SOURCE:ROOT --out FOLDER --method {self.settings.method}`, and name that "
            "folder",
        )

    def read(self, window: Window, moving: np.ndarray, size: int) -> np.ndarray:
        """(n, 2, size, size): the flow in a window's box, as filmed, from the frames where `moving` holds to the next.

        Raises VideoError where the file is missing, spoilt, or of another video.
        """
        firsts = window.indices[: window.frames - 1][moving]
        if ((window.indices[1 : window.frames][moving] - firsts) != self.settings.stride).any():
            raise ConfigError(
                f"{self.folder}: holds flow between frames {self.settings.stride} apart, and a clip of {window.path} "
                "has another stride"
            )
        place = self.find(window.path)
        try:
            with np.load(place, allow_pickle=False) as stored:
                frame = stored["frame"]
                _check_frame(frame, window, int(firsts.max()) + self.settings.stride)
                pieces = {number: stored[f"{number:06d}"] for number in np.unique(firsts // PIECE)}
            blocks = np.stack([pieces[first // PIECE][first % PIECE] for first in firsts])
            if blocks.dtype != np.int16 or blocks.ndim != 4 or blocks.shape[1] != 2 or not blocks.size:
                raise ValueError(f"it holds {blocks.dtype} of shape {blocks.shape}")
        except VideoError:
            raise
        except Exception as error:  # NumPy, zipfile and zlib have many ways to stumble over spoilt bytes
            reason = f"its flow in {place} cannot be read ({in_one_line(error)}); compute it again"
            raise VideoError(window.path, reason) from error
        field = blocks.astype(np.float32) * np.float32(STEP)
        return to_square(field, size, *in_field(window, field.shape[2:]))


def true_path(path: str) -> str:
    """The path with the links of its folder resolved, but not the file's own: its name is what it is known by."""
    folder, name = os.path.split(os.path.abspath(path))
    return os.path.join(os.path.realpath(folder), name)


def in_one_line(error: Exception) -> str:
    """An error in one line."""
    return " ".join(str(error).split()) or type(error).__name__


def _unreadable(folder: str, reason: str) -> DataError:
    return DataError(f"{folder}: {FACTS} cannot be read ({reason}); remove the folder and compute the flow again")


def _check_frame(frame: np.ndarray, window: Window, last: int) -> None:
    """The video may have been scaled since, but it must have the same frames."""
    count, height, width = (int(number) for number in frame)
    if last >= count:
        raise VideoError(window.path, f"has frame {last}, and its flow was computed from {count} frames")
    now = window.frame_size
    if abs(now[0] * width - now[1] * height) > 0.03 * now[1] * height:
        told = f"frames of {now[0]} x {now[1]} pixels, and its flow was computed from {height} x {width}"
        raise VideoError(window.path, f"has {told}")


def blocks_of(flow: np.ndarray, count: int) -> np.ndarray:
    """(2, rows, columns) int16: the means of blocks of a flow (2, h, w), `count` along its shorter side, in `STEP`s."""
    height, width = flow.shape[1:]
    scale = min(1.0, count / min(height, width))
    target = max(round(height * scale), 1), max(round(width * scale), 1)
    means = np.stack([averaged(part, target) for part in flow]) if scale < 1 else flow
    return np.clip(np.rint(means / STEP), -32768, 32767).astype(np.int16)


def save(place: str, blocks: list[np.ndarray], frame: tuple[int, int, int]) -> None:
    """Write the flow of a video, whole or not at all: its pairs, and (frames, height, width) of where it is from."""
    starts = range(0, len(blocks), PIECE)
    pieces = {f"{start // PIECE:06d}": np.stack(blocks[start : start + PIECE]) for start in starts}
    os.makedirs(os.path.dirname(place), exist_ok=True)
    temporary = f"{place}.{os.getpid()}{PART}"  # a killed command's processes may still be at it
    try:
        with open(temporary, "wb") as file:
            np.savez_compressed(file, frame=np.array(frame), **pieces)
        os.replace(temporary, place)
    finally:
        if os.path.exists(temporary):
            os.unlink(temporary)
