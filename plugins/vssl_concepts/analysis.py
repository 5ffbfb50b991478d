"""What the paper's analysis reads of a trained net: local features of what is there, and where single concepts look."""

from __future__ import annotations

from collections.abc import Iterable

import torch
import torch.nn.functional as F
from torch import Tensor

from vssl_concepts.codes import most_active

PICTURE = 56  # pixels of the side of a frame that is drawn, at most


def mean_of_active(local: Tensor, codes: Tensor, count: int) -> Tensor:
    """(B, C) the mean of the local features (B, K, C) of the `count` concepts that codes (B, K) say are there."""
    there = most_active(codes, count)[:, :, None]
    return (local * there).sum(dim=1) / count


def looks(codes: Tensor, weights: Tensor, halves: Iterable[slice]) -> Tensor:
    """(B, halves, N) where the most active concept of each half of the codes (B, K) looks; weights are (B, K, N)."""
    rows = torch.arange(len(codes), device=codes.device)
    best = [half.start + codes[:, half].argmax(dim=1) for half in halves]
    return torch.stack([weights[rows, concept] for concept in best], dim=1)


def pictures(clip: Tensor, frames: int) -> Tensor:
    """(B, frames * side * side) of the clip (B,3,T,H,W), in gray and small, the middle of each moment of its map."""
    moments = (2 * torch.arange(frames, device=clip.device) + 1) * clip.shape[2] // (2 * frames)
    side = picture_side(clip.shape[3])
    gray = clip[:, :, moments].mean(dim=1)  # (B, frames, H, W)
    return F.adaptive_avg_pool2d(gray, (side, side)).flatten(1)


def picture_side(size: int) -> int:
    """The side of those pictures, in pixels, for clips of `size` pixels."""
    return min(PICTURE, size)
