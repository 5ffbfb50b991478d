"""Residual nets of basic blocks, their convolutions whole or factored into space and time."""

from __future__ import annotations

import operator
from collections.abc import Callable, Sequence
from functools import partial
from itertools import pairwise

from torch import nn

from vssl_core.nets.blocks import Conv2plus1d, Net, ResBlock, ResNetBasicStem, ResStage
from vssl_core.nets.stages import Chain, initialise

Triple = tuple[int, int, int]  # time, height, width
Convolution = Callable[..., nn.Module]  # (inputs, outputs, kernel, stride, inner=None); keeps the size at stride one

CHANNELS = (64, 64, 128, 256, 512)
STRIDES = ((1, 1, 1), (2, 2, 2), (2, 2, 2), (2, 2, 2))  # of every stage but the stem
ONE: Triple = (1, 1, 1)
STEM: Triple = (1, 2, 2)


def whole(inputs: int, outputs: int, kernel: Triple, stride: Triple, inner: int | None = None) -> nn.Module:
    """One convolution over space and time; it has nothing inside, so `inner` is not read."""
    return nn.Conv3d(inputs, outputs, kernel, stride, padding=tuple(side // 2 for side in kernel), bias=False)


def factored(inputs: int, outputs: int, kernel: Triple, stride: Triple, inner: int | None = None) -> nn.Module:
    """A convolution in space, norm, ReLU, a convolution in time; `inner` channels between (Tran et al., CVPR 2018)."""
    inner = equal_weights(inputs, outputs, kernel) if inner is None else inner
    return Conv2plus1d(
        conv_xy=whole(inputs, inner, (1, *kernel[1:]), (1, *stride[1:])),
        norm=nn.BatchNorm3d(inner),
        activation=nn.ReLU(inplace=True),
        conv_t=whole(inner, outputs, (kernel[0], 1, 1), (stride[0], 1, 1)),
        conv_xy_first=True,
    )


def equal_weights(inputs: int, outputs: int, kernel: Triple) -> int:
    """The inner width at which a factored convolution has as many weights as the whole one, rounded down."""
    time, space = kernel[0], kernel[1] * kernel[2]
    return time * space * inputs * outputs // (space * inputs + time * outputs)


def basic_block(
    inputs: int,
    outputs: int,
    stride: Triple,
    convolution: Convolution,
    shortcut: Convolution = whole,
    inner: int | None = None,
) -> nn.Module:
    """Two 3x3x3 convolutions beside an identity, or beside a 1x1x1 `shortcut` where the shape changes."""
    changes = stride != ONE or inputs != outputs
    return ResBlock(
        branch1_conv=shortcut(inputs, outputs, ONE, stride) if changes else None,
        branch1_norm=nn.BatchNorm3d(outputs) if changes else None,
        branch2=nn.Sequential(
            convolution(inputs, outputs, (3, 3, 3), stride, inner),
            nn.BatchNorm3d(outputs),
            nn.ReLU(inplace=True),
            convolution(outputs, outputs, (3, 3, 3), ONE, inner),
            nn.BatchNorm3d(outputs),
        ),
        activation=nn.ReLU(inplace=True),
        branch_fusion=operator.add,
    )


def one_width_block(inputs: int, outputs: int, stride: Triple) -> nn.Module:
    """torchvision's factored block: both convolutions have the inner width of the first, the shortcut is whole."""
    return basic_block(inputs, outputs, stride, factored, inner=equal_weights(inputs, outputs, (3, 3, 3)))


def residual_net(
    name: str,
    first: nn.Module,
    block: Callable[[int, int, Triple], nn.Module],
    depth: int,
    channels: Sequence[int] = CHANNELS,
    strides: Sequence[Triple] = STRIDES,
    pool: nn.Module | None = None,
) -> Chain:
    """A stem of the convolution `first`, norm and ReLU, then a stage of `depth` blocks for every stride.

    Stage 1 is the stem's output; a `pool` belongs to stage 2, so that stage 1 keeps its resolution.
    """
    stages: list[nn.Module] = [
        ResNetBasicStem(conv=first, norm=nn.BatchNorm3d(channels[0]), activation=nn.ReLU(inplace=True), pool=None)
    ]
    for (inputs, outputs), stride in zip(pairwise(channels), strides, strict=True):
        blocks = [block(inputs, outputs, stride)] + [block(outputs, outputs, ONE) for _ in range(depth - 1)]
        stages.append(ResStage(res_blocks=nn.ModuleList(blocks)))
    if pool is not None:
        stages[1] = nn.Sequential(pool, stages[1])
    net = Net(blocks=nn.ModuleList(stages))
    initialise(net)
    return Chain(name, channels, net)


def tiny(channels: Sequence[int] = (16, 16, 32, 64, 128)) -> Chain:
    """A small R(2+1)D-like net that trains on a CPU: one factored block per stage, half the stage's width inside.

    Strides of its stages: 1, 1, 1, 2, 2 in time and 2, 1, 2, 2, 2 in space; 8 frames of 32 pixels end as 2 of 2x2.
    """

    def block(inputs: int, outputs: int, stride: Triple) -> nn.Module:
        return basic_block(inputs, outputs, stride, factored, inner=outputs // 2)

    first = factored(3, channels[0], (3, 5, 5), STEM, inner=channels[0])
    return residual_net("tiny", first, block, 1, channels, ((1, 1, 1), (1, 2, 2), (2, 2, 2), (2, 2, 2)))


def vcop_layout(name: str, convolution: Convolution, depth: int) -> Chain:
    """The nets of Xu et al., CVPR 2019: stem 3x7x7 and no pool; shortcuts are factored where the blocks are."""
    block = partial(basic_block, convolution=convolution, shortcut=convolution)
    return residual_net(name, convolution(3, 64, (3, 7, 7), STEM), block, depth)


def torchvision_r2plus1d(name: str, depth: int) -> Chain:
    """torchvision's R(2+1)D of basic blocks, whose stem has 45 channels inside."""
    return residual_net(name, factored(3, 64, (3, 7, 7), STEM, inner=45), one_width_block, depth)


def r3d_10() -> Chain:
    """The "R3D-18" of 14.4M parameters in VCOP and its followers: one block per stage, so ten layers."""
    return vcop_layout("r3d_10", whole, 1)


def r2plus1d_10() -> Chain:
    """The "R(2+1)D-18" of 14.4M parameters in VCOP and its followers: one block per stage, so ten layers."""
    return vcop_layout("r2plus1d_10", factored, 1)


def r3d_18() -> Chain:
    """R3D-18 with two blocks per stage, as in torchvision; VCOP's layout is the same."""
    return vcop_layout("r3d_18", whole, 2)


def r2plus1d_18() -> Chain:
    """R(2+1)D-18 with two blocks per stage, as in torchvision."""
    return torchvision_r2plus1d("r2plus1d_18", 2)


def r2plus1d_18_vcop() -> Chain:
    """R(2+1)D-18 with two blocks per stage in VCOP's layout: every convolution its own inner width."""
    return vcop_layout("r2plus1d_18_vcop", factored, 2)


def r3d_18_hara() -> Chain:
    """R3D-18 after Hara et al., CVPR 2018: stem 7x7x7, then a max-pool in space only, so that 16 frames stay 16."""
    block = partial(basic_block, convolution=whole)
    pool = nn.MaxPool3d((1, 3, 3), (1, 2, 2), (0, 1, 1))
    return residual_net("r3d_18_hara", whole(3, 64, (7, 7, 7), STEM), block, 2, pool=pool)
