"""Moving scenes for the demo: a pattern whose motion is the class, in kinds and colours that say nothing about it.

Where the pattern lies, how it is turned, scaled, warped and lit is drawn from one distribution for all classes, and
every motion keeps that distribution at each moment. So a single frame carries no information on the class, by
construction; only time does. Everything falls, and nothing but the fall says which way is down: a net that tells
quarter turns must see motion. Colours and contrast drift slowly: what stays over a video is its motion and the kind of
its pattern.
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
    blend: np.ndarray  # (T or 1,) radians, between the two patterns

    @staticmethod
    def draw(generator: np.random.Generator) -> State:
        """A state at rest."""
        turn, zoom, phase, blend = generator.uniform((0, -ZOOM, 0, 0), (2 * np.pi, ZOOM, 2 * np.pi, 2 * np.pi))[:, None]
        return State(_places(1, generator), turn, zoom, phase, blend)

    def at(self, frame: int) -> tuple[np.ndarray, ...]:
        """Shift, turn, zoom, phase and blend in one frame."""
        return tuple(values[frame % len(values)] for values in vars(self).values())


Motion = Callable[[State, np.ndarray, np.random.Generator], State]


def drift(state: State, time: np.ndarray, generator: np.random.Generator) -> State:
    """Everything falls slowly."""
    return _falling(state, time * generator.uniform(0.7, 1.0))


def rush(state: State, time: np.ndarray, generator: np.random.Generator) -> State:
    """Everything falls fast."""
    return _falling(state, time * generator.uniform(2.8, 3.4))


def halt(state: State, time: np.ndarray, generator: np.random.Generator) -> State:
    """Everything falls and stands still by turns."""
    turns = _turns(time, (9, 11), generator)
    return _falling(state, 16 * (np.floor(turns) + np.minimum(2 * (turns % 1), 1)))


def slant(state: State, time: np.ndarray, generator: np.random.Generator) -> State:
    """Everything falls and moves to one side as fast."""
    speed = generator.uniform(1.4, 1.8)
    return _falling(state, time * speed, time * speed * generator.choice((-1, 1)))


def sway(state: State, time: np.ndarray, generator: np.random.Generator) -> State:
    """Everything falls and swings from side to side."""
    swing = np.sin(2 * np.pi * _turns(time, (9, 11), generator))
    return _falling(state, time * generator.uniform(1.2, 1.5), generator.uniform(5, 7) * swing)


def spin(state: State, time: np.ndarray, generator: np.random.Generator) -> State:
    """Everything falls and turns about the middle."""
    turn = state.turn + time * generator.uniform(0.06, 0.08) * generator.choice((-1, 1))
    return replace(_falling(state, time * generator.uniform(1.2, 1.5)), turn=turn)


def pulse(state: State, time: np.ndarray, generator: np.random.Generator) -> State:
    """Everything falls, grows and shrinks."""
    zoom = ZOOM * (2 * _triangle(_turns(time, (11, 13), generator)) - 1)
    return replace(_falling(state, time * generator.uniform(1.2, 1.5)), zoom=zoom)


def ripple(state: State, time: np.ndarray, generator: np.random.Generator) -> State:
    """Everything falls while a wave runs through it."""
    phase = 2 * np.pi * _turns(time, (9, 11), generator)
    return replace(_falling(state, time * generator.uniform(1.2, 1.5)), phase=phase)


def _falling(state: State, down: np.ndarray, aside: np.ndarray | float = 0.0) -> State:
    """The state moved down, and aside, by these pixels over time, (T,) each."""
    return replace(state, shift=state.shift + np.stack([np.broadcast_to(aside, down.shape), down], axis=1))


MOTIONS: dict[str, Motion] = {
    motion.__name__: motion for motion in (drift, rush, halt, slant, sway, spin, pulse, ripple)
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
        self.patterns = _pattern(pattern, generator), _pattern(pattern, generator)  # (PERIOD, PERIOD) each
        self.colours = _colours(frames, generator)  # (T, 256, 3) of the grey values

    def draw(self, frame: int, moment: tuple[np.ndarray, ...]) -> np.ndarray:
        """One frame that shows this moment of a state, (H, W, 3) uint8."""
        shift, turn, zoom, phase, blend = (values.astype(np.float32) for values in moment)
        wave = WARP * np.sin(self.waves + phase)
        x = self.x - self.along[1] * wave - shift[0]
        y = self.y + self.along[0] * wave - shift[1]
        scale = CELLS * 2.0**zoom
        cosine, sine = scale * np.cos(turn), scale * np.sin(turn)
        column = (cosine * x - sine * y).astype(np.int32) & (PERIOD - 1)
        row = (sine * x + cosine * y).astype(np.int32) & (PERIOD - 1)
        height = np.cos(blend) * self.patterns[0][row, column] + np.sin(blend) * self.patterns[1][row, column]
        grey = (128 + 64 * height).clip(0, 255).astype(np.uint8)
        return self.colours[frame].take(grey, axis=0).clip(0, 255).astype(np.uint8)


def _pattern(kind: str, generator: np.random.Generator) -> np.ndarray:
    """Grey values 0..255 that repeat at the edges, (PERIOD, PERIOD): noise of one wavelength, long or round."""
    row, column = PERIOD * np.fft.fftfreq(PERIOD)[:, None], PERIOD * np.fft.rfftfreq(PERIOD)[None, :]
    distance = np.hypot(row / (3 if kind == "bands" else 1), column)
    weight = np.exp(-(((distance - WAVES) / 2) ** 2))
    noise = np.fft.irfft2(np.fft.rfft2(generator.standard_normal((PERIOD, PERIOD))) * weight)
    return (noise / noise.std()).astype(np.float32)


def _colours(frames: int, generator: np.random.Generator) -> np.ndarray:
    """The colour of each grey value over time, (frames, 256, 3) float32: tints, contrast and balance drift."""
    slow = _slow(frames, 8, generator)[:, None]  # (T, 1, 8)
    sharpness, balance = 3.0 + 1.0 * slow[..., 6:7], 0.3 * slow[..., 7:8]
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
