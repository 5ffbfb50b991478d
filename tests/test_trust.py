"""Two promises, seen from the command line: a bad video stops nothing, and a file that is loaded executes nothing."""

from __future__ import annotations

import json
import os
import pickle
import shutil
from pathlib import Path

import pytest
import torch
from small_runs import VIDEOS, write_videos

from vssl_core import cli

TINY = ["batch_size=4", "clip.frames=4", "clip.size=16", "epochs=1", "log.tensorboard=false"]
TINY += ["data.max_bad_fraction=0.5"]


@pytest.fixture
def videos(tmp_path: Path) -> Path:
    """A dozen tiny training videos, of which three cannot be read, each for a reason of its own."""
    place = tmp_path / "videos"
    write_videos(place)
    good = sorted((place / "train").rglob("*.mp4"))
    assert len(good) == VIDEOS
    good[0].write_bytes(b"")
    good[1].write_bytes(b"no video at all" * 100)
    good[2].write_bytes(good[2].read_bytes()[:40])
    return place


def train(videos: Path, run: Path, *changes: str) -> int:
    """Train on them; the exit code."""
    return cli.main(["train", "--plugins", "rotation", "--data", str(videos), "--run", str(run), *TINY, *changes])


@pytest.mark.parametrize("workers", [0, 2])
def test_bad_videos_are_replaced_by_a_rule_and_listed(videos: Path, tmp_path: Path, workers: int) -> None:
    found = []
    for name in ("once", "again"):
        run = tmp_path / name
        assert train(videos, run, f"data.workers={workers}") == 0
        lines = [json.loads(line) for line in (run / "skipped.jsonl").read_text().splitlines()]
        found.append({Path(line["path"]).name: (line["reason"], line["replacement"]) for line in lines})
        shutil.rmtree(run / "checkpoints")
    assert found[0] == found[1], "the same replacements in every run"
    bad = sorted((videos / "train").rglob("*.mp4"))[:3]
    assert set(found[0]) == {path.name for path in bad}
    assert all(reason and Path(other) not in bad for reason, other in found[0].values())
    weights = [(tmp_path / name / "backbone.safetensors").read_bytes() for name in ("once", "again")]
    assert weights[0] == weights[1]


def test_too_many_bad_videos_stop_the_run_with_a_sentence(
    videos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert train(videos, tmp_path / "run", "data.workers=0", "data.max_bad_fraction=0.1") == 2
    told = capsys.readouterr().err
    assert "cannot be read, more than data.max_bad_fraction = 0.1 allows" in told and "Traceback" not in told


class Trap:
    """Leaves a file behind when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.mkdir, (str(self.path),)


@pytest.mark.parametrize("how", ["torch", "pickle"])
def test_a_checkpoint_with_code_in_it_is_refused_and_not_executed(
    videos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], how: str
) -> None:
    run, sprung = tmp_path / "run", tmp_path / "sprung"
    assert train(videos, run) == 0
    checkpoint = run / "checkpoint.pt"
    if how == "torch":
        torch.save({"format": 1, "ensemble": Trap(sprung)}, checkpoint)
    else:
        checkpoint.write_bytes(pickle.dumps(Trap(sprung)))
    before = checkpoint.read_bytes()
    assert train(videos, run) == 2
    told = capsys.readouterr().err
    assert str(checkpoint) in told and "Traceback" not in told
    assert not sprung.exists() and checkpoint.read_bytes() == before
    pickle.loads(pickle.dumps(Trap(sprung)))
    assert sprung.exists(), "the trap works"
