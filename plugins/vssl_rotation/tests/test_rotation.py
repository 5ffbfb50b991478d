"""Turns against what is seen when they are undone, and the loss against a sum written out by hand."""

from __future__ import annotations

from math import exp, log

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from vssl_core import ANY, Batch, ClipSettings, ConfigError, Context, Features, Request, Sample, View, Window, Windows
from vssl_core.config import RunConfig, build, to_tree
from vssl_core.joining import plan
from vssl_core.windows import draw_windows
from vssl_rotation.objective import Rotation

DIM = 6
ANYTHING = {name: ANY for name in ("strides", "placement", "boxes", "flips", "turns", "appearance")}


def rotation(**options: object) -> Rotation:
    """A built objective on features of six numbers."""
    context = Context(
        name="rotation",
        clip=ClipSettings(8, 48, 1),
        backbone=torch.nn.Identity(),
        feature_dim=DIM,
        stages={},
        videos=100,
        epochs=1,
        steps_per_epoch=1,
        batch_size=4,
        world_size=1,
    )
    torch.manual_seed(0)
    return Rotation(build(Rotation.Config, options, "plugins.rotation"), context)


def group_request(objective: Rotation, clips: int = 1) -> Request:
    """The group that the objective reads with a neighbour of so many clips."""
    requests = {"rotation": objective.requests(), "neighbour": {"clip": Request(clips=clips, **ANYTHING)}}
    (group,) = plan(requests, RunConfig().clip_request()).groups
    return group.request


def draw(objective: Rotation, count: int, clips: int = 1) -> list[tuple[Window, ...]]:
    """The windows of some videos."""
    request = group_request(objective, clips)
    return [draw_windows(request, Sample(seed, 0, 0, 0), "rotation/clip", 60, (90, 120)) for seed in range(count)]


def batch_of(rows: list[tuple[Window, ...]], vectors: torch.Tensor) -> Batch:
    """The batch that a step would hold for these windows, with given features (clips, B, D)."""
    views = []
    for clip in range(len(vectors)):
        windows = Windows.of([row[clip] for row in rows])
        features = Features(lambda clip=clip: {"stage5": vectors[clip][:, :, None, None, None]})
        empty = torch.zeros(len(rows), 3, 8, 1, 1)
        views.append(View(empty, empty[:, :, :0], windows, {}, features))
    return Batch(
        "rotation",
        {"clip": tuple(views)},
        torch.arange(len(rows)),
        [Sample(0, 0, 0, n) for n in range(len(rows))],
        epoch=0,
        progress=0.0,
        encode=lambda clip: Features(dict),
    )


@given(seed=st.integers(0, 2**31 - 1), size=st.tuples(st.integers(8, 60), st.integers(8, 60)))
@settings(max_examples=60, deadline=None)
def test_undoing_the_label_gives_the_clip_as_filmed(seed: int, size: tuple[int, int]) -> None:
    """Label 0 is the crop as it is; the others are undone clockwise; a flip comes before the turn."""
    (window,) = draw_windows(group_request(rotation()), Sample(seed, 0, 0, 0), "rotation/clip", 60, size)
    top, left, height, width = window.box
    crop = np.arange(size[0] * size[1]).reshape(size)[top : top + height, left : left + width]
    upright = crop[:, ::-1] if window.flip else crop
    seen = window.carry(crop)
    assert np.array_equal(np.rot90(seen, -window.turns), upright)
    if window.turns == 1:  # counter-clockwise: what was at the right is at the top
        assert np.array_equal(seen[0], upright[:, -1])


def test_the_four_turns_are_equally_likely_and_each_clip_has_its_own() -> None:
    turns = np.array([[window.turns for window in row] for row in draw(rotation(), 2000, clips=2)])
    pairs = np.bincount(turns[:, 0] * 4 + turns[:, 1], minlength=16)
    assert abs(pairs - 125).max() < 5 * np.sqrt(125)


