"""The picture of a pair: it tells the labels that the loss takes, and shows the boxes and frames that were cut."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
import pytest
from matplotlib.figure import Figure

from vssl_core import Shot, Window
from vssl_stor.pictures import draw

SIZE = (60, 80)


def shot(start: int, box: tuple[int, int, int, int], **more: object) -> Shot:
    """A clip of eight grey frames."""
    fields = {"stride": Fraction(1), "frames": 8, "tail": 0, **more}
    window = Window(0, 0, 0, 90, Fraction(start), box=box, frame_size=SIZE, path="videos/wave/one.mp4", **fields)
    frames = np.full((8, *SIZE, 3), 100, np.uint8)
    return Shot(window, frames, np.full((8, 16, 16, 3), 50, np.uint8))


def drawn(told: dict[str, float], **more: object) -> Figure:
    """A pair that shares half of its box and three of seven steps."""
    shots = (shot(10, (5, 10, 40, 40)), shot(14, (5, 30, 40, 40), **more))
    return draw(shots, told, {"space": 0.5, "time": 3 / 7})


def test_labels_and_what_was_cut_are_told() -> None:
    boxes, spans, *_ = drawn({"space": 0.4, "time": 0.6}).axes
    assert boxes.get_title() == "label: 0.4 of the area is shared (cut: 0.500)"
    assert spans.get_title() == "label: 0.6 of the span is shared (cut: 0.429)"
    only = drawn({"space": 0.4}).axes
    assert only[1].get_title() == "the span is not asked about (cut: 0.429)"


def test_both_boxes_and_what_they_share_lie_where_they_were_cut() -> None:
    patches = drawn({"space": 0.4, "time": 0.6}).axes[0].patches
    shared, first, second = [(patch.get_y(), patch.get_x(), patch.get_height(), patch.get_width()) for patch in patches]
    assert (first, second) == ((5, 10, 40, 40), (5, 30, 40, 40))
    assert shared == (5, 30, 40, 20)


def test_the_frames_that_each_clip_reads_are_on_the_line() -> None:
    spans = drawn({"space": 0.4, "time": 0.6}, stride=Fraction(2)).axes[1]
    dots = [line.get_xdata().tolist() for line in spans.lines if line.get_marker() == "o"]
    assert dots == [list(range(10, 18)), list(range(14, 30, 2))]
    shaded = spans.patches[0].get_extents().transformed(spans.transData.inverted())
    assert (shaded.x0, shaded.x1) == pytest.approx((14, 17))


def test_strips_show_the_clips_and_say_how_they_lie() -> None:
    figure = drawn({"space": 0.4, "time": 0.6}, flip=True, turns=1)
    *_, first, second = figure.axes
    assert (first.get_title(), second.get_title()) == ("clip 1", "clip 2, mirrored, turned 90 degrees")
    assert [label.get_text() for label in first.get_xticklabels()][::5] == ["frame 10", "frame 17"]
    assert figure.get_suptitle() == "wave/one.mp4"
