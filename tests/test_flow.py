"""Optical flow: found where textures are known to move, carried to the clip, computed ahead and read back."""

from __future__ import annotations

import json
import os
import pickle
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path
from zipfile import ZIP_DEFLATED, ZipFile

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

pytest.importorskip("cv2", reason="optical flow needs the extra flow")

from vssl_core import ConfigError, DataError, Flow, VideoError, Window, cli
from vssl_core.data import decode
from vssl_core.data.demo import write_video
from vssl_core.data.flow import LONGEST, METHODS, bounded, estimator, grey_of, in_field, resampling, to_square, vectors
from vssl_core.data.flow_ahead import Job, ahead, compute, some
from vssl_core.data.flow_check import Compared, agreement
from vssl_core.data.flow_store import FACTS, PIECE, STEP, FlowStore, Settings, blocks_of, save

DIS = Settings("dis", blocks=48)  # fewer than usual, since frames are small here
QUICK = [method for method in METHODS if method != "tvl1"]  # TV-L1 takes a hundred times as long


def texture(height: int, width: int, seed: int = 0) -> np.ndarray:
    """A smooth random picture (height, width, 3) uint8 that goes on at its other side."""
    noise = np.random.default_rng(seed).normal(size=(height, width, 3))
    waves = np.fft.rfft2(noise, axes=(0, 1))
    down, across = np.fft.fftfreq(height)[:, None, None], np.fft.rfftfreq(width)[None, :, None]
    smooth = np.fft.irfft2(waves * np.exp(-((down**2 + across**2) / 0.005)), (height, width), axes=(0, 1))
    return (128 + 40 * smooth / smooth.std()).clip(0, 255).astype(np.uint8)


def drifting(frames: int, right: int, down: int, size: tuple[int, int] = (96, 128), seed: int = 0) -> np.ndarray:
    """(frames, h, w, 3): a texture that moves by so many pixels from frame to frame."""
    picture = texture(*size, seed)
    return np.stack([np.roll(picture, (down * number, right * number), (0, 1)) for number in range(frames)])


def window(box: tuple[int, int, int, int], frame_size: tuple[int, int], **more: object) -> Window:
    """A window of four frames; `more` are other fields."""
    fields = {"total": 40, "start": Fraction(0), "stride": Fraction(1), "frames": 4, "tail": 0, **more}
    return Window(video=0, visit=0, clip=0, box=box, frame_size=frame_size, **fields)


def clip_of(size: int = 32, frames: int = 4) -> np.ndarray:
    """A clip, of which flow reads nothing but the size."""
    return np.zeros((frames, size, size, 3), np.uint8)


# Estimating -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize(("right", "down"), [(2, 0), (-1, 1), (0, -2)])
def test_a_texture_that_moves_is_found_to_move(method: str, right: int, down: int) -> None:
    """To the right and down: the sign and the order of the components, away from the edge where new things come in."""
    frames = grey_of(drifting(2, right, down, (64, 80)))
    found = vectors(frames[0], frames[1], method)
    assert found.shape == (2, 64, 80) and found.dtype == np.float32
    assert np.abs(np.median(found[:, 12:-12, 12:-12], axis=(1, 2)) - (right, down)).max() < 0.1


@pytest.mark.parametrize("method", METHODS)
def test_what_stands_still_does_not_move(method: str) -> None:
    (frame,) = grey_of(drifting(1, 0, 0, (32, 40)))
    assert not vectors(frame, frame.copy(), method).any()


@pytest.mark.parametrize("method", QUICK)
def test_flow_does_not_depend_on_what_was_computed_before(method: str) -> None:
    """The estimator is made once in a process: it must remember nothing."""
    one, other = grey_of(drifting(2, 1, 0)), grey_of(drifting(2, -3, 2, seed=1))
    alone = vectors(*one, method)
    vectors(*other, method)
    vectors(*grey_of(drifting(2, 1, 1, (50, 60))), method)
    assert np.array_equal(vectors(*one, method), alone)


@pytest.mark.parametrize("size", [(1, 1), (3, 500), (20, 16), (240, 320), (360, 640)])
@pytest.mark.parametrize("method", QUICK)
def test_flow_is_taken_of_frames_of_any_size(size: tuple[int, int], method: str) -> None:
    height, width = size
    frames = drifting(4, 1, 0, size)
    box = (0, 0, height, width)
    field = Flow(method)(frames, clip_of(), window(box, size))
    assert field.shape == (3, 2, 32, 32) and field.dtype == np.float32 and np.isfinite(field).all()
    assert max(bounded(grey_of(frames)).shape[1:]) <= LONGEST


def test_a_method_that_is_none_is_refused_in_one_sentence() -> None:
    with pytest.raises(
        ConfigError, match="here: no way to compute flow is called 'farnback'; did you mean 'farneback'"
    ):
        Flow("farnback").check("here", 1)


