"""What loader workers measure of a clip: values that compare and travel."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from vssl_core import Flow, Window
from vssl_statistics import appearance, motion
from vssl_statistics.motion import Binning


@dataclass(frozen=True)
class Motion:
    """(15,) the labels of motion, and 1 where the clip moves at all, else 0: its labels then mean nothing."""

    flow: Flow
    binning: Binning = "hard"

    def boundaries(self, frames: np.ndarray, clip: np.ndarray, window: Window) -> motion.Boundaries:
        """The motion boundaries of a clip."""
        return motion.boundaries(self.flow(frames, clip, window))

    def __call__(self, frames: np.ndarray, clip: np.ndarray, window: Window) -> np.ndarray:
        found = self.boundaries(frames, clip, window)
        return np.append(motion.labels(found, self.binning), int(found.any))


@dataclass(frozen=True)
class Score:
    """() how easy a clip is: the share of its motion that one block of the grid holds; for curricula."""

    flow: Flow

    def __call__(self, frames: np.ndarray, clip: np.ndarray, window: Window) -> np.ndarray:
        return np.float32(motion.score(motion.boundaries(self.flow(frames, clip, window))))


@dataclass(frozen=True)
class Appearance:
    """(13,) the labels of colour, read off the crop before it is resized."""

    def __call__(self, crop: np.ndarray, clip: np.ndarray, window: Window) -> np.ndarray:
        return appearance.labels(crop[: window.frames])
