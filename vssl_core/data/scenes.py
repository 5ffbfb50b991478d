"""Moving scenes for the demo: a swarm of marks whose motion is the class, over colours and shapes that say nothing about it.

Where the marks are, how far apart, how turned and how bright each is, is drawn from one distribution for all classes, and every
motion keeps that distribution at each moment. So a single frame carries no information on the class, by construction; only
time does. Colours and background drift slowly in every scene: what stays over a video is the motion and the shape of its marks.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

import numpy as np

HEIGHT, WIDTH = 96, 128
FIELD = np.array([208.0, 208.0])  # pixels; marks wander on this field and come back at its other side, out of sight
MARKS = 40  # on the field, about a third of them in sight
ZOOM = 0.35  # log2 of the scale lies in [-ZOOM, ZOOM]
SHAPES = ("discs", "rings", "squares", "crosses")
REACH = 12  # pixels from a mark's middle to the edge of the patch it is drawn in
BASIS = 10  # waves the background is made of


@dataclass(frozen=True)
class Swarm:
    """The marks of one scene over time; each field broadcasts to (T, MARKS)."""

    place: np.ndarray  # (T or 1, MARKS, 2) on the field, in pixels
    turn: np.ndarray  # (T or 1,) radians, of the whole field about its middle
    zoom: np.ndarray  # (T or 1,) log2 of the scale
    glow: np.ndarray  # (T or 1, MARKS) brightness in [0, 1]

    @staticmethod
    def draw(generator: np.random.Generator) -> Swarm:
        """A swarm at rest."""
        place = generator.uniform(0, FIELD, (1, MARKS, 2))
        turn, zoom = generator.uniform((0, -ZOOM), (2 * np.pi, ZOOM))
        return Swarm(place, np.array([turn]), np.array([zoom]), generator.uniform(0, 1, (1, 1)).repeat(MARKS, 1))

    def on_screen(self) -> tuple[np.ndarray, np.ndarray]:
        """Places in pixels of the frame (T, MARKS, 2) and brightness (T, MARKS), for as many frames as anything changes."""
        scale = 2.0 ** self.zoom[:, None, None]
        cosine, sine = np.cos(self.turn)[:, None], np.sin(self.turn)[:, None]
        x, y = np.moveaxis(self.place % FIELD - FIELD / 2, -1, 0)
        turned = np.stack([cosine * x - sine * y, sine * x + cosine * y], -1)
        return turned * scale + (WIDTH / 2, HEIGHT / 2), self.glow


Motion = Callable[[Swarm, np.ndarray, np.random.Generator], Swarm]


def slide(swarm: Swarm, time: np.ndarray, generator: np.random.Generator) -> Swarm:
    """All marks move one way."""
    path = time[:, None, None] * generator.uniform(2.6, 3.4) * _heading(generator.uniform(0, 2 * np.pi))
    return replace(swarm, place=swarm.place + path)


def stray(swarm: Swarm, time: np.ndarray, generator: np.random.Generator) -> Swarm:
    """Each mark moves its own way."""
    paths = generator.uniform(2.6, 3.4) * _heading(generator.uniform(0, 2 * np.pi, MARKS))
    return replace(swarm, place=swarm.place + time[:, None, None] * paths)


def shake(swarm: Swarm, time: np.ndarray, generator: np.random.Generator) -> Swarm:
    """All marks move to and fro together."""
    swing = np.sin(2 * np.pi * _turns(time, (6, 8), generator))[:, None, None]
    return replace(swarm, place=swarm.place + generator.uniform(5, 7) * swing * _heading(generator.uniform(0, 2 * np.pi)))


def spin(swarm: Swarm, time: np.ndarray, generator: np.random.Generator) -> Swarm:
    """The swarm turns about its middle."""
    return replace(swarm, turn=swarm.turn + time * generator.uniform(0.08, 0.11) * generator.choice((-1, 1)))


def pulse(swarm: Swarm, time: np.ndarray, generator: np.random.Generator) -> Swarm:
    """The swarm draws together and apart."""
    return replace(swarm, zoom=ZOOM * (2 * _triangle(_turns(time, (9, 12), generator)) - 1))


def blink(swarm: Swarm, time: np.ndarray, generator: np.random.Generator) -> Swarm:
    """The marks stay and glow up and down together."""
    return replace(swarm, glow=_triangle(_turns(time, (5, 7), generator))[:, None].repeat(MARKS, 1))


def hop(swarm: Swarm, time: np.ndarray, generator: np.random.Generator) -> Swarm:
    """The marks rest, and are elsewhere all at once, again and again."""
    stage = np.floor(4 * _turns(time, (18, 22), generator)).astype(int)
    places = generator.uniform(0, FIELD, (stage.max() - stage.min() + 1, MARKS, 2))
    return replace(swarm, place=places[stage - stage.min()])


def rest(swarm: Swarm, time: np.ndarray, generator: np.random.Generator) -> Swarm:
    """The marks stay."""
    return swarm


MOTIONS: dict[str, Motion] = {motion.__name__: motion for motion in (slide, stray, shake, spin, pulse, blink, hop, rest)}


def render(motion: str, shape: str, frames: int, generator: np.random.Generator) -> Iterator[np.ndarray]:
    """The frames of one scene, (HEIGHT, WIDTH, 3) uint8, one at a time."""
    swarm = MOTIONS[motion](Swarm.draw(generator), np.arange(frames), generator)
    places, glow = swarm.on_screen()
    background, colours = _backgrounds(frames, generator), _slow(frames, 3, generator) * 60 + 190
    size = generator.uniform(6.5, 8.5)
    for frame in range(frames):
        cover = _cover(places[frame % len(places)], glow[frame % len(glow)], shape, size)[..., None]  # (H, W, 1)
        ground = background(frame)
        yield (ground + cover * (colours[frame] - ground)).astype(np.uint8)


def _cover(places: np.ndarray, glow: np.ndarray, shape: str, size: float) -> np.ndarray:
    """How much each pixel is covered by a mark, (HEIGHT, WIDTH) float32 in [0, 1]."""
    seen = ((places > -REACH) & (places < (WIDTH + REACH, HEIGHT + REACH))).all(-1)
    places, glow = places[seen], glow[seen]
    corner = np.floor(places).astype(int)
    steps = np.arange(-REACH, REACH + 1)
    away = (corner - places)[:, :, None] + steps  # (marks, 2, patch) from the mark's middle, x and y
    x, y = away[:, 0, None, :], away[:, 1, :, None]
    patch = np.clip(0.5 - _outside(shape, x, y, size), 0, 1) * (0.4 + 0.6 * glow[:, None, None])
    columns, rows = (corner[:, axis, None] + steps + 2 * REACH for axis in (0, 1))
    canvas = np.zeros((HEIGHT + 4 * REACH, WIDTH + 4 * REACH), np.float32)
    np.maximum.at(canvas, (rows[:, :, None], columns[:, None, :]), patch.astype(np.float32))
    return canvas[2 * REACH : -2 * REACH, 2 * REACH : -2 * REACH]


def _outside(shape: str, x: np.ndarray, y: np.ndarray, size: float) -> np.ndarray:
    """Pixels from the outline of a mark, negative inside."""
    x, y = np.abs(x), np.abs(y)
    if shape == "discs":
        return np.hypot(x, y) - size
    if shape == "rings":
        return np.abs(np.hypot(x, y) - size) - 2.0
    if shape == "squares":
        return np.maximum(x, y) - 0.9 * size
    return np.maximum(np.minimum(x, y) - 0.35 * size, np.maximum(x, y) - 1.2 * size)


def _backgrounds(frames: int, generator: np.random.Generator) -> Callable[[int], np.ndarray]:
    """A function from frame to background (HEIGHT, WIDTH, 3): broad waves of slowly changing colour, lit from above."""
    row, column = np.mgrid[:HEIGHT, :WIDTH].reshape(2, -1).astype(np.float32)
    along, length = generator.uniform(0, 2 * np.pi, BASIS), generator.uniform(20, 80, BASIS)
    phase = column[:, None] * np.cos(along) + row[:, None] * np.sin(along)
    waves = np.sin(phase * (2 * np.pi / length) + generator.uniform(0, 2 * np.pi, BASIS)).astype(np.float32)
    shade = (1.15 - 0.6 * row / HEIGHT)[:, None].astype(np.float32)  # which way is up can be seen
    strength = _slow(frames, 3 * BASIS, generator).reshape(frames, BASIS, 3) * (16 / np.sqrt(BASIS))
    level = 60 + 20 * _slow(frames, 3, generator)
    return lambda frame: np.clip((waves @ strength[frame] + level[frame]) * shade, 0, 255).reshape(HEIGHT, WIDTH, 3)


def _slow(frames: int, count: int, generator: np.random.Generator) -> np.ndarray:
    """Numbers in [-1, 1] that change over about a second, (frames, count) float32."""
    period, begin = generator.uniform(50, 110, count), generator.uniform(0, 2 * np.pi, count)
    return np.sin(2 * np.pi * np.arange(frames)[:, None] / period + begin).astype(np.float32)


def _heading(angle: np.ndarray | float) -> np.ndarray:
    return np.stack([np.cos(angle), np.sin(angle)], -1)


def _turns(time: np.ndarray, period: tuple[float, float], generator: np.random.Generator) -> np.ndarray:
    """Time in turns of a period drawn from the range, from anywhere in it; (T,)."""
    return generator.uniform(0, 1) + time / generator.uniform(*period)


def _triangle(turns: np.ndarray) -> np.ndarray:
    """A wave in [0, 1] of period 1 that spends equal time at each height."""
    return np.abs(2 * (turns % 1) - 1)
