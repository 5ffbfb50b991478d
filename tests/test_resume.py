"""A real training process is killed and started again.

It ends with the same weights, bit for bit, as one left alone.
"""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from small_runs import assert_equal, videos_folder

from vssl_core.run import checkpoint
from vssl_core.run.weights import WEIGHTS

ROOT = Path(__file__).resolve().parents[1]
PLUGINS = "stor,pace,rotation,byol,simclr"
SETTINGS = [
    "clip.frames=4", "clip.size=16", "batch_size=4", "epochs=4", "optim.lr=0.05", "checkpoint.every_steps=2",
    "log.tensorboard=false", "device.kind=cpu", "plugins.byol.hidden=64", "plugins.pace.contrast=same_context",
]  # fmt: skip
STEPS = 12  # three a epoch
TIMING = ("clips_per_second", "data_wait")
PATIENCE = 240  # seconds for one process on a busy machine


def command(folder: Path, *more: str) -> list[str]:
    """The command line of the run, as you would type it."""
    train = [sys.executable, str(ROOT / "tools" / "train.py"), "--plugins", PLUGINS, "--run", str(folder)]
    return [*train, "--data", f"folder:{videos_folder()}", *SETTINGS, *more]


def start(words: list[str]) -> subprocess.Popen[str]:
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        words, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True
    )


def finish(words: list[str]) -> None:
    """Run to the end."""
    process = start(words)
    told, _ = process.communicate(timeout=PATIENCE)
    assert process.returncode == 0, told


def stop_at(words: list[str], folder: Path, step: int, number: int) -> int:
    """Start, and send a signal once the log shows this step; the exit code.

    All that a killed process has started goes with it.
    """
    process = start(words)
    until = time.monotonic() + PATIENCE
    while logged(folder) < step and process.poll() is None and time.monotonic() < until:
        time.sleep(0.005)
    if number == signal.SIGKILL:
        for member in family(process.pid):
            with suppress(ProcessLookupError):
                os.kill(member, number)
    else:
        process.send_signal(number)
    process.communicate(timeout=PATIENCE)
    return process.returncode


def family(process: int) -> list[int]:
    """A process and all that it has started, theirs too: torchrun's ranks have sessions of their own."""
    try:
        children = Path(f"/proc/{process}/task/{process}/children").read_text().split()
    except OSError:  # it has ended
        children = []
    return [process, *(member for child in children for member in family(int(child)))]


def logged(folder: Path) -> int:
    """The last whole step in metrics.jsonl."""
    path = folder / "metrics.jsonl"
    lines = path.read_text().splitlines() if path.exists() else []
    for line in reversed(lines):
        try:
            return int(json.loads(line)["step"])
        except ValueError:
            continue
    return 0


def remains(folder: Path, ranks: int = 1) -> tuple[dict[str, Any], bytes, list[dict[str, Any]]]:
    """What a finished run leaves: its whole state, the backbone's bytes, and its log without timings."""
    state = checkpoint.load(folder / checkpoint.NAME)
    state.pop("config")  # names the worker count, which may differ
    if ranks > 1:
        state["generators"].pop("python")  # torch draws from it at each exchange, and a restart exchanges more
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    log = [{key: value for key, value in line.items() if key not in TIMING} for line in lines]
    return state, (folder / WEIGHTS).read_bytes(), log


