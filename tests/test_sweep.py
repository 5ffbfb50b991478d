"""Sweeps: the file and its cells, real runs side by side, kills and failures, the table, and the files that ship."""

from __future__ import annotations

import csv
import json
import os
import re
import shutil
import signal
import statistics
import subprocess
import sys
import time
from itertools import product
from pathlib import Path
from typing import Any

import pytest
import yaml
from small_runs import assert_equal
from sweep_files import QUICK, base, sweep_file, written

from vssl_core import ConfigError, load_backbone
from vssl_core.cli import main
from vssl_core.commands.estimate import estimate
from vssl_core.config import load_config, to_tree
from vssl_core.run import checkpoint, sweep_runs
from vssl_core.run.side_by_side import devices, reason
from vssl_core.run.sweep import Cell, SweepFile, read_sweep
from vssl_core.run.sweep_runs import SweepRun, held, runs_of
from vssl_core.run.untrained import save_untrained
from vssl_core.run.weights import WEIGHTS

ROOT = Path(__file__).resolve().parents[1]
SHIPPED = sorted((ROOT / "configs" / "sweeps").glob("*.yaml"))
PATIENCE = 240  # seconds for one process on a busy machine

RANDOM = {"name": "random", "plugins": []}
TURNS = {"name": "Turns", "plugins": ["rotation"]}
TOO_FAST = {"name": "too fast", "plugins": ["rotation"], "overrides": {"optim.lr": 1e30}}


# Cells ----------------------------------------------------------------------------------------------------------------


def test_cells_lie_over_the_base(tmp_path: Path) -> None:
    """Options and weights of the plugins that stay, the cell's own options and keys, and nothing of those left out."""
    experiment = base(
        plugins={"stor": {"rates": 3, "layers": 1}, "rotation": {"layers": 1}},
        weights={"stor": 2, "rotation": 3},
        views={"own": ["rotation"], "groups": [["stor"]]},
    )
    path = sweep_file(
        tmp_path,
        {"name": "a", "plugins": {"stor": {"rates": 2}, "byol": None}, "overrides": {"weights.byol": 0.5, "epochs": 7}},
        {"name": "b", "plugins": ["rotation"]},
        RANDOM,
        base=experiment,
    )
    one, two, three = read_sweep(path).cells
    assert list(one.given.plugins.items()) == [("stor", {"rates": 2, "layers": 1}), ("byol", {})]
    assert (one.given.weights, one.given.epochs, one.given.views.own) == ({"stor": 2, "byol": 0.5}, 7, ())
    assert one.config.plugins["byol"]["momentum"] == 0.996, "defaults are filled in"
    assert (two.given.plugins, two.given.weights) == ({"rotation": {"layers": 1}}, {"rotation": 3})
    assert (two.given.views.own, two.given.views.groups) == (("rotation",), ())
    assert [cell.trains for cell in (one, two, three)] == [True, True, False]
    assert three.given.plugins == three.given.weights == {}
    assert one.with_seed(5).seed == 5


def test_a_grid_is_every_combination(tmp_path: Path) -> None:
    grid = {"plugins": [["rotation"], ["rotation", "pace"]], "optim.lr": [0.1, 1e-3], "plugins.rotation.layers": [2]}
    cells = read_sweep(sweep_file(tmp_path, grid=grid)).cells
    assert [cell.name for cell in cells] == [
        f"plugins=[{names}], optim.lr={rate}, plugins.rotation.layers=2"
        for names in ("rotation", "rotation, pace")
        for rate in ("0.1", "0.001")
    ]
    assert [(list(cell.given.plugins), cell.given.optim.lr) for cell in cells] == [
        (["rotation"], 0.1), (["rotation"], 0.001), (["rotation", "pace"], 0.1), (["rotation", "pace"], 0.001),
    ]  # fmt: skip
    assert all(cell.given.plugins["rotation"] == {"layers": 2} for cell in cells)
    assert len({cell.slug for cell in cells}) == 4


def test_a_power_set_switches_some_plugins_and_keeps_the_others(tmp_path: Path) -> None:
    """In the base's order, whatever the order of the switches; smaller sets first."""
    experiment = base(plugins={"stor": {"rates": 3}, "pace": {}, "rotation": {}})
    cells = read_sweep(sweep_file(tmp_path, base=experiment, powerset=["rotation", "stor", "byol"])).cells
    assert [" ".join(cell.given.plugins) for cell in cells] == [
        "pace", "pace rotation", "stor pace", "pace byol", "stor pace rotation", "pace rotation byol",
        "stor pace byol", "stor pace rotation byol",
    ]  # fmt: skip
    assert cells[2].given.plugins["stor"] == {"rates": 3}
    whole = read_sweep(sweep_file(tmp_path, base=experiment, powerset=["stor", "pace", "rotation"])).cells
    assert (len(whole), whole[0].name, whole[0].trains) == (8, "random initialisation", False)


