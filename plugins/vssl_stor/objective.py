"""Overlap rates of a pair of clips: the labels read off the windows that were cut, and the two heads that tell them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, Any

import torch
import torch.nn.functional as F
from pydantic import AfterValidator, BeforeValidator, Field, model_validator
from torch import Tensor, nn

from vssl_core import (
    ANY,
    Batch,
    Boxes,
    Context,
    Objective,
    Overlapping,
    PluginConfig,
    Request,
    Strides,
    Terms,
    View,
    mlp,
)

if TYPE_CHECKING:
    from vssl_core import Shot


def _spell_out(value: Any) -> Any:
    """A whole number n stands for the n rates 1/n, 2/n, ..., 1."""
    return [round(number / value, 4) for number in range(1, value + 1)] if type(value) is int else value


def _ascending(rates: tuple[float, ...]) -> tuple[float, ...]:
    if not 2 <= len(set(rates)) == len(rates) <= 7:
        raise ValueError("needs from two to seven different rates")
    if not all(0 < rate <= 1 for rate in rates):
        raise ValueError("a rate is a share above 0 and at most 1")
    return tuple(sorted(rates))


Rates = Annotated[tuple[float, ...], BeforeValidator(_spell_out), AfterValidator(_ascending)]


class Stor(Objective):
    """Two classifiers on the features of a pair: which rate of their area, and of their span, the two clips share."""

    class Config(PluginConfig):
        """Which rates are told apart, in space and in time, and by what heads."""

        rates: Rates = Field(
            (0.2, 0.4, 0.6, 0.8, 1.0), description="candidate overlap rates; a whole number n is 1/n, 2/n, ..., 1"
        )
        spatial_rates: Rates | None = Field(None, description="candidates in space; null is `rates`")
        temporal_rates: Rates | None = Field(None, description="candidates in time; null is `rates`")
        spatial: bool = Field(True, description="tell the overlap in space")
        temporal: bool = Field(True, description="tell the overlap in time")
        spatial_weight: float = Field(1.0, gt=0, description="weight of the spatial loss, the paper's l_s")
        temporal_weight: float = Field(1.0, gt=0, description="weight of the temporal loss, the paper's l_t")
        layers: int = Field(2, ge=1, le=3, description="linear layers of each head")
        hidden: int | None = Field(
            None, ge=1, description="width of a head's hidden layers; null is that of its input, twice the backbone's"
        )

        @model_validator(mode="after")
        def _used(self) -> Stor.Config:
            if not (self.spatial or self.temporal):
                raise ValueError("spatial and temporal are both off, so there is nothing to learn; switch one on")
            if self.layers == 1 and self.hidden is not None:
                raise ValueError("hidden has no effect with layers: 1; remove it")
            if self.rates != type(self).model_fields["rates"].default and self._rates_unused():
                raise ValueError("rates has no effect beside spatial_rates and temporal_rates; remove it")
            for switch in ("spatial", "temporal"):
                for key in (f"{switch}_rates", f"{switch}_weight"):
                    if not getattr(self, switch) and getattr(self, key) != type(self).model_fields[key].default:
                        raise ValueError(f"{key} has no effect with {switch}: false; remove it")
            return self

        def _rates_unused(self) -> bool:
            return not (self.spatial and self.spatial_rates is None or self.temporal and self.temporal_rates is None)

    def __init__(self, config: Config, context: Context) -> None:
        super().__init__(config, context)
        self.candidates: dict[str, tuple[float, ...]] = {}
        if config.spatial:
            self.candidates["space"] = config.spatial_rates or config.rates
        if config.temporal:
            self.candidates["time"] = config.temporal_rates or config.rates
        self.weights = {"space": config.spatial_weight, "time": config.temporal_weight}
        pair = 2 * context.feature_dim
        hidden = [config.hidden or pair] * (config.layers - 1)
        self.heads = nn.ModuleDict({name: mlp(pair, *hidden, len(rates)) for name, rates in self.candidates.items()})

    def requests(self) -> Mapping[str, Request]:
        """A pair that overlaps in what is told; of all else, whatever the neighbours need."""
        space, time = self.candidates.get("space"), self.candidates.get("time")
        return {
            "pair": Request(
                clips=2,
                strides=Strides(shared=True, short="fit")
                if time
                else ANY,  # one span, without a seam, to share a part of
                placement=Overlapping(time) if time else ANY,
                boxes=Boxes(layout=Overlapping(space)) if space else ANY,
                flips=ANY,
                turns=ANY,
                appearance=ANY,
            )
        }

    def forward(self, batch: Batch) -> Terms:
        """Cross-entropy of each rate, and how often it was told right."""
        left, right = batch["pair"]
        pair = torch.cat([left.features.vector, right.features.vector], dim=1)  # (B, 2D)
        losses, metrics = {}, {}
        for name, labels in self.labels(left, right).items():
            logits = self.heads[name](pair).float()  # (B, rates)
            losses[name] = self.weights[name] * F.cross_entropy(logits, labels)
            metrics[f"{name}_accuracy"] = (logits.argmax(dim=1) == labels).float().mean()
        return Terms(losses, metrics)

    def labels(self, left: View, right: View) -> dict[str, Tensor]:
        """{"space": (B,), "time": (B,)}: the nearest candidate, ascending from 0, to the overlap that was cut."""
        shares = {"space": left.windows.shared_area, "time": left.windows.shared_time}
        return {name: _nearest(shares[name](right.windows), rates) for name, rates in self.candidates.items()}

    def pictures(self, batch: Batch, shots: Mapping[str, tuple[Shot, ...]]) -> Mapping[str, Any]:
        """Both boxes on the frame, both spans on a line of time, and the rates that were told."""
        from vssl_stor.pictures import draw

        left, right = batch["pair"]
        told = {name: self.candidates[name][int(label[0])] for name, label in self.labels(left, right).items()}
        shares = {"space": left.windows.shared_area, "time": left.windows.shared_time}
        return {
            "overlap": draw(shots["pair"], told, {name: float(of(right.windows)[0]) for name, of in shares.items()})
        }


def _nearest(shares: Tensor, rates: tuple[float, ...]) -> Tensor:
    distances = torch.stack([(shares - rate).abs() for rate in rates], dim=1)  # (B,) -> (B, rates)
    return distances.argmin(dim=1)
