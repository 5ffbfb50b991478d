"""Several ranks do what one does with the same global batch: every objective, for several steps of the real engine.

What is compared are losses, metrics, gradients, kept rows and the whole state (queues, teachers, banks, prototypes,
clusters, running statistics), for each step, between one rank and two or four. All runs have
`device.sync_batch_norm`, no dropout and no kinks (see `smooth`), and small steps.

**Tolerance.** In the first step two tensors are alike when they differ by less than 1e-4 of their length, in later ones
by less than 1e-3, plus a floor of a tenth of that (of all gradients together, for a gradient) for what is zero but for
rounding. All is float32, where a sum of n terms in another order moves by about 1e-7 times the square root of n, here
1e-6; batch norms divide by deviations that are a part of what they normalise, and contrasts by a temperature of 0.07,
so that gradients of a first step on two ranks were found up to 1e-5 apart. Steps multiply that, since each starts from
weights that differ already: up to 4e-4 was found in the fourth. `VSSL_RANKS_TOLD=1 pytest -s` tells what is found. What
is wrong on ranks is wrong by far more: negatives of one's own rank alone change a loss by more than a percent, a
forgotten factor by the number of ranks; `test_a_loss_that_forgets_other_ranks_is_told_apart` sees to it that this would
not pass. A metric that counts rows (an accuracy) is held to the same: no row may change sides.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import small_runs
import torch
import torch.nn.functional as F
from small_runs import assert_equal, on_ranks, open_small, with_broken
from torch import Tensor, nn

from vssl_core import Batch, Context, Measure, Objective, Request, Splits, Terms, Videos, VsslError, hookimpl, rank
from vssl_core.config import build_options
from vssl_core.data.clips import REPLACEMENTS
from vssl_core.plugins import load
from vssl_core.run.build import context_of, make_backbone
from vssl_core.run.engine import Run
from vssl_core.run.evaluation import Extraction, extract
from vssl_core.run.offered import EvaluationContext
from vssl_core.testing.recording import smooth
from vssl_core.windows import Sample

TOLERANCE, LATER = 1e-4, 1e-3  # of the first step, of those that follow
UNEVEN = 19  # videos: the last 3 make no batch of 8, and 2 or 4 ranks share them unevenly where each is seen once
HARD_LIMIT = 150  # seconds, within which a rank that waits for ever is found out
TOGETHER: dict[str, Any] = {
    "epochs": 2,  # of two steps each
    "batch_size": 8,  # with fewer rows, batch norm over the last stage's single places blows rounding up
    "optim": {"lr": 1e-3, "schedule": "constant"},  # steps as large as usual blow rounding up
    "device": {"kind": "cpu", "sync_batch_norm": True},
}

# Each objective with options that bring all of its state to life in the second of two epochs
OBJECTIVES: dict[str, tuple[str, dict[str, Any]]] = {
    "barlow": ("barlow", {}),
    "byol": ("byol", {"hidden": 32}),
    "concepts": ("concepts", {"queue_epoch": 1}),
    "moco": ("moco", {"momentum": 0.9}),
    "moco 3": ("moco", {"queue": 0, "predictor": True, "norm": True, "momentum": 0.9, "layers": 3}),
    "multilevel": ("multilevel", {"queue_epoch": 1}),
    "pace": ("pace", {}),
    "pace, same context": ("pace", {"contrast": "same_context"}),
    "pcl": ("pcl", {"warmup_epochs": 1, "clusters": [3, 4], "momentum": 0.9}),
    "rotation": ("rotation", {}),
    "saccades": ("saccades", {"reorganise_from": 1, "every": 1, "clusters": [3, 4]}),
    "saccades, sharded": ("saccades", {"reorganise_from": 1, "every": 1, "clusters": [3, 4], "bank": "sharded"}),
    "simclr": ("simclr", {}),
    "simsiam": ("simsiam", {}),
    "statistics": ("statistics", {}),
    "stor": ("stor", {}),
    "swav": ("swav", {"queue_epoch": 1}),
    "vicreg": ("vicreg", {}),
}
CURRICULUM = {"curriculum": ("statistics", {"curriculum": {"first": 0.5}})}  # has steps of its own: not among them
ON_FOUR = ("moco", "pcl", "saccades, sharded", "swav", "simclr", "multilevel")  # each kind of state, and negatives


# Jobs: each runs on every rank ----------------------------------------------------------------------------------------


class Sees:
    """An observer that keeps everything that must not depend on ranks."""

    def __init__(self) -> None:
        self.steps: list[dict[str, dict[str, Tensor]]] = []
        self.gradients: dict[str, Tensor] = {}

    @hookimpl(trylast=True)
    def vssl_backward_end(self, run: Run) -> None:
        named = run.ensemble.named_parameters()
        self.gradients = {name: value.grad.clone() for name, value in named if value.grad is not None}

    @hookimpl(trylast=True)
    def vssl_step_end(self, run: Run, report: Any) -> None:
        kept = {f"{name}/{key}": rows for name, whole in report.kept.items() for key, rows in whole.items()}
        self.steps.append(
            {
                "losses": {"loss": report.loss.clone(), **report.losses},
                "metrics": dict(report.metrics),
                "index": {"index": report.index},
                "kept": kept,
                "gradients": self.gradients,
                "state": {name: value.clone() for name, value in run.ensemble.state_dict().items()},
            }
        )


def listed(videos: int) -> Splits:
    """So many of the small videos, some of them twice where there are not enough."""
    whole = small_runs.splits().train
    names = [whole.relative(number % len(whole)) for number in range(videos)]
    return Splits(Videos.build(names, None, (), whole.root), None, "small")


def trained(folder: str, name: str, options: dict[str, Any], videos: int, changes: dict[str, Any]) -> Any:
    """A whole run with a plugin that is installed, or one of this file, as every step left it."""
    own = {"local": LocalNegatives}.get(name)
    sees = Sees()
    run = open_small(
        Path(folder),
        {name: own, "sees": sees},
        videos=listed(videos),
        options={name: options},
        **{**TOGETHER, **changes},
    )
    smooth(run.ensemble)
    run.train()
    return sees.steps


class LocalNegatives(Objective):
    """A contrast whose author forgot `gather`."""

    def __init__(self, config: Any, context: Context) -> None:
        super().__init__(config, context)
        self.head = nn.Linear(context.feature_dim, 8)

    def requests(self) -> Mapping[str, Request]:
        return {"pair": Request(clips=2)}

    def forward(self, batch: Batch) -> Terms:
        one, other = (F.normalize(self.head(view.features.vector), dim=1) for view in batch["pair"])
        return Terms({"contrast": F.cross_entropy(one @ other.T / 0.1, torch.arange(len(one)))})


# Comparing ------------------------------------------------------------------------------------------------------------


def apart(one: Tensor, other: Tensor, tolerance: float, scale: float = 1.0) -> float:
    """How many times the tolerance two tensors lie apart, as vectors; `scale` is the length that counts as one."""
    assert one.shape == other.shape and one.dtype == other.dtype
    if not one.is_floating_point():
        return 0.0 if torch.equal(one, other) else float("inf")
    one, other = one.double(), other.double()
    return float((one - other).norm() / (tolerance * (one.norm() + scale / 10)))


def differences(alone: list[Any], together: list[Any]) -> dict[str, float]:
    """{'step 1, losses, simclr/contrast': times the tolerance} of all that was seen."""
    found = {}
    for number, (one, other) in enumerate(zip(alone, together, strict=True), start=1):
        whole = float(torch.stack([value.double().norm() for value in one["gradients"].values()]).norm())
        for kind in one:
            assert list(one[kind]) == list(other[kind]), f"step {number}: {kind}"
            tolerance, scale = TOLERANCE if number == 1 else LATER, whole if kind == "gradients" else 1.0
            for name, value in one[kind].items():
                found[f"step {number}, {kind}, {name}"] = apart(value, other[kind][name], tolerance, scale)
    return found


def assert_alike(alone: list[Any], together: list[Any]) -> None:
    """All within the tolerance; the worst is told."""
    found = differences(alone, together)
    worst = sorted(found.items(), key=lambda item: -item[1])[:5]
    if os.environ.get("VSSL_RANKS_TOLD"):
        print("\n  worst, in tolerances:", *(f"{what}: {times:.2f}" for what, times in worst[:2]))
    assert worst[0][1] <= 1, worst


def compare(tmp_path: Path, label: str, ranks: int, **changes: Any) -> tuple[list[Any], list[list[Any]]]:
    """What one rank saw, and what each of several did."""
    name, options = (OBJECTIVES | CURRICULUM).get(label, (label, {}))
    told = {"name": name, "options": options, "videos": UNEVEN, "changes": changes}
    (alone,) = on_ranks(1, trained, folder=str(tmp_path / "one"), **told)
    return alone, on_ranks(ranks, trained, folder=str(tmp_path / "many"), **told)


# Every objective ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("label", OBJECTIVES)
def test_two_ranks_are_one(tmp_path: Path, label: str) -> None:
    alone, together = compare(tmp_path, label, 2)
    assert len(alone) == 4  # the rest of an epoch, which makes no batch, is left out on every rank
    assert_equal([step["state"] for step in together[0]], [step["state"] for step in together[1]])
    for seen in together:
        assert_alike(alone, seen)


@pytest.mark.slow
@pytest.mark.parametrize("label", ON_FOUR)
def test_four_ranks_are_one(tmp_path: Path, label: str) -> None:
    alone, together = compare(tmp_path, label, 4)
    for seen in together:
        assert_equal([step["state"] for step in seen], [step["state"] for step in together[0]])
        assert_alike(alone, seen)


def test_a_curriculum_on_two_ranks_is_that_of_one(tmp_path: Path) -> None:
    """Scores of all videos, of which each rank reads its own uneven share, and the order that follows from them."""
    alone, together = compare(tmp_path, "curriculum", 2)
    scores = alone[0]["state"]["objectives.statistics.scores"]
    easier = set(scores.argsort(descending=True, stable=True)[: (UNEVEN + 1) // 2].tolist())
    assert len(alone) == 3 and len(scores.unique()) > 5  # one batch of the easier half, then two of all
    assert set(alone[0]["index"]["index"].tolist()) < easier
    assert_equal([step["state"] for step in together[0]], [step["state"] for step in together[1]])
    for seen in together:
        assert_alike(alone, seen)  # the videos of each step too
        assert torch.equal(seen[0]["state"]["objectives.statistics.scores"], scores)


def test_a_loss_that_forgets_other_ranks_is_told_apart(tmp_path: Path) -> None:
    """The tolerance lies far below what a real mistake does."""
    alone, together = compare(tmp_path, "local", 2)
    found = differences(alone, together[0])
    assert found["step 1, losses, local/contrast"] > 100
    assert max(value for what, value in found.items() if what.startswith("step 1, gradients")) > 100


# What each video is seen once for: extraction, evaluation -------------------------------------------------------------


def evaluated(videos: int, tests: int) -> Any:
    """Features of both splits, and what two protocols make of them."""
    config = small_runs.settings({"retrieval": {}, "linear": {}})
    manager, plugins = load(["retrieval", "linear"])
    backbone = make_backbone(config, manager)
    whole = small_runs.splits().train
    names, labels = [whole.relative(number) for number in range(len(whole))], list(map(int, whole.labels))
    train = Videos.build(names[:videos], labels[:videos], whole.classes, whole.root)
    test = Videos.build(names[-tests:], labels[-tests:], whole.classes, whole.root)
    splits = Splits(train, test, "small")
    stages = tuple(backbone.stages)
    extraction = Extraction(2, ("train", "test"), stages)
    found = extract(config, {"net": backbone}, splits, extraction, torch.device("cpu"))["net"]
    context = EvaluationContext.of(context_of(config, "", backbone, videos), dict)
    options = {"retrieval": {"ks": [1, 2], "clips": 2}, "linear": {"clips": 2}}
    metrics = {}
    for name, raw in options.items():
        kind = plugins[name].evaluation
        metrics[name] = dict(kind(build_options(kind.Config, raw, name), context).run(found).metrics)
    return {
        "vectors": {
            f"{split}/{stage}": found.splits[split].vectors[stage] for split in found.splits for stage in stages
        },
        "paths": {split: list(found.splits[split].paths) for split in found.splits},
        "metrics": metrics,
    }


@pytest.mark.parametrize("ranks", [2, pytest.param(4, marks=pytest.mark.slow)])
@pytest.mark.parametrize(("videos", "tests"), [(11, 3), (7, 1)], ids=["uneven", "fewer than ranks"])
def test_an_evaluation_is_that_of_one_rank(ranks: int, videos: int, tests: int) -> None:
    """Rows in order, though ranks have other numbers of videos, or none; the metrics of all ranks are the same.

    Features are equal but for 1e-5: nothing but the size of a batch tells them apart.
    """
    told = {"videos": videos, "tests": tests}
    (alone,) = on_ranks(1, evaluated, **told)
    for found in on_ranks(ranks, evaluated, HARD_LIMIT, **told):
        assert found["paths"] == alone["paths"]
        assert len(found["paths"]["train"]) == videos and len(found["paths"]["test"]) == tests
        for name, rows in alone["vectors"].items():
            assert apart(rows, found["vectors"][name], 1e-5) <= 1, name
        for name, metrics in alone["metrics"].items():
            assert found["metrics"][name] == pytest.approx(metrics, abs=1e-3), name


# Bad videos -----------------------------------------------------------------------------------------------------------


class InOrder:
    """An observer that leaves the list as it is, so that each video's rank is known."""

    @hookimpl
    def vssl_epoch_order(self, run: Run) -> range:
        return range(len(run.videos))


