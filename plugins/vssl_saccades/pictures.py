"""What a person looks at to believe fixations: their place in the frame, in time, and what they show of the clips."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from matplotlib.ticker import MaxNLocator

from vssl_core import Shot

MOMENTS = ("#ff8c00", "#00b4ff")  # the colours of the first and of the second
MARK = "#ffe600"  # around a fixation


def draw(shots: Sequence[Shot], fixations: Sequence[int], masks: Sequence[np.ndarray], mode: str) -> Figure:
    """A column for each pair of clips, all first clips before all second ones in `shots`.

    `fixations` and `masks` (S, S) bool say what each clip shows; `mode` is how masks are applied, "none" not at all.
    """
    pairs = len(shots) // 2
    figure = Figure(figsize=(3.1 * pairs, 14), layout="constrained")
    if mode == "none":
        masks = [np.ones_like(mask) for mask in masks]
    grid = figure.add_gridspec(5, pairs, height_ratios=[1, 1, 1, 1, 0.9])
    for number, (shot, fixation, mask) in enumerate(zip(shots, fixations, masks, strict=True)):
        moment, column = divmod(number, pairs)
        name = "not masked" if mode == "none" else f"fixation {fixation + 1}"
        _place(figure.add_subplot(grid[2 * moment, column]), shot, mask, MOMENTS[moment], f"{name}, clip {moment + 1}")
        _seen(figure.add_subplot(grid[2 * moment + 1, column]), shot, mask, mode)
    _times(figure.add_subplot(grid[4, :]), shots, [fixation + 1 for fixation in fixations])
    figure.suptitle("/".join(shots[0].window.path.replace("\\", "/").split("/")[-2:]), fontsize=11)
    return figure


def in_frame(mask: np.ndarray, shot: Shot) -> tuple[float, float, float, float] | None:
    """(top, left, height, width) in the frame's pixels of a mask (S, S), which is one rectangle of the unturned clip.

    None where it shows nothing.
    """
    top, left, height, width = shot.window.box
    if not mask.any():
        return None
    (first, last), (near, far) = (
        (found[0], found[-1] + 1) for found in map(np.flatnonzero, (mask.any(1), mask.any(0)))
    )
    size = mask.shape[0]
    if shot.window.flip:
        near, far = size - far, size - near
    down, right = height / size, width / size
    return top + first * down, left + near * right, (last - first) * down, (far - near) * right


def _place(axes: Axes, shot: Shot, mask: np.ndarray, colour: str, title: str) -> None:
    """The first frame as filmed, the clip's box, and the fixation in it."""
    axes.imshow(shot.frames[0])
    top, left, height, width = shot.window.box
    axes.add_patch(Rectangle((left - 0.5, top - 0.5), width, height, fill=False, edgecolor=colour, linewidth=3))
    fixation = in_frame(mask, shot)
    if fixation:
        top, left, height, width = fixation
        around = Rectangle((left - 0.5, top - 0.5), width, height, fill=False, edgecolor=MARK, linewidth=2)
        axes.add_patch(around)
    else:
        title += ", misses it"
    axes.set(xticks=[], yticks=[])
    axes.set_title(title + (", mirrored" if shot.window.flip else ""), fontsize=10)


def _seen(axes: Axes, shot: Shot, mask: np.ndarray, mode: str) -> None:
    """The clip's first frame under its mask: gray is what the net sees as zero, dim what is not stressed."""
    clip, shown = shot.clip[0], mask[:, :, None]
    outside = {"multiply": np.full_like(clip, 128), "residual": clip // 2, "none": clip}[mode]
    axes.imshow(np.where(shown, clip, outside))
    axes.set(xticks=[], yticks=[])
    axes.set_xlabel(f"frame {shot.window.indices[0]}", fontsize=9)


def _times(axes: Axes, shots: Sequence[Shot], names: Sequence[int]) -> None:
    """The span of each clip on the line of the video's frames, a row for each pair."""
    pairs = len(shots) // 2
    for number, shot in enumerate(shots):
        moment, row = divmod(number, pairs)
        frames, height = shot.window.indices[: shot.window.frames], row + 0.2 * (moment - 0.5)
        axes.plot(frames, np.full(len(frames), height), ".-", color=MOMENTS[moment], linewidth=4, markersize=8)
    axes.set(yticks=range(pairs), yticklabels=names[:pairs], ylim=(pairs - 0.4, -0.6), ylabel="fixation")
    axes.set_xlim(-1, shots[0].window.total)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.set_xlabel(f"frame of the video, which has {shots[0].window.total}")
