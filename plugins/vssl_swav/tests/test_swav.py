"""SwAV against slow references: its loss, its even assignments with a queue, and when prototypes move."""

from __future__ import annotations

from collections import deque
from copy import deepcopy
from math import log
from types import SimpleNamespace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError
from torch import Tensor, nn
from torch.nn import functional as F

import vssl_swav
from vssl_core import ANY, Batch, ClipSettings, ConfigError, Context, Features, View
from vssl_core.plugins import load, new_manager
from vssl_core.testing import check_plugin
from vssl_core.testing.objectives import TOGETHER
from vssl_core.testing.ranks import on_two_ranks
from vssl_core.testing.trial import Trial
from vssl_swav.objective import SwAV, swapped

FEATURES, VIDEOS = 12, 6


def build(videos: int = 40, batch_size: int = VIDEOS, epochs: int = 40, **options: object) -> SwAV:
    torch.manual_seed(0)
    context = Context(
        name="swav",
        clip=ClipSettings(8, 16, 1),
        backbone=nn.Identity(),
        feature_dim=FEATURES,
        stages={},
        videos=videos,
        epochs=epochs,
        steps_per_epoch=10,
        batch_size=batch_size,
        world_size=1,
    )
    return SwAV(SwAV.Config(**{"projection": 8, **options}), context)


def batch_of(maps: Tensor, epoch: int = 0) -> Batch:
    """A batch with these last maps (clips, B, D, T, H, W) as features."""
    views = [View(None, None, None, {}, Features(lambda values=values: {"stage5": values})) for values in maps]
    index = torch.arange(maps.shape[1])
    return Batch("swav", {"clips": tuple(views)}, index, [], epoch=epoch, progress=0.0, encode=None)


def maps(clips: int = 2, videos: int = VIDEOS, seed: int = 0) -> Tensor:
    return torch.randn(clips, videos, FEATURES, 2, 3, 3, generator=torch.Generator().manual_seed(seed))


def announce(objective: SwAV, hook: str, **arguments: object) -> None:
    """A moment of the run, as the engine tells of it."""
    manager = new_manager()
    manager.register(objective, "swav")
    getattr(manager.hook, hook)(**arguments)


def slow_assignments(scores: Tensor, epsilon: float, iterations: int) -> Tensor:
    """Sinkhorn-Knopp, written down."""
    matrix = ((scores - scores.max()) / epsilon).exp()
    for _ in range(iterations):
        matrix = matrix / matrix.sum(dim=0, keepdim=True) / matrix.shape[1]
        matrix = matrix / matrix.sum(dim=1, keepdim=True) / matrix.shape[0]
    return matrix / matrix.sum(dim=1, keepdim=True)


def slow_loss(objective: SwAV, rows: list[Tensor], queued: list[Tensor]) -> float:
    """The swapped prediction in loops, as the paper's code goes over it."""
    prototypes, total, pairs = objective.prototypes.weight.detach(), 0.0, 0
    for mine, own in enumerate(rows):
        scores = torch.cat([queued[mine], own]) @ prototypes.T
        wanted = slow_assignments(scores, objective.config.epsilon, objective.config.iterations)[-len(own) :]
        for other, seen in enumerate(rows):
            if other != mine:
                guess = F.log_softmax(seen @ prototypes.T / objective.config.temperature, dim=1)
                total -= float((wanted * guess).sum(dim=1).mean())
                pairs += 1
    return total / pairs


def projected(objective: SwAV, views: Tensor) -> list[Tensor]:
    with torch.no_grad():
        return [F.normalize(objective.projector(view.mean(dim=(2, 3, 4))), dim=1) for view in views]


# The loss -------------------------------------------------------------------------------------------------------------


@given(clips=st.integers(2, 4), prototypes=st.integers(2, 12), seed=st.integers(0, 99))
@settings(max_examples=12, deadline=None)
def test_forward_is_the_loss_in_loops(clips, prototypes, seed):
    objective = build(clips=clips, prototypes=prototypes, queue=0 if prototypes < VIDEOS else 12)
    views = maps(clips, seed=seed)
    rows = projected(objective, views)
    terms = objective(batch_of(views))
    wanted = slow_loss(objective, rows, [rows[0][:0]] * clips)
    assert terms.losses["swap"].item() == pytest.approx(wanted, rel=1e-4)


