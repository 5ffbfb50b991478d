"""Heads, losses and options of `statistics`, its clips, and the sentences for what cannot be."""

from __future__ import annotations

import json
import sys
from math import sqrt
from pathlib import Path
from typing import Any

import pytest
import torch
from small_runs import VIDEOS, open_small, splits, train
from torch import Tensor, nn

from vssl_core import (
    ANY,
    PLAIN,
    Batch,
    ClipSettings,
    ConfigError,
    Context,
    DataError,
    Features,
    Fixed,
    Sample,
    View,
    Window,
    Windows,
)
from vssl_core.cli import main
from vssl_core.config import RunConfig, build, to_tree
from vssl_core.testing import check_plugin
from vssl_statistics.objective import Statistics, distance

DIM, FRAMES, SIZE = 6, 4, 16
STAGES = {"stage1": (3, 4, 8, 8), "pool5": (DIM, 1, 2, 2)}
LABELS = {"motion": 14, "appearance": 13}


class Named(nn.Module):
    """A backbone with a name, and a convolution to have parameters."""

    def __init__(self, name: str) -> None:
        super().__init__()
        self.name, self.layer = name, nn.Conv3d(3, DIM, 1)


def statistics(backbone: str = "r2plus1d_10", clip: ClipSettings | None = None, **options: Any) -> Statistics:
    """A built objective on features of six numbers."""
    context = Context(
        name="statistics",
        clip=clip or ClipSettings(FRAMES, SIZE, 1),
        backbone=Named(backbone),
        feature_dim=DIM,
        stages=STAGES,
        videos=100,
        epochs=4,
        steps_per_epoch=1,
        batch_size=4,
        world_size=1,
    )
    torch.manual_seed(0)
    return Statistics(build(Statistics.Config, options, "plugins.statistics"), context)


def batch_of(measures: dict[str, Tensor], features: Tensor, totals: list[int] | None = None) -> Batch:
    """The batch of a step: what was measured, and the map (B, D, 1, 2, 2) that the backbone gave."""
    rows = len(features)
    totals = totals or [99] * rows
    box, frame = (0, 0, SIZE, SIZE), (SIZE, SIZE)
    drawn = [Window(row, 0, 0, totals[row], 0, 1, FRAMES, 0, box, frame) for row in range(rows)]
    windows = Windows.of(drawn)
    empty = torch.zeros(rows, 3, FRAMES, 1, 1)
    named = {f"statistics/{name}": value for name, value in measures.items()}
    view = View(empty, empty[:, :, :0], windows, named, Features(lambda: {"pool5": features}))
    samples = [Sample(0, 0, 0, row) for row in range(rows)]
    return Batch(
        "statistics",
        {"clip": (view,)},
        torch.arange(rows),
        samples,
        epoch=0,
        progress=0.0,
        encode=lambda clip, statistics=False: Features(dict),
    )


def measured(rows: int, still: tuple[int, ...] = ()) -> dict[str, Tensor]:
    """Labels as they would be measured; `still` are the clips in which nothing moves."""
    generator = torch.Generator().manual_seed(rows)
    moves = torch.tensor([[int(row not in still)] for row in range(rows)])
    motion = torch.randint(1, 5, (rows, 14), generator=generator)
    return {
        "motion": torch.cat([motion, moves], dim=1),
        "appearance": torch.randint(1, 5, (rows, 13), generator=generator),
    }


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"loss": "l2norm", "binning": "soft", "motion_weight": 0.5, "fixed": True},
        {"appearance": False, "method": "farneback", "patterns": [2], "curriculum": {"first": 1.0}},
        {"motion": False, "heads": "branches"},
    ],
    ids=["default", "l2norm and soft", "motion alone", "colours alone"],
)
@pytest.mark.slow
def test_variants_keep_the_promises_of_plugins(options: dict[str, Any]) -> None:
    check_plugin("statistics", **options)


# Losses ---------------------------------------------------------------------------------------------------------------


def plain_loss(told: list[list[float]], truth: list[list[float]], counts: list[bool], loss: str) -> float:
    """Row by row: the mean of squares, or the root of their sum; the mean over the rows that count."""
    found = []
    for row, wanted, counted in zip(told, truth, counts, strict=True):
        squares = sum((a - b) ** 2 for a, b in zip(row, wanted, strict=True))
        if counted:
            found.append(squares / len(row) if loss == "mse" else sqrt(squares))
    return sum(found) / len(found) if found else 0.0


