"""Prototypes of the high level: which videos belong together, all prototypes being used evenly."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vssl_core import Context, Queue, mlp, queue_size, sinkhorn, world_size
from vssl_multilevel.options import Options

PUBLISHED = 1000
PUBLISHED_QUEUE = 1024
PUBLISHED_QUEUE_EPOCH = 10
VIDEOS_EACH = 10  # at least, where the number of prototypes is null


class Prototypes(nn.Module):
    """A projector, unit prototypes, and a queue of the scores that earlier videos had."""

    def __init__(self, channels: int, options: Options, context: Context) -> None:
        super().__init__()
        self.options = options
        count = options.prototypes or max(min(PUBLISHED, context.videos // VIDEOS_EACH), 2)
        self.projector = mlp(channels, channels, options.projection)
        self.centres = nn.Linear(options.projection, count, bias=False)
        self.make_unit()
        rows = queue_size(options.queue, PUBLISHED_QUEUE, context)
        self.queue = Queue(rows, 2 * count) if rows else None  # both clips of a video in one row
        early = min(PUBLISHED_QUEUE_EPOCH, context.epochs // 10)
        self.queue_epoch = early if options.queue_epoch is None else options.queue_epoch

    def forward(self, vectors: Tensor) -> Tensor:
        """Cosines (B, K) of feature vectors (B, C) with the prototypes, in float32."""
        rows = F.normalize(self.projector(vectors).float(), dim=1)
        with torch.autocast(rows.device.type, enabled=False):
            return rows @ self.centres.weight.T

    @torch.no_grad()
    def assign(self, scores: Tensor, epoch: int) -> Tensor:
        """(B, 2, K) where both clips belong; first clips are spread evenly among first clips, second among second.

        From `queue_epoch` on, the latest of the earlier videos are assigned along, as they were scored then: as many
        as make the length of the queue together with the step's own.
        """
        earlier: tuple[Tensor | None, ...] = (None, None)
        if self.queue is not None and epoch >= self.queue_epoch:
            room = len(self.queue) - len(scores) * world_size()
            rows = self.queue.rows_in_order()
            earlier = rows[max(len(rows) - max(room, 0), 0) :].unflatten(1, (2, -1)).unbind(1)
        given = self.options.epsilon, self.options.iterations
        found = [sinkhorn(own, *given, others) for own, others in zip(scores.unbind(1), earlier, strict=True)]
        return torch.stack(found, dim=1)

    @torch.no_grad()
    def make_unit(self) -> None:
        """Bring every prototype to length one."""
        self.centres.weight.copy_(F.normalize(self.centres.weight, dim=1))
