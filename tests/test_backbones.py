"""Backbones: exact sizes and shapes, torchvision's weights, and what every net promises."""

from __future__ import annotations

import json
import pickle
from copy import deepcopy

import pytest
import torch

from vssl_core.compat import mend
from vssl_core.errors import CheckpointError, ConfigError, PluginError
from vssl_core.nets.backbones import Backbone, build_backbone, builtin_backbones, fingerprint, stage_shapes
from vssl_core.nets.torchvision_weights import load_torchvision

NAMES = (
    "tiny c3d_light c3d r3d_10 r2plus1d_10 r3d_18 r2plus1d_18 r2plus1d_18_vcop r3d_18_hara s3d s3dg s3dg_pace "
    "slow_r50 r2plus1d_r50 slowfast_r50 x3d_s x3d_m csn_r101 mvit_base_16x4"
).split()

#: Parameters without a classifier, counted on the nets' official definitions.
PARAMETERS = {
    "c3d_light": 4_651_008,
    "c3d": 27_661_440,
    "r3d_10": 14_361_792,
    "r2plus1d_10": 14_365_303,
    "r3d_18": 33_166_272,
    "r2plus1d_18": 31_300_125,
    "r2plus1d_18_vcop": 33_178_423,
    "r3d_18_hara": 33_203_904,
    "s3d": 7_910_048,
    "s3dg": 9_098_000,
    "s3dg_pace": 9_125_072,
}

RESIDUAL = "64x16x56x56 64x16x56x56 128x8x28x28 256x4x14x14 512x2x7x7"
SEPARATED = "64x8x56x56 192x8x28x28 480x8x14x14 832x4x7x7 1024x2x{0}x{0}"
#: Stage shapes (C x T x H x W) for clips of 16 frames of 112 pixels.
SHAPES = {
    "c3d_light": "64x16x56x56 128x8x28x28 256x4x14x14 256x2x7x7 256x1x4x4",
    "c3d": "64x16x56x56 128x8x28x28 256x4x14x14 512x2x7x7 512x2x7x7",
    "r3d_10": RESIDUAL,
    "r2plus1d_10": RESIDUAL,
    "r3d_18": RESIDUAL,
    "r2plus1d_18": RESIDUAL,
    "r2plus1d_18_vcop": RESIDUAL,
    "r3d_18_hara": "64x16x56x56 64x16x28x28 128x8x14x14 256x4x7x7 512x2x4x4",
    "s3d": SEPARATED.format(3),
    "s3dg": SEPARATED.format(3),
    "s3dg_pace": SEPARATED.format(4),
    "tiny": "16x16x56x56 16x16x56x56 32x16x28x28 64x8x14x14 128x4x7x7",
    "slow_r50": "64x16x28x28 256x16x28x28 512x16x14x14 1024x16x7x7 2048x16x4x4",
    "r2plus1d_r50": "64x16x56x56 256x16x28x28 512x16x14x14 1024x8x7x7 2048x4x4x4",
    "slowfast_r50": "72x4x28x28 288x4x28x28 576x4x14x14 1152x4x7x7 2304x4x4x4",
    "x3d_s": "24x16x56x56 24x16x28x28 48x16x14x14 96x16x7x7 192x16x4x4",
    "x3d_m": "24x16x56x56 24x16x28x28 48x16x14x14 96x16x7x7 192x16x4x4",
    "csn_r101": "64x16x28x28 256x16x28x28 512x8x14x14 1024x4x7x7 2048x2x4x4",
    "mvit_base_16x4": "96x8x28x28 192x8x28x28 384x8x14x14 768x8x7x7 768x8x4x4",
}

#: Millions of parameters in PyTorchVideo's model zoo, and the parameters of the head that we leave out.
LINEAR_2048 = 2048 * 400 + 400
ZOO = {
    "slow_r50": (32.45, LINEAR_2048),
    "r2plus1d_r50": (28.11, LINEAR_2048),
    "csn_r101": (22.21, LINEAR_2048),
    "slowfast_r50": (34.57, 2304 * 400 + 400),
    "x3d_s": (3.79, 192 * 432 + 2 * 432 + 432 * 2048 + 2048 * 400 + 400),
    "x3d_m": (3.79, 192 * 432 + 2 * 432 + 432 * 2048 + 2048 * 400 + 400),
    "mvit_base_16x4": (36.61, 768 * 400 + 400),
}


def build(name: str) -> Backbone:
    """The net with the weights of seed 0."""
    torch.manual_seed(0)
    return build_backbone(name)


def count(backbone: Backbone) -> int:
    """Parameters of a net."""
    return sum(parameter.numel() for parameter in backbone.parameters())


def as_text(shapes: dict[str, tuple[int, ...]]) -> str:
    """Shapes as the tables above write them."""
    return " ".join("x".join(map(str, shape)) for shape in shapes.values())