def test_the_base_is_found_from_anywhere_in_the_project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    found = read_sweep(str(ROOT / "configs/sweeps/cstp_table5.yaml"))
    assert found.base == load_config(str(ROOT / "configs/papers/cstp_ucf101_r2plus1d.yaml"))


def test_the_command_line_changes_the_base_and_the_evaluations(tmp_path: Path) -> None:
    path = sweep_file(tmp_path, RANDOM, TURNS)
    overrides = ["epochs=9", "plugins.rotation.layers=1", "plugins.retrieval.ks=[1, 2]"]
    found = read_sweep(path, ("csv", "list.csv"), overrides)
    assert all((cell.config.epochs, cell.config.data.source) == (9, "csv") for cell in found.cells)
    assert found.cells[1].given.plugins == {"rotation": {"layers": 1}}
    assert found.evaluations == {"retrieval": {"clips": 2, "stages": "last", "ks": [1, 2]}}
    assert found.evaluation_overrides(["retrieval"]) == [
        "plugins.retrieval.clips=2", 'plugins.retrieval.stages="last"', "plugins.retrieval.ks=[1, 2]",
    ]  # fmt: skip


@pytest.mark.parametrize(
    "evaluations", [["retrieval", {"linear": {"epochs": 3}}], {"retrieval": None, "linear": {"epochs": 3}}]
)
def test_evaluations_are_names_with_or_without_options(tmp_path: Path, evaluations: Any) -> None:
    found = read_sweep(sweep_file(tmp_path, RANDOM, evaluations=evaluations))
    assert found.evaluations == {"retrieval": {}, "linear": {"epochs": 3}}


# What cannot be -------------------------------------------------------------------------------------------------------


def refused(capsys: pytest.CaptureFixture[str], *words: str) -> str:
    """The one sentence that a command line is answered with, the exit code being 2."""
    assert main(["sweep", *words]) == 2
    told = capsys.readouterr().err
    assert told.startswith("vssl sweep: ") and told.count("\n") == 1 and told.endswith("\n"), told
    return told.removeprefix("vssl sweep: ").rstrip("\n")


