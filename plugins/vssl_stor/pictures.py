"""What a person looks at to believe overlap rates: both boxes on the frames, both spans on a line of time."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from matplotlib.ticker import MaxNLocator

from vssl_core import Shot, Window

COLOURS = ("#ff8c00", "#00b4ff")  # of the first clip and of the second
SHOWN = 6  # frames of each strip


def draw(shots: Sequence[Shot], told: Mapping[str, float], cut: Mapping[str, float]) -> Figure:
    """The pair: where it lies in the frame and in time, the rates `told` as labels, and those that were `cut`."""
    figure = Figure(figsize=(15, 9), layout="constrained")
    grid = figure.add_gridspec(3, 2, width_ratios=[1, 1.6], height_ratios=[1.5, 1, 1])
    _boxes(figure.add_subplot(grid[0, 0]), shots, _rate("space", "area", told, cut))
    _spans(figure.add_subplot(grid[0, 1]), [shot.window for shot in shots], _rate("time", "span", told, cut))
    for number, shot in enumerate(shots):
        _strip(figure.add_subplot(grid[1 + number, :]), shot, number)
    figure.suptitle("/".join(shots[0].window.path.replace("\\", "/").split("/")[-2:]), fontsize=11)
    return figure


def _rate(name: str, what: str, told: Mapping[str, float], cut: Mapping[str, float]) -> str:
    label = f"label: {told[name]:g} of the {what} is shared" if name in told else f"the {what} is not asked about"
    return f"{label} (cut: {cut[name]:.3f})"


def _boxes(axes: Axes, shots: Sequence[Shot], title: str) -> None:
    """The first frame of the first clip, with both boxes and what they share."""
    axes.imshow(shots[0].frames[0])
    boxes = [shot.window.box for shot in shots]
    top, left = (max(box[axis] for box in boxes) for axis in (0, 1))
    bottom, right = (min(box[axis] + box[axis + 2] for box in boxes) for axis in (0, 1))
    shared = Rectangle((left, top), max(right - left, 0), max(bottom - top, 0), color="white", alpha=0.35, linewidth=0)
    axes.add_patch(shared)
    for number, (box, colour) in enumerate(zip(boxes, COLOURS, strict=True)):
        style = "solid" if number == 0 else "dashed"
        frame = Rectangle((box[1], box[0]), box[3], box[2], fill=False, edgecolor=colour, linewidth=4, linestyle=style)
        axes.add_patch(frame)
    axes.set(xticks=[], yticks=[])
    axes.set_title(title, fontsize=11)


def _spans(axes: Axes, windows: Sequence[Window], title: str) -> None:
    """The frames that each clip reads, on the line of the video's frames."""
    starts = [float(window.start) for window in windows]
    ends = [start + float((window.frames - 1) * window.stride) for start, window in zip(starts, windows, strict=True)]
    axes.axvspan(max(starts), max(min(ends), max(starts)), color="#bbbbbb", alpha=0.5, linewidth=0)
    for number, window in enumerate(windows):
        height, colour = 1 - number, COLOURS[number]
        axes.plot([starts[number], ends[number]], [height, height], color=colour, linewidth=9, alpha=0.45)
        frames = window.indices[: window.frames]
        axes.plot(frames, np.full(len(frames), height), "o", color=colour, markersize=6, markeredgecolor="black")
    axes.set(yticks=[1, 0], yticklabels=["clip 1", "clip 2"], ylim=(-0.7, 1.7))
    margin = max(2.0, 0.1 * (max(ends) - min(starts)))
    axes.set_xlim(min(starts) - margin, max(ends) + margin)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.set_xlabel(f"frame of the video, which has {windows[0].total}; stride {windows[0].stride}")
    axes.set_title(title, fontsize=11)


def _strip(axes: Axes, shot: Shot, number: int) -> None:
    """Frames of a clip as the net sees them."""
    clip = shot.clip[: shot.window.frames]
    shown = np.unique(np.linspace(0, len(clip) - 1, SHOWN).round().astype(int))
    size = clip.shape[1]
    axes.imshow(np.concatenate(clip[shown], axis=1))
    axes.set_xticks((np.arange(len(shown)) + 0.5) * size, [f"frame {shot.window.indices[place]}" for place in shown])
    axes.set_yticks([])
    for side in axes.spines.values():
        side.set(color=COLOURS[number], linewidth=4)
    turned = f", turned {90 * shot.window.turns} degrees" if shot.window.turns else ""
    axes.set_title(f"clip {number + 1}{', mirrored' if shot.window.flip else ''}{turned}", fontsize=10)
