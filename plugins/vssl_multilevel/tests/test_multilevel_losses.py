"""Each loss of MLRep against a slow and plain version of its equation, and at points where its value is known."""

from __future__ import annotations

from math import exp, log

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional as F

from vssl_core import sinkhorn
from vssl_multilevel.losses import (
    apart_from_changed,
    compare,
    found_in_overview,
    graph,
    one_way,
    own,
    recognised,
    swapped,
    together,
    towards,
)

TAU = 0.07
seeds = st.integers(0, 10_000)
quick = settings(max_examples=20, deadline=None)


def unit(*shape: int, seed: int = 0, spread: float = 1.0) -> Tensor:
    """Random unit rows, in double precision; a small spread makes them alike."""
    generator = torch.Generator().manual_seed(seed)
    rows = spread * torch.randn(*shape, generator=generator, dtype=torch.float64)
    return F.normalize(rows + torch.randn(shape[-1], generator=generator, dtype=torch.float64) * (spread < 1), dim=-1)


def h(left: Tensor, right: Tensor) -> float:
    return exp(float(left @ right) / TAU)


def to_another(rows: Tensor, i: int, a: int, j: int) -> float:
    """h(z_i^a, z_j^*) of equation 3."""
    if i == j:
        return h(rows[i, 0], rows[i, 1])
    return h(rows[i, a], rows[j, 0]) + h(rows[i, a], rows[j, 1])


# Instances and the graph ----------------------------------------------------------------------------------------------


@given(videos=st.integers(2, 6), seed=seeds)
@quick
def test_instances_are_told_apart_as_in_equation_2(videos, seed):
    rows = unit(videos, 2, 5, seed=seed)
    wanted = [
        -log(to_another(rows, i, a, i) / sum(to_another(rows, i, a, j) for j in range(videos)))
        for i in range(videos)
        for a in (0, 1)
    ]
    logits = compare(rows, TAU)
    loss = towards(together(logits), own(logits).double())
    assert loss.item() == pytest.approx(sum(wanted) / len(wanted), rel=1e-9)


@given(videos=st.integers(1, 6), seed=seeds)
@quick
def test_the_other_clip_is_found_where_no_single_clip_is_nearer(videos, seed):
    rows = unit(videos, 2, 3, seed=seed)
    wanted = []
    for i in range(videos):
        for a in (0, 1):
            others = [float(rows[i, a] @ rows[j, b]) for j in range(videos) for b in (0, 1) if j != i]
            wanted.append(float(rows[i, 0] @ rows[i, 1]) > max(others, default=-2))
    assert recognised(compare(rows, TAU)).flatten().tolist() == wanted


def slow_graph(rows: Tensor, labels: list[int] | None, threshold: float | None, both: bool) -> list[list[float]]:
    """Equations 6 to 9 in loops, the edge of a video to itself always kept."""
    videos = len(rows)
    edges = [[0.0] * videos for _ in range(videos)]
    for i in range(videos):
        weights = []
        for j in range(videos):
            if not both:
                weights.append(h(rows[i, 0], rows[j, 1]))
            elif i == j:
                weights.append(h(rows[i, 0], rows[i, 1]))
            else:
                weights.append(sum(h(rows[i, m], rows[j, n]) for m in (0, 1) for n in (0, 1)) / 4)
        for j in range(videos):
            instance = 1.0 if threshold is None else weights[j] * (weights[j] / sum(weights) >= threshold or i == j)
            semantic = 1.0 if labels is None else float(labels[i] == labels[j])
            edges[i][j] = instance * semantic
    return [[edge / sum(row) for edge in row] for row in edges]


@given(
    videos=st.integers(1, 7),
    threshold=st.sampled_from([None, 0.0, 0.05, 0.2, 0.6]),
    labelled=st.booleans(),
    both=st.booleans(),
    seed=seeds,
)
@quick
def test_the_graph_is_that_of_equations_6_to_9(videos, threshold, labelled, both, seed):
    rows = unit(videos, 2, 5, seed=seed, spread=0.3)
    labels = torch.randint(3, (videos,), generator=torch.Generator().manual_seed(seed)) if labelled else None
    found = graph(compare(rows, TAU), labels, threshold, both)
    wanted = slow_graph(rows, labels.tolist() if labelled else None, threshold, both)
    torch.testing.assert_close(found, torch.tensor(wanted, dtype=torch.float64))


