"""Appearance labels: where colours change most and least over time, and which colour dominates there."""

from __future__ import annotations

import numpy as np

from vssl_statistics.patterns import WHERE, pieces

LABELS = 13
LEVELS = 256
OCTANTS = 8
LARGEST = 340  # pixels of a side: of larger crops every second, third, ... pixel is counted
SMALLEST = 8  # of smaller ones each pixel several times: every block of every pattern must hold one


def labels(crop: np.ndarray) -> np.ndarray:
    """(13,) the labels of the frames (T, h, w, 3) uint8, each counted from 1.

    Of pattern 1, 2 and 3: the block whose colours change most and its dominant colour, and the same of the block that
    changes least; then the dominant colour of all. The first one wins where several are equal.
    """
    crop = measurable(crop)
    alike, colours = likeness(crop), dominant(crop)
    local = []
    for blocks in WHERE:
        for block in (alike[blocks].argmin(), alike[blocks].argmax()):
            local += [block, colours[blocks][block].argmax()]
    return np.array([*local, colours[WHERE[1]].sum(axis=0).argmax()], np.int64) + 1


def measurable(crop: np.ndarray) -> np.ndarray:
    """The frames with no side above `LARGEST`, and none below `SMALLEST`."""
    for axis in (1, 2):
        length = crop.shape[axis]
        crop = crop[:, :: -(-length // LARGEST)] if axis == 1 else crop[:, :, :: -(-length // LARGEST)]
        crop = np.repeat(crop, -(-SMALLEST // length), axis) if length < SMALLEST else crop
    return crop


def likeness(crop: np.ndarray) -> np.ndarray:
    """(28,) how alike each block's colours are in all frames (T, h, w, 3): 1 where they are the same.

    The intersection of the histograms of all frames over their union, on average over red, green and blue.
    """
    frames, height, width, _ = crop.shape
    piece, holds = pieces(height, width)
    histograms = _histograms(crop, piece, holds.shape[1])  # (T * 3 * 256, pieces)
    blocks = (histograms @ holds.T).reshape(frames, 3, LEVELS, -1)  # (T, 3, 256, 28)
    common, union = blocks.min(axis=0).sum(axis=1), blocks.max(axis=0).sum(axis=1)  # (3, 28)
    return (common / np.maximum(union, 1)).mean(axis=0)


def _histograms(crop: np.ndarray, piece: np.ndarray, count: int) -> np.ndarray:
    """(T * 3 * 256, pieces) how many pixels of a piece have each value, in each frame and channel."""
    frames = len(crop)
    rows = np.arange(frames * 3).reshape(frames, 1, 3) * LEVELS
    places = (rows + crop.reshape(frames, -1, 3)) * count + piece[:, None]  # (T, pixels, 3)
    counted = np.bincount(places.ravel(), minlength=frames * 3 * LEVELS * count)
    return counted.reshape(-1, count).astype(np.float32)


def dominant(crop: np.ndarray) -> np.ndarray:
    """(28, 8) how many pixels of each block have a colour in each octant, over all frames."""
    frames, height, width, _ = crop.shape
    piece, holds = pieces(height, width)
    places = octants(crop).reshape(frames, -1) + OCTANTS * piece  # (T, pixels)
    counted = np.bincount(places.ravel(), minlength=OCTANTS * holds.shape[1])
    return holds @ counted.reshape(-1, OCTANTS)


def octants(colours: np.ndarray) -> np.ndarray:
    """(...) the octant, from 0, of colours (..., 3): 4 where there is little blue, 2 where much red, 1 where much
    green.
    """
    red, green, blue = (colours[..., channel] >= LEVELS // 2 for channel in range(3))
    return 4 * (~blue).astype(np.int64) + 2 * red + green
