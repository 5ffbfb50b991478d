"""What was learned, drawn: where single concepts look, and how alike classes are in either kind of concept."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import PurePath
from typing import Any

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from vssl_concepts.analysis import picture_side
from vssl_concepts.figures import Column, draw_attention, draw_similarity
from vssl_core import ConfigError, Evaluation, ExtractedFeatures, Needs, PluginConfig, Result, SplitFeatures, UserError

VERSION = 1  # raised when the same options give other numbers
KINDS = ("static", "dynamic")
PICTURED = ("maps", "frames")
DECIMALS = 6


class Drawings(Evaluation):
    """Concept codes of test videos averaged for each class and compared, and the maps of the concepts used most."""

    class Config(PluginConfig):
        """Options of the drawings."""

        concepts: int = Field(5, ge=1, le=50, description="concepts of each kind that are drawn, those used most")
        videos: int = Field(6, ge=1, le=50, description="videos for each of them, those in which it is most active")
        attention: bool | None = Field(
            None, description="draw where concepts look; null: where the run has a local term, whose attention that is"
        )

    config: Config

    def needs(self) -> Needs:
        """Codes, and maps and frames where they are drawn, of the middle clip of each test video."""
        parts = [*(f"q_{kind}" for kind in KINDS), *(PICTURED if self._pictured else ())]
        for part in parts:
            self.context.stage(self._name(part))
        return Needs(stages=tuple(map(self._name, parts)), clips=1, labels=False, splits=("test",))

    @property
    def _pictured(self) -> bool:
        if self.config.attention is not None:
            return self.config.attention
        try:
            self.context.stage(self._name(PICTURED[0]))
        except ConfigError:  # the run has codes alone
            return False
        return True

    def _name(self, part: str) -> str:
        return f"{self.context.name}/{part}"

    def run(self, features: ExtractedFeatures) -> Result:
        """`static_used`, `dynamic_used`: the share of concepts that are the most active one of some video; where there
        are classes, `static_alike`, `dynamic_alike`: 100 where all classes have one code, 50 where they are unrelated.
        """
        test = features.splits["test"]
        codes = {kind: self._rows(test, f"q_{kind}") for kind in KINDS}  # (N, K)
        metrics = {f"{kind}_used": used(rows) for kind, rows in codes.items()}
        tables: dict[str, Any] = {}
        figures: dict[str, Any] = {}
        there = test.labels.unique()
        there = there[there >= 0]
        if len(there) > 1:
            classes = [features.classes[label] for label in there.tolist()]
            alike = {kind: class_similarity(rows, test.labels, there) for kind, rows in codes.items()}
            metrics |= {f"{kind}_alike": likeness(matrix) for kind, matrix in alike.items()}
            tables["similarity"] = {"classes": classes, **{kind: plain(matrix) for kind, matrix in alike.items()}}
            figures["similarity"] = draw_similarity(classes, alike)
        if self._pictured:
            names = video_names(test, features.classes)
            for kind in KINDS:
                chosen = choose(codes[kind], self.config.concepts, self.config.videos)
                maps, frames = self._pictures(test, kind)
                tables[f"{kind}_attention"] = told(chosen, codes[kind], maps, test.paths)
                columns = columns_of(chosen, codes[kind], maps, frames, names)
                figures[f"{kind}_attention"] = draw_attention(kind, columns, len(names))
        return Result(metrics, self.protocol(), tables, figures)

    def _rows(self, split: SplitFeatures, part: str) -> Tensor:
        rows = split.vectors[self._name(part)][:, 0]  # (N, 1, D) -> (N, D)
        if not rows.isfinite().all():
            raise UserError(
                f"evaluation '{self.context.name}': features of {self._name(part)} are not finite; the training has "
                "diverged, evaluate an earlier checkpoint"
            )
        return rows

    def _pictures(self, split: SplitFeatures, kind: str) -> tuple[Tensor, Tensor]:
        """The maps (N, T, h, w) of the most active concept of a kind, and gray frames (N, T, side, side)."""
        frames, maps = self._rows(split, "frames"), self._rows(split, "maps").unflatten(1, (len(KINDS), -1))
        side = picture_side(self.context.clip.size)
        frames = frames.unflatten(1, (-1, side, side))
        maps = maps[:, KINDS.index(kind)].unflatten(1, (frames.shape[1], -1))  # (N, T, places of one moment)
        return maps.unflatten(2, (round(maps.shape[2] ** 0.5), -1)), frames

    def protocol(self) -> Mapping[str, Any]:
        """What the numbers depend on, besides the clips and the list of videos."""
        return {
            "evaluation": "concept drawings",
            "version": VERSION,
            "test": "test",
            "placement": "uniform",
            "crop": "centre",
            "clips": 1,
            **self.config.model_dump(),
        }


# Numbers --------------------------------------------------------------------------------------------------------------


def used(codes: Tensor) -> float:
    """The share of concepts, in percent, that are the most active one of some video; codes (N, K)."""
    return 100 * len(codes.argmax(dim=1).unique()) / codes.shape[1]


def class_similarity(codes: Tensor, labels: Tensor, classes: Tensor) -> Tensor:
    """(classes, classes) cosines between the mean codes of the videos of each class; codes (N, K)."""
    means = torch.stack([codes[labels == label].mean(dim=0) for label in classes])
    means = F.normalize(means, dim=1)
    return (means @ means.T).clamp(-1, 1)


def likeness(matrix: Tensor) -> float:
    """The mean cosine of two different classes, brought from [-1, 1] to [0, 100]."""
    others = ~torch.eye(len(matrix), dtype=torch.bool)
    return min(max(50 * (1 + float(matrix[others].double().mean())), 0.0), 100.0)


def choose(codes: Tensor, concepts: int, videos: int) -> dict[int, list[int]]:
    """{concept: videos}: concepts that are the most active one of most videos, and of those the videos in which the
    concept is most active; codes (N, K)."""
    best = codes.argmax(dim=1)
    counts = torch.bincount(best, minlength=codes.shape[1])
    order = counts.argsort(descending=True, stable=True)[:concepts].tolist()
    chosen = {}
    for concept in order:
        members = (best == concept).nonzero()[:, 0]
        if len(members):
            ranking = codes[members, concept].argsort(descending=True, stable=True)[:videos]
            chosen[concept] = members[ranking].tolist()
    return chosen


def told(
    chosen: Mapping[int, Sequence[int]], codes: Tensor, maps: Tensor, paths: Sequence[str]
) -> list[dict[str, Any]]:
    """The numbers of a figure of attention: a row for each concept and video."""
    return [
        {
            "concept": concept,
            "video": paths[video],
            "activation": round(float(codes[video, concept]), DECIMALS),
            "map": plain(maps[video]),
        }
        for concept, videos in chosen.items()
        for video in videos
    ]


def columns_of(
    chosen: Mapping[int, Sequence[int]], codes: Tensor, maps: Tensor, frames: Tensor, names: Sequence[str]
) -> list[Column]:
    """What a figure of attention shows: a column for each concept."""
    counts = torch.bincount(codes.argmax(dim=1), minlength=codes.shape[1]).tolist()
    return [
        Column(
            concept=concept,
            most_active_in=counts[concept],
            names=[names[video] for video in videos],
            activations=codes[videos, concept].tolist(),
            maps=maps[videos],
            frames=frames[videos],
        )
        for concept, videos in chosen.items()
    ]


def video_names(split: SplitFeatures, classes: Sequence[str]) -> list[str]:
    """What each video is called in a figure: its class, or its file where it has none."""
    labelled = zip(split.labels.tolist(), split.paths, strict=True)
    return [classes[label] if label >= 0 else PurePath(path).stem for label, path in labelled]


def plain(values: Tensor) -> Any:
    """Nested lists of numbers that are not longer than they are true."""
    return values.double().mul(10**DECIMALS).round().div(10**DECIMALS).tolist()