def starved(folder: str, place: str, plugins: dict[str, dict[str, Any]], changes: dict[str, Any]) -> Any:
    """A run on videos some of which cannot be read: what it saw, what it said, and who is in the ledger."""
    sees, offered = Sees(), {name: {"local": LocalNegatives}.get(name) for name in plugins}
    run = open_small(
        Path(folder), {**offered, "order": InOrder(), "sees": sees}, videos=small_runs.splits(Path(place)),
        options=plugins, **{**TOGETHER, "data": {"workers": 0, "max_bad_fraction": 1.0}, **changes},
    )  # fmt: skip
    smooth(run.ensemble)
    told = ""
    try:
        run.train()
    except VsslError as error:
        told = f"{type(error).__name__}: {error}"
    return {"steps": sees.steps, "told": told, "met": sorted(run.ledger.met)}


CLUSTERING = {"pcl": {"warmup_epochs": 0, "clusters": [2, 3], "momentum": 0.9}}
SECOND_HALF = list(range(6, 12))  # of the dozen: with two ranks, all of the second in an extraction


@pytest.mark.parametrize("workers", [0, pytest.param(1, marks=pytest.mark.slow)])
def test_a_rank_whose_videos_are_all_bad_does_not_stop_the_others(tmp_path: Path, workers: int) -> None:
    """In batches of four, and where each video is seen once to cluster; others come in their place, as on one rank."""
    broken = [2, 3, *SECOND_HALF]  # in batches of 4: all of the second rank's in each, and all of the last two batches
    place = with_broken(tmp_path, broken).train.root
    told = {"place": place, "plugins": CLUSTERING}
    changes = {"batch_size": 4, "data": {"workers": workers, "max_bad_fraction": 1.0}}
    (alone,) = on_ranks(1, starved, folder=str(tmp_path / "one"), changes=changes, **told)
    both = on_ranks(2, starved, HARD_LIMIT, folder=str(tmp_path / "two"), changes=changes, **told)
    assert len(alone["steps"]) == 6 and not alone["told"]
    for found in both:
        assert not found["told"] and found["met"] == alone["met"]
        for one, other in zip(alone["steps"], found["steps"], strict=True):
            assert torch.equal(one["index"]["index"], other["index"]["index"])
            assert not set(other["index"]["index"].tolist()) & set(broken)
        assert apart(alone["steps"][0]["losses"]["loss"], found["steps"][0]["losses"]["loss"], TOLERANCE) <= 1
    listed = (tmp_path / "two" / "skipped.jsonl").read_text().splitlines()
    assert sorted(json.loads(line)["video"] for line in listed) == broken


