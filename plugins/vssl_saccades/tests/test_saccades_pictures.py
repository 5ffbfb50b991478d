"""Pictures of fixations: what is marked in the frame is where masked pixels came from, and the command draws it."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path

import matplotlib.image
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as some
from small_runs import videos_folder

from vssl_core import Shot, Window
from vssl_core.cli import main
from vssl_saccades.fixations import clip_masks
from vssl_saccades.pictures import draw, in_frame

FRAME, SIZE = (24, 36), 12


def shot(box: tuple[int, int, int, int] = (0, 0, 24, 36), flip: bool = False, start: int = 0) -> Shot:
    """A clip whose pixels tell where in the frame they were: row and column in its first two channels."""
    rows, columns = np.mgrid[: FRAME[0], : FRAME[1]]
    frames = np.stack([rows, columns, 0 * rows], axis=2)[None].repeat(4, axis=0).astype(np.uint8)
    window = Window(
        video=0, visit=0, clip=0, total=20, start=Fraction(start), stride=Fraction(1), frames=4, tail=0, box=box,
        frame_size=FRAME, flip=flip, turns=0, path="a/v.mp4",
    )  # fmt: skip
    top, left, height, width = box
    down = top + (np.arange(SIZE) * height) // SIZE
    right = left + (np.arange(SIZE) * width) // SIZE
    clip = frames[:, down][:, :, right[::-1] if flip else right]
    return Shot(window, frames, clip)


@given(
    box=some.sampled_from([(0, 0, 24, 36), (12, 24, 12, 12), (0, 12, 24, 24)]),
    flip=some.booleans(),
    fixation=some.integers(0, 4),
    area=some.sampled_from([0.25, 0.35, 1.0]),
)
@settings(max_examples=40, deadline=None)
def test_a_fixation_in_the_frame_is_where_its_pixels_were(box: tuple, flip: bool, fixation: int, area: float) -> None:
    mask, cut = clip_masks(5, area, SIZE)[fixation], shot(box, flip)
    top, left, height, width = in_frame(mask, cut)
    seen = cut.clip[0][mask]
    for axis, (start, length) in enumerate([(top, height), (left, width)]):
        step = box[2 + axis] / SIZE
        assert seen[:, axis].min() == start and seen[:, axis].max() == start + length - step


def test_a_fixation_that_a_clip_misses_is_nowhere() -> None:
    assert in_frame(np.zeros((SIZE, SIZE), bool), shot()) is None


@pytest.mark.parametrize("mode", ["multiply", "residual", "none"])
def test_each_clip_is_drawn_under_its_mask(mode: str) -> None:
    shots = [shot(flip=number % 2 == 1, start=number) for number in range(4)]
    masks = list(clip_masks(5, 0.25, SIZE)[[0, 3, 0, 3]])
    figure = draw(shots, [0, 3, 0, 3], masks, mode)
    *panels, times = figure.axes
    assert len(panels) == 8 and len(times.lines) == 4
    for number, (cut, mask) in enumerate(zip(shots, masks, strict=True)):
        frame, seen = panels[2 * number], panels[2 * number + 1].images[0].get_array()
        assert np.array_equal(frame.images[0].get_array(), cut.frames[0]) and len(frame.patches) == 2
        assert frame.get_title().startswith("not masked" if mode == "none" else f"fixation {(1, 4)[number % 2]}, clip")
        clip = cut.clip[0]
        outside = {"multiply": np.full_like(clip, 128), "residual": clip // 2, "none": clip}[mode]
        assert np.array_equal(seen[mask], clip[mask]) and np.array_equal(seen[~mask], outside[~mask])
        assert times.lines[number].get_xdata().tolist() == [number + frame for frame in range(4)]


def test_the_command_draws_them(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["data", "labels", str(videos_folder()), "--plugin", "saccades", "--out", str(tmp_path), "--videos", "2"]
    assert main([*words, "clip.frames=4", "clip.size=32"]) == 0
    paths = capsys.readouterr().out.split()
    assert len(paths) == 2 and all(path.endswith("_fixations.png") for path in paths)
    assert main([*words, "clip.frames=4", "clip.size=32", "variant=official", "fixations=9"]) == 0
    wide = matplotlib.image.imread(capsys.readouterr().out.split()[0])
    assert wide.shape[1] > wide.shape[0] and wide.std() > 0.05
