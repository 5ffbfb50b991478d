"""Labels as a person sees them: pictures of what was really cut, and how often two ways to measure agree."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from matplotlib.image import imread
from small_runs import videos_folder

from vssl_core import Shot, Window, cli

Distribute = Callable[..., None]
PNG = b"\x89PNG\r\n"

EXAMPLE = """
from dataclasses import dataclass
import numpy as np
from pydantic import Field
from vssl_core import ANY, Flips, Measure, Objective, PluginConfig, Request, Terms, Turns, hookimpl

seen = []

@dataclass(frozen=True)
class Bright:
    offset: float = 0.0
    def __call__(self, crop, clip, window):
        return np.array([float(window.start), crop.mean() + self.offset])

class Example(Objective):
    class Config(PluginConfig):
        offset: float = Field(0.0, description="added to the brightness")
        tail: int = Field(0, description="frames behind the clip")
        wide: bool = Field(False, description="measure something longer")
        other: str = Field("plain", description="empty, raise, or what else")

    def requests(self):
        name = self.context.name
        measures = [Measure(f"{name}/bright", Bright(self.config.offset))]
        if self.config.wide:
            measures = [Measure(f"{name}/bright", lambda crop, clip, window: np.zeros(5))]
        turned = {"flips": Flips(1.0), "turns": Turns((3,))}
        turned = {} if self.config.other == "upright" else turned
        return {"pair": Request(clips=2, tail=self.config.tail, measures=tuple(measures), **turned)}

    def forward(self, batch):
        (left, right) = batch["pair"]
        return Terms({"nothing": left.features.vector.mean() * 0})

    def pictures(self, batch, shots):
        from matplotlib.figure import Figure
        if self.config.other == "raise":
            raise ZeroDivisionError("of the plugin's own")
        seen.append((self, batch, shots))
        return {} if self.config.other == "empty" else {"dot": Figure(figsize=(1, 1))}

vssl_objective = hookimpl(lambda: Example)
"""
QUIET = """
from vssl_core import Objective, Request, Terms, hookimpl

class Quiet(Objective):
    def requests(self):
        return {"clip": Request()}
    def forward(self, batch):
        return Terms({"nothing": batch["clip"][0].features.vector.mean() * 0})

vssl_objective = hookimpl(lambda: Quiet)
"""


@pytest.fixture
def stranger(distribute: Distribute) -> None:
    """A distribution with a plugin that draws, and one that does not."""
    distribute("stranger", {"example": "example", "quiet": "quiet"}, {"example.py": EXAMPLE, "quiet.py": QUIET})


def labels(*words: str, out: Path | None = None) -> int:
    """The command, on the dozen of small videos."""
    given = ["--out", str(out)] if out else []
    return cli.main(["data", "labels", str(videos_folder()), *given, "clip.size=32", "clip.frames=8", *words])


def seen() -> list[tuple[Any, Any, Mapping[str, tuple[Shot, ...]]]]:
    """What the plugin was asked to draw."""
    return sys.modules["example"].seen


# Drawing --------------------------------------------------------------------------------------------------------------


def check_pictures(folder: Path, told: str) -> None:
    """One for each of two videos, at both ends of the list, of which something can be seen."""
    paths = [Path(line) for line in told.splitlines()]
    assert sorted(paths) == sorted(folder.iterdir()) and len(paths) == 2
    for path in paths:
        assert re.match(r"00(00_00|11_11)_\w+\.png", path.name) and path.read_bytes().startswith(PNG)
        pixels = imread(path)[:, :, :3]
        assert pixels.shape[0] > 300 and len(np.unique(pixels.reshape(-1, 3), axis=0)) > 500


def test_the_command_draws_with_its_flags_alone(tmp_path: Path) -> None:
    """As a process of its own."""
    command = [str(Path(sys.executable).parent / "vssl"), "data", "labels", "--plugin", "stor", str(videos_folder())]
    done = subprocess.run(
        [*command, "--out", str(tmp_path / "seen"), "--videos", "2"], capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    check_pictures(tmp_path / "seen", done.stdout)


@pytest.mark.parametrize("plugin", ["pace", "rotation", "statistics"])
def test_pictures_of_plugins_that_read_labels_off_clips(
    plugin: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    if plugin == "statistics":
        pytest.importorskip("cv2", reason="optical flow needs the extra flow")
    assert labels("--plugin", plugin, "--videos", "2", out=tmp_path) == 0
    check_pictures(tmp_path, capsys.readouterr().out)


@pytest.mark.usefixtures("stranger")
def test_what_is_drawn_is_what_forward_sees(tmp_path: Path) -> None:
    """Batch and shots show the same clips: the same windows, and the same pixels but for colour and normalisation."""
    assert labels("--plugin", "example", "--videos", "3", "tail=2", out=tmp_path) == 0
    assert len(seen()) == 3 and len(list(tmp_path.glob("*_dot.png"))) == 3
    for objective, batch, shots in seen():
        assert objective.config.tail == 2 and list(shots) == ["pair"] and len(shots["pair"]) == 2
        (left, right), (one, other) = batch["pair"], shots["pair"]
        assert left.clip.shape == (1, 3, 8, 32, 32) and left.tail.shape == (1, 3, 2, 32, 32)
        assert one.clip.shape == (10, 32, 32, 3) and one.frames.shape == (10, 48, 64, 3)
        for view, shot in ((left, one), (right, other)):
            check_shot(shot, view)
        assert float(left.measures["example/bright"][0, 1]) == pytest.approx(one.crop.mean())
        assert left.features.vector.shape == (1, 128) and batch.draw("some", 0, 2).shape == (1,)


def check_shot(shot: Shot, view: Any) -> None:
    """The window is the view's, and the clip its box, mirrored and turned."""
    window = shot.window
    assert isinstance(window, Window) and window.flip and window.turns == 3
    assert view.windows.box[0].tolist() == list(window.box)
    assert view.windows.indices[0].tolist() == window.indices.tolist()
    top, left, height, width = window.box
    box = shot.frames[:, top : top + height, left : left + width]
    assert np.array_equal(shot.crop, np.rot90(box[:, :, ::-1], 3, axes=(1, 2)))
    clip = view.clip[0].permute(1, 2, 3, 0).numpy()  # (T,S,S,3), normalised; its colours are jittered
    pixels = shot.clip[: len(clip)].astype(float)
    assert np.corrcoef(clip.mean(axis=3).ravel(), pixels.mean(axis=3).ravel())[0, 1] > 0.8


