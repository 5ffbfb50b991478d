"""What an evaluation must satisfy, on made-up features of six classes."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from functools import cached_property
from typing import Any

import torch

from vssl_core.config import RunConfig, build_options
from vssl_core.objective import Evaluation, ExtractedFeatures, Needs, Result, SplitFeatures
from vssl_core.plugins import Plugin, new_manager
from vssl_core.run.build import build_parts, choose, context_of, make_backbone
from vssl_core.run.offered import EvaluationContext, offered_widths, offers_features
from vssl_core.testing.trial import SETTINGS, scramble

CLASSES = ("walk", "run", "jump", "sit", "stand", "wave")
VIDEOS = {"train": 60, "test": 30}


class Examination:
    """One evaluation, built with the chosen options for the tiny backbone, and what it finds."""

    def __init__(self, plugin: Plugin, options: Mapping[str, Any]) -> None:
        self.plugin = plugin
        self.options = options if plugin.objective is None else {}  # else they are the objective's
        config = RunConfig.model_validate(SETTINGS)
        context = context_of(config, plugin.name, make_backbone(config, new_manager()), VIDEOS["train"])
        self.context = EvaluationContext.of(context, lambda: self.offers)
        self.objective_options = options

    @cached_property
    def offers(self) -> Mapping[str, int]:
        """The features that the plugin's own objective offers, untrained."""
        if not offers_features(self.plugin.objective):
            return {}
        config = RunConfig.model_validate({**SETTINGS, "plugins": {self.plugin.name: dict(self.objective_options)}})
        ensemble = build_parts(choose(config), VIDEOS["train"]).ensemble
        return offered_widths(config, ensemble.backbone, dict(ensemble.objectives.items()))

    def build(self) -> Evaluation:
        """A fresh one."""
        assert self.plugin.evaluation is not None
        config = build_options(self.plugin.evaluation.Config, self.options, self.plugin.name)  # type: ignore[attr-defined]
        return self.plugin.evaluation(config, self.context)

    @cached_property
    def needs(self) -> Needs:
        return self.build().needs()

    @cached_property
    def features(self) -> ExtractedFeatures:
        """What it asks for: a cloud of clips around a place for each video, around a place for each class."""
        stages = tuple(self.context.stages)
        asked = self.needs.stages or stages[-1:]
        generator = torch.Generator().manual_seed(0)
        places = {
            stage: torch.randn(len(CLASSES), self.context.stage(stage)[0], generator=generator) for stage in asked
        }
        splits = {}
        for name in self.needs.splits:
            labels = torch.arange(VIDEOS[name]) % len(CLASSES)
            vectors = {}
            for stage, place in places.items():
                centres = place[labels] + torch.randn(len(labels), place.shape[1], generator=generator)
                vectors[stage] = centres[:, None] + 0.3 * torch.randn(
                    len(labels), self.needs.clips, place.shape[1], generator=generator
                )
            splits[name] = SplitFeatures(
                vectors, labels, tuple(f"{name}/{number}.mp4" for number in range(len(labels)))
            )
        offered = tuple(stage for stage in asked if stage not in stages)
        return ExtractedFeatures(splits, CLASSES, offered + stages, seed=0)

    @cached_property
    def result(self) -> Result:
        scramble(1)
        return self.build().run(self.features)

    @cached_property
    def again(self) -> Result:
        scramble(2)
        return self.build().run(self.features)


def needs(examination: Examination) -> str | None:
    """It asks for clips, stages and splits that there are."""
    asked, stages = examination.needs, examination.context.stages
    if not isinstance(asked, Needs):
        return f"needs() must give vssl_core.Needs, got {type(asked).__name__}"
    if asked.clips < 1 or not asked.splits or not set(asked.splits) <= set(VIDEOS):
        given = f"clips={asked.clips}, splits={asked.splits}"
        return f"needs() must ask for at least one clip of the splits 'train' and 'test', got {given}"
    missing = [stage for stage in asked.stages or () if stage not in stages and stage not in examination.offers]
    return (
        f"needs() asks for stage '{missing[0]}', there are {', '.join(stages)}; check it with context.stage"
        if missing
        else None
    )


def results(examination: Examination) -> str | None:
    """Percentages, each finite and from 0 to 100, under plain names."""
    before = {
        name: {stage: rows.clone() for stage, rows in split.vectors.items()}
        for name, split in examination.features.splits.items()
    }
    result = examination.result
    if not isinstance(result, Result):
        return f"run() must give vssl_core.Result, got {type(result).__name__}"
    if not result.metrics:
        return "run() gives no metric"
    for name, value in result.metrics.items():
        if not isinstance(value, int | float) or not math.isfinite(value) or not 0 <= value <= 100:
            return f"metric '{name}' must be a percentage from 0 to 100, got {value!r}"
    for name, split in examination.features.splits.items():
        if any(not torch.equal(rows, split.vectors[stage]) for stage, rows in before[name].items()):
            return f"it changes the features of the {name} split, which other evaluations read too; work on a copy"
    return None


def repeated(examination: Examination) -> str | None:
    """The same features give the same numbers."""
    first, second = dict(examination.result.metrics), dict(examination.again.metrics)
    changed = [name for name in {**first, **second} if first.get(name) != second.get(name)]
    if changed:
        return (
            f"metric '{changed[0]}' is {first.get(changed[0])} once and {second.get(changed[0])} the next time; "
            "draw from a generator of your own, seeded by features.seed"
        )
    return None


def written(examination: Examination) -> str | None:
    """Protocol and tables can be written as JSON."""
    for name in ("protocol", "tables"):
        try:
            json.dumps(dict(getattr(examination.result, name)), allow_nan=False)
        except (TypeError, ValueError) as error:
            return f"its {name} cannot be written as JSON ({error}); use plain numbers, strings, lists and mappings"
    if not examination.result.protocol:
        return "its protocol is empty; name there everything that the numbers depend on"
    odd = [name for name, figure in examination.result.figures.items() if not hasattr(figure, "savefig")]
    return f"figure '{odd[0]}' is no matplotlib figure" if odd else None


CHECKS: dict[str, Callable[[Examination], str | None]] = {
    "needs": needs,
    "results": results,
    "seed": repeated,
    "JSON": written,
}
