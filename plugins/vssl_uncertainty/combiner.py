"""Losses weighed by learnt log variances."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from pydantic import Field
from torch import Tensor, nn

from vssl_core import Combiner, ParameterGroup, PluginConfig, Shared


class Uncertainty(Combiner):
    """A log variance for each objective, trained with the net: the sum of weight x (exp(-s) loss + s)."""

    class Config(PluginConfig):
        """Options of uncertainty weighting."""

        initial: float = Field(
            0.0, ge=-10, le=10, description="log variances at the start; 0: the total is the weighted sum there"
        )

    def __init__(self, config: Any, names: tuple[str, ...]) -> None:
        super().__init__(config, names)
        # One for each, in the order of the config: one whose loss is absent in a step has no gradient, and stays
        self.log_variances = nn.ParameterList(nn.Parameter(torch.tensor(config.initial)) for _ in names)

    def forward(self, losses: Mapping[str, Tensor], weights: Mapping[str, float], shared: Shared) -> Tensor:
        """The total, a scalar."""
        found = dict(zip(self.names, self.log_variances, strict=True))
        return torch.stack(
            [weights[name] * (torch.exp(-found[name]) * loss + found[name]) for name, loss in losses.items()]
        ).sum()

    def parameter_groups(self) -> Iterable[ParameterGroup]:
        """Log variances are not decayed: that would draw every factor to 1, whatever the loss."""
        return [ParameterGroup(self.log_variances, weight_decay=0.0)]

    def factors(self) -> dict[str, Tensor]:
        """{objective: exp(-s)}, what its loss is multiplied by beside its weight; detached."""
        found = zip(self.names, self.log_variances, strict=True)
        return {name: torch.exp(-log_variance.detach()) for name, log_variance in found}
