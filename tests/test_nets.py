"""Projectors, heads and the slow teacher, against plain references."""

from __future__ import annotations

from copy import deepcopy

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as some
from torch import Tensor, nn

from vssl_core.errors import PluginError
from vssl_core.nets.ema import Ema
from vssl_core.nets.layers import head, mlp


def kinds(net: nn.Sequential) -> str:
    """The layers of a net in short: linear with and without bias, norm with and without scale, ReLU."""
    letters = {nn.Linear: "Ll", nn.BatchNorm1d: "Nn", nn.ReLU: "RR"}
    plain = [getattr(layer, "bias", None) is None for layer in net]
    return "".join(letters[type(layer)][index] for layer, index in zip(net, plain, strict=True))


@pytest.mark.parametrize(
    ("net", "layers"),
    [
        (mlp(8, 4), "L"),
        (mlp(8, 16, 4), "lNRL"),
        (mlp(8, 16, 16, 4), "lNRlNRL"),
        (mlp(8, 16, 4, last_norm=True), "lNRln"),
        (mlp(8, 16, 4, norm=False), "LRL"),
        (head(8, 5), "L"),
        (head(8, 5, layers=2), "lNRL"),
        (head(8, 5, layers=2, norm=False), "LRL"),
    ],
)
def test_layers_in_order(net: nn.Sequential, layers: str) -> None:
    """Small letters: a linear layer without bias, a norm without scale and shift."""
    assert kinds(net) == layers
    assert net(torch.randn(3, 8)).shape == (3, net[-1].num_features if layers[-1] == "n" else net[-1].out_features)


def test_sizes_of_hidden_layers() -> None:
    """A projector goes through its sizes in order; a head's hidden layers keep the input's width."""
    assert [tuple(p.shape) for p in mlp(8, 16, 4).parameters()] == [(16, 8), (16,), (16,), (4, 16), (4,)]
    assert [layer.in_features for layer in head(8, 5, layers=3) if isinstance(layer, nn.Linear)] == [8, 8, 8]
    with pytest.raises(ValueError, match="input and output"):
        mlp(8)


def test_last_norm_centres_the_batch() -> None:
    """Outputs of a batch have mean 0 and spread 1 in every feature."""
    values = mlp(8, 16, 4, last_norm=True)(torch.randn(64, 8))
    torch.testing.assert_close(values.mean(0), torch.zeros(4), atol=1e-5, rtol=0)
    torch.testing.assert_close(values.std(0, unbiased=False), torch.ones(4), atol=1e-2, rtol=0)


def online() -> nn.Sequential:
    """A small net with a norm, so with parameters and buffers, fractional and whole-numbered."""
    return nn.Sequential(nn.Conv3d(3, 4, 3, padding=1, bias=False), nn.BatchNorm3d(4), nn.Flatten(), nn.Linear(32, 5))


def shaken(module: nn.Module) -> nn.Module:
    """The module after something like a training step: every parameter and running statistic has moved."""
    with torch.no_grad():
        for tensor in module.state_dict().values():
            tensor += 1 if not tensor.is_floating_point() else torch.randn_like(tensor)
    return module


def parameters(module: nn.Module) -> list[Tensor]:
    """Copies of all parameters."""
    return [parameter.detach().clone() for parameter in module.parameters()]


@settings(max_examples=30, deadline=None)
@given(momentum=some.floats(0, 1), seed=some.integers(0, 1000))
def test_following_is_the_slow_loop(momentum: float, seed: int) -> None:
    """Each parameter becomes momentum * old + (1 - momentum) * online, within rounding of the larger of the two."""
    torch.manual_seed(seed)
    net = online()
    teacher = Ema(net=net)
    old = parameters(teacher)
    teacher.follow(momentum, net=shaken(net))
    for new, before, now in zip(teacher.parameters(), old, net.parameters(), strict=True):
        expected = momentum * before.double() + (1 - momentum) * now.detach().double()
        room = 2 * torch.finfo(torch.float32).eps * torch.maximum(before.abs(), now.detach().abs())
        assert ((new.double() - expected).abs() <= room).all()


def test_momentum_zero_and_one_are_exact() -> None:
    """1 leaves every bit, 0 takes every bit."""
    net = online()
    teacher = Ema(net=net)
    before = parameters(teacher)
    shaken(net)
    teacher.follow(1.0, net=net)
    assert all(map(torch.equal, teacher.parameters(), before))
    teacher.follow(0.0, net=net)
    assert all(map(torch.equal, teacher.parameters(), parameters(net)))


def test_buffers_are_the_teachers_own() -> None:
    """Running statistics do not follow; they come from the teacher's forwards in training mode."""
    net = online()
    teacher = Ema(net=net)
    before = {key: value.clone() for key, value in teacher.named_buffers()}
    teacher.follow(0.5, net=shaken(net))
    assert all(torch.equal(value, before[key]) for key, value in teacher.named_buffers())
    with torch.no_grad():
        teacher.net(torch.randn(4, 3, 2, 2, 2))
    assert not torch.equal(teacher.net[1].running_mean, before["net.1.running_mean"])
    teacher.copy(net=net)
    assert all(torch.equal(value, net.state_dict()[key]) for key, value in teacher.net.state_dict().items())


def test_the_teacher_is_apart_from_the_student() -> None:
    """No shared memory, no gradients; the student is not moved, frozen or switched."""
    net = online()
    before = deepcopy(net.state_dict())
    teacher = Ema(backbone=net, projector=net[3])
    assert not any(parameter.requires_grad for parameter in teacher.parameters())
    assert all(parameter.requires_grad for parameter in net.parameters())
    shaken(teacher)
    teacher.follow(0.9, projector=net[3], backbone=net)
    assert all(torch.equal(value, before[key]) for key, value in net.state_dict().items())


def test_state_dict_holds_the_whole_teacher() -> None:
    """A teacher restored from its state_dict goes on as the one that was saved."""
    net = online()
    first, second = Ema(net=net), Ema(net=online())
    first.follow(0.5, net=shaken(net))
    second.load_state_dict(first.state_dict())
    for teacher in (first, second):
        teacher.follow(0.99, net=net)
    assert all(map(torch.equal, first.state_dict().values(), second.state_dict().values()))


def test_wrong_modules_are_refused() -> None:
    """A forgotten, unknown or exchanged module would leave a teacher that silently stands still or mixes up."""
    net = online()
    teacher = Ema(backbone=net, projector=nn.Linear(5, 5))
    with pytest.raises(PluginError, match="holds copies of backbone, projector, but was given backbone;"):
        teacher.follow(0.5, backbone=net)
    with pytest.raises(PluginError, match="differs in shape"):
        teacher.follow(0.5, backbone=net, projector=nn.Linear(5, 6))
