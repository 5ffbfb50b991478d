"""The fast copy: every frame in order, begun again where it was, and never a half-written file under its name."""

from __future__ import annotations

import hashlib
import json
import os
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest

from vssl_core.data import decode
from vssl_core.data.prepare import Copied, Job, Prepared, copy, prepare, run_prepare
from vssl_core.errors import DataError


def picture(number: int, height: int, width: int) -> np.ndarray:
    y, x = np.mgrid[:height, :width]
    waves = [128 + 90 * np.sin((x + 3 * number) / 20), 128 + 90 * np.cos(y / 15)]
    channels = [*waves, (x + y) * 128 // (height + width) + number]
    return np.stack(channels, axis=2).clip(0, 255).astype(np.uint8)


def encode(
    path: Path, codec: str = "libx264", size: tuple[int, int] = (180, 320), frames: int = 30, **more: object
) -> Path:
    """A video with sound."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=25)
        stream.height, stream.width, stream.pix_fmt = *size, str(more.get("pixels", "yuv420p"))
        stream.codec_context.max_b_frames = 2
        stream.codec_context.colorspace, stream.codec_context.color_range = more.get("colours", (2, 0))
        if "rotation" in more:
            stream.set_display_rotation(more["rotation"])
        sound = container.add_stream("aac", rate=48000)
        sound.layout = "mono"
        for number in range(frames):
            frame = av.VideoFrame.from_ndarray(picture(number, *size), format="rgb24")
            frame.pts, frame.time_base = number, Fraction(1, 25)
            container.mux(stream.encode(frame.reformat(format=stream.pix_fmt)))
            noise = av.AudioFrame.from_ndarray(np.zeros((1, 1920), np.float32), format="fltp", layout="mono")
            noise.sample_rate, noise.pts = 48000, number * 1920
            container.mux(sound.encode(noise))
        container.mux(stream.encode(None))
        container.mux(sound.encode(None))
    return path


@pytest.fixture
def videos(tmp_path: Path) -> Path:
    root = tmp_path / "videos"
    encode(root / "wave" / "one.avi", "mpeg4")  # B-frames in AVI
    encode(root / "wave" / "turned.mp4", size=(320, 180), rotation=90)
    encode(root / "small.mov", size=(50, 61 // 2 * 2), frames=5)
    (root / "wave" / "broken.mp4").write_bytes(b"nothing")
    return root


def files(root: Path) -> list[str]:
    return sorted(str(path) for path in root.rglob("*") if path.is_file())


def sums(out: Path) -> dict[str, str]:
    lines = (out / "checksums.txt").read_text().splitlines()
    return {name: checksum for checksum, name in (line.split("  ") for line in lines)}


def same_pictures(one: Path, other: Path, indices: list[int]) -> float:
    clips = []
    for path in (one, other):
        facts = decode.scan(str(path))
        frames = decode.read(str(path), indices, facts)
        clips.append(frames.resized(indices, (0, 0, facts.height, facts.width), 40).astype(int))
    return float(np.abs(clips[0] - clips[1]).mean())


def test_the_copy_holds_every_frame_in_order(videos: Path, tmp_path: Path) -> None:
    out = tmp_path / "copy"
    assert prepare(files(videos), str(videos), str(out), progress=False) == Prepared(3, 0, 1)
    assert sorted(sums(out)) == ["small.mp4", "wave/one.mp4", "wave/turned.mp4"]
    shapes = {"wave/one": (30, 128, 228, 0), "wave/turned": (30, 128, 228, 90), "small": (5, 50, 60, 0)}
    for source, name in (("wave/one.avi", "wave/one"), ("wave/turned.mp4", "wave/turned"), ("small.mov", "small")):
        copied = out / f"{name}.mp4"
        assert hashlib.sha256(copied.read_bytes()).hexdigest() == sums(out)[f"{name}.mp4"]
        facts = decode.scan(str(copied))
        assert (facts.frames, facts.height, facts.width, facts.rotation) == shapes[name], name
        assert facts.keys.tolist() == list(range(12, facts.frames, 12)) and facts.keys_hold
        assert facts.rate == 25
        assert same_pictures(videos / source, copied, list(range(facts.frames))) < 2.5
        with av.open(str(copied)) as container:
            assert [stream.type for stream in container.streams] == ["video"]
    (skipped,) = (json.loads(line) for line in (out / "skipped.jsonl").read_text().splitlines())
    assert skipped["path"].endswith("wave/broken.mp4") and "damaged" in skipped["reason"]
    assert not list(out.rglob("*.part"))


@pytest.mark.parametrize(
    ("pixels", "colours"), [("yuv420p", (1, 1)), ("yuvj420p", (5, 2)), ("yuv444p", (5, 1)), ("yuv420p", (8, 1))]
)
def test_colours_survive(pixels: str, colours: tuple[int, int], tmp_path: Path) -> None:
    source = encode(tmp_path / "videos" / "a.mp4", frames=3, pixels=pixels, colours=colours)
    prepare([str(source)], str(source.parent), str(tmp_path / "copy"), 1, progress=False)
    assert same_pictures(source, tmp_path / "copy" / "a.mp4", [0, 1, 2]) < 2.5


def test_begun_again_it_goes_on_where_it_was(videos: Path, tmp_path: Path) -> None:
    out = tmp_path / "copy"
    prepare(files(videos), str(videos), str(out), progress=False)
    first = sums(out)
    times = {name: os.stat(out / name).st_mtime_ns for name in first}
    # What a kill leaves: a half-written file, half a line; and a copy that was damaged since.
    (out / "wave" / "turned.mp4.part").write_bytes(b"half")
    (out / "wave" / "turned.mp4").write_bytes(b"damaged")
    with (out / "checksums.txt").open("a") as file:
        file.write(first["small.mp4"][:30])
    assert prepare(files(videos), str(videos), str(out), progress=False) == Prepared(1, 2, 1)
    assert sums(out) == first  # the same bytes again
    assert {name: os.stat(out / name).st_mtime_ns for name in first if "turned" not in name} == {
        name: time for name, time in times.items() if "turned" not in name
    }
    assert not list(out.rglob("*.part"))
    # A video that changed is copied again; one that broke loses its copy.
    encode(videos / "small.mov", size=(50, 60), frames=7)
    os.utime(videos / "small.mov", ns=(max(times.values()) + 10**10,) * 2)
    (videos / "wave" / "one.avi").write_bytes(b"nothing")
    os.utime(videos / "wave" / "one.avi", ns=(max(times.values()) + 10**10,) * 2)
    assert prepare(files(videos), str(videos), str(out), progress=False) == Prepared(1, 1, 2)
    assert decode.scan(str(out / "small.mp4")).frames == 7
    assert sorted(sums(out)) == ["small.mp4", "wave/turned.mp4"] and not (out / "wave" / "one.mp4").exists()


def test_some_videos_can_be_added_later(videos: Path, tmp_path: Path) -> None:
    out = tmp_path / "copy"
    prepare([str(videos / "small.mov")], str(videos), str(out), progress=False)
    prepare([str(videos / "wave" / "one.avi")], str(videos), str(out), progress=False)
    assert sorted(sums(out)) == ["small.mp4", "wave/one.mp4"]


def test_the_command_says_what_was_left_out(videos: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    assert run_prepare(files(videos), str(videos), str(tmp_path / "copy"), 2) == 1
    printed = capsys.readouterr().out
    assert "wave/broken.mp4: is not a video" in printed and "3 written, 0 already there, 1 left out" in printed
    os.unlink(videos / "wave" / "broken.mp4")
    assert run_prepare(files(videos), str(videos), str(tmp_path / "copy"), 2) == 0


def test_two_videos_of_one_name_do_not_overwrite_each_other(videos: Path, tmp_path: Path) -> None:
    twin = encode(videos / "small.avi", "mpeg4", frames=3)
    result = prepare([str(twin), str(videos / "small.mov")], str(videos), str(tmp_path / "copy"), progress=False)
    assert result == Prepared(1, 0, 1)
    assert decode.scan(str(tmp_path / "copy" / "small.mp4")).frames == 3
    assert "would overwrite" in (tmp_path / "copy" / "skipped.jsonl").read_text()


def test_copies_below_the_videos_are_not_copied_again(videos: Path) -> None:
    out = videos / "copy"
    prepare(files(videos), str(videos), str(out), progress=False)
    assert prepare(files(videos), str(videos), str(out), progress=False) == Prepared(0, 3, 1)


def test_folders_that_cannot_be_used_are_refused(videos: Path, tmp_path: Path) -> None:
    file = tmp_path / "a_file"
    file.touch()
    with pytest.raises(DataError, match="is the folder of the videos themselves"):
        prepare(files(videos), str(videos), str(videos / "wave" / ".."), progress=False)
    with pytest.raises(DataError, match="does not lie below"):
        prepare(files(videos), str(videos / "wave"), str(tmp_path / "copy"), progress=False)
    with pytest.raises(DataError, match="a_file/copy cannot be written"):
        prepare(files(videos), str(videos), str(file / "copy"), progress=False)


def test_a_copy_that_cannot_be_written_is_no_fault_of_the_video(videos: Path, tmp_path: Path) -> None:
    (tmp_path / "a_file").touch()
    outcome = copy(Job(str(videos / "small.mov"), str(tmp_path / "a_file" / "small.mp4")))
    assert outcome == Copied(reason="file exists", fatal=True)
    (tmp_path / "copy").mkdir()
    (tmp_path / "copy" / "wave").touch()
    with pytest.raises(DataError, match="copy cannot be written: .*; choose another place"):
        prepare([str(videos / "wave" / "one.avi")], str(videos), str(tmp_path / "copy"), progress=False)


def test_real_videos_keep_their_frames(clips: Path, tmp_path: Path) -> None:
    names = ["decord__video_90.mov", "torchcodec__nasa_13013.mp4", "vp8-test-vectors__vp80-05-sharpness-1439.ivf"]
    sources = [clips / "odd" / name for name in names]
    prepare([str(path) for path in sources], str(clips), str(tmp_path / "copy"), progress=False)
    for path in sources:
        copied = tmp_path / "copy" / "odd" / f"{path.stem}.mp4"
        frames = decode.scan(str(path)).frames
        assert decode.scan(str(copied)).frames == frames == len(list(decode.sequence(str(copied))))
        assert same_pictures(path, copied, [0, frames // 2, frames - 1]) < 4