def test_without_opencv_one_sentence_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "cv2", None)  # what an import finds where it is not installed
    estimator.cache_clear()
    with pytest.raises(
        ConfigError, match=r"OpenCV is not installed; install it with the extra, pip install 'vssl\[flow"
    ):
        Flow().check("here", 1)


# From frame to clip ---------------------------------------------------------------------------------------------------


def plain_resampling(row: np.ndarray, size: int, start: float, stop: float) -> np.ndarray:
    """A triangle as wide as a sample of the result, or as one of the row where those are wider; written with loops."""
    step = (stop - start) / size
    result = []
    for place in range(size):
        centre = min(max(start + step * (place + 0.5), 0.5), len(row) - 0.5)
        total = weight = 0.0
        for number, value in enumerate(row):
            share = max(0.0, 1 - abs(number + 0.5 - centre) / max(step, 1.0))
            total, weight = total + share * value, weight + share
        result.append(total / weight)
    return np.array(result)


@given(
    length=st.integers(1, 40),
    size=st.integers(1, 40),
    part=st.tuples(st.floats(0, 1), st.floats(0, 1)),
    seed=st.integers(0, 99),
)
@settings(max_examples=80, deadline=None)
def test_resampling_is_the_plain_one(length: int, size: int, part: tuple[float, float], seed: int) -> None:
    start, stop = sorted(length * share for share in part)
    row = np.random.default_rng(seed).normal(size=length)
    assert resampling(length, size, start, stop) @ row == pytest.approx(
        plain_resampling(row, size, start, stop), abs=1e-5
    )


@given(
    box=st.tuples(st.integers(0, 30), st.integers(0, 30), st.integers(1, 60), st.integers(1, 90)),
    size=st.integers(1, 50),
)
@settings(max_examples=60, deadline=None)
def test_a_constant_field_stays_exactly_constant(box: tuple[int, int, int, int], size: int) -> None:
    """Else boundaries would be found where there are none."""
    field = np.full((2, 2, 23, 31), 0.1, np.float32)
    square = to_square(field, size, *in_field(window(box, (96, 128)), field.shape[2:]))
    assert (square == np.float32(0.1)).all()


def test_a_ramp_is_read_where_the_box_lies() -> None:
    """A field whose value is its place: the clip holds the places of the box, whatever size the field has."""
    for height, width in ((96, 128), (48, 64), (24, 32)):
        down, across = (np.arange(n) + 0.5 for n in (height, width))
        field = np.stack(np.broadcast_arrays(across[None] * 128 / width, down[:, None] * 96 / height))[None]
        square = to_square(field.astype(np.float32), 8, *in_field(window((16, 32, 64, 80), (96, 128)), (height, width)))
        assert square[0, 0, 0] == pytest.approx(32 + 10 * (np.arange(8) + 0.5), abs=0.1)
        assert square[0, 1, :, 0] == pytest.approx(16 + 8 * (np.arange(8) + 0.5), abs=0.1)


def plain_turn(field: np.ndarray, flip: bool, turns: int) -> np.ndarray:
    """A field (2, S, S) with its vectors as a clip is mirrored and then turned: point by point."""
    size = field.shape[-1]
    for step in range(int(flip) + turns):
        result = np.empty_like(field)
        for row in range(size):
            for column in range(size):
                right, down = field[:, row, column]
                if flip and step == 0:
                    result[:, row, size - 1 - column] = -right, down
                else:  # counter-clockwise: what was on the right is above, and what went down goes right
                    result[:, size - 1 - column, row] = down, -right
        field = result
    return field


@given(flip=st.booleans(), turns=st.integers(0, 3), seed=st.integers(0, 2**31 - 1))
@settings(max_examples=60, deadline=None)
def test_vectors_are_mirrored_and_turned_with_the_clip(flip: bool, turns: int, seed: int) -> None:
    field = np.random.default_rng(seed).normal(size=(2, 5, 5))
    carried = window((0, 0, 5, 5), (5, 5), flip=flip, turns=turns).carry(field, vector=True)
    assert np.array_equal(carried, plain_turn(field, flip, turns))