def assert_same(one: Path, other: Path, ranks: int = 1) -> None:
    """Two finished runs are equal bit for bit."""
    (state, weights, log), (other_state, other_weights, other_log) = remains(one, ranks), remains(other, ranks)
    assert state["step"] == other_state["step"] == STEPS
    assert_equal(state, other_state)
    assert weights == other_weights
    assert log == other_log


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that nobody disturbs."""
    folder = tmp_path_factory.mktemp("unbroken") / "run"
    finish(command(folder, "data.workers=1"))
    return folder


def test_a_killed_run_ends_with_the_same_weights(unbroken: Path, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    assert stop_at(command(folder, "data.workers=1"), folder, 5, signal.SIGKILL) == -signal.SIGKILL
    assert 0 < checkpoint.load(folder / checkpoint.NAME)["step"] < STEPS
    finish(command(folder, "data.workers=1"))
    assert_same(unbroken, folder)


@pytest.mark.slow
def test_many_kills_and_other_worker_counts(unbroken: Path, tmp_path: Path) -> None:
    folder, chance = tmp_path / "run", random.Random(20)
    for workers in (2, 0, 1):
        step = max(logged(folder), 0) + chance.randint(1, 3)
        code = stop_at(command(folder, f"data.workers={workers}"), folder, min(step, STEPS - 1), signal.SIGKILL)
        assert code == -signal.SIGKILL
    finish(command(folder, "data.workers=2"))
    assert_same(unbroken, folder)


@pytest.mark.slow
def test_kills_at_any_moment(unbroken: Path, tmp_path: Path) -> None:
    """Between two steps, inside one, while a checkpoint is being written: one is written after every step."""
    folder, chance = tmp_path / "run", random.Random(21)
    words = command(folder, "data.workers=1", "checkpoint.every_steps=1")
    killed = 0
    while killed < 5 and logged(folder) < STEPS:
        process, before = start(words), logged(folder)
        while logged(folder) == before and process.poll() is None:
            time.sleep(0.002)
        time.sleep(chance.uniform(0, 0.4))
        os.killpg(process.pid, signal.SIGKILL)
        process.communicate(timeout=PATIENCE)
        killed += 1
    finish(words)
    assert_same(unbroken, folder)


@pytest.mark.slow
@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_saves_and_leaves(unbroken: Path, tmp_path: Path, number: int, code: int) -> None:
    folder = tmp_path / "run"
    assert stop_at(command(folder, "data.workers=1"), folder, 4, number) == code
    saved = checkpoint.load(folder / checkpoint.NAME)["step"]
    assert saved == logged(folder) >= 4  # nothing that was done is lost
    finish(command(folder, "data.workers=1"))
    assert_same(unbroken, folder)


def ranks(folder: Path, *more: str) -> list[str]:
    """The same run on two ranks."""
    words = command(folder, "data.workers=1", "device.sync_batch_norm=true", *more)[1:]
    return [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2", "--", *words]


@pytest.mark.slow
def test_two_ranks_killed_and_started_again(tmp_path: Path) -> None:
    """Two ranks under torchrun; the whole group is killed, and both come back to the same step."""
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    finish(ranks(whole))
    assert stop_at(ranks(broken), broken, 5, signal.SIGKILL) == -signal.SIGKILL
    assert 0 < checkpoint.load(broken / checkpoint.NAME)["step"] < STEPS
    finish(ranks(broken))
    assert_same(whole, broken, ranks=2)


ENDING = """
import sys
from pathlib import Path
from vssl_core import cli

code = cli.main(sys.argv[1:])
threads = [file.read_text() for file in Path("/proc/self/task").glob("*/comm")]
print(f"{sum('gloo' in name for name in threads)} of {len(threads)} threads exchange", flush=True)
raise SystemExit(code)
"""


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="threads are counted in /proc")
def test_ranks_that_end_leave_no_thread_that_could_take_them_down(tmp_path: Path) -> None:
    """A thread of gloo's that drops a tensor while the interpreter ends aborts a process that has done its work."""
    (tmp_path / "ending.py").write_text(ENDING)
    words = ranks(tmp_path / "run", "epochs=1")
    words[words.index(str(ROOT / "tools" / "train.py"))] = str(tmp_path / "ending.py")
    words.insert(words.index("--plugins"), "train")
    done = subprocess.run(words, capture_output=True, text=True, timeout=PATIENCE)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("0 of ") == 2 == done.stdout.count("threads exchange"), done.stdout


@pytest.mark.slow
def test_two_ranks_save_and_leave_when_torchrun_is_told_to(tmp_path: Path) -> None:
    """SIGTERM to torchrun, as job managers send it: what was done is saved."""
    assert stop_at(ranks(tmp_path / "run", "epochs=200"), tmp_path / "run", 4, signal.SIGTERM) != 0
    assert checkpoint.load(tmp_path / "run" / checkpoint.NAME)["step"] == logged(tmp_path / "run") >= 4


@pytest.mark.slow
def test_what_all_ranks_meet_is_said_once(tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "thesis.tex").write_text("years of work")
    process = start(ranks(tmp_path / "run"))
    told, _ = process.communicate(timeout=PATIENCE)
    assert process.returncode != 0
    assert told.count("is not empty and holds no run") == 1
