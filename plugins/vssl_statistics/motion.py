"""Motion labels: where the boundaries of motion are strongest, which way they point, and when."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np

from vssl_statistics.patterns import WHERE, masks, shares

LABELS = 14
EIGHTHS = 8  # of a turn
Binning = Literal["hard", "soft"]


@dataclass(frozen=True)
class Boundaries:
    """The motion boundaries of a clip: how u, the flow to the right, and v, downwards, change from pixel to pixel."""

    summed: np.ndarray  # (2, 2, S, S) of u and of v: their slopes along x and along y, added up over the frames
    strengths: np.ndarray  # (2, frames - 1) of u and of v: the magnitudes from each frame to the next, added up

    @property
    def magnitude(self) -> np.ndarray:
        """(2, S, S) of u and of v."""
        return np.hypot(self.summed[:, 0], self.summed[:, 1])

    @property
    def angle(self) -> np.ndarray:
        """(2, S, S) of u and of v, in eighths of a turn, in [0, 8]: 0 to the right, 2 downwards."""
        return np.mod(np.arctan2(self.summed[:, 1], self.summed[:, 0]) * (EIGHTHS / (2 * np.pi)), EIGHTHS)

    @property
    def any(self) -> bool:
        """Whether there are boundaries of u and of v at all: without them labels mean nothing."""
        return bool((self.strengths.max(axis=1) > 0).all() and self.summed.any(axis=(1, 2, 3)).all())


def boundaries(flow: np.ndarray) -> Boundaries:
    """The boundaries in a flow (frames - 1, 2, S, S)."""
    slopes = gradient(flow)  # (frames - 1, 2, 2, S, S)
    strengths = np.hypot(slopes[:, :, 0], slopes[:, :, 1]).sum(axis=(2, 3))  # (frames - 1, 2)
    return Boundaries(slopes.sum(axis=0), strengths.T)


def gradient(field: np.ndarray) -> np.ndarray:
    """(..., 2, H, W) the slopes of a field (..., H, W) along x and along y, by Prewitt's operator.

    Six times the change from pixel to pixel; at the edges, where the field goes on as it ends, three times.
    """
    padded = np.pad(field, [(0, 0)] * (field.ndim - 2) + [(1, 1), (1, 1)], mode="edge")
    across = padded[..., :, 2:] - padded[..., :, :-2]  # (..., H + 2, W)
    down = padded[..., 2:, :] - padded[..., :-2, :]  # (..., H, W + 2)
    slopes = np.empty((*field.shape[:-2], 2, *field.shape[-2:]), field.dtype)
    slopes[..., 0, :, :] = across[..., :-2, :] + across[..., 1:-1, :] + across[..., 2:, :]
    slopes[..., 1, :, :] = down[..., :, :-2] + down[..., :, 1:-1] + down[..., :, 2:]
    return slopes


def block_means(magnitude: np.ndarray) -> np.ndarray:
    """(2, 28) the mean of magnitudes (2, S, S) in each block of the three patterns."""
    return magnitude.reshape(2, -1) @ shares(magnitude.shape[-1]).T


def votes(found: Boundaries, binning: Binning) -> np.ndarray:
    """(2, 28, 8) the share of each block's mean magnitude by orientation.

    `hard`: eighths of a turn, the first one from 0 to 45 degrees; `soft`: shared by the two nearest of 0, 45, 90, ...
    """
    angle, magnitude = (part.reshape(2, -1) for part in (found.angle, found.magnitude))  # (2, pixels)
    low = angle.astype(np.int64)
    further = angle - low if binning == "soft" else np.zeros_like(angle)
    low = low % EIGHTHS if binning == "soft" else np.minimum(low, EIGHTHS - 1)
    spread = np.zeros((2, EIGHTHS, magnitude.shape[1]), magnitude.dtype)
    np.put_along_axis(spread, low[:, None], (magnitude * (1 - further))[:, None], axis=1)
    if binning == "soft":
        np.put_along_axis(spread, ((low + 1) % EIGHTHS)[:, None], (magnitude * further)[:, None], axis=1)
    return (spread @ shares(found.summed.shape[-1]).T).transpose(0, 2, 1)


def labels(found: Boundaries, binning: Binning = "hard") -> np.ndarray:
    """(14,) the labels of motion boundaries, each counted from 1.

    Of pattern 1, 2 and 3: the block where u's boundaries are strongest and their orientation there, and the same of v;
    then the pair of frames where they are strongest, of u and of v. The first one wins where several are equal.
    """
    means, turned = block_means(found.magnitude), votes(found, binning)
    local = []
    for blocks in WHERE:
        for field in (0, 1):
            block = means[field, blocks].argmax()
            local += [block, turned[field, blocks][block].argmax()]
    return np.array([*local, *found.strengths.argmax(axis=1)], np.int64) + 1


def score(found: Boundaries) -> float:
    """How easy a clip is: the largest share of all motion that one block of pattern 1 holds, of u or of v.

    In [1/16, 1], and 1/16 for a clip that does not move.
    """
    magnitude = found.magnitude
    inside = masks(*magnitude.shape[1:])[WHERE[0]].reshape(16, -1)
    sums = magnitude.reshape(2, -1).astype(np.float64) @ inside.T  # (2, 16)
    whole = sums.sum(axis=1)
    return float(np.divide(sums.max(axis=1), whole, out=np.full(2, 1 / 16), where=whole > 0).max())
