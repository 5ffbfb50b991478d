"""`--launch`: what is refused before anything is written, what is remembered, and jobs in the background here.

Jobs on a real Slurm are in test_slurm.py.
"""

from __future__ import annotations

import os
import re
import signal
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest
from slurm.jobs import Launched, wait_for, write_trouble
from small_runs import assert_equal
from small_runs import settings as small_settings

from vssl_core import cli
from vssl_core.config import LaunchSection, RunConfig, differences, to_tree
from vssl_core.errors import ConfigError, VsslError
from vssl_core.run import checkpoint, launch, slurm
from vssl_core.run import launch_records as records
from vssl_core.run.launch_state import describe, is_over
from vssl_core.run.launch_task import LostRank, alone, of_other_ranks

PLUGIN = {"simclr": {}}


def settings(**section: Any) -> RunConfig:
    """A small configuration with these keys of `launch`."""
    return small_settings(PLUGIN, launch=section, checkpoint={"every_minutes": 10})


# What is refused ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"launch": {"nodes": 2}}, "launch.nodes: 2: --launch local has this machine alone; set it to 1"),
        ({"launch": {"tasks_per_node": 3}}, "batch_size: 4 cannot be divided over 3 ranks"),
        ({"launch": {"tasks_per_node": 2}, "optim": {"accumulate": 4}}, "2 ranks (launch.nodes times tasks) and 4"),
        ({"launch": {"gpus_per_node": 1}}, "launch.gpus_per_node: 1 GPUs would idle under device.kind: cpu"),
        ({"device": {"kind": "cuda"}}, "device.kind: cuda needs GPUs, and launch.gpus_per_node is 0"),
        ({"launch": {"timeout_minutes": 2}}, "launch.timeout_minutes: 2 leaves no time to train"),
        ({"launch": {"timeout_minutes": 11.5}}, "11.5 is too short for one checkpoint every 10 minutes"),
    ],
)
def test_a_job_that_could_not_train_is_a_sentence(changes: dict[str, Any], sentence: str) -> None:
    config = small_settings(PLUGIN, **{"checkpoint": {"every_minutes": 10}, **changes})
    with pytest.raises(ConfigError, match=re.escape(sentence)):
        launch.check(config, "local")


def test_time_enough_for_one_checkpoint_is_enough() -> None:
    launch.check(settings(timeout_minutes=12), "local")  # told to save after ten


def test_processes_are_one_for_each_gpu() -> None:
    assert LaunchSection(gpus_per_node=4).tasks == LaunchSection(gpus_per_node=4, tasks_per_node=4).tasks == 4
    assert LaunchSection(nodes=3, tasks_per_node=2).ranks == 6 and LaunchSection().ranks == 1
    with pytest.raises(ValueError, match="3 processes cannot share gpus_per_node: 2"):
        LaunchSection(gpus_per_node=2, tasks_per_node=3)


def test_the_section_may_differ_when_a_run_is_resumed() -> None:
    other = settings(nodes=8, partition="other", timeout_minutes=30.0)
    assert differences(to_tree(settings()), to_tree(other)) == []


@pytest.mark.parametrize("words", [[], ["--dry-run"]])
def test_no_slurm_here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any, words: list[str]) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    run = tmp_path / "run"
    line = ["train", "--launch", "slurm", "--plugins", "simclr", "--run", str(run), *words]
    assert cli.main(line) == 2
    told = capsys.readouterr().err
    assert told.startswith("vssl train: --launch slurm: there is no Slurm on this machine (sbatch is not found); ")
    assert len(told.splitlines()) == 1 and not run.exists()


def test_a_folder_of_something_else_is_refused_before_a_job_is(tmp_path: Path, capsys: Any) -> None:
    (tmp_path / "thesis.tex").write_text("years of work")
    assert cli.main(["train", "--launch", "local", "--plugins", "simclr", "--run", str(tmp_path)]) == 2
    assert "is not empty and holds no run" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]


def test_a_failed_submission_leaves_nothing(tmp_path: Path) -> None:
    launched = tmp_path / "runs" / "one" / "launch"
    with pytest.raises(RuntimeError), launch._only_if_it_works(launched):
        (launched / "pickle").write_text("half")
        raise RuntimeError
    assert list(tmp_path.iterdir()) == []
    launched.mkdir(parents=True)
    (launched / "old").write_text("kept")
    with pytest.raises(RuntimeError), launch._only_if_it_works(launched):
        (launched / "pickle").write_text("half")
        raise RuntimeError
    assert [path.name for path in launched.iterdir()] == ["old"]


