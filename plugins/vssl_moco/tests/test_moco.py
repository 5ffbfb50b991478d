"""MoCo against slow references: its loss, its queue as a deque, and the order of the published training loop."""

from __future__ import annotations

from collections import deque
from copy import deepcopy
from math import cos, exp, log, pi
from types import SimpleNamespace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError
from torch import Tensor, nn
from torch.nn import functional as F

import vssl_moco
from vssl_core import ANY, Batch, ClipSettings, ConfigError, Context, Features, View
from vssl_core.plugins import load, new_manager
from vssl_core.testing import check_plugin
from vssl_core.testing.objectives import TOGETHER
from vssl_core.testing.ranks import on_two_ranks
from vssl_core.testing.trial import Trial
from vssl_moco.objective import MoCo, against_queue, against_step

VIDEOS, FEATURES = 4, 12


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


def build(seed: int = 0, videos: int = 40, **options: object) -> MoCo:
    torch.manual_seed(seed)
    context = Context(
        name="moco",
        clip=ClipSettings(3, 4, 1),
        backbone=Net(),
        feature_dim=FEATURES,
        stages={},
        videos=videos,
        epochs=2,
        steps_per_epoch=10,
        batch_size=VIDEOS,
        world_size=1,
    )
    return MoCo(MoCo.Config(**options), context)


def clips(count: int = 2, seed: int = 0) -> list[Tensor]:
    return list(torch.randn(count, VIDEOS, 3, 3, 4, 4, generator=torch.Generator().manual_seed(seed)))


def batch_of(objective: MoCo, clips: list[Tensor]) -> Batch:
    """A batch whose features come from the backbone that is trained."""
    backbone = objective.context.backbone
    views = [View(clip, clip[:, :, :0], None, {}, Features(lambda clip=clip: backbone(clip))) for clip in clips]
    return Batch("moco", {"clips": tuple(views)}, torch.arange(VIDEOS), [], epoch=0, progress=0.0, encode=None)


def disturb(module: nn.Module, seed: int = 1) -> None:
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter += 0.1 * torch.randn(parameter.shape, generator=generator)


def announce(objective: MoCo, kept: dict[str, Tensor], progress: float = 0.0) -> None:
    """The end of a step, as the engine tells of it."""
    manager = new_manager()
    manager.register(objective, "moco")
    run = SimpleNamespace(backbone=objective.context.backbone, progress=progress)
    manager.hook.vssl_step_end(run=run, report=SimpleNamespace(kept={"moco": kept}))


def unit_rows(*shape: int, seed: int = 0) -> Tensor:
    rows = torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return F.normalize(rows, dim=-1)


def slow_loss(queries: Tensor, keys: Tensor, negatives: Tensor, temperature: float) -> float:
    """InfoNCE in loops."""
    total = 0.0
    for query, key in zip(queries.tolist(), keys.tolist(), strict=True):
        scores = [
            sum(a * b for a, b in zip(query, row, strict=True)) / temperature for row in [key, *negatives.tolist()]
        ]
        total += log(sum(exp(score - max(scores)) for score in scores)) - scores[0] + max(scores)
    return total / len(queries)


# The loss -------------------------------------------------------------------------------------------------------------


@given(rows=st.integers(1, 5), queue=st.integers(1, 9), temperature=st.floats(0.05, 3), seed=st.integers(0, 999))
@settings(max_examples=25, deadline=None)
def test_it_is_the_loss_in_loops(rows, queue, temperature, seed):
    queries, keys = unit_rows(2, rows, 6, seed=seed)
    negatives = unit_rows(queue, 6, seed=seed + 1)
    found = F.cross_entropy(*against_queue(queries, keys, negatives, temperature))
    assert found.item() == pytest.approx(slow_loss(queries, keys, negatives, temperature), rel=1e-9, abs=1e-12)


