"""The papers' recipes: each can be built and planned, and those of one study differ in what their names say."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from vssl_core.config import load_config, to_tree
from vssl_core.run.build import Parts, build_parts, choose

FOLDER = Path(__file__).parent.parent / "configs" / "papers"
RECIPES = sorted(FOLDER.glob("*.yaml"))
CSTP = [path for path in RECIPES if path.stem.startswith("cstp_")]
VIDEOS = {"ucf101": 9537, "kinetics": 240_000}  # in the training list, by the source
CONTRASTIVE = {"byol", "simclr", "moco", "simsiam"}
FIRST = "cstp_ucf101_r2plus1d"


def built(path: Path) -> Parts:
    """Backbone, objectives and plan of a recipe, with the true length of its list: a dry run without its step."""
    chosen = choose(load_config(str(path)))
    return build_parts(chosen, VIDEOS.get(chosen.config.data.source, 10_000))


def flat(tree: Any, prefix: str = "") -> dict[str, Any]:
    """{dotted key: value} of a configuration."""
    if not isinstance(tree, dict):
        return {prefix: tree}
    return {key: value for name, part in tree.items() for key, value in flat(part, f"{prefix}.{name}").items()}


def settings(path: Path) -> dict[str, Any]:
    return {key.lstrip("."): value for key, value in flat(to_tree(choose(load_config(str(path))).config)).items()}


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_a_recipe_can_be_built_and_planned(path: Path) -> None:
    parts = built(path)
    read = {slot.partition("/")[0] for group in parts.plan.groups for slot in group.members}
    assert read == set(parts.ensemble.objectives) and parts.ensemble.backbone.feature_dim


def test_the_study_is_there_as_far_as_the_paper_has_it() -> None:
    """BYOL with three nets on two data sets (Table 6), and the other frameworks with R(2+1)D on UCF101 (Table 3)."""
    wanted = {f"cstp_{data}_{net}" for data in ("ucf101", "kinetics") for net in ("r2plus1d", "c3d", "s3d")}
    wanted |= {f"cstp_{framework}_{FIRST.removeprefix('cstp_')}" for framework in CONTRASTIVE - {"byol"}}
    assert {path.stem for path in CSTP} == wanted


@pytest.mark.parametrize("path", CSTP, ids=lambda path: path.stem)
def test_all_of_cstp_reads_one_pair(path: Path) -> None:
    (group,) = built(path).plan.groups
    assert group.request.least == 2 and group.request.strides.choices == (1, 2, 4, 8)
    assert len(group.members) == 4


@pytest.mark.parametrize("path", CSTP, ids=lambda path: path.stem)
def test_recipes_of_one_study_differ_in_what_their_names_say(path: Path) -> None:
    """Framework, net and data set; nothing slipped in by copying."""
    *framework, data, net = path.stem.split("_")[1:]
    name = framework[0] if framework else "byol"
    config = load_config(str(path))
    assert list(config.plugins) == ["stor", "pace", "rotation", name] and config.data.source == data
    assert config.backbone.name == {"r2plus1d": "r2plus1d_10", "c3d": "c3d", "s3d": "s3d"}[net]
    assert [config.weight(plugin, 0) for plugin in config.plugins] == [1, 1, 1, 0.1]
    assert config.batch_size == {"ucf101": 60, "kinetics": 128}[data]
    own, first = settings(path), settings(FOLDER / f"{FIRST}.yaml")
    differ = {key for key in own.keys() | first.keys() if own.get(key) != first.get(key)}
    allowed = {
        "r2plus1d": r"$",
        "c3d": r"backbone\.name|plugins\.(stor|pace|rotation)\.layers",
        "s3d": r"backbone\.name|clip\.size",
    }[net]
    allowed += r"|data\.source|batch_size" if data == "kinetics" else ""
    allowed += rf"|(plugins|weights)\.(byol|{name})\b.*" if framework else ""
    assert {key for key in differ if not re.fullmatch(allowed, key)} == set()


@pytest.mark.parametrize("path", CSTP, ids=lambda path: path.stem)
def test_expected_numbers_say_which_table_they_are_from(path: Path) -> None:
    head = path.read_text(encoding="utf-8").partition("\nbackbone:")[0]
    expected = head.partition("# Expected")[2].partition("# Hours")[0]
    assert re.search(r"\d\d\.\d / \d\d\.\d", expected) and re.search(r"Tables? \d", expected)
    assert "Where it departs from the paper" in head and "None of them has been reproduced" in expected