# What is remembered ---------------------------------------------------------------------------------------------------


def save(launched: Path, number: int) -> None:
    """Another checkpoint."""
    path = launched.parent / records.CHECKPOINT
    path.write_bytes(b"x" * number)
    os.utime(path, ns=(number, number))


def test_starts_without_a_new_checkpoint_are_counted_since_the_last(tmp_path: Path) -> None:
    launched = tmp_path / "launch"
    launched.mkdir()
    verdicts = []
    for saves in (False, False, True, False, False, False):
        records.note_start(launched, "7")
        if saves:
            save(launched, 5)
        verdicts.append(records.given_up(launched, "7", requeues=100, tries=3) is not None)
    assert verdicts == [False, False, False, False, False, True]
    assert "3 starts in a row" in str(records.given_up(launched, "7", requeues=100, tries=3))
    assert records.given_up(launched, "8", requeues=0, tries=1) is None, "another job's starts are its own"


@pytest.mark.parametrize("requeues", [0, 1, 4])
def test_a_job_goes_back_as_often_as_it_may(tmp_path: Path, requeues: int) -> None:
    launched = tmp_path / "launch"
    launched.mkdir()
    starts = 0
    while True:
        records.note_start(launched, "7")
        save(launched, starts := starts + 1)
        if records.given_up(launched, "7", requeues, tries=1):
            break
    assert starts == requeues + 1


def test_failures_of_the_last_start_are_told_once(tmp_path: Path) -> None:
    launched = tmp_path / "launch"
    launched.mkdir()
    records.Submitted("local", "1", 1, 3).write(launched)
    records.note_failure(launched, "1", 0, 2, "old")
    for rank in (0, 1):
        records.note_failure(launched, "1", 1, rank, "the same")
    records.note_failure(launched, "12", 1, 1, "another job's")
    told = describe(tmp_path)
    assert told[:2] == ["job 1 on local: ended", "  rank 0 failed: the same"] and len(told) == 3
    assert str(launched / "1_0_log.out") in told[2]


def test_a_run_that_was_never_launched_has_no_job(tmp_path: Path) -> None:
    assert describe(tmp_path) == []
    launch.refuse_second(tmp_path)


def test_another_process_of_the_same_number_is_not_the_job(tmp_path: Path) -> None:
    assert is_over(tmp_path, records.Submitted("local", str(os.getpid()), 1, 1))


# What is whose fault --------------------------------------------------------------------------------------------------


def caused(error: Exception, cause: Exception) -> Exception:
    """An error as somebody raised it from another."""
    error.__cause__ = cause
    return error


GLOO = "[/pytorch/third_party/gloo/gloo/transport/tcp/pair.cc:537] Read error: Connection reset by peer"


@pytest.mark.parametrize(
    ("error", "others"),
    [
        (RuntimeError(GLOO), True),
        (caused(VsslError("plugin 'x' failed"), RuntimeError(GLOO)), True),
        (LostRank("rank 0 did not come"), True),
        (RuntimeError("size mismatch"), False),
        (ValueError("gloo"), False),
        (ConfigError("batch_size: 5"), False),
    ],
)
def test_losing_another_rank_is_not_failing(error: Exception, others: bool) -> None:
    assert of_other_ranks(error) is others


def test_who_can_be_reached_from_outside() -> None:
    assert alone(["any.name.at.all"])
    assert alone(["localhost", "no-such-node-at-all"])
    assert not alone(["localhost", "192.0.2.1"])


@pytest.mark.parametrize(
    ("told", "reason"),
    [
        ("sbatch: error: one\nsbatch: error: Batch job submission failed: two\n", "Batch job submission failed: two"),
        ("sinfo: fatal: no configuration", "no configuration"),
        ("\n", ""),
    ],
)
def test_the_reason_in_what_slurm_says(told: str, reason: str) -> None:
    assert slurm.last_error(told) == reason


@pytest.mark.parametrize(
    ("limit", "minutes"),
    [
        ("2-01:00:30", 2940.5),
        ("1:00:00", 60),
        ("30:00", 30),
        ("0:30", 0.5),
        ("infinite", float("inf")),
        ("n/a", float("inf")),
    ],
)
def test_time_limits_as_slurm_writes_them(limit: str, minutes: float) -> None:
    assert slurm.minutes_of(limit) == minutes


