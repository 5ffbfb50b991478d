"""Moving scenes for the demo: a pattern whose motion is the class, in kinds and colours that say nothing about it.

Where the pattern lies, how it is turned, scaled, warped and lit is drawn from one distribution for all classes, and
every motion keeps that distribution at each moment. So a single frame carries no information on the class, by
construction; only time does. Colours and contrast drift slowly in all scenes: what stays over a video is its motion and
the kind of its pattern.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

import numpy as np

HEIGHT, WIDTH = 96, 128
PATTERNS = ("blobs", "bands")
PERIOD = 256  # cells after which a pattern repeats, a power of two
CELLS = 2  # cells of a pattern per pixel at scale 1
WAVES = 6.5  # bright spots in a period: one every 20 pixels
ZOOM = 0.3  # log2 of the scale lies in [-ZOOM, ZOOM]
WARP = 6.0  # pixels by which the warp moves the pattern at most


@dataclass(frozen=True)
class State:
    """What the frames show apart from pattern and colours, over time; an axis of length 1 stays the same."""

    shift: np.ndarray  # (T or 1, 2) pixels
    turn: np.ndarray  # (T or 1,) radians
    zoom: np.ndarray  # (T or 1,) log2 of the scale
    phase: np.ndarray  # (T or 1,) radians, of the warp
    light: np.ndarray  # (T or 1,) in [0, 1]

    @staticmethod
    def draw(generator: np.random.Generator) -> State:
        """A state at rest."""
        turn, zoom, phase, light = generator.uniform((0, -ZOOM, 0, 0), (2 * np.pi, ZOOM, 2 * np.pi, 1))[:, None]
        return State(_places(1, generator), turn, zoom, phase, light)

    def at(self, frame: int) -> tuple[np.ndarray, ...]:
        """Shift, turn, zoom, phase and light in one frame."""
        return tuple(values[frame % len(values)] for values in vars(self).values())


Motion = Callable[[State, np.ndarray, np.random.Generator], State]


def slide(state: State, time: np.ndarray, generator: np.random.Generator) -> State:
    """Everything moves one way."""
    return replace(state, shift=state.shift + time[:, None] * generator.uniform(1.8, 2.4) * _heading(generator))


def shake(state: State, time: np.ndarray, generator: np.random.Generator) -> State:
    """Everything moves to and fro."""
    swing = np.sin(2 * np.pi * _turns(time, (9, 11), generator))[:, None]
    return replace(state, shift=state.shift + generator.uniform(5, 7) * swing * _heading(generator))


def spin(state: State, time: np.ndarray, generator: np.random.Generator) -> State:
    """Everything turns about the middle."""
    return replace(state, turn=state.turn + time * generator.uniform(0.06, 0.08) * generator.choice((-1, 1)))


def pulse(state: State, time: np.ndarray, generator: np.random.Generator) -> State:
    """Everything grows and shrinks."""
    return replace(state, zoom=ZOOM * (2 * _triangle(_turns(time, (11, 13), generator)) - 1))


def blink(state: State, time: np.ndarray, generator: np.random.Generator) -> State:
    """Nothing moves; the light goes up and down."""
    return replace(state, light=_triangle(_turns(time, (8, 10), generator)))


def ripple(state: State, time: np.ndarray, generator: np.random.Generator) -> State:
    """A wave runs through the pattern."""
    return replace(state, phase=2 * np.pi * _turns(time, (9, 11), generator))


def hop(state: State, time: np.ndarray, generator: np.random.Generator) -> State:
    """The pattern rests, and lies elsewhere all at once, again and again."""
    stage = np.floor(_turns(time, (5, 6), generator)).astype(int)
    return replace(state, shift=_places(stage.max() + 1, generator)[stage])


def rest(state: State, time: np.ndarray, generator: np.random.Generator) -> State:
    """Nothing moves."""
    return state


MOTIONS: dict[str, Motion] = {
    motion.__name__: motion for motion in (slide, shake, spin, pulse, blink, ripple, hop, rest)
}


def render(motion: str, pattern: str, frames: int, generator: np.random.Generator) -> Iterator[np.ndarray]:
    """The frames of one scene, (HEIGHT, WIDTH, 3) uint8, one at a time."""
    look = Look(pattern, frames, generator)
    state = MOTIONS[motion](State.draw(generator), np.arange(frames), generator)
    for frame in range(frames):
        yield look.draw(frame, state.at(frame))


class Look:
    """What does not depend on the motion: the pattern, its colours over time, the direction of the warp, light."""

    def __init__(self, pattern: str, frames: int, generator: np.random.Generator) -> None:
        row, column = np.mgrid[:HEIGHT, :WIDTH].astype(np.float32)
        self.x, self.y = column - WIDTH / 2, row - HEIGHT / 2  # (H, W) each
        self.along = _heading(generator).astype(np.float32)
        length = generator.uniform(36, 48)  # pixels
        self.waves = (self.x * self.along[0] + self.y * self.along[1]) * np.float32(2 * np.pi / length)
        self.shade = (1.15 - 0.5 * row / HEIGHT)[..., None]  # (H, W, 1) which way is up can be seen
        self.cells = _pattern(pattern, generator)  # (PERIOD, PERIOD) grey values
        self.colours = _colours(frames, generator)  # (T, 256, 3) of the grey values

    def draw(self, frame: int, moment: tuple[np.ndarray, ...]) -> np.ndarray:
        """One frame that shows this moment of a state, (H, W, 3) uint8."""
        shift, turn, zoom, phase, light = (values.astype(np.float32) for values in moment)
        wave = WARP * np.sin(self.waves + phase)
        x = self.x - self.along[1] * wave - shift[0]
        y = self.y + self.along[0] * wave - shift[1]
        scale = CELLS * 2.0**zoom
        cosine, sine = scale * np.cos(turn), scale * np.sin(turn)
        column = (cosine * x - sine * y).astype(np.int32) & (PERIOD - 1)
        row = (sine * x + cosine * y).astype(np.int32) & (PERIOD - 1)
        colours = self.colours[frame] * (0.4 + 0.6 * light)
        return (colours.take(self.cells[row, column], axis=0) * self.shade).clip(0, 255).astype(np.uint8)


def _pattern(kind: str, generator: np.random.Generator) -> np.ndarray:
    """Grey values 0..255 that repeat at the edges, (PERIOD, PERIOD): noise of one wavelength, long or round."""
    row, column = PERIOD * np.fft.fftfreq(PERIOD)[:, None], PERIOD * np.fft.rfftfreq(PERIOD)[None, :]
    distance = np.hypot(row / (3 if kind == "bands" else 1), column)
    weight = np.exp(-(((distance - WAVES) / 2) ** 2))
    noise = np.fft.irfft2(np.fft.rfft2(generator.standard_normal((PERIOD, PERIOD))) * weight)
    return np.clip(128 + 64 * noise / noise.std(), 0, 255).astype(np.uint8)


def _colours(frames: int, generator: np.random.Generator) -> np.ndarray:
    """The colour of each grey value over time, (frames, 256, 3) float32: tints, contrast and balance drift."""
    slow = _slow(frames, 8, generator)[:, None]  # (T, 1, 8)
    sharpness, balance = 1.5 + 1.2 * slow[..., 6:7], 0.6 * slow[..., 7:8]
    bright = 0.5 + 0.5 * np.tanh(sharpness * (np.linspace(-2, 2, 256)[:, None] - balance))  # (T, 256, 1)
    return ((40 + 20 * slow[..., :3]) * (1 - bright) + (205 + 30 * slow[..., 3:6]) * bright).astype(np.float32)


def _slow(frames: int, count: int, generator: np.random.Generator) -> np.ndarray:
    """Numbers in [-1, 1] that swing within some seconds, (frames, count)."""
    period, begin = generator.uniform(50, 110, count), generator.uniform(0, 2 * np.pi, count)
    return np.sin(2 * np.pi * np.arange(frames)[:, None] / period + begin)


def _places(count: int, generator: np.random.Generator) -> np.ndarray:
    """Anywhere on the pattern, (count, 2) pixels."""
    return generator.uniform(0, PERIOD / CELLS, (count, 2))


def _heading(generator: np.random.Generator) -> np.ndarray:
    """Any direction, (2,)."""
    angle = generator.uniform(0, 2 * np.pi)
    return np.array([np.cos(angle), np.sin(angle)])


def _turns(time: np.ndarray, period: tuple[float, float], generator: np.random.Generator) -> np.ndarray:
    """Time in turns of a period drawn from the range, from anywhere in it; (T,)."""
    return generator.uniform(0, 1) + time / generator.uniform(*period)


def _triangle(turns: np.ndarray) -> np.ndarray:
    """A wave in [0, 1] of period 1 that spends equal time at each height."""
    return np.abs(2 * (turns % 1) - 1)
