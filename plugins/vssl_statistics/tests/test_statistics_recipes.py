"""The recipes and sweeps of this plugin say what the thesis says, and differ in what their names say."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from vssl_core.config import load_config, to_tree
from vssl_core.run.build import choose
from vssl_core.run.sweep import read_sweep

CONFIGS = Path(__file__).parents[3] / "configs"
RECIPES = sorted((CONFIGS / "papers").glob("sts_*.yaml"))
SWEEPS = sorted((CONFIGS / "sweeps").glob("sts_*.yaml"))
NETS = {"c3dlight": "c3d_light", "c3d": "c3d", "r3d": "r3d_10", "r2plus1d": "r2plus1d_10"}


def flat(tree: Any, prefix: str = "") -> dict[str, Any]:
    """{dotted key: value} of a configuration."""
    if not isinstance(tree, dict) or not tree:
        return {prefix.lstrip("."): tree}
    return {key: value for name, part in tree.items() for key, value in flat(part, f"{prefix}.{name}").items()}


def test_the_study_is_there() -> None:
    wanted = {f"sts_{data}_{net}" for data in ("ucf101", "kinetics") for net in ("c3d", "r3d", "r2plus1d")}
    assert {path.stem for path in RECIPES} == wanted | {"sts_ucf101_c3dlight", "sts_curriculum_kinetics_r2plus1d"}
    assert [path.stem for path in SWEEPS] == [
        f"sts_table{table}" for table in ("2_2", "2_3", "2_4", "3_1", "3_2", "3_3")
    ]


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_recipes_are_the_thesis(path: Path) -> None:
    *study, data, net = path.stem.split("_")[1:]
    config = choose(load_config(str(path))).config
    options, optim, light = config.plugins["statistics"], config.optim, net == "c3dlight"
    assert (config.backbone.name, config.data.source, config.batch_size) == (NETS[net], data, 30)
    assert (config.clip.frames, config.clip.size, config.clip.stride) == (16, 112, 1)
    assert (options["motion_weight"], options["appearance_weight"], options["method"]) == (1.0, 0.1, "tvl1")
    assert (options["loss"], options["binning"], options["patterns"]) == ("mse", "hard", [1, 2, 3])
    assert (optim.lr, config.clip.flip) == ((1e-3, 0.0) if light else (5e-4, 0.5))
    decay = options["weight_decay"] if light else optim.weight_decay
    assert decay == 5e-3 and (optim.weight_decay == 0) == light
    assert (options["bias_learning_rate"], options["biases"]) == ((1.0, "heads") if light else (2.0, "all"))
    times = 1 if data == "kinetics" else 10  # about ten pieces of 16 frames in a video of UCF101
    assert config.epochs == times * (18 if light else 20)
    assert list(optim.milestones) == [times * epoch for epoch in ((6, 12) if light else (6, 12, 18))]
    assert (options["curriculum"] is not None) == bool(study)


def test_the_curriculum_is_a_curriculum_alone() -> None:
    """Nothing else slipped in by copying; the first half of the epochs shows the easier half."""
    trees = [
        flat(to_tree(choose(load_config(str(CONFIGS / "papers" / f"sts_{name}.yaml"))).config))
        for name in ("kinetics_r2plus1d", "curriculum_kinetics_r2plus1d")
    ]
    differ = {key for key in {**trees[0], **trees[1]} if trees[0].get(key) != trees[1].get(key)}
    assert differ and all(key.startswith("plugins.statistics.curriculum") for key in differ)
    assert trees[1]["plugins.statistics.curriculum.step_length"] == trees[1]["epochs"] // 2


CELLS = {  # which keys may differ between the cells of a table, beside the row without training
    "sts_table2_2": {"patterns"},
    "sts_table2_3": {"patterns", "whole"},
    "sts_table2_4": {"motion", "appearance", "appearance_weight"},
    "sts_table3_1": {"backbone.name"},
    "sts_table3_2": {"backbone.name", "subset"},
    "sts_table3_3": {"fixed", "subset", "curriculum"},
}


@pytest.mark.parametrize("path", SWEEPS, ids=lambda path: path.stem)
def test_cells_differ_in_what_their_table_varies(path: Path) -> None:
    trees = [flat(to_tree(cell.config)) for cell in read_sweep(str(path)).cells if cell.trains]
    differ = {
        key.removeprefix("plugins.statistics.").partition(".")[0] if key.startswith("plugins") else key
        for key in {key for tree in trees for key in tree}
        if len({repr(tree.get(key)) for tree in trees}) > 1
    }
    assert differ == CELLS[path.stem]
    assert len({repr(sorted(tree.items())) for tree in trees}) == len(trees)


@pytest.mark.parametrize("path", SWEEPS, ids=lambda path: path.stem)
def test_a_folder_of_flow_may_be_given_to_a_whole_sweep(path: Path) -> None:
    """Cells that learn from no motion, or are not trained, have no use for it and do not mind."""
    cells = read_sweep(str(path), overrides=["plugins.statistics.flow=flow/some"]).cells
    assert all(cell.config.plugins["statistics"]["flow"] == "flow/some" for cell in cells if cell.trains)


def test_parts_that_tables_share_are_the_same_run() -> None:
    """All of Kinetics-400 is one experiment in both, but for the clip that the curriculum's table holds fixed."""
    scale = {cell.name: cell for cell in read_sweep(str(CONFIGS / "sweeps" / "sts_table3_2.yaml")).cells}
    order = {cell.name: cell for cell in read_sweep(str(CONFIGS / "sweeps" / "sts_table3_3.yaml")).cells}
    for wide, kept in (("R(2+1)D, all", "all"), ("R(2+1)D, 1/2", "half")):
        assert scale[wide].paper == order[kept].paper
        one, two = (flat(to_tree(cell.config)) for cell in (scale[wide], order[kept]))
        assert {key for key in one if one[key] != two[key]} == {"plugins.statistics.fixed"}
