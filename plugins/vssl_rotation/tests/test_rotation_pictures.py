"""The picture of a turn: the box as filmed, and an arrow in the clip that points to what was above."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
import pytest

from vssl_core import Shot, Window
from vssl_rotation.pictures import draw

BOX = (8, 20, 40, 40)


def shot(turns: int, flip: bool) -> Shot:
    """A clip of four frames whose upper rows are white: cut by the same steps as real ones."""
    window = Window(
        0, 0, 0, 90, Fraction(3), Fraction(1), 4, 0, BOX, (60, 80), flip=flip, turns=turns, path="wave/one.mp4"
    )
    frames = np.zeros((4, 60, 80, 3), np.uint8)
    frames[:, : BOX[0] + 10] = 255
    uncut = Shot(window, frames, frames)
    return Shot(window, frames, uncut.crop)


@pytest.mark.parametrize("flip", [False, True])
@pytest.mark.parametrize("turns", [0, 1, 2, 3])
def test_the_arrow_points_to_what_was_above(turns: int, flip: bool) -> None:
    figure = draw([shot(turns, flip)], [turns])
    filmed, *strip = figure.axes
    assert len(strip) == 4
    for axes in strip:
        pixels = axes.images[0].get_array()
        (arrow,) = axes.patches
        across, down = arrow._posA_posB[1]
        assert pixels[round(down), round(across)].tolist() == [255, 255, 255]
        opposite = 39 - round(down), 39 - round(across)
        assert pixels[opposite].tolist() == [0, 0, 0]
    mirrored = "mirrored, then " if flip else ""
    assert strip[0].get_title(loc="left") == f"label {turns}: {mirrored}turned {90 * turns} degrees counter-clockwise"
    box, _ = filmed.patches
    assert (box.get_y() + 0.5, box.get_x() + 0.5, box.get_height(), box.get_width()) == BOX
    assert np.array_equal(filmed.images[0].get_array(), shot(turns, flip).frames[0])


def test_each_clip_has_its_row() -> None:
    figure = draw([shot(0, False), shot(2, True)], [0, 2])
    assert len(figure.axes) == 10 and figure.axes[5].get_title() == "clip 2: the box, as filmed"
    assert figure.get_suptitle() == "wave/one.mp4"