WRONG: dict[str, tuple[dict[str, Any], str]] = {
    "no such key": ({"seedz": [1]}, r"small\.yaml: seedz: there is no such key; did you mean 'seeds'\?"),
    "no such key of a cell": (
        {"cells": [{"name": "a", "plugins": [], "papers": {}}]},
        r"cells\.0\.papers: there is no such key; did you mean 'paper'\?",
    ),
    "no way": ({"cells": None}, r"small\.yaml: needs one of cells, grid and powerset, and has none"),
    "two ways": ({"powerset": ["stor"]}, r"needs one of cells, grid and powerset, and has cells and powerset"),
    "no name": ({"cells": [{"name": "", "plugins": []}]}, r"cells\.0\.name: string should have at least 1 char"),
    "a name without letters": ({"cells": [{"name": "++", "plugins": []}]}, r"cell '\+\+': the name needs a letter"),
    "one folder": (
        {"cells": [{"name": "a b", "plugins": []}, {"name": "A+B", "plugins": []}]},
        r"cells 'a b' and 'A\+B' would share the folder a-b; rename one",
    ),
    "seeds twice": ({"seeds": [1, 1]}, r"seeds: names one of them twice"),
    "no seed": ({"seeds": []}, r"seeds: needs at least 1 entry, got \[\]"),
    "a seed that is none": ({"seeds": [True]}, r"seeds\.0: must be a number, got True"),
    "seed of a cell": (
        {"cells": [{"name": "a", "plugins": [], "overrides": {"seed": 3}}]},
        r"cell 'a': seed is not for one cell; list `seeds`",
    ),
    "seed of a grid": ({"cells": None, "grid": {"seed": [1, 2]}}, r"seed is not for one cell; list `seeds`"),
    "plugins among the overrides": (
        {"cells": [{"name": "a", "plugins": ["stor"], "overrides": {"plugins": ["pace"]}}]},
        r"cell 'a': overrides: the set of plugins stands in the cell's own key `plugins`",
    ),
    "no such key of the run": (
        {"cells": [{"name": "a", "plugins": ["rotation"], "overrides": {"optim.lrr": 3}}]},
        r"small\.yaml: cell 'a': optim\.lrr: there is no such key; did you mean 'lr'\?",
    ),
    "no such key of a grid": (
        {"cells": None, "grid": {"epoch": [1, 2]}},
        r"cell 'epoch=1': epoch: there is no such key; did you mean 'epochs'\?",
    ),
    "no such plugin": (
        {"cells": [{"name": "a", "plugins": ["rotatoin"]}]},
        r"cell 'a': plugins: no plugin named 'rotatoin' is installed; did you mean 'rotation'\?",
    ),
    "no such option": (
        {"cells": [{"name": "a", "plugins": {"rotation": {"layer": 3}}}]},
        r"cell 'a': plugins\.rotation\.layer: there is no such key; did you mean 'layers'\?",
    ),
    "an option of a plugin left out": (
        {"cells": [{"name": "a", "plugins": ["rotation"], "overrides": {"plugins.pace.layers": 1}}]},
        r"cell 'a': .*plugin 'pace' is not chosen",
    ),
    "a weight of nobody": (
        {"cells": [{"name": "a", "plugins": ["rotation"], "overrides": {"weights.pace": 1}}]},
        r"cell 'a': weights\.pace: no objective of this name is chosen",
    ),
    "a twin in a power set": ({"cells": None, "powerset": ["stor", "stor"]}, r"powerset: names one of them twice"),
    "no value in a grid": ({"cells": None, "grid": {"epochs": []}}, r"grid\.epochs: "),
    "more videos than there are": (
        {"cells": [{"name": "a", "plugins": ["rotation"], "overrides": {"batch_size": 1000}}]},
        r"small\.yaml: cell 'a': batch_size: 1000 is more than the 12 videos of the training list",
    ),
    "clips that a plugin cannot read": (
        {"cells": [{"name": "a", "plugins": ["statistics"], "overrides": {"clip.size": 20}}]},
        r"small\.yaml: cell 'a': plugins\.statistics: clip\.size must be a multiple of 8",
    ),
    "a stage that is not there": (
        {"cells": [{"name": "a", "plugins": {"multilevel": {"low": "layer9"}}}]},
        r"small\.yaml: cell 'a': plugins\.multilevel.*layer9",
    ),
    "flow that is not there": (
        {
            "cells": [
                {"name": "a", "plugins": {"statistics": {"flow": "/no/such/flow"}}, "overrides": {"clip.size": 32}}
            ]
        },
        r"small\.yaml: cell 'a': plugins\.statistics.*/no/such/flow",
    ),
    "nothing in a grid": ({"cells": None, "grid": {}}, r"grid: needs at least 1 entry, got {}"),
    "a plugin to judge by": (
        {"evaluations": ["rotation"]},
        r"evaluations: 'rotation' is no evaluation; `vssl plugins`",
    ),
    "no such evaluation": ({"evaluations": ["retrival"]}, r"evaluations: no plugin named 'retrival' is installed"),
    "an evaluation twice": ({"evaluations": ["linear", "linear"]}, r"evaluations: names 'linear' twice"),
    "no such option of an evaluation": (
        {"evaluations": {"retrieval": {"clip": 3}}},
        r"evaluations: plugins\.retrieval\.clip: there is no such key; did you mean 'clips'\?",
    ),
    "a number of nothing": (
        {"cells": [{"name": "a", "plugins": [], "paper": {"top1": 76.6}}]},
        r"a number belongs to data/evaluation/metric, for example ucf101/retrieval/r@1",
    ),
    "a number that is none": (
        {"cells": [{"name": "a", "plugins": [], "paper": {"ucf101/finetune/top1": "76,6"}}]},
        r"paper\.ucf101/finetune/top1: input should be a valid number",
    ),
    "no base": (
        {"base": "configs/papers/nothing.yaml"},
        r"base: there is no file configs/papers/nothing\.yaml, neither",
    ),
    "a base that is none": ({"base": {"epoch": 3}}, r"small\.yaml: base: epoch: there is no such key"),
}


