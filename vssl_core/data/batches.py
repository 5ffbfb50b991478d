"""From raw batches to what the net reads: appearance applied on the device, windows and measures beside each clip."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields

from torch import Tensor

from vssl_core.data.appearance import Normalisation, apply
from vssl_core.data.clips import RawBatch
from vssl_core.joining import Group
from vssl_core.looks import Recipe
from vssl_core.views import Windows

_WINDOW = tuple(part.name for part in fields(Windows))


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
        [_prepare(data, clip, group, recipe, normalisation) for clip in range(data["clips"].shape[1])]
        for data, group, recipe in zip(raw.groups, groups, recipes, strict=True)
    ]


def _prepare(data: dict, clip: int, group: Group, recipe: Recipe, normalisation: Normalisation) -> PreparedClip:
    request = group.request
    looks = {name: values.select(1, clip) for name, values in data["looks"].items()}
    whole = apply(data["clips"].select(1, clip), looks, recipe, normalisation, tail=request.tail)  # (B,3,T+tail,S,S)
    windows = Windows(*(data["windows"][name].select(1, clip) for name in _WINDOW))
    measures = {name: values.select(1, clip) for name, values in data["measures"].items()}
    if not request.tail:
        return PreparedClip(whole, whole[:, :, :0], windows, measures)
    return PreparedClip(whole[:, :, : request.frames].contiguous(), whole[:, :, request.frames :], windows, measures)
