"""Gradients in bfloat16 on a CPU are those of float32, as far as bfloat16 goes, on the shortest of clips too."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from small_runs import open_small
from torch import Tensor, nn

from vssl_core import Combiner, hookimpl
from vssl_core.run.precision import autocast, in_full, sound_backward

CPU = torch.device("cpu")


def weight_gradient(net: nn.Module, clip: Tensor, precision: str) -> Tensor:
    """The gradient of the sum of squares with respect to the net's weight."""
    net.zero_grad()
    with autocast(CPU, precision):
        output = net(clip)
    with sound_backward(CPU, precision):
        output.float().square().sum().backward()
    return net.weight.grad.clone()


@pytest.mark.parametrize("frames", [1, 2, 3, 4])
@pytest.mark.parametrize("size", [1, 2, 7])
@pytest.mark.parametrize(("kernel", "stride"), [((3, 1, 1), (1, 1, 1)), ((3, 3, 3), (1, 1, 1)), ((1, 3, 3), (1, 2, 2))])
def test_bfloat16_is_float32_but_for_rounding(frames, size, kernel, stride):
    torch.manual_seed(0)
    net = nn.Conv3d(16, 64, kernel, stride, padding=tuple(extent // 2 for extent in kernel), bias=False)
    clip = torch.randn(2, 16, frames, size, size)
    wanted, found = weight_gradient(net, clip, "float32"), weight_gradient(net, clip, "bfloat16")
    assert (found - wanted).norm() < 0.02 * wanted.norm()


def test_what_is_switched_off_comes_back():
    before = torch.backends.mkldnn.enabled
    with pytest.raises(ZeroDivisionError), sound_backward(CPU, "bfloat16"):
        assert not torch.backends.mkldnn.enabled
        _ = 1 / 0
    assert torch.backends.mkldnn.enabled == before
    with sound_backward(CPU, "float32"):
        assert torch.backends.mkldnn.enabled == before


def standing() -> tuple[bool, bool]:
    """Whether autocast is on, and whether oneDNN is."""
    return torch.is_autocast_enabled("cpu"), torch.backends.mkldnn.enabled


def test_full_precision_inside_of_less_and_back():
    with autocast(CPU, "bfloat16"):
        with in_full(CPU):
            assert standing() == (False, False) and (torch.ones(2, 2) @ torch.ones(2, 2)).dtype == torch.float32
        assert standing() == (True, True)
    with in_full(CPU):
        assert standing() == (False, True)


@pytest.mark.parametrize(("precision", "dnn"), [("float32", True), ("bfloat16", False)])
def test_combiners_and_observers_may_differentiate(tmp_path: Path, precision: str, dnn: bool):
    """Both stand where gradients are right: in float32, and without oneDNN where the forward was in bfloat16."""
    seen = {"combiner": [], "observer": [], "dtypes": []}

    class Looks(Combiner):
        def forward(self, losses, weights, shared):
            seen["combiner"].append(standing())
            seen["dtypes"] += [loss.dtype for loss in losses.values()]
            return torch.stack(list(losses.values())).sum()

    class Watch:
        @hookimpl
        def vssl_forward_end(self, losses, shared):
            seen["observer"].append(standing())
            loss, *_ = losses.values()
            assert all(bool(gradient.isfinite().all()) for gradient in torch.autograd.grad(
                loss, shared.parameters, retain_graph=True, allow_unused=True) if gradient is not None)  # fmt: skip

    plugins = {"rotation": None, "looks": Looks, "watch": Watch()}
    open_small(
        tmp_path, plugins, epochs=1, combine={"name": "looks"}, device={"kind": "cpu", "precision": precision}
    ).train()
    assert seen == {"combiner": [(False, dnn)] * 3, "observer": [(False, dnn)] * 3, "dtypes": [torch.float32] * 3}
    assert standing() == (False, True)
