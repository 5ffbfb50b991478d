"""Frames of a video by index: exactly those of a sequential decode, with as little decoded as can be proved safe."""

from __future__ import annotations

from collections.abc import Generator, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from fractions import Fraction

import av
import numpy as np
from av.container import InputContainer
from av.video.frame import VideoFrame
from av.video.stream import VideoStream
from numpy.typing import NDArray

from vssl_core.data import packets
from vssl_core.data.containers import NOTHING, alone, no_frame, opened, sentence, video_streams
from vssl_core.data.frames import Frames, Pixels
from vssl_core.data.with_torchcodec import read_with_torchcodec
from vssl_core.errors import ConfigError, VideoError

__all__ = ["BACKENDS", "EndedEarly", "Frames", "Scan", "read", "scan", "sequence"]

BACKENDS = ("pyav", "torchcodec")

# Containers that keep an index of their own, and presentation times that were written, not guessed.
_TIMED_CONTAINERS = {"mov,mp4,m4a,3gp,3g2,mj2", "matroska,webm"}
_SKIPPABLE = {"h264", "mpeg4"}  # where a picture that is no reference can be left out without changing any other
_WORTH_A_SEEK = 3  # frames: jumping over fewer costs more than decoding them


class EndedEarly(VideoError):
    """Decoding stopped before a frame that was asked for: only the first `frames` frames (at least one) exist."""

    def __init__(self, path: str, reason: str, frames: int) -> None:
        super().__init__(path, reason)
        self.args = (path, reason, frames)  # so that the error survives pickling
        self.frames = frames


@dataclass(frozen=True)
class Scan:
    """What one pass over the packets of a file says, with no more than its first two frames decoded."""

    frames: int  # by packets that are to be shown: the true count of a sound file
    height: int  # of the first frame as shown
    width: int
    rotation: int  # 0, 90, 180 or 270 degrees counter-clockwise, to be applied for display
    rate: Fraction | None = field(default=None, compare=False)  # frames per second on average, if the header says
    stream: int = field(default=-1, compare=False)  # position in the container; -1: choose again
    # The time of frame i where times prove which frame is which, else None: count from the start. Seldom irregular.
    times: range | NDArray[np.int64] | None = field(default=None, compare=False, repr=False)
    # Frames that decoding may begin at, ascending, without the first; None: none was looked for.
    keys: NDArray[np.int32] | None = field(default=None, compare=False, repr=False)
    keys_hold: bool = field(default=False, compare=False, repr=False)  # all that the container calls keys can be used
    skips: bool = field(default=False, compare=False, repr=False)  # pictures that are no reference may be left out


def scan(path: str) -> Scan:
    """Count the frames of a video without decoding it; raises VideoError with the true reason."""
    number = 0
    while True:
        with opened(path) as container:
            candidates = video_streams(path, container)
            if number == len(candidates):
                raise VideoError(path, NOTHING)
            found = _Survey(path, container, candidates[number]).scan()
        if found is not None:
            return found
        number += 1  # an empty stream: look at the next


def read(path: str, indices: Sequence[int], scan: Scan | None = None, backend: str = "pyav") -> Frames:
    """Decode the frames at `indices` (any order, repeats allowed); raises VideoError, or EndedEarly if fewer exist.

    Frame i is the i-th that a sequential decode gives. Damage in a stretch that nobody asked for may go unnoticed.
    """
    if backend not in BACKENDS:
        raise ConfigError(f"data.decoder: must be one of {', '.join(BACKENDS)}, got {backend!r}")
    facts = scan if scan is not None else _scan(path)
    wanted = sorted({int(i) for i in indices})
    if not wanted or wanted[0] < 0:
        raise ValueError(f"{path}: asks for frames by indices from 0 upwards, got {list(indices)}")
    found: Mapping[int, VideoFrame | Pixels] | None = None
    if backend == "torchcodec":
        found = read_with_torchcodec(path, wanted, facts)
    if found is None and facts.times is not None and wanted[-1] < len(facts.times):
        found = _read_by_time(path, wanted, facts)
    if found is None:
        found = _read_by_count(path, wanted, facts)
    return Frames(found, facts.height, facts.width, facts.rotation)


