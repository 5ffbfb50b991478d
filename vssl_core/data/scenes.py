"""Moving scenes for the demo: a texture whose motion is the class, over patterns and colours that say nothing about it.

Where the texture lies, how it is turned, scaled, warped and lit is drawn from one distribution for all classes, and every motion
keeps that distribution at each moment. So a single frame carries no information on the class, by construction; only time does.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

import numpy as np

HEIGHT, WIDTH = 96, 128
PERIOD = 512  # cells after which a texture repeats, a power of two
CELLS = 2  # texture cells per pixel at scale 1
SHAPES = ("clouds", "bands", "cells", "spots")
ZOOM = 0.3  # log2 of the scale lies in [-ZOOM, ZOOM]
WARP = 6.0  # pixels by which the warp moves the texture at most


@dataclass(frozen=True)
class State:
    """What the frames show apart from texture and colours, over time; an axis of length 1 stays the same."""

    shift: np.ndarray  # (T or 1, 2) pixels
    turn: np.ndarray  # (T or 1,) radians
    zoom: np.ndarray  # (T or 1,) log2 of the scale
    phase: np.ndarray  # (T or 1,) radians, of the warp
    light: np.ndarray  # (T or 1,) in [0, 1]

    @staticmethod
    def draw(generator: np.random.Generator) -> State:
        """A state at rest."""
        turn, zoom, phase, light = generator.uniform((0, -ZOOM, 0, 0), (2 * np.pi, ZOOM, 2 * np.pi, 1))[:, None]
        return State(generator.uniform(0, PERIOD / CELLS, (1, 2)), turn, zoom, phase, light)

    def at(self, frame: int) -> tuple[np.ndarray, ...]:
        """All parts in one frame."""
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
    """A wave runs through the texture."""
    return replace(state, phase=2 * np.pi * _turns(time, (9, 11), generator))


def hop(state: State, time: np.ndarray, generator: np.random.Generator) -> State:
    """The texture rests, and lies elsewhere all at once, again and again."""
    stage = np.floor(_turns(time, (5, 6), generator)).astype(int)
    return replace(state, shift=generator.uniform(0, PERIOD / CELLS, (stage.max() + 1, 2))[stage])


def rest(state: State, time: np.ndarray, generator: np.random.Generator) -> State:
    """Nothing moves."""
    return state


MOTIONS: dict[str, Motion] = {motion.__name__: motion for motion in (slide, shake, spin, pulse, blink, ripple, hop, rest)}


def render(motion: str, texture: str, frames: int, generator: np.random.Generator) -> Iterator[np.ndarray]:
    """The frames of one scene, (HEIGHT, WIDTH, 3) uint8, one at a time."""
    look = Look(texture, frames, generator)
    state = MOTIONS[motion](State.draw(generator), np.arange(frames), generator)
    for frame in range(frames):
        yield look.draw(frame, *state.at(frame))


class Look:
    """Texture, colours, direction of the warp, light from above."""

    def __init__(self, texture: str, frames: int, generator: np.random.Generator) -> None:
        self.cells = _texture(texture, generator)  # (PERIOD, PERIOD) in [0, 1]
        row, column = np.mgrid[:HEIGHT, :WIDTH].astype(np.float32)
        self.x, self.y = column - WIDTH / 2, row - HEIGHT / 2  # (H, W) each
        along = generator.uniform(0, 2 * np.pi)
        self.along = np.array([np.cos(along), np.sin(along)], np.float32)
        self.waves = (self.x * self.along[0] + self.y * self.along[1]) * np.float32(2 * np.pi / generator.uniform(36, 48))
        self.shade = (1.15 - 0.5 * row / HEIGHT)[..., None]  # (H, W, 1) which way is up can be seen
        slow = _slow(frames, 8, generator)
        level = np.linspace(-2, 2, 256)
        sharp, bias = 1.5 + 1.2 * slow[:, 6:7], 0.6 * slow[:, 7:8]
        self.grey = (0.5 + 0.5 * np.tanh(sharp * (level - bias))).astype(np.float32)  # (T, 256)
        self.dark, self.bright = 40 + 20 * slow[:, :3], 205 + 30 * slow[:, 3:6]

    def draw(self, frame: int, shift: np.ndarray, turn: float, zoom: float, phase: float, light: float) -> np.ndarray:
        """One frame, (H, W, 3) uint8."""
        wave = WARP * np.sin(self.waves + np.float32(phase))
        x, y = self.x - self.along[1] * wave - np.float32(shift[0]), self.y + self.along[0] * wave - np.float32(shift[1])
        scale = CELLS * 2.0**zoom
        cosine, sine = np.float32(scale * np.cos(turn)), np.float32(scale * np.sin(turn))
        column = (cosine * x - sine * y).astype(np.int32) & (PERIOD - 1)
        row = (sine * x + cosine * y).astype(np.int32) & (PERIOD - 1)
        grey = self.grey[frame][self.cells[row, column]][..., None]
        colours = self.dark[frame] + grey * (self.bright[frame] - self.dark[frame])
        return np.minimum(colours * (self.shade * np.float32(0.4 + 0.6 * light)), 255).astype(np.uint8)


def _texture(kind: str, generator: np.random.Generator) -> np.ndarray:
    """A periodic texture, (PERIOD, PERIOD) float32 in [0, 1], smooth at the size of a cell."""
    row, column = PERIOD * np.fft.fftfreq(PERIOD)[:, None], PERIOD * np.fft.rfftfreq(PERIOD)[None, :]
    if kind == "bands":
        row = row / 3
    weight = np.exp(-(((np.hypot(row, column) - 13) / 4) ** 2))
    noise = np.fft.irfft2(np.fft.rfft2(generator.standard_normal((PERIOD, PERIOD))) * weight, (PERIOD, PERIOD))
    noise /= noise.std()
    return np.clip(128 + 64 * noise, 0, 255).astype(np.int32)


def _slow(frames: int, count: int, generator: np.random.Generator) -> np.ndarray:
    """Numbers in [-1, 1] that change over some seconds, (frames, count) float32."""
    period, begin = generator.uniform(50, 110, count), generator.uniform(0, 2 * np.pi, count)
    return np.sin(2 * np.pi * np.arange(frames)[:, None] / period + begin).astype(np.float32)


def _heading(generator: np.random.Generator) -> np.ndarray:
    angle = generator.uniform(0, 2 * np.pi)
    return np.array([np.cos(angle), np.sin(angle)])


def _turns(time: np.ndarray, period: tuple[float, float], generator: np.random.Generator) -> np.ndarray:
    """Time in turns of a period drawn from the range, from anywhere in it; (T,)."""
    return generator.uniform(0, 1) + time / generator.uniform(*period)


def _triangle(turns: np.ndarray) -> np.ndarray:
    """A wave in [0, 1] of period 1 that spends equal time at each height."""
    return np.abs(2 * (turns % 1) - 1)