@pytest.mark.parametrize("loss", ["mse", "l2norm"])
@pytest.mark.parametrize("still", [(), (1, 3), (0, 1, 2, 3, 4)])
def test_losses_are_weighted_distances_of_the_labels_that_count(loss: str, still: tuple[int, ...]) -> None:
    """A clip in which nothing moves has no motion to tell, and one with a seam neither; their colours count."""
    objective = statistics(loss=loss, motion_weight=2.0)
    features, seams = torch.randn(5, DIM, 1, 2, 2), [99, 99, FRAMES - 1, 99, FRAMES]
    measures = measured(5, still)
    terms = objective(batch_of(measures, features, seams))
    vectors = features.mean(dim=(2, 3, 4))
    for name, weight, count in (("motion", 2.0, 14), ("appearance", 0.1, 13)):
        head = objective.heads[name]
        told = [
            [sum(w * x for w, x in zip(line, row, strict=True)) + bias for line, bias in zip(*parameters, strict=True)]
            for row in vectors.tolist()
            for parameters in [(head.weight.tolist(), head.bias.tolist())]
        ]
        counts = [name == "appearance" or (row not in still and row != 2) for row in range(5)]
        truth = measures[name][:, :count].tolist()
        assert terms.losses[name].item() == pytest.approx(weight * plain_loss(told, truth, counts, loss), rel=1e-4)
        right = [
            sum(round(a) == b for a, b in zip(row, wanted, strict=True)) / count
            for row, wanted, counted in zip(told, truth, counts, strict=True)
            if counted
        ]
        expected = sum(right) / len(right) if right else 0.0
        assert terms.metrics[f"{name}_accuracy"].item() == pytest.approx(expected)
    assert terms.metrics["moving"].item() == pytest.approx(sum(row not in still and row != 2 for row in range(5)) / 5)


def test_a_perfect_answer_costs_nothing_and_has_a_gradient() -> None:
    """The length of nothing has a corner: its gradient must still be a number."""
    truth = torch.tensor([[1.0, 2.0], [3.0, 4.0]])
    for loss in ("mse", "l2norm"):
        told = truth.clone().requires_grad_()
        distance(told, truth, loss).sum().backward()
        assert told.grad.tolist() == [[0.0, 0.0], [0.0, 0.0]]


@pytest.mark.parametrize("scale", [1.0, 1e3])
def test_losses_are_finite_and_reach_the_features_and_all_heads(scale: float) -> None:
    objective = statistics()
    features = (torch.randn(4, DIM, 1, 2, 2) * scale).requires_grad_()
    sum(objective(batch_of(measured(4), features)).losses.values()).backward()
    assert features.grad.isfinite().all() and features.grad.any()
    assert all(parameter.grad.isfinite().all() and parameter.grad.any() for parameter in objective.heads.parameters())


@pytest.mark.parametrize(
    "options, columns",
    [
        ({}, {"motion": list(range(14)), "appearance": list(range(13))}),
        ({"patterns": [2], "whole": False}, {"motion": [4, 5, 6, 7], "appearance": [4, 5, 6, 7]}),
        ({"patterns": [3, 1], "whole": False, "appearance": False}, {"motion": [0, 1, 2, 3, 8, 9, 10, 11]}),
        ({"patterns": []}, {"motion": [12, 13], "appearance": [12]}),
        ({"patterns": [1], "motion": False}, {"appearance": [0, 1, 2, 3, 12]}),
    ],
)
def test_patterns_and_the_whole_choose_labels(options: dict[str, Any], columns: dict[str, list[int]]) -> None:
    """p_u o_u p_v o_v of patterns 1, 2, 3, then I_u I_v; p_l c_l p_s c_s of each, then C."""
    objective = statistics(**options)
    measures = {name: rows for name, rows in measured(3).items() if name in columns}
    (view,) = batch_of(measures, torch.zeros(3, DIM, 1, 2, 2))["clip"]
    found = objective.labels(view)
    assert set(found) == set(columns)
    for name, kept in columns.items():
        assert found[name][0].tolist() == measures[name][:, kept].tolist()
        assert objective.heads[name].out_features == len(kept)
    assert set(objective(batch_of(measures, torch.zeros(3, DIM, 1, 2, 2))).losses) == set(columns)


# Heads and their learning rates ---------------------------------------------------------------------------------------


def test_the_light_c3d_has_branches_and_others_a_layer() -> None:
    """fc6 and fc7 of 2048 on the flattened map, their biases 1; or one linear layer on the pooled features."""
    for name, outputs in LABELS.items():
        branch = statistics("c3d_light").heads[name]
        layers = [layer for layer in branch if isinstance(layer, nn.Linear)]
        assert [(layer.in_features, layer.out_features) for layer in layers] == [
            (DIM * 4, 2048), (2048, 2048), (2048, outputs),
        ]  # fmt: skip
        assert [type(layer).__name__ for layer in branch] == ["Flatten", "Linear", "ReLU", "Linear", "ReLU", "Linear"]
        assert all((layer.bias == 1).all() for layer in layers)
        assert statistics().heads[name].in_features == DIM
        assert isinstance(statistics("c3d_light", heads="linear").heads[name], nn.Linear)
        assert isinstance(statistics(heads="branches").heads[name], nn.Sequential)


