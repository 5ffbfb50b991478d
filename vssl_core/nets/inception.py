"""S3D and S3D-G: inception nets whose convolutions are separated into space and time (Xie et al., ECCV 2018)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from vssl_core.nets.blocks import Net
from vssl_core.nets.stages import Chain, initialise

Triple = tuple[int, int, int]
Widths = tuple[int, int, int, int, int, int]

CHANNELS = (64, 192, 480, 832, 1024)
#: Widths of the branches of every inception block: 1x1; 1x1 and 3x3; 1x1 and 3x3; 1x1 behind the pool.
STAGE_3: tuple[Widths, ...] = ((64, 96, 128, 16, 32, 32), (128, 128, 192, 32, 96, 64))
STAGE_4: tuple[Widths, ...] = (
    (192, 96, 208, 16, 48, 64),
    (160, 112, 224, 24, 64, 64),
    (128, 128, 256, 24, 64, 64),
    (112, 144, 288, 32, 64, 64),
    (256, 160, 320, 32, 128, 128),
)
STAGE_5: tuple[Widths, ...] = ((256, 160, 320, 32, 128, 128), (384, 192, 384, 48, 128, 128))


class Gate(nn.Module):
    """Each channel scaled by a sigmoid that reads the means of all channels over time and space."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.linear = nn.Linear(channels, channels)

    def forward(self, values: Tensor) -> Tensor:
        """(B, C, T, H, W) to the same shape."""
        gate = torch.sigmoid(self.linear(values.mean(dim=(2, 3, 4))))  # (B, C)
        return values * gate[:, :, None, None, None]


class Inception(nn.Module):
    """Four branches over one input, joined along the channels; with gates, each branch ends in its own."""

    def __init__(self, inputs: int, widths: Widths, gated: bool) -> None:
        super().__init__()
        plain, narrow, wide, slim, thick, pooled = widths
        self.outputs = plain + wide + thick + pooled
        branches = [
            [*unit(inputs, plain)],
            [unit(inputs, narrow), separable(narrow, wide, 3)],
            [unit(inputs, slim), separable(slim, thick, 3)],
            [nn.MaxPool3d(3, stride=1, padding=1), unit(inputs, pooled)],
        ]
        gates = [[Gate(width)] if gated else [] for width in (plain, wide, thick, pooled)]
        self.branches = nn.ModuleList(
            nn.Sequential(*branch, *gate) for branch, gate in zip(branches, gates, strict=True)
        )

    def forward(self, values: Tensor) -> Tensor:
        """(B, inputs, T, H, W) to (B, outputs, T, H, W)."""
        return torch.cat([branch(values) for branch in self.branches], dim=1)


def s3d() -> Chain:
    """S3D in the layout of torchvision and CoCLR."""
    return inception_net("s3d", separable(3, 64, 7, 2), [], gated=False, pools=centred_pools())


def s3dg() -> Chain:
    """S3D-G in CoCLR's layout: S3D with a gate behind every branch of every inception block."""
    return inception_net("s3dg", separable(3, 64, 7, 2), [], gated=True, pools=centred_pools())


def s3dg_pace() -> Chain:
    """S3D-G in the layout of Wang et al., ECCV 2020: a whole stem 3x7x7, a gate behind stage 2, pools that round up."""
    return inception_net("s3dg_pace", unit(3, 64, (3, 7, 7), (2, 2, 2)), [Gate(192)], gated=True, pools=upward_pools())


def inception_net(
    name: str, first: nn.Module, second_gate: list[nn.Module], gated: bool, pools: list[nn.Module]
) -> Chain:
    """Five stages, cut in front of the four pools, so that stage k is what the pool k + 1 reads."""
    stages = [
        first,
        nn.Sequential(pools[0], unit(64, 64), separable(64, 192, 3), *second_gate),
        nn.Sequential(pools[1], *inceptions(192, STAGE_3, gated)),
        nn.Sequential(pools[2], *inceptions(480, STAGE_4, gated)),
        nn.Sequential(pools[3], *inceptions(832, STAGE_5, gated)),
    ]
    net = Net(blocks=nn.ModuleList(stages))
    initialise(net)
    return Chain(name, CHANNELS, net)


def inceptions(inputs: int, rows: tuple[Widths, ...], gated: bool) -> list[nn.Module]:
    """Inception blocks one after the other, each reading what the one before gives."""
    blocks = []
    for widths in rows:
        blocks.append(Inception(inputs, widths, gated))
        inputs = blocks[-1].outputs
    return blocks


def unit(inputs: int, outputs: int, kernel: Triple = (1, 1, 1), stride: Triple = (1, 1, 1)) -> nn.Sequential:
    """A convolution that keeps the size at stride one, norm and ReLU; the norm's epsilon is that of the original."""
    padding = tuple(side // 2 for side in kernel)
    convolution = nn.Conv3d(inputs, outputs, kernel, stride, padding, bias=False)
    return nn.Sequential(convolution, nn.BatchNorm3d(outputs, eps=0.001), nn.ReLU(inplace=True))


def separable(inputs: int, outputs: int, side: int, stride: int = 1) -> nn.Sequential:
    """A unit in space, then one in time."""
    return nn.Sequential(
        unit(inputs, outputs, (1, side, side), (1, stride, stride)),
        unit(outputs, outputs, (side, 1, 1), (stride, 1, 1)),
    )


def centred_pools() -> list[nn.Module]:
    """The pools of torchvision and CoCLR in front of stages 2 to 5; the last rounds down, 7 becomes 3."""
    space = [nn.MaxPool3d((1, 3, 3), (1, 2, 2), (0, 1, 1)) for _ in range(2)]
    return [*space, nn.MaxPool3d(3, 2, 1), nn.MaxPool3d(2, 2)]


def upward_pools() -> list[nn.Module]:
    """Pools padded at the far end and rounded up, 7 becomes 4; a padding of zeros is neutral behind a ReLU."""
    space = [nn.Sequential(nn.ConstantPad3d((0, 1, 0, 1, 0, 0), 0.0), _up((1, 3, 3), (1, 2, 2))) for _ in range(2)]
    return [*space, nn.Sequential(nn.ConstantPad3d((0, 1, 0, 1, 0, 1), 0.0), _up((3, 3, 3), (2, 2, 2))), _up(2, 2)]


def _up(kernel: int | Triple, stride: int | Triple) -> nn.Module:
    return nn.MaxPool3d(kernel, stride, ceil_mode=True)