def test_the_table_names_every_net() -> None:
    """No net is missing and none is there that these tests do not know."""
    assert sorted(builtin_backbones()) == sorted(NAMES)
    assert set(SHAPES) == set(NAMES)


@pytest.mark.parametrize("name", NAMES)
def test_stages(name: str) -> None:
    """Five stages in order, with the published shapes, and channels as announced before any forward."""
    backbone = build(name)
    shapes = stage_shapes(backbone, 16, 112)
    assert list(shapes) == list(backbone.stages) == ["stage1", "stage2", "stage3", "stage4", "stage5"]
    assert as_text(shapes) == SHAPES[name]
    assert [shape[0] for shape in shapes.values()] == list(backbone.stages.values())
    assert backbone.feature_dim == shapes["stage5"][0]
    assert backbone.name == name


@pytest.mark.parametrize("name", PARAMETERS)
def test_parameters_are_exact(name: str) -> None:
    """The count of the official definition, without a classifier."""
    assert count(build(name)) == PARAMETERS[name]


@pytest.mark.parametrize("name", ZOO)
def test_zoo_nets_have_the_size_of_the_model_zoo(name: str) -> None:
    """With the head that was taken off, PyTorchVideo's published figure."""
    published, head = ZOO[name]
    backbone = build_backbone(name)
    assert round((count(backbone) + head) / 1e6, 2) == published


def test_tiny_is_small() -> None:
    """Small enough to train on a CPU, and its strides are those that multi-level methods are tried with."""
    backbone = build_backbone("tiny")
    assert 100_000 < count(backbone) < 300_000
    assert as_text(stage_shapes(backbone, 8, 32)) == "16x8x16x16 16x8x16x16 32x8x8x8 64x4x4x4 128x2x2x2"


def test_torchvision_layout_with_one_block_per_stage() -> None:
    """The third "R(2+1)D" of the literature: torchvision's layout with the depth of the 14.4M nets."""
    from vssl_core.nets.residual import torchvision_r2plus1d

    assert count(torchvision_r2plus1d("shallow", 1)) == 12_487_005


def test_other_clip_sizes() -> None:
    """Shapes that papers print for larger clips, and MViT at the size of its name."""
    pace = stage_shapes(build_backbone("s3dg_pace"), 64, 224)
    assert as_text(pace) == "64x32x112x112 192x32x56x56 480x32x28x28 832x16x14x14 1024x8x7x7"
    assert stage_shapes(build_backbone("s3d"), 32, 128)["stage5"] == (1024, 4, 4, 4)
    assert stage_shapes(build_backbone("mvit_base_16x4"), 16, 224)["stage5"] == (768, 8, 7, 7)
    assert stage_shapes(build_backbone("slowfast_r50"), 32, 224)["stage5"] == (2304, 8, 7, 7)


@pytest.mark.parametrize("name", NAMES)
def test_shapes_are_those_of_a_real_forward(name: str) -> None:
    """What the meta device says is what comes out; finite, with gradients that reach every parameter."""
    backbone = build(name)
    maps = backbone(torch.randn(2, 3, 16, 32, 32))
    assert {stage: tuple(values.shape[1:]) for stage, values in maps.items()} == stage_shapes(backbone, 16, 32)
    assert all(values.isfinite().all() for values in maps.values())
    maps["stage5"].mean(dim=(2, 3, 4)).square().sum().backward()
    assert [key for key, parameter in backbone.named_parameters() if parameter.grad is None] == []


@pytest.mark.parametrize("name", ["tiny", "c3d_light", "r3d_10", "s3dg", "x3d_s"])
def test_stages_are_not_changed_by_later_ones(name: str) -> None:
    """In-place layers of a stage never write into the map of the stage before."""
    backbone = build(name).eval()
    values = torch.randn(2, 3, 16, 32, 32)
    with torch.no_grad():
        maps = backbone(values)
        for stage, block in zip(backbone.stages, backbone.net.blocks, strict=True):
            values = block(values.clone())
            torch.testing.assert_close(maps[stage], values)


def test_asking_for_shapes_changes_nothing() -> None:
    """Weights, running statistics, mode and the random generator stay as they were."""
    backbone = build("tiny").train()
    before, generator = deepcopy(backbone.state_dict()), torch.get_rng_state()
    stage_shapes(backbone, 8, 32)
    fingerprint(backbone, 8, 32)
    assert backbone.training
    assert torch.equal(generator, torch.get_rng_state())
    for key, value in backbone.state_dict().items():
        assert value.device.type == "cpu" and torch.equal(value, before[key])


