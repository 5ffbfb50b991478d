"""What one step gave, as it is announced to every plugin."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property

import torch
from torch import Tensor

from vssl_core.distributed import average, gather_kept
from vssl_core.run.ensemble import StepOutput
from vssl_core.run.terms import ObjectiveError


@dataclass(frozen=True)
class Report:
    """One optimizer step. Numbers stay tensors on the device: read them only when you write them somewhere.

    Losses and metrics are means over the microbatches of the step, and on logged steps over all ranks.
    """

    step: int  # counted from 1: steps done
    epoch: int  # from 0
    loss: Tensor  # the weighted total
    losses: Mapping[str, Tensor]  # {'stor/space': scalar}
    metrics: Mapping[str, Tensor]  # {'stor/space_accuracy': scalar}
    weights: Mapping[str, float]  # {'stor': mixing weight}
    learning_rate: float
    index: Tensor  # (global batch,) the videos that were read, rank by rank
    kept: Mapping[str, Mapping[str, Tensor]] = field(default_factory=dict)  # {objective: {name: (global batch, ...)}}
    clips_per_second: float = 0.0  # of this rank
    data_wait: float = 0.0  # share of the step's time spent waiting for data
    gradient_norm: Tensor | None = None  # before clipping, where clipping is on

    @cached_property
    def numbers(self) -> dict[str, float]:
        """Everything that is logged, read from the device in one go; waits for it."""
        tensors = {"loss": self.loss, **self.losses, **self.metrics}
        if self.gradient_norm is not None:
            tensors["gradient_norm"] = self.gradient_norm
        read = torch.stack([value.detach().float() for value in tensors.values()]).tolist()
        return {
            **dict(zip(tensors, read, strict=True)),
            **{f"weight/{name}": weight for name, weight in self.weights.items()},
            "lr": self.learning_rate,
            "clips_per_second": self.clips_per_second,
            "data_wait": self.data_wait,
        }


@dataclass(frozen=True)
class Merged:
    """The microbatches of one step as one."""

    loss: Tensor
    losses: dict[str, Tensor]
    metrics: dict[str, Tensor]
    kept: dict[str, dict[str, Tensor]]
    index: Tensor


def merge(outputs: Sequence[StepOutput], index: Tensor, over_ranks: bool) -> Merged:
    """Means of losses and metrics, kept rows joined in global batch order; `over_ranks` also averages the means."""
    first = outputs[0]
    for output in outputs[1:]:
        _refuse_other_terms(first, output)
    losses = _means([output.losses for output in outputs])
    metrics = _means([output.metrics for output in outputs])
    loss = _means([{"loss": output.total.detach().float()} for output in outputs])["loss"]
    if over_ranks:
        loss, losses, metrics = loss.clone(), _copies(losses), _copies(metrics)  # a plugin may hold on to its own
        average([loss, *losses.values(), *metrics.values()])
    kept = {
        name: gather_kept({key: torch.cat([output.kept[name][key] for output in outputs]) for key in rows})
        for name, rows in first.kept.items()
    }
    return Merged(loss, losses, metrics, kept, gather_kept({"index": index})["index"])


def _means(pieces: Sequence[dict[str, Tensor]]) -> dict[str, Tensor]:
    if len(pieces) == 1:
        return pieces[0]
    return {name: torch.stack([piece[name] for piece in pieces]).mean() for name in pieces[0]}


def _copies(values: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in values.items()}


def _refuse_other_terms(first: StepOutput, other: StepOutput) -> None:
    for kind in ("losses", "metrics"):
        changing = set(getattr(first, kind)) ^ set(getattr(other, kind))
        if changing:
            raise ObjectiveError(
                f"objective '{min(changing).partition('/')[0]}': '{min(changing)}' is in one microbatch of a "
                "step and not in "
                "another; whether a term is there may depend on the epoch, never on the clips (mean() may be empty)"
            )
