"""The recipes of saccades say what the paper and its code say, and the sweeps stand on them."""

from __future__ import annotations

from pathlib import Path

import pytest

from vssl_core.config import load_config
from vssl_core.looks import PRESETS
from vssl_core.run.build import build_parts, choose

RECIPES = sorted((Path(__file__).parents[3] / "configs" / "papers").glob("saccades_*.yaml"))
NETS = {"r3d": "r3d_10", "r2plus1d": "r2plus1d_10"}
LENGTHS = {  # epochs, the first with clusters, milestones of the rate, batch
    "saccades_ucf101_r3d": (360, 300, (90, 180, 240), 16),
    "saccades_ucf101_r2plus1d": (360, 300, (90, 180, 240), 14),
    "saccades_short_ucf101_r3d": (100, 60, (30, 60, 80), 16),
    "saccades_code_ucf101_r3d": (300, 240, (90, 180, 240), 16),
    "saccades_code_ucf101_r2plus1d": (360, 300, (90, 180, 240), 8),
}


def test_the_study_is_there() -> None:
    assert {path.stem for path in RECIPES} == set(LENGTHS)


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_recipes_are_the_papers(path: Path) -> None:
    chosen = choose(load_config(str(path)))
    config, clip, optim = chosen.config, chosen.config.clip, chosen.config.optim
    epochs, start, milestones, batch = LENGTHS[path.stem]
    assert (config.epochs, config.batch_size, optim.milestones) == (epochs, batch, milestones)
    assert (optim.name, optim.lr, optim.momentum, optim.weight_decay) == ("sgd", 0.1, 0.9, 1e-4)
    assert (optim.schedule, optim.gamma, optim.warmup_epochs) == ("steps", 0.2, 0)
    assert optim.lr * optim.gamma**3 == pytest.approx(8e-4)  # printed as 8^-4
    assert (config.backbone.name, config.data.source) == (NETS[path.stem.rpartition("_")[2]], "ucf101")
    assert (clip.frames, clip.size, clip.stride, clip.flip) == (16, 112, 1, 0.5)
    assert clip.area == (0.175, 1.0) and clip.aspect == pytest.approx((3 / 4, 4 / 3), abs=1e-4)
    look = PRESETS[config.appearance.preset]
    assert (look.brightness, look.contrast, look.saturation, look.hue) == (0.4, 0.4, 0.4, 0.1)
    assert (look.jitter_probability, look.blur_probability, config.appearance.per) == (0.8, 0.5, "clip")
    objective = build_parts(chosen, videos=9537).ensemble.objectives["saccades"]
    options = objective.config
    assert (options.fixations, options.area, objective.negatives, len(objective.bank)) == (5, 0.25, 1024, 5 * 9537)
    assert (options.temperature, options.momentum, options.positive) == (0.07, 0.5, "bank")
    assert (options.prediction_weight, options.reorganisation_weight, options.stage) == (1, 1, None)
    assert (objective.clusters.clusters, objective.start, options.every) == ((1500, 1500, 1500), start, 5)
    assert (options.iterations, options.restarts, options.smoothing) == (20, 5, 10)


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_a_name_says_whose_choices_they_are(path: Path) -> None:
    options = choose(load_config(str(path))).config.plugins["saccades"]
    chosen = {key: options[key] for key in ("mask", "mask_space", "siblings", "projection", "mix_fixations")}
    paper = {"mask": "multiply", "mask_space": "clip", "siblings": "always", "projection": None, "mix_fixations": False}
    code = {
        "mask": "residual", "mask_space": "frame", "siblings": "sampled", "projection": 512, "mix_fixations": True,
    }  # fmt: skip
    official = "_code_" in path.stem
    assert chosen == (code if official else paper)
    assert options["attention_power"] == (4 if official and path.stem.endswith("r2plus1d") else 1)
