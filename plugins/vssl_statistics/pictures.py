"""What a person looks at to believe the labels: boundaries, patterns and colours, with the labels drawn on them."""

from __future__ import annotations

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.gridspec import GridSpec
from matplotlib.patches import Patch
from matplotlib.patheffects import withStroke

from vssl_core import Shot
from vssl_statistics.appearance import likeness, measurable
from vssl_statistics.motion import Boundaries, block_means
from vssl_statistics.patterns import BLOCKS, WHERE, masks

PATTERN_NAMES = ("pattern 1: grid", "pattern 2: rings", "pattern 3: triangles")
CHOSEN, MOST, LEAST = "#00e5ff", "#ff3030", "#30e030"
# A colour in the middle of each octant, numbered as labels are.
OCTANT_COLOURS = [
    (0.75 if octant & 2 else 0.25, 0.75 if octant & 1 else 0.25, 0.25 if octant & 4 else 0.75) for octant in range(8)
]
OCTANT_NAMES = ("blue", "cyan", "magenta", "white", "black", "green", "red", "yellow")
SHOWN = 8  # frames of the strip


def draw(shot: Shot, motion: np.ndarray | None, found: Boundaries | None, appearance: np.ndarray | None) -> Figure:
    """The picture of one clip: its frames; boundaries of u and of v under the three patterns; colours under them.

    `motion` (14,) and `appearance` (13,) are the labels, `found` the boundaries they were read off; None leaves out.
    """
    clip = shot.clip[: shot.window.frames]
    rows = 1 + 2 * (motion is not None) + (appearance is not None)
    figure = Figure(figsize=(17, 1.2 + 4.1 * rows - 1.6), layout="constrained")
    grid = GridSpec(rows, 4, figure, height_ratios=[0.55, *[1] * (rows - 1)])
    _strip(figure.add_subplot(grid[0, :]), shot, None if motion is None else motion[12:])
    row = 1
    if motion is not None and found is not None:
        for field, name in enumerate(("u: motion to left and right", "v: motion up and down")):
            _bars(figure.add_subplot(grid[row, 0]), found.strengths[field], int(motion[12 + field]), name)
            for pattern in range(3):
                place, turned = motion[4 * pattern + 2 * field : 4 * pattern + 2 * field + 2]
                axes = figure.add_subplot(grid[row, 1 + pattern])
                _boundaries(axes, clip, found, field, pattern, int(place), int(turned))
            row += 1
    if appearance is not None:
        _dominant(figure.add_subplot(grid[row, 0]), clip, int(appearance[12]))
        alike = likeness(measurable(shot.crop[: shot.window.frames]))
        for pattern in range(3):
            axes = figure.add_subplot(grid[row, 1 + pattern])
            _colours(axes, clip, alike, pattern, appearance[4 * pattern : 4 * pattern + 4])
    figure.suptitle(_title(shot), fontsize=11)
    figure.supxlabel(
        "Numbers on boundaries: a block's mean, 100 for the strongest; the wedge is the eighth of a turn that slopes "
        "in it point to. Numbers on colours: how alike the frames are there, in percent.",
        fontsize=9,
    )
    return figure


def _title(shot: Shot) -> str:
    window = shot.window
    first, last = window.indices[0], window.indices[window.frames - 1]
    turned = f", turned {90 * window.turns} degrees" if window.turns else ""
    parts = window.path.replace("\\", "/").split("/")[-2:]
    return f"{'/'.join(parts)}: frames {first} to {last}, box {window.box}{', mirrored' if window.flip else ''}{turned}"


def _strip(axes: Axes, shot: Shot, strongest: np.ndarray | None) -> None:
    """Frames of the clip side by side, with the pairs that move most marked."""
    clip = shot.clip[: shot.window.frames]
    shown = np.unique(np.linspace(0, len(clip) - 1, SHOWN).round().astype(int))
    axes.imshow(np.concatenate(clip[shown], axis=1))
    size = clip.shape[1]
    axes.set_xticks((np.arange(len(shown)) + 0.5) * size, [f"frame {number + 1}" for number in shown])
    axes.set_yticks([])
    axes.tick_params(length=0)
    for edge in range(1, len(shown)):
        axes.axvline(edge * size - 0.5, color="white", linewidth=2)
    told = "the clip as the net sees it"
    if strongest is not None:
        told += f"; strongest boundaries of u: pair {strongest[0]}, of v: pair {strongest[1]}"
    axes.set_title(told, fontsize=10)


def _bars(axes: Axes, strengths: np.ndarray, strongest: int, name: str) -> None:
    """How strong boundaries are from each frame to the next, the label's pair marked."""
    pairs = np.arange(1, len(strengths) + 1)
    axes.bar(pairs, strengths, color=[CHOSEN if pair == strongest else "#888888" for pair in pairs])
    axes.set_title(f"{name}\nstrongest pair of frames: {strongest}", fontsize=10)
    axes.set_xlabel("pair of frames")
    axes.set_xticks(pairs)
    axes.set_yticks([])