def tried(seed: int) -> set[int]:
    """The videos that are tried for the second place of the first batch: video 1, and what comes for it."""
    generator = Sample(seed, 0, 0, 1).generator("replacement")
    return {1, *(int(generator.integers(12)) for _ in range(REPLACEMENTS))}


def test_what_one_rank_alone_cannot_read_is_said_by_all(tmp_path: Path) -> None:
    """One rank's videos and all that it tries in their place: it fails, and the other does not wait for it."""
    place = with_broken(tmp_path, [number for number in range(12) if number != 0]).train.root
    told = {"place": place, "plugins": {"local": {}}}
    seed = next(seed for seed in range(1000) if 0 not in tried(seed))
    changes = {"batch_size": 2, "seed": seed}
    both = on_ranks(2, starved, HARD_LIMIT, folder=str(tmp_path / "two"), changes=changes, **told)
    assert both[0]["told"] == both[1]["told"]
    assert both[0]["told"].startswith("DataError: data: none of the") and not both[0]["steps"]
    listed = (tmp_path / "two" / "skipped.jsonl").read_text().splitlines()
    assert {json.loads(line)["video"] for line in listed} == tried(seed)


def breaks(*given: Any) -> Any:
    """Break, on the second rank alone."""
    return 1 / (1 - rank())


