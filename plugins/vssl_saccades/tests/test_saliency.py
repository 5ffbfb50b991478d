"""Votes of saliency maps: the way of the frames, counted in loops, and files that are none."""

from __future__ import annotations

import pickle
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as some

from vssl_core import ConfigError, DataError, Window
from vssl_saccades import saliency
from vssl_saccades.fixations import regions
from vssl_saccades.saliency import Votes, check_maps, check_videos, names_of

SIZE, FRAME = 8, (24, 32)


def window(path: str = "a/v.mp4", box: tuple[int, ...] = (0, 0, 24, 32), flip: bool = False, **more: int) -> Window:
    return Window(
        video=0, visit=0, clip=0, total=20, start=Fraction(more.get("start", 0)), stride=Fraction(1), frames=4,
        tail=more.get("tail", 0), box=box, frame_size=FRAME, flip=flip, turns=more.get("turns", 0), path=path,
    )  # fmt: skip


def votes_of(path: Path, cut: Window, fixations: int = 5, area: float = 0.25, space: str = "clip") -> list[float]:
    saliency.maps_of.cache_clear(), saliency._opened.cache_clear()
    clip = np.zeros((cut.frames + cut.tail, SIZE, SIZE, 3), np.uint8)
    return Votes(str(path), fixations, area, space)(clip, clip, cut).tolist()


