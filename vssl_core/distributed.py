"""Ranks: who we are, and the few exchanges that objectives and the engine need. On one rank all of them are free."""

from __future__ import annotations

import gc
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from vssl_core.errors import PluginError

_apart = ""  # why ranks cannot exchange anything just now


def rank() -> int:
    """This process's number, from 0."""
    return dist.get_rank() if dist.is_available() and dist.is_initialized() else 0


def world_size() -> int:
    """How many processes train together."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def join_ranks(backend: str, **where: Any) -> None:
    """Join the other ranks; `where` they meet is as for `torch.distributed.init_process_group`."""
    # Imported later, it would take this group as a default of its functions and keep it, and its threads, until the
    # interpreter ends; a thread that drops a tensor then takes the process down (torch 2.13)
    import torch.distributed.nn.functional  # noqa: F401

    dist.init_process_group(backend, **where)


def leave_ranks() -> None:
    """Leave them; the group's threads end here, unless a run is still held that exchanges gradients by it."""
    gc.collect()  # runs lie in cycles
    dist.destroy_process_group()


def gather(rows: Tensor) -> Tensor:
    """The rows (B, ...) of all ranks in global batch order, (world_size * B, ...), with gradients to their own rank."""
    if not _exchanges():
        return rows
    from fvcore.nn.distributed import differentiable_all_gather

    return torch.cat(differentiable_all_gather(rows.contiguous()), dim=0)


def mean(values: Tensor, mask: Tensor | None = None) -> Tensor:
    """The mean of `values` where `mask` holds, over all ranks: what a loss divided by a count that depends on data
    must use.

    Each rank gives its own share, scaled so that the average of the ranks' results, and of their gradients, is the
    global mean.
    0, still in the graph, where the mask holds nowhere.
    """
    mask = torch.ones_like(values) if mask is None else mask.to(values.dtype).expand_as(values)
    count = mask.sum().detach()
    if _exchanges():
        dist.all_reduce(count)
    kept = torch.where(mask > 0, values, torch.zeros_like(values))
    return kept.sum() * world_size() / count.clamp(min=1)


def gather_kept(kept: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Detached rows of all ranks, in global batch order."""
    if not _exchanges():
        return {name: rows.detach() for name, rows in kept.items()}
    whole = {}
    for name, rows in kept.items():
        rows = rows.detach().contiguous()
        parts = [torch.empty_like(rows) for _ in range(world_size())]
        dist.all_gather(parts, rows)
        whole[name] = torch.cat(parts)
    return whole


def average(tensors: Iterable[Tensor]) -> None:
    """Make each tensor its mean over ranks, in place, in one exchange."""
    tensors = list(tensors)
    if not _exchanges() or not tensors:
        return
    flat = torch.cat([tensor.reshape(-1).float() for tensor in tensors])
    dist.all_reduce(flat)
    flat /= world_size()
    for tensor, part in zip(tensors, flat.split([tensor.numel() for tensor in tensors]), strict=True):
        tensor.copy_(part.view_as(tensor))


def broadcast(value: Any) -> Any:
    """Rank 0's value, any picklable one, on every rank."""
    if not _exchanges():
        return value
    box = [value]
    dist.broadcast_object_list(box, src=0)
    return box[0]


def gather_objects(value: Any) -> list[Any]:
    """Every rank's value, any picklable one, in the order of ranks."""
    if not _exchanges():
        return [value]
    box: list[Any] = [None] * world_size()
    dist.all_gather_object(box, value)
    return box


def any_rank(flag: bool) -> bool:
    """Whether any rank says so."""
    if not _exchanges():
        return flag
    told = torch.tensor(float(flag), device=exchange_device())
    dist.all_reduce(told, op=dist.ReduceOp.MAX)
    return bool(told.item())


@contextmanager
def apart(why: str) -> Iterator[None]:
    """Where ranks do not do the same: an exchange would wait for ever, so it raises `PluginError` with this sentence.

    On one rank too, where it would go unnoticed.
    """
    global _apart
    before, _apart = _apart, why
    try:
        yield
    finally:
        _apart = before


def _exchanges() -> bool:
    """Whether there is anybody to exchange with."""
    if _apart:
        raise PluginError(_apart)
    return world_size() > 1


def exchange_device() -> torch.device:
    """Where tensors must lie to be exchanged: the GPU under nccl."""
    return torch.device("cuda", torch.cuda.current_device()) if dist.get_backend() == "nccl" else torch.device("cpu")
