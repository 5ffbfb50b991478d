"""What reads one stage of the backbone: motion excitation, and a small head for each task."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vssl_core import mlp


@dataclass(frozen=True)
class Pooled:
    """A map averaged over space, before its motion is excited: timestamps can be brought into another order here."""

    values: Tensor  # (B, C, T)
    seen: Tensor | None = None  # (B, C / reduction, T): squeezed
    moved: Tensor | None = None  # (B, C / reduction, T): squeezed and transformed, to be compared with the one before


class MotionExcitation(nn.Module):
    """Channels that change from one timestamp to the next are raised (Li et al., TEA, CVPR 2020), and space averaged.

    Squeezing and transforming look at one timestamp at a time, and the gate is the same all over a frame; so a map in
    another order needs neither again, and the average over space may come first: orders cost next to nothing.
    """

    def __init__(self, channels: int, reduction: int) -> None:
        super().__init__()
        narrow = max(channels // reduction, 1)
        self.squeeze = nn.Sequential(nn.Conv3d(channels, narrow, 1, bias=False), nn.BatchNorm3d(narrow))
        self.transform = nn.Conv2d(narrow, narrow, 3, padding=1, groups=narrow, bias=False)
        self.expand = nn.Sequential(nn.Conv1d(narrow, channels, 1, bias=False), nn.BatchNorm1d(channels))

    def forward(self, maps: Tensor) -> Pooled:
        """A stage's map (B, C, T, H, W), pooled."""
        squeezed = self.squeeze(maps)  # (B, c, T, H, W)
        frames = self.transform(squeezed.transpose(1, 2).flatten(0, 1))  # (B * T, c, H, W)
        moved = frames.float().mean(dim=(2, 3)).unflatten(0, (len(maps), -1)).transpose(1, 2)  # (B, c, T)
        return Pooled(maps.mean(dim=(3, 4)), squeezed.float().mean(dim=(3, 4)), moved)

    def excite(self, pooled: Pooled, order: Tensor | None = None) -> Tensor:
        """(B, C, T) with its motion raised; `order` (B, T) first puts timestamp order[:, t] in the place t."""
        assert pooled.seen is not None and pooled.moved is not None, "pooled by a level without motion excitation"
        values, seen, moved = (reordered(part, order) for part in (pooled.values, pooled.seen, pooled.moved))
        motion = F.pad(moved[:, :, 1:] - seen[:, :, :-1], (0, 1))  # nothing follows the last timestamp
        return values * (1 + torch.sigmoid(self.expand(motion).float()) - 0.5)


def reordered(values: Tensor, order: Tensor | None) -> Tensor:
    """Values (B, C, T, ...) with timestamp order[:, t] of `order` (B, T) in the place t; None leaves them."""
    if order is None:
        return values
    return values.take_along_dim(order.view(len(order), 1, -1, *[1] * (values.ndim - 3)), dim=2)


class Level(nn.Module):
    """The readers of one stage; with `reduction`, all of them look at excited motion."""

    def __init__(self, channels: int, tasks: Iterable[str], reduction: int | None, projection: int) -> None:
        super().__init__()
        self.motion = None if reduction is None else MotionExcitation(channels, reduction)
        self.heads = nn.ModuleDict({task: mlp(channels, channels, projection, norm=False) for task in tasks})

    def forward(self, maps: Tensor) -> Pooled:
        """A stage's map (B, C, T, H, W), pooled."""
        return Pooled(maps.mean(dim=(3, 4))) if self.motion is None else self.motion(maps)

    def excite(self, pooled: Pooled, order: Tensor | None = None) -> Tensor:
        """(B, C, T) what heads read, in this order (B, T)."""
        return reordered(pooled.values, order) if self.motion is None else self.motion.excite(pooled, order)

    def timestamps(self, task: str, excited: Tensor) -> Tensor:
        """(B, T, D) what a head says of each timestamp, in float32."""
        return self.heads[task](excited.transpose(1, 2)).float()

    def rows(self, task: str, excited: Tensor) -> Tensor:
        """(B, D) of unit length: what a head says on average."""
        return F.normalize(self.timestamps(task, excited).mean(dim=1), dim=1)