@pytest.mark.parametrize("what", WRONG)
def test_what_is_wrong_in_a_file_is_one_sentence(what: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    changes, told = WRONG[what]
    keys = {"cells": [RANDOM, TURNS], **changes}
    path = sweep_file(tmp_path, **{key: value for key, value in keys.items() if value is not None})
    assert re.search(told, refused(capsys, path, "--run", str(tmp_path / "run")))
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["--parallel", "0"], r"--parallel: 0 runs at a time do nothing; give at least 1"),
        (["seed=3"], r"the command line: seed is not for one cell; list `seeds`"),
        (["epochs=3"], r"'epochs=3': .*small\.yaml sets epochs in cell 'long'; change it there"),
        (["plugins.rotation.layers=3"], r"sets plugins\.rotation\.layers in cell 'long'"),
        (["plugins=[pace]"], r"sets plugins in cell 'random'; change it there"),
        (["plugins.pace.layers=3"], r"plugin 'pace' is not chosen"),
        (["optim.lrr=3"], r"optim\.lrr: there is no such key"),
        (["plugins.retrieval.clip=3"], r"evaluations: plugins\.retrieval\.clip: there is no such key"),
        (["--data", "/no/such/folder.csv"], r"/no/such/folder\.csv"),
    ],
)
def test_what_is_wrong_on_the_command_line_is_one_sentence(
    words: list[str], told: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    cell = {"name": "long", "plugins": {"rotation": {"layers": 2}}, "overrides": {"epochs": 100}}
    path = sweep_file(tmp_path, RANDOM, cell)
    assert re.search(told, refused(capsys, path, "--run", str(tmp_path / "run"), *words))
    assert not (tmp_path / "run").exists()


def test_a_missing_file_and_another_kind_of_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "none.yaml: cannot be read" in refused(capsys, str(tmp_path / "none.yaml"))
    assert "evaluations: field required" in refused(capsys, written(tmp_path, "base: {}"))
    assert "is not YAML" in refused(capsys, written(tmp_path, "cells: ["))


# Whose folder ---------------------------------------------------------------------------------------------------------


def test_a_sweep_may_grow_and_not_change(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    place = tmp_path / "run"
    with held(read_sweep(sweep_file(tmp_path, RANDOM, TURNS)), place):
        pass
    more = [{"name": "longer", "plugins": ["rotation"], "overrides": {"epochs": 3}}, RANDOM, TURNS]
    grown = sweep_file(tmp_path, *more, seeds=[1, 0], evaluations=["linear", QUICK])
    with held(read_sweep(grown, overrides=["data.workers=2"]), place):  # a key that changes no weights
        pass
    changed: dict[str, Any] = {
        "cell 'Turns'|'Turns': epochs: 1 -> 2": {"cells": [RANDOM, {**TURNS, "overrides": {"epochs": 2}}]},
        "cells: 'Turns' gone": {"cells": [RANDOM]},
        "seeds: 0 gone": {"seeds": [1]},
        "evaluations: 'linear' gone": {"evaluations": QUICK},
        "'retrieval': clips: 2 -> 3": {"evaluations": {"linear": {}, "retrieval": {"clips": 3, "stages": "last"}}},
    }
    for told, keys in changed.items():
        path = sweep_file(tmp_path, **{"cells": more, "seeds": [0, 1], "evaluations": {"linear": {}, **QUICK}, **keys})
        sentence = refused(capsys, path, "--run", str(place), "--dry-run")
        assert re.search(told, sentence) and "holds a sweep that differs from" in sentence


def test_the_folder_of_something_else(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = sweep_file(tmp_path, RANDOM)
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "thesis.tex").write_text("years of work")
    told = refused(capsys, path, "--run", str(tmp_path / "thesis"))
    assert "is not empty and holds no sweep (it has thesis.tex); choose another folder" in told
    assert "is not a folder that can be read" in refused(capsys, path, "--run", path)
    (tmp_path / "thesis" / "sweep.yaml").write_text("seeds: [0]\nevaluation: {}")
    told = refused(capsys, path, "--run", str(tmp_path / "thesis"))
    assert re.search(r"sweep\.yaml: evaluations?: ", told)
    (run,) = runs_of(read_sweep(path), tmp_path / "run")
    with held(run.sweep, run.place):
        save_untrained(run.cell.config.model_copy(update={"seed": 7}), run.folder)
    told = refused(capsys, path, "--run", str(tmp_path / "run"))
    assert "holds a run with another configuration than cell 'random' (seed: 7 -> 0); move it away" in told


def test_two_sweeps_in_one_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sweep_runs, "PATIENCE", 0.1)
    path = sweep_file(tmp_path, RANDOM)
    with held(read_sweep(path), tmp_path / "run") as number:
        told = refused(capsys, path, "--run", str(tmp_path / "run"))
        assert "another sweep, or a run that it started, is at work in this folder" in told
        sleeper = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE, pass_fds=(number,))
    try:  # what the sweep has started holds the folder too
        assert "is at work in this folder" in refused(capsys, path, "--run", str(tmp_path / "run"))
    finally:
        sleeper.communicate(b"\n", timeout=PATIENCE)
    with held(read_sweep(path), tmp_path / "run"):
        pass


