"""From raw batches to what the net reads: appearance applied on the device, windows and measures beside each clip."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from vssl_core.data.appearance import Normalisation, apply
from vssl_core.data.raw import RawBatch, RawClip
from vssl_core.joining import Group
from vssl_core.looks import Recipe
from vssl_core.views import Windows


@dataclass(frozen=True)
class PreparedClip:
    """One clip of each video of the batch, ready for the net."""

    clip: Tensor  # (B,3,T,S,S) float32, normalised
    tail: Tensor  # (B,3,tail,S,S)
    windows: Windows
    measures: dict[str, Tensor]  # {name: (B, ...)}


def prepare(
    raw: RawBatch, groups: Sequence[Group], recipes: Sequence[Recipe], normalisation: Normalisation
) -> list[list[PreparedClip]]:
    """For each group, its clips; a clip does not depend on how many others its group has."""
    return [
        [_prepare(clip, group.request.tail, recipe, normalisation) for clip in clips]
        for clips, group, recipe in zip(raw.groups, groups, recipes, strict=True)
    ]


def _prepare(raw: RawClip, tail: int, recipe: Recipe, normalisation: Normalisation) -> PreparedClip:
    whole = apply(raw.frames, raw.looks, recipe, normalisation, tail=tail)  # (B,3,T+tail,S,S)
    frames = whole.shape[2] - tail
    clip = whole[:, :, :frames].contiguous() if tail else whole
    return PreparedClip(clip, whole[:, :, frames:], Windows(raw.windows, whole.device), raw.measures)
