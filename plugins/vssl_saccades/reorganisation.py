"""Reorganisation: the clusters of all parts of all videos, and the contrast of a clip's cluster with others."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vssl_core import ConfigError, Context, concentration, kmeans, mean

PUBLISHED_CLUSTERS = (1500, 1500, 1500)
SLOTS_PER_CLUSTER = 30  # at least, where the numbers of clusters are null; about the published share
PUBLISHED_START = (300, 360)  # the epoch that it starts at, of so many


class Reorganisation(nn.Module):
    """Several clusterings of the same rows: who belongs where, unit prototypes, and how tight each cluster is."""

    def __init__(self, clusters: Sequence[int], videos: int, slots: int, features: int) -> None:
        super().__init__()
        self.clusters = tuple(clusters)
        assignments = torch.full((len(self.clusters), videos, slots), -1)  # -1: to none
        self.register_buffer("assignments", assignments)
        self.register_buffer("prototypes", torch.zeros(sum(self.clusters), features))  # all clusterings, one below
        self.register_buffer("concentrations", torch.ones(sum(self.clusters)))  # the other

    def forward(
        self, queries: Tensor, owners: tuple[Tensor, Tensor], negatives: int, draw: Callable[[str, int], Tensor]
    ) -> tuple[Tensor, Tensor]:
        """The mean cross entropy of queries (B, A, D), which belong to slots (B, A) of videos (B,): `owners`.

        Beside its own cluster each meets `negatives` others, picked by the numbers of `draw(name, clusters)` (B,
        clusters); and how often the own one comes first.
        """
        index, slots = owners
        found = []
        parts = zip(
            self.assignments,
            self.prototypes.split(self.clusters),
            self.concentrations.split(self.clusters),
            strict=True,
        )
        for number, (assignments, centres, spread) in enumerate(parts):
            own = assignments[index[:, None], slots]  # (B, A)
            ranks = None
            if negatives < len(centres) - 1:
                ranks = draw(f"clusters{number}", len(centres))[:, None].expand(-1, own.shape[1], -1).flatten(0, 1)
            found.append(against_clusters(queries.flatten(0, 1), own.flatten(), centres, spread, negatives, ranks))
        losses, right = zip(*found, strict=True)
        return torch.stack(losses).mean(), torch.stack(right).mean()

    @torch.no_grad()
    def cluster(
        self,
        rows: Tensor,
        index: Tensor,
        *,
        seed: int,
        temperature: float,
        smoothing: float,
        iterations: int,
        restarts: int,
        device: torch.device,
    ) -> None:
        """Cluster unit rows (n, slots, D) of the videos `index` (n,) anew, each time with another seed."""
        self.assignments.fill_(-1)
        prototypes, concentrations = [], []
        for number, count in enumerate(self.clusters):
            found = kmeans(
                rows.flatten(0, 1),
                count,
                seed=seed * len(self.clusters) + number,
                iterations=iterations,
                restarts=restarts,
                device=device,
            )
            places = index.to(self.assignments.device)
            self.assignments[number, places] = found.assignments.view(rows.shape[:2]).to(places.device)
            prototypes.append(F.normalize(found.centroids, dim=1))
            concentrations.append(concentration(found, temperature, smoothing))
        self.prototypes.copy_(torch.cat(prototypes))
        self.concentrations.copy_(torch.cat(concentrations))


def against_clusters(
    queries: Tensor, own: Tensor, prototypes: Tensor, concentrations: Tensor, negatives: int, ranks: Tensor | None
) -> tuple[Tensor, Tensor]:
    """The cross entropy of queries (A, D) with their own prototypes, of all (Q, D), and how often it comes first.

    The other candidates are the `negatives` clusters with the smallest numbers in `ranks` (A, Q), or all where that is
    None: never the own one, and none twice. Each cosine is divided by its prototype's concentration. `own` (A,) is -1
    where a row belongs to none: left out.
    """
    with torch.autocast(queries.device.type, enabled=False):
        logits = queries @ prototypes.T / concentrations  # (A, Q)
    first = own.clamp(min=0)
    if ranks is not None:
        chosen = ranks.scatter(1, first[:, None], -1.0).topk(negatives + 1, dim=1, largest=False).indices
        logits, first = logits.gather(1, chosen), torch.zeros_like(first)  # the own one has the smallest number
    losses = F.cross_entropy(logits, first, reduction="none")
    right = (logits.detach().argmax(dim=1) == first).float()
    return mean(losses, own >= 0), mean(right, own >= 0)


def numbers_of_clusters(asked: Sequence[int] | None, slots: int, context: Context) -> tuple[int, ...]:
    """How many clusters each clustering has; more than there are slots, or fewer than two, are a `ConfigError`.

    None is what was published, or a thirtieth of the slots where that is less.
    """
    whole = context.videos * slots
    if asked is None:
        return tuple(min(count, max(whole // SLOTS_PER_CLUSTER, 2), whole) for count in PUBLISHED_CLUSTERS)
    for count in asked:
        if not 2 <= count <= whole:
            raise ConfigError(
                f"plugins.{context.name}.clusters: {count} clusters cannot be made of the {whole} slots of "
                f"{context.videos} videos; choose numbers from 2 to {whole}, or null"
            )
    return tuple(asked)


def first_epoch(asked: int | None, epochs: int) -> int:
    """The epoch, from 0, at which it starts; None is the published share of the run, not its first epoch."""
    start, whole = PUBLISHED_START
    return max(epochs * start // whole, 1) if asked is None else asked
