"""What an objective gave back, looked at before it is trained on; errors name the objective and the shapes it saw."""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor

from vssl_core.errors import VsslError
from vssl_core.objective import Terms, is_scalar
from vssl_core.views import View

ADVICE = "the last checkpoint is untouched: lower optim.lr or the weight of this objective, and start again"
Slots = Mapping[str, tuple[View, ...]]


class ObjectiveError(VsslError):
    """An objective raised, or gave back something that cannot be trained on; the text names it."""


class NonFiniteError(VsslError):
    """A loss or a weight is not a finite number."""


def check_terms(name: str, terms: Terms, slots: Slots, rows: int, trained: bool) -> None:
    """Raise `ObjectiveError` for terms that cannot be used; `trained` ones must depend on a parameter."""
    problem = _problem(terms, rows, trained)
    if problem:
        raise ObjectiveError(f"objective '{name}': {problem} ({seen(slots)})")


def _problem(terms: Terms, rows: int, trained: bool) -> str | None:
    if not isinstance(terms, Terms):
        return f"forward must return vssl_core.Terms, got {type(terms).__name__}"
    for term, loss in terms.losses.items():
        if not is_scalar(loss):
            return f"loss '{term}' must be a scalar tensor, got {kind_of(loss)}; average it"
        if trained and not loss.requires_grad and float(loss) != 0.0:
            return (
                f"loss '{term}' is detached from every parameter; "
                "leave it out while it is not in force, or report it as a metric"
            )
    for term, value in terms.metrics.items():
        if term in terms.losses:
            return f"metric '{term}' has the name of a loss; give it another"
        if not (is_scalar(value) or isinstance(value, int | float)):
            return f"metric '{term}' must be one number, got {kind_of(value)}"
    for key, value in terms.keep.items():
        if not isinstance(value, Tensor) or value.ndim == 0 or len(value) != rows:
            return f"keep '{key}' must have a row for each of the {rows} videos, got {kind_of(value)}"
    return None


def check_finite_terms(name: str, terms: Terms, slots: Slots, step: int) -> None:
    """On a CPU every loss is looked at; elsewhere that would make the device wait, and saving looks at them."""
    for term, loss in terms.losses.items():
        if loss.is_cpu and not math.isfinite(loss.item()):
            raise NonFiniteError(f"step {step}: {name}/{term} = {loss.item()} ({seen(slots)}); {ADVICE}")


def check_finite(values: Mapping[str, Tensor], step: int) -> None:
    """Raise `NonFiniteError` naming the values that are not finite numbers; looks at all of them at once."""
    if not values:
        return
    bad = (~torch.isfinite(torch.stack([value.detach().float() for value in values.values()]))).tolist()
    if any(bad):
        found = [(name, value) for (name, value), is_bad in zip(values.items(), bad, strict=True) if is_bad]
        named = ", ".join(f"{name} = {value.detach().item()}" for name, value in found[:5])
        more = f" and {len(found) - 5} more" if len(found) > 5 else ""
        raise NonFiniteError(f"step {step}: {named}{more}; {ADVICE}")


def kind_of(value: object) -> str:
    """What a value is, for a sentence."""
    return f"shape {tuple(value.shape)}" if isinstance(value, Tensor) else type(value).__name__


def seen(slots: Slots) -> str:
    """The shapes that an objective saw, for a sentence."""
    shapes = {slot: [tuple(view.clip.shape) for view in views] for slot, views in slots.items()}
    return f"it saw clips of shape {shapes}"
