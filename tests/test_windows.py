"""Where clips look: every draw against its own promise, and geometry against pixels and frames counted one by one."""

from __future__ import annotations

import os
import pickle
import subprocess
import sys
from dataclasses import replace
from fractions import Fraction
from math import floor

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from vssl_core.requests import (
    Appearance,
    Between,
    Boxes,
    Centre,
    Fixed,
    Flips,
    Halves,
    Independent,
    Overlapping,
    Request,
    Same,
    Strides,
    Turns,
    Uniform,
)
from vssl_core.views import Windows
from vssl_core.windows import Sample, Window, draw_windows, overlapping_box, random_box

PLAIN_REQUEST = Request(
    clips=2,
    frames=8,
    size=48,
    strides=Strides((1,), shared=False, short="fit"),
    placement=Independent(),
    boxes=Boxes(Independent(), (0.2, 1.0), (0.75, 4 / 3)),
    flips=Flips(0.5),
    turns=Turns((0,)),
    appearance=Appearance("jittered", "clip"),
)
SIZE = (90, 120)

seeds = st.integers(0, 2**31 - 1)
totals = st.integers(1, 120)
sizes = st.tuples(st.integers(4, 200), st.integers(4, 200))
paces = st.lists(st.sampled_from((1, 2, 3, 5, Fraction(1, 2), Fraction(1, 3))), min_size=1, max_size=4, unique=True)
rates = st.sampled_from(((0.2, 0.4, 0.6, 0.8, 1.0), (0.5, 1.0), (0.33, 0.66, 0.99), (0.143, 0.286, 0.572, 1.0)))


@st.composite
def requests(draw: st.DrawFn, shorts: tuple[str, ...] = ("fit", "loop", "clamp")) -> Request:
    """Any complete request that could come out of a plan."""
    clips = draw(st.integers(1, 3))
    relative = [Overlapping(draw(rates)), Halves()] if clips <= 2 else [Halves("sparse"), Halves("dense")]
    placement = draw(st.sampled_from([Independent(), Fixed(), Centre(), Uniform(clips), *relative]))
    pairs = [Overlapping(draw(rates))] if clips <= 2 else []
    layout = draw(st.sampled_from([Independent(), Same(), Centre(), *pairs]))
    choices = draw(st.one_of(paces.map(tuple), st.sampled_from((Between(1, 4), Between(0.5, 2), Between(1, 1)))))
    shared = True if placement in relative else draw(st.booleans())
    return replace(
        PLAIN_REQUEST,
        clips=clips,
        frames=draw(st.integers(1, 17)),
        tail=draw(st.integers(0, 3)),
        placement=placement,
        strides=Strides(choices, shared=shared, short=draw(st.sampled_from(shorts))),
        boxes=Boxes(layout, draw(st.sampled_from(((0.2, 1.0), (1.0, 1.0), (0.05, 0.1)))), (0.75, 4 / 3)),
        turns=Turns(draw(st.sampled_from(((0,), (0, 1, 2, 3), (0, 2))))),
    )


def draw_one(
    request: Request,
    seed: int = 0,
    total: int = 100,
    size: tuple[int, int] = SIZE,
    video: int = 0,
) -> tuple[Window, ...]:
    """The windows of one video."""
    return draw_windows(request, Sample(seed, 0, 0, video), "group", total, size)


def windows_of(*windows: Window) -> Windows:
    """Windows of one clip as the tensors of a batch."""
    return Windows.of(windows)


# What holds for every request -----------------------------------------------------------------------------------------


@given(request=requests(), seed=seeds, total=totals, size=sizes)
@settings(max_examples=300, deadline=None)
def test_every_window_reads_frames_that_exist_and_a_box_inside_them(
    request: Request,
    seed: int,
    total: int,
    size: tuple[int, int],
) -> None:
    """Whatever is asked of however short a video; and frame i is frame floor(start + i * stride)."""
    windows = draw_one(request, seed, total, size)
    assert [window.clip for window in windows] == list(range(request.clips))
    assert tuple(window.frames for window in windows) == request.lengths
    for window in windows:
        nominal = [floor(window.start + i * window.stride) for i in range(window.frames + request.tail)]
        assert window.nominal.tolist() == nominal and nominal[0] >= 0
        expected = [min(n, total - 1) if request.strides.short == "clamp" else n % total for n in nominal]
        assert window.indices.tolist() == expected and window.real.tolist() == [n < total for n in nominal]
        top, left, height, width = window.box
        assert 1 <= height <= size[0] and 1 <= width <= size[1]
        assert 0 <= top <= size[0] - height and 0 <= left <= size[1] - width
        assert window.turns in request.turns.choices and window.frame_size == size
        assert pickle.loads(pickle.dumps(window)) == window


