"""Where in a video a clip looks: the window, and the draws that place it. The window is the label; no torch here.

Every draw is a function of (seed, epoch, visit, video, stream, clip), so ranks, workers and restarts change no sample.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from functools import cached_property
from hashlib import blake2b
from math import ceil, exp, floor, lcm, log, sqrt

import numpy as np

from vssl_core.requests import (
    Between,
    Boxes,
    Centre,
    Fixed,
    Flips,
    Halves,
    Independent,
    Overlapping,
    Request,
    Same,
    Strides,
    Turns,
    Uniform,
)

ALL_CLIPS = -1  # the clip number of a draw that all clips of a sample share
TRIES = 50  # methods give up after 50 failed draws and take full overlap
CENTRE_SHARE = 7 / 8  # a centre crop of 112 from frames of short side 128

Box = tuple[int, int, int, int]  # top, left, height, width, in frame pixels


@dataclass(frozen=True)
class Sample:
    """One visit to one video: what all its random numbers are drawn from."""

    seed: int
    epoch: int
    visit: int
    video: int

    def generator(self, stream: str, clip: int = ALL_CLIPS) -> np.random.Generator:
        """A fresh generator for one stream of one clip; the same arguments give the same numbers, anywhere."""
        key = blake2b(
            struct.pack("<5q", self.seed, self.epoch, self.visit, self.video, clip) + stream.encode(), digest_size=16
        )
        return np.random.Generator(np.random.Philox(key=int.from_bytes(key.digest(), "little")))


@dataclass(frozen=True)
class Window:
    """What one clip shows: which frames, which box, mirrored or turned.

    Frame i is frame floor(start + i*stride) of the video.
    """

    video: int
    visit: int
    clip: int
    total: int  # frames the video truly has
    start: Fraction
    stride: Fraction
    frames: int
    tail: int
    box: Box
    frame_size: tuple[int, int]  # height, width
    flip: bool = False
    turns: int = 0  # quarter turns counter-clockwise, after the flip
    clamped: bool = False  # past the end: repeat the last frame, else start again
    path: str = ""  # the file, for measures that fetch what was made ahead

    @cached_property
    def nominal(self) -> np.ndarray:
        """(frames + tail,) the frame numbers before looping or clamping."""
        below = lcm(self.start.denominator, self.stride.denominator)
        start, stride = int(self.start * below), int(self.stride * below)  # whole numbers: exact, and fast
        return (start + stride * np.arange(self.frames + self.tail, dtype=np.int64)) // below

    @cached_property
    def indices(self) -> np.ndarray:
        """(frames + tail,) the frame numbers that are really read."""
        return np.minimum(self.nominal, self.total - 1) if self.clamped else self.nominal % self.total

    @cached_property
    def real(self) -> np.ndarray:
        """(frames + tail,) False for a frame that was read after a wrap or a clamp."""
        return self.nominal < self.total

    def carry(self, field: np.ndarray, vector: bool = False) -> np.ndarray:
        """Take a field (..., H, W) or, with `vector`, (..., 2, H, W) of (x, y) components, from frame to clip
        orientation.

        The field covers the window's box; it is mirrored and turned as the clip was, vectors with it (a mirrored x is
        negated).
        """
        if self.flip:
            field = field[..., ::-1]
            field = field * np.array([-1, 1], field.dtype)[:, None, None] if vector else field
        for _ in range(self.turns % 4):
            field = np.rot90(field, axes=(-2, -1))
            if vector:  # counter-clockwise on the screen, y down: (x, y) -> (y, -x)
                field = np.stack([field[..., 1, :, :], -field[..., 0, :, :]], axis=-3)
        return np.ascontiguousarray(field)


# Drawing --------------------------------------------------------------------------------------------------------------


def draw_windows(
    request: Request, sample: Sample, stream: str, total: int, frame_size: tuple[int, int], path: str = ""
) -> tuple[Window, ...]:
    """The windows of one group's clips in one video, the file `path` of `total` frames of `frame_size` (height, width).

    `request` is complete. Adding an objective never changes these numbers: the stream is the group's own.
    """
    count = request.least
    if isinstance(request.placement, Fixed):  # once for each video: in every epoch, every mix, and in extractions too
        placed = _draw_times(request, replace(sample, epoch=0, visit=0), "fixed", total, count)
    else:
        placed = _draw_times(request, sample, stream, total, count)
    boxes = _draw_boxes(request.boxes, sample, f"{stream}/boxes", frame_size, count)
    windows = []
    for clip, ((start, stride), box, frames) in enumerate(zip(placed, boxes, request.lengths, strict=True)):
        windows.append(
            Window(
                video=sample.video,
                visit=sample.visit,
                clip=clip,
                total=total,
                start=start,
                stride=stride,
                frames=frames,
                tail=request.tail,
                box=box,
                frame_size=frame_size,
                flip=_draw_flip(request.flips, sample, stream, clip),
                turns=_draw_turns(request.turns, sample, stream, clip),
                clamped=request.strides.short == "clamp",
                path=path,
            )
        )
    return tuple(windows)


def _draw_flip(flips: Flips, sample: Sample, stream: str, clip: int) -> bool:
    if flips.probability in (0, 1):
        return bool(flips.probability)
    return bool(sample.generator(f"{stream}/flips", clip).random() < flips.probability)


def _draw_turns(turns: Turns, sample: Sample, stream: str, clip: int) -> int:
    if len(turns.choices) == 1:
        return turns.choices[0]
    return int(turns.choices[int(sample.generator(f"{stream}/turns", clip).integers(len(turns.choices)))])


# Time -----------------------------------------------------------------------------------------------------------------


def span(length: int, stride: Fraction) -> int:
    """Frames of the video from the first to the last of `length` sampled frames, both counted."""
    return floor((length - 1) * stride) + 1


def _draw_times(
    request: Request, sample: Sample, stream: str, total: int, count: int
) -> list[tuple[Fraction, Fraction]]:
    """(start, stride) of each clip."""
    length = _base_length(request)
    strides, looped = _draw_strides(request.strides, sample, f"{stream}/strides", total, length, count)
    if looped:  # nothing fits: the smallest stride from the first frame, and all clips alike
        return (
            _layout_halves(request, Fraction(0), strides[0], count)
            if isinstance(request.placement, Halves)
            else [(Fraction(0), strides[0])] * count
        )
    match request.placement:
        case Overlapping(rates):
            return _overlapping_times(rates, strides, sample, stream, total, length, request.frames)[:count]
        case Halves():
            return _layout_halves(
                request,
                _draw_start(sample, stream, ALL_CLIPS, total, length, strides[0], request.strides.short),
                strides[0],
                count,
            )
        case Centre():
            return [(_middle(total, length, stride), stride) for stride in strides]
        case Uniform(clips):
            return [(_spread(total, length, stride, clips)[clip], stride) for clip, stride in enumerate(strides)]
        case _:
            return [
                (_draw_start(sample, stream, clip, total, length, stride, request.strides.short), stride)
                for clip, stride in enumerate(strides)
            ]


def _base_length(request: Request) -> int:
    match request.placement:
        case Halves("sparse") if request.tail:  # the overview's tail goes at twice the stride
            return 2 * request.frames + 2 * request.tail - 1
        case Halves():
            return 2 * request.frames + request.tail
        case _:
            return request.frames + request.tail


def _layout_halves(request: Request, start: Fraction, stride: Fraction, count: int) -> list[tuple[Fraction, Fraction]]:
    sparse = request.placement == Halves("sparse")
    overview = (start, 2 * stride if sparse else stride)
    return [(start, stride), (start + request.frames * stride, stride), overview][:count]


def _draw_strides(
    strides: Strides, sample: Sample, stream: str, total: int, length: int, count: int
) -> tuple[list[Fraction], bool]:
    """A stride for each clip, and whether none fitted."""
    choices, fitted = _allowed(strides, total, length)
    if isinstance(choices, Fraction):
        return [choices] * count, strides.short == "fit" and not fitted
    if strides.shared is True:
        return [_pick(choices, sample.generator(stream))] * count, False
    return [_pick(choices, sample.generator(stream, clip)) for clip in range(count)], False


def _allowed(
    strides: Strides, total: int, length: int
) -> tuple[tuple[Fraction, ...] | tuple[float, float] | Fraction, bool]:
    """What may be drawn: choices, a range (low, high) of floats, or the one stride there is.

    And whether anything fits.
    """
    if isinstance(strides.choices, Between):
        low, high = strides.choices.low, strides.choices.high
        longest = (total - 1) / max(length - 1, 1)
        if strides.short != "fit" or high <= longest:
            return (low, high), True
        return ((low, longest), True) if low <= longest else (Fraction(low).limit_denominator(1000), False)
    choices = tuple(Fraction(choice) for choice in strides.choices)
    if strides.short == "fit":
        fitting = tuple(choice for choice in choices if span(length, choice) <= total)
        if not fitting:
            return min(choices), False
        choices = fitting
    return (choices, True) if len(choices) > 1 else (choices[0], True)


def _pick(choices: tuple, generator: np.random.Generator) -> Fraction:
    if isinstance(choices[0], Fraction):
        return choices[generator.integers(len(choices))]
    low, high = choices
    return Fraction(
        floor(generator.uniform(low, high) * 1000), 1000
    )  # an exact fraction, never above the longest that fits


def _draw_start(
    sample: Sample, stream: str, clip: int, total: int, length: int, stride: Fraction, short: str
) -> Fraction:
    last = total - span(length, stride)
    if last < 0:  # "loop" starts anywhere and wraps; "clamp" starts at the first frame and repeats the last one
        last = total - 1 if short == "loop" else 0
    return Fraction(int(sample.generator(f"{stream}/placement", clip).integers(last + 1)))


def _middle(total: int, length: int, stride: Fraction) -> Fraction:
    return Fraction(max(total - span(length, stride), 0) // 2)


def _spread(total: int, length: int, stride: Fraction, clips: int) -> list[Fraction]:
    """Starts of evenly spread clips.

    Centres from the first possible to the last possible one (VCOP's ten test clips).
    """
    half = span(length, stride) / 2
    return [Fraction(max(int(centre - half), 0)) for centre in np.linspace(half, max(total - half, half), clips)]


def exact(rate: float) -> Fraction:
    """The fraction that a decimal means: 0.8 is 4/5."""
    return Fraction(str(rate))


def _overlapping_times(
    rates: Sequence[float],
    strides: Sequence[Fraction],
    sample: Sample,
    stream: str,
    total: int,
    length: int,
    frames: int,
) -> list[tuple[Fraction, Fraction]]:
    """Two starts whose clips share one of `rates` of their span, forward or backward; drawn again, rate and
    direction, until both fit.

    They lie whole frames apart (in slow motion: whole samples), so that forward and backward share the same frames.
    """
    stride = strides[0]
    unit = min(stride, Fraction(1))
    first = _draw_start(sample, stream, 0, total, length, stride, "fit")
    generator = sample.generator(f"{stream}/placement", ALL_CLIPS)
    for _ in range(TRIES):
        rate = exact(rates[int(generator.integers(len(rates)))])
        apart = round((1 - rate) * (frames - 1) * stride / unit) * unit
        second = first + apart * (1 if generator.random() < 0.5 else -1)
        if second >= 0 and floor(second + (length - 1) * stride) <= total - 1:
            return [(first, stride), (second, stride)]
    return [(first, stride), (first, stride)]


# Space ----------------------------------------------------------------------------------------------------------------


def _draw_boxes(boxes: Boxes, sample: Sample, stream: str, frame_size: tuple[int, int], count: int) -> list[Box]:
    match boxes.layout:
        case Centre():
            return [centre_box(frame_size)] * count
        case Same():
            return [random_box(boxes, sample.generator(stream), frame_size)] * count
        case Overlapping(rates):
            first = random_box(boxes, sample.generator(stream, 0), frame_size)
            return [first, overlapping_box(first, rates, sample.generator(stream), frame_size)][:count]
        case Independent():
            return [random_box(boxes, sample.generator(stream, clip), frame_size) for clip in range(count)]
    raise TypeError(boxes.layout)


def centre_box(frame_size: tuple[int, int]) -> Box:
    """The central square of 7/8 of the short side."""
    height, width = frame_size
    side = max(round(min(height, width) * CENTRE_SHARE), 1)
    return (height - side) // 2, (width - side) // 2, side, side


def random_box(boxes: Boxes, generator: np.random.Generator, frame_size: tuple[int, int]) -> Box:
    """A box of random area (evenly) and aspect (evenly in its logarithm), anywhere inside the frame."""
    height, width = frame_size
    for _ in range(10):
        area = generator.uniform(*boxes.area) * height * width
        aspect = exp(generator.uniform(log(boxes.aspect[0]), log(boxes.aspect[1])))
        box_height, box_width = round(sqrt(area / aspect)), round(sqrt(area * aspect))
        if 1 <= box_height <= height and 1 <= box_width <= width:
            break
    else:  # no such box fits: the largest one with an allowed aspect
        aspect = min(max(width / height, boxes.aspect[0]), boxes.aspect[1])
        box_height, box_width = max(min(height, round(width / aspect)), 1), max(min(width, round(height * aspect)), 1)
    top, left = generator.integers(height - box_height + 1), generator.integers(width - box_width + 1)
    return int(top), int(left), box_height, box_width


def overlapping_box(
    first: Box, rates: Sequence[float], generator: np.random.Generator, frame_size: tuple[int, int]
) -> Box:
    """A box of the same size that shares one of `rates` of its area with the first, towards one of four corners.

    The shared area over the box area differs from the rate by at most 1/(2h) of a box h pixels high (whole pixels are
    cut).
    """
    top, left, height, width = first
    for _ in range(TRIES):
        rate = exact(rates[int(generator.integers(len(rates)))])
        down, right = (1 if generator.random() < 0.5 else -1), (1 if generator.random() < 0.5 else -1)
        shared_width = int(generator.integers(ceil(rate * width), width + 1))
        shared_height = min(round(rate * width * height / shared_width), height) if shared_width else 0
        second = top + down * (height - shared_height), left + right * (width - shared_width)
        if 0 <= second[0] <= frame_size[0] - height and 0 <= second[1] <= frame_size[1] - width:
            return second[0], second[1], height, width
    return first