def test_it_asks_for_turns_and_leaves_all_else_of_the_geometry_to_neighbours() -> None:
    request = rotation().requests()["clip"]
    assert request.turns.choices == (0, 1, 2, 3) and request.clips == (1, 2)
    assert {getattr(request, name) for name in ANYTHING if name != "turns"} == {ANY}
    assert rotation(views="first").requests()["clip"].clips == 1


def plain_loss(objective: Rotation, vectors: torch.Tensor, turns: list[list[int]]) -> list[float]:
    """The mean cross-entropy of each clip, one row after the other."""
    layer = objective.head[0]
    losses = []
    for features, truth in zip(vectors.double().tolist(), turns, strict=True):
        total = 0.0
        for row, target in zip(features, truth, strict=True):
            logits = [
                sum(weight * value for weight, value in zip(line, row, strict=True)) + bias
                for line, bias in zip(layer.weight.double().tolist(), layer.bias.double().tolist(), strict=True)
            ]
            total -= log(exp(logits[target]) / sum(exp(logit) for logit in logits))
        losses.append(total / len(truth))
    return losses


@pytest.mark.parametrize("views", ["mean", "sum", "first"])
@pytest.mark.parametrize("clips", [1, 2])
def test_the_loss_is_the_cross_entropy_of_the_clips_that_count(views: str, clips: int) -> None:
    objective = rotation(layers=1, views=views)
    rows = draw(objective, 5, clips)
    read = 1 if views == "first" else clips
    vectors = torch.randn(read, 5, DIM)
    terms = objective(batch_of(rows, vectors))
    each = plain_loss(objective, vectors, [[row[clip].turns for row in rows] for clip in range(read)])
    assert terms.losses["turns"].item() == pytest.approx(sum(each) / (1 if views == "sum" else read), rel=1e-5)


def test_at_chance_the_sum_of_both_clips_is_two_ln_four() -> None:
    objective = rotation(views="sum")
    torch.nn.init.zeros_(objective.head[-1].weight)
    torch.nn.init.zeros_(objective.head[-1].bias)
    terms = objective(batch_of(draw(objective, 6, clips=2), torch.randn(2, 6, DIM)))
    assert terms.losses["turns"].item() == pytest.approx(2 * log(4), rel=1e-6)


def test_accuracy_counts_the_clips_told_right() -> None:
    objective = rotation(layers=1)
    rows = draw(objective, 12)
    vectors = torch.zeros(1, 12, DIM)
    for number, (window,) in enumerate(rows):
        vectors[0, number, window.turns if number % 3 else (window.turns + 1) % 4] = 1
    with torch.no_grad():
        objective.head[0].weight.copy_(torch.eye(4, DIM))
        objective.head[0].bias.zero_()
    assert objective(batch_of(rows, vectors)).metrics["accuracy"].item() == pytest.approx(8 / 12)


@pytest.mark.parametrize("scale", [1.0, 1e3])
def test_the_loss_is_finite_and_its_gradient_reaches_the_clips_and_the_head(scale: float) -> None:
    objective = rotation()
    vectors = (torch.randn(2, 8, DIM) * scale).requires_grad_()
    objective(batch_of(draw(objective, 8, clips=2), vectors)).losses["turns"].backward()
    assert all(parameter.grad.isfinite().all() and parameter.grad.any() for parameter in objective.parameters())
    assert vectors.grad.isfinite().all() and vectors.grad[0].any() and vectors.grad[1].any()


@pytest.mark.parametrize("options", [{"layers": 0}, {"views": "both"}, {"turns": 4}])
def test_options_that_cannot_be_meant_are_one_sentence(options: dict[str, object]) -> None:
    with pytest.raises(ConfigError, match="^plugins.rotation: [^\n]+$"):
        build(Rotation.Config, options, "plugins.rotation")


def test_the_written_config_gives_the_same_objective() -> None:
    config = build(Rotation.Config, {"views": "sum", "layers": 1}, "plugins.rotation")
    assert build(Rotation.Config, to_tree(config), "plugins.rotation") == config
