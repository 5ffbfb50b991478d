"""The recipes of pace say what the thesis and its code say."""

from __future__ import annotations

from pathlib import Path

import pytest

from vssl_core.config import load_config
from vssl_core.looks import PRESETS
from vssl_core.run.build import build_parts, choose

RECIPES = sorted((Path(__file__).parents[3] / "configs" / "papers").glob("pace_*.yaml"))
NETS = {"c3d": "c3d", "r3d": "r3d_10", "r2plus1d": "r2plus1d_10", "s3dg": "s3dg_pace"}


def test_the_study_is_there() -> None:
    alone = {f"pace_ucf101_{net}" for net in ("c3d", "r3d", "r2plus1d")}
    context = {f"pace_context_{rest}" for rest in ("ucf101_r2plus1d", "ucf101_s3dg", "kinetics_r2plus1d")}
    assert {path.stem for path in RECIPES} == alone | context


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_recipes_are_the_thesis(path: Path) -> None:
    *study, data, net = path.stem.split("_")[1:]
    chosen = choose(load_config(str(path)))
    config, clip, optim = chosen.config, chosen.config.clip, chosen.config.optim
    large = net == "s3dg"
    assert (config.backbone.name, config.data.source, config.batch_size) == (NETS[net], data, 32 if large else 30)
    assert (clip.frames, clip.size, clip.stride, clip.flip) == (*((64, 224) if large else (16, 112)), 1, 0.5)
    shown = 224**2 / 256**2 if large else 112**2 / (128 * 171)  # of the frame
    assert clip.area == pytest.approx((shown, shown), abs=1e-4)
    assert (optim.name, optim.lr, optim.momentum, optim.weight_decay) == ("sgd", 1e-3, 0.9, 5e-3)
    times = 1 if data == "kinetics" else 10  # the code goes ten times through UCF101 in an epoch
    assert config.epochs == 20 * times and optim.milestones == (6 * times, 12 * times, 18 * times)
    assert (optim.schedule, optim.gamma) == ("steps", 0.1)
    look = PRESETS[config.appearance.preset]
    assert (look.brightness, look.contrast, look.saturation, look.hue) == (0.8, 0.8, 0.8, 0.2)
    assert (look.jitter_probability, look.gray_probability, config.appearance.per) == (0.8, 0, "frame")
    parts = build_parts(chosen, videos=9537)
    objective, (group,) = parts.ensemble.objectives["pace"], parts.plan.groups
    assert objective.paces == (1, 2, 3, 4) and objective.config.classification_weight == 1
    assert group.request.least == (2 if study else 1)
    if study:
        options = objective.config
        assert (options.contrast, options.contrast_weight, options.projection) == ("same_context", 0.1, 128)
        assert options.reading == "row" and group.request.strides.shared is False
    else:
        assert objective.config.contrast == "none"
