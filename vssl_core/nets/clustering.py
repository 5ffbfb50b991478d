"""Clusters of the whole training list: k-means by faiss, and how tight each cluster is."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from vssl_core.distributed import broadcast, rank
from vssl_core.errors import DataError, UserError, VsslError

TIGHTEST = 1e-2  # of the mean: clusters of identical rows would divide by zero


@dataclass(frozen=True)
class Clusters:
    """What k-means found, on the CPU."""

    centroids: Tensor  # (K, D) float32, not normalised
    assignments: Tensor  # (N,) int64
    distances: Tensor  # (N,) float32, Euclidean, to the row's own centroid


def kmeans(
    rows: Tensor,
    clusters: int,
    *,
    seed: int = 0,
    iterations: int = 20,
    restarts: int = 5,
    device: torch.device | None = None,
    advance: Callable[[int], None] | None = None,
) -> Clusters:
    """The best of `restarts` runs of k-means on rows (N, D), by the sum of squared distances; the same on every rank.

    Rank 0 clusters, on the GPU where `device` is one and faiss knows it, and tells the others; every rank must call.
    `advance(1)` is called on rank 0 after each run; without it a bar shows them on a terminal. Raises `UserError` where
    faiss is missing, `DataError` for fewer rows than clusters, `VsslError` for rows that are not finite.
    """
    told: Clusters | VsslError | None = None
    if rank() == 0:
        try:
            with _shown(advance, restarts, clusters) as heard:
                told = _best_of(rows, clusters, seed, iterations, restarts, device, heard)
        except VsslError as error:  # the other ranks wait for an answer, whatever it is
            told = error
    told = broadcast(told)
    if isinstance(told, VsslError):
        raise told
    assert told is not None
    return told


def concentration(clusters: Clusters, temperature: float, smoothing: float = 10.0) -> Tensor:
    """(K,) the concentration phi of each cluster: small where its rows lie close; the mean is `temperature`.

    The mean distance of a cluster's n rows over ln(n + smoothing); clusters with at most one row take the largest; then
    clipped to the range between the 10th and the 90th percentile, and scaled (Li et al. 2021, section 3.3 and code).
    """
    total = len(clusters.centroids)
    members = torch.bincount(clusters.assignments, minlength=total)  # (K,)
    spread = torch.bincount(clusters.assignments, clusters.distances.double(), total)  # (K,) sums of distances
    phi = spread / members.clamp(min=1) / torch.log(members + smoothing)
    phi = torch.where(members > 1, phi, torch.where(members > 1, phi, 0).max())
    low, high = torch.quantile(phi, torch.tensor([0.1, 0.9], dtype=phi.dtype))
    phi = phi.clamp(low, high)
    phi = phi.clamp(min=TIGHTEST * phi.mean())
    scaled = temperature * phi / phi.mean() if phi.mean() > 0 else torch.full_like(phi, temperature)
    return scaled.float()


# On rank 0 ------------------------------------------------------------------------------------------------------------


def _best_of(
    rows: Tensor,
    clusters: int,
    seed: int,
    iterations: int,
    restarts: int,
    device: torch.device | None,
    advance: Callable[[int], None],
) -> Clusters:
    faiss = _faiss()
    if len(rows) < clusters:
        raise DataError(
            f"k-means: {len(rows)} videos cannot form {clusters} clusters; ask for at most {len(rows)}, or give more "
            "videos"
        )
    if not bool(rows.isfinite().all()):
        raise VsslError(
            "k-means: some features are not finite numbers; lower optim.lr, and start from an earlier checkpoint"
        )
    values = rows.detach().float().cpu().contiguous().numpy()
    index = _index(faiss, values.shape[1], device)
    best, least = None, float("inf")
    with _threads(faiss):
        for restart in range(restarts):
            engine = faiss.Clustering(values.shape[1], clusters)
            engine.niter, engine.seed = iterations, (seed * restarts + restart) % 2**31
            engine.max_points_per_centroid = 1000
            engine.min_points_per_centroid = 1  # few rows are no reason to warn
            index.reset()
            engine.train(values, index)
            squares, nearest = index.search(values, 1)  # (N, 1) each; faiss gives squared distances
            if squares.sum(dtype="float64") < least:
                least = squares.sum(dtype="float64")
                centroids = faiss.vector_to_array(engine.centroids).reshape(clusters, -1).copy()
                best = Clusters(*(torch.from_numpy(part) for part in (centroids, nearest[:, 0], squares[:, 0])))
            advance(1)
    assert best is not None
    return Clusters(best.centroids, best.assignments, best.distances.clamp(min=0).sqrt())


def _faiss() -> Any:
    try:
        import faiss
    except ImportError as error:
        raise UserError(
            f"k-means: needs faiss, which cannot be imported ({error}); run: pip install 'vssl[cpu]' (or 'vssl[gpu]')"
        ) from error
    return faiss


def _index(faiss: Any, features: int, device: torch.device | None) -> Any:
    """Where centroids are searched: on the GPU where there is one and this faiss was built for it."""
    if device is not None and device.type == "cuda" and hasattr(faiss, "StandardGpuResources") and faiss.get_num_gpus():
        settings = faiss.GpuIndexFlatConfig()
        settings.device = device.index or 0
        return faiss.GpuIndexFlatL2(faiss.StandardGpuResources(), features, settings)
    return faiss.IndexFlatL2(features)


@contextmanager
def _threads(faiss: Any) -> Iterator[None]:
    """As many threads as torch has: those of the run's configuration, not all of the machine's."""
    before = faiss.omp_get_max_threads()
    faiss.omp_set_num_threads(torch.get_num_threads())
    try:
        yield
    finally:
        faiss.omp_set_num_threads(before)


@contextmanager
def _shown(advance: Callable[[int], None] | None, restarts: int, clusters: int) -> Iterator[Callable[[int], None]]:
    """What hears of each run that is done: the caller, or a bar on a terminal that goes when k-means is done."""
    if advance is not None:
        yield advance
        return
    from rich import get_console
    from rich.progress import Progress

    with Progress(console=get_console(), transient=True, disable=not get_console().is_terminal) as bar:
        task = bar.add_task(f"k-means, {clusters} clusters", total=restarts)
        yield lambda count: bar.advance(task, count)
