"""Even assignments against a slow reference in plain loops, and what must hold of them."""

from __future__ import annotations

from math import exp

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as some
from torch import Tensor
from torch.nn import functional as F

from vssl_core.nets.sinkhorn import sinkhorn


def cosines(rows: int, prototypes: int, seed: int = 0) -> Tensor:
    """(rows, prototypes) cosines of random directions."""
    left, right = (
        F.normalize(torch.randn(count, 128, generator=torch.Generator().manual_seed(seed + number)), dim=1)
        for number, count in enumerate((rows, prototypes))
    )
    return left @ right.T


def slow(scores: list[list[float]], epsilon: float, iterations: int) -> list[list[float]]:
    """The algorithm as it is written: prototypes first, then rows, and rows once more at the end."""
    rows, prototypes = len(scores), len(scores[0])
    highest = max(max(row) for row in scores)
    matrix = [[exp((score - highest) / epsilon) for score in row] for row in scores]
    total = sum(map(sum, matrix))
    matrix = [[value / total for value in row] for row in matrix]
    for _ in range(iterations):
        columns = [sum(row[k] for row in matrix) for k in range(prototypes)]
        matrix = [[row[k] / columns[k] / prototypes for k in range(prototypes)] for row in matrix]
        matrix = [[value / sum(row) / rows for value in row] for row in matrix]
    return [[value / sum(row) for value in row] for row in matrix]


@given(
    rows=some.integers(1, 9), prototypes=some.integers(1, 6), iterations=some.integers(1, 5), seed=some.integers(0, 99)
)
@settings(max_examples=30, deadline=None)
def test_it_is_the_algorithm_in_loops(rows: int, prototypes: int, iterations: int, seed: int) -> None:
    scores = cosines(rows, prototypes, seed)
    wanted = torch.tensor(slow(scores.double().tolist(), 0.05, iterations))
    torch.testing.assert_close(sinkhorn(scores, 0.05, iterations), wanted, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize(("rows", "prototypes", "uneven"), [(256, 50, 0.05), (64, 50, 0.15)])
def test_rows_sum_to_one_and_columns_nearly_to_their_share(rows: int, prototypes: int, uneven: float) -> None:
    scores, share = cosines(rows, prototypes), rows / prototypes
    found = sinkhorn(scores)
    torch.testing.assert_close(found.sum(dim=1), torch.ones(rows), rtol=0, atol=1e-5)
    assert found.min() >= 0 and (found.sum(dim=0) / share - 1).abs().max() < uneven
    exact = sinkhorn(scores, iterations=100)
    assert (exact.sum(dim=0) / share - 1).abs().max() < 1e-4


def test_a_constant_added_to_all_scores_changes_nothing() -> None:
    scores = cosines(40, 10)
    torch.testing.assert_close(sinkhorn(scores + 3), sinkhorn(scores), rtol=1e-3, atol=1e-6)


def test_others_take_part_and_are_not_given_back() -> None:
    scores, others = cosines(20, 10), cosines(30, 10, seed=5)
    whole = sinkhorn(torch.cat([scores, others]))
    torch.testing.assert_close(sinkhorn(scores, others=others), whole[:20])
    assert not torch.allclose(sinkhorn(scores), whole[:20], atol=1e-3)
    torch.testing.assert_close(sinkhorn(scores, others=others[:0]), sinkhorn(scores))


def test_it_gives_no_gradient_and_stays_in_float32() -> None:
    scores = cosines(20, 10)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = sinkhorn(scores.clone().requires_grad_())
    assert not found.requires_grad and torch.equal(found, sinkhorn(scores))


@pytest.mark.parametrize(
    "scores", [torch.zeros(8, 3), 1e4 * torch.eye(6), torch.tensor([[50.0, -50.0], [49.0, -60.0]])]
)
def test_extreme_scores_stay_finite(scores: Tensor) -> None:
    found = sinkhorn(scores, epsilon=0.05)
    assert found.isfinite().all()
    torch.testing.assert_close(found.sum(dim=1), torch.ones(len(scores)))
