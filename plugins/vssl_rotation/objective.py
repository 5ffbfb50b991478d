"""Quarter turns of a clip: the label is the window's own number of turns."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Literal

import torch
import torch.nn.functional as F
from pydantic import Field

from vssl_core import ANY, Batch, Context, Objective, PluginConfig, Request, Terms, Turns, head

if TYPE_CHECKING:
    from vssl_core import Shot

QUARTER_TURNS = (0, 1, 2, 3)


class Rotation(Objective):
    """A classifier of four quarter turns on the features of each clip."""

    class Config(PluginConfig):
        """The head, and which clips of a pair count."""

        layers: int = Field(2, ge=1, le=3, description="linear layers of the head")
        views: Literal["mean", "sum", "first"] = Field(
            "mean", description="a pair: the mean of both losses, their sum (CSTP's code), or the first (its text)"
        )

    def __init__(self, config: Config, context: Context) -> None:
        super().__init__(config, context)
        self.head = head(context.feature_dim, len(QUARTER_TURNS), config.layers)

    def requests(self) -> Mapping[str, Request]:
        """Turned clips, one or two; of all else, whatever the neighbours need."""
        return {
            "clip": Request(
                clips=1 if self.config.views == "first" else (1, 2),
                turns=Turns(QUARTER_TURNS),
                strides=ANY,
                placement=ANY,
                boxes=ANY,
                flips=ANY,
                appearance=ANY,
            )
        }

    def forward(self, batch: Batch) -> Terms:
        """Cross-entropy of the turns, and how often they were told right."""
        views = batch["clip"]
        labels = torch.cat([view.windows.turns for view in views])  # (V*B,)
        logits = self.head(torch.cat([view.features.vector for view in views])).float()  # (V*B, 4)
        loss = F.cross_entropy(logits, labels) * (len(views) if self.config.views == "sum" else 1)
        return Terms({"turns": loss}, {"accuracy": (logits.argmax(dim=1) == labels).float().mean()})

    def pictures(self, batch: Batch, shots: Mapping[str, tuple[Shot, ...]]) -> Mapping[str, Any]:
        """The clip's box as filmed, and the clip as it was turned."""
        from vssl_rotation.pictures import draw

        return {"turns": draw(shots["clip"], [int(view.windows.turns[0]) for view in batch["clip"]])}
