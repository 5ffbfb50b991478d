"""A queue of feature rows: the negatives, or the company, that one batch is too small to hold."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vssl_core.errors import ConfigError
from vssl_core.objective import Context


class Queue(nn.Module):
    """The last `size` feature rows seen by any rank, oldest overwritten first. Saved with the run.

    Push what came back as `report.kept`, and it is equal on every rank. Until rows were pushed, random unit rows stand
    in their places. A push moves no other row, and nothing has to wait for the device.
    """

    rows: Tensor  # (K, D) a ring: all of them are rows, in no particular order
    cursor: Tensor  # () where the next row goes
    filled: Tensor  # () how many rows have been pushed, at most K

    def __init__(self, size: int, features: int) -> None:
        super().__init__()
        self.register_buffer("rows", F.normalize(torch.randn(size, features), dim=1))
        self.register_buffer("cursor", torch.zeros((), dtype=torch.long))
        self.register_buffer("filled", torch.zeros((), dtype=torch.long))

    def __len__(self) -> int:
        return len(self.rows)

    @torch.no_grad()
    def push(self, rows: Tensor) -> None:
        """Let rows (B, D) take the places of the oldest ones; of more than K rows only the last K stay."""
        rows = rows[-len(self) :].to(self.rows.dtype)
        places = (self.cursor + torch.arange(len(rows), device=self.rows.device)) % len(self)
        self.rows.index_copy_(0, places, rows)
        self.cursor.add_(len(rows)).remainder_(len(self))
        self.filled.add_(len(rows)).clamp_(max=len(self))

    def rows_in_order(self) -> Tensor:
        """(at most K, D) the rows that have been pushed, oldest first. Waits for the device."""
        if int(self.filled) < len(self):
            return self.rows[: int(self.filled)]
        return self.rows.roll(-int(self.cursor), dims=0)


def queue_size(asked: int | None, published: int, context: Context) -> int:
    """The number of rows of an objective's option `queue`.

    None is the published number, cut to the largest multiple of the global batch within the training list. A number
    above the list is a `ConfigError`: a video would then meet its own older row among the negatives.
    """
    if asked is None:
        most = min(published, context.videos)
        return most // context.batch_size * context.batch_size or most
    if asked > context.videos:
        raise ConfigError(
            f"plugins.{context.name}.queue: {asked} rows are more than the {context.videos} videos of the training "
            f"list, so that videos would be their own negatives; choose at most {context.videos}, or null"
        )
    return asked
