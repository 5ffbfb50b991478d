"""SimCLR on clips of a video: the normalised temperature-scaled cross entropy over the clips of all ranks."""

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
        clips: int = Field(2, ge=2, le=16, description="clips of each video, every pair of which is a positive")

    config: Config

    def __init__(self, config: Config, context: Context) -> None:
        super().__init__(config, context)
        hidden = config.hidden or min(4096, 4 * context.feature_dim)
        self.projector = mlp(context.feature_dim, *[hidden] * (config.layers - 1), config.projection)

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
        """`contrast`: the cross entropy of finding each partner; `accuracy`: how often it comes first, in [0, 1]."""
        projected = [self.projector(view.features.vector).float() for view in batch["clips"]]
        partners, strangers = similarities(torch.stack(projected, dim=1), self.config.temperature)
        nearest = strangers.detach().amax(dim=2, keepdim=True)  # (B, n, 1)
        return Terms(
            losses={"contrast": contrast(partners, strangers)},
            metrics={"accuracy": (partners.detach() > nearest).float().mean()},
        )


def similarities(projections: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
    """The logits of this rank's clips (B, n, D): with their partners (B, n, n - 1), and with all N videos' (B, n, n N).

    A clip's partners are the n - 1 other clips of its video; in the second part its own video is -inf: only strangers
    count there.
    """
    rows = F.normalize(projections, dim=2)  # (B, n, D)
    videos, clips, _ = rows.shape
    candidates = gather(rows).flatten(0, 1)  # (n N, D): the clips of a video lie side by side
    with torch.autocast(rows.device.type, enabled=False):  # eight bits of a bfloat16 cannot hold a cosine over 0.1
        family = rows @ rows.transpose(1, 2) / temperature  # (B, n, n)
        logits = rows @ candidates.T / temperature  # (B, n, n N)
    itself = torch.eye(clips, dtype=torch.bool, device=rows.device)
    whose = torch.arange(logits.shape[2], device=rows.device) // clips  # (n N,) the video of each candidate
    own = whose == torch.arange(videos, device=rows.device)[:, None] + rank() * videos  # (B, n N)
    partners = family[:, ~itself].unflatten(1, (clips, clips - 1))
    return partners, logits.masked_fill(own[:, None], float("-inf"))


def contrast(partners: Tensor, strangers: Tensor) -> Tensor:
    """The mean, over ordered pairs of a video's clips, of -log(e^p / (e^p + the sum of e^s over all strangers))."""
    return F.softplus(strangers.logsumexp(dim=2, keepdim=True) - partners).mean()
