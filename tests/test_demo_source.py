"""The demo's videos: written once and whole, the same every time, and told apart by motion alone."""

from __future__ import annotations

import os
import subprocess
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vssl_core.data import demo, scenes
from vssl_core.data.demo import Scene, default_folder, demo_scenes, make_demo, write_video
from vssl_core.data.sources import SourceOptions, Splits, Videos, builtin_sources, open_source
from vssl_core.errors import DataError

FEW = {"train": 2, "test": 2}  # videos per class where their number does not matter


@pytest.fixture
def small(monkeypatch) -> None:
    """A demo of 32 short videos."""
    monkeypatch.setattr(demo, "VIDEOS", FEW)
    monkeypatch.setattr(demo, "FRAMES", (8, 10))


def read(root: Path | str | None, **options) -> Splits:
    return open_source("demo", None if root is None else str(root), SourceOptions(**options), builtin_sources())


def frames_of(path: str | Path) -> np.ndarray:
    import av

    with av.open(str(path)) as container:
        return np.stack([frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)])


def test_train_and_test_are_apart_and_patterns_independent_of_classes():
    wanted = demo_scenes()
    assert len({scene.path for scene in wanted}) == len(wanted)
    kinds = Counter((scene.side, scene.motion, scene.pattern) for scene in wanted)
    assert len(kinds) == 2 * len(scenes.MOTIONS) * len(scenes.PATTERNS)
    for side, count in demo.VIDEOS.items():
        assert {kinds[side, motion, pattern] for motion in scenes.MOTIONS for pattern in scenes.PATTERNS} == {
            count // len(scenes.PATTERNS)
        }
    assert 64 <= demo.FRAMES[0] < demo.FRAMES[1] <= 128


def test_a_scene_is_the_same_every_time_and_no_other_scene_is_like_it():
    first = Scene("train", "rush", "blobs", 0)
    frames = np.stack(list(first.frames()))
    assert frames.dtype == np.uint8 and frames.shape[1:] == (96, 128, 3)
    assert demo.FRAMES[0] <= len(frames) <= demo.FRAMES[1]
    assert (frames == np.stack(list(first.frames()))).all()
    for other in (Scene("test", "rush", "blobs", 0), Scene("train", "rush", "blobs", 2)):
        assert (next(other.frames()) != frames[0]).mean() > 0.5


@given(st.sampled_from(sorted(scenes.MOTIONS)), st.integers(0, 2**32), st.integers(1, 40))
@settings(max_examples=40, deadline=None)
def test_every_motion_gives_finite_states_within_their_bounds(motion, seed, frames):
    generator = np.random.default_rng(seed)
    state = scenes.MOTIONS[motion](scenes.State.draw(generator), np.arange(frames), generator)
    for frame in range(frames):
        shift, turn, zoom, phase, *_ = state.at(frame)
        assert shift.shape == (2,) and np.isfinite([*shift, turn, phase]).all() and abs(zoom) <= scenes.ZOOM


@pytest.mark.parametrize("motion", sorted(scenes.MOTIONS))
def test_one_moment_of_a_motion_is_distributed_as_at_rest(motion):
    """Kolmogorov-Smirnov on every part of the state at a fixed frame, against uniform."""
    from scipy.stats import kstest

    moments = []
    for seed in range(600):
        generator = np.random.default_rng((7, seed))
        state = scenes.MOTIONS[motion](scenes.State.draw(generator), np.arange(40), generator)
        shift, turn, zoom, phase, *_ = state.at(23)
        repeat = scenes.PERIOD / scenes.CELLS
        turns = (turn / (2 * np.pi) % 1, phase / (2 * np.pi) % 1)
        moments.append([*(shift / repeat % 1), *turns, (zoom / scenes.ZOOM + 1) / 2])
    for part in np.array(moments).T:
        assert kstest(part, "uniform").pvalue > 1e-4


