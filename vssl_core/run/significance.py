"""Whether the cells of a sweep differ by more than chance: the paired bootstrap over test videos and seeds."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

RESAMPLES = 10_000
AT_A_TIME = 250  # resamples: their weights for all videos are in memory together
LEVEL = 0.05

Scores = Mapping[int, Mapping[str, float]]  # {seed: {video: its score in percent}}


@dataclass(frozen=True)
class Difference:
    """How much better one cell is than another, in percent."""

    mean: float
    low: float  # of the interval that holds 95 % of the resamples
    high: float
    p: float  # two-sided
    seeds: int  # of both cells
    videos: int

    @property
    def clear(self) -> bool:
        """Whether chance would hardly make it."""
        return self.p < LEVEL


def differences(cells: Mapping[str, Scores], seed: int = 0) -> dict[tuple[str, str], Difference]:
    """{(one, other): how much better one is} for all pairs of cells that share a seed, in the order of the cells.

    In each resample the videos are drawn anew with replacement, the same ones for all cells, and so are the seeds that
    two cells share, where there are several (Efron and Tibshirani, An Introduction to the Bootstrap, 1993, chapters 13
    and 16). Only videos that every run has a score of take part. p is twice the share of resamples on the rarer side
    of zero, itself counted as one more resample on both sides.
    """
    names, seeds = list(cells), sorted({seed for scores in cells.values() for seed in scores})
    runs = [scores for cell in cells.values() for scores in cell.values()]
    videos = sorted(set.intersection(*(set(scores) for scores in runs))) if runs else []
    if not videos or len(names) < 2:
        return {}
    scores = np.full((len(names), len(seeds), len(videos)), np.nan)
    for row, cell in enumerate(cells.values()):
        for number, found in cell.items():
            scores[row, seeds.index(number)] = [found[video] for video in videos]
    generator = np.random.default_rng(seed)
    drawn = resampled(scores, generator)  # (R, cells, seeds)
    chosen = generator.random((len(drawn), len(seeds)))
    found = {}
    for one in range(len(names)):
        for other in range(one + 1, len(names)):
            both = ~np.isnan(scores[one, :, 0] - scores[other, :, 0])  # (seeds,)
            if both.any():
                true = (scores[one, both] - scores[other, both]).mean()
                gaps = (drawn[:, one] - drawn[:, other])[:, both]  # (R, seeds of both)
                found[names[one], names[other]] = _difference(true, _over_seeds(gaps, chosen), both.sum(), len(videos))
    return found


def resampled(scores: np.ndarray, generator: np.random.Generator, resamples: int = RESAMPLES) -> np.ndarray:
    """(resamples, cells, seeds) means over videos that are drawn anew, of scores (cells, seeds, videos)."""
    count = scores.shape[2]
    rows = scores.reshape(-1, count).T  # (videos, cells * seeds)
    parts = []
    for first in range(0, resamples, AT_A_TIME):
        size = min(AT_A_TIME, resamples - first)
        weights = generator.multinomial(count, np.full(count, 1 / count), size=size) / count  # (size, videos)
        parts.append(weights @ rows)
    return np.concatenate(parts).reshape(resamples, *scores.shape[:2])


def _over_seeds(gaps: np.ndarray, chosen: np.ndarray) -> np.ndarray:
    """(R,) the mean of gaps (R, seeds) over seeds that are drawn anew, by numbers in [0, 1)."""
    count = gaps.shape[1]
    picks = (chosen[:, :count] * count).astype(np.int64)
    return np.take_along_axis(gaps, picks, axis=1).mean(axis=1)


def _difference(true: float, drawn: np.ndarray, seeds: int, videos: int) -> Difference:
    low, high = np.percentile(drawn, [2.5, 97.5])
    rarer = min((drawn <= 0).sum(), (drawn >= 0).sum())
    p = min(1.0, 2 * (rarer + 1) / (len(drawn) + 1))
    return Difference(float(true), float(low), float(high), float(p), int(seeds), videos)
