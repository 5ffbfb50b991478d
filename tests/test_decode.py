"""Frames by index are those of a sequential decode, to the bit; every file that cannot be read says why."""

from __future__ import annotations

import csv
import os
import pickle
import random
import sys
from collections.abc import Iterator
from contextlib import closing
from fractions import Fraction
from itertools import islice
from pathlib import Path

import av
import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from vssl_core.data import decode
from vssl_core.errors import ConfigError, VideoError

ODD_FILES = Path(__file__).with_name("odd_files.csv")


# --- references -------------------------------------------------------------------------------------------------------


def sequential(path: Path | str, most: int | None = None) -> Iterator[av.VideoFrame]:
    """What a plain decode from the start gives: the definition of frame i."""
    with av.open(str(path), metadata_errors="replace") as container:
        stream = container.streams[decode.scan(str(path)).stream]
        stream.thread_type = "NONE"
        try:
            yield from islice(container.decode(stream), most)
        except av.FFmpegError:
            return


def samples(frame: av.VideoFrame) -> tuple[bytes, ...]:
    """All samples of a frame, without the padding between its rows."""
    size = (frame.format.components[0].bits + 7) // 8
    return tuple(
        np.frombuffer(plane, np.uint8).reshape(-1, plane.line_size)[: plane.height, : plane.width * size].tobytes()
        for plane in frame.planes
    )


def scaled(frames: np.ndarray, size: int) -> np.ndarray:
    images = torch.from_numpy(np.ascontiguousarray(frames)).permute(0, 3, 1, 2)
    small = torch.nn.functional.interpolate(images, (size, size), mode="bilinear", antialias=True)
    return small.permute(0, 2, 3, 1).numpy()


def require_exact(path: Path | str, trials: int, most: int | None = None, backend: str = "pyav") -> None:
    """Read random sets of frames, near and far, in any order, with repeats, and compare with a sequential decode."""
    reference = [hash(samples(frame)) for frame in sequential(path, most)]
    facts, draw = decode.scan(str(path)), random.Random(str(path))
    for trial in range(trials):
        start, stride = draw.randrange(len(reference)), draw.choice([1, 2, 4, 8])
        run = [min(len(reference) - 1, start + i * stride) for i in range(draw.choice([1, 4, 16]))]
        scattered = [draw.randrange(len(reference)) for _ in range(draw.choice([1, 3, 10]))]
        indices = run + scattered if trial % 2 else run
        draw.shuffle(indices)
        frames = decode.read(str(path), indices, facts, backend)
        assert sorted(frames._frames) == sorted(set(indices))
        for index in set(indices):
            assert hash(samples(frames._frames[index])) == reference[index], (path, index, indices)


# --- generated files --------------------------------------------------------------------------------------------------


def picture(number: int, height: int, width: int) -> np.ndarray:
    """A moving, coloured texture: no two frames are alike."""
    y, x = np.mgrid[:height, :width]
    channels = [(x * 3 + number * 5) % 256, (y * 4 + number * 3) % 256, (x + y + number * 11) % 256]
    frame = np.stack(channels, axis=2).astype(np.uint8)
    frame[height // 4 : height // 2, (number * 2) % max(1, width - 8) :][:, :8] = 255 - number % 200
    return frame


def encode(
    path: Path,
    codec: str,
    frames: int = 60,
    size: tuple[int, int] = (48, 64),
    pixels: str = "yuv420p",
    rotation: int = 0,
    b_frames: int = 0,
    every: int = 12,
    colours: tuple[int, int] | None = None,
    **options: str,
) -> Path:
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=25, options=options)
        stream.height, stream.width, stream.pix_fmt = *size, pixels
        stream.codec_context.gop_size, stream.codec_context.max_b_frames = every, b_frames
        if rotation:
            stream.set_display_rotation(rotation)
        if colours:
            stream.codec_context.colorspace, stream.codec_context.color_range = colours
        for number in range(frames):
            frame = av.VideoFrame.from_ndarray(picture(number, *size), format="rgb24").reformat(format=pixels)
            frame.pts, frame.time_base, frame.pict_type = number, Fraction(1, 25), 0
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return path