def test_a_job_within_a_job_does_not_take_itself_for_the_outer_one(monkeypatch: pytest.MonkeyPatch) -> None:
    gone = ["SLURM_JOB_ID", "SLURM_NTASKS", "SLURMD_NODENAME", "SRUN_DEBUG", "SUBMITIT_EXECUTOR", "RANK", "WORLD_SIZE",
            "LOCAL_RANK", "MASTER_PORT", "TORCHELASTIC_RUN_ID", "GROUP_RANK"]  # fmt: skip
    kept = ["SLURM_CONF", "SLURM_JWT", "SBATCH_ACCOUNT", "SQUEUE_FORMAT", "RANKING"]
    for name in (*gone, *kept):
        monkeypatch.setenv(name, "1")
    with launch.as_from_a_shell():
        assert not any(name in os.environ for name in gone) and all(name in os.environ for name in kept)
    assert all(os.environ[name] == "1" for name in (*gone, *kept))


# Jobs on this machine -------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def environment(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """What jobs need to find the plugin that makes trouble."""
    return {**os.environ, "PYTHONPATH": str(write_trouble(tmp_path_factory.mktemp("trouble")))}


def ended(run: Launched) -> bool:
    """Whether nothing of a local job is left."""
    return is_over(run.launched, records.Submitted("local", run.job, 1, 1))


@pytest.mark.slow
def test_two_tasks_in_the_background_leave_before_their_limit_and_go_on(
    environment: dict[str, str], tmp_path: Path
) -> None:
    """The same weights as one start; and what reads the command's output is not kept waiting for the job."""
    runs = [Launched(tmp_path / name, environment, "local") for name in ("whole", "cut")]
    runs[0].submit("launch.tasks_per_node=2")
    wait_for("end", lambda: ended(runs[0]))
    began = time.monotonic()
    told = runs[1].submit(
        "launch.tasks_per_node=2", "plugins.trouble.seconds=3", "launch.timeout_minutes=0.75",
        "launch.signal_seconds=15", "checkpoint.every_minutes=0.4",
    )  # fmt: skip
    assert time.monotonic() - began < 30 and "this machine, in the background" in told and "kill" in told
    assert ": running" in runs[1].status()
    wait_for("end", lambda: ended(runs[1]))
    assert runs[1].starts >= 2 and "done, step 12" in runs[1].status()
    states = [checkpoint.load(run.folder / checkpoint.NAME) for run in runs]
    assert all(state.pop("config") for state in states)
    assert_equal(*states)


@pytest.mark.slow
def test_a_local_job_that_is_killed_gently_has_saved(environment: dict[str, str], tmp_path: Path) -> None:
    run = Launched(tmp_path / "run", environment, "local")
    run.submit("plugins.trouble.seconds=0.5")
    run.reach(3)
    os.kill(int(run.job), signal.SIGTERM)
    wait_for("end", lambda: ended(run))
    assert run.starts == 1 and "ended" in run.status()
    assert checkpoint.load(run.folder / checkpoint.NAME)["step"] == run.step >= 3


@pytest.mark.slow
def test_an_error_in_a_local_job_is_told(environment: dict[str, str], tmp_path: Path) -> None:
    run = Launched(tmp_path / "run", environment, "local")
    run.submit("plugins.trouble.step=2")
    wait_for("end", lambda: ended(run))
    assert run.starts == 1 and "rank 0 failed: " in run.status() and "something of its own" in run.status()


@pytest.mark.slow
def test_sigusr2_saves_and_leaves_without_a_job_too(environment: dict[str, str], tmp_path: Path) -> None:
    """For batch scripts of your own; loader workers, who get it as well, do not mind."""
    run = Launched(tmp_path / "run", environment)
    words = run.words("plugins.trouble.seconds=0.3")
    process = subprocess.Popen(words, env=run.environment, stderr=subprocess.PIPE, text=True, start_new_session=True)
    run.reach(3)
    for _ in range(2):  # a second one does no harm
        os.killpg(process.pid, signal.SIGUSR2)
    _, told = process.communicate(timeout=60)
    assert process.returncode == 128 + signal.SIGUSR2 and "interrupted by SIGUSR2 and saved" in told
    assert checkpoint.load(run.folder / checkpoint.NAME)["step"] == run.step >= 3
