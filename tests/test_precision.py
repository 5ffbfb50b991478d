"""Gradients in bfloat16 on a CPU are those of float32, as far as bfloat16 goes, on the shortest of clips too; and other
layouts and compiled nets train as the plain one does."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from small_runs import Colour, Stop, StopAt, Watch, open_small, train
from torch import Tensor, nn

from vssl_core import Combiner, hookimpl, load_backbone
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


# Other ways to compute the same ---------------------------------------------------------------------------------------

# Steps of bounded length, since these clips' gradients blow up whatever rounding leaves: with free steps, a net whose
# first weights differ by 1e-6 has a loss that differs by a third after six of them, with bounded ones by 1e-4.
BOUNDED, APART = {"lr": 1e-2, "clip_norm": 0.1}, 1e-3


def losses(folder: Path, **device: Any) -> list[float]:
    """The losses of six steps."""
    watch = Watch()
    train(folder, {"colour": Colour, "watch": watch}, optim=BOUNDED, device={"kind": "cpu", **device})
    return [step["colour/error"] for step in watch.losses]


def test_channels_last_trains_alike(tmp_path: Path):
    """The same losses, as far as sums in another order are."""
    found = losses(tmp_path / "last", channels_last=True)
    assert len(found) == 6 and found == pytest.approx(losses(tmp_path / "plain"), rel=APART)


def test_channels_last_is_how_the_weights_lie(tmp_path: Path):
    run = open_small(tmp_path, {"colour": Colour}, device={"kind": "cpu", "channels_last": True})
    weights = [value for value in run.backbone.parameters() if value.ndim == 5 and min(value.shape[:2]) > 1]
    assert weights and all(value.is_contiguous(memory_format=torch.channels_last_3d) for value in weights)


@pytest.mark.slow
@pytest.mark.skipif(not shutil.which("g++"), reason="torch.compile needs a C++ compiler")
def test_a_compiled_backbone_trains_saves_resumes_and_loads(tmp_path: Path):
    """With the losses of the plain one, under the plain one's names: compiled or not, one reads the other's files."""
    options = {"optim": BOUNDED, "device": {"kind": "cpu", "compile": True}}
    watch = Watch()
    with pytest.raises(Stop):
        train(tmp_path / "run", {"colour": Colour, "watch": watch, "stop": StopAt(2)}, **options)
    run = train(tmp_path / "run", {"colour": Colour, "watch": watch, "stop": StopAt(-1)}, **options)
    assert [step["colour/error"] for step in watch.losses] == pytest.approx(losses(tmp_path / "plain"), rel=APART)
    loaded = load_backbone(tmp_path / "run")
    assert list(loaded.state_dict()) == list(load_backbone(tmp_path / "plain").state_dict())
    clip = torch.randn(2, 3, 4, 16, 16)
    run.backbone.eval()
    with torch.no_grad():
        wanted, found = run.backbone(clip), loaded(clip)
    assert list(wanted) == list(found)
    for stage, features in found.items():
        torch.testing.assert_close(wanted[stage], features, rtol=1e-4, atol=1e-5)