_scan = scan  # `read` has an argument of that name


# --- scanning ---------------------------------------------------------------------------------------------------------


class _Survey:
    """One pass over the packets of one stream."""

    def __init__(self, path: str, container: InputContainer, number: int) -> None:
        self.path = path
        self.container = container
        self.stream = alone(container, number)
        context = self.stream.codec_context
        self.codec = context.codec.canonical_name
        self.extradata = context.extradata
        self.timed = container.format.name in _TIMED_CONTAINERS
        # AVI has no presentation times: there only a stream without B-frames, one picture a packet, is in known order.
        self.in_order = container.format.name == "avi" and self.codec in {"mpeg4", "mjpeg"}
        self.trusted = self.timed or self.in_order
        self.keys_hold = True
        self.packets = 0
        self.times: list[int | None] = []
        self.key_times: list[int | None] = []
        self.first: list[VideoFrame] = []
        self.ended = False  # no more frames can be, or need be, decoded
        self.encrypted = False
        self.trouble = ""

    def scan(self) -> Scan | None:
        """What was found; None where the stream holds no packet at all."""
        try:
            for packet in self.container.demux(self.stream):
                self._decode(packet)
                self.packets += packet.size > 0
                if packet.size and not packet.is_discard:
                    self._count(packet)
        except Exception as error:  # a file that is cut off still has the packets before the cut
            self.trouble = self.trouble or sentence(error)
        if self.encrypted and not self.first:
            raise VideoError(self.path, "is encrypted")
        if not self.packets:
            return None
        if not self.first:
            raise VideoError(self.path, no_frame(self.trouble))
        return self._facts()

    def _decode(self, packet: av.Packet) -> None:
        if self.ended:
            return
        try:
            self.first += packet.decode()
        except Exception as error:
            self.trouble, self.ended = sentence(error), True
        self.ended = self.ended or len(self.first) >= 2

    def _count(self, packet: av.Packet) -> None:
        self.encrypted = self.encrypted or packet.has_sidedata("encryption_info")
        look = packets.look(self.codec, self.extradata, packet, b_frames_in_order=self.timed)
        if not look.shown:
            return
        self.trusted = self.trusted and look.plain
        self.times.append(packet.pts)
        if packet.is_keyframe and look.entry:
            self.key_times.append(packet.pts)
        self.keys_hold = self.keys_hold and (look.entry or not packet.is_keyframe)

    def _facts(self) -> Scan:
        first = self.first[0]
        rotation = round(first.rotation / 90) % 4 * 90
        height, width = (first.width, first.height) if rotation in (90, 270) else (first.height, first.width)
        times = _table(self.times, self.first) if self.trusted else None
        keys = None
        if times is not None:
            keys = np.array(sorted(filter(None, (_index(times, time) for time in self.key_times))), np.int32)
        skips = times is not None and self.timed and self.codec in _SKIPPABLE  # AVI is trusted without B-frames only
        frames, stream = max(1, len(self.times)), self.stream.index
        return Scan(frames, height, width, rotation, self._rate(), stream, times, keys, self.keys_hold, skips)

    def _rate(self) -> Fraction | None:
        rate = self.stream.average_rate or self.stream.guessed_rate
        return Fraction(rate) if rate else None


def _table(times: list[int | None], first: list[VideoFrame]) -> range | NDArray[np.int64] | None:
    """The times of the frames as presented, where all are there, all differ, and the first frames decoded bear them."""
    if not times or any(t is None for t in times):
        return None
    table = np.sort(np.array(times, np.int64))
    steps = np.diff(table)
    if (steps <= 0).any() or [frame.pts for frame in first[:2]] != table[: len(first[:2])].tolist():
        return None
    if (steps == steps[:1]).all():
        step = int(steps[0]) if len(steps) else 1
        return range(int(table[0]), int(table[0]) + len(table) * step, step)
    return table


