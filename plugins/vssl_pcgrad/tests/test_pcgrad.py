"""PCGrad by hand, against the algorithm in loops, and on two ranks."""

from __future__ import annotations

import random

import pytest
import torch
from hypothesis import given
from hypothesis import settings as short
from hypothesis import strategies as st
from pydantic import ValidationError
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

import vssl_pcgrad
from vssl_core import Shared, rank
from vssl_core.testing import check_plugin, on_ranks
from vssl_pcgrad.combiner import ProjectConflicting, project

WHERE = ["parameters", "features"]
OPPOSED = torch.tensor([[1.0, 0.2, 0.0], [-0.9, 0.5, 0.4], [-0.3, -0.8, 0.3]])  # any two at more than 90 degrees


@pytest.mark.parametrize("on", WHERE)
def test_it_keeps_the_contract(on):
    check_plugin("pcgrad", on=on)


def build(*names: str, on: str = "parameters") -> ProjectConflicting:
    return ProjectConflicting(ProjectConflicting.Config(on=on), names)


class Place(nn.Module):
    """A parameter vector, which is all that losses share."""

    def __init__(self, *values: float) -> None:
        super().__init__()
        self.x = nn.Parameter(torch.tensor(values))


def shared_of(place: Place, on: str) -> tuple[Shared, Tensor]:
    """What is shared, and what losses stand on: the parameter, or a feature map made of it."""
    if on == "parameters":
        return Shared((), place), place.x
    features = 1 * place.x
    return Shared((features,), place), features


def slow(gradients: list[list[float]], orders: list[list[int]]) -> list[float]:
    """Algorithm 1 on plain lists: the sum of the projected gradients."""
    total = [0.0] * len(gradients[0])
    for own, order in enumerate(orders):
        projected = list(gradients[own])
        for other in order:
            along = sum(a * b for a, b in zip(projected, gradients[other], strict=True))
            if other != own and along < 0:
                size = sum(value * value for value in gradients[other])
                projected = [a - along / size * b for a, b in zip(projected, gradients[other], strict=True)]
        total = [a + b for a, b in zip(total, projected, strict=True)]
    return total


@pytest.mark.parametrize("on", WHERE)
def test_two_quadratics_that_conflict(on):
    """At the origin, g = (2, 0) and weight 2 x (-1, 1) = (-2, 2): the products are 4, -4, 8.

    The first loses -4/8 of the second: (2, 0) + (-1, 1) = (1, 1). The second loses -4/4 of the first: (0, 2).
    """
    place = Place(0.0, 0.0)
    shared, x = shared_of(place, on)
    losses = {
        "a": (x - torch.tensor([-1.0, 0.0])).square().sum(),
        "b": (x - torch.tensor([0.5, -0.5])).square().sum(),
    }
    total = build("a", "b", on=on)(losses, {"a": 1.0, "b": 2.0}, shared)
    assert total.item() == 1 + 2 * 0.5
    total.backward()
    assert place.x.grad.tolist() == pytest.approx([1, 3])


@pytest.mark.parametrize("on", WHERE)
def test_without_a_conflict_it_is_the_plain_sum(on):
    place = Place(0.0, 0.0)
    shared, x = shared_of(place, on)
    losses = {"a": (x - 1).square().sum(), "b": (x - torch.tensor([0.0, 1.0])).square().sum()}
    build("a", "b", on=on)(losses, {"a": 1.0, "b": 0.5}, shared).backward()
    assert place.x.grad.tolist() == [-2, -3]


def test_opposed_gradients_cancel_where_they_are_opposed():
    place = Place(1.0)
    losses = {"a": 3 * place.x.sum(), "b": -2 * place.x.sum()}
    build("a", "b")(losses, {"a": 1.0, "b": 1.0}, Shared((), place)).backward()
    assert place.x.grad.tolist() == pytest.approx([0], abs=1e-6)


