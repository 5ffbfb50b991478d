"""Jobs on a real Slurm: whatever happens to one, it ends with the weights of a run that nobody disturbed, bit for bit.

The cluster is started for this file, in a folder of its own (tests/slurm/cluster.py), and ended with it.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from slurm.cluster import Cluster
from slurm.jobs import JOB, STEPS, VSSL, Launched, listening, wait_for, write_trouble
from small_runs import assert_equal

from vssl_core.run import checkpoint

pytestmark = pytest.mark.slow
SLOW = "plugins.trouble.seconds=0.4"  # a step, so that it can be met under way
SLOWER = "plugins.trouble.seconds=1.5"  # ... by several commands, each of which takes seconds
TWO = "launch.tasks_per_node=2"
LOOPBACK = ("0100007F", "0000000000000000FFFF00000100007F")


@pytest.fixture(scope="module")
def environment(cluster: Cluster, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """What commands need to find the cluster, and jobs to find the plugin that makes trouble."""
    return {**cluster.environment, "PYTHONPATH": str(write_trouble(tmp_path_factory.mktemp("trouble")))}


@pytest.fixture
def run(environment: dict[str, str], tmp_path: Path) -> Iterator[Launched]:
    """A run of the test's own; its job ends with the test."""
    launched = Launched(tmp_path / "run", environment)
    yield launched
    if (launched.launched / "job.json").exists():
        subprocess.run(["scancel", launched.job], env=environment)
        wait_for("free nodes", lambda: not asked(launched, "squeue", "--noheader").strip())