KINDS = {
    "mpeg4_avi": ("a.avi", "mpeg4", {}),
    "mpeg4_b_frames_avi": ("a.avi", "mpeg4", {"b_frames": 2}),
    "mpeg4_b_frames_mp4": ("a.mp4", "mpeg4", {"b_frames": 2}),
    "mjpeg_avi": ("a.avi", "mjpeg", {"pixels": "yuvj420p"}),
    "h264_mp4": ("a.mp4", "libx264", {"b_frames": 3, "sc_threshold": "0"}),
    "h264_one_key_mp4": ("a.mp4", "libx264", {"b_frames": 3, "every": 250}),
    "h264_pyramid_mkv": ("a.mkv", "libx264", {"b_frames": 5, "x264-params": "b-pyramid=normal:ref=4"}),
    "h264_open_gop_mp4": ("a.mp4", "libx264", {"b_frames": 3, "x264-params": "open-gop=1:scenecut=0"}),
    "h264_intra_refresh_mp4": ("a.mp4", "libx264", {"x264-params": "intra-refresh=1:scenecut=0"}),
    "h264_raw": ("a.h264", "libx264", {"b_frames": 3}),
    "h264_avi": ("a.avi", "libx264", {"b_frames": 3}),
    "h264_ts": ("a.ts", "libx264", {"b_frames": 3}),
    "hevc_open_gop_mp4": ("a.mp4", "libx265", {"x265-params": "log-level=none:open-gop=1:keyint=12:bframes=3"}),
    "vp8_hidden_frames_webm": ("a.webm", "libvpx", {"auto-alt-ref": "1", "lag-in-frames": "16", "deadline": "good"}),
    "vp9_hidden_frames_webm": ("a.webm", "libvpx-vp9", {"auto-alt-ref": "1", "lag-in-frames": "16", "cpu-used": "8"}),
}


def generated(folder: Path, kind: str) -> Path:
    name, codec, options = KINDS[kind]
    if codec not in av.codecs_available:
        pytest.skip(f"this FFmpeg has no {codec}")
    return encode(folder / name, codec, **options)


@pytest.mark.parametrize("kind", KINDS)
def test_frames_are_those_of_a_sequential_decode(kind: str, tmp_path: Path) -> None:
    path = generated(tmp_path, kind)
    facts = decode.scan(str(path))
    assert (facts.frames, facts.height, facts.width, facts.rotation) == (60, 48, 64, 0)
    require_exact(path, trials=30)


def test_decoding_begins_where_that_is_proved_safe_and_nowhere_else(tmp_path: Path) -> None:
    for kind in ("mpeg4_avi", "mpeg4_b_frames_mp4", "h264_mp4"):
        assert decode.scan(str(generated(tmp_path, kind))).keys.tolist()[:4] == [12, 24, 36, 48], kind
    for kind in ("mpeg4_b_frames_avi", "h264_raw", "h264_avi", "h264_ts"):  # times that cannot be trusted
        assert decode.scan(str(generated(tmp_path, kind))).times is None, kind
    for kind in ("h264_open_gop_mp4", "h264_intra_refresh_mp4"):  # what the container calls key frames, and is not
        facts = decode.scan(str(generated(tmp_path, kind)))
        assert facts.times is not None and facts.keys.tolist() == [] and not facts.keys_hold, kind


def test_far_frames_cost_their_own_stretch_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = str(encode(tmp_path / "a.mp4", "libx264", frames=240, sc_threshold="0"))
    facts = decode.scan(path)
    stretches = [(0, [0, 1]), (24, [30, 31]), (192, [200]), (228, [239])]
    assert list(decode._stretches([0, 1, 30, 31, 200, 239], facts)) == stretches
    assert list(decode._stretches([5, 10, 13, 23, 26], facts)) == [(0, [5, 10, 13, 23, 26])]  # too near for a jump
    monkeypatch.setattr(decode, "_read_by_count", lambda *_: pytest.fail("was counted from the start"))
    decode.read(path, [30, 31, 200, 239], facts)


def test_a_surprise_ends_in_counting_from_the_start(tmp_path: Path) -> None:
    path = encode(tmp_path / "a.mp4", "libx264")
    other = encode(tmp_path / "b.mp4", "libx264", every=7)
    facts, wrong = decode.scan(str(path)), decode.scan(str(other))
    frames = decode.read(str(path), [50], wrong)  # another file's key frames
    shifted = decode.Scan(60, 48, 64, 0, None, facts.stream, range(7, 7 + 60 * 512, 512), facts.keys, True, True)
    reference = samples(list(sequential(path))[50])
    assert samples(frames._frames[50]) == reference
    assert samples(decode.read(str(path), [50], shifted)._frames[50]) == reference


