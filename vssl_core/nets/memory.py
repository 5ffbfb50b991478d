"""A memory bank: a row of features for every place of the training list, moved a little whenever its video comes by."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vssl_core.distributed import gather, rank, world_size
from vssl_core.errors import ConfigError
from vssl_core.machine import memory_bytes

PIECE = 2**16  # rows that are drawn together, so that a bank is made in little more than its own size


class MemoryBank(nn.Module):
    """Unit rows of features, read and moved by their places; each rank holds all of them. Saved with the run.

    Move it in `vssl_step_end` by what came back as `report.kept` and `report.index`, and it is equal on every rank. It
    starts with random unit rows. `dtype` is how rows are kept; what is computed with them is float32.
    """

    rows: Tensor  # (places, D)

    def __init__(
        self, places: int, features: int, *, dtype: torch.dtype = torch.float32, where: str = "memory bank"
    ) -> None:
        """Raises `ConfigError`, which begins with `where`, for a bank that does not fit into free memory."""
        super().__init__()
        self.where = where
        self._check_room(places, features, dtype, torch.device("cpu"))
        self._hold(random_rows(places, features, dtype))

    def __len__(self) -> int:
        return len(self.rows)

    def similarities(self, queries: Tensor, places: Tensor) -> Tensor:
        """(A, K) float32, the dot products of queries (A, D) with the rows at places (A, K).

        Gradients reach the queries alone. Every rank must call, with as many queries as the others.
        """
        return dots(queries, self.rows[places])

    @torch.no_grad()
    def update(self, places: Tensor, rows: Tensor, momentum: float) -> None:
        """Move the rows at places (M,) towards `rows` (M, D), in place; all others stay bit for bit.

        A row becomes unit(old (1 - momentum) + unit(new) momentum); what comes for one place is averaged first. With
        momentum 0 nothing moves.
        """
        if momentum > 0:
            found = moved(self.rows[places], averaged(places, rows), momentum)
            self.rows.index_copy_(0, places, found.to(self.rows.dtype))

    def _hold(self, rows: Tensor) -> None:
        self.register_buffer("rows", rows)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> MemoryBank:
        device = fn(self.rows.new_empty(0)).device
        if device != self.rows.device:
            self._check_room(*self.rows.shape, self.rows.dtype, device)
        return super()._apply(fn, recurse)

    def _check_room(self, places: int, features: int, dtype: torch.dtype, device: torch.device) -> None:
        needed, free = places * features * dtype.itemsize, free_bytes(device)
        banks = int(os.environ.get("LOCAL_WORLD_SIZE", 1)) if device.type == "cpu" else 1
        if free is not None and needed * banks > free:
            many = f" for each of {banks} ranks" if banks > 1 else ""
            fewer = "start fewer ranks on a machine, " if banks > 1 else ""
            other = fewer if device.type == "cpu" else "spread them over more GPUs, "
            raise ConfigError(
                f"{self.where}: {places:,} rows of {features} numbers need {needed / 1e9:,.3g} GB{many}, and "
                f"{free / 1e9:,.3g} GB are free on {device.type}; keep them in half precision, {other}or hold fewer"
            )


class ShardedMemoryBank(MemoryBank):
    """The same bank, of which each rank's GPU holds a share; reads are computed where the rows lie.

    What travels is queries, places and dot products: 12 bytes for each row that a rank meets and each rank there
    is, where a row has 2 or 4 for each of its numbers. All rows stand in the memory of the host, once for each of its
    ranks and equal on all, for checkpoints: there the bank is moved, and the share on the GPU follows. So it is GPU
    memory that sharding spares; without a GPU the share is a part of the whole.
    """

    share: Tensor | None  # (at most places / ranks, D) on the GPU; None without one

    def similarities(self, queries: Tensor, places: Tensor) -> Tensor:
        """(A, K) as above; waits for the device once."""
        first, near = self._first, self._near
        if world_size() == 1:
            return dots(queries, near[places])
        from fvcore.nn.distributed import differentiable_all_reduce

        everyone, wanted = gather(queries), gather(places.int()).long() - first  # (A of all ranks, D), (..., K)
        here = (wanted >= 0) & (wanted < len(near))
        most = int(here.sum(dim=1).max())  # rows of this share that one query meets
        columns = here.int().argsort(dim=1, descending=True, stable=True)[:, :most]
        inside = here.gather(1, columns)
        found = dots(everyone, near[wanted.gather(1, columns).where(inside, 0)]) * inside
        partial = found.new_zeros(wanted.shape).scatter(1, columns, found)
        return differentiable_all_reduce(partial)[rank() * len(queries) : (rank() + 1) * len(queries)]

    @torch.no_grad()
    def update(self, places: Tensor, rows: Tensor, momentum: float) -> None:
        """As above; waits for the device once."""
        places = places.cpu()
        super().update(places, rows.cpu(), momentum)
        if self.share is not None:
            own = places[(places >= self._first) & (places < self._first + len(self.share))]
            self.share[(own - self._first).to(self.share.device)] = self.rows[own].to(self.share.device)

    @property
    def _first(self) -> int:
        return rank() * self._size

    @property
    def _size(self) -> int:
        return -(-len(self.rows) // world_size())

    @property
    def _near(self) -> Tensor:
        return self.rows[self._first : self._first + self._size] if self.share is None else self.share

    # The rows are no buffer: they must not follow the net onto a GPU, nor be the first rank's on all of them

    def _hold(self, rows: Tensor) -> None:
        self.rows, self.share = rows, None

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> ShardedMemoryBank:
        device = fn(self.rows.new_empty(0)).device
        self.share = None
        if device.type != "cpu":
            near = self._near
            self._check_room(*near.shape, near.dtype, device)
            self.share = near.to(device)
        return self

    def _save_to_state_dict(self, destination: dict[str, Any], prefix: str, keep_vars: bool) -> None:
        destination[f"{prefix}rows"] = self.rows

    def _load_from_state_dict(
        self,
        state_dict: dict[str, Tensor],
        prefix: str,
        local_metadata: Any,
        strict: bool,
        missing_keys: list[str],
        unexpected_keys: list[str],
        error_msgs: list[str],
    ) -> None:
        saved = state_dict.get(f"{prefix}rows")
        if saved is None:
            missing_keys.append(f"{prefix}rows")
        elif saved.shape != self.rows.shape:
            error_msgs.append(f"{prefix}rows is {tuple(saved.shape)}, this bank needs {tuple(self.rows.shape)}")
        else:
            self.rows.copy_(saved)
            if self.share is not None:
                self.share.copy_(self.rows[self._first : self._first + self._size])


def random_rows(places: int, features: int, dtype: torch.dtype) -> Tensor:
    """(places, features) random unit rows, from torch's generator."""
    rows = torch.empty(places, features, dtype=dtype)
    for part in rows.split(PIECE):
        part.copy_(F.normalize(torch.randn(part.shape), dim=1))
    return rows


