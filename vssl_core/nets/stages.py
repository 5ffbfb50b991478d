"""What every backbone is: a net cut into named stages, of which the last is the feature map."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from copy import deepcopy
from itertools import chain

import torch
from torch import Tensor, nn

from vssl_core.errors import ConfigError, PluginError


class Backbone(nn.Module, ABC):
    """A video net without classifier: a normalised clip goes in, the maps of its stages come out, in order.

    The pooled vector of a clip is the mean of the last map over time and space; whoever wants it takes it.
    """

    def __init__(self, name: str, stages: Mapping[str, int]) -> None:
        """Keep the name and the channels of each stage, in order; the last stage is the map."""
        super().__init__()
        self.name = name
        self.stages = dict(stages)
        self.feature_dim = list(self.stages.values())[-1]

    @abstractmethod
    def forward(self, clip: Tensor) -> dict[str, Tensor]:
        """The map of every stage, (B, C, T, H, W) each, of a clip (B, 3, T, H, W)."""


class Chain(Backbone):
    """A backbone whose stages are modules run one after the other."""

    def __init__(self, name: str, channels: Sequence[int], net: nn.Module) -> None:
        """Take a PyTorchVideo `Net` of as many blocks as there are `channels`: block k is stage k + 1."""
        super().__init__(name, {f"stage{number}": count for number, count in enumerate(channels, start=1)})
        self.net = net

    def forward(self, clip: Tensor) -> dict[str, Tensor]:
        """The map of every stage, (B, C, T, H, W) each, of a clip (B, 3, T, H, W)."""
        maps = {}
        for stage, block in zip(self.stages, self.net.blocks, strict=True):
            clip = maps[stage] = block(clip)
        return maps


def initialise(module: nn.Module) -> None:
    """Draw convolutions by Kaiming's normal rule (fan-out, ReLU), set norms to (1, 0) and biases to 0, in place."""
    for part in module.modules():
        if isinstance(part, nn.Conv3d):
            nn.init.kaiming_normal_(part.weight, mode="fan_out", nonlinearity="relu")
        elif isinstance(part, nn.BatchNorm3d) and part.weight is not None:
            nn.init.ones_(part.weight)
        elif isinstance(part, nn.Linear):
            nn.init.kaiming_uniform_(part.weight, a=5**0.5)
        if isinstance(part, nn.Conv3d | nn.BatchNorm3d | nn.Linear) and part.bias is not None:
            nn.init.zeros_(part.bias)


def on_meta(module: nn.Module) -> nn.Module:
    """A copy with shapes but without memory, in the same mode; the original is not touched."""
    memo: dict[int, Tensor] = {}
    for tensor in chain(module.parameters(), module.buffers()):
        empty = torch.empty_like(tensor, device="meta")
        memo[id(tensor)] = nn.Parameter(empty, tensor.requires_grad) if isinstance(tensor, nn.Parameter) else empty
    return deepcopy(module, memo)  # deepcopy takes from the memo what it would otherwise have copied


def stage_shapes(backbone: Backbone, frames: int, size: int) -> dict[str, tuple[int, int, int, int]]:
    """(C, T, H, W) of every stage for clips of `frames` frames of `size` pixels; nothing of the backbone changes.

    Raises `ConfigError` for clips that the net cannot read, `PluginError` where its stages are not those it announces.
    """
    with torch.no_grad(), torch.random.fork_rng(range(torch.cuda.device_count())):
        try:
            maps = _dry_forward(backbone, frames, size)
        except RuntimeError as error:
            raise ConfigError(
                f"backbone '{backbone.name}': cannot read clips of {frames} frames of {size} pixels "
                f"({str(error).splitlines()[0]}); change clip.frames or clip.size"
            ) from error
    shapes = {stage: tuple(values.shape[1:]) for stage, values in maps.items()}
    channels = {stage: shape[0] for stage, shape in shapes.items()}
    if list(channels.items()) != list(backbone.stages.items()):
        raise PluginError(
            f"backbone '{backbone.name}': announces the stages {backbone.stages}, but its forward gives {channels}; "
            "make its `stages` say the channels of each map, in order"
        )
    return shapes


def _dry_forward(backbone: Backbone, frames: int, size: int) -> dict[str, Tensor]:
    """One forward of a batch of two, without computing where the net allows it."""
    try:
        return on_meta(backbone)(torch.empty(2, 3, frames, size, size, device="meta"))
    except (RuntimeError, NotImplementedError):  # a net of somebody else may read values, or be truly unable to do it
        device = next((parameter.device for parameter in backbone.parameters()), torch.device("cpu"))
        return deepcopy(backbone)(torch.zeros(2, 3, frames, size, size, device=device))
