"""The angles between objectives' gradients on the shared features, and the lengths of these gradients."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import combinations
from typing import Any

import torch
from pydantic import Field
from torch import Tensor

from vssl_core import Observer, PluginConfig, Run, Shared, average, hookimpl


class Conflict(Observer):
    """Differentiates each weighted loss by itself, every so many steps, and notes cosines and shares of length."""

    class Config(PluginConfig):
        """Options of the observer."""

        every: int = Field(200, ge=1, le=10**9, description="steps from one measurement to the next")

    def __init__(self, config: Any, name: str) -> None:
        super().__init__(config, name)
        self._measured: int | None = None  # the step that was measured last

    @hookimpl
    def vssl_forward_end(
        self, run: Run, losses: Mapping[str, Tensor], weights: Mapping[str, float], shared: Shared
    ) -> None:
        """Measure the step's first microbatch, where the step is one of those that are measured."""
        if run.step == self._measured or not is_due(run.step, self.config.every, run.config.log.every_steps):
            return
        self._measured = run.step
        if losses and shared.features:
            products = dot_products([weights[name] * loss for name, loss in losses.items()], shared.features)
            for name, value in summary(tuple(losses), products).items():
                run.note(f"{self.name}/{name}", value)


def is_due(step: int, every: int, logged: int) -> bool:
    """Whether a step, counted from 0, is measured: the first that is logged since a multiple of `every`.

    What is noted in a step that is not logged would be lost. Where each is logged, these are the multiples.
    """
    return (step + 1) % logged == 0 and step // every > (step - logged) // every


def dot_products(losses: Sequence[Tensor], features: Sequence[Tensor]) -> Tensor:
    """(losses, losses) the dot products of their gradients on `features`, all ranks' rows together.

    Up to a factor that is common to all. A loss that does not reach the features has a gradient of zero. Every rank
    takes part, whatever it finds.
    """
    rows = torch.stack([_gradient(loss, features) for loss in losses])  # (losses, all numbers of the features)
    with torch.autocast(rows.device.type, enabled=False):
        products = rows @ rows.T
    average([products])
    return products


def _gradient(loss: Tensor, features: Sequence[Tensor]) -> Tensor:
    if not loss.requires_grad:
        return torch.zeros(sum(part.numel() for part in features), device=features[0].device)
    found = torch.autograd.grad(loss, features, retain_graph=True, allow_unused=True)
    return torch.cat(
        [
            (torch.zeros_like(part) if gradient is None else gradient).reshape(-1).float()
            for part, gradient in zip(features, found, strict=True)
        ]
    )


def summary(names: Sequence[str], products: Tensor) -> dict[str, Tensor]:
    """{'cosine/a+b': of each pair, 'share/a': of the sum of lengths}; 0 where a gradient is zero."""
    lengths = products.diagonal().sqrt()
    tiny = torch.finfo(products.dtype).tiny
    shares = lengths / lengths.sum().clamp(min=tiny)
    units = torch.where(lengths > 0, 1 / lengths, torch.zeros_like(lengths))
    cosines = (products * units * units[:, None]).clamp(-1, 1)
    pairs = {f"cosine/{names[a]}+{names[b]}": cosines[a, b] for a, b in combinations(range(len(names)), 2)}
    return {**pairs, **{f"share/{name}": share for name, share in zip(names, shares, strict=True)}}
