"""What a person looks at to believe paces: the frames of the video, those that a clip reads, and the clip."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from vssl_core import Shot, Window

READ = "#ff8c00"
SHOWN = 12  # frames of a strip


def draw(shots: Sequence[Shot], paces: Sequence[str]) -> Figure:
    """Each clip: which frames of the video it reads, its first frames, and its pace in words."""
    rows = 2 * len(shots)
    figure = Figure(figsize=(17, 4 * len(shots)), layout="constrained")
    grid = figure.add_gridspec(rows, 1, height_ratios=[1, 1.2] * len(shots))
    for number, (shot, pace) in enumerate(zip(shots, paces, strict=True)):
        _line(figure.add_subplot(grid[2 * number]), shot, f"clip {number + 1}: {pace}")
        _strip(figure.add_subplot(grid[2 * number + 1]), shot)
    figure.suptitle("/".join(shots[0].window.path.replace("\\", "/").split("/")[-2:]), fontsize=11)
    return figure


def _line(axes: Axes, shot: Shot, title: str) -> None:
    """The frames of the video around the clip as dots, those that are read filled, with how often each is."""
    window = shot.window
    read, often = np.unique(window.indices[: window.frames], return_counts=True)
    seen = np.arange(max(read.min() - 3, 0), min(read.max() + 4, window.total))
    axes.plot(seen, np.zeros(len(seen)), "o", markersize=5, color="white", markeredgecolor="#aaaaaa")
    axes.plot(read, np.zeros(len(read)), "o", markersize=9, color=READ, markeredgecolor="black")
    for frame, times in zip(read, often, strict=True):
        word = f"{frame}" if times == 1 else f"{frame}\nx{times}"
        axes.annotate(word, (frame, 0), (0, 10), textcoords="offset points", ha="center", fontsize=8)
    if not window.real[: window.frames].all():
        title += "; it starts again, or repeats its last frame, and does not count"
    axes.set(xticks=[], yticks=[], ylim=(-0.5, 1), xlabel=f"frames of the video, which has {window.total}")
    axes.set_title(f"{title}; {_reads(window)}", fontsize=12)


def _reads(window: Window) -> str:
    """A pace in other words."""
    stride = window.stride
    if stride < 1:
        return f"reads each frame {float(1 / stride):g} times"
    return "reads every frame" if stride == 1 else f"reads one frame of {float(stride):g}"


def _strip(axes: Axes, shot: Shot) -> None:
    """The first frames of the clip, one after the other: at a fast pace more happens in them."""
    shown = shot.clip[: min(shot.window.frames, SHOWN)]
    size = shown.shape[1]
    axes.imshow(np.concatenate(shown, axis=1))
    labels = [f"frame {frame}" for frame in shot.window.indices[: len(shown)]]
    axes.set_xticks((np.arange(len(shown)) + 0.5) * size, labels)
    axes.set_yticks([])
