"""Prototypical Contrastive Learning: momentum contrast on clips of a video, and contrast with prototypes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from vssl_core import (
    ANY,
    Appearance,
    Batch,
    Boxes,
    Centre,
    ConfigError,
    Context,
    DataError,
    Ema,
    Flips,
    Objective,
    PluginConfig,
    Queue,
    Request,
    Terms,
    Turns,
    concentration,
    hookimpl,
    kmeans,
    mean,
    mlp,
    queue_size,
    shuffled,
)

if TYPE_CHECKING:
    from vssl_core import Report, Run

PUBLISHED_QUEUE = 16384
PUBLISHED_CLUSTERS = (25_000, 50_000, 100_000)
PUBLISHED_IMAGES = 1_281_167  # of ImageNet, which the published numbers of clusters are for
PUBLISHED_WARMUP = 20

# How a video looks when it is clustered: its middle, as filmed.
STILL = Request(
    placement=Centre(),
    boxes=Boxes(Centre()),
    flips=Flips(0.0),
    turns=Turns((0,)),
    appearance=Appearance(colour="kept", per="clip"),
)


class Pcl(Objective):
    """Query projector, slow encoder, queue of keys; and of each clustering who belongs where, prototypes and spread."""

    class Config(PluginConfig):
        """Options of Prototypical Contrastive Learning."""

        clusters: tuple[int, ...] | None = Field(
            None,
            min_length=1,
            max_length=16,
            description="number of clusters of each clustering; null: three, with the published shares of the videos",
        )
        every: int = Field(1, ge=1, description="epochs from one clustering to the next")
        warmup_epochs: int | None = Field(
            None, ge=0, description="epochs before the first clustering; null: 20, or a tenth of the run if less"
        )
        queue: int | None = Field(
            None,
            ge=1,
            description="earlier keys as negatives; null: 16384, or the multiple of the batch that the training list "
            "holds",
        )
        momentum: float = Field(0.999, ge=0, le=1, description="share of itself that the key encoder keeps at a step")
        temperature: float = Field(
            0.2, ge=1e-3, le=1e3, description="cosines with keys are divided by it; the mean concentration of clusters"
        )
        clips: int = Field(2, ge=2, le=16, description="clips of each video, every pair of which is a positive")
        symmetric: bool | None = Field(
            None, description="every clip is a query, not only the first; null: where there are more than two clips"
        )
        layers: int = Field(2, ge=1, le=4, description="linear layers of the projector")
        hidden: int | None = Field(None, ge=1, description="width of the projector; null: the features'")
        projection: int = Field(128, ge=1, description="size of queries, keys and prototypes")
        smoothing: float = Field(10.0, ge=1, le=1e6, description="alpha: keeps small clusters from looking tight")
        iterations: int = Field(20, ge=1, le=1000, description="of k-means")
        restarts: int = Field(5, ge=1, le=100, description="of k-means, of which the best is taken")

    config: Config

    def __init__(self, config: Config, context: Context) -> None:
        super().__init__(config, context)
        hidden, projection = config.hidden or context.feature_dim, config.projection
        self.projector = mlp(context.feature_dim, *[hidden] * (config.layers - 1), projection, norm=False)
        self.teacher = Ema(backbone=context.backbone, projector=self.projector)
        self.queue = Queue(queue_size(config.queue, PUBLISHED_QUEUE, context), projection)
        symmetric = config.clips > 2 if config.symmetric is None else config.symmetric
        queries = range(config.clips) if symmetric else (0,)
        self.pairs = [(query, key) for query in queries for key in range(config.clips) if query != key]
        self.clusters = numbers_of_clusters(config.clusters, context)
        self.warmup = first_clustering(config.warmup_epochs, context.epochs)
        self.register_buffer("assignments", torch.full((len(self.clusters), context.videos), -1))  # -1: to none
        self.register_buffer("prototypes", torch.zeros(sum(self.clusters), projection))  # all clusterings, one below
        self.register_buffer("concentrations", torch.ones(sum(self.clusters)))  # the other

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
        """`instance`: the cross entropy of finding the keys; `prototype`: of finding the video's own clusters."""
        views = batch["clips"]
        keys = {key: self._key(batch, views[key].clip) for key in dict.fromkeys(key for _, key in self.pairs)}
        queries = {
            query: self._query(views[query].features.vector)
            for query in dict.fromkeys(query for query, _ in self.pairs)
        }
        found = [self._find_key(queries[query], keys[key]) for query, key in self.pairs]
        losses, metrics = {}, {}
        losses["instance"], metrics["accuracy"] = _means(found)
        if batch.epoch >= self.warmup:
            found = [self._find_prototypes(rows, batch.index) for rows in queries.values()]
            losses["prototype"], metrics["prototype_accuracy"] = _means(found)
        return Terms(losses=losses, metrics=metrics, keep={"keys": keys[1]})  # one for each video, however many clips

    def _find_key(self, queries: Tensor, keys: Tensor) -> tuple[Tensor, Tensor]:
        logits = against_queue(queries, keys, self.queue.rows, self.config.temperature)  # (B, 1 + K)
        first = torch.zeros(len(queries), dtype=torch.long, device=logits.device)
        return F.cross_entropy(logits, first), (logits.detach().argmax(dim=1) == 0).float().mean()

    def _query(self, vector: Tensor) -> Tensor:
        return F.normalize(self.projector(vector).float(), dim=1)  # (B, D)

    def _key(self, batch: Batch, clip: Tensor) -> Tensor:
        """(B, D) unit keys of one clip of each video, with the statistics of a batch of strangers."""
        return F.normalize(shuffled(self._encode_slowly, clip, batch, self.teacher).float(), dim=1)

    def _find_prototypes(self, queries: Tensor, index: Tensor) -> tuple[Tensor, Tensor]:
        parts = zip(
            self.assignments[:, index],  # (clusterings, B)
            self.prototypes.split(self.clusters),
            self.concentrations.split(self.clusters),
            strict=True,
        )
        return _means([against_prototypes(queries, *part) for part in parts])

    def _encode_slowly(self, clip: Tensor) -> Tensor:
        *_, last = self.teacher.backbone(clip).values()  # (B, C, T, H, W)
        return self.teacher.projector(last.float().mean(dim=(2, 3, 4)))

    @hookimpl
    def vssl_run_start(self) -> None:
        """Cluster two rows: where faiss is missing, that is told now and not after the warm-up."""
        kmeans(torch.eye(2), 2, iterations=1, restarts=1, advance=lambda _: None)

    @hookimpl
    def vssl_epoch_start(self, run: Run) -> None:
        """Cluster the training list anew, where it is time."""
        if run.epoch >= self.warmup and (run.epoch - self.warmup) % self.config.every == 0:
            self.cluster(run)

    @torch.no_grad()
    def cluster(self, run: Run) -> None:
        """Embed every video with the slow encoder, cluster several times, and keep who belongs where."""
        found = run.extract(STILL, self._embed)
        embedded, index = found["embedding"], found["index"]
        if len(index) < max(self.clusters):
            raise DataError(
                f"plugins.{self.context.name}.clusters: {len(index)} of {self.context.videos} videos can be read, "
                f"which cannot form {max(self.clusters)} clusters; choose at most {len(index)}, or mend the videos"
            )
        self.assignments.fill_(-1)
        prototypes, concentrations = [], []
        for number, count in enumerate(self.clusters):
            clusters = kmeans(
                embedded,
                count,
                seed=run.config.seed * len(self.clusters) + number,
                iterations=self.config.iterations,
                restarts=self.config.restarts,
                device=run.device,
            )
            self.assignments[number, index.to(run.device)] = clusters.assignments.to(run.device)
            prototypes.append(F.normalize(clusters.centroids, dim=1))
            concentrations.append(concentration(clusters, self.config.temperature, self.config.smoothing))
        self.prototypes.copy_(torch.cat(prototypes))
        self.concentrations.copy_(torch.cat(concentrations))

    def _embed(self, batch: Batch) -> Mapping[str, Tensor]:
        return {"embedding": F.normalize(self._encode_slowly(batch["clips"][0].clip).float(), dim=1)}

    @hookimpl
    def vssl_step_end(self, run: Run, report: Report) -> None:
        """Move the slow encoder, and let the keys of all ranks into the queue."""
        self.teacher.follow(self.config.momentum, backbone=run.backbone, projector=self.projector)
        self.queue.push(report.kept[self.context.name]["keys"])