# Real sweeps ----------------------------------------------------------------------------------------------------------


def untouched(place: Path) -> dict[str, int]:
    """When each log and each weights file was last written."""
    return {str(path): path.stat().st_mtime_ns for kind in ("*.log", WEIGHTS) for path in place.rglob(kind)}


def test_a_sweep_with_a_failing_cell(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The others go on; what is done is not done again, what failed only when asked to, and the table tells."""
    path, place = sweep_file(tmp_path, TOO_FAST, RANDOM, columns=["*/retrieval/r@1"]), tmp_path / "run"
    words = ["sweep", path, "--run", str(place)]
    assert main(words) == 1
    told, sentence = capsys.readouterr().out, "step 2: rotation/turns = nan"
    assert f"too fast, seed 0: failed: train: {sentence}" in told and "random, seed 0: done" in told
    assert "small: 1 of 2 runs done" in told
    table = (place / "table.md").read_text()
    assert f"* too fast, seed 0: failed (train: {sentence}" in table
    assert re.search(r"^\| random \| \d+\.\d \(1\) \|$", table, re.MULTILINE)
    before = untouched(place)
    assert main(words) == 1
    assert "failed before (train: step 2" in (told := capsys.readouterr().out)
    assert "--retry-failed" in told and untouched(place) == before
    assert main([*words, "--dry-run"]) == 0
    assert "runs: 2 (1 failed, 1 done), 1 of them trained" in capsys.readouterr().out
    assert main([*words, "--retry-failed"]) == 1
    changed = {name for name, when in untouched(place).items() if before[name] != when}
    assert changed == {str(place / "too-fast" / "seed_0.log")}
    assert (place / "too-fast" / "seed_0.log").read_text().count("$ vssl train") == 2


def test_the_untrained_cell_is_the_random_baseline(tmp_path: Path) -> None:
    """The same weights and the same numbers as `--baseline random` of a trained run with the same seed."""
    run = runs_of(read_sweep(sweep_file(tmp_path, RANDOM, seeds=[3])), tmp_path / "sweep")[0]
    command = run.next_command()
    assert command is not None and command[0] == "evaluate"
    assert main(command) == 0 and run.standing == "done" and run.next_command() is None
    assert load_backbone(run.folder).card["steps"] == 0
    trained = tmp_path / "trained"
    config = tmp_path / "trained.yaml"
    config.write_text(yaml.safe_dump(base(seed=3)))
    assert main(["train", "--config", str(config), "--run", str(trained)]) == 0
    options = run.sweep.evaluation_overrides(["retrieval"])
    words = ["evaluate", "--run", str(trained), "--evaluations", "retrieval", "--baseline", "random", *options]
    assert main(words) == 0
    beside = json.loads((trained / "evaluations" / "retrieval.json").read_text())
    alone = run.result("retrieval", *run.judged_on)
    assert alone is not None and alone["metrics"] == beside["baselines"]["random"]["metrics"]
    assert {key: alone["hashes"][key] for key in ("protocol", "split")} == {
        key: beside["hashes"][key] for key in ("protocol", "split")
    }
    other = SweepRun(run.sweep, run.cell, 4, run.place)
    other.next_command()
    assert (other.folder / WEIGHTS).read_bytes() != (run.folder / WEIGHTS).read_bytes()


def test_an_evaluation_of_other_weights_does_not_count(tmp_path: Path) -> None:
    (run,) = runs_of(read_sweep(sweep_file(tmp_path, RANDOM)), tmp_path / "sweep")
    assert main(run.next_command() or []) == 0
    assert run.missing == {}
    save_untrained(run.cell.with_seed(1), run.folder)
    assert list(run.missing.values()) == [["retrieval"]] and run.standing == "half done"


def process(*words: str) -> subprocess.Popen[str]:
    """`python tools/sweep.py WORDS` in a session of its own."""
    return subprocess.Popen(
        [sys.executable, str(ROOT / "tools" / "sweep.py"), *words],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True,
    )  # fmt: skip


def finish(*words: str) -> str:
    """What a sweep that succeeds prints."""
    running = process(*words)
    told, _ = running.communicate(timeout=PATIENCE)
    assert running.returncode == 0, told
    return told


def wait_for_step(folder: Path, running: subprocess.Popen[str]) -> None:
    """Until a run has logged a step."""
    until = time.monotonic() + PATIENCE
    while not ((folder / "metrics.jsonl").exists() and (folder / "metrics.jsonl").stat().st_size):
        assert running.poll() is None and time.monotonic() < until, running.communicate()[0]
        time.sleep(0.005)


def worker_of(folder: Path) -> int:
    """The process that trains in this folder."""
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                words = (entry / "cmdline").read_bytes().decode().split("\0")
            except OSError:
                continue
            if "train" in words and str(folder) in words:
                return int(entry.name)
    return 0


CELLS = [RANDOM, {"name": "A", "plugins": ["rotation"]}, {"name": "B", "plugins": {"rotation": {"layers": 1}}}]
LONG = {"base": base(epochs=40, checkpoint={"every_steps": 5})}


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a sweep of three cells that nobody disturbs, two runs at a time."""
    place = tmp_path_factory.mktemp("unbroken")
    told = finish(sweep_file(place, *CELLS, **LONG), "--run", str(place / "run"), "--parallel", "2")
    assert told.index("A, seed 0: started") < told.index("random, seed 0: done"), "two at a time"
    assert "3 of 3 runs done" in told
    return place / "run"


def assert_same(one: Path, other: Path) -> None:
    """Two sweeps have the same weights, bit for bit, and the same table."""
    for folder in ("a/seed_0", "b/seed_0", "random/seed_0"):
        assert (one / folder / WEIGHTS).read_bytes() == (other / folder / WEIGHTS).read_bytes()
    states = [checkpoint.load(place / "a/seed_0" / checkpoint.NAME) for place in (one, other)]
    assert_equal(states[0]["ensemble"], states[1]["ensemble"])
    assert (one / "table.csv").read_text() == (other / "table.csv").read_text()


@pytest.mark.slow
def test_runs_are_what_vssl_train_makes_of_their_configuration(unbroken: Path, tmp_path: Path) -> None:
    config = unbroken / "b" / "seed_0.yaml"
    assert main(["train", "--config", str(config), "--run", str(tmp_path / "run")]) == 0
    assert (tmp_path / "run" / WEIGHTS).read_bytes() == (unbroken / "b" / "seed_0" / WEIGHTS).read_bytes()


@pytest.mark.slow
def test_a_finished_sweep_is_left_alone_and_grows(unbroken: Path, tmp_path: Path) -> None:
    """A seed and an evaluation are added: only what is missing is done, and the table holds what the runs found."""
    place = tmp_path / "run"
    shutil.copytree(unbroken, place)
    before = untouched(place)
    told = finish(sweep_file(tmp_path, *CELLS, **LONG), "--run", str(place))
    assert "started" not in told and untouched(place) == before
    more = {**LONG, "seeds": [0, 1], "evaluations": {**QUICK, "linear": {"clips": 2, "epochs": 2}}}
    told = finish(sweep_file(tmp_path, RANDOM, CELLS[1], CELLS[2], **more), "--run", str(place), "--parallel", "2")
    assert sorted(re.findall(r"^(.*): started: train$", told, re.MULTILINE)) == ["A, seed 1", "B, seed 1"]
    assert all(untouched(place)[name] == when for name, when in before.items() if name.endswith(WEIGHTS))
    with open(place / "table.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [(row["cell"], row["plugins"]) for row in rows] == [("random", ""), ("A", "rotation"), ("B", "rotation")]
    for row, name, metric in product(rows, ("retrieval/r@1", "linear/top1"), ("mean", "std")):
        evaluation, _, what = name.partition("/")
        paths = (place / row["cell"].lower()).glob(f"seed_?/evaluations/{evaluation}.json")
        found = [json.loads(path.read_text())["metrics"][what] for path in paths]
        expected = statistics.mean(found) if metric == "mean" else statistics.stdev(found)
        assert row[f"folder/{name} seeds"] == "2"
        assert float(row[f"folder/{name} {metric}"]) == pytest.approx(expected, rel=1e-5, abs=1e-9)


@pytest.mark.slow
def test_a_killed_sweep_goes_on(unbroken: Path, tmp_path: Path) -> None:
    """SIGKILL to the sweep: its run saves and leaves, and the same command ends with the same weights."""
    path, place = sweep_file(tmp_path, *CELLS, **LONG), tmp_path / "run"
    running = process(path, "--run", str(place))
    wait_for_step(place / "a" / "seed_0", running)
    running.kill()
    running.communicate(timeout=PATIENCE)
    told = finish(path, "--run", str(place))
    assert "random, seed 0: started" not in told, "what is done is skipped"
    assert "saved; start the same command again" in (place / "a" / "seed_0.log").read_text()
    assert_same(unbroken, place)


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_sweep_saves_leaves_and_goes_on(unbroken: Path, tmp_path: Path, number: int) -> None:
    path, place = sweep_file(tmp_path, *CELLS, **LONG), tmp_path / "run"
    running = process(path, "--run", str(place), "--parallel", "2")
    wait_for_step(place / "b" / "seed_0", running)
    running.send_signal(number)
    told, _ = running.communicate(timeout=PATIENCE)
    assert running.returncode == 128 + number
    assert f"interrupted by {signal.Signals(number).name} and saved; start the same command again to go on" in told
    assert "Traceback" not in told and not worker_of(place / "b" / "seed_0")
    assert "not done yet: " in (place / "table.md").read_text()
    assert (place / "b" / "seed_0" / checkpoint.NAME).exists()
    finish(path, "--run", str(place), "--parallel", "2")
    assert_same(unbroken, place)


@pytest.mark.slow
def test_a_killed_cell_does_not_end_the_others(unbroken: Path, tmp_path: Path) -> None:
    """It counts as failed; done again on request, it goes on from its last checkpoint to the same weights."""
    path, place = sweep_file(tmp_path, *CELLS, **LONG), tmp_path / "run"
    running = process(path, "--run", str(place))
    wait_for_step(place / "a" / "seed_0", running)
    os.kill(worker_of(place / "a" / "seed_0"), signal.SIGKILL)
    told, _ = running.communicate(timeout=PATIENCE)
    assert running.returncode == 1
    assert "A, seed 0: failed: train: killed by SIGKILL (if nobody did that, the machine ran out of memory)" in told
    assert "2 of 3 runs done" in told
    finish(path, "--run", str(place), "--retry-failed")
    assert_same(unbroken, place)


# What a process says and sees -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("log", "code", "told"),
    [
        ("vssl train: data: no video\n", 2, "data: no video"),
        ("vssl train: earlier\nvssl evaluate: late: one\nafter it\n", 2, "late: one"),
        ("Traceback\n  line\nValueError: odd\n\n", 1, "ValueError: odd"),
        ("", -9, "killed by SIGKILL"),
        ("vssl train: no\n", -11, "killed by SIGSEGV; see "),
        ("", 3, "ended with 3 and said nothing; see "),
    ],
)
def test_the_reason_is_the_sentence_that_was_told(log: str, code: int, told: str, tmp_path: Path) -> None:
    before = "vssl train: of an earlier try\n"
    (tmp_path / "log").write_text(before + log)
    assert reason(tmp_path / "log", len(before), code).startswith(told)


def test_places_side_by_side_get_gpus_of_their_own() -> None:
    assert devices(0, []) == devices(3, ["2"]) == {}
    assert [devices(slot, ["4", "7"])["CUDA_VISIBLE_DEVICES"] for slot in range(4)] == ["4", "7", "4", "7"]


# What it will cost ----------------------------------------------------------------------------------------------------


def test_a_measured_step_becomes_hours(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Steps are those of the list, hours those of all runs that are left, the room that of a real run's folder."""
    path = sweep_file(tmp_path, RANDOM, TURNS, seeds=[0, 1])
    assert main(["sweep", path, "--run", str(tmp_path / "run"), "--dry-run", "--measure"]) == 0
    told = capsys.readouterr().out
    assert not (tmp_path / "run").exists() and "no training" in told
    match = re.search(r"(\S+) hours a run: (\d+) steps of (\S+) s; (\d+) MiB", told)
    assert match, told
    cell = read_sweep(path).cells[1]
    found = estimate(cell, given=False)
    videos = int(re.search(r"^(\d+) videos of folder:", found.listing.told)[1])  # type: ignore[index]
    assert int(match[2]) == found.steps == videos // 4
    assert float(match[1]) == pytest.approx(int(match[2]) * float(match[3]) / 3600, rel=0.05)
    total = re.search(r"estimate: (\S+) hours of one device in all", told)
    assert total and float(total[1]) == pytest.approx(2 * float(match[1]), rel=0.05)
    assert main(["train", "--config", run_file(tmp_path, cell), "--run", str(tmp_path / "one")]) == 0
    held = sum((tmp_path / "one" / name).stat().st_size for name in ("checkpoint.pt", WEIGHTS))
    assert found.bytes == pytest.approx(held, rel=0.25)


def run_file(place: Path, cell: Cell) -> str:
    """The configuration of a cell's run."""
    path = place / "one.yaml"
    path.write_text(yaml.safe_dump(to_tree(cell.with_seed(0))))
    return str(path)


def test_measuring_is_for_a_dry_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "--measure: belongs to --dry-run" in refused(capsys, sweep_file(tmp_path, TURNS), "--measure")


# The files that ship --------------------------------------------------------------------------------------------------


@pytest.mark.slow  # every cell is built
@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.stem)
def test_shipped_sweeps_can_be_planned(path: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["sweep", str(path), "--run", str(tmp_path / "run"), "--dry-run"]) == 0
    told = capsys.readouterr().out
    found = read_sweep(str(path))
    assert f"runs: {len(found.cells) * len(found.seeds)} (" in told and "to do" in told
    assert all(f"\n{cell.name}\n" in f"\n{told}" for cell in found.cells)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.stem)
