"""Soft assignments of rows to prototypes that use all prototypes evenly."""

from __future__ import annotations

import torch
from torch import Tensor

from vssl_core.distributed import gather, rank

FLOOR = -80.0  # exponents below it vanish in float32; scores within 4 of each other never get there at epsilon 0.05


@torch.no_grad()
def sinkhorn(scores: Tensor, epsilon: float = 0.05, iterations: int = 3, others: Tensor | None = None) -> Tensor:
    """(B, K) assignments of this rank's rows, given their scores (B, K); each row sums to 1. No gradient.

    The rows of all ranks and `others` (M, K), equal on every rank, share the prototypes: column sums come near the
    number of rows over K, and reach it as `iterations` grow (Sinkhorn and Knopp, as in Caron et al. 2020). In float32.
    """
    with torch.autocast(scores.device.type, enabled=False):
        whole = gather(scores.detach().float())  # (N, K) in global order
        first = rank() * len(scores)
        own = slice(first, first + len(scores))
        if others is not None:
            whole = torch.cat([whole, others.float()])
        kernel = ((whole - whole.max()) / epsilon).clamp_(min=FLOOR).exp_()
        rows, prototypes = kernel.shape
        row_scales = kernel.new_ones(rows)
        for _ in range(iterations):  # the scaled kernel is never written down: two products of matrix and vector
            prototype_scales = 1 / (prototypes * (row_scales @ kernel))  # (K,)
            row_scales = 1 / (rows * (kernel @ prototype_scales))  # (N,)
        assignments = kernel[own] * prototype_scales
        return assignments / assignments.sum(dim=1, keepdim=True)
