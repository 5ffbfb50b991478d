"""SimCLR against a slow reference in loops, at its limits, and on two real ranks against one."""

from __future__ import annotations

from math import exp, log, sqrt

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError
from torch import Tensor, nn
from torch.nn import functional as F

import vssl_simclr
from vssl_core import ANY, Batch, ClipSettings, Context, Features, View, rank, world_size
from vssl_core.testing import check_plugin, on_ranks
from vssl_simclr.objective import SimClr, contrast, similarities

FEATURES = 12


def build(**options: object) -> SimClr:
    torch.manual_seed(0)
    context = Context(
        name="simclr",
        clip=ClipSettings(8, 16, 1),
        backbone=nn.Identity(),
        feature_dim=FEATURES,
        stages={},
        videos=40,
        epochs=2,
        steps_per_epoch=10,
        batch_size=6,
        world_size=1,
    )
    return SimClr(SimClr.Config(**options), context)


def batch_of(maps: tuple[Tensor, ...]) -> Batch:
    """A batch with these last maps (B, D, T, H, W) as features."""
    views = [View(None, None, None, {}, Features(lambda values=values: {"stage5": values})) for values in maps]
    return Batch("simclr", {"clips": tuple(views)}, torch.arange(len(maps[0])), [], epoch=0, progress=0.0, encode=None)


def maps(videos: int = 6, seed: int = 0, clips: int = 2) -> tuple[Tensor, ...]:
    return torch.randn(clips, videos, FEATURES, 2, 3, 3, generator=torch.Generator().manual_seed(seed)).unbind()


def loss_of(projections: Tensor, temperature: float) -> Tensor:
    return contrast(*similarities(projections, temperature))


def score(row: list[float], candidate: list[float], temperature: float) -> float:
    dot = sum(a * b for a, b in zip(row, candidate, strict=True))
    return dot / sqrt(sum(a * a for a in row)) / sqrt(sum(b * b for b in candidate)) / temperature


def slow_loss(projections: list[list[list[float]]], temperature: float) -> float:
    """NT-Xent of two clips as it was published: each clip against all others, the mean over all clips."""
    clips = [(video, row) for video, pair in enumerate(projections) for row in pair]
    total = 0.0
    for anchor, (video, row) in enumerate(clips):
        scores = {
            other: score(row, candidate, temperature) for other, (_, candidate) in enumerate(clips) if other != anchor
        }
        (partner,) = [other for other in scores if clips[other][0] == video]
        highest = max(scores.values())
        total -= scores[partner] - highest - log(sum(exp(score - highest) for score in scores.values()))
    return total / len(clips)


def slow_loss_of_many(projections: list[list[list[float]]], temperature: float) -> float:
    """The same for any number of clips, in loops: each ordered pair of a video's clips against all strangers."""
    costs = []
    for video, clips in enumerate(projections):
        strangers = [row for other, rows in enumerate(projections) if other != video for row in rows]
        for anchor, row in enumerate(clips):
            against = [score(row, stranger, temperature) for stranger in strangers]
            for place, partner in enumerate(clips):
                if place != anchor:
                    own = score(row, partner, temperature)
                    highest = max([own, *against])
                    costs.append(log(sum(exp(value - highest) for value in [own, *against])) + highest - own)
    return sum(costs) / len(costs)


# The loss -------------------------------------------------------------------------------------------------------------