def test_fingerprint_is_ready_for_json() -> None:
    """What a result carries; the multiply-accumulates of `tiny` are counted by hand below."""
    backbone = build("tiny")
    record = json.loads(json.dumps(fingerprint(backbone, 8, 32)))
    assert record["name"] == "tiny" and record["parameters"] == count(backbone)
    assert record["stages"]["stage5"] == [128, 2, 2, 2]
    assert record["flops"] == by_hand(backbone, 8, 32)


def by_hand(backbone: Backbone, frames: int, size: int) -> int:
    """Multiply-accumulates of all convolutions, from the shapes that pass through hooks."""
    total = 0

    def add(module: torch.nn.Module, _: object, output: torch.Tensor) -> None:
        nonlocal total
        total += module.weight.numel() * output[0, 0].numel()  # every weight is used once at every output position

    for module in backbone.modules():
        if isinstance(module, torch.nn.Conv3d):
            module.register_forward_hook(add)
    backbone.eval()(torch.zeros(1, 3, frames, size, size))
    return total


@pytest.mark.parametrize("name", ["r3d_18", "r2plus1d_18", "s3d"])
def test_torchvision_weights_give_equal_maps(name: str) -> None:
    """torchvision's own net with random weights and statistics, and ours after loading them, compute the same."""
    theirs, ours = torchvision_net(name), build(name)
    load_torchvision(ours, theirs.state_dict())
    clip = torch.randn(2, 3, 8, 64, 64)
    with torch.no_grad():
        expected, maps = torchvision_map(theirs, clip), ours.eval()(clip)
    assert expected.std() > 0.01
    torch.testing.assert_close(maps["stage5"], expected, rtol=1e-4, atol=1e-5)


def torchvision_net(name: str) -> torch.nn.Module:
    """torchvision's net in eval mode, its norms filled with values that a wrong order of tensors would betray."""
    mend()
    import torchvision.models.video

    torch.manual_seed(1)
    net = getattr(torchvision.models.video, name)(weights=None).eval()
    for module in net.modules():
        if isinstance(module, torch.nn.BatchNorm3d):
            for tensor in (module.weight.data, module.running_var):
                tensor.uniform_(0.5, 1.5)
            for tensor in (module.bias.data, module.running_mean):
                tensor.normal_(0, 0.2)
    return net


def torchvision_map(net: torch.nn.Module, clip: torch.Tensor) -> torch.Tensor:
    """The map in front of torchvision's pool."""
    if hasattr(net, "features"):
        return net.features(clip)
    for layer in (net.stem, net.layer1, net.layer2, net.layer3, net.layer4):
        clip = layer(clip)
    return clip


def test_torchvision_weights_of_another_net_are_refused() -> None:
    """One sentence each: a net that torchvision lacks, and weights of another net."""
    with pytest.raises(CheckpointError, match="has no weights in the layout of 'tiny'"):
        load_torchvision(build("tiny"), {})
    with pytest.raises(CheckpointError, match="not those of torchvision's s3d"):
        load_torchvision(build("s3d"), torchvision_net("r3d_18").state_dict())


def test_slowfast_pools_both_pathways() -> None:
    """The mean of the last stage is the mean of the slow map, then the mean of the whole fast map."""
    backbone = build("slowfast_r50").eval()
    clip, last = torch.randn(2, 3, 8, 32, 32), {}
    backbone.net.blocks[4].register_forward_hook(lambda module, inputs, output: last.update(paths=output))
    with torch.no_grad():
        vector = backbone(clip)["stage5"].mean(dim=(2, 3, 4))
    slow, fast = last["paths"]
    assert slow.shape[2] == 2 and fast.shape[2] == 8
    expected = torch.cat([slow.mean(dim=(2, 3, 4)), fast.mean(dim=(2, 3, 4))], dim=1)
    torch.testing.assert_close(vector, expected)
    with pytest.raises(ConfigError, match="multiple of 4"):
        backbone(torch.randn(2, 3, 6, 32, 32))


def test_mvit_maps_hold_tokens_in_their_places() -> None:
    """At the size of its positions, the last map is PyTorchVideo's own answer with the class token left out."""
    backbone = small_mvit().eval()
    clip = torch.randn(2, 3, 8, 64, 64)
    with torch.no_grad():
        tokens, maps = backbone.net(clip), backbone(clip)
    torch.testing.assert_close(maps["stage5"].flatten(2).transpose(1, 2), tokens[:, 1:])


