"""BYOL against a slow reference, the bounds of its loss, and the exactness of its teacher."""

from __future__ import annotations

from copy import deepcopy
from math import cos, pi, sqrt
from types import SimpleNamespace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError
from torch import Tensor

import vssl_byol
from vssl_byol.objective import Byol, cosines, distance, spread
from vssl_core import ANY, Batch, ClipSettings, Context, Features, View, build_backbone
from vssl_core.plugins import new_manager
from vssl_core.testing import check_plugin

FRAMES, SIZE, VIDEOS = 8, 16, 4


def build(seed: int = 0, **options: object) -> Byol:
    torch.manual_seed(seed)
    backbone = build_backbone("tiny")
    context = Context(
        name="byol",
        clip=ClipSettings(FRAMES, SIZE, 1),
        backbone=backbone,
        feature_dim=backbone.feature_dim,
        stages={},
        videos=40,
        epochs=2,
        steps_per_epoch=10,
        batch_size=VIDEOS,
        world_size=1,
    )
    return Byol(Byol.Config(**options), context)


def clips(seed: int = 0, videos: int = VIDEOS, count: int = 2) -> tuple[Tensor, ...]:
    return torch.randn(count, videos, 3, FRAMES, SIZE, SIZE, generator=torch.Generator().manual_seed(seed)).unbind()


def batch_of(objective: Byol, pair: tuple[Tensor, ...]) -> Batch:
    """A batch whose features come from the backbone that is trained."""
    backbone = objective.context.backbone
    views = [View(clip, clip[:, :, :0], None, {}, Features(lambda clip=clip: backbone(clip))) for clip in pair]
    return Batch("byol", {"clips": tuple(views)}, torch.arange(len(pair[0])), [], epoch=0, progress=0.0, encode=None)


def run_of(objective: Byol, progress: float = 0.0) -> SimpleNamespace:
    """What the objective reads of a run."""
    return SimpleNamespace(backbone=objective.context.backbone, progress=progress)


def disturb(module: torch.nn.Module, seed: int = 1) -> None:
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter += 0.1 * torch.randn(parameter.shape, generator=generator)


# The loss -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("pairs", [2, 6])
def test_equal_directions_cost_nothing_opposite_ones_eight(pairs):
    ones = torch.ones(5, pairs)
    assert distance(ones) == 0 and distance(-ones) == 8 and distance(0 * ones) == 4


@given(clips=st.integers(2, 4), seed=st.integers(0, 10_000))
@settings(max_examples=20, deadline=None)
def test_it_is_the_squared_distance_of_unit_vectors(clips, seed):
    predictions, targets = torch.randn(2, 3, clips, 6, generator=torch.Generator().manual_seed(seed))
    slow = [
        float((p / p.norm() - t / t.norm()).square().sum())
        for predicted, wanted in zip(predictions, targets, strict=True)
        for mine, p in enumerate(predicted)
        for theirs, t in enumerate(wanted)
        if mine != theirs
    ]
    found = distance(cosines(predictions, targets)).item()
    assert found == pytest.approx(2 * sum(slow) / len(slow), rel=1e-4) and 0 <= found <= 8
    if clips == 2:  # as published: both directions of each video are added
        assert found == pytest.approx(sum(slow) / 3, rel=1e-4)


@pytest.mark.parametrize("count", [2, 3])
def test_forward_is_the_plain_computation_of_every_direction(count):
    objective = build(hidden=16, projection=6, clips=count)
    disturb(objective.projector)  # the teacher differs from the online net
    shown = clips(count=count)
    online = deepcopy(torch.nn.ModuleList([objective.context.backbone, objective.projector, objective.predictor]))
    teacher = deepcopy(torch.nn.ModuleList([objective.teacher.backbone, objective.teacher.projector]))
    predictions = [online[2](online[1](online[0](clip)["stage5"].mean(dim=(2, 3, 4)))) for clip in shown]
    targets = [teacher[1](teacher[0](clip)["stage5"].mean(dim=(2, 3, 4))) for clip in shown]
    apart = []
    for video in range(VIDEOS):
        for mine in range(count):
            for theirs in range(count):
                if mine != theirs:
                    p, t = predictions[mine][video].tolist(), targets[theirs][video].tolist()
                    dot = sum(a * b for a, b in zip(p, t, strict=True))
                    apart.append(2 - 2 * dot / sqrt(sum(a * a for a in p)) / sqrt(sum(b * b for b in t)))
    terms = objective(batch_of(objective, shown))
    mean = sum(apart) / len(apart)
    assert terms.losses["distance"].item() == pytest.approx(2 * mean, rel=1e-4)
    assert terms.metrics["cosine"].item() == pytest.approx(1 - mean / 2, rel=1e-3)


def test_every_clip_is_seen_once_by_each_net():
    objective, seen = build(clips=3), []
    for name, net in (("online", objective.context.backbone), ("teacher", objective.teacher.backbone)):
        net.register_forward_hook(lambda *_, name=name: seen.append(name))
    objective(batch_of(objective, clips(count=3)))
    assert sorted(seen) == ["online"] * 3 + ["teacher"] * 3


def test_gradients_reach_all_that_is_trained_and_nothing_of_the_teacher():
    objective = build()
    objective(batch_of(objective, clips())).losses["distance"].backward()
    trained = [
        *objective.context.backbone.parameters(),
        *objective.projector.parameters(),
        *objective.predictor.parameters(),
    ]
    assert all(parameter.grad is not None and parameter.grad.isfinite().all() for parameter in trained)
    assert any(parameter.grad.any() for parameter in objective.context.backbone.parameters())
    assert all(parameter.grad is None and not parameter.requires_grad for parameter in objective.teacher.parameters())