def test_shipped_sweeps_can_be_read_and_tell_their_command(path: Path) -> None:
    assert read_sweep(str(path)).cells
    head = path.read_text(encoding="utf-8").partition("\nbase:")[0]
    assert f"vssl sweep configs/sweeps/{path.name} " in head


def shipped(name: str) -> dict[str, Any]:
    """{cell: (its paper's UCF101 and HMDB51 numbers, its configuration)} of a sweep that ships."""
    cells = read_sweep(str(ROOT / f"configs/sweeps/cstp_{name}.yaml")).cells
    keys = ("ucf101/finetune/top1", "hmdb51/finetune/top1")
    return {cell.name: ([cell.paper.get(key) for key in keys], to_tree(cell.config)) for cell in cells}


def test_cells_that_the_papers_tables_repeat_are_the_same_run() -> None:
    """Each pair has the same number in the paper, so it is one experiment; here it is one configuration."""
    one, two, three, four, five = (shipped(f"table{number}") for number in range(1, 6))
    assert [len(table) for table in (one, two, three, four, five)] == [11, 16, 16, 6, 4]
    pairs = [
        (one["4 scratch, rate and rotation augmentation"], two["1 scratch"]),
        (one["6 rate, rotation augmentation"], two["3 rate"]),
        (one["8 rotation, rate augmentation"], two["4 rotation"]),
        (one["11 STOR, rate and rotation augmentation"], two["5 STOR"]),
        (two["5 STOR"], four["5 candidates"]),
        (one["9 STOR"], five["spatial and temporal"]),
        (one["1 scratch"], five["scratch"]),
        (two["2 BYOL"], three["BYOL"]),
        (two["9 BYOL + rate"], three["BYOL + rate"]),
        (two["13 BYOL + rate + rotation"], three["BYOL + rate + rotation"]),
        (two["16 BYOL + rate + rotation + STOR"], three["BYOL + rate + rotation + STOR"]),
    ]
    for (numbers, config), (others, other) in pairs:
        assert numbers[0] == others[0] is not None
        assert None in (numbers[1], others[1]) or numbers[1] == others[1]
        assert config == other
    configs = [json.dumps(config) for _, config in two.values()]
    assert len(set(configs)) == 16