def _boundaries(
    axes: Axes, clip: np.ndarray, found: Boundaries, field: int, pattern: int, place: int, turned: int
) -> None:
    """Magnitudes over the mean frame, the strongest block outlined, and the eighth of a turn that dominates in it."""
    magnitude = found.magnitude[field]
    heat = magnitude / max(float(np.quantile(magnitude, 0.999)), 1e-9)
    grey = clip.mean(axis=(0, 3)) / 255
    axes.imshow(grey, cmap="gray", vmin=0, vmax=1)
    axes.imshow(heat, cmap="inferno", vmin=0, vmax=1, alpha=0.25 + 0.75 * np.clip(heat, 0, 1))
    axes.autoscale(False)  # a wedge near the edge is cut off there
    inside = _lines(axes, pattern, len(magnitude), place, CHOSEN)
    means = block_means(found.magnitude)[field, WHERE[pattern]]
    _numbers(axes, pattern, len(magnitude), 100 * means / max(float(means.max()), 1e-9))
    ring = pattern == 1 and place > 1
    down, across = (float(part.mean()) for part in np.nonzero(inside))
    down = float(np.nonzero(inside)[0].max()) - len(magnitude) / 16 if ring else down
    _wedge(axes, across, down, turned, len(magnitude) / (12 if ring else 7))
    _bare(axes, f"{PATTERN_NAMES[pattern]}: block {place} of {BLOCKS[pattern]}, orientation {turned} of 8")


def _wedge(axes: Axes, across: float, down: float, turned: int, radius: float) -> None:
    """The eighth of a turn that a label means: the first one from 0 to 45 degrees, y down."""
    angles = np.deg2rad(np.linspace(45 * (turned - 1), 45 * turned, 9))
    points_across = [across, *(across + radius * np.cos(angles))]
    points_down = [down, *(down + radius * np.sin(angles))]
    axes.fill(points_across, points_down, color=CHOSEN, alpha=0.85, edgecolor="black", linewidth=1)


def _colours(axes: Axes, clip: np.ndarray, alike: np.ndarray, pattern: int, labels: np.ndarray) -> None:
    """The mean frame with the blocks whose colours change most and least, and their dominant colours."""
    axes.imshow(clip.mean(axis=0) / 255)
    handles = []
    _numbers(axes, pattern, clip.shape[1], 100 * alike[WHERE[pattern]])
    kinds = zip(labels.reshape(2, 2)[::-1], (LEAST, MOST), ("least", "most"), strict=True)
    for (place, colour), edge, word in kinds:
        inside = _lines(axes, pattern, clip.shape[1], int(place), edge)
        axes.contourf(inside.astype(float), [0.5, 1.5], colors=[edge], alpha=0.3)
        name = OCTANT_NAMES[colour - 1]
        told = f"changes {word}: block {place}, {name} ({colour})"
        handles.insert(0, Patch(facecolor=OCTANT_COLOURS[colour - 1], edgecolor=edge, linewidth=3, label=told))
    axes.legend(handles=handles, loc="upper center", bbox_to_anchor=(0.5, -0.01), fontsize=9, frameon=False)
    _bare(axes, PATTERN_NAMES[pattern])


def _dominant(axes: Axes, clip: np.ndarray, label: int) -> None:
    """How many pixels of the clip lie in each octant of colours, the label's marked."""
    bright = clip >= 128
    octant = 4 * ~bright[..., 2] + 2 * bright[..., 0] + bright[..., 1]
    counts = np.bincount(octant.ravel(), minlength=8) / octant.size
    marked = [number == label - 1 for number in range(8)]
    edges, widths = [CHOSEN if it else "black" for it in marked], [4 if it else 1 for it in marked]
    axes.bar(np.arange(8), counts, color=OCTANT_COLOURS, edgecolor=edges, linewidth=widths)
    axes.set_xticks(np.arange(8), [f"{number + 1}\n{name}" for number, name in enumerate(OCTANT_NAMES)], fontsize=8)
    axes.set_yticks([])
    axes.set_title(f"colours of the clip: {OCTANT_NAMES[label - 1]} ({label}) dominates", fontsize=10)


def _numbers(axes: Axes, pattern: int, size: int, values: np.ndarray) -> None:
    """A number at the middle of each block; of a ring, in the middle of its upper side."""
    for block, value in zip(masks(size, size)[WHERE[pattern]], values, strict=True):
        rows, columns = np.nonzero(block)
        down = rows.mean() if pattern != 1 or block[size // 2, size // 2] else rows.min() + size / 16
        told = axes.text(columns.mean(), down, f"{value:.0f}", color="white", fontsize=8, ha="center", va="center")
        told.set_path_effects([withStroke(linewidth=2, foreground="black")])


def _lines(axes: Axes, pattern: int, size: int, place: int, colour: str) -> np.ndarray:
    """Draw a pattern's lines and the outline of one of its blocks; gives the block's pixels (S, S)."""
    blocks = masks(size, size)[WHERE[pattern]]
    for block in blocks:
        axes.contour(block.astype(float), [0.5], colors="white", linewidths=0.4)
    inside = blocks[place - 1]
    framed = np.pad(inside.astype(float), 1)
    places = np.arange(-1, size + 1)
    axes.contour(places, places, framed, [0.5], colors=colour, linewidths=2.8)
    return inside


def _bare(axes: Axes, title: str) -> None:
    axes.set_title(title, fontsize=10)
    axes.set_xticks([])
    axes.set_yticks([])
