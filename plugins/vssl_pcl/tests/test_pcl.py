"""Prototypical Contrastive Learning against slow references, and when and what it clusters."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from copy import deepcopy
from math import exp, log
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError
from torch import Tensor, nn
from torch.nn import functional as F

import vssl_pcl
from vssl_core import ANY, Batch, ClipSettings, ConfigError, Context, DataError, Features, Request, UserError, View
from vssl_core.plugins import load, new_manager
from vssl_core.testing import check_plugin
from vssl_core.testing.objectives import TOGETHER
from vssl_core.testing.ranks import on_two_ranks
from vssl_core.testing.trial import Trial
from vssl_pcl.objective import Pcl, against_prototypes, against_queue

pytest.importorskip("faiss", reason="needs faiss: pip install 'vssl[cpu]'")

VIDEOS, LIST, FEATURES = 4, 24, 12


class Net(nn.Module):
    """A backbone of one layer and a batch norm."""

    feature_dim = FEATURES

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Conv3d(3, FEATURES, 2), nn.BatchNorm3d(FEATURES), nn.ReLU())
        self.forwards = 0

    def forward(self, clip: Tensor) -> dict[str, Tensor]:
        """{'stage5': the map}."""
        self.forwards += 1
        return {"stage5": self.body(clip)}


def build(seed: int = 0, videos: int = LIST, epochs: int = 40, **options: object) -> Pcl:
    torch.manual_seed(seed)
    context = Context(
        name="pcl",
        clip=ClipSettings(3, 4, 1),
        backbone=Net(),
        feature_dim=FEATURES,
        stages={},
        videos=videos,
        epochs=epochs,
        steps_per_epoch=6,
        batch_size=VIDEOS,
        world_size=1,
    )
    return Pcl(Pcl.Config(**{"clusters": (3, 5), "restarts": 2, **options}), context)


def clips(count: int, seed: int = 0) -> Tensor:
    return torch.randn(count, 3, 3, 4, 4, generator=torch.Generator().manual_seed(seed))


def views_of(objective: Pcl, *shown: Tensor) -> tuple[View, ...]:
    backbone = objective.context.backbone
    return tuple(View(clip, clip[:, :, :0], None, {}, Features(lambda clip=clip: backbone(clip))) for clip in shown)


def batch_of(objective: Pcl, index: list[int], epoch: int = 0) -> Batch:
    """A batch of these videos of the list, as many noisy clips of each as the objective reads."""
    whole = clips(LIST)[index]
    noisy = (whole + 0.1 * clips(len(index), seed + 1) for seed in range(objective.config.clips))
    return Batch(
        "pcl", {"clips": views_of(objective, *noisy)}, torch.tensor(index), [], epoch=epoch, progress=0.0, encode=None
    )


class Run:
    """What the objective reads of a run; the whole list is extracted in two batches."""

    def __init__(self, objective: Pcl, epoch: int = 0, unreadable: tuple[int, ...] = ()) -> None:
        self.objective, self.epoch, self.unreadable = objective, epoch, unreadable
        self.backbone, self.device = objective.context.backbone, torch.device("cpu")
        self.config = SimpleNamespace(seed=0)
        self.extractions: list[Request] = []

    def extract(self, request: Request, encode: Callable[[Batch], Mapping[str, Tensor]]) -> dict[str, Any]:
        """As the engine does it: eval mode, index order, unreadable rows left out."""
        self.extractions.append(request)
        index = torch.tensor([row for row in range(LIST) if row not in self.unreadable])
        self.objective.eval()
        parts = []
        for part in index.chunk(2):
            views = views_of(self.objective, clips(LIST)[part])
            batch = Batch("extract", {"clips": views}, part, [], epoch=0, progress=0.0, encode=None)
            parts.append(encode(batch)["embedding"])
        self.objective.train()
        return {"embedding": torch.cat(parts), "index": index, "unreadable": list(self.unreadable)}


def announce(objective: Pcl, hook: str, **arguments: object) -> None:
    """A moment of the run, as the engine tells of it."""
    manager = new_manager()
    manager.register(objective, "pcl")
    getattr(manager.hook, hook)(**arguments)


def clustered(**options: object) -> Pcl:
    objective = build(**{"warmup_epochs": 0, **options})
    announce(objective, "vssl_epoch_start", run=Run(objective))
    return objective


def slow_entropy(query: list[float], own: int, prototypes: list[list[float]], spread: list[float]) -> float:
    """Cross entropy over unique clusters in loops: the own prototype once, and every other one."""
    scores = [
        sum(a * b for a, b in zip(query, row, strict=True)) / phi for row, phi in zip(prototypes, spread, strict=True)
    ]
    highest = max(scores)
    return log(sum(exp(score - highest) for score in scores)) + highest - scores[own]


# The losses -----------------------------------------------------------------------------------------------------------


@given(rows=st.integers(1, 6), clusters=st.integers(2, 8), seed=st.integers(0, 10_000))
@settings(max_examples=25, deadline=None)
def test_the_prototype_term_is_the_one_in_loops(rows, clusters, seed):
    generator = torch.Generator().manual_seed(seed)
    queries = F.normalize(torch.randn(rows, 5, generator=generator, dtype=torch.float64), dim=1)
    prototypes = F.normalize(torch.randn(clusters, 5, generator=generator, dtype=torch.float64), dim=1)
    spread = 0.1 + torch.rand(clusters, generator=generator, dtype=torch.float64)
    own = torch.randint(-1, clusters, (rows,), generator=generator)
    wanted = [
        slow_entropy(query, cluster, prototypes.tolist(), spread.tolist())
        for query, cluster in zip(queries.tolist(), own.tolist(), strict=True)
        if cluster >= 0
    ]
    found, accuracy = against_prototypes(queries, own, prototypes, spread)
    assert found.item() == pytest.approx(sum(wanted) / max(len(wanted), 1), rel=1e-9, abs=1e-12)
    assert 0 <= accuracy <= 1


def test_anchors_of_one_cluster_do_not_repel_its_prototype():
    """Two anchors in one cluster: their prototype is a candidate once, as for each of them alone."""
    prototypes, spread = torch.eye(3, 5), torch.full((3,), 0.2)
    queries = F.normalize(torch.randn(2, 5, generator=torch.Generator().manual_seed(0)), dim=1)
    together = against_prototypes(queries, torch.tensor([1, 1]), prototypes, spread)[0]
    alone = [against_prototypes(query[None], torch.tensor([1]), prototypes, spread)[0] for query in queries]
    torch.testing.assert_close(together, torch.stack(alone).mean())


def test_logits_that_are_all_equal_cost_the_logarithm_of_the_clusters():
    queries = torch.tensor([[1.0, 0.0]])
    prototypes = torch.tensor([[0.0, 1.0]]).expand(9, 2)
    found, _ = against_prototypes(queries, torch.tensor([4]), prototypes, torch.rand(9) + 0.1)
    assert found.item() == pytest.approx(log(9))


def test_videos_of_no_cluster_are_left_out_and_none_costs_nothing():
    queries = torch.randn(3, 4, requires_grad=True)
    found, _ = against_prototypes(queries, torch.tensor([-1, -1, -1]), torch.zeros(2, 4), torch.ones(2))
    found.backward()
    assert found == 0 and not queries.grad.any()


@pytest.mark.parametrize(
    ("options", "queries", "online", "slow"),
    [({}, [0], 1, 1), ({"symmetric": True}, [0, 1], 2, 2), ({"clips": 3}, [0, 1, 2], 3, 3)]
    + [({"clips": 3, "symmetric": False}, [0], 1, 2)],
)
def test_forward_is_the_plain_computation_of_both_terms(options, queries, online, slow):
    """In loops over ordered pairs of clips, videos and clusterings; and each clip is seen once by each net."""
    objective = clustered(queue=8, temperature=0.3, **options)
    index = [3, 17, 8, 3]
    views = batch_of(objective, index)["clips"]
    with torch.no_grad():
        plain = deepcopy(objective)
        rows = {
            kind: [F.normalize(projector(net(view.clip)["stage5"].mean(dim=(2, 3, 4))), dim=1) for view in views]
            for kind, net, projector in (
                ("query", plain.context.backbone, plain.projector),
                ("key", plain.teacher.backbone, plain.teacher.projector),
            )
        }
    instance = [
        slow_entropy(found, 0, [wanted, *plain.queue.rows.tolist()], [0.3] * 9)
        for query in queries
        for key in range(len(views))
        if key != query
        for found, wanted in zip(rows["query"][query].tolist(), rows["key"][key].tolist(), strict=True)
    ]
    prototype, first = [], 0
    for number, count in enumerate((3, 5)):
        middles, spread = plain.prototypes[first : first + count], plain.concentrations[first : first + count]
        for query in queries:
            for found, video in zip(rows["query"][query].tolist(), index, strict=True):
                own = int(plain.assignments[number, video])
                prototype.append(slow_entropy(found, own, middles.tolist(), spread.tolist()))
        first += count
    seen = objective.context.backbone.forwards, objective.teacher.backbone.forwards
    terms = objective(batch_of(objective, index))
    assert terms.losses["instance"].item() == pytest.approx(sum(instance) / len(instance), rel=1e-4)
    assert terms.losses["prototype"].item() == pytest.approx(sum(prototype) / len(prototype), rel=1e-4)
    torch.testing.assert_close(terms.keep["keys"], rows["key"][1])  # one for each video, however many clips
    assert objective.context.backbone.forwards - seen[0] == online
    assert objective.teacher.backbone.forwards - seen[1] == slow


def test_gradients_reach_the_query_and_nothing_of_the_key():
    objective = clustered()
    terms = objective(batch_of(objective, [0, 1, 2, 3]))
    terms.losses["prototype"].backward()
    trained = [*objective.context.backbone.parameters(), *objective.projector.parameters()]
    assert all(parameter.grad is not None and parameter.grad.isfinite().all() for parameter in trained)
    assert any(parameter.grad.any() for parameter in objective.context.backbone.parameters())
    assert all(not parameter.requires_grad for parameter in objective.teacher.parameters())


def test_half_precision_around_it_does_not_reach_the_similarities():
    rows, spread = F.normalize(torch.randn(5, 8), dim=1), torch.full((5,), 0.1)
    own = torch.arange(5)
    plain = [against_queue(rows, rows, rows, 0.1), *against_prototypes(rows, own, rows, spread)]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        within = [against_queue(rows, rows, rows, 0.1), *against_prototypes(rows, own, rows, spread)]
    assert all(torch.equal(*both) for both in zip(plain, within, strict=True))


# Clustering -----------------------------------------------------------------------------------------------------------


def test_it_clusters_after_the_warm_up_every_few_epochs_and_nothing_changes_in_between():
    objective = build(warmup_epochs=2, every=3)
    run, clusterings = Run(objective), []
    for epoch in range(10):
        run.epoch, before = epoch, deepcopy(objective.state_dict())
        seen = len(run.extractions)
        with torch.no_grad():
            objective.teacher.projector[0].weight.mul_(-1).add_(0.1)
        announce(objective, "vssl_epoch_start", run=run)
        now = len(run.extractions) > seen
        clusterings += [epoch] if now else []
        same = all(
            torch.equal(before[name], objective.state_dict()[name])
            for name in ("assignments", "prototypes", "concentrations")
        )
        assert same != now
        terms = objective(batch_of(objective, [0, 1, 2, 3], epoch))
        assert ("prototype" in terms.losses) == (epoch >= 2)
    assert clusterings == [2, 5, 8]


def test_it_clusters_the_middle_of_each_video_as_filmed():
    objective, (request,) = build(warmup_epochs=0), [None]
    run = Run(objective)
    announce(objective, "vssl_epoch_start", run=run)
    (request,) = run.extractions
    assert request.clips == 1 and request.appearance.colour == "kept" and request.flips.probability == 0


def test_what_it_keeps_is_the_clustering_of_what_the_slow_encoder_sees():
    objective = clustered(temperature=0.3)
    objective.eval()
    with torch.no_grad():
        maps = objective.teacher.backbone(clips(LIST))["stage5"]
        rows = F.normalize(objective.teacher.projector(maps.mean(dim=(2, 3, 4))), dim=1)
    first = 0
    for number, count in enumerate((3, 5)):
        prototypes, spread = (part[first : first + count] for part in (objective.prototypes, objective.concentrations))
        own = objective.assignments[number]
        torch.testing.assert_close(prototypes.norm(dim=1), torch.ones(count))
        assert spread.mean().item() == pytest.approx(0.3, rel=1e-4) and own.min() >= 0 and own.max() < count
        for cluster in own.unique().tolist():
            middle = F.normalize(rows[own == cluster].mean(dim=0), dim=0)
            torch.testing.assert_close(prototypes[cluster], middle, rtol=1e-3, atol=1e-3)
        first += count


def test_the_state_brings_clusters_queue_and_slow_encoder_back():
    first, second = clustered(), build(seed=5, warmup_epochs=0)
    announce(first, "vssl_step_end", run=Run(first), report=SimpleNamespace(kept={"pcl": {"keys": torch.ones(4, 128)}}))
    second.load_state_dict(deepcopy(first.state_dict()))
    second.context.backbone.load_state_dict(first.context.backbone.state_dict())
    found = [objective(batch_of(objective, [5, 6, 7, 8])).losses for objective in (first, second)]
    assert all(torch.equal(found[0][name], found[1][name]) for name in ("instance", "prototype"))


def test_a_step_moves_slow_encoder_and_queue_and_no_cluster():
    objective = clustered(queue=6, momentum=0.9)
    before = deepcopy(objective.state_dict())
    with torch.no_grad():
        objective.projector[0].weight.add_(1)
    keys = F.normalize(torch.randn(4, 128), dim=1)
    announce(objective, "vssl_step_end", run=Run(objective), report=SimpleNamespace(kept={"pcl": {"keys": keys}}))
    after = objective.state_dict()
    assert torch.equal(objective.queue.rows_in_order(), keys)
    moved = after["teacher.projector.0.weight"] - before["teacher.projector.0.weight"]
    torch.testing.assert_close(moved, torch.full_like(moved, 0.1), rtol=1e-4, atol=1e-5)
    assert all(torch.equal(after[name], before[name]) for name in ("assignments", "prototypes", "concentrations"))


def test_unreadable_videos_belong_to_no_cluster():
    objective = build(warmup_epochs=0)
    announce(objective, "vssl_epoch_start", run=Run(objective, unreadable=(0, 9)))
    assert (objective.assignments[:, [0, 9]] == -1).all() and (objective.assignments >= 0).sum() == 2 * (LIST - 2)
    assert objective(batch_of(objective, [0, 9, 0, 9])).losses["prototype"] == 0


def test_too_few_readable_videos_are_a_sentence():
    objective = build(warmup_epochs=0, clusters=(23,))
    with pytest.raises(DataError, match=r"plugins\.pcl\.clusters: 22 of 24 videos can be read, .* at most 22"):
        announce(objective, "vssl_epoch_start", run=Run(objective, unreadable=(0, 9)))


def test_forward_changes_nothing_but_running_statistics():
    objective = clustered()
    before = deepcopy(objective.state_dict())
    objective(batch_of(objective, [0, 1, 2, 3]))
    changed = {name for name, value in objective.state_dict().items() if not torch.equal(value, before[name])}
    assert changed and all(name.endswith(("running_mean", "running_var", "num_batches_tracked")) for name in changed)


def test_faiss_missing_is_told_before_the_warm_up(monkeypatch):
    objective = build(warmup_epochs=20)
    announce(objective, "vssl_run_start", run=Run(objective))
    monkeypatch.setitem(sys.modules, "faiss", None)
    with pytest.raises(UserError, match=r"k-means: needs faiss.*pip install 'vssl\[cpu\]'"):
        announce(objective, "vssl_run_start", run=Run(objective))


def test_two_ranks_hold_queue_prototypes_and_assignments_of_one(tmp_path):
    options = {"clusters": (2, 3), "warmup_epochs": 0, "clips": 3}
    trial = Trial(load(["pcl"])[1]["pcl"], options, tmp_path)
    settings = {**TOGETHER, "exact": True}
    one, ranks = trial.record("one", **settings), on_two_ranks(trial.job("two", **settings))
    for name in ("queue.rows", "queue.cursor", "queue.filled", "prototypes", "concentrations", "assignments"):
        alone, first, second = (recording.state[f"objectives.pcl.{name}"] for recording in (one, *ranks))
        torch.testing.assert_close(alone, first, rtol=1e-4, atol=1e-5)
        assert torch.equal(first, second)
    assert int(one.state["objectives.pcl.queue.filled"]) == 12 and one.state["objectives.pcl.assignments"].max() == 2


# Sizes and options ----------------------------------------------------------------------------------------------------


def test_sizes_follow_list_and_run_unless_they_are_given():
    def sizes(videos: int, epochs: int) -> tuple[tuple[int, ...], int, int]:
        objective = build(videos=videos, epochs=epochs, clusters=None)
        return objective.clusters, objective.warmup, len(objective.queue)

    assert sizes(9537, 300) == ((186, 372, 744), 20, 9536)
    assert sizes(24, 2) == ((2, 2, 2), 1, 24)
    assert sizes(1_281_167, 200) == ((25_000, 50_000, 100_000), 20, 16384)


def test_more_clusters_than_videos_are_refused_in_a_sentence():
    with pytest.raises(ConfigError, match=r"plugins\.pcl\.clusters: 25 clusters .* 24 videos .* from 2 to 24"):
        build(clusters=(3, 25))
    with pytest.raises(ConfigError, match=r"plugins\.pcl\.clusters: 1 clusters"):
        build(clusters=(1,))
    with pytest.raises(ConfigError, match=r"plugins\.pcl\.queue: 25 rows"):
        build(queue=25)


@pytest.mark.slow
def test_three_clips_keep_the_contract():
    check_plugin("pcl", clips=3)


def test_it_reads_clips_of_any_geometry_with_jittered_colours():
    assert build().requests()["clips"].clips == 2
    request = build(clips=3).requests()["clips"]
    assert request.clips == 3 and request.appearance.colour == "jittered" and request.appearance.per is ANY
    assert {request.strides, request.placement, request.boxes, request.flips, request.turns} == {ANY}


@pytest.mark.parametrize(
    "options",
    [
        {"clusters": ()},
        {"every": 0},
        {"temperature": 0},
        {"queue": 0},
        {"clips": 1},
        {"clips": 17},
        {"num_cluster": 3},
    ],
)
def test_options_have_bounds(options):
    with pytest.raises(ValidationError):
        Pcl.Config(**options)


def test_the_plugin_offers_it_and_says_which_pcl_it_is():
    assert vssl_pcl.vssl_objective() is Pcl and "ICLR 2021" in vssl_pcl.PAPER
    assert "not Pretext-Contrastive Learning" in vssl_pcl.PAPER
