"""The three ways to divide a clip into blocks, and the smaller pieces that the blocks of all three are made of."""

from __future__ import annotations

import functools

import numpy as np

BLOCKS = (16, 4, 8)  # of each pattern
WHERE = (slice(0, 16), slice(16, 20), slice(20, 28))  # the patterns among all blocks, one after the other
ALL = sum(BLOCKS)


def masks(height: int, width: int) -> np.ndarray:
    """(28, height, width) bool: which pixels belong to which block, those of pattern 1 first.

    Pattern 1: a grid of 4 x 4, row by row. Pattern 2: the central square, then the three rings around it. Pattern 3:
    eight triangles, two in each quadrant, its left one first; a pixel on a diagonal belongs to both.
    """
    down = ((2 * np.arange(height) + 1) / (2 * height))[:, None]  # of the height, at the pixel's centre
    across = ((2 * np.arange(width) + 1) / (2 * width))[None, :]
    grid = np.floor(4 * down) * 4 + np.floor(4 * across)  # (height, width)
    rings = np.floor(8 * np.maximum(abs(down - 0.5), abs(across - 0.5)))
    quadrant = 2 * (down > 0.5) + (across > 0.5)
    cut = np.where((quadrant == 0) | (quadrant == 3), across - down, across + down - 1)  # 0 on the diagonals
    sides = np.stack([cut < 1e-9, cut > -1e-9])  # left and right
    triangles = [(quadrant == number) & side for number in range(4) for side in sides]
    return np.stack([*(grid == block for block in range(16)), *(rings == ring for ring in range(4)), *triangles])


@functools.lru_cache(maxsize=4)
def shares(size: int) -> np.ndarray:
    """(28, size * size) float32: what each pixel of a square counts in the mean of each block."""
    flat = masks(size, size).reshape(ALL, -1)
    return (flat / flat.sum(axis=1, keepdims=True)).astype(np.float32)


@functools.lru_cache(maxsize=64)
def pieces(height: int, width: int) -> tuple[np.ndarray, np.ndarray]:
    """Pieces that no pattern divides: (height * width,) the piece of each pixel, and (28, pieces) float32, 1 where a
    block holds a piece.
    """
    columns = np.packbits(masks(height, width).reshape(ALL, -1), axis=0)  # (4, pixels): 28 bits of each pixel
    codes, piece = np.unique(np.ascontiguousarray(columns.T).view(np.uint32)[:, 0], return_inverse=True)
    holds = np.unpackbits(codes.view(np.uint8).reshape(-1, 4), axis=1)[:, :ALL].T  # (28, pieces)
    return piece.astype(np.int64), np.ascontiguousarray(holds, np.float32)
