"""The losses, as functions of unit rows or of their similarities: contrast, graph, assignment, order and timestamps.

Axes: B videos of this rank, N of all ranks, clips (two), K prototypes, D features. Everything in float32.
"""

from __future__ import annotations

from math import log

import torch
import torch.nn.functional as F
from torch import Tensor

from vssl_core import gather, rank


def compare(rows: Tensor, temperature: float) -> Tensor:
    """log h of all pairs of clips, (B, 2, N, 2), of unit rows (B, 2, D) with those of all ranks."""
    with torch.autocast(rows.device.type, enabled=False):  # a bfloat16 cannot hold a cosine over 0.07
        return torch.einsum("iad,jbd->iajb", rows / temperature, gather(rows))


def own(logits: Tensor) -> Tensor:
    """(B, N) True where the video of all ranks is this row's own."""
    places = torch.arange(len(logits), device=logits.device) + rank() * len(logits)
    return places[:, None] == torch.arange(logits.shape[2], device=logits.device)


def together(logits: Tensor) -> Tensor:
    """log h(z_i^a, z_j^*) of the paper's equation 3, (B, 2, N): both clips of another video, of its own the other."""
    return _candidates(logits).logsumexp(dim=3)


def recognised(logits: Tensor) -> Tensor:
    """(B, 2) whether the clip that is nearest to a clip is the other one of its video."""
    nearest = _candidates(logits).amax(dim=3).argmax(dim=2)
    return own(logits)[:, None].expand(-1, 2, -1).gather(2, nearest[..., None]).squeeze(2)


def _candidates(logits: Tensor) -> Tensor:
    """All pairs of clips but a clip with itself."""
    itself = own(logits)[:, None, :, None] & torch.eye(2, dtype=torch.bool, device=logits.device)[:, None]
    return logits.masked_fill(itself, float("-inf"))


def one_way(logits: Tensor) -> Tensor:
    """(B, 1, N) first clips against second ones alone."""
    return logits[:, :1, :, 1]


def towards(similarities: Tensor, edges: Tensor) -> Tensor:
    """Cross entropy of similarities (B, clips, N) with edges (B, N), over videos and clips.

    With one edge from each video to itself this is InfoNCE.
    """
    return -(edges[:, None] * similarities.log_softmax(dim=2)).sum(dim=2).mean()


@torch.no_grad()
def graph(logits: Tensor, prototypes: Tensor | None, threshold: float | None, both: bool) -> Tensor:
    """The edges (B, N) from each video to those it shall be near to: rows sum to 1. No gradient.

    An edge is cut where its share of the video's likeness is below `threshold` (None: all videos are alike), or where
    the two belong to different `prototypes` (N,) (None: to none). The edge to itself is always kept: early in training
    a video may be less like its own other clip than like everything else, and its row would be empty.
    """
    itself = own(logits)
    edges = torch.ones_like(itself, dtype=logits.dtype) if threshold is None else _likeness(logits, both)
    kept = edges >= (0.0 if threshold is None else threshold)
    if prototypes is not None:
        first = rank() * len(logits)
        kept &= prototypes[first : first + len(logits), None] == prototypes
    edges = torch.where(kept | itself, edges, 0.0)
    return edges / edges.sum(dim=1, keepdim=True)


def _likeness(logits: Tensor, both: bool) -> Tensor:
    """(B, N) shares of each video's likeness to all: the mean h over pairs of clips, to itself h of its two clips."""
    across = logits[:, 0, :, 1]
    if not both:
        return across.softmax(dim=1)
    return torch.where(own(logits), across, logits.logsumexp(dim=(1, 3)) - log(4)).softmax(dim=1)


def swapped(logits: Tensor, wanted: Tensor) -> Tensor:
    """Mean cross entropy of each clip's logits with the other clip's assignment, both (B, 2, K)."""
    return -(wanted.flip(1) * logits.log_softmax(dim=2)).sum(dim=2).mean()


def apart_from_changed(rows: Tensor, changed: Tensor, temperature: float, others: bool) -> Tensor:
    """Find the other clip of the video, not a clip of which only the order in time was changed.

    Unit rows (B, 2, D) and, in each of the changed orders, (B, 2, changes, D). A clip's candidates are the other clip
    and its own changed orders; with `others`, those of both clips and all other videos (of all ranks) too.
    """
    with torch.autocast(rows.device.type, enabled=False):
        positive = (rows[:, 0] * rows[:, 1]).sum(dim=1)[:, None] / temperature  # (B, 1)
        near = torch.einsum("iad,ibkd->iabk", rows / temperature, changed)  # (B, 2, 2, changes)
    if others:
        candidates = torch.cat([together(compare(rows, temperature)), near.flatten(2)], dim=2)
    else:
        same = near.diagonal(dim1=1, dim2=2).movedim(2, 1)  # (B, 2, changes)
        candidates = torch.cat([positive[:, :, None].expand(-1, 2, 1), same], dim=2)
    return (candidates.logsumexp(dim=2) - positive).mean()


def found_in_overview(short: Tensor, long: Tensor, temperature: float, both: bool) -> tuple[Tensor, Tensor]:
    """(B,) the cross entropy of finding each timestamp of `short` in `long`, both (B, T, D), and how often it is found.

    With `both`, it is the mean of that and of finding those of `long` in `short`.
    """
    with torch.autocast(short.device.type, enabled=False):
        logits = F.normalize(short, dim=2) @ F.normalize(long, dim=2).mT / temperature  # (B, T, T)
    loss = _diagonal(logits.log_softmax(dim=2))
    if both:
        loss = (loss + _diagonal(logits.log_softmax(dim=1))) / 2
    right = logits.detach().argmax(dim=2) == torch.arange(logits.shape[1], device=logits.device)
    return -loss, right.float().mean(dim=1)


def _diagonal(values: Tensor) -> Tensor:
    return values.diagonal(dim1=1, dim2=2).mean(dim=1)