def test_files_are_h264_that_decodes_to_what_was_drawn(tmp_path):
    import av

    drawn = np.stack(list(Scene("train", "spin", "blobs", 0).frames()))
    write_video(tmp_path / "spin.mp4", iter(drawn))
    with av.open(str(tmp_path / "spin.mp4")) as container:
        stream = container.streams.video[0]
        assert (stream.codec_context.name, stream.codec_context.pix_fmt) == ("h264", "yuv420p")
        assert (stream.width, stream.height, stream.average_rate) == (128, 96, 25)
    decoded = frames_of(tmp_path / "spin.mp4").astype(int)
    assert decoded.shape == drawn.shape
    own, neighbour = np.abs(decoded - drawn).mean((1, 2, 3)), np.abs(decoded[1:] - drawn[:-1]).mean((1, 2, 3))
    assert own.max() < 10 and (own[1:] < neighbour / 2).all()  # colours are halved in resolution


def test_the_demo_is_written_once_and_again_when_it_is_damaged_or_outdated(tmp_path, small, monkeypatch):
    folder = tmp_path / "new" / "demo"
    splits = read(folder)
    assert splits.name == "demo" and len(splits.train) == len(splits.test) == 16
    assert splits.train.classes == tuple(sorted(scenes.MOTIONS))
    digest, first = splits.train.digest(), Path(splits.train.path(0))
    content, written = first.read_bytes(), first.stat().st_mtime_ns
    assert not make_demo(folder) and first.stat().st_mtime_ns == written
    first.unlink()
    assert read(folder).train.digest() == digest and first.read_bytes() == content
    monkeypatch.setattr(demo, "_version", lambda: "another")
    assert make_demo(folder) and not make_demo(folder)
    assert {path.name for path in folder.parent.iterdir()} <= {"demo", "demo.lock"}


def test_the_demo_never_replaces_what_is_not_its_own(tmp_path, small):
    (tmp_path / "mine.txt").write_text("precious")
    with pytest.raises(DataError, match="holds something else"):
        read(tmp_path)
    with pytest.raises(DataError, match="holds something else"):
        read(tmp_path / "mine.txt")
    with pytest.raises(DataError, match="cannot be written"):
        read(tmp_path / "mine.txt" / "below")
    assert (tmp_path / "mine.txt").read_text() == "precious"


def test_the_cache_is_named_by_the_environment(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    monkeypatch.delenv("VSSL_CACHE", raising=False)
    assert default_folder() == tmp_path / "xdg" / "vssl" / "demo"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert default_folder() == tmp_path / ".cache" / "vssl" / "demo"
    monkeypatch.setenv("VSSL_CACHE", str(tmp_path / "own"))
    assert default_folder() == tmp_path / "own" / "demo"


WRITER = """
import sys, time
from pathlib import Path
from vssl_core.data import demo
demo.VIDEOS, demo.FRAMES = {"train": 2, "test": 2}, (8, 10)
print("ready", flush=True)
sys.stdin.readline()
print(demo.make_demo(Path(sys.argv[1])), flush=True)
"""


def writer(folder: Path) -> subprocess.Popen:
    """A process that writes the small demo as soon as it is told to."""
    process = subprocess.Popen(
        [sys.executable, "-c", WRITER, str(folder)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)},
    )
    assert process.stdout.readline() == "ready\n"
    return process


def test_processes_that_start_at_once_write_one_demo(tmp_path, small):
    processes = [writer(tmp_path / "demo") for _ in range(3)]
    for process in processes:
        process.stdin.write("go\n")
        process.stdin.flush()
    said = sorted(process.communicate(timeout=120)[0] for process in processes)
    assert said == ["False\n", "False\n", "True\n"]
    assert len(read(tmp_path / "demo").train) == 16


def test_a_writer_that_is_killed_leaves_nothing_that_looks_whole(tmp_path, small):
    process = writer(tmp_path / "demo")
    process.stdin.write("go\n")
    process.stdin.flush()
    while not any(tmp_path.glob(".demo-partial-*/new/*/*/*.mp4")):
        assert process.poll() is None
    process.kill()
    process.communicate()
    assert not (tmp_path / "demo").exists()
    assert len(read(tmp_path / "demo").train) == 16
    assert not list(tmp_path.glob(".demo-partial-*"))


