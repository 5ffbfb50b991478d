"""Retrieval of test videos among training videos, for each stage of the backbone and each lineage of the protocol."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

import numpy as np
import torch.nn.functional as F
from pydantic import Field, field_validator
from torch import Tensor

from vssl_core import (
    ConfigError,
    Evaluation,
    ExtractedFeatures,
    Needs,
    PluginConfig,
    Result,
    SplitFeatures,
    UserError,
)

VERSION = 1  # raised when the same options give other numbers
TIE = 6  # decimals to which similarities are compared: below that, the order of a sum decides


class Lineage(PluginConfig):
    """How clip vectors become the unit vector of a video; the similarity is always the cosine."""

    clip_l2: bool = Field(False, description="scale every clip to length one before the mean over clips")
    center: bool = Field(False, description="subtract from each split its own mean video")


PLAIN = "vcop"  # its metrics carry no prefix
PRESETS = {PLAIN: Lineage(), "cstp": Lineage(clip_l2=True), "coclr": Lineage(center=True)}


class Retrieval(Evaluation):
    """Queries from the test split, neighbours from the training split, ten uniform centre clips for each video."""

    class Config(PluginConfig):
        """Options of retrieval."""

        stages: Literal["all", "last"] | tuple[str, ...] = Field(
            "all", description="all, last, or a list of the backbone's stages"
        )
        ks: tuple[int, ...] = Field((1, 5, 10, 20, 50), min_length=1, description="how many neighbours are looked at")
        lineages: dict[str, Lineage] = Field(
            PRESETS, min_length=1, description="presets (vcop, cstp, coclr), or your own {name: {clip_l2, center}}"
        )
        clips: int = Field(10, ge=1, description="clips for each video, evenly spread")

        @field_validator("ks")
        @classmethod
        def _rising(cls, ks: tuple[int, ...]) -> tuple[int, ...]:
            if ks[0] < 1 or any(low >= high for low, high in zip(ks, ks[1:], strict=False)):
                raise ValueError("needs numbers from 1 on, each larger than the one before")
            return ks

        @field_validator("lineages", mode="before")
        @classmethod
        def _named(cls, lineages: Any) -> Any:
            names = [lineages] if isinstance(lineages, str) else lineages
            if not isinstance(names, Sequence):
                return lineages
            for name in names:
                if not isinstance(name, str) or name not in PRESETS:
                    raise ValueError(
                        f"no preset is called '{name}'; name {', '.join(PRESETS)}, or map names to {{clip_l2, center}}"
                    )
            return {name: PRESETS[name] for name in names}

        @field_validator("lineages")
        @classmethod
        def _true_to_name(cls, lineages: dict[str, Lineage]) -> dict[str, Lineage]:
            for name, lineage in lineages.items():
                if PRESETS.get(name, lineage) != lineage:
                    raise ValueError(f"'{name}' is a preset with other settings; give yours a name of its own")
                if "/" in name:
                    raise ValueError(f"the name '{name}' becomes part of a metric's key and cannot hold a slash")
            return lineages

    config: Config

    def needs(self) -> Needs:
        """All stages that are asked for, ten clips of each video, and classes."""
        self._ks(self.context.videos)
        match self.config.stages:
            case "all":
                stages: tuple[str, ...] | None = tuple(self.context.stages)
            case "last":
                stages = None
            case names:
                for name in names:
                    self.context.stage(name)
                stages = names
        return Needs(stages=stages, clips=self.config.clips)

    @property
    def where(self) -> str:
        """How the errors begin."""
        return f"evaluation '{self.context.name}'"

    def _ks(self, gallery: int) -> tuple[int, ...]:
        """The numbers of neighbours that a gallery has; `ConfigError` where you have asked for one that it has not."""
        fitting = tuple(k for k in self.config.ks if k <= gallery)
        if len(fitting) < len(self.config.ks) and "ks" in self.config.model_fields_set:
            what = f"there are no {self.config.ks[-1]} neighbours among {gallery} training videos"
            raise ConfigError(f"plugins.{self.context.name}.ks: {what}; choose numbers up to {gallery}")
        return fitting

    def run(self, features: ExtractedFeatures) -> Result:
        """R@k in percent, the last stage first; R@1 for each class; hits for each video (last stage, `vcop`)."""
        gallery, query = features.splits["train"], features.splits["test"]
        stages = self.needs().stages or (features.last,)
        for split, rows in (("train", gallery), ("test", query)):
            check(self.where, split, rows, stages)
        ks = self._ks(len(gallery.labels))
        metrics: dict[str, float] = {}
        table: list[dict[str, Any]] = []
        single: dict[str, Sequence[Any]] = {"video": query.paths}
        for stage in sorted(stages, key=features.stages.index, reverse=True):
            for name, lineage in self.config.lineages.items():
                hits = self._hits(query, gallery, stage, lineage, ks)  # (queries, ks)
                prefix = "".join(f"{part}/" for part, plain in ((stage, features.last), (name, PLAIN)) if part != plain)
                keys = [f"{prefix}r@{k}" for k in ks]
                metrics |= dict(zip(keys, (100 * hits.mean(axis=0)).tolist(), strict=True))
                table = table or per_class(hits[:, 0], query.labels.numpy(), features.classes, keys[0])
                if not prefix:
                    single |= dict(zip(keys, (100.0 * hits.T).tolist(), strict=True))
        return Result(metrics=metrics, protocol=self.protocol(), tables={"per_class": table}, videos=single)

    def _hits(
        self, query: SplitFeatures, gallery: SplitFeatures, stage: str, lineage: Lineage, ks: Sequence[int]
    ) -> np.ndarray:
        """(queries, ks) whether one of the k nearest training videos is of the query's class."""
        sought, among = (videos(rows.vectors[stage], lineage) for rows in (query, gallery))
        found = nearest(self.where, sought, among, ks[-1])
        right = gallery.labels.numpy()[found] == query.labels.numpy()[:, None]  # (queries, neighbours)
        return np.stack([right[:, :k].any(axis=1) for k in ks], axis=1)

    def protocol(self) -> Mapping[str, Any]:
        """What the numbers depend on besides clips and videos; stages as asked for, so that nets can be compared."""
        config = self.config
        return {
            "evaluation": "retrieval",
            "version": VERSION,
            "query": "test",
            "gallery": "train",
            "stages": config.stages,
            "clips": config.clips,
            "placement": "uniform",
            "crop": "centre",
            "pooling": "mean",
            "similarity": "cosine",
            "lineages": {name: lineage.model_dump() for name, lineage in config.lineages.items()},
            "ks": config.ks,
        }


