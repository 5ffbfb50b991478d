"""Concept codes: how near a feature comes to each prototype; which concepts a code says are there."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vssl_core import mlp


class Bank(nn.Module):
    """The prototypes of one kind of input, and what its features go through before they are compared."""

    def __init__(self, concepts: int, features: int, transformed: bool) -> None:
        super().__init__()
        self.rows = nn.Parameter(F.normalize(torch.randn(concepts, features), dim=1))  # (K, C)
        self.transform = mlp(features, features, features) if transformed else nn.Identity()

    def forward(self, vectors: Tensor) -> Tensor:
        """(B, K) cosines of vectors (B, C) with the prototypes, in float32."""
        transformed = self.transform(vectors).float()
        with torch.autocast(vectors.device.type, enabled=False):  # a bfloat16 cannot hold a cosine over 0.1
            return F.normalize(transformed, dim=1) @ F.normalize(self.rows, dim=1).T

    @torch.no_grad()
    def make_unit(self) -> None:
        """Bring the prototypes back to unit length."""
        self.rows.copy_(F.normalize(self.rows, dim=1))


@torch.no_grad()
def most_active(codes: Tensor, count: int) -> Tensor:
    """(B, K) True for the `count` largest of each code (B, K): exactly so many, ties or not."""
    return torch.zeros_like(codes, dtype=torch.bool).scatter_(1, codes.topk(count, dim=1).indices, True)