def slow_votes(maps: np.ndarray, cut: Window, fixations: int, area: float, space: str) -> list[float]:
    """Pixel by pixel of the clip: where in the frame it lies, and in which rectangles of the clip or of its crop."""
    found = [0.0] * fixations
    for frame in cut.indices[: cut.frames].tolist():
        cells, held = maps[frame * len(maps) // cut.total], [0.0] * fixations
        for y, x in np.ndindex(SIZE, SIZE):
            column = SIZE - 1 - x if cut.flip and space == "clip" else x
            down = (cut.box[0] + (y + 0.5) * cut.box[2] / SIZE) / FRAME[0]
            right = (cut.box[1] + (column + 0.5) * cut.box[3] / SIZE) / FRAME[1]
            value = float(cells[int(down * cells.shape[0]), int(right * cells.shape[1])])
            for number, (top, bottom, left, far) in enumerate(regions(fixations, area)):
                if top <= (y + 0.5) / SIZE < bottom and left <= (x + 0.5) / SIZE < far:
                    held[number] += value
        if max(held) > 0:
            found[held.index(max(held))] += 1
    return found


@given(
    seed=some.integers(0, 999),
    count=some.sampled_from([1, 7, 20]),
    flip=some.booleans(),
    start=some.integers(0, 16),
    box=some.sampled_from([(0, 0, 24, 32), (3, 5, 12, 17), (10, 0, 14, 31)]),
    space=some.sampled_from(["clip", "crop"]),
)
@settings(max_examples=30, deadline=None)
def test_votes_are_counted_where_frames_were_cut(
    tmp_path_factory: pytest.TempPathFactory, seed: int, count: int, flip: bool, start: int, box: tuple, space: str
) -> None:
    maps = np.random.default_rng(seed).integers(0, 255, (count, 6, 9), dtype=np.uint8)
    maps[:: max(count // 2, 2)] = 0  # frames without saliency do not vote
    path = tmp_path_factory.mktemp("maps") / "maps.npz"
    np.savez_compressed(path, v=maps)
    cut = window(box=box, flip=flip, start=start)
    assert votes_of(path, cut, space=space) == slow_votes(maps, cut, 5, 0.25, space)


def test_fixations_of_the_frame_are_voted_for_in_the_frame(tmp_path: Path) -> None:
    """Whatever the clip's box shows of it, and mirrored or not: the mask is laid on the frame too."""
    maps = np.zeros((20, 6, 8), np.uint8)
    maps[:, 3:, :4] = 9  # the lower left quarter
    np.savez(tmp_path / "maps.npz", v=maps)
    for box in [(0, 0, 24, 32), (0, 16, 12, 16), (12, 0, 12, 16)]:
        for flip in (False, True):
            assert votes_of(tmp_path / "maps.npz", window(box=box, flip=flip), space="frame") == [0, 0, 4, 0, 0]


def test_what_is_bright_in_one_quarter_wins_and_mirrors_and_turns_with_the_clip(tmp_path: Path) -> None:
    maps = np.zeros((1, 6, 8), np.float32)
    maps[:, :3, :4] = 1.0  # top left
    np.savez(tmp_path / "maps.npz", v=maps)
    found = {
        name: int(np.argmax(votes_of(tmp_path / "maps.npz", cut)))
        for name, cut in {
            "plain": window(),
            "mirrored": window(flip=True),
            "turned": window(turns=1),  # counter-clockwise: top left goes to bottom left
            "longer": window(tail=3),
        }.items()
    }
    assert found == {"plain": 0, "mirrored": 1, "turned": 2, "longer": 0}
    assert sum(votes_of(tmp_path / "maps.npz", window(tail=3))) == 4  # the tail does not vote


def test_one_map_may_stand_for_a_whole_video_and_a_missing_one_does_not_vote(tmp_path: Path) -> None:
    single = np.zeros((6, 8), np.float32)
    single[3:, 4:] = 1.0
    np.savez(tmp_path / "maps.npz", v=single)
    assert votes_of(tmp_path / "maps.npz", window()) == [0, 0, 0, 4, 0]
    assert votes_of(tmp_path / "maps.npz", window("a/other.mp4")) == [0] * 5


def test_maps_are_found_by_the_longest_name(tmp_path: Path) -> None:
    first, second = np.zeros((1, 2, 2), np.uint8), np.zeros((1, 2, 2), np.uint8)
    first[0, 0, 0], second[0, 1, 1] = 1, 1
    np.savez(tmp_path / "maps.npz", **{"v": first, "b/v": second})
    assert np.argmax(votes_of(tmp_path / "maps.npz", window("/data/a/v.mp4"))) == 0
    assert np.argmax(votes_of(tmp_path / "maps.npz", window("/data/b/v.avi"))) == 3
    assert names_of("/data/a/v.one.mp4") == ["/data/a/v.one", "data/a/v.one", "a/v.one", "v.one"]


def test_it_is_a_value_that_travels_to_workers() -> None:
    votes = Votes("maps.npz", 5, 0.25)
    assert pickle.loads(pickle.dumps(votes)) == votes and hash(votes) == hash(Votes("maps.npz", 5, 0.25))
    assert votes != Votes("maps.npz", 9, 0.25)


def test_files_that_are_no_maps_are_sentences(tmp_path: Path) -> None:
    (tmp_path / "text.npz").write_text("no maps")
    np.save(tmp_path / "one.npy", np.zeros((2, 3, 4)))
    np.savez(tmp_path / "flat.npz", v=np.zeros(5))
    (tmp_path / "empty.npz").touch()
    (tmp_path / "cut.npz").write_bytes((tmp_path / "flat.npz").read_bytes()[:50])
    for name in ("text", "empty", "cut", "missing"):
        with pytest.raises(ConfigError, match=rf"^here: .*{name}\.npz cannot be read as a file of .* np\.savez"):
            check_maps(str(tmp_path / f"{name}.npz"), "here")
    with pytest.raises(ConfigError, match=r"^here: .*one\.npy holds one array; write one for each video"):
        check_maps(str(tmp_path / "one.npy"), "here")
    with pytest.raises(DataError, match=r"flat\.npz: the maps of 'v' are \(5,\); write \(maps, height, width\)"):
        votes_of(tmp_path / "flat.npz", window())
    np.savez(tmp_path / "objects.npz", v=np.array([{}], object))
    with pytest.raises(DataError, match=r"objects\.npz: the maps of 'v' cannot be read .*; write numbers"):
        votes_of(tmp_path / "objects.npz", window())
    check_maps(str(tmp_path / "flat.npz"), "here")
    check_videos(str(tmp_path / "flat.npz"), ["x/v.mp4"], "here")