@pytest.mark.parametrize("flip", [False, True])
@pytest.mark.parametrize("turns", [0, 1, 2, 3])
def test_flow_moves_as_the_pixels_of_the_clip_do(flip: bool, turns: int) -> None:
    """The flow of a clip that was mirrored and turned is that of a video which was filmed so."""
    frames = drifting(4, 2, 1, (80, 80))
    box, size = (8, 12, 48, 48), (80, 80)
    turned = Flow()(frames, clip_of(48), window(box, size, flip=flip, turns=turns))
    mirrored = frames[:, :, ::-1] if flip else frames
    filmed = np.ascontiguousarray(np.rot90(mirrored, turns, axes=(1, 2)))
    right, down = plain_turn(np.array([2.0, 1.0])[:, None, None], flip, turns)[:, 0, 0]
    assert np.median(turned, axis=(0, 2, 3)) == pytest.approx((right, down), abs=0.1)
    direct = vectors(*grey_of(filmed[:2]), "dis")[:, 20:-20, 20:-20]
    assert np.median(direct, axis=(1, 2)) == pytest.approx((right, down), abs=0.1)


def test_repetitions_and_seams_do_not_move() -> None:
    """Slow motion repeats frames, a short video starts again or stops: none of that is motion."""
    frames, size = drifting(6, 2, 0), (96, 128)

    def moves(**more: object) -> list[bool]:
        seen = window((0, 0, 96, 128), size, frames=6, **more)
        return [bool(pair.any()) for pair in Flow()(frames[seen.indices], clip_of(frames=6), seen)]

    assert moves(total=6) == [True] * 5
    assert moves(total=6, stride=Fraction(1, 2)) == [False, True, False, True, False]
    assert moves(total=3) == [True, True, False, True, True]  # 0 1 2 0 1 2
    assert moves(total=3, clamped=True) == [True, True, False, False, False]
    assert moves(total=5, stride=Fraction(2)) == [True, True, False, True, False]  # 0 2 4 1 3 0
    assert moves(total=4, stride=Fraction(3), clamped=True) == [True, False, False, False, False]
    assert moves(total=5, stride=Fraction(7)) == [False] * 5  # 0 2 4 1 3 0: forward by chance


# Computing ahead ------------------------------------------------------------------------------------------------------

SIZE = (96, 128)
FRAMES = {"train/a": 40, "train/b": 70, "c": 9}
MOVES = {"train/a": (2, 0), "train/b": (0, 1), "c": (-1, 1)}


def write(path: Path, frames: int, right: int, down: int, size: tuple[int, int] = SIZE) -> None:
    """A texture that drifts, and a square on it that drifts the other way: so there are boundaries."""
    path.parent.mkdir(parents=True, exist_ok=True)
    video = drifting(frames, right, down, size)
    for number, frame in enumerate(video):
        place = 30 - 2 * number % 20
        frame[place : place + 30, 50:80] = texture(30, 30, 9)
    write_video(path, iter(video))


@pytest.fixture(scope="module")
def videos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three videos that drift, and one that is none."""
    root = tmp_path_factory.mktemp("videos")
    for name, frames in FRAMES.items():
        write(root / f"{name}.mp4", frames, *MOVES[name])
    (root / "broken.mp4").write_bytes(b"nothing")
    return root


def paths_of(root: Path) -> list[str]:
    """The videos below a folder."""
    return sorted(str(path) for path in root.rglob("*.mp4"))


@pytest.fixture(scope="module")
def folder(videos: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Their flow by DIS."""
    out = tmp_path_factory.mktemp("flow") / "out"
    result = compute(paths_of(videos), str(videos), str(out), DIS, 1)
    assert [Path(path).stem for path in result.paths] == ["c", "a", "b"] and result.pairs == sum(FRAMES.values()) - 3
    return out


def seen(videos: Path, name: str, **more: object) -> tuple[np.ndarray, Window]:
    """A window of a video with its frames."""
    path = str(videos / f"{name}.mp4")
    facts = decode.scan(path)
    fields = {"total": facts.frames, "path": path, **more}
    view = window(fields.pop("box", (10, 20, 80, 80)), (facts.height, facts.width), **fields)
    return decode.read(path, view.indices, facts).rgb(view.indices), view


@pytest.mark.parametrize("name", FRAMES)
def test_what_is_read_back_is_what_is_computed_on_the_fly(videos: Path, folder: Path, name: str) -> None:
    """But for the rounding to 1/32 pixel and the means of blocks: within half of a rounding of the means themselves."""
    frames, view = seen(videos, name, frames=8, flip=True, turns=1)
    here, stored = (flow(frames, clip_of(56, 8), view) for flow in (Flow(), Flow(folder=str(folder))))
    assert here.shape == stored.shape == (7, 2, 56, 56) and stored.dtype == np.float32
    assert np.abs(here - stored).mean() < 0.1 and np.abs(np.median(here - stored)) < STEP
    coarse = [to_square(part, 14, (0, 56), (0, 56)) for part in (here, stored)]
    assert np.corrcoef(coarse[0].ravel(), coarse[1].ravel())[0, 1] > 0.99


