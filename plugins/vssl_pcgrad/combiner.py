"""The weighted sum of losses, with a gradient on what is shared from which conflicts have been projected away."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal

import torch
from pydantic import Field
from torch import Tensor

from vssl_core import Combiner, PluginConfig, Shared, average, broadcast


class ProjectConflicting(Combiner):
    """Differentiates each weighted loss by itself, and adds to the sum what makes its gradient the projected one.

    That addition is zero in value. It reaches only what is shared: heads get the gradients of their own losses.
    """

    class Config(PluginConfig):
        """Options of PCGrad."""

        on: Literal["parameters", "features"] = Field(
            "parameters",
            description="where gradients are compared and projected: the backbone's parameters, as in the paper, "
            "or the last feature maps, which costs no more passes through the backbone",
        )

    config: Config

    def forward(self, losses: Mapping[str, Tensor], weights: Mapping[str, float], shared: Shared) -> Tensor:
        """The total, a scalar."""
        weighted = [weights[name] * loss for name, loss in losses.items()]
        total = torch.stack(weighted).sum()
        meeting = shared.parameters if self.config.on == "parameters" else shared.features
        if len(weighted) < 2 or not meeting or not all(loss.requires_grad for loss in weighted):
            return total
        correction = self._correction(weighted, meeting)
        return total if correction is None else total + (correction - correction.detach())

    def _correction(self, losses: Sequence[Tensor], meeting: Sequence[Tensor]) -> Tensor | None:
        """A scalar whose gradient is that of the projected sum, less that of the plain sum; None: no conflict."""
        meeting, gradients = gradients_on(losses, meeting)
        if not meeting:
            return None
        if self.config.on == "parameters":
            average([gradients])  # what the optimizer will see: the mean over ranks
        products = gradients @ gradients.T
        average([products])  # features: a rank holds rows of one long vector; parameters: equal already
        count = len(losses)
        orders = broadcast([torch.randperm(count).tolist() for _ in range(count)])  # each rank would draw its own
        factors = project(products.double().cpu(), orders)
        if bool((factors == 1).all()):
            return None
        change = (factors - 1).to(gradients) @ gradients
        parts = change.split([tensor.numel() for tensor in meeting])
        pairs = zip(meeting, parts, strict=True)
        return torch.stack([(tensor * part.view_as(tensor)).sum() for tensor, part in pairs]).sum()


def gradients_on(losses: Sequence[Tensor], meeting: Sequence[Tensor]) -> tuple[list[Tensor], Tensor]:
    """The tensors that any loss reaches, and (losses, their numbers in all) the gradients there, float32."""
    found = [torch.autograd.grad(loss, meeting, retain_graph=True, allow_unused=True) for loss in losses]
    reached = [number for number in range(len(meeting)) if any(row[number] is not None for row in found)]
    tensors = [meeting[number] for number in reached]
    if not tensors:
        return [], torch.empty(len(losses), 0)
    rows = [[torch.zeros_like(meeting[n]) if row[n] is None else row[n] for n in reached] for row in found]
    return tensors, torch.stack([torch.cat([part.reshape(-1).float() for part in row]) for row in rows])


def project(products: Tensor, orders: Sequence[Sequence[int]]) -> Tensor:
    """(n,) the factors with which n gradients add up to the sum of the projected ones (algorithm 1).

    `products` (n, n) are their dot products: a projected gradient is a sum of the gradients, so nothing else is
    needed. `orders` holds, for each, the order in which it meets all (itself is passed over).
    """
    mixtures = torch.eye(len(products), dtype=products.dtype)  # [i]: what the i-th projected gradient is made of
    for mixture, (own, order) in zip(mixtures, enumerate(orders), strict=True):
        for other in order:
            along = mixture @ products[:, other]
            if other != own and along < 0 < products[other, other]:
                mixture[other] -= along / products[other, other]
    return mixtures.sum(dim=0)
