"""Rows on the way from file to batch.

Whole loaders against each other, decoding shared and apart, and whether frames are right.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import closing
from fractions import Fraction
from importlib.util import find_spec
from itertools import islice

import numpy as np

from vssl_core.bench import loaders
from vssl_core.bench.apart import Maker, paired_apart
from vssl_core.bench.files import Files
from vssl_core.bench.rows import Row, Spread, Times, at_least, at_most, count, not_measured, paired
from vssl_core.data import decode
from vssl_core.data.clips import scan
from vssl_core.errors import VideoError
from vssl_core.looks import Recipe

DEEPEST = 300  # frames: a reference decodes no further into a file
RATES = (1, 2, 4)


# Right frames ---------------------------------------------------------------------------------------------------------


def frames_exact(files: Files, share: float = 1.0) -> Row:
    """The share of readable files whose frames are, byte for byte, those of a sequential decode."""
    name, case = "frames_exact", "frames returned = frames of a sequential decode, two clips of every readable file"
    right, wrong, unreadable = 0, [], 0
    paths = files.everything[:: max(1, round(1 / share))]
    for number, path in enumerate(paths):
        try:
            good = _frames_match(path, np.random.default_rng(number))
        except VideoError:
            unreadable += 1
            continue
        right += good
        wrong += [] if good else [files.name(path)]
    readable = right + len(wrong)
    note = f"{readable} files readable, {unreadable} not" + (f"; wrong: {', '.join(wrong[:5])}" if wrong else "")
    if not readable:
        return not_measured(name, case, at_least(1.0), "no file can be read")
    return Row(
        name, case, at_least(1.0), Spread.of([right / readable]), repeats=1, files=files.names(paths), note=note,
        ours=f"{right} files right", other=f"{readable} files readable",
    )  # fmt: skip


def _frames_match(path: str, generator: np.random.Generator) -> bool:
    facts = decode.scan(path)
    total = min(facts.frames, DEEPEST)
    wanted = np.unique(np.concatenate([_some_clip(total, generator) for _ in range(2)]))
    try:
        got = decode.read(path, wanted, facts)
    except decode.EndedEarly as early:
        wanted = wanted[wanted < early.frames] if (wanted < early.frames).any() else np.array([0])
        got = decode.read(path, wanted, facts)
    with closing(decode.sequence(path, facts.stream)) as frames:
        kept = {i: frame for i, frame in enumerate(islice(frames, int(wanted[-1]) + 1)) if i in set(wanted.tolist())}
    reference = decode.Frames(kept, facts.height, facts.width, facts.rotation)
    return all(np.array_equal(got.rgb([i]), reference.rgb([i])) for i in wanted)


def _some_clip(total: int, generator: np.random.Generator) -> np.ndarray:
    stride = int(generator.integers(1, 5))
    start = int(generator.integers(max(total - 15 * stride, 1)))
    return np.minimum(start + stride * np.arange(16), total - 1)


# Whole loaders --------------------------------------------------------------------------------------------------------


def data_path_vs_pytorchvideo(files: Files, share: float = 1.0) -> Row:
    """PyTorchVideo's own loader with the jitter of its MoCo recipe, on the videos as found."""
    return _vs_pytorchvideo("data_path_vs_pytorchvideo", files, files.originals, share, 12)


def data_path_vs_pytorchvideo_h264(files: Files, share: float = 1.0) -> Row:
    """The same on H.264."""
    return _vs_pytorchvideo("data_path_vs_pytorchvideo_h264", files, files.h264, share, 7)


def _vs_pytorchvideo(name: str, files: Files, paths: Sequence[str], share: float, bar: float) -> Row:
    found = loaders.videos(paths)
    times = _against(loaders.JITTER, "float", loaders.pytorchvideo, found, 3, share)
    case = f"two 16x112x112 clips of 2 s with SSL jitter and blur, LabeledVideoDataset, {len(found)} files"
    return _row(name, case, times, bar, files, found)


def data_path_vs_decode_all(files: Files, share: float = 1.0) -> Row:
    """Each clip from a decode of the whole video, every frame converted."""
    found = loaders.videos(files.originals)
    times = _against(Recipe(), "uint8", loaders.decode_all, found, 5, share)
    case = f"the whole video decoded and converted for each clip, uint8 out, {len(found)} files"
    return _row("data_path_vs_decode_all", case, times, 5, files, found)


