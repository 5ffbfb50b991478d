"""Barlow Twins on clips of a video: the cross-correlation of their features, over the batch of all ranks."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import combinations

import torch
from pydantic import Field
from torch import Tensor

from vssl_core import ANY, Appearance, Batch, Context, Objective, PluginConfig, Request, Terms, gather, mlp

EPSILON = 1e-5  # batch norm's, as in the paper's code


class BarlowTwins(Objective):
    """A wide projector, and the correlation of its outputs."""

    class Config(PluginConfig):
        """Options of Barlow Twins."""

        redundancy: float = Field(0.0051, ge=0, le=1e3, description="weight of the correlations between features")
        scale: float | None = Field(
            None,
            gt=0,
            le=1e6,
            description="both terms are multiplied by it; null: 1 over the number of features; the paper, with LARS: 1",
        )
        hidden: int | None = Field(
            None, ge=1, description="width of the projector; null: 8192, or 4 x the features where that is less"
        )
        projection: int | None = Field(
            None, ge=1, description="features that are correlated; null: the projector's width"
        )
        layers: int = Field(3, ge=1, le=4, description="linear layers of the projector")
        clips: int = Field(2, ge=2, le=16, description="clips of each video, every pair of which is a positive")

    config: Config

    def __init__(self, config: Config, context: Context) -> None:
        super().__init__(config, context)
        hidden = config.hidden or min(8192, 4 * context.feature_dim)
        projection = config.projection or hidden
        self.projector = mlp(context.feature_dim, *[hidden] * (config.layers - 1), projection)
        self.scale = config.scale or 1 / projection

    def requests(self) -> Mapping[str, Request]:
        """Clips of whatever geometry the neighbours need; their colours must differ."""
        return {
            "clips": Request(
                clips=self.config.clips,
                strides=ANY,
                placement=ANY,
                boxes=ANY,
                flips=ANY,
                turns=ANY,
                appearance=Appearance(colour="jittered"),
            )
        }

    def forward(self, batch: Batch) -> Terms:
        """`invariance` and `redundancy`: how far the diagonal is from 1, and all else from 0; both scaled."""
        projected = [self.projector(view.features.vector).float() for view in batch["clips"]]
        rows = standardised(gather(torch.stack(projected, dim=1)))  # (N, clips, D)
        found = [on_and_off(correlation(rows[:, left], rows[:, right])) for left, right in self._pairs()]
        invariance, redundancy = (torch.stack(parts).mean() for parts in zip(*found, strict=True))
        return Terms(
            losses={
                "invariance": self.scale * invariance,
                "redundancy": self.scale * self.config.redundancy * redundancy,
            }
        )

    def _pairs(self) -> list[tuple[int, int]]:
        return list(combinations(range(self.config.clips), 2))


def standardised(rows: Tensor) -> Tensor:
    """Rows (N, ...) with mean 0 and variance 1 over N, in every feature."""
    centred = rows - rows.mean(dim=0)
    return centred * torch.rsqrt(centred.square().mean(dim=0) + EPSILON)


def correlation(left: Tensor, right: Tensor) -> Tensor:
    """(D, D) the cross-correlation of standardised rows (N, D)."""
    with torch.autocast(left.device.type, enabled=False):
        return left.T @ right / len(left)


def on_and_off(matrix: Tensor) -> tuple[Tensor, Tensor]:
    """The squared distances from the identity, summed over the diagonal, and over all that lies beside it."""
    diagonal = matrix.diagonal()
    beside = matrix - torch.diag(diagonal)
    return (1 - diagonal).square().sum(), beside.square().sum()
