"""Curricula: how many videos, which, in what order; scores that are measured once, and runs that resume exactly."""

from __future__ import annotations

import json
from math import ceil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from small_runs import VIDEOS, Stop, StopAt, Watch, assert_equal, open_small, train, with_broken

from vssl_core import ConfigError, DataError, Run, Sample
from vssl_core.config import build, to_tree
from vssl_statistics.curriculum import UNKNOWN, Curriculum, count, easiest, part
from vssl_statistics.objective import Statistics
from vssl_statistics.scoring import CACHE, read_scores, write_scores

HALF = {"curriculum": {"pacing": "single_step"}}
PACINGS = st.sampled_from(
    (
        {},
        {"first": 0.3, "step_length": 2},
        {"pacing": "constant", "first": 0.25},
        {"pacing": "fixed_exponential"},
        {"pacing": "fixed_exponential", "first": 0.04, "growth": 1.9, "step_length": 1},
        {"pacing": "varied_exponential", "steps": (1, 4, 5)},
        {"hardest_first": True},
    )
)


def pacing(**options: Any) -> Curriculum:
    return Curriculum(**options)


# How many -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "options, epochs, shares",
    [
        ({}, 4, [0.5, 0.5, 1, 1]),
        ({}, 5, [0.5, 0.5, 0.5, 1, 1]),
        ({"step_length": 1, "first": 0.2}, 3, [0.2, 1, 1]),
        ({"step_length": 9}, 3, [0.5, 0.5, 0.5]),
        ({"pacing": "constant"}, 3, [0.5] * 3),
        ({"pacing": "fixed_exponential"}, 12, [1 / 8] * 2 + [1 / 4] * 2 + [1 / 2] * 2 + [1] * 6),
        ({"pacing": "fixed_exponential", "step_length": 1}, 5, [1 / 8, 1 / 4, 1 / 2, 1, 1]),
        ({"pacing": "fixed_exponential", "first": 0.3, "growth": 3, "step_length": 1}, 3, [0.3, 0.9, 1]),
        ({"pacing": "varied_exponential", "steps": (1, 4)}, 6, [1 / 8] + [1 / 4] * 3 + [1 / 2] * 2),
        ({"pacing": "varied_exponential", "steps": (2, 3), "growth": 8}, 4, [1 / 8, 1 / 8, 1, 1]),
    ],
)
def test_pacings_show_the_shares_that_they_say(options: dict[str, Any], epochs: int, shares: list[float]) -> None:
    assert [pacing(**options).share(epoch, epochs) for epoch in range(epochs)] == pytest.approx(shares)


@given(options=PACINGS, epochs=st.integers(1, 300))
@settings(max_examples=60, deadline=None)
def test_shares_rise_from_the_first_and_never_pass_all(options: dict[str, Any], epochs: int) -> None:
    shares = [pacing(**options).share(epoch, epochs) for epoch in range(epochs)]
    assert shares == sorted(shares) and 0 < shares[0] and shares[-1] <= 1 + 1e-9
    if options in ({}, {"pacing": "fixed_exponential"}, {"hardest_first": True}) and epochs > 1:
        assert shares[-1] == pytest.approx(1)


@pytest.mark.parametrize(
    "options, says",
    [
        ({"growth": 2}, "growth has no effect with pacing: single_step"),
        ({"pacing": "constant", "step_length": 3}, "step_length has no effect with pacing: constant"),
        ({"pacing": "fixed_exponential", "steps": [1]}, "steps has no effect"),
        ({"pacing": "varied_exponential"}, "needs steps: epochs from 1 on, rising, got None"),
        ({"pacing": "varied_exponential", "steps": [3, 3]}, "rising, got"),
        ({"pacing": "varied_exponential", "steps": [0, 3]}, "from 1 on"),
        ({"first": 0}, "greater than 0"),
        ({"first": 1.5}, "less than or equal to 1"),
        ({"pace": "constant"}, "pace"),
    ],
)
def test_pacings_that_cannot_be_meant_are_one_sentence(options: dict[str, Any], says: str) -> None:
    with pytest.raises(ConfigError, match=r"^plugins\.statistics\b.*curriculum") as error:
        build(Statistics.Config, {"curriculum": options}, "plugins.statistics")
    assert says in str(error.value) and "\n" not in str(error.value)


