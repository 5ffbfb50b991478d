"""Shuffled batch norm, Sinkhorn and k-means on two real ranks."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from vssl_core.distributed import rank, world_size
from vssl_core.errors import DataError
from vssl_core.nets.batchnorm import synchronise
from vssl_core.nets.clustering import kmeans
from vssl_core.nets.shuffle import keeps_to_its_rank, shuffled, trade
from vssl_core.nets.sinkhorn import sinkhorn
from vssl_core.testing import on_ranks
from vssl_core.views import Batch
from vssl_core.windows import Sample

pytest.importorskip("faiss", reason="needs faiss: pip install 'vssl[cpu]'")

ROWS = 12  # over all ranks


def batch_of(number: int, world: int) -> Batch:
    """A batch with this rank's share of the samples."""
    share = ROWS // world
    index = torch.arange(number * share, (number + 1) * share)
    samples = [Sample(0, 0, 0, video) for video in index.tolist()]
    return Batch("some", {}, index, samples, epoch=0, progress=0.0, encode=lambda clip: None)


def clips() -> Tensor:
    """(ROWS, 3, 2, 4, 4) as different as can be."""
    return torch.randn(ROWS, 3, 2, 4, 4, generator=torch.Generator().manual_seed(0)) * torch.arange(1, ROWS + 1).view(
        -1, 1, 1, 1, 1
    )


class Net(nn.Module):
    """A batch norm and what it saw."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.BatchNorm1d(96)
        self.seen: Tensor = torch.zeros(0)

    def forward(self, clip: Tensor) -> Tensor:
        """(B, 96) normalised."""
        self.seen = clip
        return self.norm(clip.flatten(1))


def answers(number: int, world: int) -> dict[str, Any]:
    """What one rank finds."""
    share = slice(number * ROWS // world, (number + 1) * ROWS // world)
    own, batch, net = clips()[share], batch_of(number, world), Net()
    order = torch.arange(ROWS).flip(0).view(3, 4).T.reshape(-1)
    found: dict[str, Any] = {
        "traded": trade(own, order) if world > 1 else own[order],
        "identity": shuffled(lambda clip: clip.flatten(1), own, batch, net),
        "normed": shuffled(net, own, batch, net),
        "seen": net.seen,
        "plain": Net()(own),
        "synchronised": shuffled(both := synchronise(Net()), own, batch, both),
        "sinkhorn": sinkhorn(own.flatten(1)[:, :5] / 20, others=torch.linspace(-0.5, 0.5, 35).view(7, 5)),
        "centroids": kmeans(clips().flatten(1) + number, 3, restarts=2).centroids,  # only rank 0's rows count
    }
    try:
        kmeans(clips().flatten(1) if number else clips().flatten(1)[:2], 3)
    except DataError as error:
        found["error"] = str(error)
    return found


@pytest.fixture(scope="module")
def told() -> list[dict[str, Any]]:
    """What each of two ranks found."""
    return on_ranks(2, on_this_rank)


def on_this_rank() -> dict[str, Any]:
    """What each of them does."""
    return answers(rank(), world_size())


def whole(told: list[dict[str, Any]], name: str) -> Tensor:
    """The rows of both ranks in global order."""
    return torch.cat([found[name] for found in told])


def test_rows_trade_places_and_come_back(told: list[dict[str, Any]]) -> None:
    alone = answers(0, 1)
    assert torch.equal(whole(told, "traded"), alone["traded"])
    assert torch.equal(whole(told, "identity"), clips().flatten(1))


def test_batch_norm_sees_rows_of_both_ranks(told: list[dict[str, Any]]) -> None:
    """Each rank normalises rows that are not its own, and every row once; the result is not that of its own batch."""
    for number, found in enumerate(told):
        places = [int((clips() == row).flatten(1).all(dim=1).nonzero()) for row in found["seen"]]
        assert {place // (ROWS // 2) for place in places} == {0, 1}
        net = Net()
        rows = {place: row for place, row in zip(places, net(found["seen"]), strict=True)}
        for place, row in rows.items():
            torch.testing.assert_close(whole(told, "normed")[place], row)
        assert not torch.allclose(found["normed"], found["plain"], atol=1e-3), number


def test_nothing_is_traded_where_batch_norm_spans_ranks(told: list[dict[str, Any]]) -> None:
    torch.testing.assert_close(whole(told, "synchronised"), answers(0, 1)["plain"])
    assert keeps_to_its_rank(Net()) and not keeps_to_its_rank(synchronise(Net())) and not keeps_to_its_rank(nn.ReLU())


def test_sinkhorn_sees_the_rows_of_all_ranks(told: list[dict[str, Any]]) -> None:
    torch.testing.assert_close(whole(told, "sinkhorn"), answers(0, 1)["sinkhorn"])


def test_clusters_are_rank_0s_on_every_rank(told: list[dict[str, Any]]) -> None:
    assert torch.equal(told[0]["centroids"], told[1]["centroids"])
    torch.testing.assert_close(told[0]["centroids"], answers(0, 1)["centroids"])


def test_what_fails_on_rank_0_is_told_to_all(told: list[dict[str, Any]]) -> None:
    assert told[0]["error"] == told[1]["error"] and "2 videos cannot form 3 clusters" in told[0]["error"]