def test_mvit_interpolates_its_positions() -> None:
    """Positions that grow evenly from patch to patch do so for twice the frames and side, over the same range."""
    backbone = small_mvit()
    places = backbone.net.cls_positional_encoding
    with torch.no_grad():
        for parameter in places.parameters():
            parameter.zero_()
        places.pos_embed_temporal += torch.arange(4.0)[None, :, None]
        places.pos_embed_spatial += torch.arange(16.0).repeat_interleave(16)[None, :, None] * 10  # grows downwards
        tokens = backbone._placed(torch.zeros(1, 96, 8, 32, 32))
    rows = tokens[0, 1:, 0].unflatten(0, (8, 32, 32))
    torch.testing.assert_close(rows[:, 5, 7].diff()[1:-1], torch.full((5,), 0.5))
    torch.testing.assert_close(rows[3, :, 7].diff()[1:-1], torch.full((29,), 5.0))
    assert (rows[3, 5] == rows[3, 5, 0]).all() and rows[0, 0, 0] == 0 and rows[-1, -1, -1] == 153


def small_mvit() -> Backbone:
    """MViT-B with positions for 8 frames of 64 pixels, drawn at random."""
    from vssl_core.nets.blocks import create_multiscale_vision_transformers
    from vssl_core.nets.zoo import MultiscaleTransformer

    torch.manual_seed(0)
    changes = [[1, 2.0], [3, 2.0], [14, 2.0]]
    net = create_multiscale_vision_transformers(
        spatial_size=64,
        temporal_size=8,
        embed_dim_mul=changes,
        atten_head_mul=changes,
        pool_q_stride_size=[[block, 1, 2, 2] for block, _ in changes],
        pool_kv_stride_adaptive=[1, 8, 8],
        pool_kvq_kernel=[3, 3, 3],
        head=None,
    )
    for parameter in net.cls_positional_encoding.parameters():
        torch.nn.init.normal_(parameter)
    return MultiscaleTransformer("small", net)


class Odd(Backbone):
    """A stranger's net: it reads values, which the meta device has not, and may give other channels than it says."""

    def __init__(self, announced: int) -> None:
        super().__init__("odd", {"stage1": announced})
        self.convolution = torch.nn.Conv3d(3, 4, 3)

    def forward(self, clip: torch.Tensor) -> dict[str, torch.Tensor]:
        """One map; clips full of ones would not be read."""
        assert clip.mean().item() < 1
        return {"stage1": self.convolution(clip)}


def test_shapes_of_a_net_that_reads_values() -> None:
    """What the meta device cannot do is computed once; stages that were announced wrongly are named."""
    assert stage_shapes(Odd(4), 8, 16) == {"stage1": (4, 6, 14, 14)}
    with pytest.raises(PluginError, match=r"'odd': announces the stages \{'stage1': 5\}, but .* \{'stage1': 4\}"):
        stage_shapes(Odd(5), 8, 16)


@pytest.mark.parametrize(("name", "frames", "size"), [("c3d", 4, 112), ("s3d", 8, 16), ("slowfast_r50", 6, 64)])
def test_clips_that_are_too_small(name: str, frames: int, size: int) -> None:
    """One sentence with the clip's size and the keys to change."""
    with pytest.raises(ConfigError, match=f"backbone '{name}': .* {frames} frames .*clip.frames"):
        stage_shapes(build_backbone(name), frames, size)


@pytest.mark.parametrize("name", ["tiny", "r2plus1d_10", "s3dg", "c3d", "slowfast_r50"])
def test_nets_can_be_copied_and_pickled(name: str) -> None:
    """Teachers are deep copies, and worker processes may receive a net."""
    backbone = build(name).eval()
    clip = torch.randn(2, 3, 8, 32, 32)
    with torch.no_grad():
        expected = backbone(clip)["stage5"]
        for twin in (deepcopy(backbone), pickle.loads(pickle.dumps(backbone))):
            assert torch.equal(twin(clip)["stage5"], expected)


def test_weights_follow_the_seed() -> None:
    """Fresh weights come from torch's generator and nothing else; convolutions have Kaiming's fan-out spread."""
    first, second = build("r3d_10"), build("r3d_10")
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), second.parameters(), strict=True))
    weight = first.net.blocks[4].res_blocks[0].branch2[3].weight  # 512 x 512 x 3 x 3 x 3
    assert weight.std().item() == pytest.approx((2 / (512 * 27)) ** 0.5, rel=0.01)
    norms = [module for module in first.modules() if isinstance(module, torch.nn.BatchNorm3d)]
    assert all((norm.weight == 1).all() and (norm.bias == 0).all() for norm in norms)


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("r3d18", {}, r"backbone.name: .*'r3d18'; did you mean 'r3d_18'\?; choose one of tiny, "),
        ("r3d_10", {"depth": 2}, "backbone.options.depth: 'r3d_10' has no such option; it takes no options"),
        ("slowfast_r50", {"alhpa": 8}, r"backbone.options.alhpa: .*did you mean 'alpha'\?"),
    ],
)
def test_wrong_names_and_options(name: str, options: dict[str, object], message: str) -> None:
    """One sentence that says where, what and what to do."""
    with pytest.raises(ConfigError, match=message):
        build_backbone(name, **options)
