"""VICReg against a slow reference in loops, and at its limits."""

from __future__ import annotations

from itertools import combinations
from math import sqrt

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError
from torch import Tensor, nn

import vssl_vicreg
from vssl_core import ANY, Batch, ClipSettings, Context, Features, View
from vssl_core.testing import check_plugin
from vssl_vicreg.objective import VicReg, covariance, deviation, distance

FEATURES = 12


def build(features: int = FEATURES, **options: object) -> VicReg:
    torch.manual_seed(0)
    context = Context(
        name="vicreg",
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
    return VicReg(VicReg.Config(**options), context)


def batch_of(maps: Tensor) -> Batch:
    """A batch with these last maps (clips, B, D, T, H, W) as features."""
    views = [View(None, None, None, {}, Features(lambda values=values: {"stage5": values})) for values in maps]
    return Batch("vicreg", {"clips": tuple(views)}, torch.arange(maps.shape[1]), [], epoch=0, progress=0.0, encode=None)


def maps(clips: int = 2, videos: int = 6, seed: int = 0) -> Tensor:
    return torch.randn(clips, videos, FEATURES, 2, 3, 3, generator=torch.Generator().manual_seed(seed))


def slow_terms(left: list[list[float]], right: list[list[float]]) -> tuple[float, float, float]:
    """(invariance, variance, covariance) of two clips of N videos, as the paper adds them up."""
    rows, features = len(left), len(left[0])
    apart = [(a - b) ** 2 for one, other in zip(left, right, strict=True) for a, b in zip(one, other, strict=True)]
    hinge = beside = 0.0
    for clip in (left, right):
        centred = [[value - sum(column) / rows for value in column] for column in zip(*clip, strict=True)]
        for i, one in enumerate(centred):
            for j, other in enumerate(centred):
                found = sum(a * b for a, b in zip(one, other, strict=True)) / max(rows - 1, 1)
                if i == j:
                    hinge += max(0.0, 1 - sqrt(found + 1e-4)) / features / 2
                else:
                    beside += found**2 / features
    return sum(apart) / len(apart), hinge, beside


@given(rows=st.integers(1, 6), features=st.integers(1, 5), seed=st.integers(0, 10_000))
@settings(max_examples=25, deadline=None)
def test_the_terms_are_those_in_loops(rows, features, seed):
    pair = torch.randn(rows, 2, features, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    found = [distance(pair), torch.relu(1 - deviation(pair)).mean(), 2 * covariance(pair).mean()]
    wanted = slow_terms(pair[:, 0].tolist(), pair[:, 1].tolist())
    assert [term.item() for term in found] == pytest.approx(wanted, rel=1e-9, abs=1e-9)


def test_equal_clips_of_wide_independent_features_cost_nothing():
    rows = 2 * torch.tensor([[1.0, 1.0], [1.0, -1.0], [-1.0, 1.0], [-1.0, -1.0]])[:, None].expand(4, 2, 2)
    assert distance(rows) == 0 and covariance(rows).sum() == 0 and torch.relu(1 - deviation(rows)).sum() == 0


def test_collapse_costs_the_whole_hinge():
    rows = torch.ones(5, 2, 3, requires_grad=True)
    found = torch.relu(1 - deviation(rows)).mean()
    found.backward()
    assert found.item() == pytest.approx(0.99) and rows.grad.isfinite().all()


def test_its_gradient_is_the_numeric_one():
    pair = torch.randn(5, 2, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0)).requires_grad_()
    assert torch.autograd.gradcheck(lambda rows: distance(rows) + deviation(rows).sum() + covariance(rows).sum(), pair)


@pytest.mark.parametrize("clips", [2, 3])
def test_forward_is_the_mean_over_pairs(clips):
    weights = {"invariance": 2.0, "variance": 3.0, "covariance": 5.0}
    objective = build(clips=clips, hidden=10, projection=4, **weights)
    views = maps(clips)
    with torch.no_grad():
        expanded = [objective.expander(view.mean(dim=(2, 3, 4))).tolist() for view in views]
    terms = objective(batch_of(views))
    found = [slow_terms(left, right) for left, right in combinations(expanded, 2)]
    for name, parts in zip(weights, zip(*found, strict=True), strict=True):
        assert terms.losses[name].item() == pytest.approx(weights[name] * sum(parts) / len(found), rel=1e-4)


def test_half_precision_around_it_does_not_reach_the_covariance():
    rows = torch.randn(6, 2, 8)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        within = covariance(rows)
    assert torch.equal(within, covariance(rows))


def test_sizes_follow_the_features_unless_they_are_given():
    def linear(net: nn.Sequential) -> list[int]:
        return [layer.out_features for layer in net if isinstance(layer, nn.Linear)]

    assert linear(build().expander) == [48, 48, 48]
    assert linear(build(layers=2, hidden=20, projection=8).expander) == [20, 8]


@pytest.mark.slow
def test_three_clips_keep_the_contract():
    check_plugin("vicreg", clips=3)


def test_it_reads_clips_of_any_geometry_with_jittered_colours():
    request = build(clips=3).requests()["clips"]
    assert request.clips == 3 and request.appearance.colour == "jittered" and request.appearance.per is ANY
    assert {request.strides, request.placement, request.boxes, request.flips, request.turns} == {ANY}


@pytest.mark.parametrize("options", [{"variance": -1}, {"clips": 1}, {"clips": 17}, {"layers": 0}, {"mu": 1}])
def test_options_have_bounds(options):
    with pytest.raises(ValidationError):
        VicReg.Config(**options)


def test_the_plugin_offers_it():
    assert vssl_vicreg.vssl_objective() is VicReg and "ICLR 2022" in vssl_vicreg.PAPER
