"""Other orders of timestamps: reversed, and shuffled for each video by itself."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from vssl_core import Batch
from vssl_multilevel.options import Change

TRIES = 8  # draws of an order that must not be the old one; after as many failures it is the reverse


def changed_orders(batch: Batch, name: str, timestamps: int, changes: Sequence[Change]) -> list[list[Tensor]]:
    """For both halves, an order (B, T) for each change; none of them is the old one. `timestamps` is at least 2."""
    backwards = torch.arange(timestamps - 1, -1, -1, device=batch.index.device).expand(len(batch.index), -1)
    orders = [[backwards, backwards]]
    if "shuffle" in changes:
        orders.append(list(shuffled_orders(batch.draw(f"shuffle/{name}", 0.0, 1.0, (2, TRIES, timestamps))).unbind(1)))
    kept = orders if "reverse" in changes else orders[1:]
    return [list(half) for half in zip(*kept, strict=True)]


def shuffled_orders(draws: Tensor) -> Tensor:
    """(..., T) an order other than 0, 1, 2, ... for each set of random numbers (..., tries, T): the first one there is.

    All such orders are equally likely, but for the reverse, which stands in where no try gave one.
    """
    orders = draws.argsort(dim=-1, stable=True)
    unchanged = torch.arange(draws.shape[-1], device=draws.device)
    other = (orders != unchanged).any(dim=-1)  # (..., tries)
    first = other.float().argmax(dim=-1)[..., None, None]
    found = orders.take_along_dim(first, dim=-2).squeeze(-2)
    return torch.where(other.any(dim=-1, keepdim=True), found, unchanged.flip(0))
