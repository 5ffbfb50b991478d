"""SimCLR on two clips of a video: the normalised temperature-scaled cross entropy over the clips of all ranks."""

from __future__ import annotations

from collections.abc import Mapping

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from vssl_core import ANY, Appearance, Batch, Context, Objective, PluginConfig, Request, Terms, gather, mlp, rank


class SimClr(Objective):
    """A projector, and the contrast of its unit outputs over all clips of the step."""

    class Config(PluginConfig):
        """Options of SimCLR."""

        temperature: float = Field(
            0.1, ge=1e-3, le=1e3, description="cosines are divided by it; small: near ones count most"
        )
        hidden: int | None = Field(
            None, ge=1, description="width of the projector; null: 4096, or 4 x the features where that is less"
        )
        projection: int = Field(128, ge=1, description="size of the projections that are compared")
        layers: int = Field(2, ge=1, description="linear layers of the projector")

    config: Config

    def __init__(self, config: Config, context: Context) -> None:
        super().__init__(config, context)
        hidden = config.hidden or min(4096, 4 * context.feature_dim)
        self.projector = mlp(context.feature_dim, *[hidden] * (config.layers - 1), config.projection)

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
        """`contrast`: the cross entropy of finding the partner; `accuracy`: how often it comes first, in [0, 1]."""
        left, right = batch["pair"]
        projected = [self.projector(view.features.vector).float() for view in (left, right)]
        projections = torch.stack(projected, dim=1)  # (B, 2, D)
        logits, partner = similarities(projections, self.config.temperature)
        accuracy = (logits.detach().argmax(dim=1) == partner).float().mean()
        return Terms(losses={"contrast": F.cross_entropy(logits, partner)}, metrics={"accuracy": accuracy})


def similarities(projections: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
    """The logits (2B, 2N) of this rank's clips against those of all N videos of the step, and each one's partner (2B,).

    `projections` is (B, 2, D). A clip is no candidate for itself; its partner stays among the candidates.
    """
    rows = F.normalize(projections, dim=2)  # (B, 2, D)
    candidates = gather(rows).flatten(0, 1)  # (2N, D): the clips of a video lie side by side
    anchors = rows.flatten(0, 1)  # (2B, D)
    myself = torch.arange(len(anchors), device=rows.device) + rank() * len(anchors)
    with torch.autocast(rows.device.type, enabled=False):  # eight bits of a bfloat16 cannot hold a cosine over 0.1
        logits = anchors @ candidates.T / temperature
    return logits.scatter(1, myself[:, None], float("-inf")), myself ^ 1
