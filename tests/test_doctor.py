"""The doctor, on this machine as it is, and in interpreters from which something was taken away."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from vssl_core import doctor, machine

ROOT = Path(__file__).parents[1]


def examine(*absent: str, folder: Path | None = None) -> tuple[int, str]:
    """Exit code and text of the doctor in a fresh interpreter, where importing any of `absent` fails."""
    code = f"import sys; sys.modules.update(dict.fromkeys({absent!r})); import runpy; runpy.run_path('tools/doctor.py')"
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "COLUMNS": "400"}
    if folder is not None:
        environment["PATH"] = f"{folder}{os.pathsep}{environment['PATH']}"
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, env=environment, cwd=ROOT, capture_output=True, text=True, check=False)
    assert not done.stderr, done.stderr
    return done.returncode, done.stdout


def level(text: str, subject: str) -> str:
    """How a subject was judged."""
    return next(row.split()[0] for row in text.splitlines() if row[9:].startswith(f"{subject} "))


def test_training_can_run_here() -> None:
    """Tests run where training runs: exit code 0, no fault, and a real step was made."""
    code, text = examine()
    assert code == 0 and "fault" not in text
    assert level(text, "training") == level(text, "pyav") == level(text, "pytorchvideo") == "good"
    assert text.endswith("Training can run here.\n")


def test_without_torch() -> None:
    """The report reaches its end, says what is missing and how to get it, and exits with 1."""
    code, text = examine("torch")
    assert code == 1
    assert level(text, "torch") == level(text, "training") == "fault"
    assert "pip install torch torchvision" in text
    assert "Training cannot run here: torch, training." in text


@pytest.mark.parametrize(
    ("absent", "subject", "expected"),
    [
        ("torchvision", "torchvision", "fault"),
        ("pytorchvideo", "pytorchvideo", "fault"),
        ("av", "pyav", "fault"),
        ("faiss", "faiss", "note"),
        ("cv2", "opencv", "note"),
    ],
)
def test_without_a_library(absent: str, subject: str, expected: str) -> None:
    """What training needs is a fault; what only an extra needs is a note with the extra's name."""
    code, text = examine(absent)
    assert level(text, subject) == expected
    assert code == (1 if expected == "fault" else 0)
    assert expected == "fault" or "pip install 'vssl[" in text


def test_slurm_is_asked_for_its_version(tmp_path: Path) -> None:
    """A real program in the path, once answering and once failing."""
    program = tmp_path / "sbatch"
    program.write_text("#!/bin/sh\necho slurm 25.05.1\n")
    program.chmod(0o755)
    code, text = examine("torch", folder=tmp_path)
    assert level(text, "slurm") == "good" and f"slurm 25.05.1 at {program}" in text
    program.write_text("#!/bin/sh\necho no controller >&2\nexit 3\n")
    text = examine("torch", folder=tmp_path)[1]
    assert level(text, "slurm") == "warning"
    assert f"{program} does not tell its version: it ended with exit code 3 and said: no controller" in text


@pytest.mark.parametrize(
    ("number", "name", "expected"),
    [
        (8902, "8.9.2", "good"),
        (90701, "9.7.1", "good"),
        (91002, "9.10.2", "warning"),
        (91400, "9.14.0", "warning"),
        (91500, "9.15.0", "good"),
        (None, "not available", "warning"),
    ],
)
def test_cudnn_range(number: int | None, name: str, expected: str) -> None:
    """Versions from 9.10 up to, and without, 9.15 are warned of; numbers are read as cuDNN writes them."""
    finding = doctor.cudnn(number)
    assert finding.level == expected and finding.says.startswith(name)
    assert bool(finding.advice) == (expected == "warning")


def test_a_check_that_breaks_is_a_finding(monkeypatch: pytest.MonkeyPatch) -> None:
    """One broken check neither hides the others nor passes as health."""

    def broken():
        yield doctor.Finding("good", "before", "seen")
        raise OSError("no such device")

    monkeypatch.setattr(doctor, "CHECKS", (broken, doctor.slurm))
    first, second, third = doctor.report()
    assert first.subject == "before" and third.subject == "slurm"
    assert second.level == "fault" and "OSError: no such device" in second.says


def test_lines_are_wrapped(monkeypatch: pytest.MonkeyPatch) -> None:
    """Text and advice stay within the terminal, under each other."""
    monkeypatch.setenv("COLUMNS", "60")
    rows = doctor.line(doctor.Finding("note", "subject", "word " * 30, "advice " * 20)).splitlines()
    assert len(rows) > 4 and all(len(row) <= 60 for row in rows)
    assert rows[0].startswith("note     subject          word")


def test_limits_of_a_container(tmp_path: Path) -> None:
    """Quotas count when they are below what the machine has; "max" and missing files are no quota."""
    everything = len(os.sched_getaffinity(0))
    meminfo = tmp_path / "meminfo"
    meminfo.write_text("MemTotal:       1000 kB\nMemFree:  10 kB\n")
    assert machine.cores(tmp_path) == everything
    assert machine.memory_bytes(tmp_path, meminfo) == 1_024_000
    assert machine.memory_bytes(tmp_path, tmp_path / "none") is None
    (tmp_path / "cpu.max").write_text("50000 100000\n")
    (tmp_path / "memory.max").write_text("4096\n")
    assert machine.cores(tmp_path) == 0.5
    assert machine.memory_bytes(tmp_path, meminfo) == 4096
    (tmp_path / "cpu.max").write_text("max 100000\n")
    (tmp_path / "memory.max").write_text("max\n")
    assert machine.cores(tmp_path) == everything
    assert machine.memory_bytes(tmp_path, meminfo) == 1_024_000


def test_space(tmp_path: Path) -> None:
    """Too little room is a warning with the advice given."""
    free = machine.free_bytes(tmp_path)
    assert free is not None and machine.free_bytes(tmp_path / "none") is None
    assert doctor.space("here", tmp_path, "get more", least=1).level == "good"
    short = doctor.space("here", tmp_path, "get more", least=2**60)
    assert short.level == "warning" and short.advice == "get more" and str(tmp_path) in short.says
