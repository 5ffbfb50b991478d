"""Evaluations of a frozen backbone.

One extraction shared by all that ask for alike clips, and results that say what they depend on.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from hashlib import sha256
from typing import Any

import torch
from torch import Tensor, nn

from vssl_core.config import RunConfig
from vssl_core.data.sources import Splits
from vssl_core.data.videos import Videos
from vssl_core.errors import DataError
from vssl_core.joining import Group, complete, resolve
from vssl_core.looks import Recipe
from vssl_core.objective import Evaluation, ExtractedFeatures, Needs, Objective, SplitFeatures
from vssl_core.requests import Appearance, Boxes, Centre, Flips, Request, Turns, Uniform
from vssl_core.run.build import normalisation_of
from vssl_core.run.extract import STREAM, Extractor, seen_by, with_features
from vssl_core.run.offered import named_features
from vssl_core.views import Batch

VIDEOS_AT_A_TIME = 16
Objectives = Mapping[str, Mapping[str, Objective]]  # {net: {plugin: objective}}, those that offer features


@dataclass(frozen=True)
class Extraction:
    """Which clips of which splits, and which stages of them; features that objectives offer stand before the stages."""

    clips: int
    splits: tuple[str, ...]
    stages: tuple[str, ...]


def shared_extractions(evaluations: Mapping[str, Evaluation], stages: Sequence[str]) -> dict[Extraction, list[str]]:
    """The extractions that must be made, and the evaluations that each serves."""
    needs = {name: evaluation.needs() for name, evaluation in evaluations.items()}
    offered = offered_stages(needs.values(), stages)
    shared: dict[Extraction, list[str]] = {}
    for clips in sorted({need.clips for need in needs.values()}):
        members = {name: need for name, need in needs.items() if need.clips == clips}
        splits = tuple(dict.fromkeys(split for need in members.values() for split in need.splits))
        asked = {stage for need in members.values() for stage in (need.stages or stages[-1:])}
        shared[Extraction(clips, splits, tuple(stage for stage in (*offered, *stages) if stage in asked))] = list(
            members
        )
    return shared


def offered_stages(needs: Iterable[Needs], stages: Sequence[str]) -> list[str]:
    """What is asked for and is no stage of the backbone: features that objectives offer."""
    asked = dict.fromkeys(stage for need in needs for stage in need.stages or ())
    return [stage for stage in asked if stage not in stages]


def check_labels(needs: Mapping[str, Needs], splits: Splits) -> None:
    """A labelled protocol needs labels on both sides."""
    for name, need in needs.items():
        for split in need.splits:
            videos = getattr(splits, split)
            if videos is None or len(videos) == 0:
                raise DataError(
                    f"evaluation '{name}': {splits.name} has no {split} videos; give a source with both splits"
                )
            if need.labels and not videos.labelled:
                raise DataError(
                    f"evaluation '{name}': needs labels, and the {split} videos of {splits.name} have none; "
                    "give a labelled source with --data"
                )


def test_request(clips: int, settings: Request) -> Request:
    """`clips` evenly spread clips of the run's frames and stride, centre crop, as filmed."""
    request = Request(
        clips=clips,
        placement=Uniform(clips),
        boxes=Boxes(Centre()),
        flips=Flips(0.0),
        turns=Turns((0,)),
        appearance=Appearance("kept", "clip"),
    )
    return complete(resolve(request, settings), settings)


def extract(
    config: RunConfig,
    nets: Mapping[str, nn.Module],
    splits: Splits,
    extraction: Extraction,
    device: torch.device,
    advance: Callable[[int], None] | None = None,
    objectives: Objectives | None = None,
) -> dict[str, ExtractedFeatures]:
    """The features (N, clips, D) of every asked stage on every asked split, for each net.

    Videos are decoded once for all.
    """
    group = Group(test_request(extraction.clips, config.clip_request()), {f"{STREAM}/clips": extraction.clips})
    objectives = objectives or {}
    found: dict[str, dict[str, SplitFeatures]] = {net: {} for net in nets}
    modules = [*nets.values(), *(objective for offering in objectives.values() for objective in offering.values())]
    for split in extraction.splits:
        videos: Videos = getattr(splits, split)
        extractor = Extractor(
            videos, group, Recipe(), normalisation_of(config), config.data.decoder, config.seed, config.data.workers,
            VIDEOS_AT_A_TIME, device,
        )  # fmt: skip
        first = next(iter(nets.values()))
        rows = extractor.run(
            first, lambda batch: pooled(batch, nets, extraction.stages, objectives), modules=modules, advance=advance
        )
        if len(rows["index"]) == 0:
            raise DataError(
                f"data: none of the {len(videos)} {split} videos of {splits.name} can be read; run `vssl data "
                "check` on it"
            )
        for net in nets:
            found[net][split] = _split_features(videos, rows, net, extraction.stages)
    stages = tuple(next(iter(nets.values())).stages)
    offered = tuple(stage for stage in extraction.stages if stage not in stages)  # first: the last stage stays the last
    return {net: ExtractedFeatures(found[net], splits.train.classes, offered + stages, config.seed) for net in nets}


def _split_features(videos: Videos, rows: Mapping[str, Any], net: str, stages: Sequence[str]) -> SplitFeatures:
    index = rows["index"]
    return SplitFeatures(
        vectors={stage: rows[f"{net}/{stage}"] for stage in stages},
        labels=torch.from_numpy(videos.labels.copy())[index].long(),
        paths=tuple(videos.relative(int(number)) for number in index),
        unreadable=tuple(videos.relative(number) for number in rows["unreadable"]),
    )


def pooled(
    batch: Batch, nets: Mapping[str, nn.Module], stages: Sequence[str], objectives: Objectives | None = None
) -> dict[str, Tensor]:
    """{'net/stage': (B, clips, D)}: each clip's map averaged over time and space, or what an objective offers of it."""
    found = {}
    for net, backbone in nets.items():
        views = [with_features(view, backbone) for view in batch["clips"]]
        rows: list[dict[str, Tensor]] = [{} for _ in views]
        for row, view in zip(rows, views, strict=True):
            for stage in (stage for stage in stages if stage in backbone.stages):
                row[stage] = view.features.stages[stage].mean(dim=(2, 3, 4))
            for plugin, objective in (objectives or {}).get(net, {}).items():
                if any(stage.startswith(f"{plugin}/") for stage in stages):
                    row |= named_features(objective, seen_by(batch, plugin, view, backbone))
        found |= {f"{net}/{stage}": torch.stack([row[stage] for row in rows], dim=1) for stage in stages}
    return found


def digest(value: Any) -> str:
    """A short hash of plain values."""
    return sha256(json.dumps(value, sort_keys=True, default=str).encode()).hexdigest()[:16]