class Breaks(LocalNegatives):
    """Measures what cannot be measured."""

    def requests(self) -> Mapping[str, Request]:
        return {"pair": Request(clips=2, measures=(Measure("breaks", breaks),))}


def said(what: Callable[[], Any]) -> str:
    """What is raised."""
    try:
        what()
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    return "nothing"


def broken_loader(folder: str) -> str:
    return said(open_small(Path(folder), {"breaks": Breaks}, **TOGETHER).train)


def broken_extraction(folder: str) -> str:
    run = open_small(Path(folder), {"local": LocalNegatives}, **TOGETHER)
    return said(lambda: run.extract(Request(), lambda batch: {"rows": batch.index * breaks()}))


def test_a_loader_that_breaks_on_one_rank_ends_all(tmp_path: Path) -> None:
    """An error that nobody foresaw, in the loader of the second rank alone."""
    division = "ZeroDivisionError: division by zero"
    both = on_ranks(2, broken_loader, HARD_LIMIT, folder=str(tmp_path / "run"))
    assert both == [f"VsslError: rank 1 of 2: {division}", division]


def test_an_extraction_that_fails_on_one_rank_fails_on_all(tmp_path: Path) -> None:
    division = "ZeroDivisionError: division by zero"
    both = on_ranks(2, broken_extraction, HARD_LIMIT, folder=str(tmp_path / "run"))
    assert both == [f"VsslError: rank 1 of 2: {division}", division]
