"""Fixations chosen by saliency: for each frame the part of the picture that holds most of it, from maps in a file."""

from __future__ import annotations

import os
from collections.abc import Iterable
from dataclasses import dataclass
from functools import lru_cache
from pathlib import PurePosixPath
from zipfile import BadZipFile

import numpy as np

from vssl_core import ConfigError, DataError, Window
from vssl_saccades.fixations import picture_masks


@dataclass(frozen=True)
class Votes:
    """How many frames of a clip have most of their saliency within each fixation; a measure, (fixations,) float32.

    Frames without any saliency do not vote, and neither does a video without maps.
    """

    maps: str
    fixations: int
    area: float
    space: str = "clip"

    def __call__(self, crop: np.ndarray, clip: np.ndarray, window: Window) -> np.ndarray:
        """Maps go the way of the frames, as far as fixations do: whole, or the window's box, or mirrored and turned."""
        maps = maps_of(self.maps, window.path)
        if maps is None:
            return np.zeros(self.fixations, np.float32)
        seen = maps[window.indices[: window.frames] * len(maps) // window.total].astype(np.float32)  # (T, h, w)
        if self.space != "frame":
            seen = _cut(seen, window, clip.shape[1])  # (T, S, S)
        if self.space == "clip":
            seen = window.carry(seen)
        masks = picture_masks(self.fixations, self.area, *seen.shape[1:])
        held = seen.reshape(len(seen), -1) @ masks.reshape(len(masks), -1).T.astype(np.float32)  # (T, fixations)
        voting = held.max(axis=1) > 0
        return np.bincount(held[voting].argmax(axis=1), minlength=self.fixations).astype(np.float32)


def _cut(frames: np.ndarray, window: Window, size: int) -> np.ndarray:
    """(T, size, size), the part of the maps (T, h, w) within the window's box, by nearest neighbours."""
    axes = []
    for start, length, whole, cells in zip(
        window.box[:2], window.box[2:], window.frame_size, frames.shape[1:], strict=True
    ):
        places = (start + (np.arange(size) + 0.5) * length / size) / whole
        axes.append(np.minimum((places * cells).astype(np.int64), cells - 1))
    return frames[:, axes[0]][:, :, axes[1]]


# The file -------------------------------------------------------------------------------------------------------------


def check_maps(maps: str, where: str) -> None:
    """Raise a `ConfigError`, which begins with `where`, unless this is a file of arrays."""
    try:
        file = np.load(maps)
    except (OSError, ValueError, EOFError, BadZipFile) as error:
        raise ConfigError(
            f"{where}: {maps} cannot be read as a file of saliency maps ({error}); write it with np.savez, an array "
            "(maps, height, width) for each video"
        ) from error
    if isinstance(file, np.ndarray):
        raise ConfigError(f"{where}: {maps} holds one array; write one for each video, with np.savez")
    file.close()


def check_videos(maps: str, paths: Iterable[str], where: str) -> None:
    """Raise a `DataError`, which begins with `where`, if a video has no maps."""
    with np.load(maps) as file:
        known = set(file.files)
    missing = [path for path in paths if not any(name in known for name in names_of(path))]
    if missing:
        raise DataError(
            f"{where}: {maps} holds no maps for {len(missing)} videos, the first is {missing[0]}, which would be found "
            f"as '{PurePosixPath(missing[0]).stem}'; add them, or leave these videos out"
        )


def names_of(path: str) -> list[str]:
    """The names a video's maps may have: its path without the ending, and what is left of it without its folders."""
    parts = PurePosixPath(path).with_suffix("").parts
    return ["/".join(parts[start:]).replace("//", "/") for start in range(len(parts))]


@lru_cache(maxsize=32)
def maps_of(maps: str, path: str) -> np.ndarray | None:
    """(m, h, w) the maps of a video, evenly spread over its frames; None where it has none."""
    file = _opened(maps, os.getpid())
    name = next((name for name in names_of(path) if name in file.files), None)
    if name is None:
        return None
    try:
        found = file[name]
    except ValueError as error:  # Python objects, which are not loaded
        raise DataError(f"{maps}: the maps of '{name}' cannot be read ({error}); write numbers") from error
    if found.ndim not in (2, 3) or 0 in found.shape:
        raise DataError(f"{maps}: the maps of '{name}' are {found.shape}; write (maps, height, width)")
    return found.reshape(-1, *found.shape[-2:])


@lru_cache(maxsize=4)
def _opened(maps: str, process: int) -> np.lib.npyio.NpzFile:
    """The file, opened by each process for itself: forked ones would share one place in it."""
    return np.load(maps)
