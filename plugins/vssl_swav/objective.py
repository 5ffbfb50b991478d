"""SwAV on clips of a video: even assignments to prototypes, predicted from the video's other clips."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from vssl_core import (
    ANY,
    Appearance,
    Batch,
    ConfigError,
    Context,
    Objective,
    PluginConfig,
    Queue,
    Request,
    Terms,
    hookimpl,
    mlp,
    queue_size,
    sinkhorn,
)

if TYPE_CHECKING:
    from vssl_core import Report, Run

PUBLISHED_QUEUE = 3840
PUBLISHED_PROTOTYPES = 3000
VIDEOS_PER_PROTOTYPE = 10  # at least, where the number of prototypes is null


class SwAV(Objective):
    """Projector, unit prototypes, and a queue of earlier projections that takes part in their even use."""

    class Config(PluginConfig):
        """Options of SwAV."""

        prototypes: int | None = Field(
            None, ge=2, description="null: 3000, or a tenth of the videos, or the rows that are assigned, if less"
        )
        temperature: float = Field(0.1, ge=1e-3, le=1e3, description="of the prediction: cosines are divided by it")
        epsilon: float = Field(0.05, ge=0.01, le=10, description="of the assignment: small makes it hard")
        iterations: int = Field(3, ge=1, le=100, description="of Sinkhorn-Knopp")
        queue: int | None = Field(
            None,
            ge=0,
            description="videos whose earlier projections are assigned along; null: 3840, or the multiple of the batch "
            "that the training list holds; 0: none",
        )
        queue_epoch: int | None = Field(
            None, ge=0, description="the queue takes part from this epoch on; null: 15, or a tenth of the run if less"
        )
        frozen_epochs: int = Field(1, ge=0, description="epochs, from the first, in which prototypes are not trained")
        hidden: int | None = Field(
            None, ge=1, description="width of the projector; null: 2048, or 4 x the features where that is less"
        )
        projection: int = Field(128, ge=1, description="size of projections and prototypes")
        layers: int = Field(2, ge=1, le=4, description="linear layers of the projector")
        clips: int = Field(2, ge=2, le=16, description="clips of each video, every pair of which is a positive")

    config: Config

    def __init__(self, config: Config, context: Context) -> None:
        super().__init__(config, context)
        hidden = config.hidden or min(2048, 4 * context.feature_dim)
        self.projector = mlp(context.feature_dim, *[hidden] * (config.layers - 1), config.projection)
        videos = _queued_videos(config, context)
        self.queue = Queue(videos, config.clips * config.projection) if videos else None  # a video's clips in one row
        self.queue_epoch = min(15, context.epochs // 10) if config.queue_epoch is None else config.queue_epoch
        self.prototypes = nn.Linear(config.projection, _prototypes(config, context, videos), bias=False)
        self._make_unit()

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
        """`swap`: the cross entropy of predicting the other clips' assignments; `agreement`: how often they are met."""
        projected = [self.projector(view.features.vector).float() for view in batch["clips"]]
        rows = F.normalize(torch.stack(projected, dim=1), dim=2)  # (B, clips, D)
        with torch.autocast(rows.device.type, enabled=False):
            scores = rows @ self.prototypes.weight.T  # (B, clips, K)
        wanted = self._assigned(scores.detach(), batch.epoch)
        given, guessed = wanted.argmax(dim=2), scores.detach().argmax(dim=2)  # (B, clips)
        return Terms(
            losses={"swap": swapped(scores / self.config.temperature, wanted)},
            metrics={"agreement": (guessed[:, 0] == given[:, 1]).float().mean()},
            keep={} if self.queue is None else {"rows": rows.detach().flatten(1)},
        )

    @torch.no_grad()
    def _assigned(self, scores: Tensor, epoch: int) -> Tensor:
        """(B, clips, K) where each clip belongs; first clips are spread evenly among first clips, and so on."""
        earlier: list[Tensor | None] = [None] * self.config.clips
        if self.queue is not None and epoch >= self.queue_epoch:
            rows = self.queue.rows_in_order().unflatten(1, (self.config.clips, -1))  # (M, clips, D)
            with torch.autocast(scores.device.type, enabled=False):
                earlier = list((rows @ self.prototypes.weight.T).unbind(1))
        given = self.config.epsilon, self.config.iterations
        found = [sinkhorn(own, *given, others) for own, others in zip(scores.unbind(1), earlier, strict=True)]
        return torch.stack(found, dim=1)

    @hookimpl
    def vssl_backward_end(self, run: Run) -> None:
        """Prototypes rest while projections settle (as in the paper's code)."""
        if run.epoch < self.config.frozen_epochs:
            self.prototypes.weight.grad = None

    @hookimpl
    def vssl_step_end(self, run: Run, report: Report) -> None:
        """Back to unit length; and the projections of all ranks go into the queue."""
        self._make_unit()
        if self.queue is not None:
            self.queue.push(report.kept[self.context.name]["rows"])

    @torch.no_grad()
    def _make_unit(self) -> None:
        self.prototypes.weight.copy_(F.normalize(self.prototypes.weight, dim=1))


def swapped(logits: Tensor, wanted: Tensor) -> Tensor:
    """The mean cross entropy of each clip's logits with the video's other clips' assignments, both (B, clips, K)."""
    with torch.autocast(logits.device.type, enabled=False):
        entropies = -wanted @ F.log_softmax(logits, dim=2).transpose(1, 2)  # (B, clips, clips)
    others = ~torch.eye(entropies.shape[1], dtype=torch.bool, device=entropies.device)
    return entropies[:, others].mean()


def _queued_videos(config: SwAV.Config, context: Context) -> int:
    if config.queue is None and context.batch_size >= PUBLISHED_QUEUE:
        return 0  # such batches need no company
    return queue_size(config.queue, PUBLISHED_QUEUE, context)


def _prototypes(config: SwAV.Config, context: Context, queued: int) -> int:
    assigned = context.batch_size + queued
    if config.prototypes is None:
        return max(min(PUBLISHED_PROTOTYPES, context.videos // VIDEOS_PER_PROTOTYPE, assigned), 2)
    if config.prototypes > assigned:
        raise ConfigError(
            f"plugins.{context.name}.prototypes: {config.prototypes} prototypes cannot be used evenly by {assigned} "
            f"rows (batch_size {context.batch_size} and a queue of {queued}); choose at most {assigned}, or enlarge "
            "one of the two"
        )
    return config.prototypes