def _means(found: Sequence[tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
    """Of losses, and of how often each was right."""
    losses, right = zip(*found, strict=True)
    return torch.stack(losses).mean(), torch.stack(right).mean()


def against_queue(queries: Tensor, keys: Tensor, queue: Tensor, temperature: float) -> Tensor:
    """Logits (B, 1 + K) of queries (B, D) with their keys first, then with the queue (K, D)."""
    with torch.autocast(queries.device.type, enabled=False):  # a bfloat16 cannot hold a cosine over 0.1
        scaled = queries / temperature
        return torch.cat([(scaled * keys).sum(dim=1, keepdim=True), scaled @ queue.T], dim=1)


def against_prototypes(
    queries: Tensor, own: Tensor, prototypes: Tensor, concentrations: Tensor
) -> tuple[Tensor, Tensor]:
    """The cross entropy of queries (B, D) with their own prototypes among all (K, D), and how often it comes first.

    Each cosine is divided by its prototype's concentration. `own` (B,) is -1 where a video belongs to none: left out.
    """
    with torch.autocast(queries.device.type, enabled=False):
        logits = queries @ prototypes.T / concentrations  # (B, K)
    losses = F.cross_entropy(logits, own, ignore_index=-1, reduction="none")
    return mean(losses, own >= 0), mean((logits.detach().argmax(dim=1) == own).float(), own >= 0)


def numbers_of_clusters(asked: Sequence[int] | None, context: Context) -> tuple[int, ...]:
    """How many clusters each clustering has: what was asked, or the published shares of the training list.

    More clusters than videos, or fewer than two, are a `ConfigError`.
    """
    if asked is None:
        shares = [count * context.videos // PUBLISHED_IMAGES for count in PUBLISHED_CLUSTERS]
        return tuple(min(max(share, 2), context.videos) for share in shares)
    for count in asked:
        if not 2 <= count <= context.videos:
            raise ConfigError(
                f"plugins.{context.name}.clusters: {count} clusters cannot be made of the {context.videos} videos of "
                f"the training list; choose numbers from 2 to {context.videos}, or null"
            )
    return tuple(asked)


def first_clustering(asked: int | None, epochs: int) -> int:
    """The epoch before which the list is clustered first."""
    return min(PUBLISHED_WARMUP, max(epochs // 10, 1)) if asked is None else asked