# --- real files -------------------------------------------------------------------------------------------------------


def real_files(clips: Path, pattern: str) -> list[Path]:
    found = sorted(clips.glob(pattern))
    assert found, f"{clips} holds no {pattern}"
    return found


@pytest.mark.parametrize(
    ("pattern", "step"), [("ucf101_6/**/*.mp4", 40), ("ucf101_6_original/**/*.avi", 2), ("weizmann/*/*.avi", 6)]
)
def test_real_frames_are_those_of_a_sequential_decode(pattern: str, step: int, clips: Path) -> None:
    for path in real_files(clips, pattern)[::step]:
        require_exact(path, trials=4)


@pytest.mark.slow
@pytest.mark.parametrize("pattern", ["ucf101_6/**/*.mp4", "ucf101_6_original/**/*.avi", "weizmann/*/*.avi"])
def test_all_real_frames_are_those_of_a_sequential_decode(pattern: str, clips: Path) -> None:
    for path in real_files(clips, pattern):
        require_exact(path, trials=6)


def odd_rows() -> list[dict[str, str]]:
    with ODD_FILES.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def test_every_odd_file_has_its_outcome(clips: Path) -> None:
    rows = odd_rows()
    assert {row["file"] for row in rows} == {path.name for path in (clips / "odd").iterdir()} - {"manifest.csv"}
    for row in rows:
        path, frames = str(clips / "odd" / row["file"]), int(row["frames"])
        if row["outcome"] == "error":
            with pytest.raises(VideoError) as caught:
                decode.scan(path)
            assert caught.value.reason == row["reason"], row["file"]
            continue
        facts = decode.scan(path)
        shown = (facts.height, facts.width, facts.rotation)
        assert shown == tuple(int(row[key]) for key in ("height", "width", "rotation")), row["file"]
        last = min(frames - 1, 9)
        clip = decode.read(path, [last, 0], facts).resized([0, last], (0, 0, facts.height, facts.width), 16)
        assert clip.shape == (2, 16, 16, 3) and clip.dtype == np.uint8
        if row["outcome"] == "ok":
            assert facts.frames == frames, row["file"]
            continue
        # What the decoder held back when it failed may still be had by those who want nothing after it.
        for index in (facts.frames - 1, facts.frames + 1000):
            with pytest.raises(decode.EndedEarly) as early:
                decode.read(path, [0, index], facts)
            assert early.value.frames == frames, row["file"]


@pytest.mark.slow
def test_the_table_of_odd_files_agrees_with_their_manifest(clips: Path) -> None:
    with (clips / "odd" / "manifest.csv").open(encoding="utf-8", newline="") as file:
        manifest = {row["file"]: row for row in csv.DictReader(file)}
    for row in odd_rows():
        decoded = int(manifest[row["file"]]["decoded_frames"] or 0)
        assert min(int(row["frames"]), 1500) == decoded, row["file"]  # the manifest stops at 1500


@pytest.mark.slow
def test_odd_frames_are_those_of_a_sequential_decode(clips: Path) -> None:
    for row in odd_rows():
        if row["outcome"] != "error":
            require_exact(clips / "odd" / row["file"], trials=8, most=300)


# --- pixels -----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def converted(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[decode.Frames, np.ndarray]]:
    """Eight frames of several layouts, as they are read and as PyAV converts them."""
    folder = tmp_path_factory.mktemp("layouts")
    files = {
        "420": encode(folder / "420.mp4", "libx264", 8, (50, 70)),
        "420_full": encode(folder / "full.mp4", "libx264", 8, (48, 64), "yuvj420p"),
        "420_bt709": encode(folder / "709.mp4", "libx264", 8, (48, 64), colours=(1, 1)),
        "420_odd": encode(folder / "odd.mp4", "mpeg4", 8, (49, 65)),
        "422": encode(folder / "422.mp4", "libx264", 8, (48, 64), "yuv422p"),
        "444": encode(folder / "444.mp4", "libx264", 8, (49, 65), "yuv444p"),
        "10_bit": encode(folder / "10.mp4", "libx264", 8, (48, 64), "yuv420p10le"),
        "grey": encode(folder / "grey.mp4", "libx264", 8, (48, 64), "gray"),
        "rgb": encode(folder / "rgb.avi", "ffv1", 8, (48, 64), "bgr0"),
    }
    return {
        name: (
            decode.read(str(path), range(8)),
            np.stack([frame.to_ndarray(format="rgb24") for frame in sequential(path)]),
        )
        for name, path in files.items()
    }


