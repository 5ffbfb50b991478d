"""A sweep on a real Slurm: arrays that train and evaluate, watched, left, taken up again, and told where they fail."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
from pathlib import Path

import pytest
from slurm.cluster import Cluster
from slurm.jobs import PATIENCE, VSSL, wait_for
from small_runs import assert_equal, videos_folder
from sweep_files import sweep_file

from vssl_core import load_backbone

pytestmark = pytest.mark.slow
LAUNCH = {"launch.timeout_minutes": 20, "launch.cpus_per_task": 1}
TURNS = {"name": "Turns", "plugins": ["rotation"], "overrides": LAUNCH}
RANDOM = {"name": "random", "plugins": [], "overrides": LAUNCH}
TWO_RANKS = {"name": "two ranks", "plugins": ["rotation"], "overrides": {**LAUNCH, "launch.tasks_per_node": 2}}
TOO_MANY = {"name": "too many", "plugins": ["rotation"], "overrides": {**LAUNCH, "batch_size": 1000}}


@pytest.fixture(scope="module")
def environment(cluster: Cluster) -> dict[str, str]:
    """What commands need to find it."""
    return {**cluster.environment, "OMP_NUM_THREADS": "1"}


def command(path: str, run: Path, *more: str) -> list[str]:
    """The command line of a sweep on the cluster."""
    return [*VSSL, "sweep", path, "--run", str(run), "--launch", "slurm", *more]


def test_a_sweep_becomes_arrays_and_then_a_table(environment: dict[str, str], tmp_path: Path) -> None:
    """The runs are those of a sweep here; a cell that fails is told with its error, and is not in the way."""
    path = sweep_file(tmp_path, RANDOM, TURNS, TWO_RANKS, TOO_MANY, seeds=[0, 1])
    done = subprocess.run(
        command(path, tmp_path / "run", "--parallel", "2"), env=environment, capture_output=True, text=True,
        timeout=2 * PATIENCE,
    )  # fmt: skip
    assert done.returncode == 1, done.stderr  # one cell has failed
    assert "6 of 8 runs done" in done.stdout
    failed = "too many, seed 1: failed: train: "
    (line,) = [line for line in done.stdout.splitlines() if line.startswith(failed)]
    assert "batch_size: 1000" in line and "videos" in line
    here = tmp_path / "here"
    (tmp_path / "local").mkdir()
    words = [*VSSL, "sweep", sweep_file(tmp_path / "local", RANDOM, TURNS), "--run", str(here)]
    local = subprocess.run(words, env=environment, capture_output=True, text=True, timeout=PATIENCE)
    assert local.returncode == 0
    for cell in ("random", "turns"):
        ours, theirs = (load_backbone(place / cell / "seed_0").state_dict() for place in (tmp_path / "run", here))
        assert_equal(ours, theirs)
    jobs = json.loads((tmp_path / "run" / "jobs.json").read_text())
    assert set(jobs["random, seed 0"]) == {"evaluate"} and set(jobs["Turns, seed 0"]) == {"train", "evaluate"}
    arrays = {job["train"].partition("_")[0] for name, job in jobs.items() if "random" not in name}
    assert len(arrays) == 2  # those that ask for two tasks are an array of their own
    again = subprocess.run(command(path, tmp_path / "run"), env=environment, capture_output=True, text=True)
    assert again.returncode == 1 and "submitted" not in again.stdout and "failed before" in again.stdout


def test_who_watches_may_leave_and_come_back(environment: dict[str, str], tmp_path: Path) -> None:
    """The jobs go on meanwhile, and nothing is submitted twice."""
    long = {**TURNS, "overrides": {**LAUNCH, "epochs": 20}}
    path, folder = sweep_file(tmp_path, long, seeds=[0]), tmp_path / "run"
    first = subprocess.Popen(command(path, folder), env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
                             text=True)  # fmt: skip
    wait_for("a step", (folder / "turns" / "seed_0" / "metrics.jsonl").exists)
    before = (folder / "jobs.json").read_text()
    first.send_signal(signal.SIGINT)
    said = first.communicate(timeout=PATIENCE)[1]
    assert first.returncode == 130 and "its jobs go on" in said and "scancel" in said
    second = subprocess.run(command(path, folder), env=environment, capture_output=True, text=True, timeout=PATIENCE)
    assert second.returncode == 0, second.stderr
    assert (folder / "jobs.json").read_text() == before and "1 of 1 runs done" in second.stdout


def test_a_cancelled_array_is_a_failure_that_can_be_retried(environment: dict[str, str], tmp_path: Path) -> None:
    path, folder = (
        sweep_file(tmp_path, {**TURNS, "overrides": {**LAUNCH, "epochs": 300}}, seeds=[0, 1]),
        tmp_path / "run",
    )
    first = subprocess.Popen(command(path, folder), env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
                             text=True)  # fmt: skip
    wait_for("a step", (folder / "turns" / "seed_0" / "metrics.jsonl").exists)
    array = json.loads((folder / "jobs.json").read_text())["Turns, seed 0"]["train"].partition("_")[0]
    subprocess.run(["scancel", array], env=environment, check=True)
    out, _ = first.communicate(timeout=PATIENCE)
    assert first.returncode == 1
    assert out.count("failed: train: job") == 2 and "CANCELLED" in out, out
    again = subprocess.run(
        command(path, folder, "--retry-failed"), env=environment, capture_output=True, text=True, timeout=2 * PATIENCE
    )
    assert again.returncode == 0, again.stdout + again.stderr
    assert "2 of 2 runs done" in again.stdout


def test_a_partition_that_is_not_there(environment: dict[str, str], tmp_path: Path) -> None:
    path = sweep_file(tmp_path, {**TURNS, "overrides": {**LAUNCH, "launch.partition": "mian"}})
    done = subprocess.run(command(path, tmp_path / "run"), env=environment, capture_output=True, text=True)
    assert done.returncode == 2 and "launch.partition: this cluster has no partition 'mian'; did you mean 'main'?" in (
        done.stderr
    )
    assert not (tmp_path / "run").exists()


def test_without_slurm(tmp_path: Path) -> None:
    nowhere = {**os.environ, "PATH": str(tmp_path)}
    done = subprocess.run(
        command(sweep_file(tmp_path, TURNS), tmp_path / "run"), env=nowhere, capture_output=True, text=True
    )
    assert done.returncode == 2 and "--launch slurm: there is no Slurm on this machine" in done.stderr
    assert not (tmp_path / "run").exists()


def test_runs_are_judged_on_other_data(environment: dict[str, str], tmp_path: Path) -> None:
    """One job makes the evaluations on all data sets; where one is added later, only its own are made."""
    shutil.copytree(videos_folder(), tmp_path / "copy")
    data = [f"--evaluation-data={name}=folder:{tmp_path / 'copy'}" for name in ("one", "two")]
    path, folder = sweep_file(tmp_path, TURNS), tmp_path / "run"
    written: dict[Path, int] = {}
    for number, names in enumerate((data, [*data, f"--evaluation-data=folder:{videos_folder()}"]), 1):
        done = subprocess.run(
            command(path, folder, *names), env=environment, capture_output=True, text=True, timeout=PATIENCE
        )
        assert done.returncode == 0, done.stdout + done.stderr
        assert "1 of 1 runs done" in done.stdout and len(list((folder / "arrays").glob("evaluate_*"))) == number
        results = sorted((folder / "turns" / "seed_0" / "evaluations").rglob("retrieval.json"))
        assert {result.parent.name for result in results} >= {"one", "two"} and len(results) == number + 1
        written = written or {result: result.stat().st_mtime_ns for result in results}
        assert all(result.stat().st_mtime_ns == when for result, when in written.items())
    table = (folder / "table.md").read_text()
    assert all(f" {name}/retrieval/r@1 |" in table for name in ("one", "two", "folder"))
