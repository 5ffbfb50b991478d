"""SimSiam against a slow reference, its stopped gradient, and the predictor's own learning rate."""

from __future__ import annotations

from copy import deepcopy
from math import sqrt

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError
from torch import Tensor, nn

import vssl_simsiam
from vssl_core import ANY, Batch, ClipSettings, Context, Features, View
from vssl_core.testing import check_plugin
from vssl_simsiam.objective import SimSiam, agreement, spread

FEATURES = 12


def build(features: int = FEATURES, **options: object) -> SimSiam:
    torch.manual_seed(0)
    context = Context(
        name="simsiam",
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
    return SimSiam(SimSiam.Config(**options), context)


def batch_of(maps: Tensor) -> Batch:
    """A batch with these last maps (clips, B, D, T, H, W) as features."""
    views = [View(None, None, None, {}, Features(lambda values=values: {"stage5": values})) for values in maps]
    return Batch(
        "simsiam", {"clips": tuple(views)}, torch.arange(maps.shape[1]), [], epoch=0, progress=0.0, encode=None
    )


def maps(clips: int = 2, videos: int = 6, seed: int = 0) -> Tensor:
    return torch.randn(clips, videos, FEATURES, 2, 3, 3, generator=torch.Generator().manual_seed(seed))


def slow_agreement(predictions: list, targets: list) -> float:
    """The mean cosine in loops, over videos and ordered pairs of different clips."""
    cosines = []
    for predicted, wanted in zip(predictions, targets, strict=True):
        for left, p in enumerate(predicted):
            for right, z in enumerate(wanted):
                if left != right:
                    dot = sum(a * b for a, b in zip(p, z, strict=True))
                    cosines.append(dot / sqrt(sum(a * a for a in p)) / sqrt(sum(b * b for b in z)))
    return sum(cosines) / len(cosines)


@given(videos=st.integers(1, 5), clips=st.integers(2, 4), seed=st.integers(0, 10_000))
@settings(max_examples=25, deadline=None)
def test_it_is_the_mean_cosine_in_loops(videos, clips, seed):
    generator = torch.Generator().manual_seed(seed)
    predictions, targets = torch.randn(2, videos, clips, 5, generator=generator, dtype=torch.float64)
    found = agreement(predictions, targets).item()
    assert found == pytest.approx(slow_agreement(predictions.tolist(), targets.tolist()), rel=1e-9, abs=1e-12)


def test_equal_directions_cost_minus_one_and_opposite_ones_one():
    rows = torch.randn(5, 1, 4).expand(5, 2, 4)
    assert agreement(rows, 3 * rows).item() == pytest.approx(1) and agreement(rows, -rows).item() == pytest.approx(-1)


@pytest.mark.parametrize("clips", [2, 3])
def test_forward_predicts_every_other_clip(clips):
    objective = build(clips=clips, hidden=16)
    views = maps(clips)
    with torch.no_grad():
        plain = deepcopy(objective)
        projected = [plain.projector(view.mean(dim=(2, 3, 4))) for view in views]
        predicted = torch.stack([plain.predictor(rows) for rows in projected], dim=1)
    terms = objective(batch_of(views))
    wanted = slow_agreement(predicted.tolist(), torch.stack(projected, dim=1).tolist())
    assert terms.losses["distance"].item() == pytest.approx(-wanted, rel=1e-5)
    assert 0 < terms.metrics["spread"] < 2


def test_the_gradient_stops_at_the_target():
    objective = build(hidden=16)
    views = maps().requires_grad_()
    loss = objective(batch_of(views)).losses["distance"]
    (found,) = torch.autograd.grad(loss, views)
    objective.zero_grad()
    targets = [objective.projector(view.mean(dim=(2, 3, 4))).detach() for view in views]
    predictions = [objective.predictor(objective.projector(view.mean(dim=(2, 3, 4)))) for view in views]
    slow = (
        -(
            torch.cosine_similarity(predictions[0], targets[1]).mean()
            + torch.cosine_similarity(predictions[1], targets[0]).mean()
        )
        / 2
    )
    torch.testing.assert_close(found, torch.autograd.grad(slow, views)[0], rtol=1e-4, atol=1e-7)


def test_the_spread_tells_collapse():
    rows = torch.randn(512, 64, generator=torch.Generator().manual_seed(0))
    assert spread(rows).item() == pytest.approx(1, abs=0.02)
    assert spread(rows[:1].expand(512, -1)).item() == pytest.approx(0, abs=1e-4)


def test_features_that_are_all_alike_stay_finite():
    objective = build()
    loss = objective(batch_of(torch.ones(2, 4, FEATURES, 1, 1, 1))).losses["distance"]
    loss.backward()
    assert loss.isfinite() and all(p.grad.isfinite().all() for p in objective.parameters())


def test_sizes_follow_the_features_unless_they_are_given():
    def linear(net: nn.Sequential) -> list[int]:
        return [layer.out_features for layer in net if isinstance(layer, nn.Linear)]

    small, paper = build(), build(features=512)
    assert linear(small.projector) == [48, 48, 48] and linear(small.predictor) == [12, 48]
    assert linear(paper.projector) == [2048, 2048, 2048] and linear(paper.predictor) == [512, 2048]
    assert not paper.projector[-1].affine and linear(build(layers=2, projection=8).projector) == [48, 8]


def test_the_predictor_keeps_its_learning_rate_unless_told():
    objective = build()
    (group,) = objective.parameter_groups()
    assert group.schedule == "constant" and group.learning_rate_scale == 1
    assert {id(one) for one in group.parameters} == {id(one) for one in objective.predictor.parameters()}
    assert not list(build(predictor_schedule="run").parameter_groups())


@pytest.mark.slow
def test_three_clips_keep_the_contract():
    check_plugin("simsiam", clips=3)


def test_it_reads_clips_of_any_geometry_with_jittered_colours():
    request = build(clips=3).requests()["clips"]
    assert request.clips == 3 and request.appearance.colour == "jittered" and request.appearance.per is ANY
    assert {request.strides, request.placement, request.boxes, request.flips, request.turns} == {ANY}


@pytest.mark.parametrize(
    "options", [{"hidden": 0}, {"clips": 1}, {"clips": 17}, {"layers": 0}, {"predictor_schedule": "no"}, {"m": 1}]
)
def test_options_have_bounds(options):
    with pytest.raises(ValidationError):
        SimSiam.Config(**options)


def test_the_plugin_offers_it():
    assert vssl_simsiam.vssl_objective() is SimSiam and "CVPR 2021" in vssl_simsiam.PAPER