# What the classes need


@pytest.fixture(scope="session")
def whole(tmp_path_factory) -> Splits:
    """The demo as users get it."""
    return read(tmp_path_factory.mktemp("demo") / "demo")


def still_features(frame: np.ndarray) -> np.ndarray:
    """What one frame shows: a thumbnail, colour histograms, contrasts at three distances, a spectrum."""
    grey = frame.mean(2)
    thumbnail = frame.reshape(12, 8, 16, 8, 3).mean((1, 3)).ravel() / 255
    histograms = [np.histogram(frame[..., channel], 16, (0, 256))[0] / grey.size for channel in range(3)]
    steps = [np.abs(grey[::, far:] - grey[:, :-far]).mean() / 255 for far in (1, 3, 9)]
    steps += [np.abs(grey[far:] - grey[:-far]).mean() / 255 for far in (1, 3, 9)]
    spectrum = np.log1p(np.abs(np.fft.rfft2(grey - grey.mean()))[:10, :10]).ravel()
    return np.concatenate([thumbnail, *histograms, steps, spectrum])


def motion_features(frames: np.ndarray) -> np.ndarray:
    """How a video changes, whatever it shows: differences over 1 to 8 frames, their swing over time, the middle."""
    grey = frames.mean(3, dtype=np.float32)
    far = {gap: np.abs(grey[gap:] - grey[:-gap]) for gap in (1, 2, 4, 6, 8)}
    means = {gap: change.mean((1, 2)) for gap, change in far.items()}
    middle = far[1][:, 32:64, 48:80].mean() / far[1].mean()
    levels = [change.mean() / grey.std() for change in means.values()]
    return np.array([*levels, *(change.std() / change.mean() for change in means.values()), middle])


def accuracy(train: tuple[np.ndarray, np.ndarray], test: tuple[np.ndarray, np.ndarray], strength: float) -> float:
    """Percent right of a logistic regression."""
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    model = make_pipeline(StandardScaler(), LogisticRegression(C=strength, max_iter=2000)).fit(*train)
    return 100 * model.score(*test)


@pytest.mark.slow
def test_single_frames_do_not_tell_the_classes_and_motion_does(whole):
    still, moving = [], []
    for side in (whole.train, whole.test):
        videos = [frames_of(side.path(index)) for index in range(len(side))]
        shown = [still_features(frame) for video in videos for frame in video[4 :: len(video) // 6][:6]]
        still.append((np.array(shown), np.repeat(side.labels, 6)))
        moving.append((np.array([motion_features(video) for video in videos]), side.labels))
    chance = 100 / len(whole.train.classes)
    for strength in (1e-4, 1e-2, 1):
        assert accuracy(*still, strength) <= chance + 10
    assert accuracy(*moving, 10) >= chance + 50


def random_net_features(videos: Videos) -> np.ndarray:
    """Ten clips of 8 frames of the middle, through an untrained net, averaged and centred on nothing; (N, D)."""
    import torch

    from vssl_core.nets.backbones import build_backbone

    torch.manual_seed(0)
    net, rows = build_backbone("tiny").eval(), []
    for index in range(len(videos)):
        frames = torch.from_numpy(frames_of(videos.path(index))[:, ::2, 16:112:2])  # (T, 48, 48, C)
        starts = np.linspace(0, len(frames) - 8, 10).astype(int)
        clips = torch.stack([frames[start : start + 8] for start in starts]).permute(0, 4, 1, 2, 3)  # (10, C, T, H, W)
        with torch.no_grad():
            rows.append(net(clips / 64 - 2)["stage5"].mean((0, 2, 3, 4)).numpy())
    return np.array(rows)


@pytest.mark.slow
def test_an_untrained_net_finds_few_neighbours_of_the_same_class(whole):
    train, test = (random_net_features(side) for side in (whole.train, whole.test))
    train, test = (rows / np.linalg.norm(rows, axis=1, keepdims=True) for rows in (train, test))
    nearest = whole.train.labels[(test @ train.T).argmax(1)]
    assert (nearest == whole.test.labels).mean() < 0.45
