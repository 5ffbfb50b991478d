"""Runs judged on other data than they were trained on: where results lie, and the columns of a sweep's table."""

from __future__ import annotations

import csv
import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
import yaml
from small_runs import videos_folder
from sweep_files import base, sweep_file

from vssl_core.cli import main
from vssl_core.commands.evaluate import evaluate_run
from vssl_core.config import DataSection
from vssl_core.data.named import DataSet, data_set
from vssl_core.run.sweep import read_sweep
from vssl_core.run.sweep_runs import SweepRun, held, runs_of
from vssl_core.run.table import table_of
from vssl_core.run.weights import WEIGHTS

RANDOM = {"name": "random", "plugins": []}
TURNS = {"name": "Turns", "plugins": ["rotation"]}
QUICK = {"retrieval": {"clips": 2, "stages": "last"}, "linear": {"clips": 2, "epochs": 2}}


@pytest.fixture(scope="module")
def others(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Two more folders of videos: `swapped` trains on what the run is tested on, `few` has two test videos less."""
    place = tmp_path_factory.mktemp("others")
    shutil.copytree(videos_folder() / "train", place / "swapped" / "test")
    shutil.copytree(videos_folder() / "test", place / "swapped" / "train")
    shutil.copytree(videos_folder(), place / "few")
    for side in ("left", "right"):
        sorted((place / "few" / "test" / side).iterdir())[0].unlink()
    return {name: place / name for name in ("swapped", "few")}


def found(place: Path) -> dict[str, Any]:
    """What an evaluation wrote."""
    return json.loads(place.read_text(encoding="utf-8"))


def told_by(capsys: pytest.CaptureFixture[str], *words: str) -> str:
    """The one sentence that a command line is answered with, the exit code being 2."""
    assert main(words) == 2
    told = capsys.readouterr().err
    assert told.startswith(f"vssl {words[0]}: ") and told.count("\n") == 1, told
    return told


# A data set by its name -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("ucf101", ("ucf101", "ucf101", None)),
        ("ucf101:/data/ucf", ("ucf101", "ucf101", "/data/ucf")),
        ("diving48=folder:/data/diving", ("diving48", "folder", "/data/diving")),
        ("ours=demo", ("ours", "demo", None)),
        ("theirs:/data/a=b", ("theirs", "theirs", "/data/a=b")),
        ("of_2-me=csv:/data/a=b:c", ("of_2-me", "csv", "/data/a=b:c")),
    ],
)
def test_a_data_set_is_named_by_you_or_after_its_source(text: str, expected: tuple[str, str, str | None]) -> None:
    read = data_set(text)
    assert (read.name, read.source, read.root) == expected
    assert data_set(str(read)) == read


def test_a_path_may_be_named_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also a path with a sign of equality in it."""
    monkeypatch.chdir(tmp_path)
    for name in ("a=b", "c"):
        (tmp_path / name).mkdir()
    assert data_set("a=b") == DataSet("folder", "folder", "a=b")
    assert data_set("ours=./c") == DataSet("ours", "folder", "./c")


def test_the_same_data_has_the_same_source_and_root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    own = DataSection(source="folder", root=str(tmp_path / "videos"))
    assert DataSet("x", "folder", "videos/").is_of(own) and not DataSet("x", "csv", "videos").is_of(own)
    assert not DataSet("x", "folder", "other").is_of(own) and not DataSet("x", "folder", None).is_of(own)


# One run --------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run with a retrieval of its own."""
    place = tmp_path_factory.mktemp("trained")
    (place / "run.yaml").write_text(yaml.safe_dump(base()))
    assert main(["train", "--config", str(place / "run.yaml"), "--run", str(place / "run")]) == 0
    assert main(["evaluate", "--run", str(place / "run"), "--evaluations", "retrieval"]) == 0
    return place / "run"


def test_results_of_other_data_leave_those_of_the_runs_own_alone(trained: Path, others: dict[str, Path]) -> None:
    words = ["evaluate", "--run", str(trained), "--evaluations", "retrieval"]
    place = trained / "evaluations"
    own = {path.name: path.read_bytes() for path in place.iterdir() if path.is_file()}
    assert set(own) == {"retrieval.json", "retrieval.videos.csv"}
    for data, name in [(f"folder:{others['swapped']}", "folder"), (f"few=folder:{others['few']}", "few")]:
        assert main([*words, "--data", data]) == 0
        assert {path.name for path in (place / name).iterdir()} == set(own)
    assert {path.name: path.read_bytes() for path in place.iterdir() if path.is_file()} == own
    videos = [len((place / name / "retrieval.videos.csv").read_text().splitlines()) - 1 for name in ("folder", "few")]
    assert videos == [12, 2], "of the data that was named"
    splits = [found(path)["hashes"]["split"] for path in sorted(place.rglob("retrieval.json"))]
    assert len(set(splits)) == 3
    assert main([*words, "--data", f"folder:{others['few']}"]) == 0
    one, other = (found(place / name / "retrieval.json")["hashes"] for name in ("folder", "few"))
    assert one["split"] == other["split"], "the later one of a name replaces the earlier one"


def test_the_runs_own_data_is_its_own_under_any_path(
    trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As --data says it, or where it lies now; only a name that you give makes it another's."""
    place = tmp_path / "run"
    shutil.copytree(trained, place)
    shutil.rmtree(place / "evaluations")
    monkeypatch.chdir(videos_folder().parent)
    words = ["evaluate", "--run", str(place), "--evaluations", "retrieval"]
    for more in (["--data", f"folder:{videos_folder().name}"], [f"data.root={videos_folder()}"]):
        assert main([*words, *more]) == 0
        assert not [path for path in (place / "evaluations").iterdir() if path.is_dir()]
        shutil.rmtree(place / "evaluations")
    assert main([*words, "--data", f"again=folder:{videos_folder()}"]) == 0
    assert [path.name for path in (place / "evaluations").iterdir()] == ["again"]


# A sweep --------------------------------------------------------------------------------------------------------------


def logged(place: Path) -> list[str]:
    """The commands that were called, in order within each run."""
    logs = [path.read_text(encoding="utf-8") for path in sorted(place.glob("*/seed_0.log"))]
    return [" ".join(line.split()[2:3]) for text in logs for line in text.splitlines() if line.startswith("$ vssl")]


@pytest.mark.slow
def test_a_sweep_is_judged_on_two_other_folders_and_then_on_its_own(
    tmp_path: Path, others: dict[str, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    """A column for each data set; one that is added later, and one that has moved, ask only for what is missing."""
    paper = {"few/retrieval/r@1": 50.0, "swapped/linear/top1": 60.0}
    keys: dict[str, Any] = {"evaluations": QUICK, "evaluation_data": [f"few=folder:{others['few']}"]}
    path = sweep_file(tmp_path, RANDOM, {**TURNS, "paper": paper}, **keys)
    place = tmp_path / "run"
    words = ["sweep", path, "--run", str(place)]
    assert main([*words, "--evaluation-data", f"swapped=folder:{others['swapped']}", "--dry-run"]) == 0
    assert "evaluations: retrieval, linear, on few, swapped\n" in capsys.readouterr().out and not place.exists()
    assert main(words) == 0
    assert logged(place) == ["evaluate", "train", "evaluate"]
    assert not list(place.glob("*/seed_0/evaluations/*.json")), "nobody asked for the training data"
    before = {path: path.stat().st_mtime_ns for path in place.rglob("few/*")}
    weights = {path: path.read_bytes() for path in place.rglob(WEIGHTS)}
    assert len(before) == 8 and len(weights) == 2
    moved = tmp_path / "moved"
    shutil.copytree(others["few"], moved)
    words += ["--evaluation-data", f"few=folder:{moved}", "--evaluation-data", f"swapped=folder:{others['swapped']}"]
    assert main(words) == 0
    assert main([*words, "--evaluation-data", f"folder:{videos_folder()}"]) == 0
    assert "2 of 2 runs done" in capsys.readouterr().out
    assert logged(place) == [*["evaluate"] * 3, "train", *["evaluate"] * 3]
    assert {path: path.stat().st_mtime_ns for path in before} == before
    assert {path: path.read_bytes() for path in weights} == weights
    assert len(list(place.glob("*/seed_0/evaluations/*.json"))) == 4, "the training data has no folder of its own"

    with open(place / "table.csv", newline="") as file:
        random, turns = csv.DictReader(file)
    for row, cell in ((random, "random"), (turns, "turns")):
        for data, below in {"few": "few/", "swapped": "swapped/", "folder": ""}.items():
            for metric in ("retrieval/r@1", "linear/top1"):
                evaluation, _, name = metric.partition("/")
                number = found(place / cell / f"seed_0/evaluations/{below}{evaluation}.json")["metrics"][name]
                assert float(row[f"{data}/{metric} mean"]) == pytest.approx(number, rel=1e-5, abs=1e-9)
    head = next(line for line in (place / "table.md").read_text().splitlines() if line.startswith("| cell "))
    assert " few/retrieval/r@1 | few/retrieval/r@1, paper |" in head
    assert " swapped/linear/top1 | swapped/linear/top1, paper |" in head and "(a)" not in head
    with open(place / "significance.csv", newline="") as file:
        videos = {row["metric"]: row["videos"] for row in csv.DictReader(file)}
    assert {name: videos[f"{name}/linear/top1"] for name in ("few", "swapped", "folder")} == {
        "few": "2", "swapped": "12", "folder": "4",
    }  # fmt: skip

    assert "evaluation_data: 'swapped' gone" in told_by(capsys, "sweep", path, "--run", str(place))
    assert "'few': source: folder -> csv" in told_by(
        capsys, "sweep", path, "--run", str(place), "--evaluation-data", f"few=csv:{moved}"
    )


@pytest.mark.slow
def test_an_evaluation_that_fails_on_one_data_set_is_tried_again_alone(
    tmp_path: Path, others: dict[str, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    """Videos without labels: the other data set's results stay, and with labels the run is done."""
    bare = tmp_path / "bare"
    for side in ("train", "test"):
        shutil.copytree(videos_folder() / side / "left", bare / side)
    keys = {"evaluations": {"retrieval": QUICK["retrieval"]}, "evaluation_data": [f"few=folder:{others['few']}"]}
    words = ["sweep", sweep_file(tmp_path, RANDOM, **keys), "--run", str(tmp_path / "run")]
    assert main([*words, "--evaluation-data", f"bare=folder:{bare}"]) == 1
    assert "random, seed 0: failed: evaluate: evaluation 'retrieval': needs labels" in capsys.readouterr().out
    (kept,) = (tmp_path / "run").rglob("retrieval.json")
    before = kept.stat().st_mtime_ns
    assert kept.parent.name == "few" and "few/retrieval/r@1" in (tmp_path / "run/table.md").read_text()
    assert main([*words, "--evaluation-data", f"bare=folder:{others['swapped']}", "--retry-failed"]) == 0
    assert kept.stat().st_mtime_ns == before and "1 of 1 runs done" in capsys.readouterr().out


def test_the_job_of_a_cluster_does_all_data_sets(tmp_path: Path, others: dict[str, Path]) -> None:
    """What an array's element is called with, called here; the training data may have moved since."""
    sets = [f"few=folder:{others['few']}", f"folder:{tmp_path / 'moved'}"]
    path = sweep_file(tmp_path, RANDOM, evaluations={"retrieval": QUICK["retrieval"]})
    (run,) = runs_of(read_sweep(path), tmp_path / "run")
    assert run.next_command() is not None
    shutil.copytree(videos_folder(), tmp_path / "moved")
    (later,) = runs_of(read_sweep(path, ("folder", str(tmp_path / "moved")), evaluation_data=sets), tmp_path / "run")
    assert [data for _, data, _ in later.to_evaluate] == [f"few=folder:{others['few']}", None]
    evaluate_run(str(later.folder), later.to_evaluate)
    assert later.standing == "done" and later.next_command() is None
    own = found(later.folder / "evaluations/retrieval.json")
    assert own["protocol"]["data"].startswith("moved")


def test_each_cell_knows_its_own_data(tmp_path: Path) -> None:
    """Where cells differ in what they train on, the same data set is one cell's own and another's other."""
    grid = {"data.root": ["/one", "/two"]}
    found = read_sweep(sweep_file(tmp_path, grid=grid), evaluation_data=["a=folder:/one", "b=folder:/two"])
    one, two = runs_of(found, tmp_path / "run")
    a, b = found.evaluation_data
    assert (one.results(a), one.results(b)) == (one.folder / "evaluations", one.folder / "evaluations" / "b")
    assert (two.results(a), two.results(b)) == (two.folder / "evaluations" / "a", two.folder / "evaluations")
    alone = runs_of(read_sweep(sweep_file(tmp_path, grid=grid)), tmp_path / "run")
    assert [SweepRun.results(run, *run.judged_on) for run in alone] == [run.folder / "evaluations" for run in alone]
    assert table_of(found, [one, two]).columns == ()


def test_the_command_line_adds_data_sets_and_replaces_those_of_a_name(tmp_path: Path) -> None:
    path = sweep_file(tmp_path, RANDOM, evaluation_data=["ucf101:/a", "hmdb51:/b"])
    told = read_sweep(path, evaluation_data=["ours=csv:/c", "ucf101:/d"]).evaluation_data
    assert [str(data) for data in told] == ["ucf101=ucf101:/d", "hmdb51=hmdb51:/b", "ours=csv:/c"]
    with held(read_sweep(path), tmp_path / "run"):
        pass
    with held(read_sweep(path, evaluation_data=["ours=csv:/c", "ucf101:/d"]), tmp_path / "run"):
        pass


@pytest.mark.parametrize(
    ("listed", "words", "told"),
    [
        (["folder:/a", "folder:/b"], [], r"small\.yaml: evaluation_data: two data sets are named 'folder'"),
        ([], ["x=folder:/a", "x=csv:/b"], r"--evaluation-data: two data sets are named 'x'; give one a name of"),
        ([], ["ufc101:/a"], r"evaluation data 'ufc101': .*no source is named 'ufc101' .*did you mean 'ucf101'\?"),
        ([], ["ucf101:/nowhere"], r"evaluation data 'ucf101': data source 'ucf101': /nowhere: no such folder"),
        (["x=folder:/nowhere"], [], r"evaluation data 'x': data source 'folder': /nowhere: no such folder"),
        (["/nowhere"], [], r"small\.yaml: evaluation_data: /nowhere: no such file or folder"),
        ([], ["my data=folder:/a"], r"--evaluation-data: 'my data' cannot name a data set; give it a name of letters"),
        ("ucf101:/a", [], r"small\.yaml: evaluation_data: "),
    ],
)
def test_what_is_wrong_with_evaluation_data_is_one_sentence(
    listed: Any, words: list[str], told: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = sweep_file(tmp_path, RANDOM, TURNS, evaluation_data=listed)
    flags = [flag for word in words for flag in ("--evaluation-data", word)]
    assert re.search(told, told_by(capsys, "sweep", path, "--run", str(tmp_path / "run"), *flags))
    assert not (tmp_path / "run").exists()
