"""Overlap labels against counted pixels and frames, and the losses against sums written out by hand."""

from __future__ import annotations

from dataclasses import replace
from fractions import Fraction
from math import exp, log

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from vssl_core import ANY, PLAIN, Batch, ClipSettings, ConfigError, Context, Features, Sample, View, Window, Windows
from vssl_core.config import RunConfig, build, to_tree
from vssl_core.joining import plan
from vssl_core.requests import Independent, Overlapping, Request, Strides, Turns
from vssl_core.windows import draw_windows
from vssl_stor.objective import Stor

RATES = (0.2, 0.4, 0.6, 0.8, 1.0)
DIM = 6


def stor(**options: object) -> Stor:
    """A built objective on features of six numbers."""
    context = Context(
        name="stor",
        clip=ClipSettings(16, 112, 1),
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
    return Stor(build(Stor.Config, options, "plugins.stor"), context)


def pair_request(objective: Stor, neighbour: Request | None = None, **clip: object) -> Request:
    """The group that the objective reads, alone or with a neighbour, completed by the run's own clip."""
    run = RunConfig.model_validate({"clip": {"frames": 16, "size": 112, **clip}})
    requests = {"stor": objective.requests(), **({"neighbour": {"clip": neighbour}} if neighbour else {})}
    groups = plan(requests, run.clip_request()).groups
    assert len(groups) == 1
    return groups[0].request


def turned_at_pace(strides: tuple = (1, 2, 4, 8)) -> Request:
    """A neighbour that plays clips at several paces and turns them."""
    return Request(
        clips=(1, 2),
        strides=Strides(strides),
        turns=Turns((0, 1, 2, 3)),
        placement=ANY,
        boxes=ANY,
        flips=ANY,
        appearance=ANY,
    )


def draw(objective: Stor, count: int, total: int) -> list[tuple[Window, ...]]:
    """The windows of some videos."""
    request = pair_request(objective)
    return [draw_windows(request, Sample(seed, 0, 0, 0), "stor/pair", total, (90, 120)) for seed in range(count)]


def batch_of(rows: list[tuple[Window, ...]], vectors: torch.Tensor | None = None) -> Batch:
    """The batch that a step would hold for these windows, with given features (clips, B, D)."""
    count = len(rows[0])
    vectors = torch.zeros(count, len(rows), DIM) if vectors is None else vectors
    views = []
    for clip in range(count):
        windows = Windows.of([row[clip] for row in rows])
        features = Features(lambda clip=clip: {"stage5": vectors[clip][:, :, None, None, None]})
        empty = torch.zeros(len(rows), 3, 16, 1, 1)
        views.append(View(empty, empty[:, :, :0], windows, {}, features))
    samples = [Sample(0, 0, row[0].visit, row[0].video) for row in rows]
    return Batch(
        "stor",
        {"pair": tuple(views)},
        torch.arange(len(rows)),
        samples,
        epoch=0,
        progress=0.0,
        encode=lambda clip: Features(dict),
    )


def labels(objective: Stor, rows: list[tuple[Window, ...]]) -> dict[str, list[int]]:
    """The labels of some pairs."""
    return {name: value.tolist() for name, value in objective.labels(*batch_of(rows)["pair"]).items()}


def cut(window: Window, image: np.ndarray) -> np.ndarray:
    """The window's box of an image, flipped and then turned."""
    top, left, height, width = window.box
    crop = image[top : top + height, left : left + width]
    return np.rot90(crop[:, ::-1] if window.flip else crop, window.turns)


SIZES = st.tuples(st.integers(60, 320), st.integers(60, 320))
SEEDS = st.integers(0, 2**31 - 1)


@given(seed=SEEDS, size=SIZES, total=st.integers(1, 400))
@settings(max_examples=150, deadline=None)
def test_spatial_labels_count_the_pixels_that_both_clips_show(seed: int, size: tuple[int, int], total: int) -> None:
    """Whatever flip and turn each clip has: an image whose pixels are all different tells how much is shared."""
    objective = stor()
    request = pair_request(objective, turned_at_pace())
    left, right = draw_windows(request, Sample(seed, 0, 0, 0), "stor/pair", total, size)
    image = np.arange(size[0] * size[1]).reshape(size)
    shared = len(np.intersect1d(cut(left, image), cut(right, image))) / (left.box[2] * left.box[3])
    (label,) = labels(objective, [(left, right)])["space"]
    assert label == int(np.argmin([abs(shared - rate) for rate in RATES]))
    assert abs(shared - RATES[label]) <= 1 / (2 * left.box[2]) + 1e-6
    assert left.box[2:] == right.box[2:]
    for top, corner, height, width in (left.box, right.box):
        assert 0 <= top <= size[0] - height and 0 <= corner <= size[1] - width
    if label == len(RATES) - 1:
        assert left.box == right.box


@given(seed=SEEDS, total=st.integers(16, 500), flip=st.booleans(), turns=st.integers(0, 3))
@settings(max_examples=100, deadline=None)
def test_sixteen_frames_share_sixteen_thirteen_ten_seven_or_four(seed: int, total: int, flip: bool, turns: int) -> None:
    """At every pace, forward and backward; and a flip or turn of one clip changes no label."""
    objective = stor()
    request = pair_request(objective, turned_at_pace())
    left, right = draw_windows(request, Sample(seed, 0, 0, 0), "stor/pair", total, (120, 160))
    (label,) = labels(objective, [(left, right)])["time"]
    assert left.real.all() and right.real.all() and left.stride == right.stride
    assert len(np.intersect1d(left.indices, right.indices)) == (4, 7, 10, 13, 16)[label]
    turned = replace(right, flip=flip, turns=turns)
    assert labels(objective, [(left, turned)]) == labels(objective, [(left, right)])


@given(seed=SEEDS, frames=st.integers(4, 12), total=st.integers(12, 200), stride=st.sampled_from((1, 2, "1/3")))
@settings(max_examples=150, deadline=None)
def test_temporal_labels_say_what_frames_are_shared_at_any_length(
    seed: int,
    frames: int,
    total: int,
    stride: int | str,
) -> None:
    """Where no whole number of samples fits a rate: the label follows the samples that are really shared."""
    request = pair_request(stor(), turned_at_pace((Fraction(stride),)), frames=frames)
    left, right = draw_windows(request, Sample(seed, 0, 0, 0), "stor/pair", total, (120, 160))
    apart = abs(left.start - right.start) / left.stride  # in samples
    assert apart.denominator == 1 or left.stride > 1
    shared = 1 - min(apart / (frames - 1), 1)
    (label,) = labels(stor(), [(left, right)])["time"]
    assert abs(shared - Fraction(str(RATES[label]))) == min(abs(shared - Fraction(str(rate))) for rate in RATES)
    if apart.denominator == 1:  # so many samples later, one clip is the other: forward and backward alike
        early, late = sorted((left, right), key=lambda window: window.start)
        kept = frames - int(apart)
        assert early.nominal[frames - kept :].tolist() == late.nominal[:kept].tolist()


@pytest.mark.parametrize("total", [1, 2, 5, 15])
def test_short_videos_show_both_clips_alike_in_time(total: int) -> None:
    objective = stor()
    rows = draw(objective, 20, total)
    for left, right in rows:
        assert left.indices.tolist() == right.indices.tolist() == [i % total for i in range(16)]
    assert set(labels(objective, rows)["time"]) == {len(RATES) - 1}
    assert len(set(labels(objective, rows)["space"])) > 1


@pytest.mark.parametrize("rates", [2, 3, 4, 5, 6, 7, (0.5, 1.0), (0.33, 0.66, 0.99), (1.0, 0.25, 0.5)])
def test_all_candidates_are_drawn_and_told_apart(rates: object) -> None:
    objective = stor(rates=rates)
    request = pair_request(objective)
    rows = [draw_windows(request, Sample(seed, 0, 0, 0), "stor/pair", 300, (240, 320)) for seed in range(300)]
    for name, candidates in objective.candidates.items():
        assert list(candidates) == sorted(candidates)
        assert set(labels(objective, rows)[name]) == set(range(len(candidates)))


def test_space_and_time_may_have_candidates_of_their_own() -> None:
    request = stor(spatial_rates=(0.5, 1.0), temporal_rates=3).requests()["pair"]
    assert request.boxes.layout == Overlapping((0.5, 1.0)) and request.placement == Overlapping((0.3333, 0.6667, 1.0))


@pytest.mark.parametrize("switch, losses", [("spatial", {"time"}), ("temporal", {"space"})])
def test_one_half_alone_asks_for_nothing_of_the_other(switch: str, losses: set[str]) -> None:
    objective = stor(**{switch: False})
    request = objective.requests()["pair"]
    assert (request.boxes if switch == "spatial" else request.placement) is ANY
    assert (request.strides is ANY) == (switch == "temporal") and request.frames is PLAIN
    rows = draw(objective, 4, 99)
    assert set(objective(batch_of(rows)).losses) == losses
    whole = pair_request(objective)
    assert (whole.boxes.layout if switch == "spatial" else whole.placement) == Independent()


def plain_cross_entropy(logits: list[list[float]], targets: list[int]) -> float:
    """The mean of -log softmax, one row after the other."""
    total = 0.0
    for row, target in zip(logits, targets, strict=True):
        total -= log(exp(row[target]) / sum(exp(value) for value in row))
    return total / len(targets)


def test_losses_are_the_weighted_cross_entropies_of_both_heads_on_the_joined_features() -> None:
    objective = stor(layers=1, spatial_weight=0.5, temporal_weight=2)
    vectors = torch.randn(2, 6, DIM)
    rows = draw(objective, 6, 200)
    terms = objective(batch_of(rows, vectors))
    for name, weight in (("space", 0.5), ("time", 2.0)):
        layer = objective.heads[name][0]
        lines = list(zip(layer.weight.double().tolist(), layer.bias.double().tolist(), strict=True))
        logits = []
        for row in range(6):
            joined = vectors[0, row].tolist() + vectors[1, row].tolist()
            logits.append([sum(w * x for w, x in zip(line, joined, strict=True)) + bias for line, bias in lines])
        truth = labels(objective, rows)[name]
        assert terms.losses[name].item() == pytest.approx(weight * plain_cross_entropy(logits, truth), rel=1e-5)
        right = sum(max(range(5), key=logits[row].__getitem__) == truth[row] for row in range(6)) / 6
        assert terms.metrics[f"{name}_accuracy"].item() == pytest.approx(right)


def test_heads_at_chance_cost_two_ln_five() -> None:
    objective = stor()
    for head in objective.heads.values():
        torch.nn.init.zeros_(head[-1].weight)
        torch.nn.init.zeros_(head[-1].bias)
    rows = draw(objective, 4, 200)
    losses = objective(batch_of(rows, torch.randn(2, 4, DIM))).losses
    assert sum(losses.values()).item() == pytest.approx(2 * log(5), rel=1e-6)


def test_heads_are_two_layers_twice_the_features_wide() -> None:
    shapes = [(type(layer).__name__, getattr(layer, "out_features", None)) for layer in stor().heads["space"]]
    assert shapes == [("Linear", 2 * DIM), ("BatchNorm1d", None), ("ReLU", None), ("Linear", 5)]
    assert [len(parameter) for parameter in stor(hidden=7).heads["time"].parameters()] == [7, 7, 7, 5, 5]
    assert len(stor(layers=1).heads["time"]) == 1


@pytest.mark.parametrize("scale", [1.0, 1e3])
def test_losses_are_finite_and_their_gradients_reach_both_clips_and_both_heads(scale: float) -> None:
    objective = stor()
    vectors = (torch.randn(2, 8, DIM) * scale).requires_grad_()
    rows = draw(objective, 8, 200)
    sum(objective(batch_of(rows, vectors)).losses.values()).backward()
    assert all(parameter.grad.isfinite().all() and parameter.grad.any() for parameter in objective.parameters())
    assert vectors.grad.isfinite().all() and vectors.grad[0].any() and vectors.grad[1].any()


@pytest.mark.parametrize(
    "options, says",
    [
        ({"rates": (0.5,)}, "from two to seven different rates"),
        ({"rates": 8}, "from two to seven different rates"),
        ({"rates": (0.5, 0.5)}, "different rates"),
        ({"rates": (0.0, 0.5)}, "above 0"),
        ({"rates": (0.5, 1.2)}, "at most 1"),
        ({"temporal_weight": 0}, "greater than 0"),
        ({"spatial": False, "temporal": False}, "nothing to learn"),
        ({"layers": 1, "hidden": 8}, "hidden has no effect"),
        ({"spatial": False, "spatial_weight": 2}, "spatial_weight has no effect"),
        ({"rate": 5}, "did you mean 'rates'"),
        ({"temporal": False, "temporal_rates": (0.5, 1.0)}, "temporal_rates has no effect"),
        ({"rates": 3, "spatial_rates": 4, "temporal_rates": 5}, "rates has no effect"),
    ],
)
def test_options_that_cannot_be_meant_are_one_sentence(options: dict[str, object], says: str) -> None:
    with pytest.raises(ConfigError, match="^plugins.stor.*") as error:
        build(Stor.Config, options, "plugins.stor")
    assert says in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize("options", [{}, {"rates": 7}, {"rates": [1.0, 0.5]}, {"spatial": False, "hidden": 9}])
def test_the_written_config_gives_the_same_objective(options: dict[str, object]) -> None:
    config = build(Stor.Config, options, "plugins.stor")
    assert build(Stor.Config, to_tree(config), "plugins.stor") == config
