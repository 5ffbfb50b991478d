"""What a person looks at to believe turns: the video as filmed with the clip's box, and the clip as it was turned."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import FancyArrowPatch, Rectangle

from vssl_core import Shot

SHOWN = 4  # frames of the strip
COLOUR = "#00e5ff"
UP = ((0, -1), (-1, 0), (0, 1), (1, 0))  # where the upper edge is after so many quarter turns: across and down


def draw(shots: Sequence[Shot], turns: Sequence[int]) -> Figure:
    """Each clip: its box in a frame as filmed, and frames of the clip, with an arrow to what was above."""
    figure = Figure(figsize=(16.5, 4 * len(shots)), layout="constrained")
    grid = figure.add_gridspec(len(shots), 1 + SHOWN, width_ratios=[1.5] + [1] * SHOWN)
    for row, (shot, label) in enumerate(zip(shots, turns, strict=True)):
        clip = shot.clip[: shot.window.frames]
        shown = np.linspace(0, len(clip) - 1, SHOWN).round().astype(int)
        _filmed(figure.add_subplot(grid[row, 0]), shot, f"clip {row + 1}: the box, as filmed")
        strip = [figure.add_subplot(grid[row, column]) for column in range(1, 1 + SHOWN)]
        for axes, place in zip(strip, shown, strict=True):
            axes.imshow(clip[place])
            middle = (clip.shape[1] - 1) / 2
            _arrow(axes, (middle, middle), UP[label], 0.42 * clip.shape[1])
            axes.set(xticks=[], yticks=[], xlabel=f"frame {shot.window.indices[place]}")
        told = f"{'mirrored, then ' if shot.window.flip else ''}turned {90 * label} degrees counter-clockwise"
        strip[0].set_title(f"label {label}: {told}", fontsize=11, loc="left")
    figure.suptitle("/".join(shots[0].window.path.replace("\\", "/").split("/")[-2:]), fontsize=11)
    return figure


def _filmed(axes: Axes, shot: Shot, title: str) -> None:
    """The clip's first frame, whole, with its box; up is up."""
    top, left, height, width = shot.window.box
    axes.imshow(shot.frames[0])
    axes.add_patch(Rectangle((left - 0.5, top - 0.5), width, height, fill=False, edgecolor=COLOUR, linewidth=3))
    _arrow(axes, (left + (width - 1) / 2, top + (height - 1) / 2), UP[0], 0.42 * height)
    axes.set(xticks=[], yticks=[])
    axes.set_title(title, fontsize=11)


def _arrow(axes: Axes, start: tuple[float, float], towards: tuple[int, int], reach: float) -> None:
    tip = start[0] + reach * towards[0], start[1] + reach * towards[1]
    axes.add_patch(FancyArrowPatch(start, tip, mutation_scale=30, color=COLOUR, linewidth=3, shrinkA=0, shrinkB=0))
