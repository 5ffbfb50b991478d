"""Paces against the frames that are read, and the labels and losses that follow from them."""

from __future__ import annotations

from dataclasses import replace
from fractions import Fraction
from math import exp, floor, log

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from vssl_core import (
    ANY,
    Appearance,
    Batch,
    ClipSettings,
    ConfigError,
    Context,
    Features,
    Overlapping,
    Request,
    Sample,
    View,
    Windows,
)
from vssl_core.config import RunConfig, build, to_tree
from vssl_core.joining import plan
from vssl_core.requests import Strides
from vssl_core.windows import Window, draw_windows
from vssl_pace.objective import Pace

DIM = 6
FRAMES = 16
ABSOLUTE = ["1/3", "1/2", 1, 2, 3]
ANYTHING = {name: ANY for name in ("strides", "placement", "boxes", "flips", "turns", "appearance")}


def pace(**options: object) -> Pace:
    """A built objective on features of six numbers."""
    context = Context(
        name="pace",
        clip=ClipSettings(FRAMES, 48, 1),
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
    return Pace(build(Pace.Config, options, "plugins.pace"), context)


def group_request(objective: Pace, clips: int = 1, tail: int = 0) -> Request:
    """The group that the objective reads with a neighbour of so many clips."""
    requests = {"pace": objective.requests(), "neighbour": {"clip": Request(clips=clips, tail=tail, **ANYTHING)}}
    (group,) = plan(requests, RunConfig.model_validate({"clip": {"frames": FRAMES}}).clip_request()).groups
    return group.request


def draw(objective: Pace, count: int, total: int = 100, clips: int = 1, tail: int = 0) -> list[tuple[Window, ...]]:
    """The windows of some videos."""
    request = group_request(objective, clips, tail)
    return [draw_windows(request, Sample(0, 0, 0, n), "pace/clip", total, (90, 120)) for n in range(count)]


def batch_of(rows: list[tuple[Window, ...]], vectors: torch.Tensor, index: list[int] | None = None) -> Batch:
    """The batch that a step would hold for these windows, with given features (clips, B, D)."""
    views = []
    for clip in range(len(vectors)):
        windows = Windows.of([row[clip] for row in rows])
        features = Features(lambda clip=clip: {"stage5": vectors[clip][:, :, None, None, None]})
        empty = torch.zeros(len(rows), 3, FRAMES, 1, 1)
        views.append(View(empty, empty[:, :, :0], windows, {}, features))
    samples = [Sample(0, 0, 0, n) for n in range(len(rows))]
    return Batch(
        "pace",
        {"clip": tuple(views)},
        torch.tensor(index or range(len(rows))),
        samples,
        epoch=0,
        progress=0.0,
        encode=lambda clip: Features(dict),
    )


def labels(objective: Pace, rows: list[tuple[Window, ...]], clip: int = 0) -> list[int]:
    """The labels of one clip of some videos."""
    return objective.labels(batch_of(rows, torch.zeros(clip + 1, len(rows), DIM))["clip"][clip]).tolist()


@given(
    seed=st.integers(0, 2**31 - 1),
    total=st.integers(1, 200),
    paces=st.sampled_from([[1, 2, 3, 4], ABSOLUTE, [4, 1]]),
)
@settings(max_examples=150, deadline=None)
def test_the_frames_are_those_of_the_pace_and_the_label_is_the_pace(seed: int, total: int, paces: list) -> None:
    """Pace p reads every p-th frame, pace 1/q each frame q times; a clip with a seam has no label."""
    objective = pace(paces=paces)
    (window,) = draw_windows(group_request(objective), Sample(seed, 0, 0, 0), "pace/clip", total, (90, 120))
    (label,) = labels(objective, [(window,)])
    fitting = [pace for pace in map(Fraction, paces) if floor((FRAMES - 1) * pace) < total]
    if not fitting:
        assert window.stride == min(map(Fraction, paces)) and not window.real.all() and label == -1
        return
    shown = Fraction(paces[label])
    assert shown in fitting and window.real.all()
    start = int(window.indices[0])
    step = (lambda i: shown * i) if shown >= 1 else (lambda i: i // int(1 / shown))
    assert window.indices.tolist() == [start + step(i) for i in range(FRAMES)]


@pytest.mark.parametrize("paces", [[1, 2, 3, 4], ABSOLUTE])
def test_all_paces_are_equally_likely_and_clips_of_a_pair_have_their_own(paces: list) -> None:
    objective = pace(paces=paces, contrast="same_context")
    rows = draw(objective, 1500)
    first, second = np.array(labels(objective, rows)), np.array(labels(objective, rows, clip=1))
    expected = 1500 / len(paces) ** 2
    pairs = np.bincount(first * len(paces) + second, minlength=len(paces) ** 2)
    assert abs(pairs - expected).max() < 5 * np.sqrt(expected)


def test_slow_clips_keep_their_label_when_a_neighbour_lets_them_start_between_frames() -> None:
    """A second clip that overlaps may start at a third of a frame: each frame is still shown three times."""
    objective = pace(paces=["1/3", 1])
    request = replace(group_request(objective, 2), placement=Overlapping((0.3333, 0.6667, 1.0)))
    request = replace(request, strides=replace(request.strides, shared=True))
    rows = [draw_windows(request, Sample(n, 0, 0, 0), "pace/clip", 90, (90, 120)) for n in range(50)]
    assert labels(objective, rows) == labels(objective, rows, clip=1)
    assert any(row[1].start.denominator > 1 for row in rows)
    for window in (row[1] for row in rows if row[1].stride < 1):
        assert np.unique(window.indices, return_counts=True)[1][1:-1].tolist() == [3] * (len(set(window.indices)) - 2)


@pytest.mark.parametrize(
    "options, paces",
    [
        ({}, (1, 2, 3, 4)),
        ({"step": 2}, (1, 3, 5, 7)),
        ({"step": 3}, (1, 4, 7, 10)),
        ({"count": 6}, (1, 2, 3, 4, 5, 6)),
        ({"paces": ABSOLUTE}, (Fraction(1, 3), Fraction(1, 2), 1, 2, 3)),
        ({"paces": (1, 2, 4, 8)}, (1, 2, 4, 8)),
    ],
)
def test_paces_by_step_or_one_by_one(options: dict[str, object], paces: tuple) -> None:
    assert pace(**options).paces == paces and pace(**options).requests()["clip"].strides == Strides(paces, short="fit")


@pytest.mark.parametrize(
    "contrast, clips, shared",
    [
        ("none", (1, 2), ANY),
        ("same_context", 2, False),
        ("same_pace", 1, ANY),
    ],
)
def test_it_asks_for_paces_and_jitter_by_frame_and_leaves_all_else_to_neighbours(
    contrast: str,
    clips: object,
    shared: object,
) -> None:
    request = pace(contrast=contrast).requests()["clip"]
    assert request.clips == clips and request.strides.shared is shared and request.strides.short == "fit"
    assert request.appearance == Appearance("jittered", per="frame")
    assert {request.placement, request.boxes, request.flips, request.turns} == {ANY}


# Seams ----------------------------------------------------------------------------------------------------------------


def test_looped_clips_have_a_seam_and_no_label_unless_asked_for() -> None:
    """The seam of a video that is too short would tell the pace; whole clips keep their label."""
    rows = draw(pace(short="loop"), 200, total=40)
    whole = np.array([row[0].real.all() for row in rows])
    masked, kept = (np.array(labels(pace(short="loop", mask_wrapped=mask), rows)) for mask in (True, False))
    assert 0 < whole.sum() < 200 and (masked[~whole] == -1).all() and (masked[whole] == kept[whole]).all()
    assert (kept == [row[0].stride - 1 for row in rows]).all()


def test_a_seam_in_a_neighbours_tail_is_not_seen() -> None:
    objective = pace(paces=[1, 2])
    rows = draw(objective, 30, total=FRAMES, tail=3)  # 16 frames fit, 19 do not
    assert not any(row[0].real.all() for row in rows) and labels(objective, rows) == [0] * 30


def test_clips_with_a_seam_are_not_counted_in_the_loss() -> None:
    objective = pace(layers=1)
    rows = draw(objective, 4) + draw(objective, 3, total=5)
    vectors = torch.randn(1, 7, DIM, requires_grad=True)
    terms, seen = objective(batch_of(rows, vectors)), objective(batch_of(rows[:4], vectors[:, :4]))
    assert terms.losses["classification"].item() == pytest.approx(seen.losses["classification"].item(), rel=1e-6)
    assert terms.metrics["accuracy"].item() == pytest.approx(seen.metrics["accuracy"].item(), rel=1e-6)
    terms.losses["classification"].backward()
    assert vectors.grad[0, :4].any() and not vectors.grad[0, 4:].any()


def test_a_batch_of_seams_costs_nothing() -> None:
    objective = pace(contrast="same_pace")
    vectors = torch.randn(1, 4, DIM, requires_grad=True)
    losses = objective(batch_of(draw(objective, 4, total=3), vectors)).losses
    assert {name: loss.item() for name, loss in losses.items()} == {"classification": 0, "contrast": 0}
    sum(losses.values()).backward()
    assert not vectors.grad.any()


# Losses ---------------------------------------------------------------------------------------------------------------


def plain_loss(objective: Pace, vectors: torch.Tensor, truths: list[list[int]]) -> list[float]:
    """The mean cross-entropy of each clip, one row after the other."""
    layer = objective.head[0]
    losses = []
    for features, truth in zip(vectors.double().tolist(), truths, strict=True):
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
def test_the_classification_is_the_cross_entropy_of_the_clips_that_count(views: str, clips: int) -> None:
    objective = pace(views=views, classification_weight=0.5)
    rows = draw(objective, 5, clips=clips)
    read = 1 if views == "first" else clips
    vectors = torch.randn(read, 5, DIM)
    loss = objective(batch_of(rows, vectors)).losses["classification"].item()
    each = plain_loss(objective, vectors, [labels(objective, rows, clip) for clip in range(read)])
    assert loss == pytest.approx(0.5 * sum(each) / (1 if views == "sum" else read), rel=1e-5)


def test_at_chance_the_sum_of_both_clips_is_two_ln_four() -> None:
    objective = pace(views="sum")
    torch.nn.init.zeros_(objective.head[0].weight)
    torch.nn.init.zeros_(objective.head[0].bias)
    terms = objective(batch_of(draw(objective, 6, clips=2), torch.randn(2, 6, DIM)))
    assert terms.losses["classification"].item() == pytest.approx(2 * log(4), rel=1e-6)


def test_the_contrast_stands_on_the_projection_and_its_positives_on_videos_or_paces() -> None:
    """The same sum as by hand over the pairs: of one video, or of one pace; a video that comes twice is one video."""
    for contrast, clips, index in (("same_context", 2, [3, 5, 7, 5]), ("same_pace", 1, [0, 1, 2, 3])):
        objective = pace(contrast=contrast, contrast_weight=0.3, projection=4)
        rows = draw(objective, 4)
        vectors = torch.randn(clips, 4, DIM)
        loss = objective(batch_of(rows, vectors, index)).losses["contrast"].item()
        keys = index if clips == 2 else labels(objective, rows)
        points = [
            (objective.projector(vectors[clip, n]).double().tolist(), keys[n])
            for n in range(4)
            for clip in range(clips)
        ]
        values = []
        for i, (anchor, key) in enumerate(points):
            terms = [
                (sum(a * b for a, b in zip(anchor, other, strict=True)), name == key)
                for j, (other, name) in enumerate(points)
                if j != i
            ]
            near = sum(exp(similarity) for similarity, same in terms if same)
            if near:
                values.append(-log(near / sum(exp(similarity) for similarity, _ in terms)))
        assert values and loss == pytest.approx(0.3 * sum(values) / len(values), rel=1e-4)


def test_without_projection_the_features_are_contrasted_and_without_classification_there_is_no_head() -> None:
    objective = pace(contrast="same_context", projection=None, classification_weight=0)
    assert not list(objective.parameters())
    terms = objective(batch_of(draw(objective, 3), torch.ones(2, 3, DIM)))
    assert set(terms.losses) == {"contrast"} and not terms.metrics
    assert terms.losses["contrast"].item() == pytest.approx(0.1 * log(2 * 3 - 1), rel=1e-5)


def test_the_projection_is_linear_with_relu() -> None:
    linear, relu = pace(contrast="same_context").projector
    assert (linear.in_features, linear.out_features) == (DIM, 128) and isinstance(relu, torch.nn.ReLU)


@pytest.mark.parametrize("contrast", ["none", "same_context", "same_pace"])
@pytest.mark.parametrize("scale", [1.0, 1e3])
def test_losses_are_finite_and_their_gradients_reach_the_clips_and_all_layers(contrast: str, scale: float) -> None:
    objective = pace(contrast=contrast)
    clips = 2 if contrast == "same_context" else 1
    vectors = (torch.randn(clips, 8, DIM).abs() * scale).requires_grad_()
    losses = objective(batch_of(draw(objective, 8), vectors)).losses
    sum(losses.values()).backward()
    assert all(loss.isfinite() for loss in losses.values()) and vectors.grad.isfinite().all() and vectors.grad.any()
    assert all(parameter.grad.isfinite().all() for parameter in objective.parameters())
    assert scale > 1 or all(parameter.grad.any() for parameter in objective.parameters())


# Options --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "options, says",
    [
        ({"paces": [2]}, "at least two paces"),
        ({"paces": [2, 2]}, "all different"),
        ({"paces": ["1/2", 0.5]}, "got 0.5"),
        ({"paces": [0, 1]}, "whole number from 1"),
        ({"paces": ["3/2", 1]}, "'1/2'"),
        ({"paces": ["1/0", 1]}, "whole"),
        ({"paces": [True, 2]}, "whole number"),
        ({"paces": [1, 2], "step": 2}, "step has no effect"),
        ({"count": 1}, "greater"),
        ({"reading": "row_wise"}, "global_ratio"),
        ({"contrast_weight": 1}, "contrast_weight has no effect"),
        ({"projection": None}, "projection has no effect"),
        ({"classification_weight": 0}, "nothing to learn"),
        ({"classification_weight": 0, "contrast": "same_pace", "layers": 2}, "layers has no effect"),
        ({"pace": [1, 2]}, "did you mean 'paces'"),
        ({"short": "clamp"}, "'fit' or 'loop'"),
    ],
)
def test_options_that_cannot_be_meant_are_one_sentence(options: dict[str, object], says: str) -> None:
    with pytest.raises(ConfigError, match="^plugins.pace: [^\n]+$") as error:
        build(Pace.Config, options, "plugins.pace")
    assert says in str(error.value)


@pytest.mark.parametrize("options", [{}, {"paces": ABSOLUTE}, {"step": 3}, {"contrast": "same_pace", "count": 2}])
def test_the_written_config_gives_the_same_objective(options: dict[str, object]) -> None:
    config = build(Pace.Config, options, "plugins.pace")
    assert build(Pace.Config, to_tree(config), "plugins.pace") == config