@given(rows=st.integers(1, 6), temperature=st.floats(0.05, 3), seed=st.integers(0, 999))
@settings(max_examples=15, deadline=None)
def test_without_a_queue_the_other_keys_of_the_step_are_the_negatives(rows, temperature, seed):
    queries, keys = unit_rows(2, rows, 6, seed=seed)
    wanted = [
        slow_loss(queries[[row]], keys[[row]], keys[[other for other in range(rows) if other != row]], temperature)
        for row in range(rows)
    ]
    found = F.cross_entropy(*against_step(queries, keys, temperature))
    assert found.item() == pytest.approx(sum(wanted) / rows, rel=1e-9, abs=1e-12)


def test_rows_that_are_all_alike_are_guessed():
    rows = torch.ones(3, 4) / 2
    loss = F.cross_entropy(*against_queue(rows, rows, rows[:1].expand(7, 4), 0.1))
    assert loss.item() == pytest.approx(log(8))


def test_forward_is_the_plain_computation():
    objective = build(queue=12, temperature=0.3)
    disturb(objective.projector)  # the key encoder differs from the query's
    views = clips()
    query, key = (
        deepcopy(nn.ModuleList([net, projector]))
        for net, projector in (
            (objective.context.backbone, objective.projector),
            (objective.teacher.backbone, objective.teacher.projector),
        )
    )
    with torch.no_grad():
        queries, keys = (
            F.normalize(nets[1](nets[0](clip)["stage5"].mean(dim=(2, 3, 4))), dim=1)
            for nets, clip in ((query, views[0]), (key, views[1]))
        )
    terms = objective(batch_of(objective, views))
    wanted = slow_loss(queries, keys, objective.queue.rows, 0.3)
    assert terms.losses["contrast"].item() == pytest.approx(wanted, rel=1e-5)
    torch.testing.assert_close(terms.keep["keys"], keys)
    best = (queries @ objective.queue.rows.T).max(dim=1).values
    wanted = ((queries * keys).sum(dim=1) > best).float().mean()
    assert terms.metrics["accuracy"] == wanted


def test_gradients_reach_the_query_and_nothing_of_the_key():
    objective = build()
    objective(batch_of(objective, clips())).losses["contrast"].backward()
    trained = [*objective.context.backbone.parameters(), *objective.projector.parameters()]
    assert all(parameter.grad is not None and parameter.grad.isfinite().all() for parameter in trained)
    assert all(parameter.grad is None and not parameter.requires_grad for parameter in objective.teacher.parameters())


def test_forward_changes_nothing_but_running_statistics():
    objective = build(queue=8)
    before = deepcopy(objective.state_dict())
    objective(batch_of(objective, clips()))
    changed = {name for name, value in objective.state_dict().items() if not torch.equal(value, before[name])}
    assert changed and all(name.endswith(("running_mean", "running_var", "num_batches_tracked")) for name in changed)


def test_half_precision_around_it_does_not_reach_the_similarities():
    queries, keys = unit_rows(2, 5, 8).float()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        within = against_queue(queries, keys, keys, 0.07)[0]
    assert torch.equal(within, against_queue(queries, keys, keys, 0.07)[0])


# Pairs of clips -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "pairs", "online", "slow"),
    [
        ({}, [(0, 1)], 1, 1),
        ({"symmetric": True}, [(0, 1), (1, 0)], 2, 2),
        ({"clips": 3}, [(0, 1), (0, 2), (1, 0), (1, 2), (2, 0), (2, 1)], 3, 3),
        ({"clips": 3, "symmetric": False}, [(0, 1), (0, 2)], 1, 2),
    ],
)
def test_who_looks_for_whom_and_what_it_costs(options, pairs, online, slow):
    objective = build(**options)
    assert objective.pairs == pairs
    terms = objective(batch_of(objective, clips(objective.config.clips)))
    assert objective.context.backbone.forwards == online and objective.teacher.backbone.forwards == slow
    assert terms.keep["keys"].shape == (VIDEOS, 128)  # one for each video, however many clips


