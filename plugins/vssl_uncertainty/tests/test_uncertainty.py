"""Uncertainty weighting where its balance is known, and step by step against plain numbers."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import settings as short
from hypothesis import strategies as st
from pydantic import ValidationError
from torch import nn

import vssl_uncertainty
from vssl_core import Shared
from vssl_core.testing import check_plugin
from vssl_uncertainty.combiner import Uncertainty

SHARED = Shared((), nn.Identity())


def test_it_keeps_the_contract():
    check_plugin("uncertainty")


def build(*names: str, initial: float = 0.0) -> Uncertainty:
    return Uncertainty(Uncertainty.Config(initial=initial), names)


def scalars(**values: float) -> dict[str, torch.Tensor]:
    return {name: torch.tensor(value, requires_grad=True) for name, value in values.items()}


def test_it_starts_as_the_weighted_sum():
    total = build("a", "b")(scalars(a=2.0, b=5.0), {"a": 1.0, "b": 0.5}, SHARED)
    assert total.item() == pytest.approx(2 + 0.5 * 5) and total.ndim == 0


def test_total_and_gradients_by_hand():
    """s = log 2, weights 1 and 3: 4/2 + log 2 + 3 (1/2 + log 2)."""
    combiner, losses = build("a", "b", initial=math.log(2)), scalars(a=4.0, b=1.0)
    total = combiner(losses, {"a": 1.0, "b": 3.0}, SHARED)
    assert total.item() == pytest.approx(4 / 2 + math.log(2) + 3 * (1 / 2 + math.log(2)))
    total.backward()
    assert [losses[name].grad.item() for name in "ab"] == pytest.approx([1 / 2, 3 / 2])
    assert [s.grad.item() for s in combiner.log_variances] == pytest.approx([1 - 4 / 2, 3 * (1 - 1 / 2)])


@given(loss=st.floats(0.05, 50), weight=st.floats(0.1, 10))
@short(max_examples=20, deadline=None)
def test_the_balance_is_the_logarithm_of_the_loss(loss, weight):
    """Newton's method on s alone ends there, at a factor of 1 / L, whatever the weight."""
    combiner = build("a", initial=math.log(loss) - 1)
    (s,) = combiner.log_variances
    for _ in range(8):
        (slope,) = torch.autograd.grad(combiner({"a": torch.tensor(loss)}, {"a": weight}, SHARED), s)
        curvature = weight * loss * math.exp(-s.item())
        s.data -= slope / curvature
    assert s.item() == pytest.approx(math.log(loss), abs=1e-3)
    assert combiner.factors()["a"].item() == pytest.approx(1 / loss, rel=1e-3)


def test_losses_of_any_scale_end_up_pulling_alike():
    """Two quadratics, one in units a thousand times larger, whose noise cannot be learnt: plain descent in floats."""
    combiner, x = build("a", "b"), nn.Parameter(torch.zeros(()))
    optimizer = torch.optim.SGD([x, *combiner.parameters()], lr=0.02)
    place, logs = 0.0, [0.0, 0.0]
    for _ in range(1500):
        losses = {"a": 1000 * ((x - 1).square() + 1), "b": (x + 1).square() + 1}
        slow = [1000 * ((place - 1) ** 2 + 1), (place + 1) ** 2 + 1]
        factors = [math.exp(-s) for s in logs]
        step = factors[0] * 2000 * (place - 1) + factors[1] * 2 * (place + 1)
        if abs(step) > 1:
            step = math.copysign(1, step)
        logs = [s - 0.02 * max(1 - factor * loss, -1) for s, factor, loss in zip(logs, factors, slow, strict=True)]
        place -= 0.02 * step
        optimizer.zero_grad()
        combiner(losses, {"a": 1.0, "b": 1.0}, SHARED).backward()
        for parameter in (x, *combiner.parameters()):
            parameter.grad.clamp_(-1, 1)
        optimizer.step()
    assert [s.item() for s in combiner.log_variances] == pytest.approx(logs, abs=1e-2)
    weighed = [factor * losses[name].item() for name, factor in combiner.factors().items()]
    assert weighed == pytest.approx([1, 1], abs=0.05)


def test_an_objective_that_is_absent_keeps_its_variance():
    combiner = build("a", "b", initial=1.0)
    combiner(scalars(b=3.0), {"a": 0.0, "b": 1.0}, SHARED).backward()
    first, second = combiner.log_variances
    assert first.grad is None and second.grad is not None
    optimizer = torch.optim.SGD(combiner.parameters(), lr=0.1, momentum=0.9, weight_decay=0.1)
    optimizer.step()
    assert first.item() == 1.0 and second.item() != 1.0


def test_log_variances_are_not_decayed():
    """Decay would draw every factor to 1, whatever the loss."""
    combiner = build("a", "b", initial=2.0)
    (group,) = combiner.parameter_groups()
    assert list(group.parameters) == list(combiner.log_variances)
    assert (group.weight_decay, group.learning_rate_scale, group.schedule) == (0.0, 1.0, "run")


def test_plugins_may_be_called_what_they_like():
    names = ("type", "train", "stand-in", "a.b")
    combiner = build(*names)
    total = combiner(dict.fromkeys(names, torch.ones(())), dict.fromkeys(names, 1.0), SHARED)
    assert total.item() == 4 and list(combiner.factors()) == list(names)


def test_factors_are_noted():
    class Run:
        noted: dict = {}
        ensemble = type("Ensemble", (), {"combiner": build("a", initial=math.log(4))})

        def note(self, name, value):
            self.noted[name] = float(value)

    run = Run()
    vssl_uncertainty.vssl_backward_end(run)
    assert run.noted == {"uncertainty/a": pytest.approx(0.25)}


@pytest.mark.parametrize("options", [{"initial": 11}, {"initial": -11}, {"start": 1}])
def test_options_have_bounds(options):
    with pytest.raises(ValidationError):
        Uncertainty.Config(**options)


def test_the_plugin_offers_it():
    assert vssl_uncertainty.vssl_combine() is Uncertainty and "CVPR 2018" in vssl_uncertainty.PAPER