# Which ----------------------------------------------------------------------------------------------------------------


@given(videos=st.integers(1, 300), subset=st.sampled_from(("1/16", "1/8", "1/4", "1/2", "3/4")))
def test_parts_of_the_list_are_those_of_the_scale_study(videos: int, subset: str) -> None:
    """One of every k videos; of 3/4 one half, and one of every two in the other half."""
    rows = part(subset, videos).tolist()
    if subset == "3/4":
        half = list(range(0, videos, 2))
        rest = [row for row in range(videos) if row not in half]
        assert rows == sorted(half + rest[::2])
    else:
        assert rows == [row for row in range(videos) if row % int(subset[2:]) == 0]
    assert part(None, videos).tolist() == list(range(videos))


@given(
    scores=st.lists(st.sampled_from([UNKNOWN, 1 / 16, 0.25, 0.5, 0.75, 1.0]), min_size=1, max_size=40),
    share=st.floats(0.01, 1),
    hardest_first=st.booleans(),
    subset=st.sampled_from((None, "1/2", "3/4")),
)
def test_the_easiest_are_those_of_the_largest_scores(
    scores: list[float], share: float, hardest_first: bool, subset: Any
) -> None:
    rows = part(subset, len(scores))
    chosen = easiest(np.array(scores, np.float32), rows, share, hardest_first)
    assert chosen.tolist() == sorted(set(chosen.tolist()) & set(rows.tolist()))
    assert len(chosen) == min(max(ceil(share * len(rows) - 1e-6), 1), len(rows)) == count(share, len(rows))
    left = [row for row in rows.tolist() if row not in chosen]
    for kept in chosen.tolist():
        for other in left:
            if scores[other] != UNKNOWN:
                assert scores[kept] != UNKNOWN
                assert scores[kept] <= scores[other] if hardest_first else scores[kept] >= scores[other]


@given(share=st.floats(0.01, 1), more=st.floats(0.01, 1), seed=st.integers(0, 999))
def test_who_is_shown_stays(share: float, more: float, seed: int) -> None:
    scores = np.random.default_rng(seed).random(30).round(1).astype(np.float32)
    fewer, further = sorted((share, more))
    rows = np.arange(30)
    assert set(easiest(scores, rows, fewer)) <= set(easiest(scores, rows, further))


# Scores ---------------------------------------------------------------------------------------------------------------


def test_scores_survive_their_file_and_no_other_is_taken(tmp_path: Path) -> None:
    place, made_for = tmp_path / CACHE, {"list": "abc", "seed": 1}
    scores = np.array([0.1, UNKNOWN, 1.0], np.float32)
    assert read_scores(place, made_for, 3) is None
    write_scores(place, made_for, ["a/ä.mp4", "b\nc.mp4", "d.mp4"], scores)
    assert read_scores(place, made_for, 3).tolist() == scores.tolist()
    assert read_scores(place, {**made_for, "seed": 2}, 3) is None and read_scores(place, made_for, 4) is None
    assert json.loads(place.read_text(encoding="utf-8").splitlines()[1]) == {
        "video": "a/ä.mp4", "score": pytest.approx(0.1),
    }  # fmt: skip
    for spoilt in ("", "{}", "no json\n", place.read_text(encoding="utf-8")[:-20]):
        place.write_text(spoilt, encoding="utf-8")
        assert read_scores(place, made_for, 3) is None
    assert [path.name for path in tmp_path.iterdir()] == [CACHE]


def curricular(options: dict[str, Any], **changes: Any) -> dict[str, Any]:
    return {"options": {"statistics": options}, "epochs": 4, **changes}


