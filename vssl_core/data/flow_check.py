"""Whether a folder holds the flow of its videos: what it says of a clip against flow that is taken on the fly."""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction
from itertools import pairwise

import numpy as np

from vssl_core.data import decode
from vssl_core.data.flow import bounded, grey_of, in_field, to_square, vectors
from vssl_core.data.flow_store import STEP, FlowStore, blocks_of
from vssl_core.errors import VideoError
from vssl_core.windows import Window, centre_box, span

FRAMES, SIZE = 16, 112  # of the clips that are compared
LEAST = 0.5  # pixels from frame to frame: a clip in which nothing moves so far says more of rounding than of flow


@dataclass(frozen=True)
class Compared:
    """One video whose stored flow is compared with flow taken on the fly."""

    store: FlowStore
    path: str


@dataclass(frozen=True)
class Agreement:
    """How alike both are in one clip: what lies in the folder, and flow taken on the fly."""

    apart: float  # mean difference from what the folder should hold, over the mean size of that: 0 for the same flow
    correlation: float  # of how strong the boundaries are in 4 x 4 blocks, with those of the whole field
    same: tuple[float, ...]  # strongest block, orientation in it, strongest pair of frames: share of u and v


def agreement(compared: Compared) -> Agreement | None:
    """Of a clip in the middle of a video; None where hardly anything moves, or where it is too short."""
    path, settings = compared.path, compared.store.settings
    try:
        facts = decode.scan(path)
        window = _middle(path, facts, settings.stride)
        if not window.real.all():
            return None
        frames = decode.read(path, window.indices, facts).rgb(window.indices)
        stored = compared.store.read(window, np.ones(FRAMES - 1, bool), SIZE)
    except VideoError:
        return None
    grey = bounded(grey_of(frames))
    fields = [vectors(first, second, settings.method) for first, second in pairwise(grey)]
    here = _seen(np.stack(fields), window)
    kept = _seen(np.stack([blocks_of(field, settings.blocks) for field in fields]) * np.float32(STEP), window)
    if np.abs(here).max() < LEAST or not kept.any():
        return None
    apart = np.abs(stored - kept).mean() / np.abs(kept).mean()
    (here, told), (stored, read) = _boundaries(here), _boundaries(stored)
    alike = np.corrcoef(here.ravel(), stored.ravel())[0, 1] if stored.any() else 0.0
    return Agreement(float(apart), float(alike), tuple((told == read).mean(axis=1).tolist()))


def _seen(field: np.ndarray, window: Window) -> np.ndarray:
    """(n, 2, SIZE, SIZE) what a window's box shows of a field of whole frames (n, 2, h, w)."""
    return to_square(field, SIZE, *in_field(window, field.shape[2:]))


def _middle(path: str, facts: decode.Scan, stride: int) -> Window:
    """The clip in the middle of a video."""
    size = facts.height, facts.width
    start = Fraction(max(facts.frames - span(FRAMES, Fraction(stride)), 0) // 2)
    return Window(0, 0, 0, facts.frames, start, Fraction(stride), FRAMES, 0, centre_box(size), size, path=path)


def _boundaries(flow: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(2, 16) how strong the boundaries of u and of v are in 4 x 4 blocks of a flow (n, 2, S, S), n added up.

    And (3, 2) the block where they are strongest, their orientation there in eighths of a turn, and the pair of frames.
    """
    slopes = np.stack(np.gradient(flow, axis=(-2, -1)))  # (2, n, 2, S, S) downwards and across
    down, across = slopes.sum(axis=1)
    strengths = _in_blocks(np.hypot(down, across))
    blocks = strengths.argmax(axis=1)
    eighths = np.floor(np.arctan2(down, across) * (4 / np.pi)) % 8
    votes = np.stack([_in_blocks(np.hypot(down, across) * (eighths == eighth)) for eighth in range(8)])  # (8, 2, 16)
    pairs = np.hypot(*slopes).mean(axis=(-2, -1)).argmax(axis=0)
    return strengths, np.stack([blocks, votes[:, [0, 1], blocks].argmax(axis=0), pairs])


def _in_blocks(field: np.ndarray) -> np.ndarray:
    """(2, 16) the means of a field (2, S, S) in 4 x 4 blocks."""
    quarter = field.shape[-1] // 4
    return field.reshape(2, 4, quarter, 4, quarter).mean(axis=(2, 4)).reshape(2, 16)