def test_forward_changes_nothing_but_running_statistics():
    objective = build()
    before = deepcopy(objective.state_dict())
    objective(batch_of(objective, clips()))
    changed = {name for name, value in objective.state_dict().items() if not torch.equal(value, before[name])}
    assert changed and all(name.endswith(("running_mean", "running_var", "num_batches_tracked")) for name in changed)


def test_it_stays_finite_for_features_that_are_all_alike():
    objective = build()
    one = torch.zeros(VIDEOS, 3, FRAMES, SIZE, SIZE)
    loss = objective(batch_of(objective, (one, one))).losses["distance"]
    loss.backward()
    assert loss.isfinite() and all(p.grad.isfinite().all() for p in objective.projector.parameters())


def test_it_learns_to_predict_a_resting_teacher():
    objective = build(momentum=1.0)
    pair = clips()
    parameters = [*objective.projector.parameters(), *objective.predictor.parameters()]
    optimizer = torch.optim.Adam(parameters, lr=3e-3)
    losses = []
    for _ in range(12):
        loss = objective(batch_of(objective, pair)).losses["distance"]
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.5 * losses[0]


def test_the_spread_tells_collapse():
    rows = torch.randn(512, 64, generator=torch.Generator().manual_seed(0))
    assert spread(rows).item() == pytest.approx(1, abs=0.02)
    assert spread(rows[:1].expand(512, -1)).item() == pytest.approx(0, abs=1e-4)
    assert spread(rows[:1]) == 0


def test_the_teacher_computes_in_bfloat16_and_the_loss_does_not():
    objective = build()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = objective(batch_of(objective, clips())).losses["distance"]
    assert loss.dtype == torch.float32 and loss.isfinite()


# The teacher ----------------------------------------------------------------------------------------------------------


def test_the_teacher_starts_as_a_copy():
    objective = build()
    for copy, original in (("backbone", objective.context.backbone), ("projector", objective.projector)):
        found = getattr(objective.teacher, copy).state_dict()
        assert all(torch.equal(found[name], value) for name, value in original.state_dict().items())
        assert all(
            a is not b
            for a, b in zip(getattr(objective.teacher, copy).parameters(), original.parameters(), strict=True)
        )


def test_one_step_moves_the_teacher_by_exactly_its_momentum():
    objective = build(momentum=0.998, schedule="constant")
    disturb(objective.context.backbone)
    disturb(objective.projector)
    old = [parameter.clone() for parameter in objective.teacher.parameters()]
    online = [*objective.context.backbone.parameters(), *objective.projector.parameters()]
    buffers = [buffer.clone() for buffer in objective.teacher.buffers()]
    manager = new_manager()
    manager.register(objective, "byol")  # as the engine does: the announcement must find it
    manager.hook.vssl_step_end(run=run_of(objective), report=None)
    for slow, before, fast in zip(objective.teacher.parameters(), old, online, strict=True):
        torch.testing.assert_close(slow, 0.998 * before + 0.002 * fast, rtol=1e-6, atol=1e-7)
    assert any(not torch.equal(slow, before) for slow, before in zip(objective.teacher.parameters(), old, strict=True))
    assert all(torch.equal(buffer, before) for buffer, before in zip(objective.teacher.buffers(), buffers, strict=True))


def test_the_momentum_rises_to_one_or_stays():
    rising, constant = build(momentum=0.99), build(momentum=0.99, schedule="constant")
    assert rising.momentum(0.0) == pytest.approx(0.99) and rising.momentum(1.0) == 1
    assert rising.momentum(0.3) == pytest.approx(1 - 0.01 * (cos(0.3 * pi) + 1) / 2)
    assert constant.momentum(0.0) == constant.momentum(0.7) == 0.99
    steps = [rising.momentum(step / 20) for step in range(21)]
    assert steps == sorted(steps)


def test_the_state_brings_the_teacher_back():
    first, second = build(seed=0), build(seed=5)
    disturb(first.teacher)
    second.load_state_dict(deepcopy(first.state_dict()))
    second.context.backbone.load_state_dict(first.context.backbone.state_dict())
    losses = [objective(batch_of(objective, clips())).losses["distance"] for objective in (first, second)]
    assert torch.equal(*losses)


# What it asks for -----------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_three_clips_keep_the_contract():
    check_plugin("byol", clips=3)


def test_it_reads_clips_of_any_geometry_with_jittered_colours():
    assert build().requests()["clips"].clips == 2
    request = build(clips=3).requests()["clips"]
    assert request.clips == 3 and request.appearance.colour == "jittered" and request.appearance.per is ANY
    assert {request.strides, request.placement, request.boxes, request.flips, request.turns} == {ANY}


def test_sizes_follow_the_features_unless_they_are_given():
    assert build().projector[0].out_features == 4 * 128
    paper = build(hidden=4096, projection=128, layers=3)
    assert [layer.out_features for layer in paper.projector if isinstance(layer, torch.nn.Linear)] == [4096, 4096, 128]
    assert [layer.out_features for layer in paper.predictor if isinstance(layer, torch.nn.Linear)] == [4096, 128]


@pytest.mark.parametrize(
    "options",
    [
        {"momentum": 1.1},
        {"momentum": -0.1},
        {"schedule": "linear"},
        {"hidden": 0},
        {"clips": 1},
        {"clips": 17},
        {"tau": 1},
    ],
)
def test_options_have_bounds(options):
    with pytest.raises(ValidationError):
        Byol.Config(**options)


def test_the_plugin_offers_it():
    assert vssl_byol.vssl_objective() is Byol and "NeurIPS 2020" in vssl_byol.PAPER