def test_branches_read_the_map_and_linear_heads_its_mean() -> None:
    features = torch.randn(3, DIM, 1, 2, 2)
    shuffled = features.flatten(3)[..., [3, 1, 0, 2]].reshape(features.shape)
    for options, alike in (({}, True), ({"heads": "branches"}, False)):
        objective = statistics(**options)
        one, two = (objective(batch_of(measured(3), rows)).losses["motion"].item() for rows in (features, shuffled))
        assert (one == pytest.approx(two, rel=1e-5)) == alike


def test_biases_learn_twice_as_fast() -> None:
    objective = statistics(weight_decay=0.01)
    fast, slow = (
        {id(parameter): group for parameter in group.parameters} for group in map(settled, objective.parameter_groups())
    )
    for name, parameter in objective.heads.named_parameters():
        group = (fast if name.endswith("bias") else slow)[id(parameter)]
        assert (group.learning_rate_scale, group.weight_decay) == (2.0 if name.endswith("bias") else 1.0, 0.01)
    assert len(fast) == len(slow) == 2
    *_, net = map(settled, statistics(biases="all", bias_learning_rate=3).parameter_groups())
    assert net.learning_rate_scale == 3 and [tuple(parameter.shape) for parameter in net.parameters] == [(DIM,)]


def settled(group: Any) -> Any:
    """A group whose parameters may be walked through twice."""
    from dataclasses import replace

    return replace(group, parameters=tuple(group.parameters))


# Clips ----------------------------------------------------------------------------------------------------------------


def test_its_clips_keep_their_colours_pace_and_turns() -> None:
    request = statistics().requests()["clip"]
    assert (request.appearance.colour, request.strides, request.turns) == ("kept", PLAIN, PLAIN)
    assert request.placement is request.boxes is request.flips is ANY
    assert [measure.name for measure in request.measures] == ["statistics/motion", "statistics/appearance"]
    assert [measure.whole for measure in request.measures] == [True, False], "flow is taken from whole frames"
    for options in ({"fixed": True}, {"curriculum": {}}):
        assert statistics(**options).requests()["clip"].placement == Fixed()


# Sentences ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "options, says",
    [
        ({"motion": False, "appearance": False}, "nothing to learn"),
        ({"patterns": [], "whole": False}, "no label is left"),
        ({"patterns": [1, 4]}, "each of 1, 2, 3 at most once"),
        ({"patterns": [1, 1]}, "each of 1, 2, 3 at most once"),
        ({"motion": False, "motion_weight": 2}, "motion_weight has no effect with motion: false"),
        ({"motion": False, "binning": "soft"}, "binning has no effect"),
        ({"motion": False, "curriculum": {}}, "curriculum has no effect"),
        ({"appearance": False, "appearance_weight": 1}, "appearance_weight has no effect"),
        ({"method": "raft"}, "method"),
        ({"metod": "dis"}, "did you mean 'method'"),
        ({"motion_weight": 0}, "greater than 0"),
        ({"subset": "1/3"}, "subset"),
    ],
)
def test_options_that_cannot_be_meant_are_one_sentence(options: dict[str, Any], says: str) -> None:
    with pytest.raises(ConfigError, match=r"^plugins\.statistics") as error:
        build(Statistics.Config, options, "plugins.statistics")
    assert says in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize(
    "options", [{}, {"patterns": [3, 1]}, {"motion": False}, {"curriculum": {"pacing": "fixed_exponential"}}]
)
def test_the_written_config_gives_the_same_objective(options: dict[str, Any]) -> None:
    config = build(Statistics.Config, options, "plugins.statistics")
    assert build(Statistics.Config, to_tree(config), "plugins.statistics") == config


@pytest.mark.parametrize(
    "clip, says",
    [
        (
            (16, 100, 1),
            "clip.size must be a multiple of 8, so that no pattern cuts a pixel, got 100; set clip.size=96 or",
        ),
        ((16, 5, 1), "got 5; set clip.size=8 or clip.size=16"),
        ((1, 16, 1), "clips have 1 frame; set clip.frames to 2 or more, or motion to false"),
    ],
)
def test_clips_that_cannot_be_measured_are_one_sentence(clip: tuple[int, int, int], says: str) -> None:
    with pytest.raises(ConfigError, match=r"^plugins\.statistics: ") as error:
        statistics(clip=ClipSettings(*clip))
    assert says in str(error.value) and "\n" not in str(error.value)


