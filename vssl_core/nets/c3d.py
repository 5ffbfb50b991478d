"""C3D: plain stacks of 3x3x3 convolutions, each stage closed by its pool."""

from __future__ import annotations

from torch import nn

from vssl_core.nets.blocks import Net
from vssl_core.nets.stages import Chain, initialise

SPACE = (1, 2, 2)  # the first pool leaves time alone
ALL = (2, 2, 2)


def c3d() -> Chain:
    """C3D with batch norm, eight convolutions, pooled as a whole: stages are pool1 to pool4, then conv5b."""
    stages = [
        nn.Sequential(*convolution(3, 64), nn.MaxPool3d(SPACE)),
        nn.Sequential(*convolution(64, 128), nn.MaxPool3d(ALL)),
        nn.Sequential(*convolution(128, 256), *convolution(256, 256), nn.MaxPool3d(ALL)),
        nn.Sequential(*convolution(256, 512), *convolution(512, 512), nn.MaxPool3d(ALL)),
        nn.Sequential(*convolution(512, 512), *convolution(512, 512)),
    ]
    return _chain("c3d", (64, 128, 256, 512, 512), stages)


def c3d_light() -> Chain:
    """The light C3D of Wang et al., CVPR 2019: five convolutions without norm, each with its pool (pool1 to pool5).

    Its two fully connected branches (2048, 2048) belong to the task that trains them. An odd side is pooled to the half
    above: 7 becomes 4.
    """
    channels = (64, 128, 256, 256, 256)
    stages = [
        nn.Sequential(*convolution(inputs, outputs, norm=False), nn.MaxPool3d(pool, ceil_mode=True))
        for inputs, outputs, pool in zip((3, *channels), channels, (SPACE, ALL, ALL, ALL, ALL), strict=False)
    ]
    return _chain("c3d_light", channels, stages)


def convolution(inputs: int, outputs: int, norm: bool = True) -> list[nn.Module]:
    """A 3x3x3 convolution with bias, a norm where asked for, and a ReLU."""
    norms = [nn.BatchNorm3d(outputs)] if norm else []
    return [nn.Conv3d(inputs, outputs, 3, padding=1), *norms, nn.ReLU(inplace=True)]


def _chain(name: str, channels: tuple[int, ...], stages: list[nn.Module]) -> Chain:
    net = Net(blocks=nn.ModuleList(stages))
    initialise(net)
    return Chain(name, channels, net)
