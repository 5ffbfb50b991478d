"""Fixations: the parts of the picture that clips show, and the clips that show them."""

from __future__ import annotations

from itertools import product
from math import sqrt
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from vssl_core import Windows

Region = tuple[float, float, float, float]  # top, bottom, left, right, as shares of the picture


def regions(fixations: int, area: float) -> tuple[Region, ...]:
    """Where fixations lie: five are the middles of the quarters and the centre, nine the middles of a 3x3 grid.

    Each is as wide and high as a picture of `area` would be, around its middle, and cut at the border.
    """
    grid = {5: (1 / 4, 3 / 4), 9: (1 / 6, 1 / 2, 5 / 6)}[fixations]
    middles = [*product(grid, grid)] + ([(1 / 2, 1 / 2)] if fixations == 5 else [])
    half = sqrt(area) / 2
    return tuple(
        (max(down - half, 0), min(down + half, 1), max(right - half, 0), min(right + half, 1))
        for down, right in middles
    )


def picture_masks(fixations: int, area: float, height: int, width: int) -> np.ndarray:
    """(fixations, height, width) bool, what each shows of a picture: the pixels whose middles lie inside."""
    down, along = ((np.arange(pixels) + 0.5) / pixels for pixels in (height, width))
    masks = [
        np.outer(_inside(down, top, bottom), _inside(along, left, right))
        for top, bottom, left, right in regions(fixations, area)
    ]
    return np.stack(masks)


def clip_masks(fixations: int, area: float, size: int) -> np.ndarray:
    """(fixations, size, size) bool, what each shows of a square clip."""
    return picture_masks(fixations, area, size, size)


def _inside(shares: np.ndarray, low: float, high: float) -> np.ndarray:
    inside = (shares >= low) & (shares < high)
    inside[np.abs(shares - (low + high) / 2).argmin()] = True  # however small: never empty
    return inside


def frame_masks(fixations: int, area: float, windows: Windows, chosen: Tensor, size: int) -> Tensor:
    """(B, size, size) float, what fixation `chosen` (B,) of the whole frame shows of each clip: it may be nothing."""
    limits = torch.tensor(regions(fixations, area), dtype=torch.float64, device=chosen.device)[chosen]  # (B, 4)
    steps = (torch.arange(size, dtype=torch.float64, device=chosen.device) + 0.5) / size
    box, frame = windows.box.double(), windows.frame_size.double()
    inside = []
    for axis in range(2):
        along = torch.where(windows.flip[:, None], 1 - steps, steps) if axis else steps
        shares = (box[:, axis, None] + along * box[:, 2 + axis, None]) / frame[:, axis, None]  # (B, size)
        low, high = limits[:, 2 * axis, None], limits[:, 2 * axis + 1, None]
        inside.append((shares >= low) & (shares < high))
    return (inside[0][:, :, None] & inside[1][:, None, :]).float()


def show(clip: Tensor, masks: Tensor, mode: Literal["multiply", "residual"]) -> Tensor:
    """Clips (B,3,T,S,S) of which masks (B,S,S) show a part: zero outside it, or twice as strong inside it."""
    masks = masks[:, None, None]
    return clip * masks if mode == "multiply" else clip + clip * masks
