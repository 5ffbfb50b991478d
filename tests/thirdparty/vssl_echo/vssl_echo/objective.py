"""A linear layer that tells colours over time, and the usual colour that it need not tell."""

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import nn

from vssl_core import ANY, Objective, PluginConfig, Request, Terms, hookimpl


class Echo(Objective):
    """Regress each clip's mean colour at a few moments."""

    class Config(PluginConfig):
        """Options of Echo."""

        moments: int = Field(4, ge=1, le=64, description="evenly spread moments of the clip whose colour is told")
        momentum: float = Field(0.99, ge=0, le=1, description="share of itself that the usual colour keeps in a step")

    def __init__(self, config, context):
        super().__init__(config, context)
        self.head = nn.Linear(context.feature_dim, 3 * config.moments)
        self.register_buffer("usual", torch.zeros(3 * config.moments))

    def requests(self):
        """One clip or two, of whatever the neighbours need."""
        return {
            "clip": Request(clips=(1, 2), strides=ANY, placement=ANY, boxes=ANY, flips=ANY, turns=ANY, appearance=ANY)
        }

    def forward(self, batch):
        """`colour`: the squared error, averaged over moments, channels and clips."""
        views = batch["clip"]
        colours = torch.stack([self.colours(view.clip) for view in views], dim=1)  # (B, clips, 3 * moments)
        told = torch.stack([self.head(view.features.vector).float() for view in views], dim=1)
        loss = F.mse_loss(told, colours - self.usual)
        return Terms(losses={"colour": loss}, keep={"colours": colours.mean(dim=1)})

    def colours(self, clip):
        """(B, 3 * moments) of a clip (B, 3, T, H, W)."""
        return F.adaptive_avg_pool3d(clip, (self.config.moments, 1, 1)).flatten(1)

    @hookimpl
    def vssl_step_end(self, run, report):
        """Move the usual colour towards this step's, which all ranks know."""
        colours = report.kept[self.context.name]["colours"].mean(dim=0)
        self.usual.lerp_(colours, 1 - self.config.momentum)
