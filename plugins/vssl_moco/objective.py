"""MoCo on clips of a video: queries against keys of a slow encoder, and a queue of earlier keys."""

from __future__ import annotations

from collections.abc import Mapping
from math import cos, pi
from typing import TYPE_CHECKING, Literal

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from vssl_core import (
    ANY,
    Appearance,
    Batch,
    Context,
    Ema,
    Objective,
    PluginConfig,
    Queue,
    Request,
    Terms,
    gather,
    hookimpl,
    mlp,
    queue_size,
    rank,
    shuffled,
)

if TYPE_CHECKING:
    from vssl_core import Report, Run

PUBLISHED_QUEUE = 65536


class MoCo(Objective):
    """Query projector, the slow encoder of keys, and the queue of keys that are no longer in the batch."""

    class Config(PluginConfig):
        """Options of MoCo; the defaults are those of its second version."""

        queue: int | None = Field(
            None,
            ge=0,
            description="earlier keys as negatives; null: 65536, or the multiple of the batch that the training list "
            "holds; 0: the other keys of the step instead (v3)",
        )
        momentum: float = Field(0.999, ge=0, le=1, description="share of itself that the key encoder keeps at a step")
        schedule: Literal["constant", "cosine"] = Field(
            "constant", description="constant: the momentum stays; cosine: it rises to 1 over the run"
        )
        temperature: float = Field(0.2, ge=1e-3, le=1e3, description="cosines are divided by it")
        clips: int = Field(2, ge=2, le=16, description="clips of each video, every pair of which is a positive")
        symmetric: bool | None = Field(
            None, description="every clip is a query, not only the first; null: where there are more than two clips"
        )
        layers: int = Field(2, ge=1, le=4, description="linear layers of the projector: 1 in v1, 2 in v2, 3 in v3")
        hidden: int | None = Field(None, ge=1, description="width of projector and predictor; null: the features'")
        projection: int = Field(128, ge=1, description="size of queries and keys")
        norm: bool = Field(False, description="batch norm in the projector, and after it (v3)")
        predictor: bool = Field(False, description="two more layers behind the queries' projector (v3)")

    config: Config

    def __init__(self, config: Config, context: Context) -> None:
        super().__init__(config, context)
        hidden, projection = config.hidden or context.feature_dim, config.projection
        norms = {"norm": config.norm, "last_norm": config.norm}
        self.projector = mlp(context.feature_dim, *[hidden] * (config.layers - 1), projection, **norms)
        self.predictor = mlp(projection, hidden, projection, **norms) if config.predictor else nn.Identity()
        self.teacher = Ema(backbone=context.backbone, projector=self.projector)
        rows = queue_size(config.queue, PUBLISHED_QUEUE, context)
        self.queue = Queue(rows, projection) if rows else None
        symmetric = config.clips > 2 if config.symmetric is None else config.symmetric
        queries = range(config.clips) if symmetric else (0,)
        self.pairs = [(query, key) for query in queries for key in range(config.clips) if query != key]

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
        """`contrast`: the cross entropy of finding the key; `accuracy`: how often it comes first, in [0, 1]."""
        views = batch["clips"]
        keys = {key: self._key(batch, views[key].clip) for key in dict.fromkeys(key for _, key in self.pairs)}
        queries = {
            query: self._query(views[query].features.vector)
            for query in dict.fromkeys(query for query, _ in self.pairs)
        }
        losses, first = [], []
        for query, key in self.pairs:
            logits, places = self._candidates(queries[query], keys[key])
            losses.append(F.cross_entropy(logits, places))
            first.append((logits.detach().argmax(dim=1) == places).float().mean())
        return Terms(
            losses={"contrast": torch.stack(losses).mean()},
            metrics={"accuracy": torch.stack(first).mean()},
            keep={} if self.queue is None else {"keys": keys[1]},  # one for each video, however many clips
        )

    def _query(self, vector: Tensor) -> Tensor:
        return F.normalize(self.predictor(self.projector(vector)).float(), dim=1)  # (B, D)

    def _key(self, batch: Batch, clip: Tensor) -> Tensor:
        """(B, D) unit keys of one clip of each video, with the statistics of a batch of strangers."""
        return F.normalize(shuffled(self._encode_slowly, clip, batch, self.teacher).float(), dim=1)

    def _encode_slowly(self, clip: Tensor) -> Tensor:
        *_, last = self.teacher.backbone(clip).values()  # (B, C, T, H, W)
        return self.teacher.projector(last.float().mean(dim=(2, 3, 4)))

    def _candidates(self, queries: Tensor, keys: Tensor) -> tuple[Tensor, Tensor]:
        """Logits (B, candidates), and the place (B,) of each query's own key among them."""
        if self.queue is None:
            return against_step(queries, keys, self.config.temperature)
        return against_queue(queries, keys, self.queue.rows, self.config.temperature)

    @hookimpl
    def vssl_step_end(self, run: Run, report: Report) -> None:
        """Move the key encoder, and let the keys of all ranks into the queue."""
        self.teacher.follow(self.momentum(run.progress), backbone=run.backbone, projector=self.projector)
        if self.queue is not None:
            self.queue.push(report.kept[self.context.name]["keys"])

    def momentum(self, progress: float) -> float:
        """The share of itself that the key encoder keeps at this point of the run."""
        if self.config.schedule == "constant":
            return self.config.momentum
        return 1 - (1 - self.config.momentum) * (cos(pi * progress) + 1) / 2


def against_queue(queries: Tensor, keys: Tensor, queue: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
    """Logits (B, 1 + K) of queries (B, D) with their keys first, then with the queue (K, D); and the places, all 0."""
    with torch.autocast(queries.device.type, enabled=False):  # a bfloat16 cannot hold a cosine over 0.1
        scaled = queries / temperature
        logits = torch.cat([(scaled * keys).sum(dim=1, keepdim=True), scaled @ queue.T], dim=1)
    return logits, torch.zeros(len(queries), dtype=torch.long, device=queries.device)


def against_step(queries: Tensor, keys: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
    """Logits (B, N) of this rank's queries with the keys of all N videos of the step; and each one's place."""
    with torch.autocast(queries.device.type, enabled=False):
        logits = (queries / temperature) @ gather(keys).T
    return logits, torch.arange(len(queries), device=queries.device) + rank() * len(queries)