@given(videos=st.integers(2, 64), threshold=st.sampled_from([0.03, 0.05, 0.3]), seed=seeds)
@quick
def test_what_holds_of_every_graph(videos, threshold, seed):
    rows = unit(videos, 2, 6, seed=seed, spread=0.2).requires_grad_()
    labels = torch.randint(4, (videos,), generator=torch.Generator().manual_seed(seed))
    edges = graph(compare(rows, TAU), labels, threshold, both=True)
    torch.testing.assert_close(edges.sum(dim=1), torch.ones(videos, dtype=torch.float64))
    assert (edges.diagonal() > 0).all() and not edges.requires_grad
    assert (edges[labels[:, None] != labels] == 0).all()
    assert (edges > 0).sum(dim=1).max() <= int(1 / threshold) + 1


@pytest.mark.parametrize(("labels", "threshold"), [(None, 1.1), ([0, 1, 2, 3, 4], 0.0)])
def test_a_graph_without_edges_between_videos_is_infonce(labels, threshold):
    rows = unit(5, 2, 6, spread=0.3)
    edges = graph(compare(rows, TAU), None if labels is None else torch.tensor(labels), threshold, both=True)
    assert torch.equal(edges, torch.eye(5, dtype=torch.float64))
    low = compare(unit(5, 2, 6, seed=1), TAU)
    torch.testing.assert_close(towards(together(low), edges), towards(together(low), own(low).double()))


def test_a_video_that_is_unlike_itself_keeps_its_edge():
    """Its own share is far below the threshold, and no other one's would be allowed: the row would be empty."""
    rows = F.normalize(torch.tensor([[[1.0, 0.0], [-1.0, 0.0]], [[1.0, 0.1], [1.0, -0.1]]]), dim=2)
    edges = graph(compare(rows, TAU), torch.tensor([0, 1]), 0.05, both=True)
    assert torch.equal(edges, torch.eye(2))


@given(videos=st.integers(1, 6), seed=seeds)
@quick
def test_levels_are_drawn_to_the_graph_as_in_equation_10(videos, seed):
    rows, edges = unit(videos, 2, 5, seed=seed), torch.rand(videos, videos, dtype=torch.float64).softmax(dim=1)
    total = 0.0
    for i in range(videos):
        for a in (0, 1):
            whole = sum(to_another(rows, i, a, j) for j in range(videos))
            total -= sum(float(edges[i, j]) * log(to_another(rows, i, a, j) / whole) for j in range(videos))
    found = towards(together(compare(rows, TAU)), edges)
    assert found.item() == pytest.approx(total / (2 * videos), rel=1e-9)


def test_one_way_is_the_cross_entropy_of_first_with_second_clips():
    rows, edges = unit(4, 2, 5), torch.rand(4, 4, dtype=torch.float64).softmax(dim=1)
    wanted = F.cross_entropy(rows[:, 0] @ rows[:, 1].T / TAU, edges)  # over the videos: not over the whole matrix too
    torch.testing.assert_close(towards(one_way(compare(rows, TAU)), edges), wanted)


def test_a_sharp_temperature_stays_finite_in_float32():
    rows = unit(8, 2, 16, spread=0.01).float().requires_grad_()
    logits = compare(rows, 1e-3)
    loss = towards(together(logits), graph(logits, None, 0.05, both=True))
    loss.backward()
    assert loss.isfinite() and rows.grad.isfinite().all()


# Assignments ----------------------------------------------------------------------------------------------------------


@given(videos=st.integers(1, 5), prototypes=st.integers(2, 7), seed=seeds)
@quick
def test_assignments_are_swapped_as_in_equation_4(videos, prototypes, seed):
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(videos, 2, prototypes, generator=generator, dtype=torch.float64)
    wanted = torch.randn(videos, 2, prototypes, generator=generator, dtype=torch.float64).softmax(dim=2)
    total = 0.0
    for i in range(videos):
        predicted = [[exp(value) / sum(map(exp, row)) for value in row] for row in logits[i].tolist()]
        for k in range(prototypes):  # the minus stands before both
            total += -float(wanted[i, 0, k]) * log(predicted[1][k]) - float(wanted[i, 1, k]) * log(predicted[0][k])
    assert swapped(logits, wanted).item() == pytest.approx(total / (2 * videos), rel=1e-9)