def _index(times: range | NDArray[np.int64], time: int | None) -> int | None:
    """Which frame has this time; None where no frame has it."""
    if time is None:
        return None
    if isinstance(times, range):
        return times.index(time) if time in times else None
    found = int(np.searchsorted(times, time))
    return found if found < len(times) and times[found] == time else None


# --- decoding ---------------------------------------------------------------------------------------------------------


def sequence(path: str, stream: int = -1) -> Generator[VideoFrame, None, None]:
    """Every frame in order; close it if you leave early. Raises EndedEarly at damage, VideoError without a frame."""
    count, trouble = 0, NOTHING
    with opened(path) as container:
        number = stream if stream >= 0 else video_streams(path, container)[0]
        try:
            for packet in container.demux(alone(container, number)):
                trouble = no_frame("") if packet.size else trouble
                for frame in packet.decode():
                    yield frame
                    count += 1
        except Exception as error:
            trouble = sentence(error)
            if count:
                raise EndedEarly(path, f"only the first {count} frames can be decoded ({trouble})", count) from error
            raise VideoError(path, no_frame(trouble)) from error
    if not count:
        raise VideoError(path, trouble)


def _read_by_count(path: str, wanted: list[int], facts: Scan) -> dict[int, VideoFrame]:
    """Decode from the start and count; right for every file that can be decoded at all."""
    kept: dict[int, VideoFrame] = {}
    last, missing = wanted[-1], set(wanted)
    with closing(sequence(path, facts.stream)) as frames:
        for count, frame in enumerate(frames):
            if count in missing:
                kept[count] = frame
            if count == last:
                return kept
    raise EndedEarly(path, f"frame {last} was asked for but the file ends after {count + 1} frames", count + 1)


def _read_by_time(path: str, wanted: list[int], facts: Scan) -> dict[int, VideoFrame] | None:
    """Decode only the stretches that hold wanted frames, telling frames by their times; None on any surprise."""
    kept: dict[int, VideoFrame] = {}
    with opened(path) as container:
        stream = alone(container, facts.stream)
        try:
            for entry, stretch in _stretches(wanted, facts):
                kept.update(_read_stretch(container, stream, facts, entry, stretch))
        except Exception:
            return None  # counting from the start finds out what is wrong
    return kept if len(kept) == len(wanted) else None


def _stretches(wanted: list[int], facts: Scan) -> Iterator[tuple[int, list[int]]]:
    """Runs of wanted frames, each with the frame that its decoding begins at (0: the start of the file)."""
    keys = facts.keys if facts.keys is not None else np.empty(0, np.int32)
    entry = 0
    stretch: list[int] = []
    for index, place in zip(wanted, np.searchsorted(keys, wanted, side="right"), strict=True):
        nearest = int(keys[place - 1]) if place else 0
        reached = stretch[-1] if stretch else -1
        if nearest - reached > _WORTH_A_SEEK and nearest > entry:
            if stretch:
                yield entry, stretch
            entry, stretch = nearest, []
        stretch.append(index)
    yield entry, stretch


def _read_stretch(
    container: InputContainer, stream: VideoStream, facts: Scan, entry: int, wanted: list[int]
) -> dict[int, VideoFrame]:
    times, keys = facts.times, facts.keys
    assert times is not None and keys is not None
    context = stream.codec_context
    if entry:
        container.seek(int(times[entry]), stream=stream)
    awaited = {int(times[i]): i for i in wanted}
    unfed = set(awaited)
    kept: dict[int, VideoFrame] = {}
    landed = not entry
    for packet in container.demux(stream):
        if not landed:
            found = _index(times, packet.pts)
            if found is None or found > wanted[0] or (found and found not in keys):
                return {}
            landed = True
        time = packet.pts
        if facts.skips:
            context.skip_frame = "DEFAULT" if time in unfed else "NONREF"
        for frame in packet.decode():
            if frame.pts in awaited:
                kept[awaited[frame.pts]] = frame
        unfed.discard(time)
        if not unfed:
            break
    context.skip_frame = "DEFAULT"
    if len(kept) < len(wanted):  # the decoder still holds some back for reordering
        kept |= {awaited[frame.pts]: frame for frame in context.decode(None) if frame.pts in awaited}
    return kept
