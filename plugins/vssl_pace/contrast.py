"""The contrast of clips by their plain dot products, in the three ways its equation can be read."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from vssl_core import gather, mean, rank

Reading = Literal["row", "global_anchor", "global_ratio"]


def contrast(rows: Tensor, keys: Tensor, reading: Reading) -> Tensor:
    """A scalar that falls as clips of one key come together and the others part.

    rows (n, D) float32 and keys (n,) int64 are this rank's; the clips of all ranks are candidates. Clips of one key are
    positives of each other; a negative key has none. Similarities are neither normalised nor tempered, so they pass 88
    with ease, where exp overflows: all sums are taken in logarithms. A clip without a positive is no anchor; 0 where no
    clip has one.
    """
    everyone, names = gather(rows), gather(keys)  # (N, D), (N,)
    count = len(rows)
    if len(everyone) < 2:
        return rows.sum() * 0
    with torch.autocast(rows.device.type, enabled=False):  # in bfloat16 a similarity of some hundreds is off by one
        similarity = rows.float() @ everyone.float().T  # (n, N)
    place = torch.arange(len(everyone), device=rows.device)
    other = place != place[rank() * count : (rank() + 1) * count, None]  # (n, N)
    positive = other & (keys[:, None] == names) & (keys[:, None] >= 0)
    anchor = positive.any(dim=1)  # (n,)
    together = _log_sum(similarity, torch.where(anchor[:, None], positive, other))  # no anchor: left out below
    apart = _log_sum(similarity, other)
    if reading == "row":
        return mean(apart - together, anchor)
    whole = gather(apart).logsumexp(dim=0)  # over all pairs of all ranks
    if reading == "global_anchor":
        return mean(whole - together, anchor)
    anchors = gather(anchor.long()) > 0  # (N,)
    return whole - _log_sum(gather(together), anchors | ~anchors.any())  # no anchor at all: all pairs over all pairs


def _log_sum(values: Tensor, mask: Tensor) -> Tensor:
    """log of the sum of exp over the last axis, where the mask holds."""
    return values.masked_fill(~mask, float("-inf")).logsumexp(dim=-1)
