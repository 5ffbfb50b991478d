"""k-means on clusters that are there, the concentration against plain loops, and what goes wrong, in sentences."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as some
from torch import Tensor

from vssl_core.errors import DataError, UserError, VsslError
from vssl_core.nets.clustering import Clusters, concentration, kmeans

pytest.importorskip("faiss", reason="needs faiss: pip install 'vssl[cpu]'")


def blobs(clusters: int = 5, each: int = 30, seed: int = 0) -> tuple[Tensor, Tensor]:
    """(rows, to which of the far apart blobs each belongs)."""
    generator = torch.Generator().manual_seed(seed)
    belongs = torch.arange(clusters).repeat_interleave(each)
    return 10 * torch.eye(clusters, 8)[belongs] + 0.1 * torch.randn(len(belongs), 8, generator=generator), belongs


def test_it_finds_clusters_that_are_there() -> None:
    rows, belongs = blobs()
    found = kmeans(rows, 5)
    assert found.centroids.shape == (5, 8) and found.assignments.shape == found.distances.shape == (150,)
    for cluster in range(5):  # one centroid for each blob, in its middle
        (centroid,) = found.assignments[belongs == cluster].unique()
        torch.testing.assert_close(found.centroids[centroid], rows[belongs == cluster].mean(0), rtol=1e-3, atol=1e-3)


def test_distances_are_those_to_the_nearest_centroid() -> None:
    rows = torch.randn(200, 6, generator=torch.Generator().manual_seed(0))
    found = kmeans(rows, 7, restarts=2)
    slow = torch.cdist(rows, found.centroids)
    torch.testing.assert_close(found.distances, slow.min(dim=1).values, rtol=1e-3, atol=1e-3)
    assert torch.equal(found.assignments, slow.argmin(dim=1))


def test_the_seed_decides_and_more_restarts_are_no_worse() -> None:
    rows = torch.randn(120, 4, generator=torch.Generator().manual_seed(1))
    once, again, other = (kmeans(rows, 12, seed=seed, restarts=1, iterations=3) for seed in (3, 3, 4))
    assert torch.equal(once.centroids, again.centroids) and torch.equal(once.assignments, again.assignments)
    assert not torch.equal(once.centroids, other.centroids)
    costs = [float(kmeans(rows, 12, restarts=restarts).distances.square().sum()) for restarts in (1, 8)]
    assert costs[1] <= costs[0]


def test_the_caller_hears_of_every_restart_and_global_generators_of_none() -> None:
    heard: list[int] = []
    state, numbers = torch.get_rng_state(), np.random.get_state()[1].tobytes()
    kmeans(blobs()[0], 3, restarts=4, advance=heard.append)
    assert heard == [1, 1, 1, 1]
    assert torch.equal(state, torch.get_rng_state()) and numbers == np.random.get_state()[1].tobytes()


def test_as_many_clusters_as_rows_is_the_limit() -> None:
    rows = torch.eye(4)
    assert sorted(kmeans(rows, 4, restarts=1).assignments.tolist()) == [0, 1, 2, 3]
    with pytest.raises(DataError, match=r"4 videos cannot form 5 clusters; ask for at most 4"):
        kmeans(rows, 5)


def test_rows_that_are_not_finite_are_named() -> None:
    with pytest.raises(VsslError, match="not finite"):
        kmeans(torch.tensor([[0.0], [float("nan")], [1.0]]), 2)


def test_faiss_missing_is_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "faiss", None)
    with pytest.raises(UserError, match=r"k-means: needs faiss.*pip install 'vssl\[cpu\]'"):
        kmeans(torch.eye(4), 2)


def test_faiss_is_not_imported_with_the_room() -> None:
    program = "import sys, vssl_core.nets.clustering; sys.exit('faiss' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", program], timeout=120).returncode == 0


# Concentration --------------------------------------------------------------------------------------------------------


def slow_concentration(
    assignments: list[int], distances: list[float], clusters: int, temperature: float
) -> list[float]:
    members: list[list[float]] = [[] for _ in range(clusters)]
    for cluster, distance in zip(assignments, distances, strict=True):
        members[cluster].append(distance)
    phi = [sum(own) / len(own) / np.log(len(own) + 10) if len(own) > 1 else None for own in members]
    largest = max(value for value in phi if value is not None)
    filled = np.array([largest if value is None else value for value in phi])
    clipped = filled.clip(np.percentile(filled, 10), np.percentile(filled, 90))
    return (temperature * clipped / clipped.mean()).tolist()


@given(clusters=some.integers(2, 12), rows=some.integers(20, 60), seed=some.integers(0, 10_000))
@settings(max_examples=40, deadline=None)
def test_it_is_the_concentration_in_loops(clusters: int, rows: int, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    assignments = torch.randint(0, clusters, (rows,), generator=generator).clamp(max=clusters - 1)
    distances = torch.rand(rows, generator=generator) + 0.01
    found = concentration(Clusters(torch.zeros(clusters, 3), assignments, distances), 0.2)
    wanted = slow_concentration(assignments.tolist(), distances.double().tolist(), clusters, 0.2)
    torch.testing.assert_close(found, torch.tensor(wanted, dtype=torch.float32), rtol=1e-4, atol=1e-6)
    assert found.mean().item() == pytest.approx(0.2, rel=1e-5)


def test_its_range_is_that_of_the_percentiles() -> None:
    generator = torch.Generator().manual_seed(0)
    clusters = Clusters(torch.zeros(40, 3), torch.arange(400) % 40, torch.rand(400, generator=generator) ** 4 + 1e-3)
    phi = concentration(clusters, 0.07)
    raw = np.array([clusters.distances[cluster::40].double().mean() / np.log(20) for cluster in range(40)])
    low, high = np.percentile(raw, [10, 90])
    assert phi.max() / phi.min() == pytest.approx(high / low, rel=1e-4)


@pytest.mark.parametrize("assignments", [[0, 0, 0, 0], [0, 0, 1, 1], [0, 1, 2, 2]])
def test_rows_that_are_all_alike_leave_the_temperature(assignments: list[int]) -> None:
    phi = concentration(Clusters(torch.zeros(3, 2), torch.tensor(assignments), torch.zeros(4)), 0.1)
    torch.testing.assert_close(phi, torch.full((3,), 0.1))


def test_a_cluster_of_copies_divides_nothing_by_zero() -> None:
    distances = torch.cat([torch.zeros(40), torch.ones(40)])
    phi = concentration(Clusters(torch.zeros(8, 2), torch.arange(8).repeat_interleave(10), distances), 0.2)
    assert phi.min() > 0 and phi.mean().item() == pytest.approx(0.2)