def test_assignments_use_prototypes_evenly():
    cosines = (unit(256, 128) @ unit(50, 128, seed=1).T).float()
    soft, exact = sinkhorn(cosines), sinkhorn(cosines, iterations=100)
    for found, tolerance in ((soft, 0.05), (exact, 1e-4)):
        torch.testing.assert_close(found.sum(dim=1), torch.ones(256), atol=1e-5, rtol=0)
        torch.testing.assert_close(found.sum(dim=0), torch.full((50,), 256 / 50), rtol=tolerance, atol=0)
    torch.testing.assert_close(sinkhorn(cosines + 3.0), soft, atol=1e-5, rtol=1e-3)


# Order ----------------------------------------------------------------------------------------------------------------


@given(videos=st.integers(1, 5), changes=st.integers(1, 3), others=st.booleans(), seed=seeds)
@quick
def test_order_is_told_as_in_equation_11(videos, changes, others, seed):
    rows, changed = unit(videos, 2, 5, seed=seed), unit(videos, 2, changes, 5, seed=seed + 1)
    total = 0.0
    for i in range(videos):
        for a in (0, 1):
            positive = h(rows[i, 0], rows[i, 1])
            clips = (0, 1) if others else (a,)
            negative = sum(h(rows[i, a], changed[i, b, k]) for b in clips for k in range(changes))
            if others:
                negative += sum(to_another(rows, i, a, j) for j in range(videos) if j != i)
            total -= log(positive / (positive + negative))
    found = apart_from_changed(rows, changed, TAU, others)
    assert found.item() == pytest.approx(total / (2 * videos), rel=1e-9)


@pytest.mark.parametrize("changes", [1, 2, 3])
def test_order_that_is_not_seen_costs_the_logarithm(changes):
    rows = unit(4, 1, 5).expand(-1, 2, -1)  # both clips alike, and their changed orders too
    loss = apart_from_changed(rows, rows[:, :, None].expand(-1, -1, changes, -1), TAU, others=False)
    assert loss.item() == pytest.approx(log(1 + changes), rel=1e-9)


# Timestamps -----------------------------------------------------------------------------------------------------------


@given(videos=st.integers(1, 4), timestamps=st.integers(1, 6), both=st.booleans(), seed=seeds)
@quick
def test_timestamps_are_found_as_in_equation_13(videos, timestamps, both, seed):
    short, long = unit(videos, timestamps, 5, seed=seed), unit(videos, timestamps, 5, seed=seed + 1)
    wanted = []
    for i in range(videos):
        there = [
            -log(h(short[i, t], long[i, t]) / sum(h(short[i, t], long[i, k]) for k in range(timestamps)))
            for t in range(timestamps)
        ]
        back = [
            -log(h(short[i, t], long[i, t]) / sum(h(short[i, k], long[i, t]) for k in range(timestamps)))
            for t in range(timestamps)
        ]
        directions = [*there, *back] if both else there
        wanted.append(sum(directions) / len(directions))
    found, _ = found_in_overview(7 * short, 3 * long, TAU, both)  # lengths do not count
    torch.testing.assert_close(found, torch.tensor(wanted, dtype=torch.float64))


@pytest.mark.parametrize("timestamps", [2, 4, 8])
def test_known_values_of_finding_timestamps(timestamps):
    apart = torch.eye(timestamps, 16, dtype=torch.float64)[None]
    loss, found = found_in_overview(apart, apart, TAU, both=True)
    assert loss.item() == pytest.approx(log(1 + (timestamps - 1) * exp(-1 / TAU)), rel=1e-6, abs=1e-12) and found == 1
    alike = torch.ones(1, timestamps, 16)
    assert found_in_overview(alike, alike, TAU, both=True)[0].item() == pytest.approx(log(timestamps), rel=1e-6)