@pytest.mark.parametrize("layout", ["420", "420_full", "420_bt709", "420_odd", "422", "444", "10_bit", "grey", "rgb"])
@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_pixels_are_those_that_ffmpeg_converts(layout: str, converted: dict, data: st.DataObject) -> None:
    frames, reference = converted[layout]
    top, left = data.draw(st.integers(0, frames.height - 1)), data.draw(st.integers(0, frames.width - 1))
    height = data.draw(st.integers(1, frames.height - top))
    width = data.draw(st.integers(1, frames.width - left))
    size = data.draw(st.sampled_from([1, 7, 32, 100]))
    indices = data.draw(st.lists(st.integers(0, 7), min_size=1, max_size=5))
    cut = reference[indices, top : top + height, left : left + width]
    box = (top, left, height, width)
    assert np.array_equal(frames.rgb(indices, box), cut)
    assert np.array_equal(frames.resized(indices, box, size), scaled(cut, size))
    assert np.array_equal(frames.rgb(indices), reference[indices])


def test_many_large_frames_are_converted_in_pieces(tmp_path: Path) -> None:
    path = encode(tmp_path / "large.mp4", "libx264", 6, (480, 640))
    reference = np.stack([frame.to_ndarray(format="rgb24") for frame in sequential(path)])
    frames, box = decode.read(str(path), range(6)), (3, 5, 471, 633)
    assert np.array_equal(frames.rgb(range(6), box), reference[:, 3:474, 5:638])
    assert np.array_equal(frames.resized(range(6), box, 64), scaled(reference[:, 3:474, 5:638], 64))


@pytest.mark.parametrize("matrix", [1, 5, 8, 9, 10, 14])
def test_a_matrix_that_ffmpeg_cannot_convert_is_taken_for_bt601(matrix: int, tmp_path: Path) -> None:
    plain = encode(tmp_path / "plain.mp4", "libx264", 2)
    tagged = encode(tmp_path / "tagged.mp4", "libx264", 2, colours=(matrix, 1))
    clips = [decode.read(str(path), [0, 1]).rgb([0, 1]).astype(int) for path in (plain, tagged)]
    difference = np.abs(clips[0] - clips[1]).mean()
    assert difference > 1 if matrix in (1, 9) else difference < 1


