"""Batch norm that cannot tell which rows belong together: rows trade ranks before a forward, and trade back."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import torch
import torch.distributed as dist
from torch import Tensor, nn

from vssl_core.distributed import gather, rank, world_size

if TYPE_CHECKING:
    from vssl_core.views import Batch


@torch.no_grad()
def shuffled(encode: Callable[[Tensor], Tensor], clip: Tensor, batch: Batch, module: nn.Module) -> Tensor:
    """`encode(clip)`, (B, ...) to (B, D), in the company of all ranks' clips: shuffling batch norm (He et al. 2020).

    Who goes where is drawn with the samples, so a restart and the number of workers change nothing. On one rank, and
    where no batch norm of `module` keeps to its rank, this is plain `encode(clip)`. No gradient.
    """
    if world_size() == 1 or not keeps_to_its_rank(module):
        return encode(clip)
    order = gather(batch.draw("company", 0.0, 1.0)).argsort(stable=True)  # (N,) place -> global row, on every rank
    return trade(encode(trade(clip, order)), order.argsort())


def keeps_to_its_rank(module: nn.Module) -> bool:
    """Whether a batch normalisation in it has the statistics of one rank's rows."""
    plain = nn.BatchNorm1d | nn.BatchNorm2d | nn.BatchNorm3d
    return any(isinstance(child, plain) for child in module.modules())


def trade(rows: Tensor, order: Tensor) -> Tensor:
    """(B, ...) this rank's share of `gather(rows)[order]`; each row travels to one rank only. No gradient."""
    share = len(rows)
    sources, places = (order // share).view(-1, share), (order % share).view(-1, share)  # [destination, place there]
    mine = sources == rank()
    outgoing = rows[torch.cat([place[own] for place, own in zip(places, mine, strict=True)])].contiguous()
    received = torch.empty_like(outgoing)
    counts = [int((sources[rank()] == source).sum()) for source in range(world_size())]
    dist.all_to_all_single(received, outgoing, counts, mine.sum(dim=1).tolist())
    return received[sources[rank()].argsort(stable=True).argsort()]  # they came rank by rank
