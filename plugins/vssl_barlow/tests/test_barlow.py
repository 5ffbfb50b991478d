"""Barlow Twins against a slow reference in loops, and at its limits."""

from __future__ import annotations

from itertools import combinations
from math import sqrt

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError
from torch import Tensor, nn

import vssl_barlow
from vssl_barlow.objective import BarlowTwins, correlation, on_and_off, standardised
from vssl_core import ANY, Batch, ClipSettings, Context, Features, View
from vssl_core.testing import check_plugin

FEATURES = 12


def build(features: int = FEATURES, **options: object) -> BarlowTwins:
    torch.manual_seed(0)
    context = Context(
        name="barlow",
        clip=ClipSettings(8, 16, 1),
        backbone=nn.Identity(),
        feature_dim=features,
        stages={},
        videos=40,
        epochs=2,
        steps_per_epoch=10,
        batch_size=6,
        world_size=1,
    )
    return BarlowTwins(BarlowTwins.Config(**options), context)


def batch_of(maps: Tensor) -> Batch:
    """A batch with these last maps (clips, B, D, T, H, W) as features."""
    views = [View(None, None, None, {}, Features(lambda values=values: {"stage5": values})) for values in maps]
    return Batch("barlow", {"clips": tuple(views)}, torch.arange(maps.shape[1]), [], epoch=0, progress=0.0, encode=None)


def maps(clips: int = 2, videos: int = 6, seed: int = 0) -> Tensor:
    return torch.randn(clips, videos, FEATURES, 2, 3, 3, generator=torch.Generator().manual_seed(seed))


def slow_terms(left: list[list[float]], right: list[list[float]]) -> tuple[float, float]:
    """Both terms in loops: (diagonal, beside it)."""

    def standard(rows: list[list[float]]) -> list[list[float]]:
        columns = []
        for column in zip(*rows, strict=True):
            average = sum(column) / len(column)
            variance = sum((value - average) ** 2 for value in column) / len(column)
            columns.append([(value - average) / sqrt(variance + 1e-5) for value in column])
        return columns

    on = beside = 0.0
    for i, one in enumerate(standard(left)):
        for j, other in enumerate(standard(right)):
            found = sum(a * b for a, b in zip(one, other, strict=True)) / len(left)
            on, beside = (on + (1 - found) ** 2, beside) if i == j else (on, beside + found**2)
    return on, beside


@given(rows=st.integers(1, 6), features=st.integers(1, 5), seed=st.integers(0, 10_000))
@settings(max_examples=25, deadline=None)
def test_both_terms_are_those_in_loops(rows, features, seed):
    left, right = torch.randn(2, rows, features, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    found = on_and_off(correlation(standardised(left), standardised(right)))
    assert [term.item() for term in found] == pytest.approx(
        slow_terms(left.tolist(), right.tolist()), rel=1e-9, abs=1e-9
    )


def test_twins_of_independent_features_cost_nothing():
    rows = torch.tensor([[1.0, 1.0], [1.0, -1.0], [-1.0, 1.0], [-1.0, -1.0]])
    on, beside = on_and_off(correlation(standardised(rows), standardised(5 * rows + 3)))
    assert on.item() == pytest.approx(0, abs=1e-8) and beside.item() == pytest.approx(0, abs=1e-8)
    copies = standardised(rows[:, :1].expand(4, 3))
    on, beside = on_and_off(correlation(copies, copies))  # one feature three times
    assert on.item() == pytest.approx(0, abs=1e-8) and beside.item() == pytest.approx(6, rel=1e-3)


def test_its_gradient_is_the_numeric_one():
    pair = torch.randn(2, 5, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0)).requires_grad_()

    def total(rows: Tensor) -> Tensor:
        on, beside = on_and_off(correlation(standardised(rows[0]), standardised(rows[1])))
        return on + beside

    assert torch.autograd.gradcheck(total, pair)


@pytest.mark.parametrize("clips", [2, 3])
def test_forward_is_the_mean_over_pairs(clips):
    objective = build(clips=clips, hidden=10, projection=4, redundancy=0.3, scale=1.0)
    views = maps(clips)
    with torch.no_grad():
        projected = [objective.projector(view.mean(dim=(2, 3, 4))).tolist() for view in views]
    terms = objective(batch_of(views))
    found = [slow_terms(left, right) for left, right in combinations(projected, 2)]
    on, beside = (sum(parts) / len(found) for parts in zip(*found, strict=True))
    assert terms.losses["invariance"].item() == pytest.approx(on, rel=1e-4)
    assert terms.losses["redundancy"].item() == pytest.approx(0.3 * beside, rel=1e-4)


def test_the_size_of_the_loss_does_not_grow_with_the_features_unless_told():
    views, losses = maps(), {}
    for scale in (None, 1.0, 0.25):
        losses[scale] = sum(build(hidden=10, projection=8, scale=scale)(batch_of(views)).losses.values()).item()
    assert losses[1.0] == pytest.approx(8 * losses[None]) == pytest.approx(4 * losses[0.25])


def test_rows_that_are_all_alike_stay_finite():
    objective = build()
    terms = objective(batch_of(torch.ones(2, 4, FEATURES, 1, 1, 1)))
    sum(terms.losses.values()).backward()
    assert terms.losses["invariance"].item() == pytest.approx(1) and terms.losses["redundancy"] == 0
    assert all(p.grad.isfinite().all() for p in objective.parameters())


def test_half_precision_around_it_does_not_reach_the_correlation():
    rows = torch.randn(6, 8)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        within = correlation(rows, rows)
    assert torch.equal(within, correlation(rows, rows))


def test_sizes_follow_the_features_unless_they_are_given():
    def linear(net: nn.Sequential) -> list[int]:
        return [layer.out_features for layer in net if isinstance(layer, nn.Linear)]

    assert linear(build().projector) == [48, 48, 48]
    assert linear(build(layers=2, hidden=20, projection=8).projector) == [20, 8]


@pytest.mark.slow
def test_three_clips_keep_the_contract():
    check_plugin("barlow", clips=3)


def test_it_reads_clips_of_any_geometry_with_jittered_colours():
    request = build(clips=3).requests()["clips"]
    assert request.clips == 3 and request.appearance.colour == "jittered" and request.appearance.per is ANY
    assert {request.strides, request.placement, request.boxes, request.flips, request.turns} == {ANY}


@pytest.mark.parametrize(
    "options", [{"redundancy": -1}, {"scale": 0}, {"clips": 1}, {"clips": 17}, {"layers": 0}, {"lambd": 1}]
)
def test_options_have_bounds(options):
    with pytest.raises(ValidationError):
        BarlowTwins.Config(**options)


def test_the_plugin_offers_it():
    assert vssl_barlow.vssl_objective() is BarlowTwins and "ICML 2021" in vssl_barlow.PAPER