def test_the_queue_takes_part_from_its_epoch_on():
    objective = build(queue=12, queue_epoch=2, prototypes=5)
    views = maps()
    rows, slow = projected(objective, views), [deque(maxlen=12), deque(maxlen=12)]
    for step in range(3):
        kept = objective(batch_of(maps(seed=step + 1))).keep["rows"]
        announce(objective, "vssl_step_end", run=None, report=SimpleNamespace(kept={"swav": {"rows": kept}}))
        for clip, one in enumerate(kept.unflatten(1, (2, 8)).unbind(1)):
            slow[clip].extend(one.unbind())
    queued = [torch.stack(list(clip)) for clip in slow]
    early, late = (objective(batch_of(views, epoch)).losses["swap"].item() for epoch in (1, 2))
    assert early == pytest.approx(slow_loss(objective, rows, [rows[0][:0]] * 2), rel=1e-4)
    assert late == pytest.approx(slow_loss(objective, rows, queued), rel=1e-4)
    assert abs(early - late) > 1e-4


def test_an_empty_queue_is_no_queue():
    with_queue, without = build(queue=12, queue_epoch=0, prototypes=5), build(queue=0, prototypes=5)
    without.load_state_dict(with_queue.state_dict(), strict=False)
    losses = [objective(batch_of(maps())).losses["swap"] for objective in (with_queue, without)]
    torch.testing.assert_close(*losses)


def test_a_guess_that_says_nothing_costs_the_logarithm():
    wanted = torch.softmax(torch.randn(4, 2, 7), dim=2)
    assert swapped(torch.zeros(4, 2, 7), wanted).item() == pytest.approx(log(7))
    certain = F.one_hot(torch.tensor([[3, 3]]), 7).float()
    assert swapped(100 * certain, certain).item() == pytest.approx(0, abs=1e-6)


def test_gradients_reach_projector_and_prototypes_through_the_guess_alone():
    objective = build(prototypes=4)
    views = maps().requires_grad_()
    objective(batch_of(views)).losses["swap"].backward()
    assert all(p.grad is not None and p.grad.isfinite().all() and p.grad.any() for p in objective.parameters())
    assert not objective._assigned(torch.randn(VIDEOS, 2, 4, requires_grad=True), 0).requires_grad


def test_half_precision_around_it_does_not_reach_the_assignments():
    objective = build(prototypes=4)
    scores = torch.randn(VIDEOS, 2, 4).clamp(-1, 1)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        within = objective._assigned(scores, 0)
    assert torch.equal(within, objective._assigned(scores, 0))


def test_clips_that_are_all_alike_stay_finite():
    objective = build(prototypes=4)
    loss = objective(batch_of(torch.ones(2, VIDEOS, FEATURES, 1, 1, 1))).losses["swap"]
    loss.backward()
    assert loss.isfinite() and all(p.grad.isfinite().all() for p in objective.parameters())


# Prototypes and queue -------------------------------------------------------------------------------------------------


def test_prototypes_have_unit_length_before_every_forward():
    objective = build(prototypes=5, queue=0)
    torch.testing.assert_close(objective.prototypes.weight.norm(dim=1), torch.ones(5))
    optimizer = torch.optim.SGD(objective.parameters(), lr=1.0)
    for step in range(3):
        optimizer.zero_grad()
        objective(batch_of(maps(seed=step))).losses["swap"].backward()
        optimizer.step()
        assert (objective.prototypes.weight.norm(dim=1) - 1).abs().max() > 1e-4
        announce(objective, "vssl_step_end", run=None, report=SimpleNamespace(kept={}))
        torch.testing.assert_close(objective.prototypes.weight.norm(dim=1), torch.ones(5))


@pytest.mark.parametrize(("epoch", "frozen"), [(0, True), (1, False), (5, False)])
def test_prototypes_rest_in_the_first_epoch_only(epoch, frozen):
    objective = build(prototypes=5)
    objective(batch_of(maps())).losses["swap"].backward()
    announce(objective, "vssl_backward_end", run=SimpleNamespace(epoch=epoch))
    assert (objective.prototypes.weight.grad is None) == frozen
    assert all(parameter.grad is not None for parameter in objective.projector.parameters())