@pytest.mark.parametrize("name", ["simclr", "moco", "simsiam"])
def test_table_3_trains_what_the_papers_files_say(name: str) -> None:
    from vssl_core.run.build import choose

    cells = {cell.lower(): config for cell, (_, config) in shipped("table3").items()}
    papers = choose(load_config(str(ROOT / f"configs/papers/cstp_{name}_ucf101_r2plus1d.yaml"))).config
    assert cells[f"{name} + rate + rotation + stor"] == to_tree(papers)


def test_the_miniature_is_six_cells_of_table_2() -> None:
    small, whole = shipped("table2_miniature"), shipped("table2")
    whole = {name.partition(" ")[2]: row for name, row in whole.items()}
    assert len(small) == 6 and set(small) < set(whole)
    for name, (numbers, config) in small.items():
        assert numbers == whole[name][0]
        assert (
            list(config["plugins"]) == list(whole[name][1]["plugins"])
            and config["weights"].items() <= (whole[name][1]["weights"] | {"stor": 1.0}).items()
        )


# The page -------------------------------------------------------------------------------------------------------------


def test_sweep_files_of_the_page_can_be_read() -> None:
    blocks = re.findall(r"```yaml sweep\n(.*?)```", (ROOT / "docs/sweeps.md").read_text(encoding="utf-8"), re.DOTALL)
    assert len(blocks) >= 3
    for block in blocks:
        SweepFile.model_validate(yaml.safe_load(block))


def test_the_page_names_every_key() -> None:
    text = (ROOT / "docs/sweeps.md").read_text(encoding="utf-8")
    assert all(f"`{key}`" in text for key in SweepFile.model_fields)


def test_a_wrong_sweep_is_a_config_error() -> None:
    with pytest.raises(ConfigError, match="cannot be read"):
        read_sweep("no/such/file.yaml")
