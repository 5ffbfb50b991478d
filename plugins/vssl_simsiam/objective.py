"""SimSiam on clips of a video: predictions against projections that get no gradient, every way."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from math import sqrt
from typing import Literal

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from vssl_core import (
    ANY,
    Appearance,
    Batch,
    Context,
    Objective,
    ParameterGroup,
    PluginConfig,
    Request,
    Terms,
    gather,
    mlp,
)


class SimSiam(Objective):
    """Projector and predictor."""

    class Config(PluginConfig):
        """Options of SimSiam."""

        hidden: int | None = Field(
            None, ge=1, description="width of the projector; null: 2048, or 4 x the features where that is less"
        )
        projection: int | None = Field(None, ge=1, description="size of the projections; null: the projector's width")
        bottleneck: int | None = Field(
            None, ge=1, description="width of the predictor; null: a quarter of the projections"
        )
        layers: int = Field(3, ge=1, le=4, description="linear layers of the projector; the predictor has two")
        predictor_schedule: Literal["run", "constant"] = Field(
            "constant", description="constant: the predictor's learning rate does not decay; run: it does"
        )
        clips: int = Field(2, ge=2, le=16, description="clips of each video, every pair of which is a positive")

    config: Config

    def __init__(self, config: Config, context: Context) -> None:
        super().__init__(config, context)
        hidden = config.hidden or min(2048, 4 * context.feature_dim)
        projection = config.projection or hidden
        self.projector = mlp(context.feature_dim, *[hidden] * (config.layers - 1), projection, last_norm=True)
        self.predictor = mlp(projection, config.bottleneck or max(projection // 4, 1), projection)

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
        """`distance`: minus the mean cosine of prediction and projection, in [-1, 1]."""
        projections = [self.projector(view.features.vector) for view in batch["clips"]]
        predictions = torch.stack([self.predictor(rows).float() for rows in projections], dim=1)  # (B, clips, D)
        targets = torch.stack([rows.detach().float() for rows in projections], dim=1)
        return Terms(
            losses={"distance": -agreement(predictions, targets)},
            metrics={"spread": spread(targets[:, 0])},
        )

    def parameter_groups(self) -> Iterable[ParameterGroup]:
        """The predictor, whose learning rate need not decay (section 4.2 of the paper)."""
        if self.config.predictor_schedule == "constant":
            yield ParameterGroup(list(self.predictor.parameters()), schedule="constant")


def agreement(predictions: Tensor, targets: Tensor) -> Tensor:
    """The mean cosine of each clip's prediction with the targets of the video's other clips, both (B, clips, D)."""
    with torch.autocast(predictions.device.type, enabled=False):
        cosines = F.normalize(predictions, dim=2) @ F.normalize(targets, dim=2).transpose(1, 2)  # (B, clips, clips)
    others = ~torch.eye(cosines.shape[1], dtype=torch.bool, device=cosines.device)
    return cosines[:, others].mean()


@torch.no_grad()
def spread(rows: Tensor) -> Tensor:
    """How far the directions of all ranks' rows (B, D) spread: 1 over the whole sphere, 0 when collapsed to a point."""
    return F.normalize(gather(rows), dim=1).std(dim=0, correction=0).mean() * sqrt(rows.shape[1])
