"""The terms of the loss, each on tensors alone."""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from vssl_core import gather, mean, rank


def alignment(scores: Tensor, wanted: Tensor, temperature: float) -> Tensor:
    """The mean over the batch of the cross entropy of codes (B, K), made a distribution, with assignments (B, K)."""
    with torch.autocast(scores.device.type, enabled=False):
        return -(wanted.detach() * F.log_softmax(scores / temperature, dim=1)).sum(dim=1).mean()


def magnitude(codes: Tensor) -> Tensor:
    """The mean over the batch of the L1 norm of codes (B, K)."""
    return codes.abs().sum(dim=1).mean()


def negentropy(codes: Tensor, temperature: float) -> Tensor:
    """The mean over the batch of sum p log p of codes (B, K), made a distribution: from -ln K (all alike) to 0."""
    logarithms = F.log_softmax(codes / temperature, dim=1)
    return (logarithms.exp() * logarithms).sum(dim=1).mean()


def reconstruction(guess: Tensor, features: Tensor, kind: Literal["unit", "l2_raw", "cosine"]) -> Tensor:
    """How far a guess (B, C) is from the features (B, C) that it was made for, which do not move towards it."""
    target, guess = features.detach().float(), guess.float()
    if kind == "l2_raw":
        return (guess - target).square().sum(dim=1).mean()
    cosine = F.cosine_similarity(guess, target, dim=1).mean()
    return 2 - 2 * cosine if kind == "unit" else -cosine


def local_contrast(queries: Tensor, keys: Tensor, valid: Tensor, margin: float) -> Tensor:
    """Local features of valid concepts come near those of the same video, and away from those of others.

    The mean over all valid concepts of all videos of (distance to the own key) squared, and the mean over the other
    videos of (what their key lacks to `margin`) squared. `queries` and `keys` (B, K, C) have unit length, keys stay
    where they are; `valid` is (B, K). Where nothing is valid it is 0.
    """
    keys = keys.detach()
    own = (queries - keys).square().sum(dim=2)  # (B, K)
    others = gather(keys)  # (N, K, C)
    with torch.autocast(queries.device.type, enabled=False):
        # Not by products: where two nearly agree, nothing is left of 1 - cosine.
        apart = torch.cdist(
            queries.transpose(0, 1), others.transpose(0, 1), compute_mode="donot_use_mm_for_euclid_dist"
        )  # (K, B, N)
    mine = torch.arange(len(others), device=apart.device) == own_places(len(queries), apart.device)[:, None]  # (B, N)
    lacking = (margin - apart).clamp(min=0).square().masked_fill(mine, 0.0)
    pushed = lacking.sum(dim=2).T / max(len(others) - 1, 1)  # (B, K)
    return mean(own + pushed, valid)


def contrast(queries: Tensor, keys: Tensor, temperature: float) -> Tensor:
    """The cross entropy of finding each query's key among those of all videos of the step; both (B, D), keys rest."""
    with torch.autocast(queries.device.type, enabled=False):
        everyone = gather(F.normalize(keys.detach().float(), dim=1))
        logits = F.normalize(queries.float(), dim=1) @ everyone.T / temperature  # (B, N)
    return F.cross_entropy(logits, own_places(len(queries), queries.device))


def own_places(rows: int, device: torch.device) -> Tensor:
    """(rows,) where this rank's rows stand among those of all ranks."""
    return torch.arange(rows, device=device) + rank() * rows
