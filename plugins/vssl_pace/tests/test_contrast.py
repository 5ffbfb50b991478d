"""The three readings of the contrast against sums written out by hand, on one rank and on two."""

from __future__ import annotations

from math import exp, log

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from vssl_core import rank
from vssl_core.testing import on_ranks
from vssl_pace.contrast import contrast

READINGS = ("row", "global_anchor", "global_ratio")


def plain(rows: list[list[float]], keys: list[int], reading: str) -> float:
    """The contrast pair by pair, as its text says it."""
    count = len(rows)
    similarity = [[sum(a * b for a, b in zip(left, right, strict=True)) for right in rows] for left in rows]
    pairs = [(i, j) for i in range(count) for j in range(count) if i != j]
    positive = [(i, j) for i, j in pairs if keys[i] == keys[j] >= 0]
    everything = sum(exp(similarity[i][j]) for i, j in pairs)
    if not positive:
        return 0.0
    if reading == "global_ratio":
        return -log(sum(exp(similarity[i][j]) for i, j in positive) / everything)
    anchors = sorted({i for i, _ in positive})
    total = 0.0
    for anchor in anchors:
        near = sum(exp(similarity[i][j]) for i, j in positive if i == anchor)
        row = sum(exp(similarity[i][j]) for i, j in pairs if i == anchor)
        total -= log(near / (row if reading == "row" else everything))
    return total / len(anchors)


@given(
    keys=st.lists(st.integers(-1, 3), min_size=2, max_size=9),
    reading=st.sampled_from(READINGS),
    seed=st.integers(0, 999),
)
@settings(max_examples=150, deadline=None)
def test_each_reading_is_its_plain_sum(keys: list[int], reading: str, seed: int) -> None:
    rows = torch.randn(len(keys), 5, generator=torch.Generator().manual_seed(seed)).requires_grad_()
    value = contrast(rows, torch.tensor(keys), reading)
    assert value.item() == pytest.approx(plain(rows.double().tolist(), keys, reading), rel=1e-4, abs=1e-5)
    value.backward()
    assert rows.grad.isfinite().all()


@pytest.mark.parametrize("videos", [2, 5])
def test_equal_features_give_the_logarithm_of_the_number_of_pairs(videos: int) -> None:
    rows, keys = torch.ones(2 * videos, 4), torch.arange(videos).repeat(2)
    others = 2 * videos - 1
    expected = {"row": log(others), "global_ratio": log(others), "global_anchor": log(2 * videos * others)}
    for reading in READINGS:
        assert contrast(rows, keys, reading).item() == pytest.approx(expected[reading], rel=1e-5)


def test_clips_of_one_pace_give_exactly_nothing() -> None:
    rows, keys = torch.randn(6, 4) * 3, torch.full((6,), 2)
    assert contrast(rows, keys, "row").item() == 0 and contrast(rows, keys, "global_ratio").item() == 0


@pytest.mark.parametrize("reading", READINGS)
def test_no_positive_or_no_pair_gives_exactly_nothing_and_no_gradient(reading: str) -> None:
    for keys in ([0, 1, 2], [-1, -1, -1], [4]):
        rows = torch.randn(len(keys), 4, requires_grad=True)
        value = contrast(rows, torch.tensor(keys), reading)
        value.backward()
        assert value.item() == 0 and not rows.grad.any()


@pytest.mark.parametrize("reading", READINGS)
def test_large_features_neither_overflow_nor_lose_their_gradient(reading: str) -> None:
    rows = (torch.randn(8, 16).abs() * 1e3).requires_grad_()
    value = contrast(rows, torch.arange(4).repeat(2), reading)
    value.backward()
    assert value.isfinite() and rows.grad.isfinite().all() and rows.grad.any()


def test_a_vector_orthogonal_to_all_features_changes_nothing() -> None:
    rows = torch.randn(8, 6)
    rows[:, 5] = 0
    keys = torch.arange(4).repeat(2)
    moved = rows + torch.tensor([0, 0, 0, 0, 0, 2.5])
    assert contrast(moved, keys, "row").item() == pytest.approx(contrast(rows, keys, "row").item(), rel=1e-5)


def test_the_order_of_clips_does_not_matter() -> None:
    rows, keys = torch.randn(8, 6), torch.tensor([0, 1, 2, 3, 3, 1, 0, 2])
    order = torch.randperm(8)
    for reading in READINGS:
        mixed = contrast(rows[order], keys[order], reading).item()
        assert mixed == pytest.approx(contrast(rows, keys, reading).item(), rel=1e-5)


def test_similarities_keep_their_digits_under_autocast() -> None:
    rows, keys = torch.randn(8, 16) * 5, torch.arange(4).repeat(2)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        inside = contrast(rows, keys, "row")
    assert inside.item() == contrast(rows, keys, "row").item()


CASES = {"videos": [0, 0, 1, 1, 2, 2, 3, 3], "paces": [0, 1, 0, -1, 2, 0, 1, 3], "none": list(range(8))}


def half() -> dict[str, tuple[float, Tensor]]:
    """The loss of one of two ranks and its gradient, for each case and reading."""
    found = {}
    for name, keys in CASES.items():
        for reading in READINGS:
            rows = torch.randn(8, 5, generator=torch.Generator().manual_seed(3)).chunk(2)[rank()].requires_grad_()
            value = contrast(rows, torch.tensor(keys).chunk(2)[rank()], reading)
            value.backward()
            found[f"{name}/{reading}"] = value.item(), rows.grad
    return found


def test_two_ranks_contrast_what_one_rank_would() -> None:
    """The average of the ranks' losses, and the gradient of that average, are those of one rank with all clips."""
    halves = on_ranks(2, half)
    for name, keys in CASES.items():
        for reading in READINGS:
            rows = torch.randn(8, 5, generator=torch.Generator().manual_seed(3)).requires_grad_()
            value = contrast(rows, torch.tensor(keys), reading)
            value.backward()
            values, gradients = zip(*(half[f"{name}/{reading}"] for half in halves), strict=True)
            assert sum(values) / 2 == pytest.approx(value.item(), rel=1e-5, abs=1e-6)
            assert torch.allclose(torch.cat(gradients) / 2, rows.grad, rtol=1e-4, atol=1e-6)
