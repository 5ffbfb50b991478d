"""Colour labels: against loops over pixels, under mirror images, turns and shuffles, and where the truth is known."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from vssl_statistics.appearance import dominant, labels, likeness, octants
from vssl_statistics.patterns import WHERE, masks

SEEDS = st.integers(0, 2**31 - 1)
SHAPES = st.tuples(st.integers(8, 14), st.integers(8, 14))
NAMES = {  # the released code's numbers, from 1
    "blue": ((0, 0, 255), 1), "cyan": ((0, 255, 255), 2), "magenta": ((255, 0, 255), 3), "white": ((255,) * 3, 4),
    "black": ((0, 0, 0), 5), "green": ((0, 255, 0), 6), "red": ((255, 0, 0), 7), "yellow": ((255, 255, 0), 8),
}  # fmt: skip


def random_clip(seed: int, height: int = 16, width: int = 16, frames: int = 4) -> np.ndarray:
    """Few colours, so that frames have some in common."""
    generator = np.random.default_rng(seed)
    palette = generator.integers(0, 256, 5, dtype=np.uint8)
    return palette[generator.integers(0, 5, (frames, height, width, 3))]


def plain_likeness(clip: np.ndarray, inside: np.ndarray) -> float:
    """Equation 2.3 of the thesis for one block: a histogram of each frame and channel, pixel by pixel."""
    places = np.argwhere(inside).tolist()
    found = []
    for channel in range(3):
        counts = []
        for frame in clip:
            histogram = [0] * 256
            for row, column in places:
                histogram[int(frame[row, column, channel])] += 1
            counts.append(histogram)
        common = sum(min(histogram[value] for histogram in counts) for value in range(256))
        union = sum(max(histogram[value] for histogram in counts) for value in range(256))
        found.append(common / union)
    return sum(found) / 3


def plain_octant(red: int, green: int, blue: int) -> int:
    return 1 + (4 if blue < 128 else 0) + (2 if red >= 128 else 0) + (1 if green >= 128 else 0)


def plain_dominant(clip: np.ndarray, inside: np.ndarray) -> list[int]:
    """How many pixels of a block lie in each octant."""
    counts = [0] * 8
    for frame in clip:
        for row, column in np.argwhere(inside).tolist():
            counts[plain_octant(*(int(value) for value in frame[row, column])) - 1] += 1
    return counts


@given(seed=SEEDS, shape=SHAPES)
@settings(max_examples=12, deadline=None)
def test_labels_are_those_of_loops_over_pixels(seed: int, shape: tuple[int, int]) -> None:
    """Crops of any shape; where several blocks are equally alike, any of them will do."""
    clip, inside = random_clip(seed, *shape), masks(*shape)
    alike = [plain_likeness(clip, block) for block in inside]
    colours = [plain_dominant(clip, block) for block in inside]
    np.testing.assert_allclose(likeness(clip), alike, rtol=1e-5)
    assert dominant(clip).astype(int).tolist() == colours
    found = labels(clip)
    for pattern, blocks in enumerate(WHERE):
        most, most_colour, least, least_colour = found[4 * pattern : 4 * pattern + 4] - 1
        assert alike[blocks][most] == pytest.approx(min(alike[blocks]), rel=1e-5)
        assert alike[blocks][least] == pytest.approx(max(alike[blocks]), rel=1e-5)
        for block, colour in ((most, most_colour), (least, least_colour)):
            counts = colours[blocks][block]
            assert colour == counts.index(max(counts))
    whole = plain_dominant(clip, np.ones(shape, bool))
    assert found[12] == 1 + whole.index(max(whole))


@pytest.mark.parametrize("name", NAMES)
def test_octants_have_the_numbers_of_the_released_code(name: str) -> None:
    colour, number = NAMES[name]
    assert octants(np.array(colour, np.uint8)) + 1 == number == plain_octant(*colour)
    assert labels(np.full((3, 16, 16, 3), colour, np.uint8))[[1, 3, 5, 7, 9, 11, 12]].tolist() == [number] * 7


def test_octants_part_at_half() -> None:
    colours = np.array([[128, 127, 128], [127, 128, 127]], np.uint8)
    assert octants(colours).tolist() == [2, 5]


@given(seed=SEEDS, order=st.permutations(range(4)))
@settings(max_examples=30, deadline=None)
def test_the_order_of_frames_changes_nothing(seed: int, order: list[int]) -> None:
    clip = random_clip(seed)
    assert labels(clip[order]).tolist() == labels(clip).tolist()


@given(seed=SEEDS, frames=st.integers(1, 5))
@settings(max_examples=30, deadline=None)
def test_likeness_is_a_share_and_one_where_nothing_changes(seed: int, frames: int) -> None:
    clip = random_clip(seed, frames=frames)
    assert (likeness(clip) >= 0).all() and (likeness(clip) <= 1).all()
    still = np.repeat(clip[:1], 4, axis=0)
    assert (likeness(still) == 1).all() and labels(still)[[0, 2, 4, 6, 8, 10]].tolist() == [1] * 6


@given(seed=SEEDS)
@settings(max_examples=30, deadline=None)
def test_labels_lie_in_their_ranges(seed: int) -> None:
    found = labels(random_clip(seed))
    assert found.shape == (13,) and (found >= 1).all()
    assert (found <= [16, 8, 16, 8, 4, 8, 4, 8, 8, 8, 8, 8, 8]).all()


@given(seed=SEEDS, flip=st.booleans(), turns=st.integers(0, 3))
@settings(max_examples=60, deadline=None)
def test_mirrored_and_turned_clips_name_the_same_blocks_and_colours(seed: int, flip: bool, turns: int) -> None:
    """Each label's block, mirrored and turned with the clip, is the block that the new label names."""

    def moved(field: np.ndarray) -> np.ndarray:
        return np.ascontiguousarray(np.rot90(field[:, :, ::-1] if flip else field, turns, axes=(1, 2)))

    clip, inside = random_clip(seed, frames=3), masks(16, 16)
    alike, colours = likeness(clip), dominant(clip)
    for blocks in WHERE:  # no two blocks, and no two colours, may share the first place
        ends = np.sort(alike[blocks])
        assume(ends[1] > ends[0] and ends[-1] > ends[-2])
    ranked = np.sort(colours, axis=1)
    assume((ranked[:, -1] > ranked[:, -2]).all())
    before, after, carried = labels(clip), labels(moved(clip)), moved(inside)
    for pattern, blocks in enumerate(WHERE):
        for place in (4 * pattern, 4 * pattern + 2):
            assert (carried[blocks][before[place] - 1] == inside[blocks][after[place] - 1]).all()
            assert before[place + 1] == after[place + 1]
    assert before[12] == after[12]