def orders(watch: Watch, run: Run) -> list[list[int]]:
    """The videos of each epoch, in the order in which they were seen."""
    found: list[list[int]] = [[] for _ in range(run.config.epochs)]
    for report in watch.reports:
        found[report.epoch] += report.index.tolist()
    return found


def scored(folder: Path) -> np.ndarray:
    lines = (folder / CACHE).read_text(encoding="utf-8").splitlines()[1:]
    return np.array([json.loads(line)["score"] for line in lines])


def shuffled(run: Run, epoch: int, rows: list[int]) -> list[int]:
    """As the engine shuffles a list, cut to whole batches."""
    order = Sample(run.config.seed, epoch, 0, -1).generator("order").permutation(len(rows))
    return [rows[place] for place in order][: len(rows) // 4 * 4]


@pytest.mark.parametrize("hardest_first", [False, True])
def test_a_run_shows_the_easy_half_and_then_all(tmp_path: Path, hardest_first: bool) -> None:
    options = {"curriculum": {"first": 2 / 3, "hardest_first": hardest_first}}
    watch = Watch()
    run = train(tmp_path, {"statistics": None, "watch": watch}, **curricular(options))
    scores = scored(tmp_path)
    assert len(scores) == VIDEOS and ((scores >= 1 / 16) & (scores <= 1)).all() and len(set(scores)) > 6
    ranked = sorted(range(VIDEOS), key=lambda row: scores[row] if hardest_first else -scores[row])
    expected = [sorted(ranked[:8])] * 2 + [list(range(VIDEOS))] * 2
    assert orders(watch, run) == [shuffled(run, epoch, rows) for epoch, rows in enumerate(expected)]
    np.testing.assert_allclose(run.objectives["statistics"].scores.numpy(), scores)


def test_when_all_are_shown_it_is_the_run_without_a_curriculum(tmp_path: Path) -> None:
    """The same clips in the same order; so a comparison differs in nothing but what was left out before."""
    found = []
    for number, options in enumerate(({"curriculum": {"first": 1.0}}, {"fixed": True})):
        watch = Watch()
        train(tmp_path / str(number), {"statistics": None, "watch": watch}, **curricular(options))
        found.append(watch.losses)
    assert found[0] == found[1]


def test_a_part_of_the_list_is_all_that_is_read(tmp_path: Path) -> None:
    watch = Watch()
    options = {"subset": "3/4", "motion": False}
    run = train(tmp_path, {"statistics": None, "watch": watch}, **curricular(options))
    rows = [row for row in range(VIDEOS) if row % 4 != 3]
    assert orders(watch, run) == [shuffled(run, epoch, rows) for epoch in range(4)]
    assert not (tmp_path / CACHE).exists(), "nothing is scored without a curriculum"


@pytest.mark.parametrize("stop", [1, 2, 5])
def test_it_resumes_exactly_and_measures_no_score_twice(
    tmp_path: Path, stop: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In the first epoch, at its end, and after the step to all videos: state and losses of the unbroken run."""
    options = {"curriculum": {"first": 2 / 3}}
    changes = curricular(options)
    whole = Watch()
    state = train(tmp_path / "whole", {"statistics": None, "watch": whole, "stop": StopAt(-1)}, **changes).state()
    with pytest.raises(Stop):
        train(tmp_path / "broken", {"statistics": None, "watch": Watch(), "stop": StopAt(stop)}, **changes)
    monkeypatch.setattr(Run, "extract", lambda *arguments, **options: pytest.fail("scored again"))
    rest = Watch()
    run = train(tmp_path / "broken", {"statistics": None, "watch": rest, "stop": StopAt(-1)}, **changes)
    assert rest.losses == whole.losses[stop:] and len(whole.losses) == 10
    assert_equal(run.state(), state)


def test_a_run_that_was_killed_before_it_saved_reads_the_scores(tmp_path: Path) -> None:
    """They lie in the folder before the first step; what is read is what the file says, so nothing is measured."""
    changes = curricular(HALF)
    with pytest.raises(Stop):
        train(tmp_path, {"statistics": None, "watch": Watch(), "stop": StopAt(1, save=False)}, **changes)
    assert not (tmp_path / "checkpoint.pt").exists()
    first, *lines = (tmp_path / CACHE).read_text(encoding="utf-8").splitlines()
    told = [{**json.loads(line), "score": row / VIDEOS} for row, line in enumerate(lines)]
    (tmp_path / CACHE).write_text("\n".join([first, *map(json.dumps, told)]) + "\n", encoding="utf-8")
    watch = Watch()
    run = train(tmp_path, {"statistics": None, "watch": watch, "stop": StopAt(-1)}, **changes)
    assert set(orders(watch, run)[0]) <= set(range(6, 12))


def test_scores_are_of_the_clips_that_are_trained(tmp_path: Path) -> None:
    """The same frames in every epoch and in the scoring pass; boxes may differ."""
    from vssl_statistics.scoring import score_request

    class Peek(Watch):
        starts: dict[int, set[float]] = {}

    peek = Peek()
    run = open_small(tmp_path, {"statistics": None, "watch": peek}, **curricular(HALF, clip={"frames": 4}))

    def see(objective: Any, inputs: Any) -> None:
        (view,) = inputs[0]["clip"]
        for video, start in zip(view.windows.video.tolist(), view.windows.start.tolist(), strict=True):
            peek.starts.setdefault(video, set()).add(start)

    run.objectives["statistics"].register_forward_pre_hook(see)
    run.train()
    request = score_request(run.objectives["statistics"].flow)
    found = run.extract(request, lambda batch: {"start": batch["clips"][0].windows.start})
    assert {video: {found["start"][video].item()} for video in range(VIDEOS)} == peek.starts
    assert len(set(found["start"].tolist())) > 3


def test_a_video_that_cannot_be_read_comes_last(tmp_path: Path) -> None:
    watch = Watch()
    changes = curricular({"curriculum": {"first": 2 / 3}}, data={"max_bad_fraction": 0.5})
    videos = with_broken(tmp_path, [0, 7])
    run = open_small(tmp_path / "run", {"statistics": None, "watch": watch}, videos=videos, **changes)
    run.train()
    scores = scored(tmp_path / "run")
    assert scores[[0, 7]].tolist() == [UNKNOWN] * 2 and (np.delete(scores, [0, 7]) >= 1 / 16).all()
    first, second, *_ = orders(watch, run)
    assert not {0, 7} & {*first, *second}


def test_no_video_that_can_be_scored_is_one_sentence(tmp_path: Path) -> None:
    videos = with_broken(tmp_path, list(range(VIDEOS)))
    run = open_small(tmp_path / "run", {"statistics": None}, videos=videos, **curricular(HALF))
    with pytest.raises(DataError, match=r"plugins\.statistics: none of the 12 videos could be scored for the curric"):
        run.train()


@pytest.mark.parametrize("options", [{"subset": "1/4"}, {"curriculum": {"first": 0.2}}, {"subset": "1/2", **HALF}])
def test_too_few_videos_for_a_batch_are_told_before_they_are_scored(tmp_path: Path, options: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=r"plugins\.statistics: the first epoch shows 3 of 12 videos, less than one"):
        open_small(tmp_path, {"statistics": None}, **curricular(options))


def test_two_plugins_cannot_both_decide(tmp_path: Path) -> None:
    from vssl_core import PluginError, hookimpl

    class Other(Watch):
        @hookimpl
        def vssl_epoch_order(self, run: Run) -> list[int]:
            return list(range(VIDEOS))

    with pytest.raises(PluginError, match="statistics and other|other and statistics"):
        train(tmp_path, {"statistics": None, "other": Other()}, **curricular({"subset": "1/2", "motion": False}))


def test_options_of_a_curriculum_survive_the_written_config() -> None:
    config = build(Statistics.Config, {"curriculum": {"pacing": "varied_exponential", "steps": [1, 2]}}, "x")
    assert build(Statistics.Config, to_tree(config), "x") == config