def test_every_pair_is_where_it_belongs(videos: Path, folder: Path) -> None:
    """From the first pair to the last, over the seams of the file's pieces."""
    store, path = FlowStore.open(str(folder)), str(videos / "train/b.mp4")
    facts = decode.scan(path)
    grey = grey_of(decode.read(path, np.arange(70), facts).rgb(np.arange(70)))
    assert PIECE < 69
    for first in (0, PIECE - 2, PIECE - 1, 2 * PIECE - 2, 67):
        view = window((0, 0, *SIZE), SIZE, total=70, start=Fraction(first), frames=3, path=path)
        read = store.read(view, np.array([True, True]), 48)
        for number in range(2):
            blocks = blocks_of(vectors(grey[first + number], grey[first + number + 1], "dis"), 48)
            expected = to_square(blocks[None] * np.float32(STEP), 48, *in_field(view, blocks.shape[1:]))
            assert np.array_equal(read[number], expected[0])


def test_it_is_compact(videos: Path, folder: Path) -> None:
    """Less than a tenth of the field as float32; and a folder of larger frames is no larger."""
    pairs = sum(frames - 1 for frames in FRAMES.values())
    size = sum(path.stat().st_size for path in folder.rglob("*.npz"))
    assert size < pairs * 2 * SIZE[0] * SIZE[1] * 4 / 10
    assert blocks_of(np.zeros((2, 240, 320), np.float32), 48).shape == (2, 48, 64)
    assert blocks_of(np.zeros((2, 20, 30), np.float32), 48).shape == (2, 20, 30)  # never made larger


def test_blocks_are_means_in_steps_and_never_wrap_around() -> None:
    field = np.arange(2 * 8 * 12, dtype=np.float32).reshape(2, 8, 12)
    means = field.reshape(2, 4, 2, 6, 2).mean(axis=(2, 4))
    assert np.array_equal(blocks_of(field, 4), np.rint(means / STEP))
    assert blocks_of(np.full((2, 2, 2), 1e9, np.float32), 2).max() == 32767


def test_begun_again_it_keeps_what_is_whole_and_mends_the_rest(videos: Path, tmp_path: Path) -> None:
    """What a kill leaves, what was damaged since, a video that changed, and one that cannot be read any more."""
    root, out = tmp_path / "videos", tmp_path / "out"
    shutil.copytree(videos, root)
    first = compute(paths_of(root), str(root), str(out), DIS, 1)
    assert (first.written, first.kept, list(first.skipped)) == (3, 0, [str(root / "broken.mp4")])
    content = {path: path.read_bytes() for path in out.rglob("*.npz")}
    again = compute(paths_of(root), str(root), str(out), DIS, 1)
    assert (again.written, again.kept, again.pairs) == (0, 3, first.pairs)
    (out / "train" / "a.npz").write_bytes(content[out / "train" / "a.npz"][:-40])  # as a full disk would cut it
    (out / "train" / "a.npz.77.part").write_bytes(b"half")
    mended = compute(paths_of(root), str(root), str(out), DIS, 1)
    assert (mended.written, mended.kept) == (1, 2)
    assert {path: path.read_bytes() for path in out.rglob("*.npz")} == content and not list(out.rglob("*.part"))
    late = time.time() + 10
    (root / "train" / "b.mp4").write_bytes(b"nothing")
    shutil.copy(root / "train" / "a.mp4", root / "c.mp4")
    for name in ("train/b.mp4", "c.mp4"):
        os.utime(root / name, (late, late))
    changed = compute(paths_of(root), str(root), str(out), DIS, 1)
    assert (changed.written, changed.kept, len(changed.skipped)) == (1, 1, 2)
    assert not (out / "train" / "b.npz").exists(), "flow of a video that is another now"
    told = [json.loads(line) for line in (out / "skipped.jsonl").read_text().splitlines()]
    assert {Path(line["path"]).stem: bool(line["reason"]) for line in told} == {"broken": True, "b": True}


def vssl(*words: str) -> subprocess.Popen[str]:
    """The command, in a process and a group of its own."""
    command = [str(Path(sys.executable).parent / "vssl"), *words]
    return subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True
    )


def test_the_command_goes_on_after_a_kill(tmp_path: Path) -> None:
    """Killed as soon as a file is there: none that is half written is taken for whole, and the rest is done then."""
    root, out = tmp_path / "videos", tmp_path / "out"
    for number in range(8):
        write(root / f"{number}.mp4", 40, 1, 0, (64, 80))
    words = ("data", "flow", str(root), "--out", str(out), "--method", "farneback", "--workers", "2")
    process = vssl(*words)
    deadline = time.monotonic() + 120
    while not list(out.rglob("*.npz")) and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.005)
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate()
    there = {path: path.stat().st_mtime_ns for path in out.rglob("*.npz")}
    assert there, "nothing was written"
    for path in there:
        with np.load(path) as stored:
            assert stored["frame"].tolist() == [40, 64, 80] and stored["000001"].shape[0] == 39 - PIECE
    process = vssl(*words)
    told, _ = process.communicate(timeout=120)
    assert process.returncode == 0, told
    assert f"{8 - len(there)} written, {len(there)} already there, 0 left out" in told
    assert {path: path.stat().st_mtime_ns for path in there} == there and len(list(out.rglob("*.npz"))) == 8
    assert "checked on 8 clips against flow taken on the fly" in told and not list(out.rglob("*.part"))