def data_path_vs_vjepa2_order(files: Files, share: float = 1.0) -> Row:
    """decord with one call for all clips, float at full size, no jitter."""
    name = "data_path_vs_vjepa2_order"
    case = "decord, one get_batch, float at full size, then crop and scale; no jitter"
    if find_spec("decord") is None:
        return not_measured(name, case, at_least(1.5), "decord is not installed")
    found = loaders.videos(files.originals)
    times = _against(Recipe(), "float", loaders.vjepa2_order, found, 10, share)
    return _row(name, f"{case}, {len(found)} files", times, 1.5, files, found)


def data_path_vs_floor(files: Files, share: float = 1.0) -> Row:
    """The whole data path over decoding the spans of the clips, which no loader can leave out."""
    found = loaders.videos(files.originals)
    times = _against(Recipe(), "uint8", loaders.floor, found, 10, share)
    case = f"two clips, uint8 out, over decoding their spans only, {len(found)} files"
    return times.row(
        "data_path_vs_floor",
        case,
        at_most(1.5),
        per=loaders.CLIPS * len(found),
        files=files.names([v.path for v in found]),
    )


def _against(
    recipe: Recipe, output: str, other: Callable, found: Sequence[loaders.Video], repeats: int, share: float
) -> Times:
    mine = Maker(loaders.Ours, (found, recipe, output), keeps_pages=True)
    return paired_apart(mine, Maker(other, (found,), keeps_pages=False), count(repeats, share), warm=share >= 1)


def _row(name: str, case: str, times: Times, bar: float, files: Files, found: Sequence[loaders.Video]) -> Row:
    return times.row(
        name, case, at_least(bar), per=loaders.CLIPS * len(found), files=files.names([video.path for video in found])
    )


# Sharing --------------------------------------------------------------------------------------------------------------


def shared_decode_4_clips(files: Files, share: float = 1.0) -> Row:
    """Four clips that begin within a second of each other: one decode for all, over one decode for each."""
    found = [*loaders.videos(files.originals), *loaders.videos(files.h264)]
    times = paired(_shared(found), _apart(found), count(7, share), share >= 1)
    case = (
        f"four clips within +-1 s from one decode, over four decodes, frames converted and scaled, {len(found)} files"
    )
    return times.row(
        "shared_decode_4_clips", case, at_most(0.65), per=4 * len(found), files=files.names([v.path for v in found])
    )


def _shared(found: Sequence[loaders.Video]) -> Callable[[int], int]:
    def run(repetition: int) -> int:
        made = 0
        for video in found:
            clips = _four_clips(video, repetition)
            frames = decode.read(video.path, np.unique(np.concatenate(clips)), scan(video.path))
            made += sum(len(_scaled(frames, clip)) for clip in clips)
        return made

    return run


def _apart(found: Sequence[loaders.Video]) -> Callable[[int], int]:
    def run(repetition: int) -> int:
        return sum(
            len(_scaled(decode.read(video.path, np.unique(clip), scan(video.path)), clip))
            for video in found
            for clip in _four_clips(video, repetition)
        )

    return run


def _scaled(frames: decode.Frames, clip: np.ndarray) -> np.ndarray:
    side = min(frames.height, frames.width) * 3 // 4
    return frames.resized(clip, (0, 0, side, side), loaders.SIZE)


def _four_clips(video: loaders.Video, repetition: int) -> list[np.ndarray]:
    """Frame numbers of four clips of 16 frames at paces 1, 2 or 4, whose first frames lie within +-1 s."""
    generator = video.sample(repetition).generator("four clips")
    total, near = scan(video.path).frames, int(Fraction(video.rate))
    middle = int(generator.integers(total))
    clips = []
    for _ in range(4):
        stride = int(generator.choice([rate for rate in RATES if 15 * rate < total] or [1]))
        last = max(total - 15 * stride - 1, 0)
        start = int(np.clip(middle + generator.integers(-near, near + 1), 0, last))
        clips.append(np.minimum(start + stride * np.arange(16), total - 1))
    return clips