@pytest.mark.usefixtures("stranger")
def test_options_of_the_plugin_need_no_prefix(tmp_path: Path) -> None:
    assert labels("--plugin", "example", "--videos", "1", "offset=3", "clip.stride=2", out=tmp_path) == 0
    ((objective, batch, shots),) = seen()
    assert objective.config.offset == 3 and shots["pair"][0].window.stride == 2
    assert float(batch["pair"][0].measures["example/bright"][0, 1]) == pytest.approx(shots["pair"][0].crop.mean() + 3)


def test_the_same_pictures_every_time(tmp_path: Path) -> None:
    for folder in ("one", "two"):
        assert labels("--plugin", "rotation", "--videos", "2", out=tmp_path / folder) == 0
    names = sorted(path.name for path in (tmp_path / "one").iterdir())
    assert len(names) == 2
    for name in names:
        assert np.array_equal(imread(tmp_path / "one" / name), imread(tmp_path / "two" / name))


def test_the_folder_is_named_after_the_plugin_where_none_is_given(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert labels("--plugin", "rotation", "--videos", "1") == 0
    assert len(list((tmp_path / "labels" / "rotation").glob("*.png"))) == 1


def test_a_video_that_cannot_be_read_is_told_and_the_others_are_drawn(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    place = tmp_path / "videos"
    shutil.copytree(videos_folder(), place)
    (place / "train" / "left" / "00.mp4").write_bytes(b"nothing")
    words = ["data", "labels", str(place), "--plugin", "rotation", "--out", str(tmp_path / "seen")]
    assert cli.main([*words, "--videos", "2", "clip.size=32"]) == 0
    told = capsys.readouterr().out.splitlines()
    assert len(told) == 2 and told[0].endswith(".png") and "00.mp4: is not a video" in told[1]
    assert cli.main([*words, "--videos", "1", "clip.size=32"]) == 2
    assert "none of the videos that were tried could be read, the first was" in capsys.readouterr().err


def sentence(capsys: pytest.CaptureFixture[str], *words: str, out: Path | None = None) -> str:
    """The one sentence that a mistake gives."""
    assert labels(*words, out=out) == 2
    told = capsys.readouterr().err
    assert told.startswith("vssl data: ") and told.count("\n") == 1
    return told


@pytest.mark.usefixtures("stranger")
def test_mistakes_are_one_sentence(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    told = sentence(capsys, "--plugin", "quiet", out=tmp_path / "seen")
    assert "--plugin: 'quiet' draws no pictures of labels; give its objective a method `pictures`" in told
    assert "did you mean 'rotation'" in sentence(capsys, "--plugin", "rotaton")
    assert "'retrieval' is an evaluation" in sentence(capsys, "--plugin", "retrieval")
    assert "draws no pictures" in sentence(capsys, "--plugin", "conflict")
    assert "--videos: must be at least 1, got 0" in sentence(capsys, "--plugin", "rotation", "--videos", "0")
    assert "offst" in sentence(capsys, "--plugin", "example", "offst=1")
    assert "'example' draws no pictures of labels with these options" in sentence(
        capsys, "--plugin", "example", "other=empty", out=tmp_path / "seen"
    )
    (tmp_path / "a_file").touch()
    told = sentence(capsys, "--plugin", "rotation", out=tmp_path / "a_file")
    assert "--out: " in told and "cannot be written" in told
    assert not (tmp_path / "seen").exists()


@pytest.mark.usefixtures("stranger")
def test_a_plugin_that_fails_to_draw_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Its author needs the place too."""
    assert labels("--plugin", "example", "other=raise", out=tmp_path) not in (0, 2)
    told = capsys.readouterr().err
    assert told.endswith("vssl data: objective 'example': pictures: ZeroDivisionError: of the plugin's own\n")
    assert "Traceback" in told and 'raise ZeroDivisionError("of the plugin' in told


# Comparing ------------------------------------------------------------------------------------------------------------


def shares(capsys: pytest.CaptureFixture[str]) -> dict[tuple[str, str], str]:
    """{(measure, number): how often it is the same} as printed."""
    rows = re.findall(r"│ (\S+)\s*│ (\w+)\s*│ ([\d.]+%)", capsys.readouterr().out)
    return {(name, number): share for name, number, share in rows}


@pytest.mark.usefixtures("stranger")
def test_options_are_compared_on_the_same_clips(capsys: pytest.CaptureFixture[str]) -> None:
    """Brightness of both clips becomes another, their starts stay; each number is that of both clips."""
    assert labels("--plugin", "example", "--against", "offset=1") == 0
    told = shares(capsys)
    assert told == {("example/bright", str(number)): f"{100 * (number % 2)}%" for number in (1, 2)} | {
        ("example/bright", "all"): "50.0%"
    }
    assert labels("--plugin", "example", "--against", "offset=0", "--videos", "5") == 0
    assert set(shares(capsys).values()) == {"100%", "100.0%"}


@pytest.mark.usefixtures("stranger")
def test_only_videos_that_both_can_read_are_compared(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    place = tmp_path / "videos"
    shutil.copytree(videos_folder(), place)
    for name in ("left/00.mp4", "right/01.mp4"):
        (place / "train" / name).write_bytes(b"nothing")
    words = ["data", "labels", str(place), "--plugin", "example", "--against", "offset=1"]
    assert cli.main([*words, "clip.size=32"]) == 0
    told = capsys.readouterr()
    assert "the same clip of 10 videos" in told.out and told.err.count("is not a video") == 4
    for path in place.rglob("*.mp4"):
        path.write_bytes(b"nothing")
    assert cli.main([*words, "clip.size=32"]) == 2
    assert "none of the videos that were tried could be read" in capsys.readouterr().err


@pytest.mark.usefixtures("stranger")
def test_what_cannot_be_compared_is_told(capsys: pytest.CaptureFixture[str]) -> None:
    assert "other clips are cut" in sentence(capsys, "--plugin", "example", "--against", "other=upright")
    told = sentence(capsys, "--plugin", "example", "--against", "wide=true", "data.workers=0")
    assert "'example/bright' has the shape (5,), and without them (2,)" in told
    told = sentence(capsys, "--plugin", "rotation", "--against", "views=mean")
    assert "'rotation' measures nothing in the loader's workers that could be compared" in told


def test_methods_of_flow_are_compared(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """And flow computed ahead with flow on the fly: colours are the same, and most of the motion."""
    pytest.importorskip("cv2", reason="optical flow needs the extra flow")
    words = ["--plugin", "statistics", "--videos", "6"]
    out = str(tmp_path / "flow")
    assert cli.main(["data", "flow", str(videos_folder() / "train"), "--out", out, "--method", "dis"]) == 0
    capsys.readouterr()
    assert labels(*words, "--against", f"flow={out}") == 0
    told = shares(capsys)
    assert told["statistics/appearance", "all"] == "100.0%"
    assert float(told["statistics/motion", "all"][:-1]) > 50
    assert labels(*words, "--against", "method=farneback", "binning=soft") == 0
    assert shares(capsys)["statistics/appearance", "all"] == "100.0%"


def test_flow_that_is_not_there_is_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("cv2", reason="optical flow needs the extra flow")
    told = sentence(capsys, "--plugin", "statistics", f"flow={tmp_path}")
    assert "plugins.statistics: " in told and "holds no flow.json, so no flow; compute it with `vssl data flow`" in told
