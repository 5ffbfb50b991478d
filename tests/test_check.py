"""The doctor: every file has a finding, whatever it does to the process that decodes it."""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
import time
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest

from vssl_core.data.check import Finding, check, inspect, run_check
from vssl_core.data.workers import Lost, each
from vssl_core.errors import ConfigError, DataError


def encode(path: Path, frames: int = 30) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=Fraction(30000, 1001))
        stream.height, stream.width, stream.pix_fmt = 48, 64, "yuv420p"
        for number in range(frames):
            frame = av.VideoFrame.from_ndarray(np.full((48, 64, 3), number * 3 % 256, np.uint8), format="rgb24")
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return path


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Two good files, a damaged one, and three that are no videos."""
    good = encode(tmp_path / "good.mp4")
    encode(tmp_path / "b" / "[red]good[-].mp4", 5)
    whole = bytearray(good.read_bytes())
    middle = len(whole) // 2
    whole[middle : middle + 60] = b"\xff" * 60
    (tmp_path / "damaged.mp4").write_bytes(whole)
    (tmp_path / "empty.mp4").touch()
    (tmp_path / "notes.txt").write_text("notes")
    os.mkfifo(tmp_path / "pipe.mp4")
    return tmp_path


def everything(folder: Path) -> list[str]:
    return sorted(str(path) for path in folder.rglob("*") if not path.is_dir())


# --- findings ---------------------------------------------------------------------------------------------------------


def test_each_file_has_a_finding_in_its_place(folder: Path) -> None:
    paths = everything(folder)
    report = check(paths, workers=2, seconds_per_file=30, progress=False)
    assert [finding.path for finding in report.findings] == paths
    found = {Path(finding.path).name: finding for finding in report.findings}
    good = found["good.mp4"]
    assert (good.ok, good.packets, good.frames, good.height, good.width) == (True, 30, 30, 48, 64)
    assert good.fps == pytest.approx(29.97, abs=0.01) and not good.reason and not good.note
    assert {Path(finding.path).name for finding in report.bad} == {"damaged.mp4", "empty.mp4", "notes.txt", "pipe.mp4"}
    damaged = found["damaged.mp4"]
    assert damaged.packets == 30 and 0 < damaged.frames < 30 and f"only the first {damaged.frames}" in damaged.reason
    assert found["empty.mp4"].reason == "the file is empty"
    assert found["pipe.mp4"].reason == "is not a regular file"


def test_real_odd_files_have_their_findings(clips: Path) -> None:
    names = {"mp4ff__blackframe.265": True, "mp4parse-rust__short-cenc.mp4": False, "decord__corrupted.mp4": False}
    report = check([str(clips / "odd" / name) for name in names], progress=False)
    assert [finding.ok for finding in report.findings] == list(names.values())
    note, encrypted, corrupted = report.findings
    assert note.note == "2 frames where the container holds 3 packets" and report.noted == [note]
    assert encrypted.reason == "is encrypted" and corrupted.frames == 28


def test_the_command_prints_what_is_bad_and_writes_everything(folder: Path, capsys: pytest.CaptureFixture) -> None:
    out = folder / "new" / "findings.json"
    paths = everything(folder)
    assert run_check(paths, str(out), 2, 30) == 1
    printed = capsys.readouterr().out
    assert f"{folder}/empty.mp4: the file is empty\n" in printed
    assert "2 of 6 files can be read, 4 cannot" in printed
    content = json.loads(out.read_text())
    assert (content["readable"], content["unreadable"]) == (2, 4)
    assert [Finding(**file).path for file in content["files"]] == paths
    assert [path.name for path in out.parent.iterdir()] == ["findings.json"]
    good = [str(path) for path in folder.rglob("*good*.mp4")]
    assert len(good) == 2 and run_check(good, None, 1, 30) == 0


@pytest.mark.parametrize("place", ["a_file/findings.json", "a_folder"])
def test_a_report_that_cannot_be_written_is_refused_before_the_work(place: str, tmp_path: Path) -> None:
    (tmp_path / "a_file").touch()
    (tmp_path / "a_folder").mkdir()
    with pytest.raises(DataError, match="--out: .*a_f"):
        run_check([str(encode(tmp_path / "good.mp4"))], str(tmp_path / place), 1, 30)


# --- processes that hang or die ---------------------------------------------------------------------------------------


def test_a_decoder_that_stands_still_is_replaced(folder: Path) -> None:
    path = str(folder / "good.mp4")
    outcomes = each(inspect, [path] * 3, workers=1, seconds=4)
    assert next(outcomes)[1].ok
    (worker,) = multiprocessing.active_children()
    os.kill(worker.pid, signal.SIGSTOP)
    second, third = outcomes
    assert second == (1, Lost("took longer than 4 seconds"))
    assert third[1].ok


def test_what_nobody_foresaw_is_a_finding_too(folder: Path) -> None:
    report = check([None, str(folder / "good.mp4")], workers=1, progress=False)  # no path at all
    assert [finding.ok for finding in report.findings] == [False, True]
    assert report.bad[0].reason.startswith("TypeError: ")


def test_a_read_that_hangs_is_killed(folder: Path) -> None:
    pipe, file = folder / "pipe.mp4", folder / "notes.txt"
    started = time.monotonic()
    outcomes = dict(each(Path.read_bytes, [file, pipe, file, pipe, file], workers=2, seconds=1.0))
    hung = Lost("took longer than 1 seconds")
    assert outcomes == {0: b"notes", 1: hung, 2: b"notes", 3: hung, 4: b"notes"}
    assert time.monotonic() - started < 60
    assert multiprocessing.active_children() == []


def test_a_crash_is_one_file_s_end_only() -> None:
    signals = [signal.SIGCONT, signal.SIGSEGV, signal.SIGCONT, signal.SIGABRT, signal.SIGCONT]
    outcomes = dict(each(signal.raise_signal, signals, workers=2, seconds=30))
    crashes = {1: Lost("the decoder crashed (SIGSEGV)"), 3: Lost("the decoder crashed (SIGABRT)")}
    assert outcomes == {position: crashes.get(position) for position in range(5)}


def test_a_decoder_that_is_killed_is_replaced(folder: Path) -> None:
    path = str(folder / "good.mp4")
    outcomes = each(inspect, [path] * 3, workers=1, seconds=30)
    assert next(outcomes)[1].ok
    (worker,) = multiprocessing.active_children()
    os.kill(worker.pid, signal.SIGKILL)
    worker.join()
    second, third = outcomes
    assert second == (1, Lost("the decoder crashed (SIGKILL)"))
    assert third[1].ok


def test_an_exception_is_one_item_s_end_only() -> None:
    assert dict(each(int, ["1", "one", "3"], workers=1)) == {
        0: 1,
        1: Lost("ValueError: invalid literal for int() with base 10: 'one'"),
        2: 3,
    }


def test_leaving_early_leaves_no_process() -> None:
    outcomes = each(time.sleep, [0, 600, 600], workers=2)
    next(outcomes)
    outcomes.close()
    assert multiprocessing.active_children() == []


@pytest.mark.parametrize(
    ("workers", "seconds", "told"), [(0, 1.0, "--workers"), (1, 0.0, "--seconds"), (1, float("nan"), "--seconds")]
)
def test_numbers_that_make_no_sense_are_refused(workers: int, seconds: float, told: str) -> None:
    with pytest.raises(ConfigError, match=told):
        list(each(len, ["a"], workers, seconds))


def test_nothing_to_check_is_nothing() -> None:
    assert check([], progress=False).findings == []
