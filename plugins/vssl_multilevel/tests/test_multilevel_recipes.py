"""The recipes of MLRep say what the paper and its code say, and a step of theirs is one group of three clips."""

from __future__ import annotations

from pathlib import Path

import pytest

from vssl_core.config import load_config
from vssl_core.looks import PRESETS
from vssl_core.run.build import build_parts, choose

RECIPES = Path(__file__).parents[3] / "configs" / "papers"
LEVELS = {"r3d18": (128, 256, 512), "s3d": (480, 832, 1024), "slowfast": (576, 1152, 2304)}


@pytest.mark.parametrize("path", sorted(RECIPES.glob("mlrep_*.yaml")), ids=lambda path: path.stem)
def test_recipes_are_the_papers(path):
    _, data, net = path.stem.split("_")
    chosen = choose(load_config(str(path)))
    config, optim = chosen.config, chosen.config.optim
    assert (config.clip.frames, config.clip.size, config.clip.normalisation, config.batch_size) == (
        16,
        112,
        "imagenet",
        256,
    )
    assert (optim.lr, optim.weight_decay, optim.schedule, optim.gamma) == (1e-3, 1e-5, "steps", 0.1)
    assert (config.epochs, optim.milestones) == ((300, (200,)) if data == "ucf101" else (100, (70,)))
    recipe = PRESETS[config.appearance.preset]
    assert (recipe.gray_probability, recipe.gray, recipe.jitter_probability, recipe.hue) == (0.5, "channel", 1.0, 0.25)
    parts = build_parts(chosen, videos=9537)
    (group,) = parts.plan.groups
    assert group.request.least == 3 and group.request.appearance.per == "frame"
    assert group.request.boxes.area == (0.5, 1.0) and group.request.strides.choices.high == 3
    objective = parts.ensemble.objectives["multilevel"]
    assert tuple(parts.context.stages[stage][0] for stage in objective.stages.values()) == LEVELS[net]
    assert objective.graph_epoch == (50 if data == "ucf101" else 20)
    prototypes = objective.prototypes
    assert (prototypes.centres.out_features, len(prototypes.queue), prototypes.queue_epoch) == (1000, 1024, 10)
    assert objective.config.graph_weights == (0.3, 0.5, 0.0) and objective.config.temporal_weights == (0.3, 0.5, 1.0)
