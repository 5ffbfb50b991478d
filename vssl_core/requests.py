"""What an objective asks of the clips it reads.

Silence protects: a field that says nothing is `PLAIN`, the run's own setting, and no neighbour may change it. Only
`ANY` yields.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum
from fractions import Fraction
from typing import Any, Literal

from vssl_core.errors import PluginError


class Mark(Enum):
    """The two things a field may say instead of a value."""

    PLAIN = "plain"
    ANY = "any"

    def __repr__(self) -> str:
        return self.name


PLAIN: Any = Mark.PLAIN  # the run's clip settings, and no neighbour may change them
ANY: Any = Mark.ANY  # whatever a neighbour needs, else the run's settings


# Where clips lie, in time (placement) and in space (the layout of boxes) ----------------------------------------------


@dataclass(frozen=True)
class Independent:
    """Each clip is drawn by itself."""


@dataclass(frozen=True)
class Overlapping:
    """Two clips that share one of `rates` of their span (in time) or of their area (in space)."""

    rates: tuple[float, ...] = (0.2, 0.4, 0.6, 0.8, 1.0)


@dataclass(frozen=True)
class Halves:
    """Clip 0 and clip 1 are the halves of one span; with `overview`, clip 2 is the whole span.

    A `sparse` overview has every second frame of the span, as many as a half; a `dense` one has all of them.
    """

    overview: Literal["sparse", "dense"] | None = None


@dataclass(frozen=True)
class Fixed:
    """Drawn once for each video, alike in every epoch."""


@dataclass(frozen=True)
class Centre:
    """The middle of the video, or the central square of 7/8 of the short side."""


@dataclass(frozen=True)
class Uniform:
    """`clips` clips, evenly spread over the video."""

    clips: int = 10


@dataclass(frozen=True)
class Same:
    """One box for all clips."""


Placement = Independent | Overlapping | Halves | Fixed | Centre | Uniform
Layout = Independent | Overlapping | Same | Centre


def clips_of(layout: Placement | Layout | Mark) -> int | None:
    """How many clips a layout is made for; None where it serves any number."""
    match layout:
        case Overlapping():
            return 2
        case Halves(overview):
            return 3 if overview else 2
        case Uniform(clips):
            return clips
        case _:
            return None


# The records of a request ---------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Between:
    """Any stride from `low` to `high`, evenly."""

    low: float
    high: float


@dataclass(frozen=True)
class Strides:
    """Frames from one sampled frame to the next: integers play fast, fractions 1/q repeat each frame q times."""

    choices: tuple[int | Fraction, ...] | Between | Any = ANY
    shared: bool | Any = ANY  # one draw for all clips of a sample
    short: Literal["fit", "loop", "clamp"] | Any = ANY  # what happens where the video is too short for the stride


@dataclass(frozen=True)
class Boxes:
    """The part of the frame that a clip shows."""

    layout: Layout | Any = ANY
    area: tuple[float, float] | Any = ANY  # share of the frame
    aspect: tuple[float, float] | Any = ANY  # width over height


@dataclass(frozen=True)
class Flips:
    """Mirror images: left becomes right with this probability, drawn for each clip."""

    probability: float | Any = ANY


@dataclass(frozen=True)
class Turns:
    """Quarter turns, counter-clockwise, drawn evenly for each clip; applied last."""

    choices: tuple[int, ...] | Any = ANY


@dataclass(frozen=True)
class Appearance:
    """Colour, blur and noise: `jittered` as the run describes, or `kept` as filmed.

    One draw for each clip or each frame.
    """

    colour: Literal["jittered", "kept"] | Any = ANY
    per: Literal["clip", "frame"] | Any = ANY


@dataclass(frozen=True)
class Measure:
    """A pure function of one clip, run in the loader worker: `function(crop, clip, window)` gives an array of fixed
    shape.

    `clip` is the (T,S,S,3) uint8 result; `crop` the same box at source resolution, flipped and turned alike, or with
    `whole` the whole frames as filmed, for what must see beyond the box; tail frames included.
    """

    name: str
    function: Callable[..., Any]
    whole: bool = False


@dataclass(frozen=True)
class Request:
    """What one slot of an objective needs from the clips it reads.

    `Request()` is exactly the clip the run describes.
    """

    clips: int | tuple[int, int] = 1  # exactly n, or (least, most): I read at most `most`
    frames: int | Any = PLAIN
    size: int | Any = PLAIN
    tail: int = 0  # further frames after the clip, same window and appearance
    strides: Strides | Any = PLAIN
    placement: Placement | Any = PLAIN
    boxes: Boxes | Any = PLAIN
    flips: Flips | Any = PLAIN
    turns: Turns | Any = PLAIN
    appearance: Appearance | Any = PLAIN
    measures: tuple[Measure, ...] = ()

    @property
    def least(self) -> int:
        return self.clips if isinstance(self.clips, int) else self.clips[0]

    @property
    def most(self) -> int:
        return self.clips if isinstance(self.clips, int) else self.clips[1]

    @property
    def lengths(self) -> tuple[int, ...]:
        """The frames of each clip, tails left out, of a request that has a value in `frames`."""
        longer = 2 if self.placement == Halves("dense") else None  # its overview is as long as both halves
        return tuple(self.frames * (2 if clip == longer else 1) for clip in range(self.least))

    def check(self, where: str) -> None:
        """Raise a `PluginError` for a request that no data could satisfy."""
        if not 1 <= self.least <= self.most:
            raise PluginError(
                f"{where}: a request reads at least one clip and (least, most) in this order, got clips={self.clips}"
            )
        if self.tail < 0:
            raise PluginError(f"{where}: a tail cannot be negative, got tail={self.tail}")
        for made_for in layout_sizes(self):
            if made_for < self.least:
                raise PluginError(f"{where}: asks for {self.least} clips in a layout that is made for {made_for}")


def layout_sizes(request: Request) -> list[int]:
    """How many clips the layouts of a request are made for, of those that are made for a number."""
    boxes = request.boxes.layout if isinstance(request.boxes, Boxes) else ANY
    sizes = [clips_of(request.placement), clips_of(boxes)]
    return [size for size in sizes if size is not None]
