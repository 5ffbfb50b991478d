"""BYOL on two clips of a video: online prediction against teacher projection, both ways."""

from __future__ import annotations

from collections.abc import Mapping
from math import cos, pi, sqrt
from typing import TYPE_CHECKING, Literal

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from vssl_core import (
    ANY,
    Appearance,
    Batch,
    Context,
    Ema,
    Objective,
    PluginConfig,
    Request,
    Terms,
    gather,
    hookimpl,
    mlp,
)

if TYPE_CHECKING:
    from vssl_core import Run


class Byol(Objective):
    """Online backbone, projector and predictor, and the slow teacher whose projections they predict."""

    class Config(PluginConfig):
        """Options of BYOL."""

        momentum: float = Field(0.996, ge=0, le=1, description="share of itself that the teacher keeps at each step")
        schedule: Literal["constant", "cosine"] = Field(
            "cosine", description="cosine: the momentum rises to 1 over the run; constant: it stays"
        )
        hidden: int | None = Field(
            None, ge=1, description="width of projector and predictor; null: 4096, or 4 x the features if less"
        )
        projection: int = Field(256, ge=1, description="size of the projections that are compared")
        layers: int = Field(2, ge=1, description="linear layers of the projector; the predictor has two")

    config: Config

    def __init__(self, config: Config, context: Context) -> None:
        super().__init__(config, context)
        features, projection = context.feature_dim, config.projection
        hidden = config.hidden or min(4096, 4 * features)
        self.projector = mlp(features, *[hidden] * (config.layers - 1), projection)
        self.predictor = mlp(projection, hidden, projection)
        self.teacher = Ema(backbone=context.backbone, projector=self.projector)

    def requests(self) -> Mapping[str, Request]:
        """Two clips of whatever geometry the neighbours need; their colours must differ."""
        return {
            "pair": Request(
                clips=2,
                strides=ANY,
                placement=ANY,
                boxes=ANY,
                flips=ANY,
                turns=ANY,
                appearance=Appearance(colour="jittered"),
            )
        }

    def forward(self, batch: Batch) -> Terms:
        """`distance`: the squared distance of unit prediction and unit target, both ways, in [0, 8]."""
        left, right = batch["pair"]
        targets = self._project_slowly(left.clip), self._project_slowly(right.clip)  # (B, projection) each
        agreement = torch.stack(
            [
                F.cosine_similarity(self._predict(left.features.vector), targets[1]),
                F.cosine_similarity(self._predict(right.features.vector), targets[0]),
            ]
        )  # (2, B)
        return Terms(
            losses={"distance": distance(agreement)},
            metrics={"cosine": agreement.detach().mean(), "spread": spread(targets[0])},
        )

    def _predict(self, vector: Tensor) -> Tensor:
        return self.predictor(self.projector(vector)).float()

    @torch.no_grad()
    def _project_slowly(self, clip: Tensor) -> Tensor:
        """(B, projection) what the teacher makes of a clip, with the statistics of this batch."""
        *_, last = self.teacher.backbone(clip).values()  # (B, D, T, H, W)
        return self.teacher.projector(last.float().mean(dim=(2, 3, 4))).float()

    @hookimpl
    def vssl_step_end(self, run: Run) -> None:
        """Move the teacher once after each optimizer step."""
        self.teacher.follow(self.momentum(run.progress), backbone=run.backbone, projector=self.projector)

    def momentum(self, progress: float) -> float:
        """The share of itself that the teacher keeps at this point of the run (section 3.2 of the paper)."""
        if self.config.schedule == "constant":
            return self.config.momentum
        return 1 - (1 - self.config.momentum) * (cos(pi * progress) + 1) / 2


def distance(agreement: Tensor) -> Tensor:
    """The loss of cosines (2, B) of both directions: 2 - 2 cos each, added, averaged over the batch (Eq. 2)."""
    return (2 - 2 * agreement).sum(dim=0).mean()


@torch.no_grad()
def spread(rows: Tensor) -> Tensor:
    """How far the directions of all ranks' rows (B, D) spread: 1 over the whole sphere, 0 when collapsed to a point."""
    return F.normalize(gather(rows), dim=1).std(dim=0, correction=0).mean() * sqrt(rows.shape[1])
