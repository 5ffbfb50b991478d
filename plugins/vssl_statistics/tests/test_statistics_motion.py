"""Motion labels: against loops over pixels, under mirror images and turns, and where the truth is known."""

from __future__ import annotations

from fractions import Fraction
from math import atan2, floor, hypot, pi
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from small_runs import open_small

from vssl_core import Flow, Window
from vssl_statistics.measures import Motion, Score
from vssl_statistics.motion import Binning, boundaries, gradient, labels, score, votes
from vssl_statistics.patterns import BLOCKS, WHERE, masks

SEEDS = st.integers(0, 2**31 - 1)
BINNINGS = st.sampled_from(("hard", "soft"))
MIRRORED_TRIANGLES = (4, 3, 2, 1, 8, 7, 6, 5)


def random_flow(seed: int, size: int = 16, pairs: int = 5) -> np.ndarray:
    """Smooth enough for blocks to differ, rough enough for no two to be equal."""
    generator = np.random.default_rng(seed)
    coarse = generator.normal(0, 3, (pairs, 2, size // 4, size // 4)).repeat(4, axis=2).repeat(4, axis=3)
    return (coarse + generator.normal(0, 0.3, (pairs, 2, size, size))).astype(np.float32)


def window(box: tuple[int, int, int, int], frame: tuple[int, int], frames: int, **facts: object) -> Window:
    """A clip of a video that has just its frames."""
    places = {
        "video": 0,
        "visit": 0,
        "clip": 0,
        "total": frames,
        "start": Fraction(0),
        "stride": Fraction(1),
        "tail": 0,
    }
    return Window(**{**places, "frames": frames, "box": box, "frame_size": frame, **facts})


# Patterns -------------------------------------------------------------------------------------------------------------


def plain_blocks(row: int, column: int, height: int, width: int) -> list[int]:
    """The blocks, from 0 among all 28, that hold a pixel: in whole numbers, from its centre."""
    down, across = 2 * row + 1, 2 * column + 1  # of 2 * height, 2 * width
    found = [4 * (4 * down // (2 * height)) + 4 * across // (2 * width)]
    out = max(Fraction(abs(down - height), height), Fraction(abs(across - width), width))  # 0 at the centre, 1 outside
    found.append(16 + floor(4 * out))
    right, lower = across > width, down > height
    down, across = Fraction(down, 2 * height), Fraction(across, 2 * width)
    if right == lower:  # cut from the upper left to the lower right: the left triangle lies below
        sides = [across <= down, across >= down]
    else:  # from the upper right to the lower left: the left triangle lies above
        sides = [across + down <= 1, across + down >= 1]
    return found + [20 + 2 * (2 * lower + right) + side for side in (0, 1) if sides[side]]


@pytest.mark.parametrize("shape", [(8, 8), (16, 16), (112, 112), (13, 21), (30, 8)])
def test_patterns_hold_the_pixels_that_they_should(shape: tuple[int, int]) -> None:
    found = masks(*shape)
    for row in range(shape[0]):
        for column in range(shape[1]):
            assert np.flatnonzero(found[:, row, column]).tolist() == plain_blocks(row, column, *shape)


def test_blocks_have_the_areas_of_the_paper() -> None:
    """Of 112 x 112: sixteen squares of 28, four rings, eight triangles that share their diagonals."""
    areas = masks(112, 112).sum(axis=(1, 2)).tolist()
    assert areas[WHERE[0]] == [784] * 16
    assert areas[WHERE[1]] == [784, 2352, 3920, 5488]
    assert areas[WHERE[2]] == [1596] * 8


def moved(how: str) -> list[list[int]]:
    """For each pattern, which block (from 0) each block becomes when pictures are mirrored or turned."""
    found = masks(16, 16)
    act = {"mirror": lambda block: block[:, ::-1], "turn": np.rot90}[how]
    places = []
    for blocks in WHERE:
        group = [block.tobytes() for block in np.ascontiguousarray(found[blocks])]
        places.append([group.index(np.ascontiguousarray(act(block)).tobytes()) for block in found[blocks]])
    return places


def test_mirrored_blocks_are_those_of_the_paper() -> None:
    grid, rings, triangles = moved("mirror")
    assert grid == [4 * (block // 4) + 3 - block % 4 for block in range(16)]
    assert rings == [0, 1, 2, 3]
    assert triangles == [block - 1 for block in MIRRORED_TRIANGLES]


def test_turned_blocks_go_counter_clockwise() -> None:
    grid, rings, _ = moved("turn")
    assert grid == [4 * (3 - block % 4) + block // 4 for block in range(16)] and rings == [0, 1, 2, 3]


# Against loops over pixels --------------------------------------------------------------------------------------------


def plain_slopes(field: np.ndarray) -> tuple[list[list[float]], list[list[float]]]:
    """Prewitt's operator pixel by pixel; beyond an edge the field goes on as it ends."""
    height, width = field.shape

    def at(row: int, column: int) -> float:
        return float(field[min(max(row, 0), height - 1), min(max(column, 0), width - 1)])

    along_x = [
        [sum(at(i + step, j + 1) - at(i + step, j - 1) for step in (-1, 0, 1)) for j in range(width)]
        for i in range(height)
    ]
    along_y = [
        [sum(at(i + 1, j + step) - at(i - 1, j + step) for step in (-1, 0, 1)) for j in range(width)]
        for i in range(height)
    ]
    return along_x, along_y


def plain_labels(flow: np.ndarray, binning: Binning) -> list[int]:
    """Algorithm 1 of the thesis, a pixel at a time."""
    pairs, _, size, _ = flow.shape
    means, turned, strongest = [], [], []
    for field in (0, 1):
        summed_x = np.zeros((size, size))
        summed_y = np.zeros((size, size))
        strengths = []
        for pair in range(pairs):
            along_x, along_y = plain_slopes(flow[pair, field])
            strengths.append(sum(hypot(along_x[i][j], along_y[i][j]) for i in range(size) for j in range(size)))
            summed_x += along_x
            summed_y += along_y
        strongest.append(1 + max(range(pairs), key=strengths.__getitem__))
        sums, counts, bins = [0.0] * 28, [0] * 28, [[0.0] * 8 for _ in range(28)]
        for i in range(size):
            for j in range(size):
                length = hypot(summed_x[i, j], summed_y[i, j])
                eighths = atan2(summed_y[i, j], summed_x[i, j]) / (2 * pi) * 8 % 8
                low = int(eighths)
                for block in plain_blocks(i, j, size, size):
                    sums[block] += length
                    counts[block] += 1
                    if binning == "hard":
                        bins[block][low] += length
                    else:
                        bins[block][low] += length * (1 - (eighths - low))
                        bins[block][(low + 1) % 8] += length * (eighths - low)
        means.append([total / count for total, count in zip(sums, counts, strict=True)])
        turned.append(bins)
    found = []
    for blocks in WHERE:
        for field in (0, 1):
            block = max(range(blocks.start, blocks.stop), key=means[field].__getitem__)
            found += [block - blocks.start + 1, 1 + max(range(8), key=turned[field][block].__getitem__)]
    return found + strongest


@given(seed=SEEDS, binning=BINNINGS, size=st.sampled_from((8, 16)))
@settings(max_examples=15, deadline=None)
def test_labels_are_those_of_loops_over_pixels(seed: int, binning: Binning, size: int) -> None:
    flow = random_flow(seed, size, 3)
    assert labels(boundaries(flow), binning).tolist() == plain_labels(flow, binning)


def test_slopes_of_a_ramp_do_not_vanish() -> None:
    """Six inside and three at the edges, along x alone."""
    slopes = gradient(np.arange(8.0)[None, :].repeat(8, axis=0))
    assert (slopes[0, :, 1:-1] == 6).all() and (slopes[0, :, [0, -1]] == 3).all() and not slopes[1].any()


@given(seed=SEEDS, binning=BINNINGS)
@settings(max_examples=20, deadline=None)
def test_votes_of_a_block_add_up_to_its_mean(seed: int, binning: Binning) -> None:
    from vssl_statistics.motion import block_means

    found = boundaries(random_flow(seed))
    np.testing.assert_allclose(votes(found, binning).sum(axis=2), block_means(found.magnitude), rtol=1e-4)


# What must hold of every flow -----------------------------------------------------------------------------------------


@given(value=st.tuples(*[st.floats(-50, 50, width=32)] * 2), size=st.sampled_from((8, 16, 112)))
@settings(max_examples=20, deadline=None)
def test_even_motion_has_no_boundaries_at_all(value: tuple[float, float], size: int) -> None:
    """Nor at the edges: a camera that moves evenly does not count."""
    flow = np.broadcast_to(np.array(value, np.float32)[None, :, None, None], (4, 2, size, size))
    found = boundaries(flow)
    assert not found.summed.any() and not found.strengths.any() and not found.any
    assert labels(found).tolist() == [1] * 14  # of equal ones the first


def spot(block: int, size: int = 64) -> tuple[int, int]:
    """A pixel so far inside a block that its slopes stay there."""
    inside = masks(size, size)[block]
    inner = inside.copy()
    for shift in (-2, -1, 0, 1, 2):
        inner &= np.roll(inside, shift, 0) & np.roll(inside, shift, 1)
    places = np.argwhere(inner)
    return tuple(places[len(places) // 2])


@pytest.mark.parametrize("pattern", (0, 1, 2))
def test_the_only_edge_names_its_block(pattern: int) -> None:
    """In each block of each pattern, of u and of v in blocks of their own, whatever is scaled or added."""
    blocks = range(BLOCKS[pattern])
    for block in blocks:
        other = (block + 1) % BLOCKS[pattern]
        flow = np.zeros((6, 2, 64, 64), np.float32)
        row, column = spot(WHERE[pattern].start + block)
        flow[2, 0, row, column] = 1
        row, column = spot(WHERE[pattern].start + other)
        flow[4, 1, row, column] = -1
        expected = labels(boundaries(flow))
        assert expected[4 * pattern] == block + 1 and expected[4 * pattern + 2] == other + 1
        assert expected[12:].tolist() == [3, 5]
        for changed in (flow * 0.25, flow * 16, flow + 3, flow - 8):
            assert labels(boundaries(changed)).tolist() == expected.tolist()


@given(seed=SEEDS, binning=BINNINGS, scale=st.floats(0.01, 100), level=st.floats(-20, 20))
@settings(max_examples=40, deadline=None)
def test_scale_and_level_change_no_label(seed: int, binning: Binning, scale: float, level: float) -> None:
    flow = random_flow(seed).astype(np.float64)
    expected = labels(boundaries(flow), binning)
    assert labels(boundaries(flow * scale), binning).tolist() == expected.tolist()
    assert labels(boundaries(flow + level), binning).tolist() == expected.tolist()


@given(seed=SEEDS, order=st.permutations(range(5)), binning=BINNINGS)
@settings(max_examples=40, deadline=None)
def test_the_order_of_frames_changes_only_which_pair_is_strongest(
    seed: int, order: list[int], binning: Binning
) -> None:
    flow = random_flow(seed)
    before, after = labels(boundaries(flow), binning), labels(boundaries(flow[order]), binning)
    assert after[:12].tolist() == before[:12].tolist()
    assert [order[pair - 1] + 1 for pair in after[12:]] == before[12:].tolist()


@given(seed=SEEDS, binning=BINNINGS, pairs=st.integers(1, 15))
@settings(max_examples=40, deadline=None)
def test_labels_lie_in_their_ranges(seed: int, binning: Binning, pairs: int) -> None:
    flow = np.random.default_rng(seed).normal(size=(pairs, 2, 8, 8)).astype(np.float32)
    found = labels(boundaries(flow), binning)
    assert found.shape == (14,) and (found >= 1).all()
    assert (found <= [16, 8, 16, 8, 4, 8, 4, 8, 8, 8, 8, 8, pairs, pairs]).all()


# Mirror images and turns ----------------------------------------------------------------------------------------------


def mirrored(expected: np.ndarray, binning: Binning) -> list[int]:
    """The labels of the mirror image: columns are reversed; u's angles t become -t, v's 180 - t."""
    found = expected.copy()
    reflect = {"hard": (-1, 3), "soft": (0, 4)}[binning]  # bins from 0: a half-open eighth, or centred on its angle
    for pattern, places in enumerate(moved("mirror")):
        for field in (0, 1):
            place = 4 * pattern + 2 * field
            found[place] = places[expected[place] - 1] + 1
            found[place + 1] = (reflect[field] - (expected[place + 1] - 1)) % 8 + 1
    return found.tolist()


def turned(expected: np.ndarray) -> list[int]:
    """After a quarter turn counter-clockwise u is what v was, and v is minus u: angles t become t - 90 and t + 90."""
    found = expected.copy()
    for pattern, places in enumerate(moved("turn")):
        for field, by in ((0, -2), (1, 2)):
            place, source = 4 * pattern + 2 * field, 4 * pattern + 2 * (1 - field)
            found[place] = places[expected[source] - 1] + 1
            found[place + 1] = (expected[source + 1] - 1 + by) % 8 + 1
    found[12], found[13] = expected[13], expected[12]
    return found.tolist()


@given(seed=SEEDS, flip=st.booleans(), turns=st.integers(0, 3), binning=BINNINGS)
@settings(max_examples=80, deadline=None)
def test_mirrored_and_turned_clips_have_the_labels_that_geometry_says(
    seed: int, flip: bool, turns: int, binning: Binning
) -> None:
    """The field is carried as windows carry it: mirrored first, its vectors too, turned last."""
    flow = random_flow(seed)
    expected = labels(boundaries(flow), binning)
    expected = np.array(mirrored(expected, binning)) if flip else expected
    for _ in range(turns):
        expected = np.array(turned(expected))
    carried = window((0, 0, 16, 16), (16, 16), 6, flip=flip, turns=turns).carry(flow, vector=True)
    assert labels(boundaries(carried), binning).tolist() == expected.tolist()


def test_a_mirror_image_without_negated_vectors_is_told_wrong() -> None:
    """What one published loader does: every orientation of u is then the opposite one."""
    flow = random_flow(3)
    right = labels(boundaries(window((0, 0, 16, 16), (16, 16), 6, flip=True).carry(flow, vector=True)))
    wrong = labels(boundaries(np.ascontiguousarray(flow[..., ::-1])))
    for place in (1, 5, 9):
        assert (wrong[place] - right[place]) % 8 == 4


# Clips whose motion is known ------------------------------------------------------------------------------------------


def texture(height: int, width: int, seed: int = 0) -> np.ndarray:
    """(height, width, 3) uint8 that flow can follow: noise, smoothed."""
    import cv2

    noise = np.random.default_rng(seed).integers(0, 256, (height, width), dtype=np.uint8)
    smooth = cv2.GaussianBlur(noise, (0, 0), 2).astype(np.float32)
    smooth = (smooth - smooth.min()) / (smooth.max() - smooth.min()) * 255
    return smooth.astype(np.uint8)[..., None].repeat(3, axis=2)


def square_clip(row: float, column: float, velocity: tuple[int, int], when: range, frames: int = 8) -> np.ndarray:
    """(frames, 128, 160, 3): a textured square of 20 pixels moves at some moments over a still ground."""
    ground, square = texture(128, 160), 255 - texture(20, 20, 1) // 2
    clip = np.stack([ground] * frames)
    down, across = row - 10, column - 10
    for frame in range(frames):
        if frame - 1 in when:
            down, across = down + velocity[0], across + velocity[1]
        clip[frame, int(down) : int(down) + 20, int(across) : int(across) + 20] = square
    return clip


@pytest.mark.parametrize("method", ["dis", "farneback"])
@pytest.mark.parametrize("flip, turns", [(False, 0), (True, 0), (False, 1), (True, 3)])
@pytest.mark.parametrize("block", [0, 6, 9, 15])
def test_a_moving_square_is_found_where_it_moves_and_when(method: str, flip: bool, turns: int, block: int) -> None:
    """In whole frames, of which the clip shows 128 x 128, mirrored and turned; it moves between two pairs of frames."""
    row, column = 16 + 32 * (block // 4), 32 + 16 + 32 * (block % 4)
    frames = square_clip(row, column, (2, 3), range(4, 5))
    shown = window((0, 32, 128, 128), (128, 160), 8, flip=flip, turns=turns)
    clip = np.zeros((8, 64, 64, 3), np.uint8)
    found = Motion(Flow(method))(frames, clip, shown)
    places = {"mirror": moved("mirror")[0], "turn": moved("turn")[0]}
    expected = places["mirror"][block] if flip else block
    for _ in range(turns):
        expected = places["turn"][expected]
    assert found[[0, 2]].tolist() == [expected + 1] * 2
    assert found[12:].tolist() == [5, 5, 1]  # from the fifth frame to the sixth, and something moves
    assert Score(Flow(method))(frames, clip, shown) > 0.4


@pytest.mark.parametrize("flip", [False, True])
@pytest.mark.parametrize("way", ["right", "left", "down", "up"])
def test_the_edge_of_a_half_that_moves_points_the_way_that_geometry_says(way: str, flip: bool) -> None:
    """The lower or right half moves, so that motion grows across one edge: right or down, or falls: left or up.

    Mirrored, a motion to the right in the right half is one to the left in the left half, which still grows to the
    right.
    """
    sideways, sign = way in ("right", "left"), 1 if way in ("right", "down") else -1
    ground, frames = texture(96, 96), []
    moving = texture(96, 140, 1) if sideways else texture(140, 96, 1)
    for frame in range(5):
        picture, shift = ground.copy(), 20 - sign * 2 * frame
        if sideways:
            picture[:, 48:] = moving[:, shift : shift + 48]
        else:
            picture[48:] = moving[shift : shift + 48]
        frames.append(picture)
    found = Motion(Flow("dis"), "soft")(
        np.stack(frames), np.zeros((5, 48, 48, 3), np.uint8), window((0, 0, 96, 96), (96, 96), 5, flip=flip)
    )
    place = 1 if sideways else 3  # the orientation of u, or of v, in the strongest block of pattern 1
    upright = {"right": 1, "left": 5, "down": 3, "up": 7}[way]  # centred on 0, 180, 90 and 270 degrees
    assert found[place] == upright
    assert (found[place - 1] - 1) % 4 in (1, 2) if sideways else (found[place - 1] - 1) // 4 in (1, 2)


def test_a_still_clip_says_so_and_has_first_labels() -> None:
    still = np.stack([texture(64, 64)] * 8)
    found = Motion(Flow())(still, np.zeros((8, 32, 32, 3), np.uint8), window((0, 0, 64, 64), (64, 64), 8))
    assert found.tolist() == [1] * 14 + [0]


def test_a_seam_is_no_motion() -> None:
    """A video of four frames, looped to eight: the jump back is not measured."""
    frames = square_clip(64, 64, (0, 3), range(8), 4)
    shown = window((0, 32, 128, 128), (128, 160), 8, total=4)
    field = Flow()(frames[shown.indices], np.zeros((8, 64, 64, 3), np.uint8), shown)
    assert field.shape == (7, 2, 64, 64) and not field[3].any() and field[2].any() and field[4].any()


def test_labels_follow_the_clips_that_are_cut(tmp_path: Path) -> None:
    """The same clips of real files, all mirrored and none: geometry turns the labels of one into those of the other."""
    found = {}
    for flip in (0.0, 1.0):
        run = open_small(
            tmp_path / str(flip), {"statistics": None}, clip={"flip": flip, "size": 32}, options={"statistics": {}}
        )
        request = run.objectives["statistics"].requests()["clip"]
        result = run.extract(
            request,
            lambda batch: {
                "motion": batch["clips"][0].measures["statistics/motion"],
                "appearance": batch["clips"][0].measures["statistics/appearance"],
                "flip": batch["clips"][0].windows.flip,
                "box": batch["clips"][0].windows.box,
            },
        )
        assert (result["flip"] == bool(flip)).all()
        found[flip] = result
    assert torch.equal(found[0.0]["box"], found[1.0]["box"])
    for plain, mirror in zip(found[0.0]["motion"].numpy(), found[1.0]["motion"].numpy(), strict=True):
        assert plain[14] == mirror[14] == 1
        assert mirrored(plain[:14], "hard") == mirror[:14].tolist()
    colours = [1, 3, 5, 7, 9, 11, 12]
    same = found[0.0]["appearance"][:, colours] == found[1.0]["appearance"][:, colours]
    assert same.float().mean() > 0.8  # boxes of odd sizes have a middle line, which belongs to one side


# The score of curricula -----------------------------------------------------------------------------------------------


def plain_score(flow: np.ndarray) -> float:
    """Equation 3.1 of the thesis for the blocks of pattern 1, a pixel at a time."""
    size, best = flow.shape[-1], 0.0
    for field in (0, 1):
        slopes = [plain_slopes(pair[field]) for pair in flow]
        blocks = [0.0] * 16
        for i in range(size):
            for j in range(size):
                length = hypot(sum(x[i][j] for x, _ in slopes), sum(y[i][j] for _, y in slopes))
                blocks[plain_blocks(i, j, size, size)[0]] += length
        best = max(best, max(blocks) / sum(blocks))
    return best


@given(seed=SEEDS, size=st.sampled_from((8, 16)))
@settings(max_examples=15, deadline=None)
def test_scores_are_shares_of_the_strongest_block(seed: int, size: int) -> None:
    flow = random_flow(seed, size, 3)
    value = score(boundaries(flow))
    assert value == pytest.approx(plain_score(flow), rel=1e-5) and 1 / 16 <= value <= 1


def test_scores_at_their_ends() -> None:
    flow = np.zeros((3, 2, 64, 64), np.float32)
    assert score(boundaries(flow)) == 1 / 16  # nothing moves
    row, column = spot(5)
    flow[1, 0, row, column] = 2
    assert score(boundaries(flow)) == 1  # all in one block
    row, column = spot(6)
    flow[1, 0, row, column] = 2
    assert score(boundaries(flow)) == pytest.approx(0.5)
    flow[:, 1] = np.random.default_rng(0).normal(size=(3, 64, 64))  # v counts only where it is easier
    assert score(boundaries(flow)) == pytest.approx(0.5)