def test_the_loss_of_three_clips_is_the_one_in_loops():
    objective = build(clips=3, queue=8, temperature=0.5)
    disturb(objective.projector)
    views = clips(3)
    with torch.no_grad():
        plain = deepcopy(objective)
        queries, keys = (
            [F.normalize(projector(net(view)["stage5"].mean(dim=(2, 3, 4))), dim=1) for view in views]
            for net, projector in (
                (plain.context.backbone, plain.projector),
                (plain.teacher.backbone, plain.teacher.projector),
            )
        )
    wanted = [
        slow_loss(queries[query], keys[key], plain.queue.rows, 0.5)
        for query in range(3)
        for key in range(3)
        if query != key
    ]
    terms = objective(batch_of(objective, views))
    assert terms.losses["contrast"].item() == pytest.approx(sum(wanted) / 6, rel=1e-5)


def test_the_loss_of_many_clips_is_the_mean_over_pairs():
    objective = build(clips=3, queue=8, temperature=0.5)
    for module in (objective.context.backbone, objective.teacher.backbone):
        module.eval()
    views = clips(3)
    with torch.no_grad():
        loss = objective(batch_of(objective, views)).losses["contrast"]
        objective.pairs, wanted = [(0, 1)], []
        for left, right in ((0, 1), (0, 2), (1, 0), (1, 2), (2, 0), (2, 1)):
            wanted.append(objective(batch_of(objective, [views[left], views[right]])).losses["contrast"])
    torch.testing.assert_close(loss, torch.stack(wanted).mean())


def test_the_third_version_has_no_queue_and_trains_its_predictor():
    objective = build(queue=0, predictor=True, symmetric=True, norm=True, layers=3, hidden=20, projection=6)
    terms = objective(batch_of(objective, clips()))
    terms.losses["contrast"].backward()
    assert objective.queue is None and not terms.keep
    assert all(parameter.grad is not None for parameter in objective.predictor.parameters())
    announce(objective, {})
    assert not any("predictor" in name for name in objective.teacher.state_dict())


# The queue and the key encoder ----------------------------------------------------------------------------------------


def test_the_queue_holds_the_last_keys_and_a_step_does_not_meet_its_own():
    objective, slow = build(queue=10), deque(maxlen=10)
    for step in range(5):
        before = objective.queue.rows.clone()
        kept = objective(batch_of(objective, clips(seed=step))).keep["keys"].detach()
        assert torch.equal(objective.queue.rows, before)
        announce(objective, {"keys": kept})
        slow.extend(kept.unbind())
        assert torch.equal(objective.queue.rows_in_order(), torch.stack(list(slow)))


@pytest.mark.parametrize("schedule", ["constant", "cosine"])
def test_moving_keys_after_the_step_is_the_published_order(schedule):
    """The published loop moves the key encoder at the start of a step, before its forward: the same sequence."""
    ours = build(queue=8, momentum=0.9, schedule=schedule)
    theirs = deepcopy(ours)
    rates = [
        torch.optim.SGD([*one.context.backbone.parameters(), *one.projector.parameters()], lr=0.1)
        for one in (ours, theirs)
    ]
    for step in range(4):
        online = {"backbone": theirs.context.backbone, "projector": theirs.projector}
        theirs.teacher.follow(theirs.momentum(step / 4), **online)
        found = [one(batch_of(one, clips(seed=step))) for one in (ours, theirs)]
        torch.testing.assert_close(found[0].losses["contrast"], found[1].losses["contrast"], rtol=1e-5, atol=1e-6)
        for rate, terms in zip(rates, found, strict=True):
            rate.zero_grad()
            terms.losses["contrast"].backward()
            rate.step()
        announce(ours, {"keys": found[0].keep["keys"].detach()}, progress=(step + 1) / 4)
        theirs.queue.push(found[1].keep["keys"].detach())


