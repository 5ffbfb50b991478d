"""What one step gave, as it is announced to every plugin."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from torch import Tensor


@dataclass(frozen=True)
class Report:
    """One optimizer step. Numbers stay tensors on the device: read them only when you write them somewhere."""

    step: int  # counted from 1: steps done
    epoch: int  # from 0
    loss: Tensor  # the weighted total, of this rank
    losses: Mapping[str, Tensor]  # {'stor/space': scalar}
    metrics: Mapping[str, Tensor]  # {'stor/space_accuracy': scalar}
    weights: Mapping[str, float]  # {'stor': mixing weight}
    learning_rate: float
    kept: Mapping[str, Mapping[str, Tensor]] = field(default_factory=dict)  # {objective: {name: (global batch, ...)}}
    index: Tensor | None = None  # (global batch,) the videos, in the order of kept rows
    clips_per_second: float = 0.0  # of this rank
    data_wait: float = 0.0  # share of the step's time spent waiting for data
    gradient_norm: Tensor | None = None  # before clipping, where clipping is on