@pytest.mark.parametrize("pattern", (0, 1, 2))
def test_the_block_that_changes_and_the_one_that_does_not_are_found(pattern: int) -> None:
    """Noise whose colours shift from frame to frame, faster in one block, and not at all in another."""
    size, blocks = 32, WHERE[pattern]
    inside = masks(size, size)[blocks]
    count = len(inside)
    for block in range(count):
        other = (block + count // 2) % count
        noise = np.random.default_rng(block).integers(0, 100, (size, size, 3))
        speed = np.full((size, size, 1), 10)
        speed[inside[other]], speed[inside[block]] = 0, 40
        clip = np.stack([noise + frame * speed for frame in range(4)]).astype(np.uint8)
        clip[:, inside[block]] = np.array([[200, 20, 20]]) + (np.arange(4) * 9)[:, None, None]
        clip[:, inside[other]] = [20, 20, 200]
        found = labels(clip)[4 * pattern : 4 * pattern + 4].tolist()
        if pattern == 2:  # pixels on diagonals belong to two triangles, so a neighbour may share what lies there
            assert found[0] == block + 1 and found[1] == 7 and found[3] == 1
        else:
            assert found == [block + 1, 7, other + 1, 1]


def test_a_frame_of_the_tail_is_not_looked_at() -> None:
    from vssl_core import Window
    from vssl_statistics.measures import Appearance

    clip = random_clip(0, frames=5)
    window = Window(0, 0, 0, 9, 0, 1, 4, 1, (0, 0, 16, 16), (16, 16))
    changed = clip.copy()
    changed[4] = 255 - changed[4]
    assert Appearance()(clip, clip, window).tolist() == Appearance()(changed, clip, window).tolist()
    assert Appearance()(clip, clip, window).tolist() == labels(clip[:4]).tolist()


@pytest.mark.parametrize("shape", [(1, 1), (3, 5), (7, 400), (400, 400)])
def test_tiny_and_huge_crops_have_labels(shape: tuple[int, int]) -> None:
    """Small ones are enlarged pixel by pixel, of large ones every other pixel is counted."""
    found = labels(random_clip(1, *shape, frames=2))
    assert found.shape == (13,) and (found >= 1).all()


def test_of_huge_crops_nothing_is_lost_that_is_wider_than_a_pixel() -> None:
    clip = random_clip(2, 100, 100)
    doubled = clip.repeat(2, axis=1).repeat(2, axis=2)  # counted pixel by pixel
    huge = doubled.repeat(2, axis=1).repeat(2, axis=2)  # 400 wide: every second one
    assert labels(huge).tolist() == labels(doubled).tolist()