def test_the_command_says_what_was_left_out_and_shows_how_far_it_is(videos: Path, tmp_path: Path) -> None:
    """On a terminal there is a bar; the exit code is 1 where some videos have no flow."""
    script = shutil.which("script")
    words = ["data", "flow", str(videos), "--out", str(tmp_path / "out"), "--method", "dis"]
    process = vssl(*words)
    told, _ = process.communicate(timeout=120)
    assert process.returncode == 1 and f"{videos / 'broken.mp4'}: " in told
    assert "3 written, 0 already there, 1 left out; 116 pairs of frames" in told and "/4" not in told
    if script is None:
        pytest.skip("needs the program script to pretend a terminal")
    command = " ".join([str(Path(sys.executable).parent / "vssl"), *words])
    shown = subprocess.run([script, "-qec", command, "/dev/null"], capture_output=True, text=True, timeout=120)
    assert "flow" in shown.stdout and "/4" in shown.stdout


@pytest.mark.parametrize("workers", [1, 2])
def test_workers_change_nothing(videos: Path, folder: Path, tmp_path: Path, workers: int) -> None:
    compute(paths_of(videos), str(videos), str(tmp_path / "out"), DIS, workers)
    for path in folder.rglob("*.npz"):
        assert (tmp_path / "out" / path.relative_to(folder)).read_bytes() == path.read_bytes()


def test_stride_and_blocks_are_those_that_were_asked_for(videos: Path, tmp_path: Path) -> None:
    out = str(tmp_path / "out")
    result = compute([str(videos / "train/a.mp4"), str(videos / "c.mp4")], str(videos), out, Settings("dis", 10, 12), 1)
    assert "has 9 frames, and flow needs two that lie 10 apart" in result.skipped[str(videos / "c.mp4")]
    with np.load(result.store.place(str(videos / "train/a.mp4"))) as stored:
        assert stored["000000"].shape == (30, 2, 12, 16)
    frames, view = seen(videos, "train/a", stride=Fraction(10))
    moved = Flow(folder=out)(frames, clip_of(), view)[:, 0]
    assert moved.shape == (3, 32, 32)
    Flow(folder=out).check("here", 10)


def test_settings_and_folders_that_cannot_be_used_are_refused(videos: Path, folder: Path, tmp_path: Path) -> None:
    paths, root, out = paths_of(videos), str(videos), str(tmp_path / "out")
    for settings_, sentence in (
        (Settings("tvl2"), "--method: no way to compute flow is called 'tvl2'; did you mean 'tvl1'"),
        (Settings("dis", 0), "--stride: must be at least 1, got 0"),
        (Settings("dis", 1, -1), "--blocks: must be at least 1, got -1"),
    ):
        with pytest.raises(ConfigError, match=sentence):
            compute(paths, root, out, settings_, 1)
    with pytest.raises(ConfigError, match="--workers: must be at least 1, got 0"):
        compute(paths, root, out, DIS, 0)
    with pytest.raises(
        DataError, match="holds flow of .* by dis with --stride 1 and --blocks 48, .*give another folder"
    ):
        compute(paths, root, str(folder), Settings("farneback"), 1)
    with pytest.raises(DataError, match="does not lie below"):
        compute(paths, str(videos / "train"), str(tmp_path / "new"), DIS, 1)
    (tmp_path / "a_file").touch()
    with pytest.raises(DataError, match="a_file cannot be written: .*; choose another place"):
        compute(paths, root, str(tmp_path / "a_file"), DIS, 1)
    twin = tmp_path / "twins"
    write(twin / "x.mp4", 3, 1, 0)
    shutil.copy(twin / "x.mp4", twin / "x.avi")
    with pytest.raises(DataError, match="differ in nothing but their endings"):
        compute([str(twin / "x.mp4"), str(twin / "x.avi")], str(twin), str(tmp_path / "twin_flow"), DIS, 1)


def test_the_command_tells_a_mistake_in_one_sentence(videos: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["data", "flow", str(videos), "--out", "nowhere", "--method", "raft"]) == 2
    told = capsys.readouterr().err
    assert told.startswith("vssl data: --method: no way to compute flow is called 'raft'") and told.count("\n") == 1
    assert not Path("nowhere").exists()


