"""The recipes of the concepts say what the paper says, and one of them what its code does."""

from __future__ import annotations

from pathlib import Path

import pytest

from vssl_core.config import load_config
from vssl_core.looks import PRESETS
from vssl_core.run.build import build_parts, choose

RECIPES = sorted((Path(__file__).parents[3] / "configs" / "papers").glob("concepts_*.yaml"))
CODE = "concepts_code_ucf101_r2plus1d"
CLIPS = {  # frames, size, where they are not 16 of 112
    "concepts_ucf101_s3d": (32, 128),
    "concepts_kinetics_s3d": (16, 128),
    CODE: (16, 128),
}


def test_the_study_is_there() -> None:
    wanted = {f"concepts_{data}_{net}" for data in ("ucf101", "kinetics") for net in ("r2plus1d", "s3d")}
    assert {path.stem for path in RECIPES} == wanted | {"concepts_diving48_r2plus1d", CODE}


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_recipes_are_the_papers(path: Path) -> None:
    chosen, official = choose(load_config(str(path))), path.stem == CODE
    config, clip, optim = chosen.config, chosen.config.clip, chosen.config.optim
    *_, data, net = path.stem.split("_")
    assert config.backbone.name == {"r2plus1d": "r2plus1d_10", "s3d": "s3d"}[net]
    assert config.data.source == {"diving48": "folder"}.get(data, data)
    assert (config.epochs, optim.milestones) == ((100, (60, 80)) if data == "kinetics" else (200, (120, 160)))
    assert (optim.schedule, optim.gamma, config.batch_size) == ("steps", 0.1, 64)
    assert (optim.name, optim.lr, optim.weight_decay) == (("adamw", 1e-3, 1e-5) if official else ("sgd", 1e-2, 1e-4))
    assert (clip.frames, clip.size) == CLIPS.get(path.stem, (16, 112))
    assert (clip.stride, clip.area, clip.flip, config.appearance.per) == (1, (0.5, 1.0), 0.5, "clip")
    look = PRESETS[config.appearance.preset]
    assert (look.jitter_probability, look.gray_probability, look.hue) == ((1, 0.5, 0.25) if official else (0, 0, 0))
    objective = build_parts(chosen, videos=9537).ensemble.objectives["concepts"]
    options = objective.config
    assert objective.requests()["clips"].tail == 1  # a difference of frames needs one more
    assert (options.static_concepts, options.dynamic_concepts, options.valid, options.queue) == (50, 50, 0.1, 1024)
    assert (options.temperature, options.epsilon, options.iterations, options.margin) == (0.1, 0.05, 3, 1.4)
    assert (options.queue_epoch, options.frozen_epochs) == (1, 1)
    assert (options.fidelity_factor, options.local_factor) == (1, 1)
    assert options.diversity_factor == (0.1 if official else 0.01)
    assert options.warmup_epochs == (10 if official else 5)
    clips, pairs = (2, "within") if official else (1, "cross")
    assert (options.clips, options.pairs, options.contrast) == (clips, pairs, official)


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_what_a_recipe_says_of_its_differences_is_what_it_reads(path: Path) -> None:
    frames = load_config(str(path)).clip.frames
    told = path.read_text(encoding="utf-8")
    wanted = f"differences   of {frames + 1} frames, so that there are {frames} without going round"
    assert path.stem == CODE or wanted in told