def dots(queries: Tensor, rows: Tensor) -> Tensor:
    """(A, K) float32 dot products of queries (A, D) with rows (A, K, D), each with its own."""
    with torch.autocast(queries.device.type, enabled=False):  # a bfloat16 cannot hold a cosine over 0.07
        return torch.bmm(rows.float(), queries.float().unsqueeze(2)).squeeze(2)


def averaged(places: Tensor, rows: Tensor) -> Tensor:
    """(M, D) for each of places (M,) the mean of all rows that came for it; the same bits wherever it comes again."""
    alike = places[:, None] == places  # (M, M)
    means = alike.to(rows.dtype) @ rows / alike.sum(dim=1, keepdim=True)
    return means[alike.int().argmax(dim=1)]


def moved(old: Tensor, new: Tensor, momentum: float) -> Tensor:
    """(M, D) float32 unit rows on the way from old to new ones; a row of zeros moves nothing."""
    between = (1 - momentum) * old.float() + momentum * F.normalize(new.float(), dim=1)
    length = between.norm(dim=1, keepdim=True)
    return torch.where(length > 0, between / length.clamp(min=1e-12), old.float())


def free_bytes(device: torch.device, meminfo: Path = Path("/proc/meminfo")) -> int | None:
    """Memory that is free on a device; None where that cannot be told."""
    if device.type == "cuda":
        kept = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return torch.cuda.mem_get_info(device)[0] + kept
    if device.type != "cpu":
        return None
    lines = meminfo.read_text().splitlines() if meminfo.exists() else []
    available = [int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:")]
    return min([*available, *filter(None, [memory_bytes()])], default=None)