def test_a_folder_with_the_flow_of_other_frames_is_found_out(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """What the command checks at its end, on a folder that was tampered with."""
    root, out = tmp_path / "videos", tmp_path / "out"
    write(root / "a.mp4", 30, 3, 0)
    store = compute([str(root / "a.mp4")], str(root), str(out), DIS, 1).store
    found = agreement(Compared(store, str(root / "a.mp4")))
    assert found is not None and found.correlation > 0.97 and found.apart < 1e-6
    with np.load(out / "a.npz") as stored:
        blocks, frame = list(stored["000000"]), tuple(stored["frame"].tolist())
    save(str(out / "a.npz"), [np.roll(part, 24, axis=2) for part in blocks], frame)
    tampered = agreement(Compared(store, str(root / "a.mp4")))
    assert tampered is not None and tampered.correlation < 0.5 and tampered.apart > 0.2
    save(str(out / "a.npz"), [np.zeros_like(part) for part in blocks], frame)
    assert agreement(Compared(store, str(root / "a.mp4"))).apart == 1
    words = ["--method", "dis", "--blocks", "48", "--workers", "1"]
    assert cli.main(["data", "flow", str(root), "--out", str(out), *words]) == 2
    assert "does not hold the flow of these videos by dis with --stride 1 and --blocks 48" in capsys.readouterr().err


def test_a_folder_with_flow_by_another_method_is_found_out(
    clips: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Real videos, in which methods differ; the folder's description says what its files are not."""
    root, out = tmp_path / "videos", tmp_path / "out"
    root.mkdir()
    for path in sorted((clips / "ucf101_6_original").rglob("*.avi"))[::12]:
        shutil.copy(path, root)
    words = ["data", "flow", str(root), "--out", str(out), "--workers", "1", "--method"]
    assert cli.main([*words, "farneback"]) == 0
    told = " ".join(capsys.readouterr().out.split())
    assert "the strongest block is the same in 100%" in told
    facts = (out / FACTS).read_text()
    (out / FACTS).write_text(facts.replace("farneback", "dis"))
    assert cli.main([*words, "dis"]) == 2
    error = capsys.readouterr().err
    assert "does not hold the flow of these videos by dis with --stride 1" in error
    assert "remove it and compute it again" in error and error.count("\n") == 1


def test_what_hardly_moves_is_not_compared(tmp_path: Path) -> None:
    write_video(tmp_path / "still.mp4", iter(np.repeat(drifting(1, 0, 0), 20, axis=0)))
    store = compute([str(tmp_path / "still.mp4")], str(tmp_path), str(tmp_path / "out"), DIS, 1).store
    assert agreement(Compared(store, str(tmp_path / "still.mp4"))) is None
    assert agreement(Compared(store, str(tmp_path / "missing.mp4"))) is None
    assert some(list("abcdefghi"), 3) == ["a", "e", "i"] and some(["a"], 3) == ["a"]


# Reading --------------------------------------------------------------------------------------------------------------


def read(videos: Path, folder: Path, name: str = "train/a", **more: object) -> np.ndarray:
    """The flow of a window, from the folder."""
    frames, view = seen(videos, name, **more)
    return Flow(folder=str(folder))(frames, clip_of(32, view.frames), view)


def test_reading_needs_neither_pixels_nor_opencv(folder: Path, videos: Path) -> None:
    code = (
        "import sys; sys.modules['cv2'] = None\n"
        "from fractions import Fraction\nimport numpy as np\nfrom vssl_core import Flow, Window\n"
        f"flow = Flow(folder={str(folder)!r}); flow.check('here', 1); assert not flow.whole\n"
        "seen = Window(0, 0, 0, 40, Fraction(3), Fraction(1), 4, 0, (0, 0, 96, 96), (96, 128), "
        f"path={str(videos / 'train/a.mp4')!r})\n"
        "print(np.abs(flow(np.zeros((0,)), np.zeros((4, 16, 16, 3)), seen)).max() > 0.5)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert done.stdout.strip() == "True", done.stderr


def test_slow_motion_and_loops_are_read_like_computed(videos: Path, folder: Path) -> None:
    """Frames that repeat and seams need no flow of another stride."""
    for more in ({"stride": Fraction(1, 2)}, {"start": Fraction(38)}, {"start": Fraction(38), "clamped": True}):
        frames, view = seen(videos, "train/a", frames=6, **more)
        here, stored = (flow(frames, clip_of(32, 6), view) for flow in (Flow(), Flow(folder=str(folder))))
        assert [bool(pair.any()) for pair in here] == [bool(pair.any()) for pair in stored]
        assert np.abs(here - stored).mean() < 0.2


def test_a_wrong_stride_is_refused_before_the_run_and_in_it(videos: Path, folder: Path) -> None:
    sentence = (
        "here: the flow in .* was computed between frames 1 apart, and clips have a stride of 2; set clip.stride=1"
    )
    with pytest.raises(ConfigError, match=sentence):
        Flow(folder=str(folder)).check("here", 2)
    with pytest.raises(ConfigError, match="has another stride"):
        read(videos, folder, stride=Fraction(2))
    with pytest.raises(DataError, match=r"here: .*: holds no flow.json, so no flow; compute it with `vssl data flow`"):
        Flow(folder=str(videos)).check("here", 1)


def test_a_video_without_flow_is_one_that_cannot_be_read(videos: Path, folder: Path, tmp_path: Path) -> None:
    """It goes into the ledger, and another one takes its place."""
    write(tmp_path / "new.mp4", 8, 1, 0)
    with pytest.raises(VideoError, match=f"has no flow in .*, which is made of the videos below {videos}") as error:
        read(tmp_path, folder, "new")
    assert error.value.path == str(tmp_path / "new.mp4")
    told = pickle.loads(pickle.dumps(error.value))  # as it comes from a loader worker
    assert str(told) == str(error.value) and told.advice == error.value.advice
    assert told.advice.startswith("compute it with `vssl data flow SOURCE:ROOT --out FOLDER --method dis`")


def test_videos_that_were_moved_or_copied_find_their_flow(videos: Path, folder: Path, tmp_path: Path) -> None:
    """By the end of their path, whatever their kind; and by a link too."""
    shutil.copytree(videos, tmp_path / "moved" / "ucf")
    (tmp_path / "link").symlink_to(videos)
    before = read(videos, folder)
    assert np.array_equal(read(tmp_path / "moved" / "ucf", folder), before)
    assert np.array_equal(read(tmp_path / "link", folder), before)
    assert FlowStore.open(str(folder)).find("/else/where/train/a.avi") == str(folder / "train/a.npz")


def test_a_video_never_gets_the_flow_of_its_namesake(videos: Path, folder: Path, tmp_path: Path) -> None:
    """One that lies below the root, and was left out, is not to be known by its name alone."""
    with pytest.raises(VideoError, match="has no flow"):
        FlowStore.open(str(folder)).find(str(videos / "other" / "c.mp4"))
    write(tmp_path / "c.mp4", 30, 1, 0)  # the folder's c has nine frames
    with pytest.raises(VideoError, match="has frame 22, and its flow was computed from 9 frames"):
        read(tmp_path, folder, "c", start=Fraction(19))
    write(tmp_path / "new" / "c.mp4", 9, 1, 0, (128, 96))
    with pytest.raises(VideoError, match="has frames of 128 x 96 pixels, and its flow was computed from 96 x 128"):
        read(tmp_path / "new", folder, "c")


def spoilt(content: bytes) -> Iterator[tuple[str, bytes]]:
    """A file cut short, with other bytes inside, and what is no archive at all."""
    yield "empty", b""
    yield "cut", content[: len(content) // 2]
    yield "text", b"no archive at all"
    for place in range(40, len(content) - 200, max(1, len(content) // 60)):
        yield f"changed at {place}", content[:place] + bytes(5) + content[place + 5 :]


def test_a_spoilt_file_is_one_sentence_and_never_other_flow(videos: Path, folder: Path, tmp_path: Path) -> None:
    """Bytes are checked: either the file tells the same as before, or it cannot be read."""
    shutil.copytree(folder, tmp_path / "out")
    place = tmp_path / "out" / "train" / "a.npz"
    good, refused = read(videos, folder), 0
    for name, content in spoilt(place.read_bytes()):
        place.write_bytes(content)
        try:
            found = read(videos, tmp_path / "out")
        except VideoError as error:
            refused += 1
            assert error.reason.startswith("its flow in ") and error.reason.endswith("; compute it again")
            assert "\n" not in error.reason, name
        else:
            assert np.array_equal(found, good), name
    assert refused > 20


def archive(place: Path, **arrays: np.ndarray) -> None:
    """An archive of whatever arrays, pickled where they hold objects."""
    with open(place, "wb") as file:
        np.savez_compressed(file, **arrays)


def test_arrays_of_another_kind_are_refused(videos: Path, folder: Path, tmp_path: Path) -> None:
    shutil.copytree(folder, tmp_path / "out")
    place, frame = tmp_path / "out" / "train" / "a.npz", np.array([40, 96, 128])
    for piece in (
        np.zeros((39, 2, 9, 9)),
        np.zeros((39, 3, 9, 9), np.int16),
        np.zeros((39, 2), np.int16),
        np.zeros(()),
    ):
        archive(place, frame=frame, **{"000000": piece})
        with pytest.raises(VideoError, match="cannot be read"):
            read(videos, tmp_path / "out")
    archive(place, frame=np.array(["a", "b"]), **{"000000": np.zeros((39, 2, 9, 9), np.int16)})
    with pytest.raises(VideoError, match="cannot be read"):
        read(videos, tmp_path / "out")
    archive(place, frame=frame)
    with pytest.raises(VideoError, match="cannot be read"):
        read(videos, tmp_path / "out")
    np.save(open(place, "wb"), frame)  # noqa: SIM115
    with pytest.raises(VideoError, match="cannot be read"):
        read(videos, tmp_path / "out")


class Trap:
    """Leaves a file where it is unpickled."""

    def __init__(self, sign: Path) -> None:
        self.sign = sign

    def __reduce__(self) -> tuple:
        return os.mkdir, (str(self.sign),)


def test_nothing_in_a_folder_is_executed(videos: Path, folder: Path, tmp_path: Path) -> None:
    """A pickle in place of the file, and one inside of an archive, as training and as the command read it."""
    shutil.copytree(folder, tmp_path / "out")
    place, trap = tmp_path / "out" / "train" / "a.npz", Trap(tmp_path / "sign")
    job = Job(str(videos / "train/a.mp4"), str(place), DIS)
    objects = np.array([trap, trap, trap], dtype=object)
    for form in ("pickle", "frame", "piece"):
        if form == "pickle":
            place.write_bytes(pickle.dumps(trap))
        elif form == "frame":
            archive(place, frame=objects, **{"000000": objects})
        else:
            archive(place, frame=np.array([40, 96, 128]), **{"000000": objects})
        with pytest.raises(VideoError, match="cannot be read"):
            read(videos, tmp_path / "out")
        ahead(job)
        assert not (tmp_path / "sign").exists(), form
    pickle.loads(pickle.dumps(trap))
    assert (tmp_path / "sign").exists(), "the trap works"


@pytest.mark.parametrize(
    "content",
    [
        "", "[]", '"flow"', "{", '{"root": "/"}', '{"root": "/", "method": "dis", "stride": "1"}',
        '{"root": "/", "method": "raft"}', '{"root": "/", "method": "dis", "stride": 0}',
        '{"root": "/", "method": "dis", "more": 1}', '{"root": "/", "method": ["dis"]}',
    ],
)  # fmt: skip
def test_a_spoilt_description_is_one_sentence(content: str, tmp_path: Path) -> None:
    (tmp_path / FACTS).write_text(content)
    with pytest.raises(
        DataError, match=r"flow.json cannot be read .*; remove the folder and compute the flow again"
    ) as told:
        FlowStore.open(str(tmp_path))
    assert "\n" not in str(told.value)


def test_a_damaged_video_has_flow_to_where_it_is_damaged(clips: Path, tmp_path: Path) -> None:
    """Real files that break in the middle: what comes before is there, and what lies behind cannot be asked for."""
    name = "decord__corrupted.mp4"
    shutil.copy(clips / "odd" / name, tmp_path / name)
    done = ahead(Job(str(tmp_path / name), str(tmp_path / "out.npz"), DIS))
    frames = 0
    with pytest.raises(VideoError):
        for _ in decode.sequence(str(tmp_path / name)):
            frames += 1
    assert done.pairs == max(frames - 1, 0) and bool(done.reason) == (frames < 2)


def test_real_clips_are_alike_stored_and_on_the_fly(clips: Path, tmp_path: Path) -> None:
    """Videos as published, B-frames in AVI among them: the same frames, so nearly the same boundaries."""
    paths = sorted(str(path) for path in (clips / "ucf101_6_original").rglob("*.avi"))[::12]
    result = compute(paths, str(clips), str(tmp_path), DIS, 1)
    assert not result.skipped
    found = [agreement(Compared(result.store, path)) for path in result.paths]
    told = [one for one in found if one is not None]
    assert len(told) == 2 and min(one.correlation for one in told) > 0.99
    assert max(one.apart for one in told) < 1e-6 and min(min(one.same) for one in told) >= 0.5


def test_an_archive_that_lies_about_its_size_is_refused(videos: Path, folder: Path, tmp_path: Path) -> None:
    """A header that promises more than there is must not be believed."""
    shutil.copytree(folder, tmp_path / "out")
    place = tmp_path / "out" / "train" / "a.npz"
    with ZipFile(place, "w", ZIP_DEFLATED) as zipped:
        header = b"{'descr': '<i2', 'fortran_order': False, 'shape': (39, 2, 99999999, 99999999), }"
        zipped.writestr("000000.npy", b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header)
        zipped.writestr("frame.npy", b"\x93NUMPY\x01\x00\x00\x00")
    with pytest.raises(VideoError, match="cannot be read"):
        read(videos, tmp_path / "out")
