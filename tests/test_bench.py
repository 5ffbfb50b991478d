"""The bench: what a row says, and that every row can be measured, on videos that are written for it.

No test looks at a time: which bars are met is for `vssl bench` to tell, on a machine that you know.
"""

from __future__ import annotations

import json
import math
import re
from pathlib import Path

import numpy as np
import pytest

from vssl_core import UserError
from vssl_core.bench.files import Files
from vssl_core.bench.rows import Spread, Times, at_least, at_most, not_measured, paired
from vssl_core.bench.steps import conflict_share, joint_vs_singles, statistics_labels_share
from vssl_core.commands.bench import NAMES, bench, measure_of

PAGE = Path(__file__).parent.parent / "docs" / "speed.md"
QUICK = (
    "frames_exact",
    "data_path_vs_floor",
    "shared_decode_4_clips",
    "extraction_vs_loop",
    "ema_vs_flat",
    "ema_vs_loop",
    "optimizer_vs_fused",
)
LONG = ("data_path_vs_decode_all", "engine_overhead", "engine_microseconds", "jitter_vs_torchvision")


def times(ours: list[float], again: list[float], other: list[float]) -> Times:
    """Seconds of three sides."""
    return Times(np.array(ours), np.array(again), np.array(other))


def test_a_ratio_is_read_in_the_direction_of_its_bar() -> None:
    """`>=`: how often this side fits into the other; `<=`: how much of the other it takes; the median decides."""
    measured = times([1.0, 2.0, 1.0], [3.0, 2.0, 1.0], [8.0, 8.0, 1.0])
    faster = measured.row("some", "case", at_least(4.0), per=2)
    assert faster.value == Spread(4.0, 1.0, 4.0) and faster.met
    assert faster.again == Spread(1.0, 1.0, 3.0)  # the same code against itself: how far to trust the ratio
    assert (faster.ours, faster.other) == ("1000 ms a clip", "4000 ms a clip")
    share = measured.row("some", "case", at_most(0.2))
    assert share.value == Spread(0.25, 0.25, 1.0) and share.met is False


def test_a_row_that_cannot_be_measured_says_why() -> None:
    row = not_measured("some", "case", at_least(2), "decord is not installed")
    assert row.met is None and row.describe()["note"] == "not measured: decord is not installed"


def test_both_sides_are_run_equally_often_and_in_mixed_order() -> None:
    """This side twice, so that the noise can be seen; every repetition gets its number, warm-up -1."""
    heard: list[tuple[str, int]] = []
    found = paired(lambda number: heard.append(("ours", number)), lambda number: heard.append(("other", number)), 20)
    assert [len(side) for side in (found.ours, found.again, found.other)] == [20, 20, 20]
    assert heard[:2] == [("ours", -1), ("other", -1)]
    steps = [heard[2 + 3 * number : 5 + 3 * number] for number in range(20)]
    assert all(sorted(step) == [("other", n), ("ours", n), ("ours", n)] for n, step in enumerate(steps))
    assert len({tuple(name for name, _ in step) for step in steps}) == 3


def test_the_page_names_every_row() -> None:
    told = re.findall(r"^\| `(\w+)`", PAGE.read_text(encoding="utf-8"), re.MULTILINE)
    assert sorted(told) == sorted(NAMES)
    assert all(callable(measure_of(name)) for name in NAMES)


def measured(capsys: pytest.CaptureFixture[str], name: str) -> None:
    """Measure a row once or twice, on its own videos, and look at what is printed."""
    code = bench([name], None, json=True, share=0.01)
    (row,) = json.loads(capsys.readouterr().out)
    assert row["name"] == name and row["versions"]["torch"] and row["repeats"] >= 1
    assert row["value"] and all(math.isfinite(value) and value > 0 for value in row["value"].values())
    assert code == int(row["met"] is False)


@pytest.mark.parametrize("name", QUICK)
def test_a_row_can_be_measured(name: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("VSSL_CLIPS", raising=False)
    measured(capsys, name)


@pytest.mark.slow
@pytest.mark.parametrize("name", LONG)
def test_a_long_row_can_be_measured(
    name: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("VSSL_CLIPS", raising=False)
    measured(capsys, name)


def test_labels_are_measured_over_a_step(monkeypatch: pytest.MonkeyPatch) -> None:
    """With the smallest net, which the row itself does not take; and without OpenCV it says why it is not measured."""
    pytest.importorskip("cv2", reason="optical flow needs the extra flow")
    tiny = ("backbone.name=tiny", "clip.frames=4", "clip.size=16")
    with Files(None) as files:
        row = statistics_labels_share(files, 0.01, tiny)
        assert row.value is not None and row.value.median > 0 and len(row.files) == 2
        monkeypatch.setattr("vssl_core.bench.steps.find_spec", lambda name: None)
        row = statistics_labels_share(files, 0.01, tiny)
    assert row.met is None and row.note == "not measured: OpenCV is not installed"


def test_angles_between_gradients_are_measured_over_a_step(monkeypatch: pytest.MonkeyPatch) -> None:
    """In every step of the one side, warm-up included, and in none of the other; noise may outweigh the difference."""
    from vssl_conflict import observer

    seen: list[tuple[str, ...]] = []
    plain = observer.summary
    monkeypatch.setattr(observer, "summary", lambda names, products: seen.append(names) or plain(names, products))
    with Files(None) as files:
        row = conflict_share(files, 0.01, videos=4)
    assert seen == [("stor", "pace", "rotation", "byol")] * 3
    assert row.name == "conflict_share" and row.repeats == 1
    assert row.value is not None and -1 / 200 < row.value.median < 1


def test_frames_are_exact_on_its_own_videos(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("VSSL_CLIPS", raising=False)
    assert bench(["frames_exact"], None, json=False) == 0
    assert "frames_exact" in capsys.readouterr().out


def test_an_unknown_row_and_a_folder_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="did you mean 'frames_exact'"):
        bench(["frame_exact"], None, json=False)
    with pytest.raises(UserError, match="there is no such folder"):
        bench(["frames_exact"], str(tmp_path / "none"), json=False)


def test_a_folder_of_clips_may_be_given_from_where_you_are(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Rows that train open the videos by their paths, whatever the working folder of their workers."""
    folder = tmp_path / "clips"
    folder.mkdir()
    with Files(None) as own:
        for path in own.originals[:2]:
            (folder / Path(path).name).write_bytes(Path(path).read_bytes())
    monkeypatch.chdir(tmp_path)
    with Files("clips") as files:
        assert [Path(path) for path in files.originals] == sorted(folder.iterdir())
        row = joint_vs_singles(files, 0.01, ("backbone.name=tiny", "clip.frames=4", "clip.size=16"))
    assert row.value is not None and row.value.median > 0