@pytest.fixture(scope="module")
def unbroken(environment: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same training on two ranks of torchrun, which nobody disturbs."""
    launched = Launched(tmp_path_factory.mktemp("unbroken") / "run", environment)
    torchrun = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--standalone",
        "--nproc_per_node=2",
        "--no-python",
        "--",
    ]
    done = launched.vssl(*torchrun, *launched.words())
    assert done.returncode == 0, done.stderr
    return launched.folder


def asked(run: Launched, *words: str) -> str:
    """What a command of Slurm prints."""
    return subprocess.run(words, env=run.environment, capture_output=True, text=True, check=True).stdout


def assert_same(run: Launched, unbroken: Path) -> None:
    """The run is at its end, and all that it is equals the undisturbed one; only the configuration may differ."""
    states = [checkpoint.load(folder / checkpoint.NAME) for folder in (run.folder, unbroken)]
    assert [state.pop("config") is not None and state["step"] for state in states] == [STEPS, STEPS]
    assert_equal(states[0], states[1])


def urgent(run: Launched) -> str:
    """Another's job that takes all nodes for a moment; its number."""
    words = ["sbatch", "--parsable", "--partition=urgent", "--nodes=2", "--exclusive", "--output=/dev/null"]
    return asked(run, *words, "--wrap=sleep 2").strip()


# What goes well -------------------------------------------------------------------------------------------------------


def test_two_tasks_train_what_torchrun_trains(run: Launched, unbroken: Path) -> None:
    told = run.submit(TWO, SLOW)
    assert told.startswith(f"job {run.job} on Slurm: 1 node with 2 tasks each\n")
    assert all(str(run.launched / f"{run.job}_{rank}_log.out") in told for rank in (0, 1))
    assert f"vssl status {run.folder}" in told and f"scancel {run.job}" in told
    run.reach(2)
    assert f"job {run.job} on slurm: RUNNING on " in run.status()
    tasks = run.tasks()
    assert sorted(tasks) == [0, 1]
    heard = [address for process in tasks.values() for address in listening(process)]
    assert heard and all(address in LOOPBACK for address in heard), "nobody outside this machine is listened to"
    run.end("COMPLETED")
    assert_same(run, unbroken)
    assert run.starts == 1
    assert f"done, step {STEPS}" in run.status() and "COMPLETED" in run.status()


def test_two_nodes_one_of_which_fails(run: Launched, unbroken: Path, cluster: Cluster) -> None:
    run.submit("launch.nodes=2", SLOW, "checkpoint.every_steps=2")
    run.reach(5)
    asked(run, "scontrol", "update", f"nodename={cluster.nodes[1]}", "state=down", "reason=test")
    wait_for("second start", lambda: run.starts == 2)
    run.end("COMPLETED")
    assert_same(run, unbroken)


# What a job is told ---------------------------------------------------------------------------------------------------


def told_by_submitit(run: Launched) -> None:
    """What submitit itself sends to try this: the signal of a time limit."""
    from submitit import SlurmJob

    os.environ["SLURM_CONF"], before = run.environment["SLURM_CONF"], os.environ.get("SLURM_CONF")
    try:
        SlurmJob(folder=run.launched, job_id=run.job, tasks=[0, 1])._interrupt(timeout=True)
    finally:
        os.environ.pop("SLURM_CONF") if before is None else os.environ.update(SLURM_CONF=before)


def told_twice(run: Launched) -> None:
    """SIGTERM and then SIGUSR2, as where a job's room is wanted."""
    for name in ("SIGTERM", "SIGUSR2"):
        asked(run, "scancel", f"--signal={name}", run.job)


def told_to_begin_again(run: Launched) -> None:
    """By its owner, or whoever looks after the cluster."""
    asked(run, "scontrol", "requeue", run.job)


WAYS: dict[str, tuple[Callable[[Launched], object], str]] = {
    "a time limit's signal": (told_by_submitit, "main"),
    "both signals": (told_twice, "main"),
    "scontrol requeue": (told_to_begin_again, "main"),
    "preemption with grace": (urgent, "main"),
    "preemption at once": (urgent, "harsh"),
}


@pytest.mark.parametrize("way", WAYS)
def test_a_job_that_is_told_to_leave_saves_and_goes_on(run: Launched, unbroken: Path, way: str) -> None:
    tell, partition = WAYS[way]
    run.submit(TWO, SLOW, f"launch.partition={partition}")
    run.reach(4)
    tell(run)
    wait_for("second start", lambda: run.starts == 2)
    saved = checkpoint.load(run.folder / checkpoint.NAME)["step"]
    assert 4 <= saved < STEPS, "it saved at the next step, though no checkpoint was due before the end of the run"
    run.end("COMPLETED")
    assert run.starts == 2 and "started again once" in run.status()
    assert_same(run, unbroken)


def test_the_time_limit_itself(run: Launched, unbroken: Path) -> None:
    """Slurm counts whole minutes, and looks twice in one: the longest test of this file."""
    run.submit(
        TWO, "plugins.trouble.seconds=5", "launch.timeout_minutes=1", "launch.signal_seconds=5",
        "checkpoint.every_minutes=0.5",
    )  # fmt: skip
    run.end("COMPLETED")
    assert run.starts >= 2 and "told to leave by SIGUSR2" in run.log()
    assert_same(run, unbroken)


# What breaks ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("rank", [0, 1])
def test_a_killed_rank_takes_the_others_along_and_the_job_goes_on(run: Launched, unbroken: Path, rank: int) -> None:
    run.submit(TWO, SLOW, "checkpoint.every_steps=2")
    run.reach(5)
    tasks = run.tasks()
    os.kill(tasks[rank], signal.SIGKILL)
    wait_for("end of the other rank", lambda: not Path(f"/proc/{tasks[1 - rank]}").exists(), seconds=30)
    wait_for("second start", lambda: run.starts == 2)
    run.end("COMPLETED")
    assert_same(run, unbroken)


def test_a_rank_that_is_silent_is_not_waited_for_longer_than_allowed(run: Launched, unbroken: Path) -> None:
    run.submit(TWO, SLOW, "checkpoint.every_steps=2", "launch.rank_timeout_seconds=10")
    run.reach(5)
    os.kill(run.tasks()[1], signal.SIGSTOP)  # it lives, and its connections do
    began = time.monotonic()
    wait_for("second start", lambda: run.starts == 2)
    assert time.monotonic() - began > 5, "it was waited for"
    run.end("COMPLETED")
    assert_same(run, unbroken)


def test_a_job_that_never_saves_is_given_up(run: Launched) -> None:
    trouble = ["plugins.trouble.step=2", "plugins.trouble.rank=1", "plugins.trouble.killed=true"]
    run.submit(TWO, *trouble, "launch.tries=2")
    run.end("FAILED")
    assert run.starts == 2
    assert "2 starts in a row ended without a new checkpoint" in run.status()


def test_an_error_is_not_tried_again(run: Launched) -> None:
    """One rank meets it; the other loses it, and is not taken for the one that failed."""
    run.submit(TWO, "plugins.trouble.step=3", "plugins.trouble.rank=1")
    run.end("FAILED")
    assert run.starts == 1
    assert "rank 1 failed: " in run.status() and "something of its own" in run.status()
    assert "rank 0 failed" not in run.status()


def test_your_mistake_is_told_once(run: Launched) -> None:
    run.submit(TWO, "data.root=/nowhere/at/all")
    run.end("FAILED")
    assert run.starts == 1 and run.status().count("/nowhere/at/all: no such folder") == 1
    assert not (run.folder / "config.yaml").exists()


def test_gpus_that_nobody_sees(run: Launched) -> None:
    """The cluster gives a GPU that is none."""
    run.submit("launch.gpus_per_node=1", "device.kind=auto")
    run.end("FAILED")
    assert "launch.gpus_per_node: 1 GPUs are asked for, and torch sees 0" in run.status()


def test_a_cancelled_job_has_saved_and_can_be_launched_again(run: Launched, unbroken: Path) -> None:
    run.submit(TWO, SLOWER)
    run.reach(4)
    refused = run.vssl(*run.words("--launch", "slurm", *JOB, TWO, SLOWER))
    assert refused.returncode == 2 and f"job {run.job} is at work in this folder" in refused.stderr
    also = run.vssl(*run.words(SLOWER))
    assert also.returncode == 2 and f"job {run.job} is at work in this folder" in also.stderr
    first = run.job
    asked(run, "scancel", first)
    run.end("CANCELLED")
    assert run.starts == 1 and "CANCELLED" in run.status()
    assert checkpoint.load(run.folder / checkpoint.NAME)["step"] == run.step >= 4
    run.submit(TWO, SLOWER)
    assert run.job != first
    run.end("COMPLETED")
    assert_same(run, unbroken)


# What cannot be submitted ---------------------------------------------------------------------------------------------

REFUSED = {
    "launch.partition=mian": "this cluster has no partition 'mian'; did you mean 'main'",
    "launch.cpus_per_task=64": "Slurm refuses the job (Batch job submission failed: More processors requested",
    "launch.constraint=a100": "Slurm refuses the job (Batch job submission failed: Invalid feature specification",
    "launch.timeout_minutes=300": "300 is more than the 60 that partition main gives",
}


@pytest.mark.parametrize("asks", REFUSED)
def test_what_the_cluster_does_not_have_is_a_sentence(run: Launched, asks: str) -> None:
    done = run.vssl(*run.words("--launch", "slurm", *JOB, TWO, asks))
    assert done.returncode in (1, 2) and REFUSED[asks] in done.stderr
    assert len(done.stderr.splitlines()) == 1, done.stderr
    assert not run.folder.exists(), "nothing is half-written"


def test_a_slurm_that_does_not_answer(run: Launched, tmp_path: Path) -> None:
    run.environment["SLURM_CONF"] = str(tmp_path / "none.conf")
    done = run.vssl(*run.words("--launch", "slurm", *JOB, TWO))
    told = "vssl train: --launch slurm: Slurm does not answer here (sinfo: "
    assert done.returncode == 1 and done.stderr.startswith(told)
    assert len(done.stderr.splitlines()) == 1 and not run.folder.exists()


def test_a_job_may_be_submitted_from_within_another(run: Launched, cluster: Cluster) -> None:
    inside = ["srun", "--ntasks=1", *run.words("--launch", "slurm", *JOB, TWO, "epochs=1")]
    done = run.vssl(*inside)
    assert done.returncode == 0, done.stderr
    run.end("COMPLETED")
    assert VSSL[0] in run.launched.joinpath(f"{run.job}_submission.sh").read_text()