def test_forward_changes_nothing_but_running_statistics():
    objective = build(queue=12, queue_epoch=0)
    before = deepcopy(objective.state_dict())
    objective(batch_of(maps()))
    changed = {name for name, value in objective.state_dict().items() if not torch.equal(value, before[name])}
    assert changed and all(name.endswith(("running_mean", "running_var", "num_batches_tracked")) for name in changed)


def test_the_state_brings_queue_and_prototypes_back():
    first, second = build(queue=12, queue_epoch=0), build(queue=12, queue_epoch=0)
    with torch.no_grad():
        first.prototypes.weight.copy_(F.normalize(torch.randn_like(first.prototypes.weight), dim=1))
    kept = first(batch_of(maps(seed=1))).keep
    announce(first, "vssl_step_end", run=None, report=SimpleNamespace(kept={"swav": kept}))
    assert not torch.equal(first(batch_of(maps())).losses["swap"], second(batch_of(maps())).losses["swap"])
    second.load_state_dict(deepcopy(first.state_dict()))
    assert torch.equal(first(batch_of(maps())).losses["swap"], second(batch_of(maps())).losses["swap"])


def test_two_ranks_hold_the_queue_and_the_prototypes_of_one(tmp_path):
    trial = Trial(load(["swav"])[1]["swav"], {"clips": 3, "queue_epoch": 0, "frozen_epochs": 0}, tmp_path)
    settings = {**TOGETHER, "exact": True}
    one, ranks = trial.record("one", **settings), on_two_ranks(trial.job("two", **settings))
    for name in ("queue.rows", "queue.cursor", "queue.filled", "prototypes.weight"):
        alone, first, second = (recording.state[f"objectives.swav.{name}"] for recording in (one, *ranks))
        torch.testing.assert_close(alone, first, rtol=1e-4, atol=1e-5)
        assert torch.equal(first, second)
    assert int(one.state["objectives.swav.queue.filled"]) == 12


def test_sizes_follow_list_batch_and_run_unless_they_are_given():
    def sizes(objective: SwAV) -> tuple[int, int, int]:
        queue = 0 if objective.queue is None else len(objective.queue)
        return objective.prototypes.out_features, queue, objective.queue_epoch

    assert sizes(build(videos=9537, batch_size=60, epochs=300)) == (953, 3840, 15)
    assert sizes(build(videos=240_000, batch_size=256, epochs=200)) == (3000, 3840, 15)
    assert sizes(build(videos=240_000, batch_size=4096)) == (3000, 0, 4)
    assert sizes(build(videos=12, batch_size=4, epochs=2)) == (2, 12, 0)
    assert sizes(build(queue=0, prototypes=6, queue_epoch=7)) == (6, 0, 7)


def test_what_cannot_be_is_refused_in_a_sentence():
    with pytest.raises(
        ConfigError, match=r"plugins\.swav\.prototypes: 7 prototypes .* 6 rows \(batch_size 6 and a queue"
    ):
        build(queue=0, prototypes=7)
    with pytest.raises(ConfigError, match=r"plugins\.swav\.queue: 41 rows .* 40 videos"):
        build(queue=41)
    assert build(queue=0, prototypes=6)


@pytest.mark.slow
def test_three_clips_keep_the_contract():
    check_plugin("swav", clips=3)


def test_it_reads_clips_of_any_geometry_with_jittered_colours():
    request = build(clips=3).requests()["clips"]
    assert request.clips == 3 and request.appearance.colour == "jittered" and request.appearance.per is ANY
    assert {request.strides, request.placement, request.boxes, request.flips, request.turns} == {ANY}


@pytest.mark.parametrize(
    "options",
    [
        {"prototypes": 1},
        {"epsilon": 0},
        {"iterations": 0},
        {"clips": 1},
        {"clips": 17},
        {"queue": -1},
        {"nmb_crops": 2},
    ],
)
def test_options_have_bounds(options):
    with pytest.raises(ValidationError):
        SwAV.Config(**options)


def test_the_plugin_offers_it():
    assert vssl_swav.vssl_objective() is SwAV and "NeurIPS 2020" in vssl_swav.PAPER