@given(count=st.integers(1, 5), size=st.integers(1, 4), seed=st.integers(0, 10_000))
@short(max_examples=60, deadline=None)
def test_factors_are_those_of_the_algorithm_in_loops(count, size, seed):
    gradients = torch.randn(count, size, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    draw = random.Random(seed)
    orders = [draw.sample(range(count), count) for _ in range(count)]
    found = project(gradients @ gradients.T, orders) @ gradients
    assert found.tolist() == pytest.approx(slow(gradients.tolist(), orders), rel=1e-6, abs=1e-6)


@pytest.mark.parametrize("on", WHERE)
def test_three_objectives_in_the_order_that_is_drawn(on):
    """Three gradients that all conflict, where the order matters: each step's is one of the algorithm's."""
    seen = set()
    for seed in range(12):
        place = Place(0.3, -0.2, 0.5)
        shared, x = shared_of(place, on)
        torch.manual_seed(seed)
        orders = [torch.randperm(3).tolist() for _ in range(3)]
        torch.manual_seed(seed)
        losses = {name: (row * x).sum() for name, row in zip("abc", OPPOSED, strict=True)}
        build("a", "b", "c", on=on)(losses, dict.fromkeys("abc", 1.0), shared).backward()
        assert place.x.grad.tolist() == pytest.approx(slow(OPPOSED.tolist(), orders), rel=1e-4, abs=1e-5)
        seen.add(tuple(round(value, 4) for value in place.x.grad.tolist()))
    assert len(seen) > 1  # the order is not always the same


class Net(nn.Module):
    """A backbone with a parameter that nothing uses, and two heads."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(1)
        self.backbone = nn.Sequential(nn.Linear(4, 6), nn.Tanh())
        self.backbone.unused = nn.Parameter(torch.ones(2))
        self.heads = nn.ModuleDict({"a": nn.Linear(6, 1), "b": nn.Linear(6, 1)})
        self.heads["b"].weight.data.copy_(self.heads["a"].weight.data + 0.1)  # not quite the same

    def losses(self, rows: Tensor) -> tuple[dict[str, Tensor], Tensor]:
        """Objectives that want opposite things of every row."""
        features = self.backbone(rows)
        wanted = {"a": 3.0, "b": -2.0}
        return {name: (head(features) - wanted[name]).square().mean() for name, head in self.heads.items()}, features


def gradients_of(net: nn.Module, total: Tensor) -> dict[str, Tensor]:
    net.zero_grad()
    total.backward(retain_graph=True)
    return {name: value.grad.clone() for name, value in net.named_parameters() if value.grad is not None}


@pytest.mark.parametrize("on", WHERE)
def test_heads_get_their_own_gradients_and_the_backbone_the_projected_ones(on):
    net, weights = Net(), {"a": 1.0, "b": 0.7}
    losses, features = net.losses(torch.randn(5, 4, generator=torch.Generator().manual_seed(3)))
    shared = Shared((features,), net.backbone)
    plain = gradients_of(net, sum(weights[name] * loss for name, loss in losses.items()))
    alone = [gradients_of(net, weights[name] * loss) for name, loss in losses.items()]
    found = gradients_of(net, build("a", "b", on=on)(losses, weights, shared))
    assert all(torch.equal(found[name], plain[name]) for name in plain if name.startswith("heads"))
    assert not torch.allclose(found["backbone.0.weight"], plain["backbone.0.weight"], rtol=1e-3)
    assert "backbone.unused" not in found
    if on == "parameters":
        names = [name for name in found if name.startswith("backbone")]
        rows = [torch.cat([gradient[name].flatten() for name in names]).tolist() for gradient in alone]
        wanted = slow(rows, [[0, 1], [0, 1]])
        assert torch.cat([found[name].flatten() for name in names]).tolist() == pytest.approx(wanted, abs=1e-5)
    else:
        rows = [
            torch.autograd.grad(weights[name] * loss, features, retain_graph=True)[0].flatten().tolist()
            for name, loss in losses.items()
        ]
        wanted = torch.tensor(slow(rows, [[0, 1], [0, 1]])).view_as(features)
        expected = torch.autograd.grad(features, net.backbone[0].weight, wanted, retain_graph=True)[0]
        assert torch.allclose(found["backbone.0.weight"], expected, atol=1e-5)


@pytest.mark.parametrize("on", WHERE)
def test_one_alone_and_losses_without_gradient_are_summed(on):
    place = Place(2.0)
    shared, x = shared_of(place, on)
    assert build("a", on=on)({"a": x.sum()}, {"a": 3.0}, shared).item() == 6
    plain = {"a": torch.tensor(1.0), "b": torch.tensor(2.0)}
    assert build("a", "b", on=on)(plain, {"a": 1.0, "b": 2.0}, shared).item() == 5
    elsewhere = torch.ones((), requires_grad=True)
    total = build("a", "b", on=on)({"a": 1 * elsewhere, "b": -1 * elsewhere}, {"a": 1.0, "b": 2.0}, shared)
    assert total.item() == -1  # nothing shared is reached


FIRST, SECOND = 10, 12  # seeds of the two ranks, that draw different orders


class Whole(nn.Module):
    """Backbone and combiner as one module; three losses that all conflict, so that the order of projections matters."""

    def __init__(self, on: str) -> None:
        super().__init__()
        torch.manual_seed(1)
        self.backbone, self.combiner = nn.Sequential(nn.Linear(4, 3), nn.Tanh()), build("a", "b", "c", on=on)

    def forward(self, rows: Tensor) -> Tensor:
        features = self.backbone(rows)
        told = nn.functional.softplus(features @ OPPOSED.T).mean(dim=0)  # (3,)
        losses = dict(zip("abc", told, strict=True))
        return self.combiner(losses, {"a": 1.0, "b": 0.7, "c": 0.5}, Shared((features,), self.backbone))


def step(module: nn.Module, whole: Whole, rows: Tensor, seed: int) -> dict[str, Tensor]:
    """The gradients of one step, its generator seeded as told."""
    torch.manual_seed(seed)
    module.zero_grad()
    module(rows).backward()
    return {name: value.grad.clone() for name, value in whole.named_parameters()}


def half() -> dict[str, dict[str, Tensor]]:
    """The step of one of two ranks, through PyTorch's own exchange of gradients; each draws its own order."""
    rows = torch.randn(8, 4, generator=torch.Generator().manual_seed(2)).chunk(2)[rank()]
    found = {}
    for on in WHERE:
        whole = Whole(on)
        found[on] = step(DistributedDataParallel(whole), whole, rows, seed=(FIRST, SECOND)[rank()])
    return found


def test_two_ranks_take_the_step_of_one():
    """Each rank's generator stands elsewhere, and rank 0's counts."""
    both = on_ranks(2, half)
    rows = torch.randn(8, 4, generator=torch.Generator().manual_seed(2))
    for on in WHERE:
        whole = Whole(on)
        other, alone = (step(whole, whole, rows, seed) for seed in (SECOND, FIRST))
        assert not torch.allclose(other["backbone.0.weight"], alone["backbone.0.weight"], rtol=1e-3), (
            "orders must differ"
        )
        for number, found in enumerate(both):
            for name, gradient in alone.items():
                assert torch.allclose(found[on][name], gradient, rtol=1e-4, atol=1e-5), (on, number, name)


@pytest.mark.parametrize("options", [{"on": "heads"}, {"of": "features"}])
def test_options_have_bounds(options):
    with pytest.raises(ValidationError):
        ProjectConflicting.Config(**options)


def test_the_plugin_offers_it():
    assert vssl_pcgrad.vssl_combine() is ProjectConflicting and "NeurIPS 2020" in vssl_pcgrad.PAPER