def test_the_key_encoder_starts_as_a_copy_and_moves_by_exactly_its_momentum():
    objective = build(momentum=0.99)
    online = [*objective.context.backbone.parameters(), *objective.projector.parameters()]
    assert all(torch.equal(slow, fast) for slow, fast in zip(objective.teacher.parameters(), online, strict=True))
    disturb(objective.context.backbone)
    old = [parameter.clone() for parameter in objective.teacher.parameters()]
    announce(objective, {"keys": torch.zeros(VIDEOS, 128)})
    for slow, before, fast in zip(objective.teacher.parameters(), old, online, strict=True):
        torch.testing.assert_close(slow, 0.99 * before + 0.01 * fast, rtol=1e-6, atol=1e-7)


def test_the_momentum_stays_or_rises_to_one():
    constant, rising = build(), build(momentum=0.994, schedule="cosine")
    assert constant.momentum(0.0) == constant.momentum(0.7) == 0.999
    assert rising.momentum(0.3) == pytest.approx(1 - 0.006 * (cos(0.3 * pi) + 1) / 2) and rising.momentum(1.0) == 1


def test_the_state_brings_queue_and_key_encoder_back():
    first, second = build(seed=0, queue=9), build(seed=5, queue=9)
    disturb(first.teacher)
    announce(first, {"keys": unit_rows(VIDEOS, 128).float()})
    second.load_state_dict(deepcopy(first.state_dict()))
    second.context.backbone.load_state_dict(first.context.backbone.state_dict())
    losses = [objective(batch_of(objective, clips())).losses["contrast"] for objective in (first, second)]
    assert torch.equal(*losses)


def test_the_queue_is_cut_to_the_list_unless_its_size_is_given():
    assert len(build(videos=43).queue) == 40 and len(build(videos=70_001).queue) == 65536
    assert len(build(queue=7).queue) == 7
    with pytest.raises(ConfigError, match=r"plugins\.moco\.queue: 41 rows .* 40 videos"):
        build(queue=41)


def test_two_ranks_hold_the_queue_and_the_key_encoder_of_one(tmp_path):
    trial = Trial(load(["moco"])[1]["moco"], {"clips": 3}, tmp_path)
    settings = {**TOGETHER, "exact": True}
    one, ranks = trial.record("one", **settings), on_two_ranks(trial.job("two", **settings))
    for name in ("queue.rows", "queue.cursor", "queue.filled", "teacher.projector.0.weight"):
        alone, first, second = (recording.state[f"objectives.moco.{name}"] for recording in (one, *ranks))
        torch.testing.assert_close(alone, first, rtol=1e-4, atol=1e-5)
        assert torch.equal(first, second)
    assert int(one.state["objectives.moco.queue.filled"]) == 12


# What it asks for -----------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_three_clips_keep_the_contract():
    check_plugin("moco", clips=3)


def test_it_reads_clips_of_any_geometry_with_jittered_colours():
    request = build(clips=4).requests()["clips"]
    assert request.clips == 4 and request.appearance.colour == "jittered" and request.appearance.per is ANY
    assert {request.strides, request.placement, request.boxes, request.flips, request.turns} == {ANY}


def test_versions_differ_in_their_projectors():
    def kinds(**options: object) -> list[str]:
        return [type(layer).__name__ for layer in build(**options).projector]

    assert kinds(layers=1) == ["Linear"] and kinds() == ["Linear", "ReLU", "Linear"]
    assert build().projector[0].out_features == FEATURES and build(hidden=30).projector[0].out_features == 30
    third = kinds(layers=3, norm=True)
    assert third == ["Linear", "BatchNorm1d", "ReLU", "Linear", "BatchNorm1d", "ReLU", "Linear", "BatchNorm1d"]


@pytest.mark.parametrize(
    "options", [{"queue": -1}, {"momentum": 1.1}, {"temperature": 0}, {"clips": 1}, {"clips": 17}, {"layers": 0}]
)
def test_options_have_bounds(options):
    with pytest.raises(ValidationError):
        MoCo.Config(**options)


def test_the_plugin_offers_it():
    assert vssl_moco.vssl_objective() is MoCo and "CVPR 2020" in vssl_moco.PAPER
