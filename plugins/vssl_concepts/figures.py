"""The figures of the concepts: where each looks in the videos that it was found in, and which classes are alike."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.cm import ScalarMappable
    from matplotlib.figure import Figure

NAMED_CLASSES = 60  # with more of them, their names would cover each other
WRITTEN_CLASSES = 12  # with more of them, so would numbers
COLOURS = "autumn"
FAINTEST = 1.5  # no scale ends below it, so that what looks everywhere alike is not made to look otherwise
EVEN, OPAQUE = 0.15, 0.6  # of the scale, below which nothing is laid over a frame; how much of it is hidden at most


@dataclass(frozen=True, eq=False)
class Column:
    """A concept and the videos that it is drawn in."""

    concept: int
    most_active_in: int  # videos, of all
    names: Sequence[str]  # of those drawn: classes, or files
    activations: Sequence[float]  # cosines
    maps: Tensor  # (videos, T, h, w), each map sums to 1 over all places of the clip
    frames: Tensor  # (videos, T, side, side)


def draw_attention(kind: str, columns: Sequence[Column], videos: int) -> Figure:
    """A column for each concept, a row for each video, in a cell its moments from left to right."""
    from matplotlib.figure import Figure

    rows, moments = max(len(column.names) for column in columns), columns[0].frames.shape[1]
    width = max(max(1.2 * moments, 1.9) * len(columns), 4.5)  # of the titles, at least
    figure = Figure(figsize=(width + 0.9, 1.45 * rows + 1.5), layout="compressed")
    grid = figure.subplots(rows, len(columns), squeeze=False)
    for across, column in enumerate(columns):
        shares = column.maps * column.maps[0].numel()  # 1 where a concept takes what it would take everywhere
        top = max(float(shares.max()), FAINTEST)
        grid[0][across].set_title(
            f"{kind} concept {column.concept}\nmost active in {column.most_active_in} of {videos}\n"
            f"looks up to {float(shares.max()):.1f} times an even look",
            fontsize=8,
        )
        for down in range(rows):
            axes = grid[down][across]
            axes.set(xticks=[], yticks=[], frame_on=False)
            if down < len(column.names):
                _draw_cell(axes, (shares[down] - 1) / (top - 1), column.frames[down])
                axes.set_xlabel(f"{column.activations[down]:.2f}  {column.names[down]}", fontsize=7, labelpad=2)
    _explain(figure, [axes for row in grid for axes in row])
    figure.suptitle(
        f"Where {kind} concepts look\na column: a concept; a cell: moments of a test video; below: its activation",
        fontsize=9,
    )
    return figure


def _explain(figure: Figure, axes: Sequence[Axes]) -> None:
    """The scale of colours; each concept has its own end, which its title tells."""
    from matplotlib.cm import ScalarMappable
    from matplotlib.colors import Normalize

    bar = figure.colorbar(ScalarMappable(Normalize(0, 1), COLOURS), ax=list(axes), shrink=0.5)
    bar.set_ticks([0, 1], labels=["an even look", "the strongest\nof the concept"])
    bar.ax.tick_params(labelsize=7)


def _draw_cell(axes: Axes, heat: Tensor, frames: Tensor) -> None:
    """Frames (T, side, side) in gray, and over them in colour where heat (T, h, w), at most 1, is above 0."""
    from matplotlib import colormaps

    side = frames.shape[-1]
    large = F.interpolate(heat[:, None], size=(side, side), mode="bilinear", align_corners=False)[:, 0]
    strength = torch.cat(list(large), dim=1).clamp(0, 1).numpy()  # (side, T * side)
    layer = colormaps[COLOURS](strength)
    layer[..., 3] = OPAQUE * (strength - EVEN).clip(0) / (1 - EVEN)
    axes.imshow(torch.cat(list(frames), dim=1).numpy(), cmap="gray")
    axes.imshow(layer)
    for border in range(1, len(frames)):
        axes.axvline(border * side - 0.5, color="white", linewidth=1.5)


def draw_similarity(classes: Sequence[str], matrices: Mapping[str, Tensor]) -> Figure:
    """The matrices side by side, each on its own scale from its least number to 1."""
    from matplotlib.figure import Figure

    named = len(classes) <= NAMED_CLASSES
    side = 2.6 + max(0.42 * len(classes) if len(classes) <= WRITTEN_CLASSES else 0.16 * len(classes), 1)
    side = side if named else 8
    figure = Figure(figsize=(2 * side + 2, side), layout="constrained")
    all_axes = figure.subplots(1, len(matrices), squeeze=False)[0]
    for axes, (kind, matrix) in zip(all_axes, matrices.items(), strict=True):
        image = axes.imshow(matrix.numpy(), vmin=min(float(matrix.min()), 0.999), vmax=1, cmap="viridis")
        axes.set_title(f"{kind} concepts", fontsize=10)
        axes.set_xticks(range(len(classes)) if named else [], classes if named else [], rotation=90, fontsize=7)
        axes.set_yticks(range(len(classes)) if named else [], classes if named else [], fontsize=7)
        if len(classes) <= WRITTEN_CLASSES:
            _write(axes, matrix, image)
        figure.colorbar(image, ax=axes, shrink=0.7)
    figure.suptitle("How alike classes are: the cosine of their mean concept codes", fontsize=11)
    return figure


def _write(axes: Axes, matrix: Tensor, image: ScalarMappable) -> None:
    """Each number in its place, black on light and white on dark."""
    for row, values in enumerate(matrix.tolist()):
        for column, value in enumerate(values):
            colour = "black" if image.norm(value) > 0.6 else "white"
            axes.text(column, row, f"{value:.3g}", ha="center", va="center", fontsize=6, color=colour)