@given(request=requests(shorts=("fit",)), seed=seeds, total=totals)
@settings(max_examples=300, deadline=None)
def test_what_fits_has_no_seam_and_what_cannot_fit_shows_all_clips_alike(
    request: Request,
    seed: int,
    total: int,
) -> None:
    windows = draw_one(request, seed, total)
    if all(window.real.all() for window in windows):
        return
    choices = request.strides.choices
    smallest = Fraction(choices.low) if isinstance(choices, Between) else min(map(Fraction, choices))
    base = 2 * request.frames if isinstance(request.placement, Halves) else request.frames
    longest = base + (2 * request.tail if request.placement == Halves("sparse") else request.tail)
    assert floor((longest - 1) * smallest) + 1 > total  # not even the smallest stride fits
    assert {window.start for window in windows[:1]} == {0}
    if not isinstance(request.placement, Halves):
        assert {(window.start, window.stride) for window in windows} == {(0, smallest)}


@given(request=requests(), seed=seeds, total=totals)
@settings(max_examples=150, deadline=None)
def test_a_field_of_a_neighbour_changes_no_other_draw(request: Request, seed: int, total: int) -> None:
    """Turns, flips and boxes each have their own stream; a further clip leaves the first ones as they are."""
    windows = draw_one(request, seed, total)
    changed = replace(request, turns=Turns((1, 3)), flips=Flips(1.0), boxes=Boxes(Centre(), (0.3, 0.4), (1, 1)))
    for before, after in zip(windows, draw_one(changed, seed, total), strict=True):
        assert (before.start, before.stride) == (after.start, after.stride)
    retimed = replace(request, strides=Strides((7,), True, "loop"), placement=Independent())
    for before, after in zip(windows, draw_one(retimed, seed, total), strict=True):
        assert (before.box, before.flip, before.turns) == (after.box, after.flip, after.turns)
    free = isinstance(request.placement, Independent | Fixed | Centre)
    if free and not isinstance(request.boxes.layout, Overlapping):
        assert draw_one(replace(request, clips=request.clips + 1), seed, total)[: request.clips] == windows


# Random numbers -------------------------------------------------------------------------------------------------------


def test_a_sample_is_drawn_from_its_names_alone() -> None:
    """Same names, same numbers; any other seed, epoch, visit, video, stream or clip: others."""
    sample = Sample(1, 2, 3, 4)
    numbers = [
        item.generator(stream, clip).integers(2**60)
        for item, stream, clip in (
            (sample, "a", 0),
            (sample, "a", 1),
            (sample, "b", 0),
            (sample, "a", -1),
            (replace(sample, seed=2), "a", 0),
            (replace(sample, epoch=1), "a", 0),
            (replace(sample, visit=2), "a", 0),
            (replace(sample, video=5), "a", 0),
            (Sample(2, 1, 3, 4), "a", 0),
            (Sample(1, 2, 4, 3), "a", 0),
        )
    ]
    assert len(set(numbers)) == len(numbers)
    assert numbers[0] == Sample(1, 2, 3, 4).generator("a", 0).integers(2**60)