@given(videos=st.integers(1, 7), temperature=st.floats(0.05, 5), seed=st.integers(0, 10_000))
@settings(max_examples=25, deadline=None)
def test_it_is_the_loss_in_loops(videos, temperature, seed):
    projections = torch.randn(videos, 2, 5, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    assert loss_of(projections, temperature).item() == pytest.approx(
        slow_loss(projections.tolist(), temperature), rel=1e-9, abs=1e-12
    )


@given(videos=st.integers(1, 5), clips=st.integers(2, 5), temperature=st.floats(0.05, 5), seed=st.integers(0, 9999))
@settings(max_examples=25, deadline=None)
def test_of_many_clips_it_is_the_mean_over_pairs_in_loops(videos, clips, temperature, seed):
    projections = torch.randn(videos, clips, 4, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    wanted = slow_loss_of_many(projections.tolist(), temperature)
    assert loss_of(projections, temperature).item() == pytest.approx(wanted, rel=1e-9, abs=1e-9)


def test_partners_are_no_strangers():
    """Three equal clips of each of four orthogonal videos: each has two partners, and nine strangers."""
    projections = torch.eye(4)[:, None].expand(4, 3, 4)
    assert loss_of(projections, 0.5).item() == pytest.approx(log(exp(2) + 9) - 2, rel=1e-6)


@pytest.mark.parametrize("clips", [2, 3])
def test_its_gradient_is_the_numeric_one(clips):
    projections = torch.randn(
        4, clips, 3, generator=torch.Generator().manual_seed(1), dtype=torch.float64, requires_grad=True
    )
    assert torch.autograd.gradcheck(lambda rows: loss_of(rows, 0.3), projections)


def test_clips_that_are_all_alike_are_guessed():
    projections = torch.ones(5, 2, 4, requires_grad=True)
    loss = loss_of(projections, 0.1)
    loss.backward()
    assert loss.item() == pytest.approx(log(9)) and projections.grad.isfinite().all()


def test_perfect_pairs_keep_their_partner_among_the_candidates():
    projections = torch.eye(4)[:, None].expand(4, 2, 4)  # partners equal, all others orthogonal
    assert loss_of(projections, 0.5).item() == pytest.approx(-log(exp(2) / (exp(2) + 6)), rel=1e-6)


def test_the_same_video_twice_in_a_batch_stays_finite():
    projections = torch.randn(3, 2, 4).repeat(2, 1, 1).requires_grad_()
    loss = loss_of(projections, 1e-3)
    loss.backward()
    assert loss.item() >= log(2) - 1e-4 and projections.grad.isfinite().all()


@pytest.mark.parametrize("clips", [2, 3])
def test_a_single_video_has_nothing_to_tell_apart(clips):
    projections = torch.randn(1, clips, 4, requires_grad=True)
    loss = loss_of(projections, 0.1)
    loss.backward()
    assert loss.item() == 0 and not projections.grad.any()


@pytest.mark.parametrize("temperature", [1e-3, 1e3])
def test_extreme_temperatures_stay_finite(temperature):
    projections = torch.randn(6, 2, 8, requires_grad=True)
    loss = loss_of(projections, temperature)
    loss.backward()
    assert loss.isfinite() and projections.grad.isfinite().all()


def test_sizes_of_projections_do_not_count():
    projections = torch.randn(6, 2, 8)
    torch.testing.assert_close(
        loss_of(projections, 0.1), loss_of(projections * torch.rand(6, 2, 1).add(0.1) * 100, 0.1)
    )


def test_half_precision_around_it_does_not_reach_the_similarities():
    projections = torch.randn(6, 2, 8)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        within = loss_of(projections, 0.1)
    assert torch.equal(within, loss_of(projections, 0.1))


def test_forward_reads_both_clips_and_counts_what_comes_first():
    objective = build(temperature=0.2, hidden=9, projection=5)
    pair = maps()
    terms = objective(batch_of(pair))
    with torch.no_grad():
        projected = torch.stack([objective.projector(values.mean(dim=(2, 3, 4))) for values in pair], dim=1)
    assert terms.losses["contrast"].item() == pytest.approx(slow_loss(projected.tolist(), 0.2), rel=1e-5)
    unit = F.normalize(projected.flatten(0, 1), dim=1)
    scores = (unit @ unit.T).fill_diagonal_(-2)
    right = [scores[clip].argmax().item() == clip + 1 - 2 * (clip % 2) for clip in range(12)]
    assert terms.metrics["accuracy"].item() == pytest.approx(sum(right) / 12)
    same = maps()[0]
    assert objective(batch_of((same, same))).metrics["accuracy"] == 1
    terms.losses["contrast"].backward()
    assert all(parameter.grad is not None for parameter in objective.projector.parameters())


def test_forward_reads_three_clips():
    objective = build(clips=3, temperature=0.2, hidden=9, projection=5)
    views = maps(clips=3)
    terms = objective(batch_of(views))
    with torch.no_grad():
        projected = torch.stack([objective.projector(values.mean(dim=(2, 3, 4))) for values in views], dim=1)
    assert terms.losses["contrast"].item() == pytest.approx(slow_loss_of_many(projected.tolist(), 0.2), rel=1e-5)
    unit = F.normalize(projected, dim=2)
    right = [
        float(unit[video, anchor] @ unit[video, partner])
        > max(float(unit[video, anchor] @ row) for other in range(6) if other != video for row in unit[other])
        for video in range(6)
        for anchor in range(3)
        for partner in range(3)
        if partner != anchor
    ]
    assert terms.metrics["accuracy"].item() == pytest.approx(sum(right) / 36)


# Ranks ----------------------------------------------------------------------------------------------------------------


def one_step(number: int, world: int) -> dict[str, Tensor]:
    """Loss and gradients of one rank's part of the batch; no batch norm, so that only the negatives can differ."""
    objective = build(layers=1, clips=3)
    views = [values.chunk(world)[number].clone().requires_grad_() for values in maps(videos=8, clips=3)]
    loss = objective(batch_of(tuple(views))).losses["contrast"]
    loss.backward()
    return {
        "loss": loss.detach(),
        "first": views[0].grad,
        "second": views[1].grad,
        "third": views[2].grad,
        "weight": objective.projector[0].weight.grad,
        "bias": objective.projector[0].bias.grad,
    }


def half() -> dict[str, Tensor]:
    """What one of two ranks does."""
    return one_step(rank(), world_size())


def test_two_ranks_are_one():
    answers = on_ranks(2, half)
    wanted = one_step(0, 1)
    for name in ("loss", "weight", "bias"):  # training averages gradients over ranks
        torch.testing.assert_close((answers[0][name] + answers[1][name]) / 2, wanted[name], rtol=1e-5, atol=1e-6)
    for name in ("first", "second", "third"):
        torch.testing.assert_close(
            torch.cat([answer[name] for answer in answers]) / 2, wanted[name], rtol=1e-5, atol=1e-6
        )


# What it asks for -----------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_three_clips_keep_the_contract():
    check_plugin("simclr", clips=3)


def test_it_reads_clips_of_any_geometry_with_jittered_colours():
    assert build().requests()["clips"].clips == 2
    request = build(clips=3).requests()["clips"]
    assert request.clips == 3 and request.appearance.colour == "jittered" and request.appearance.per is ANY
    assert {request.strides, request.placement, request.boxes, request.flips, request.turns} == {ANY}


@pytest.mark.parametrize(
    "options",
    [{"temperature": 0}, {"temperature": 1e9}, {"hidden": 0}, {"layers": 0}, {"clips": 1}, {"clips": 17}, {"tau": 1}],
)
def test_options_have_bounds(options):
    with pytest.raises(ValidationError):
        SimClr.Config(**options)


def test_the_plugin_offers_it():
    assert vssl_simclr.vssl_objective() is SimClr and "ICML 2020" in vssl_simclr.PAPER
