"""Gradients in bfloat16 on a CPU are those of float32, as far as bfloat16 goes, on the shortest of clips too."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from vssl_core.run.precision import autocast, sound_backward

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
