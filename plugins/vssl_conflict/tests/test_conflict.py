"""The conflict observer where angles are known, against a slow reference, and in a run's steps."""

from __future__ import annotations

import math
from types import SimpleNamespace

import pytest
import torch
from hypothesis import given
from hypothesis import settings as short
from hypothesis import strategies as st
from pydantic import ValidationError
from torch import nn

import vssl_conflict
from vssl_conflict.observer import Conflict, dot_products, is_due, summary
from vssl_core import Shared, rank
from vssl_core.testing import check_plugin, on_ranks


def test_it_keeps_the_contract():
    check_plugin("conflict", every=2)


class Steps:
    """What the observer reads of a run, and what it notes there."""

    def __init__(self, logged: int = 1) -> None:
        self.step, self.noted = 0, {}
        self.config = SimpleNamespace(log=SimpleNamespace(every_steps=logged))

    def note(self, name, value):
        self.noted.setdefault(self.step, []).append((name, float(value)))


def shared(*features):
    return Shared(features, nn.Identity())


@pytest.mark.parametrize("degrees", [0, 30, 60, 90, 120, 180])
def test_two_linear_losses_at_a_known_angle(degrees):
    """Gradients of lengths 1 and 3 x 2, this far apart."""
    angle = math.radians(degrees)
    x = torch.randn(2, 1, 1, 1, 1, requires_grad=True)
    first = (torch.tensor([1.0, 0.0]) * x.flatten()).sum()
    second = 2 * (torch.tensor([math.cos(angle), math.sin(angle)]) * x.flatten()).sum()
    run = Steps()
    Conflict(Conflict.Config(), "conflict").vssl_forward_end(
        run, {"a": first, "b": second}, {"a": 1.0, "b": 3.0}, shared(x)
    )
    noted = dict(run.noted[0])
    assert list(noted) == ["conflict/cosine/a+b", "conflict/share/a", "conflict/share/b"]
    assert noted["conflict/cosine/a+b"] == pytest.approx(math.cos(angle), abs=1e-6)
    assert noted["conflict/share/a"] == pytest.approx(1 / 7) and noted["conflict/share/b"] == pytest.approx(6 / 7)
    assert x.grad is None  # nothing is left behind


@given(count=st.integers(1, 4), seed=st.integers(0, 1000))
@short(max_examples=20, deadline=None)
def test_all_pairs_against_loops(count, seed):
    """Losses on two maps; each reads what it likes of them."""
    draw = torch.Generator().manual_seed(seed)
    maps = [torch.randn(3, 2, 1, 2, 2, generator=draw, requires_grad=True) for _ in range(2)]
    slopes = torch.randn(count, 2, maps[0].numel(), generator=draw)
    slopes[0, 1] = 0
    losses = [sum((slope * part.flatten()).sum() for slope, part in zip(row, maps, strict=True)) for row in slopes]
    found = summary([str(number) for number in range(count)], dot_products(losses, maps))
    vectors = slopes.flatten(1).tolist()
    lengths = [math.sqrt(sum(value**2 for value in vector)) for vector in vectors]
    for a in range(count):
        assert found[f"share/{a}"].item() == pytest.approx(lengths[a] / sum(lengths), rel=1e-4)
        for b in range(a + 1, count):
            product = sum(left * right for left, right in zip(vectors[a], vectors[b], strict=True))
            assert found[f"cosine/{a}+{b}"].item() == pytest.approx(product / lengths[a] / lengths[b], abs=1e-5)
    assert len(found) == count + count * (count - 1) // 2


def test_a_loss_that_does_not_reach_the_features_has_no_share():
    x, elsewhere = torch.ones(2, 3, 1, 1, 1, requires_grad=True), torch.ones(1, requires_grad=True)
    products = dot_products([x.sum(), elsewhere.sum(), torch.ones(())], [x])
    found = {name: value.item() for name, value in summary(("a", "b", "c"), products).items()}
    assert found == {"cosine/a+b": 0, "cosine/a+c": 0, "cosine/b+c": 0, "share/a": 1, "share/b": 0, "share/c": 0}
    nothing = summary(("a", "b"), torch.zeros(2, 2))
    assert all(value == 0 for value in nothing.values())


def test_only_the_first_microbatch_of_a_measured_step():
    x, run = torch.ones(1, 1, 1, 1, 1, requires_grad=True), Steps()
    observer = Conflict(Conflict.Config(every=3), "conflict")
    for step in range(7):
        run.step = step
        for factor in (1.0, -1.0):
            losses = {"a": x.sum(), "b": factor * x.sum()}
            observer.vssl_forward_end(run, losses, {"a": 1.0, "b": 1.0}, shared(x))
    assert sorted(run.noted) == [0, 3, 6]
    assert all(len(noted) == 3 and noted[0][1] == pytest.approx(1) for noted in run.noted.values())


def test_nothing_to_measure_is_no_error():
    run, observer = Steps(), Conflict(Conflict.Config(every=1), "conflict")
    observer.vssl_forward_end(run, {}, {}, shared(torch.ones(1, 1, 1, 1, 1, requires_grad=True)))
    run.step = 1
    observer.vssl_forward_end(run, {"a": torch.ones((), requires_grad=True)}, {"a": 1.0}, shared())
    assert not run.noted


@given(every=st.integers(1, 30), logged=st.integers(1, 30))
@short(max_examples=50, deadline=None)
def test_measured_steps_are_logged_and_none_is_forgotten(every, logged):
    """For each multiple of `every` the first logged step from there on; a step may stand for several multiples."""
    wanted = set()
    for multiple in range(0, 200, every):
        step = multiple
        while (step + 1) % logged:
            step += 1
        wanted.add(step)
    assert {step for step in range(200) if is_due(step, every, logged)} == {step for step in wanted if step < 200}


def half() -> dict[str, float]:
    """What one of two ranks notes; the second loss reaches the features on the second alone."""
    slopes, elsewhere = torch.randn(2, 4, 3, generator=torch.Generator().manual_seed(5)), torch.ones(1)
    rows = torch.zeros(2, 3, requires_grad=True)
    mine = slopes.chunk(2, dim=1)[rank()]
    losses = [(mine[0] * rows).sum() / 2, (mine[1] * rows).sum() / 2 if rank() else elsewhere.requires_grad_().sum()]
    return {name: value.item() for name, value in summary(("a", "b"), dot_products(losses, [rows])).items()}


def test_two_ranks_note_what_one_would():
    """All rows together."""
    slopes = torch.randn(2, 4, 3, generator=torch.Generator().manual_seed(5))
    slopes[1, :2] = 0
    rows = torch.zeros(4, 3, requires_grad=True)
    whole = summary(("a", "b"), dot_products([(slope * rows).mean(1).mean() * 3 for slope in slopes], [rows]))
    for found in on_ranks(2, half):
        assert found == pytest.approx({name: value.item() for name, value in whole.items()}, abs=1e-6)


@pytest.mark.parametrize("options", [{"every": 0}, {"evry": 1}])
def test_options_have_bounds(options):
    with pytest.raises(ValidationError):
        Conflict.Config(**options)


def test_the_plugin_offers_it():
    assert vssl_conflict.vssl_observer() is Conflict and "NeurIPS 2020" in vssl_conflict.PAPER
