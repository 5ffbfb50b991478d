"""Optical flow between the frames of a clip: taken from its pixels, or read from what was computed ahead.

A measure gets a field at the resolution of the clip, but flow is found at that of the source, on whole frames: at the
size of a clip, and near the edges of what they see, fast methods lose the boundaries of what moves.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from vssl_core.errors import ConfigError, DataError, did_you_mean
from vssl_core.windows import Window

if TYPE_CHECKING:
    from vssl_core.data.flow_store import FlowStore

METHODS = ("dis", "farneback", "tvl1")
LONGEST = 340  # pixels of the longer side that flow is taken at: larger frames are shrunk first
SHORTEST = 16  # pixels of the shorter side: DIS refuses less than eight

Estimate = Callable[[np.ndarray, np.ndarray], np.ndarray]  # two grey pictures (h, w) to vectors (h, w, 2)
Span = tuple[float, float]  # from one row (or column) to another, in samples of a field


@dataclass(frozen=True)
class Flow:
    """Where the pixels of a clip go from each frame to the next: the function of a measure, or a part of one.

    `method` names how it is computed, from whole frames: `Measure(..., whole=flow.whole)`. `folder` names what
    `vssl data flow` has computed ahead; no pixels and no OpenCV are needed then, and `method` plays no part.
    """

    method: str = "dis"
    folder: str | None = None

    @property
    def whole(self) -> bool:
        """Whether whole frames are looked at."""
        return self.folder is None

    @property
    def computed_by(self) -> str:
        """The method that it is, or was, computed by."""
        return self.method if self.folder is None else _store(self.folder).settings.method

    def check(self, where: str, stride: int) -> None:
        """Raise a `UserError` where flow cannot be had: not computed, or not from what lies ahead, for this stride."""
        if self.method not in METHODS:
            raise ConfigError(
                f"{where}: no way to compute flow is called '{self.method}'{did_you_mean(self.method, METHODS)}; "
                f"choose one of {', '.join(METHODS)}"
            )
        if self.folder is None:
            estimator(self.method)
            return
        try:
            _store(self.folder).check(where, stride)
        except DataError as error:
            raise DataError(f"{where}: {error}") from None

    def __call__(self, frames: np.ndarray, clip: np.ndarray, window: Window) -> np.ndarray:
        """(frames - 1, 2, S, S) float32: to the right and down, of a clip (T, S, S, 3), oriented as the clip is.

        In pixels of the frame that flow was taken from, which has at most `LONGEST` on its longer side. Zero between a
        frame and its repetition, and at the seam of a clip that starts again or ends early. Raises VideoError where
        nothing was computed ahead for this video.
        """
        size = clip.shape[1]
        steps = np.diff(window.indices[: window.frames])
        moving = (steps > 0) & (steps == np.diff(window.nominal[: window.frames]))
        field = np.zeros((len(steps), 2, size, size), np.float32)
        if moving.any():
            field[moving] = self._between(frames, window, moving, size)
        return window.carry(field, vector=True)

    def _between(self, frames: np.ndarray, window: Window, moving: np.ndarray, size: int) -> np.ndarray:
        if self.folder is not None:
            return _store(self.folder).read(window, moving, size)
        grey = bounded(grey_of(frames[: window.frames]))
        field = np.stack([vectors(grey[i], grey[i + 1], self.method) for i in np.flatnonzero(moving)])
        return to_square(field, size, *in_field(window, field.shape[2:]))


# Computing ------------------------------------------------------------------------------------------------------------


def opencv() -> Any:
    """OpenCV, on one thread; raises ConfigError where it is not installed."""
    try:
        import cv2
    except ImportError:
        raise ConfigError(
            "optical flow: OpenCV is not installed; install it with the extra, pip install 'vssl[flow]'"
        ) from None
    cv2.setNumThreads(1)  # workers share the cores already; and with other numbers of threads DIS gives other vectors
    return cv2


@functools.cache
def estimator(method: str) -> Estimate:
    """The function of this name with its usual settings; made once in each process."""
    cv2 = opencv()
    if method == "dis":
        dis = cv2.DISOpticalFlow_create(cv2.DISOPTICAL_FLOW_PRESET_MEDIUM)
        return lambda first, second: dis.calc(first, second, None)
    if method == "farneback":
        return lambda first, second: cv2.calcOpticalFlowFarneback(first, second, None, 0.5, 3, 15, 3, 5, 1.2, 0)
    if not hasattr(cv2, "optflow"):
        raise ConfigError(
            "optical flow: this OpenCV lacks the contributed modules that TV-L1 belongs to; put "
            "opencv-contrib-python-headless in its place, or choose dis or farneback"
        )
    return lambda first, second: cv2.optflow.DualTVL1OpticalFlow_create().calc(first, second, None)


def vectors(first: np.ndarray, second: np.ndarray, method: str) -> np.ndarray:
    """(2, h, w) float32: where the pixels of one grey picture (h, w) go in another, to the right and down."""
    if np.array_equal(first, second):
        return np.zeros((2, *first.shape), np.float32)
    return np.ascontiguousarray(estimator(method)(first, second).transpose(2, 0, 1))


def grey_of(frames: np.ndarray) -> np.ndarray:
    """(T, h, w) the brightness of frames (T, h, w, 3), both uint8."""
    cv2 = opencv()
    tall = np.ascontiguousarray(frames).reshape(-1, *frames.shape[2:])  # one picture: one call
    return cv2.cvtColor(tall, cv2.COLOR_RGB2GRAY).reshape(frames.shape[:3])


def bounded(grey: np.ndarray) -> np.ndarray:
    """Pictures (T, h, w), shrunk to `LONGEST` where a side is longer, enlarged to `SHORTEST` where one is shorter."""
    height, width = grey.shape[1:]
    shrink = min(1.0, LONGEST / max(height, width))
    target = max(round(height * shrink), SHORTEST), max(round(width * shrink), SHORTEST)
    return grey if target == (height, width) else np.stack([averaged(picture, target) for picture in grey])


def averaged(picture: np.ndarray, target: tuple[int, int]) -> np.ndarray:
    """A picture (h, w) in another size: means of blocks where it becomes smaller."""
    cv2 = opencv()
    smaller = target[0] < picture.shape[0] or target[1] < picture.shape[1]
    return cv2.resize(picture, target[::-1], interpolation=cv2.INTER_AREA if smaller else cv2.INTER_LINEAR)


# Resampling -----------------------------------------------------------------------------------------------------------


def in_field(window: Window, shape: tuple[int, ...]) -> tuple[Span, Span]:
    """The rows and the columns of a field of this shape (h, w), which covers the whole frame, that the box shows."""
    top, left, height, width = window.box
    down, across = shape[0] / window.frame_size[0], shape[1] / window.frame_size[1]
    return (top * down, (top + height) * down), (left * across, (left + width) * across)


def to_square(field: np.ndarray, size: int, rows: Span, columns: Span) -> np.ndarray:
    """A part of a field (n, 2, h, w) as (n, 2, size, size): linear, with antialiasing, as clips are resized."""
    down, across = resampling(field.shape[2], size, *rows), resampling(field.shape[3], size, *columns)
    level = field[:, :, :1, :1]  # taken off and put back, so that a constant stays one: the weights' sums are rounded
    return down @ ((field - level) @ across.T) + level


@functools.lru_cache(maxsize=16)
def resampling(length: int, size: int, start: float, stop: float) -> np.ndarray:
    """(size, length) float32: what each of `length` samples weighs in each of `size` ones from `start` to `stop`."""
    step = (stop - start) / size
    centres = np.clip(start + step * (np.arange(size) + 0.5), 0.5, length - 0.5)
    distances = np.abs(np.arange(length) + 0.5 - centres[:, None])
    weights = np.maximum(0.0, 1 - distances / max(step, 1.0))
    return np.ascontiguousarray(weights / weights.sum(axis=1, keepdims=True), np.float32)


@functools.lru_cache(maxsize=8)
def _store(folder: str) -> FlowStore:
    from vssl_core.data.flow_store import FlowStore

    return FlowStore.open(folder)