@pytest.mark.parametrize("rotation", [90, 180, 270])
def test_rotation_is_honoured(rotation: int, tmp_path: Path) -> None:
    path = str(encode(tmp_path / "turned.mp4", "libx264", 4, (48, 80), rotation=rotation))
    stored = np.stack([frame.to_ndarray(format="rgb24") for frame in sequential(path)])
    shown = np.rot90(stored, rotation // 90, axes=(1, 2))  # counter-clockwise
    facts = decode.scan(path)
    assert facts.rotation == rotation and (facts.height, facts.width) == shown.shape[1:3]
    frames, draw = decode.read(path, range(4), facts), random.Random(rotation)
    assert np.array_equal(frames.rgb(range(4)), shown)
    for _ in range(20):
        top, left = draw.randrange(facts.height), draw.randrange(facts.width)
        height, width = draw.randint(1, facts.height - top), draw.randint(1, facts.width - left)
        cut = shown[:, top : top + height, left : left + width]
        assert np.array_equal(frames.rgb(range(4), (top, left, height, width)), cut)
        small = frames.resized(range(4), (top, left, height, width), 24).astype(int)
        assert np.abs(small - scaled(cut, 24)).max() <= 1  # turned after scaling: the order of rounding differs


def test_a_change_of_size_in_mid_stream_is_brought_to_the_first_size(tmp_path: Path) -> None:
    both = tmp_path / "both.h264"
    parts = [encode(tmp_path / f"{size[0]}.h264", "libx264", 5, size) for size in ((48, 64), (96, 128))]
    both.write_bytes(b"".join(part.read_bytes() for part in parts))
    facts = decode.scan(str(both))
    assert (facts.frames, facts.height, facts.width) == (10, 48, 64)
    frames = decode.read(str(both), range(10), facts)
    large = np.stack([frame.to_ndarray(format="rgb24") for frame in sequential(parts[1])])
    halves = large.reshape(5, 48, 2, 64, 2, 3).mean((2, 4))
    assert frames.rgb(range(10)).shape == (10, 48, 64, 3)
    assert np.abs(frames.rgb(range(5, 10)) - halves).mean() < 6  # the scaler's own filter
    assert frames.resized(range(10), (1, 1, 40, 40), 16).shape == (10, 16, 16, 3)  # a clip of both kinds


def test_boxes_outside_the_frame_are_refused(tmp_path: Path) -> None:
    frames = decode.read(str(encode(tmp_path / "a.mp4", "libx264", 2)), [0])
    for box in ((0, 0, 49, 64), (-1, 0, 4, 4), (0, 60, 4, 5), (0, 0, 0, 4)):
        with pytest.raises(ValueError, match="does not lie in a frame"):
            frames.rgb([0], box)
        with pytest.raises(ValueError, match="does not lie in a frame"):
            frames.resized([0], box, 8)


# --- files that end early, or cannot be read --------------------------------------------------------------------------


def test_a_file_that_is_cut_off_has_the_frames_before_the_cut(tmp_path: Path) -> None:
    whole = encode(tmp_path / "whole.avi", "mpeg4").read_bytes()
    cut = tmp_path / "cut.avi"
    cut.write_bytes(whole[: len(whole) * 6 // 10])
    count = len(list(sequential(cut)))
    assert 5 < count < 55
    require_exact(cut, trials=10)
    with pytest.raises(decode.EndedEarly) as early:
        decode.read(str(cut), [0, 59])
    assert early.value.frames == count


def test_damage_in_the_middle_ends_the_video_there(tmp_path: Path) -> None:
    whole = bytearray(encode(tmp_path / "whole.mp4", "libx264", every=250).read_bytes())
    for place in range(len(whole) // 2, len(whole) * 6 // 10):
        whole[place] = 0xFF
    damaged = tmp_path / "damaged.mp4"
    damaged.write_bytes(whole)
    count = len(list(sequential(damaged)))
    assert 5 < count < 55
    facts = decode.scan(str(damaged))
    assert facts.frames == 60
    decode.read(str(damaged), [0, count // 2], facts)
    with pytest.raises(decode.EndedEarly, match=f"only the first {count} frames") as early:
        decode.read(str(damaged), [3, 59], facts)
    again = pickle.loads(pickle.dumps(early.value))
    assert (again.frames, again.path, again.reason) == (count, str(damaged), early.value.reason)


def unreadable(folder: Path) -> dict[str, tuple[Path, str]]:
    """Broken files by kind, each with a word of its reason."""
    names = ("empty.mp4", "noise.mp4", "words.nfo", "cut.mp4", "pipe.mp4", "a_folder.mp4")
    made = {name: folder / name for name in names}
    made["empty.mp4"].touch()
    made["noise.mp4"].write_bytes(random.Random(0).randbytes(5000))
    made["words.nfo"].write_text("a text that FFmpeg would draw\n")
    whole = encode(folder / "whole.mp4", "libx264").read_bytes()
    made["cut.mp4"].write_bytes(whole[: len(whole) // 2])  # its index lies at the end
    os.mkfifo(made["pipe.mp4"])
    made["a_folder.mp4"].mkdir()
    with av.open(str(folder / "sound.wav"), "w") as container:
        stream = container.add_stream("pcm_s16le", rate=8000)
        sound = av.AudioFrame.from_ndarray(np.zeros((1, 800), np.int16), format="s16", layout="mono")
        sound.sample_rate = 8000
        container.mux(stream.encode(sound))
        container.mux(stream.encode(None))
    with av.open(str(folder / "header.mp4"), "w", options={"movflags": "empty_moov+frag_keyframe"}) as container:
        stream = container.add_stream("libx264", rate=25)
        stream.height, stream.width, stream.pix_fmt = 48, 64, "yuv420p"
        container.start_encoding()
    reasons = ("is empty", "damaged", "text file", "damaged", "not a regular file", "is a folder")
    broken = {path.name: (path, reason) for path, reason in zip(made.values(), reasons, strict=True)}
    broken["sound.wav"] = (folder / "sound.wav", "no video stream, only audio")
    broken["header.mp4"] = (folder / "header.mp4", "not a single video frame")
    broken["missing.mp4"] = (folder / "missing.mp4", "no such file")
    broken["zero byte"] = (folder / "a\0b.mp4", "is not the name of a file")
    return broken


def test_unreadable_files_say_why_and_leave_nothing_open(tmp_path: Path, capfd: pytest.CaptureFixture) -> None:
    broken = unreadable(tmp_path)
    before = len(os.listdir("/proc/self/fd")) if sys.platform == "linux" else 0
    for _ in range(3):
        for path, reason in broken.values():
            for act in (decode.scan, lambda name: decode.read(name, [0]), lambda name: list(decode.sequence(name))):
                with pytest.raises(VideoError) as caught:
                    act(str(path))
                assert caught.value.path == str(path)
                assert reason in caught.value.reason, path
                assert "\n" not in caught.value.reason and "Errno" not in caught.value.reason
    if sys.platform == "linux":
        assert len(os.listdir("/proc/self/fd")) == before
    assert capfd.readouterr().err == ""  # FFmpeg is silent


def test_names_that_mean_something_to_ffmpeg_are_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    video = encode(tmp_path / "a.mp4", "libx264", 3)
    monkeypatch.chdir(tmp_path)
    for name in ("concat:a.mp4", "frame%03d.mp4", "what?.mp4", "- a 'name'.mp4", "\udcff.mp4"):
        Path(name).write_bytes(video.read_bytes())
        assert decode.scan(name).frames == 3, name


def test_the_first_default_stream_is_read_and_never_a_cover(tmp_path: Path) -> None:
    path = tmp_path / "two.mp4"
    with av.open(str(path), "w") as container:
        streams = [container.add_stream("libx264", rate=25), container.add_stream("libx264", rate=25)]
        for stream, size in zip(streams, ((48, 64), (96, 128)), strict=True):
            stream.height, stream.width, stream.pix_fmt = *size, "yuv420p"
        for number in range(8):
            for stream in streams:
                frame = av.VideoFrame.from_ndarray(picture(number, stream.height, stream.width), format="rgb24")
                frame.pts, frame.time_base = number, Fraction(1, 25)
                container.mux(stream.encode(frame))
        for stream in streams:
            container.mux(stream.encode(None))
    facts = decode.scan(str(path))
    assert (facts.frames, facts.height, facts.width) == (8, 48, 64)
    require_exact(path, trials=4)


# --- the rest of the contract -----------------------------------------------------------------------------------------


def test_a_scan_is_a_small_value(tmp_path: Path) -> None:
    path = encode(tmp_path / "a.mp4", "libx264", frames=300)
    facts = decode.scan(str(path))
    again = pickle.loads(pickle.dumps(facts))
    assert again == facts and again.times == facts.times and again.keys.tolist() == facts.keys.tolist()
    assert facts.rate == 25
    assert len(pickle.dumps(facts)) < 1000  # for three hundred frames
    assert len({facts, again}) == 1


def test_indices_must_be_frames(tmp_path: Path) -> None:
    path = str(encode(tmp_path / "a.mp4", "libx264", 3))
    for indices in ([], [-1]):
        with pytest.raises(ValueError, match="from 0 upwards"):
            decode.read(path, indices)


def test_left_sequences_close_their_file(tmp_path: Path) -> None:
    path = str(encode(tmp_path / "a.mp4", "libx264", 10))
    with closing(decode.sequence(path)) as frames:
        next(frames)
    assert len(list(decode.sequence(path))) == 10


def test_an_unknown_decoder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="must be one of pyav, torchcodec, got 'decord'"):
        decode.read(str(encode(tmp_path / "a.mp4", "libx264", 3)), [0], backend="decord")


def test_torchcodec_gives_the_same_frames_or_says_why_not(tmp_path: Path) -> None:
    paths = {kind: generated(tmp_path, kind) for kind in ("h264_mp4", "mpeg4_b_frames_avi", "h264_intra_refresh_mp4")}
    try:
        import torchcodec.decoders  # noqa: F401
    except Exception:
        with pytest.raises(ConfigError, match="torchcodec cannot be loaded .*; install it"):
            decode.read(str(paths["h264_mp4"]), [0], backend="torchcodec")
        return
    for path in paths.values():
        mine, theirs = (decode.read(str(path), [3, 40, 41], backend=name) for name in ("pyav", "torchcodec"))
        assert np.abs(mine.rgb([3, 40, 41]).astype(int) - theirs.rgb([3, 40, 41])).mean() < 1
