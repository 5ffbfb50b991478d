"""BYOL on clips of a video: online predictions against teacher projections of the other clips, every way."""

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
        clips: int = Field(2, ge=2, le=16, description="clips of each video, every pair of which is a positive")

    config: Config

    def __init__(self, config: Config, context: Context) -> None:
        super().__init__(config, context)
        features, projection = context.feature_dim, config.projection
        hidden = config.hidden or min(4096, 4 * features)
        self.projector = mlp(features, *[hidden] * (config.layers - 1), projection)
        self.predictor = mlp(projection, hidden, projection)
        self.teacher = Ema(backbone=context.backbone, projector=self.projector)

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
        """`distance`: the squared distance of unit prediction and unit target, both ways, in [0, 8]."""
        views = batch["clips"]
        targets = torch.stack([self._project_slowly(view.clip) for view in views], dim=1)  # (B, n, projection)
        predictions = torch.stack([self._predict(view.features.vector) for view in views], dim=1)
        agreement = cosines(predictions, targets)
        return Terms(
            losses={"distance": distance(agreement)},
            metrics={"cosine": agreement.detach().mean(), "spread": spread(targets[:, 0])},
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


def cosines(predictions: Tensor, targets: Tensor) -> Tensor:
    """(B, n (n - 1)) of each clip's prediction with the targets of the video's other clips, both (B, n, D)."""
    with torch.autocast(predictions.device.type, enabled=False):
        found = F.normalize(predictions, dim=2) @ F.normalize(targets, dim=2).transpose(1, 2)  # (B, n, n)
    return found[:, ~torch.eye(found.shape[1], dtype=torch.bool, device=found.device)]


def distance(agreement: Tensor) -> Tensor:
    """The loss of the cosines (B, n (n - 1)) of all ordered pairs: 2 - 2 cos, twice its mean (Eq. 2, which adds the
    two directions of two clips)."""
    return 2 * (2 - 2 * agreement).mean()


@torch.no_grad()
def spread(rows: Tensor) -> Tensor:
    """How far the directions of all ranks' rows (B, D) spread: 1 over the whole sphere, 0 when collapsed to a point."""
    return F.normalize(gather(rows), dim=1).std(dim=0, correction=0).mean() * sqrt(rows.shape[1])
