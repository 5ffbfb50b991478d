"""The picture of a pace: the frames that are read are filled, and the label is the one that the loss takes."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
import pytest
from matplotlib.figure import Figure

from vssl_core import Shot, Window
from vssl_pace.pictures import draw


def shot(stride: Fraction, start: int = 20, total: int = 90, **more: object) -> Shot:
    """A clip of eight grey frames."""
    fields = {"box": (0, 0, 40, 40), "frame_size": (60, 80), "path": "videos/wave/one.mp4", **more}
    window = Window(0, 0, 0, total, Fraction(start), stride, 8, 0, **fields)
    return Shot(window, np.full((8, 60, 80, 3), 100, np.uint8), np.full((8, 16, 16, 3), 50, np.uint8))


def dots(figure: Figure, row: int = 0) -> tuple[list[int], list[int], list[str]]:
    """The frames of the video that are shown, those that are read, and what is written on them."""
    axes = figure.axes[row]
    seen, read = (line.get_xdata().tolist() for line in axes.lines)
    return seen, read, [text.get_text() for text in axes.texts]


@pytest.mark.parametrize(
    ("stride", "read", "words"),
    [
        (Fraction(1), list(range(20, 28)), "reads every frame"),
        (Fraction(4), list(range(20, 49, 4)), "reads one frame of 4"),
        (Fraction(1, 2), [20, 21, 22, 23], "reads each frame 2 times"),
    ],
)
def test_frames_that_are_read_are_filled(stride: Fraction, read: list[int], words: str) -> None:
    figure = draw([shot(stride)], ["label 1: pace told"])
    seen, filled, written = dots(figure)
    assert seen == list(range(17, read[-1] + 4)) and filled == read
    assert written == [f"{frame}\nx2" if stride < 1 else str(frame) for frame in read]
    assert figure.axes[0].get_title() == f"clip 1: label 1: pace told; {words}"


def test_a_clip_that_starts_again_says_so() -> None:
    figure = draw([shot(Fraction(1), 85)], ["no label"])
    _, read, _ = dots(figure)
    assert read == [0, 1, 2, 85, 86, 87, 88, 89]
    assert "no label; it starts again" in figure.axes[0].get_title()


def test_each_clip_has_its_line_and_its_strip() -> None:
    figure = draw([shot(Fraction(1)), shot(Fraction(2))], ["one", "two"])
    assert len(figure.axes) == 4 and dots(figure, 2)[1] == list(range(20, 36, 2))
    assert [label.get_text() for label in figure.axes[3].get_xticklabels()] == [f"frame {n}" for n in range(20, 36, 2)]