def test_colours_need_no_second_frame() -> None:
    assert statistics(clip=ClipSettings(1, 16, 1), motion=False).requests()["clip"].measures


def test_without_opencv_it_says_so_and_colours_still_work(monkeypatch: pytest.MonkeyPatch) -> None:
    from vssl_core.data import flow

    monkeypatch.setitem(sys.modules, "cv2", None)
    flow.estimator.cache_clear()
    with pytest.raises(ConfigError, match=r"OpenCV is not installed; install it with the extra, pip install") as error:
        statistics()
    assert "\n" not in str(error.value)
    statistics(motion=False)


def test_the_command_line_says_it_without_a_traceback(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    command = ["train", "--plugins", "statistics", "--data", f"folder:{splits().train.root}", "--dry-run"]
    assert main([*command, "--run", str(tmp_path), "clip.size=100", "batch_size=4"]) == 2
    told = capsys.readouterr()
    assert "clip.size must be a multiple of 8" in told.err and "Traceback" not in told.err + told.out


# Flow computed ahead --------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def ahead(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The flow of the dozen by DIS, as the command computes it."""
    place = tmp_path_factory.mktemp("flow") / "dozen"
    assert main(["data", "flow", splits().train.root, "--out", str(place), "--method", "dis", "--workers", "1"]) == 0
    return place


def of(place: Path, **options: Any) -> dict[str, Any]:
    return {"options": {"statistics": {"flow": str(place), **options}}, "epochs": 1}


def test_flow_that_was_computed_ahead_serves_without_opencv(
    ahead: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "cv2", None)
    run = train(tmp_path, {"statistics": None}, **of(ahead, method="dis"))
    assert run.step == VIDEOS // 4


def test_a_folder_of_another_method_or_stride_is_refused(ahead: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"method is tvl1, and the flow in .* was computed by dis; compute it with"):
        open_small(tmp_path / "a", {"statistics": None}, **of(ahead, method="tvl1"))
    with pytest.raises(ConfigError, match="frames 1 apart, and clips have a stride of 2"):
        open_small(tmp_path / "b", {"statistics": None}, clip={"stride": 2}, **of(ahead))
    with pytest.raises(DataError, match="so no flow; compute it with `vssl data flow`"):
        open_small(tmp_path / "c", {"statistics": None}, **of(tmp_path))


def test_a_video_without_flow_is_left_out_and_written_down(ahead: Path, tmp_path: Path) -> None:
    """As a video that cannot be read: another takes its place, and the reason stands in the ledger."""
    import shutil

    place = tmp_path / "flow"
    shutil.copytree(ahead, place)
    missing = splits().train.relative(5)
    (place / missing).with_suffix(".npz").unlink()
    run = train(tmp_path / "run", {"statistics": None}, data={"max_bad_fraction": 0.5}, **of(place))
    assert run.step == VIDEOS // 4
    (line,) = [json.loads(line) for line in (tmp_path / "run" / "skipped.jsonl").read_text().splitlines()]
    assert line["path"].endswith(missing) and "has no flow in" in line["reason"] and line["replacement"]


def test_a_folder_that_has_flow_of_none_of_the_videos_says_what_to_compute(ahead: Path, tmp_path: Path) -> None:
    """The videos are whole: no word of checking them."""
    (tmp_path / "flow.json").write_bytes((ahead / "flow.json").read_bytes())
    with pytest.raises(DataError, match="data: none of the .* has no flow in") as told:
        train(tmp_path / "run", {"statistics": None}, **of(tmp_path))
    assert f"has no flow in {tmp_path}, which is made of the videos below" in str(told.value)
    assert str(told.value).endswith(
        "; compute it with `vssl data flow SOURCE:ROOT --out FOLDER --method dis`, and name that folder"
    )


# Neighbours -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "neighbour, field", [("stor", None), ("byol", "appearance.colour"), ("pace", "strides"), ("rotation", "turns")]
)
def test_who_shares_its_clips(neighbour: str, field: str | None) -> None:
    from vssl_core.run.build import build_parts, choose

    tree = {
        "plugins": {"statistics": {}, neighbour: {}},
        "backbone": {"name": "tiny"},
        "clip": {"frames": 4, "size": 16},
        "data": {"source": "demo"},
        "device": {"kind": "cpu"},
        "batch_size": 4,
    }
    parts = build_parts(choose(RunConfig.model_validate(tree)), 100)
    assert (len(parts.plan.groups) == 1) == (field is None)
    assert field is None or any(refusal.field.startswith(field) for refusal in parts.plan.refusals)
