"""Curricula: which videos an epoch shows, from those whose motion is easy to find to all; and fixed parts of the list.

After Hacohen and Weinshall (On the Power of Curriculum Learning in Training Deep Networks, ICML 2019): a score for each
video, and a pacing that says how many of them take part.
"""

from __future__ import annotations

from math import ceil, floor, log
from typing import Literal

import numpy as np
from pydantic import Field, model_validator

from vssl_core import PluginConfig

UNKNOWN = -1.0  # the score of a video that could not be read
SLACK = 1e-6  # of a video: shares are rounded
HALF, EIGHTH = 0.5, 0.125  # what is shown at first, unless told otherwise
Subset = Literal["1/16", "1/8", "1/4", "1/2", "3/4"]


class Curriculum(PluginConfig):
    """How many of the videos an epoch shows, the easiest first."""

    pacing: Literal["single_step", "fixed_exponential", "varied_exponential", "constant"] = Field(
        "single_step",
        description="one step to all videos, growth at even or at given steps, or the same share in all epochs",
    )
    first: float | None = Field(
        None, gt=0, le=1, description="share that is shown at first; null: 0.5 (thesis), 0.125 where it grows"
    )
    growth: float | None = Field(
        None, gt=1, le=1000, description="how many times as many videos after each step of exponential pacing; null: 2"
    )
    step_length: int | None = Field(
        None, ge=1, le=10**6, description="epochs of one step; null: all videos are shown from the middle of the run on"
    )
    steps: tuple[int, ...] | None = Field(
        None, description="epochs, counted from 0, at which more videos are shown, for varied_exponential"
    )
    hardest_first: bool = Field(False, description="the other way round, as a control")

    @model_validator(mode="after")
    def _used(self) -> Curriculum:
        for key, pacings in (
            ("growth", ("fixed_exponential", "varied_exponential")),
            ("step_length", ("single_step", "fixed_exponential")),
            ("steps", ("varied_exponential",)),
        ):
            if getattr(self, key) is not None and self.pacing not in pacings:
                raise ValueError(f"{key} has no effect with pacing: {self.pacing}; remove it")
        if self.pacing == "varied_exponential":
            steps = self.steps or ()
            if not steps or steps[0] < 1 or any(late <= soon for soon, late in zip(steps, steps[1:], strict=False)):
                raise ValueError(f"varied_exponential needs steps: epochs from 1 on, rising, got {self.steps}")
        return self

    def share(self, epoch: int, epochs: int) -> float:
        """The share of the videos, in (0, 1], that an epoch (from 0) of so many shows."""
        grows = self.pacing in ("fixed_exponential", "varied_exponential")
        first = self.first or (EIGHTH if grows else HALF)
        if self.pacing == "constant":
            return first
        if self.pacing == "single_step":
            return first if epoch < (self.step_length or epochs / 2) else 1.0
        growth = self.growth or 2.0
        if self.steps is not None:
            done = sum(step <= epoch for step in self.steps)
        else:
            needed = max(ceil(log(1 / first, growth) - SLACK), 1)
            done = floor(epoch / (self.step_length or epochs / 2 / needed) + SLACK)
        return first * growth ** min(done, log(1 / first, growth))  # never above 1, and no power of many epochs


def part(subset: Subset | None, videos: int) -> np.ndarray:
    """The rows of a list that a part of it keeps: every k-th one; of 3/4 every second one, and half of the others."""
    rows = np.arange(videos)
    if subset == "3/4":
        return rows[rows % 4 != 3]
    return rows if subset is None else rows[:: int(subset.removeprefix("1/"))]


def count(share: float, videos: int) -> int:
    """How many of so many videos a share is, rounded up."""
    return min(max(ceil(share * videos - SLACK), 1), videos)


def easiest(scores: np.ndarray, rows: np.ndarray, share: float, hardest_first: bool = False) -> np.ndarray:
    """A share of `rows`, those of the largest scores (N,), or of the smallest; in the order of the list.

    Videos whose score is unknown come last either way, and of equal ones the first in the list come first.
    """
    known = scores[rows].astype(np.float64)
    rank = np.where(known == UNKNOWN, np.inf, known if hardest_first else -known)
    return np.sort(rows[np.argsort(rank, kind="stable")[: count(share, len(rows))]])