def check(where: str, split: str, rows: SplitFeatures, stages: Sequence[str]) -> None:
    """Raise a `UserError` for a split that cannot be searched."""
    count, unnamed = len(rows.labels), int((rows.labels < 0).sum())
    if not count:
        raise UserError(f"{where}: no video of the {split} split could be read; give data with a {split} split")
    if unnamed:
        raise UserError(f"{where}: {unnamed} of {count} videos of the {split} split have no class; give labelled data")
    for stage in stages:
        broken = int((~rows.vectors[stage].isfinite().flatten(1).all(dim=1)).sum())
        if broken:
            raise UserError(
                f"{where}: {broken} of {count} {split} videos have features of {stage} that are not finite; "
                "the training has diverged, evaluate an earlier checkpoint"
            )


def videos(clips: Tensor, lineage: Lineage) -> np.ndarray:
    """(N, D) unit vectors of videos from the vectors of their clips (N, clips, D)."""
    clips = F.normalize(clips, dim=2) if lineage.clip_l2 else clips
    rows = clips.mean(dim=1)  # (N, D)
    rows = rows - rows.mean(dim=0) if lineage.center else rows
    return F.normalize(rows, dim=1).numpy()


def nearest(where: str, query: np.ndarray, gallery: np.ndarray, count: int) -> np.ndarray:
    """(queries, at most `count`) the most similar rows of the gallery, best first; of equal ones the earlier first."""
    try:
        import faiss
    except ImportError as error:
        raise UserError(f"{where}: faiss is not installed; run: pip install 'vssl[cpu]' (or 'vssl[gpu]')") from error
    index = faiss.IndexFlatIP(gallery.shape[1])
    index.add(np.ascontiguousarray(gallery))
    similarity, found = index.search(np.ascontiguousarray(query), min(count, len(gallery)))
    order = np.lexsort((found, -similarity.round(TIE)))  # along the last axis: by similarity, then by row
    return np.take_along_axis(found, order, axis=1)


def per_class(right: np.ndarray, labels: np.ndarray, classes: Sequence[str], metric: str) -> list[dict[str, Any]]:
    """A row for each class that has queries: its name, how many, and the percentage that is right."""
    return [
        {"class": name, "videos": int((labels == label).sum()), metric: 100 * float(right[labels == label].mean())}
        for label, name in enumerate(classes)
        if (labels == label).any()
    ]
