"""VICReg on clips of a video: agreement, variance and covariance of their features, over the batch of all ranks."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import combinations

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from vssl_core import ANY, Appearance, Batch, Context, Objective, PluginConfig, Request, Terms, gather, mlp

EPSILON = 1e-4  # under the root of the variance: the paper's


class VicReg(Objective):
    """A wide expander, and three terms on its outputs."""

    class Config(PluginConfig):
        """Options of VICReg."""

        invariance: float = Field(25.0, ge=0, le=1e6, description="weight of the distance between clips of a video")
        variance: float = Field(25.0, ge=0, le=1e6, description="weight of the hinge on each feature's deviation")
        covariance: float = Field(1.0, ge=0, le=1e6, description="weight of the covariances between features")
        hidden: int | None = Field(
            None, ge=1, description="width of the expander; null: 8192, or 4 x the features where that is less"
        )
        projection: int | None = Field(None, ge=1, description="size of its outputs; null: its width")
        layers: int = Field(3, ge=1, le=4, description="linear layers of the expander")
        clips: int = Field(2, ge=2, le=16, description="clips of each video, every pair of which is a positive")

    config: Config

    def __init__(self, config: Config, context: Context) -> None:
        super().__init__(config, context)
        hidden = config.hidden or min(8192, 4 * context.feature_dim)
        self.expander = mlp(context.feature_dim, *[hidden] * (config.layers - 1), config.projection or hidden)

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
        """`invariance`, `variance` and `covariance`, each with its weight; `deviation`: the mean over features."""
        expanded = [self.expander(view.features.vector).float() for view in batch["clips"]]
        rows = gather(torch.stack(expanded, dim=1))  # (N, clips, D)
        deviations = deviation(rows)  # (clips, D)
        weights = self.config
        return Terms(
            losses={
                "invariance": weights.invariance * distance(rows),
                "variance": weights.variance * F.relu(1 - deviations).mean(),
                "covariance": weights.covariance * 2 * covariance(rows).mean(),  # both clips of a pair are added
            },
            metrics={"deviation": deviations.detach().mean()},
        )


def distance(rows: Tensor) -> Tensor:
    """The mean squared difference of a video's clips (N, clips, D), over rows, features and pairs of clips."""
    pairs = combinations(range(rows.shape[1]), 2)
    return torch.stack([F.mse_loss(rows[:, left], rows[:, right]) for left, right in pairs]).mean()


def deviation(rows: Tensor) -> Tensor:
    """(clips, D) the standard deviation of each feature over N rows (N, clips, D)."""
    centred = rows - rows.mean(dim=0)
    return torch.sqrt(centred.square().sum(dim=0) / max(len(rows) - 1, 1) + EPSILON)


def covariance(rows: Tensor) -> Tensor:
    """(clips,) the squared covariances between different features, summed and divided by their number D."""
    centred = (rows - rows.mean(dim=0)).transpose(0, 1)  # (clips, N, D)
    with torch.autocast(rows.device.type, enabled=False):
        matrices = centred.transpose(1, 2) @ centred / max(len(rows) - 1, 1)  # (clips, D, D)
    beside = matrices - torch.diag_embed(matrices.diagonal(dim1=1, dim2=2))
    return beside.square().sum(dim=(1, 2)) / rows.shape[2]