def test_another_process_draws_the_same_windows() -> None:
    script = (
        "import numpy; numpy.random.seed(7)\n"
        "from vssl_core.windows import Sample\n"
        "print(Sample(1, 2, 3, 4).generator('stor/pair/boxes', 1).integers(2**60, size=3).tolist())\n"
    )
    printed = set()
    for salt in ("1", "2"):
        environment = {**os.environ, "PYTHONHASHSEED": salt, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
        command = [sys.executable, "-c", script]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
        printed.add(done.stdout.strip())
    assert printed == {str(Sample(1, 2, 3, 4).generator("stor/pair/boxes", 1).integers(2**60, size=3).tolist())}


def test_draws_are_even() -> None:
    """Strides, turns, flips, starts and the layouts' rates: none is drawn more often than chance explains."""
    request = replace(PLAIN_REQUEST, strides=Strides((1, 2, 3, 4), False, "fit"), turns=Turns((0, 1, 2, 3)))
    rows = [draw_one(request, total=100, video=video) for video in range(2000)]
    for clip in range(2):
        for values, classes in (
            ([int(row[clip].stride) - 1 for row in rows], 4),
            ([row[clip].turns for row in rows], 4),
            ([int(row[clip].flip) for row in rows], 2),
            ([int(4 * row[clip].start / (93 - 7 * (row[clip].stride - 1))) for row in rows], 4),
        ):
            expected = 2000 / classes
            assert abs(np.bincount(values, minlength=classes) - expected).max() < 5 * np.sqrt(expected)
    starts = [[float(row[clip].start) for row in rows] for clip in range(2)]
    assert abs(np.corrcoef(starts)[0, 1]) < 0.12


def test_shared_strides_are_shared_and_others_are_not() -> None:
    request = replace(PLAIN_REQUEST, clips=3, strides=Strides((1, 2, 3, 4), True, "fit"))
    shared = [draw_one(request, video=video) for video in range(40)]
    assert all(len({window.stride for window in row}) == 1 for row in shared)
    assert len({row[0].stride for row in shared}) == 4
    request = replace(request, strides=Strides((1, 2, 3, 4), False, "fit"))
    apart = [draw_one(request, video=video) for video in range(40)]
    assert any(len({window.stride for window in row}) > 1 for row in apart)


# Time -----------------------------------------------------------------------------------------------------------------


@given(seed=seeds, total=totals, frames=st.integers(1, 17), tail=st.integers(0, 2), chosen=paces, among=rates)
@settings(max_examples=200, deadline=None)
def test_overlapping_clips_share_the_frames_of_one_of_the_rates(
    seed: int,
    total: int,
    frames: int,
    tail: int,
    chosen: list,
    among: tuple[float, ...],
) -> None:
    """As near as whole samples come to it, of one stride, forward or backward alike."""
    request = replace(
        PLAIN_REQUEST,
        frames=frames,
        tail=tail,
        placement=Overlapping(among),
        strides=Strides(tuple(chosen), True, "fit"),
    )
    left, right = draw_one(request, seed, total)
    assert left.stride == right.stride
    later = abs(left.start - right.start) / max(min(left.stride, 1), Fraction(1, 3))
    assert later.denominator == 1
    if left.start != right.start:
        unit = float(1 / max(left.stride, 1))  # a whole frame, in samples
        gaps = [abs(float(abs(left.start - right.start) / left.stride) - (1 - rate) * (frames - 1)) for rate in among]
        assert min(gaps) <= unit / 2 + 1e-6
        early, late = sorted((left, right), key=lambda window: window.start)
        moved = abs(left.start - right.start) / left.stride
        if moved.denominator == 1:  # whole samples: what one shows, the other shows so many samples later
            kept = max(frames - int(moved), 0)
            assert early.nominal[frames - kept : frames].tolist() == late.nominal[:kept].tolist()
    shared = windows_of(left).shared_time(windows_of(right)).item()
    span = (frames - 1) * left.stride
    assert shared == pytest.approx(float(max(1 - abs(left.start - right.start) / span, 0)) if span else 1.0)


def test_overlap_goes_both_ways_and_every_rate_is_drawn_where_there_is_room() -> None:
    request = replace(PLAIN_REQUEST, frames=16, placement=Overlapping(), strides=Strides((2,), True, "fit"))
    rows = [draw_one(request, total=300, video=video) for video in range(300)]
    offsets = {int(right.start - left.start) for left, right in rows}
    assert offsets == {sign * offset for offset in (0, 6, 12, 18, 24) for sign in (1, -1)}


@given(
    seed=seeds,
    total=st.integers(1, 60),
    clips=st.integers(1, 3),
    frames=st.integers(1, 9),
    tail=st.integers(0, 3),
    chosen=paces,
    overview=st.sampled_from(("sparse", "dense")),
)
@settings(max_examples=150, deadline=None)
def test_halves_follow_each_other_and_the_overview_spans_both(
    seed: int,
    total: int,
    clips: int,
    frames: int,
    tail: int,
    chosen: list,
    overview: str,
) -> None:
    request = replace(
        PLAIN_REQUEST,
        clips=clips,
        frames=frames,
        tail=tail,
        placement=Halves(overview if clips == 3 else None),
        strides=Strides(tuple(chosen), True, "fit"),
    )
    first, *rest = draw_one(request, seed, total)
    if rest:
        assert rest[0].start == first.start + frames * first.stride and rest[0].stride == first.stride
    if len(rest) == 2:
        halves = np.concatenate([first.nominal[:frames], rest[0].nominal[:frames]])
        step = 2 if overview == "sparse" else 1
        assert np.array_equal(rest[1].nominal[: 2 * frames // step], halves[::step])
        assert len(rest[1].nominal) == 2 * frames // step + tail


def test_the_share_of_a_span_is_each_clips_own() -> None:
    """Clips of two lengths: a half lies in the overview, which has as much besides; one frame is in a span or not."""
    request = replace(PLAIN_REQUEST, clips=3, frames=8, placement=Halves("dense"), strides=Strides((2,), True, "fit"))
    first, second, overview = map(windows_of, draw_one(request, total=200))
    assert first.shared_time(overview).item() == second.shared_time(overview).item() == 1
    assert overview.shared_time(first).item() == pytest.approx(7 / 15)
    assert first.shared_time(second).item() == second.shared_time(first).item() == 0
    one = replace(draw_one(request, total=200)[0], frames=1)
    later = replace(one, start=one.start + 1)
    assert windows_of(one).shared_time(first).item() == windows_of(later).shared_time(first).item() == 1
    assert windows_of(one).shared_time(windows_of(later)).item() == 0 == first.shared_time(windows_of(one)).item()


def test_fixed_clips_are_alike_in_every_epoch_and_others_are_not() -> None:
    fixed, drawn = replace(PLAIN_REQUEST, placement=Fixed()), PLAIN_REQUEST
    starts = {
        name: [
            {
                draw_windows(request, Sample(0, epoch, visit, video), "group", 100, SIZE)[0].start
                for epoch in range(6)
                for visit in range(2)
            }
            for video in range(8)
        ]
        for name, request in (("fixed", fixed), ("drawn", drawn))
    }
    assert all(len(of_video) == 1 for of_video in starts["fixed"]) and len(set.union(*starts["fixed"])) > 3
    assert all(len(of_video) > 3 for of_video in starts["drawn"])


@given(total=st.integers(1, 200), stride=st.sampled_from((1, 2, Fraction(1, 2))))
@settings(max_examples=60, deadline=None)
def test_the_centre_is_in_the_middle(total: int, stride: int | Fraction) -> None:
    request = replace(PLAIN_REQUEST, placement=Centre(), strides=Strides((stride,), True, "fit"))
    for window in draw_one(request, total=total):
        before, after = window.nominal[0], total - 1 - window.nominal[-1]
        assert 0 <= after - before <= 1 if window.real.all() else before == 0


@given(total=st.integers(1, 400), clips=st.integers(1, 10))
@settings(max_examples=80, deadline=None)
def test_uniform_clips_are_evenly_spread_from_the_first_frame_to_the_last(total: int, clips: int) -> None:
    request = replace(PLAIN_REQUEST, clips=clips, placement=Uniform(clips), strides=Strides((1,), True, "fit"))
    starts = [int(window.start) for window in draw_one(request, total=total)]
    room = max(total - 8, 0)
    assert len(starts) == clips and starts[0] == 0 and (clips == 1 or starts[-1] == room)
    assert all(abs(start - room * n / max(clips - 1, 1)) <= 1 for n, start in enumerate(starts))


@given(seed=seeds, total=st.integers(1, 60))
@settings(max_examples=100, deadline=None)
def test_any_stride_between_two_is_exact_and_fits_where_the_smallest_does(seed: int, total: int) -> None:
    request = replace(PLAIN_REQUEST, clips=1, strides=Strides(Between(0.5, 4), False, "fit"))
    (window,) = draw_one(request, seed, total)
    assert isinstance(window.stride, Fraction) and Fraction(1, 2) <= window.stride <= 4
    assert window.real.all() == (total > floor(7 * 0.5))


@pytest.mark.parametrize("total", [1, 2, 3, 4, 5])
def test_videos_shorter_than_a_clip(total: int) -> None:
    """fit starts at the first frame and starts again; loop starts anywhere; clamp repeats the last frame."""

    def of(short: str) -> list[Window]:
        request = replace(PLAIN_REQUEST, strides=Strides((2, 1), False, short))
        return [window for seed in range(40) for window in draw_one(request, seed, total)]

    assert {tuple(window.indices) for window in of("fit")} == {tuple(i % total for i in range(8))}
    assert {int(window.start) for window in of("loop")} == set(range(total))
    assert {tuple(window.indices) for window in of("clamp")} == {
        tuple(min(stride * i, total - 1) for i in range(8)) for stride in (1, 2)
    }


# Space ----------------------------------------------------------------------------------------------------------------


@given(
    seed=seeds,
    size=sizes,
    low=st.floats(0.05, 1),
    high=st.floats(0.05, 1),
    narrow=st.floats(0.5, 1),
    wide=st.floats(1, 2),
)
@settings(max_examples=200, deadline=None)
def test_a_random_box_has_the_area_and_the_aspect_asked_for(
    seed: int,
    size: tuple[int, int],
    low: float,
    high: float,
    narrow: float,
    wide: float,
) -> None:
    """To the pixel that rounding costs; where no such box fits the frame, as large as the aspect allows."""
    low, high = sorted((low, high))
    boxes = Boxes(Independent(), (low, high), (narrow, wide))
    top, left, height, width = random_box(boxes, np.random.default_rng(seed), size)
    assert 1 <= height <= size[0] and 1 <= width <= size[1]
    assert 0 <= top <= size[0] - height and 0 <= left <= size[1] - width
    if min(height, width) > 1:
        assert (width + 0.5) / (height - 0.5) >= narrow and (width - 0.5) / (height + 0.5) <= wide
    if height < size[0] and width < size[1]:
        whole = size[0] * size[1]
        assert (height - 0.5) * (width - 0.5) / whole <= high and (height + 0.5) * (width + 0.5) / whole >= low


@given(seed=seeds, size=st.tuples(st.integers(4, 300), st.integers(4, 300)), among=rates)
@settings(max_examples=200, deadline=None)
def test_overlapping_boxes_share_a_rate_to_half_a_row(
    seed: int,
    size: tuple[int, int],
    among: tuple[float, ...],
) -> None:
    """|intersection / area - rate| <= 1 / (2 h), in pixels that were painted and counted."""
    generator = np.random.default_rng(seed)
    first = random_box(Boxes(Independent(), (0.2, 1.0), (0.75, 4 / 3)), generator, size)
    second = overlapping_box(first, among, generator, size)
    assert second[2:] == first[2:]
    assert 0 <= second[0] <= size[0] - second[2] and 0 <= second[1] <= size[1] - second[3]
    painted = np.zeros(size, int)
    for top, left, height, width in (first, second):
        painted[top : top + height, left : left + width] += 1
    shared = (painted == 2).sum() / (first[2] * first[3])
    assert min(abs(shared - rate) for rate in (*among, 1.0)) <= 1 / (2 * first[2]) + 1e-6
    base = draw_one(PLAIN_REQUEST, size=size)[0]
    areas = windows_of(replace(base, box=first)).shared_area(windows_of(replace(base, box=second)))
    assert areas.item() == pytest.approx(shared, abs=1e-12)


def test_overlapping_boxes_go_to_all_four_corners_at_every_rate() -> None:
    request = replace(PLAIN_REQUEST, boxes=Boxes(Overlapping(), (0.05, 0.1), (0.75, 4 / 3)))
    rows = [draw_one(request, video=video, size=(240, 320)) for video in range(400)]
    moves = [(right.box[0] - left.box[0], right.box[1] - left.box[1]) for left, right in rows]
    assert len({(down > 0, along > 0) for down, along in moves if down and along}) == 4
    shared = windows_of(*(row[0] for row in rows)).shared_area(windows_of(*(row[1] for row in rows)))
    assert abs(np.bincount((shared * 5).round().long() - 1, minlength=5) - 80).max() < 45


def test_boxes_of_a_layout() -> None:
    def boxes(layout: object, size: tuple[int, int] = SIZE) -> list[list[tuple[int, ...]]]:
        request = replace(PLAIN_REQUEST, clips=3, boxes=Boxes(layout, (0.2, 1.0), (0.75, 4 / 3)))
        return [[window.box for window in draw_one(request, video=video, size=size)] for video in range(20)]

    assert all(len(set(row)) == 1 for row in boxes(Same())) and len({row[0] for row in boxes(Same())}) > 10
    assert all(len(set(row)) > 1 for row in boxes(Independent()))
    assert {box for row in boxes(Centre(), (128, 170)) for box in row} == {(8, 29, 112, 112)}


def test_boxes_apart_share_nothing() -> None:
    base = draw_one(PLAIN_REQUEST)[0]
    left, right = replace(base, box=(0, 0, 10, 10)), replace(base, box=(20, 20, 10, 10))
    assert windows_of(left).shared_area(windows_of(right)).item() == 0
    far = replace(base, start=base.start + 1000)
    assert windows_of(base).shared_time(windows_of(far)).item() == 0


# From frame to clip ---------------------------------------------------------------------------------------------------


def place(window: Window, row: int, column: int, height: int, width: int) -> tuple[int, int]:
    """Where a pixel of the box lies in the clip: mirrored, then turned counter-clockwise, one quarter at a time."""
    if window.flip:
        column = width - 1 - column
    for _ in range(window.turns):
        row, column, height, width = width - 1 - column, row, width, height
    return row, column


@given(
    height=st.integers(1, 7),
    width=st.integers(1, 7),
    flip=st.booleans(),
    turns=st.integers(0, 3),
    move=st.tuples(st.integers(-3, 3), st.integers(-3, 3)),
)
@settings(max_examples=150, deadline=None)
def test_a_field_is_carried_pixel_by_pixel_and_its_vectors_point_where_pixels_go(
    height: int,
    width: int,
    flip: bool,
    turns: int,
    move: tuple[int, int],
) -> None:
    window = replace(draw_one(PLAIN_REQUEST)[0], flip=flip, turns=turns)
    field = np.arange(2 * height * width).reshape(2, height, width)
    carried = window.carry(field)
    vectors = window.carry(np.broadcast_to(np.array(move)[:, None, None], (3, 2, height, width)), vector=True)
    assert vectors.shape == (3, 2, *carried.shape[1:]) and carried.flags.c_contiguous
    for row in range(height):
        for column in range(width):
            new = place(window, row, column, height, width)
            assert carried[:, new[0], new[1]].tolist() == field[:, row, column].tolist()
            moved = place(window, row + move[1], column + move[0], height, width)
            assert vectors[0, :, new[0], new[1]].tolist() == [moved[1] - new[1], moved[0] - new[0]]


@given(flip=st.booleans(), turns=st.integers(0, 3))
def test_carrying_leaves_what_it_was_given_as_it_was(flip: bool, turns: int) -> None:
    window = replace(draw_one(PLAIN_REQUEST)[0], flip=flip, turns=turns)
    field = np.random.default_rng(0).normal(size=(2, 4, 5)).astype(np.float32)
    before = field.copy()
    carried = window.carry(field, vector=True)
    carried[...] = 0 if turns or flip else carried
    assert np.array_equal(field, before) and carried.dtype == np.float32


def test_a_field_is_turned_as_the_clip_was() -> None:
    """The order of the cutter: flip first, turn last; so 90 and 270 degrees differ whatever the flip."""
    image = np.arange(12).reshape(3, 4)
    base = draw_one(PLAIN_REQUEST)[0]
    ways = [(flip, turns) for flip in (False, True) for turns in range(4)]
    seen = {way: replace(base, flip=way[0], turns=way[1]).carry(image).tobytes() for way in ways}
    assert len(set(seen.values())) == 8
    assert seen[True, 1] == np.ascontiguousarray(np.rot90(image[:, ::-1])).tobytes()


# Tensors --------------------------------------------------------------------------------------------------------------


@given(request=requests(), seed=seeds, total=totals)
@settings(max_examples=60, deadline=None)
def test_the_tensors_of_a_window_say_what_the_window_says(request: Request, seed: int, total: int) -> None:
    assume(request.clips > 1)
    one, two = draw_one(request, seed, total)[:2]
    tensors = windows_of(one, two)
    for name in ("video", "visit", "clip", "total", "flip", "turns"):
        assert getattr(tensors, name).tolist() == [getattr(one, name), getattr(two, name)]
    assert tensors.start.tolist() == [float(one.start), float(two.start)]
    assert tensors.box.tolist() == [list(one.box), list(two.box)]
    assert tensors.stride.tolist() == [float(one.stride), float(two.stride)]
    assert tensors.indices.tolist() == [one.indices.tolist(), two.indices.tolist()]
    assert tensors.real.tolist() == [one.real.tolist(), two.real.tolist()]
    assert tensors.span.tolist() == [float((request.frames - 1) * window.stride) for window in (one, two)]
    with pytest.raises(AttributeError, match=r"windows have no 'rate'; they have video, visit, .* span"):
        tensors.rate  # noqa: B018
