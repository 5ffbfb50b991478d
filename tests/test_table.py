"""The table of a sweep: its figures in every format, and which differences are more than chance."""

from __future__ import annotations

import csv
import json
import re
from collections.abc import Mapping
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sweep_files import sweep_file

from vssl_core.run import sweep_runs
from vssl_core.run.files import write_csv
from vssl_core.run.significance import RESAMPLES, differences, resampled
from vssl_core.run.sweep import Sweep, read_sweep
from vssl_core.run.sweep_runs import SweepRun, runs_of
from vssl_core.run.table import letter, spread, table_of
from vssl_core.run.table_files import FILES, in_latex, markdown, write
from vssl_core.run.untrained import save_untrained
from vssl_core.run.weights import WEIGHTS


def pretend(run: SweepRun, evaluation: str, metrics: Mapping[str, float], protocol: str = "p", **more: Any) -> None:
    """Write what an evaluation would, beside untrained weights."""
    if not (run.folder / WEIGHTS).exists():
        save_untrained(run.cell.with_seed(run.seed), run.folder)
    hashes = {"protocol": protocol, "split": "s", "weights": sweep_runs._digest(run.folder / WEIGHTS)}
    path = run.folder / "evaluations" / f"{evaluation}.json"
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps({"metrics": metrics, "protocol": {"size": 16, **more}, "hashes": hashes}))


def pretended(place: Path, **keys: Any) -> tuple[Sweep, list[SweepRun]]:
    """Three untrained cells and two seeds, evaluated by nobody yet."""
    cells = [
        {"name": "one | two", "plugins": [], "paper": {"folder/retrieval/r@1": 50.25, "hmdb51/finetune/top1": 38.3}},
        {"name": "B", "plugins": [], "overrides": {"clip.size": 32}},
        {"name": "C", "plugins": [], "paper": {"hmdb51/finetune/top1": 45.5}},
    ]
    found = read_sweep(sweep_file(place, *cells, seeds=[0, 1], **keys))
    return found, runs_of(found, place / "run")


def rows_of(markdown: str) -> list[list[str]]:
    """The cells of a table, head first and without its rule."""
    lines = [line for line in markdown.splitlines() if line.startswith("|")]
    return [[cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]] for line in (lines[0], *lines[2:])]


def test_the_table_shows_mean_spread_and_the_papers_numbers(tmp_path: Path) -> None:
    """A paper's number whose protocol was not run has its column, and what is missing is told."""
    found, runs = pretended(tmp_path)
    pretend(runs[0], "retrieval", {"r@1": 40.0, "cstp/r@1": 1.0})
    pretend(runs[3], "retrieval", {"r@1": 43.0, "cstp/r@1": 2.0})
    pretend(runs[1], "retrieval", {"r@1": 7.0})
    runs[2].fail("train", "no luck")
    table = table_of(found, runs)
    write(table, tmp_path)
    text = (tmp_path / "table.md").read_text()
    assert rows_of(text) == [
        ["cell", "folder/retrieval/r@1", "folder/retrieval/r@1, paper", "hmdb51/finetune/top1",
         "hmdb51/finetune/top1, paper"],
        ["one \\| two", "**41.5 ± 2.1 (2)**", "50.2", "", "38.3"],
        ["B", "7.0 (1)", "", "", ""],
        ["C", "", "", "", "45.5"],
    ]  # fmt: skip
    assert text.splitlines()[-2:] == ["* C, seed 0: failed (train: no luck)", "* not done yet: B, seed 1; C, seed 1"]
    with open(tmp_path / "table.csv", newline="") as file:
        one, two, three = csv.DictReader(file)
    assert (one["cell"], one["folder/retrieval/r@1 mean"], one["folder/retrieval/r@1 seeds"]) == (
        "one | two",
        "41.5",
        "2",
    )
    assert one["folder/retrieval/r@1 std"] == "2.12132" and one["folder/retrieval/r@1 paper"] == "50.25"
    assert (two["folder/retrieval/r@1 std"], three["folder/retrieval/r@1 mean"]) == ("", "")
    assert three["hmdb51/finetune/top1 paper"] == "45.5" and "folder/retrieval/cstp/r@1 mean" not in one


def test_other_protocols_have_columns_of_their_own(tmp_path: Path) -> None:
    found, runs = pretended(tmp_path, columns=["*/r@?", "*/nothing/*"])
    for run in runs:
        other = run.cell.name == "B"
        pretend(run, "retrieval", {"r@1": 40.0 + other, "r@5": 60.0}, "q" if other else "p", size=32 if other else 16)
    text = markdown(table_of(found, runs))
    head, *rows = rows_of(text)
    assert head[:6] == [
        "cell", "folder/retrieval/r@1 (a)", "folder/retrieval/r@1 (b)", "folder/retrieval/r@1, paper",
        "folder/retrieval/r@5 (a)", "folder/retrieval/r@5 (b)",
    ]  # fmt: skip
    assert [row[1:3] for row in rows] == [["40.0 ± 0.0 (2)", ""], ["", "41.0 ± 0.0 (2)"], ["40.0 ± 0.0 (2)", ""]]
    assert "(a) protocol p, split s: size 16; (b) protocol q, split s: size 32" in text
    assert "* columns: no run has measured */nothing/*" in text


@given(st.lists(st.floats(0, 100), min_size=1, max_size=8))
def test_spread_is_the_mean_and_the_sample_deviation(values: list[float]) -> None:
    match = re.fullmatch(r"(\d+\.\d)(?: ± (\d+\.\d))? \((\d+)\)", spread(values))
    assert match and int(match[3]) == len(values)
    assert float(match[1]) == pytest.approx(np.mean(values), abs=0.0501)
    assert (match[2] is None) == (len(values) == 1)
    if match[2]:
        assert float(match[2]) == pytest.approx(np.std(values, ddof=1), abs=0.0501)


def test_letters_go_on() -> None:
    assert [letter(number) for number in (0, 25, 26, 27, 52)] == ["a", "z", "aa", "ab", "ba"]
    assert spread([]) == ""


# Which differences are more than chance -------------------------------------------------------------------------------


def cells_of(scores: np.ndarray) -> dict[str, dict[int, dict[str, float]]]:
    """Scores (cells, seeds, videos) as the table has them; NaN: a run that is not there."""
    return {
        f"cell {row}": {
            seed: {f"v{number}": float(value) for number, value in enumerate(found)}
            for seed, found in enumerate(runs)
            if not np.isnan(found).any()
        }
        for row, runs in enumerate(scores)
    }


def test_resamples_are_means_over_videos_drawn_anew() -> None:
    """Against a plain loop over the very same draws."""
    scores = np.random.default_rng(1).random((3, 2, 7))
    fast = resampled(scores, np.random.default_rng(5), resamples=300)
    generator, slow = np.random.default_rng(5), []
    for size in (250, 50):
        for counts in generator.multinomial(7, np.full(7, 1 / 7), size=size):
            drawn = [video for video, count in enumerate(counts) for _ in range(count)]
            assert len(drawn) == 7
            slow.append([[np.mean([run[video] for video in drawn]) for run in cell] for cell in scores])
    np.testing.assert_allclose(fast, np.array(slow), rtol=1e-12)


def test_the_interval_is_that_of_theory() -> None:
    """Of one seed and many videos: mean ± 1.96 standard errors; and p is that of the normal distribution."""
    scores = np.random.default_rng(2).normal([[[50.0]], [[47.5]]], 20.0, (2, 1, 400))
    ((pair, found),) = differences(cells_of(scores)).items()
    gap = scores[0, 0] - scores[1, 0]
    error = gap.std(ddof=1) / np.sqrt(400)
    assert pair == ("cell 0", "cell 1") and (found.seeds, found.videos) == (1, 400)
    assert found.mean == pytest.approx(gap.mean())
    assert found.low == pytest.approx(gap.mean() - 1.96 * error, abs=0.1 * error)
    assert found.high == pytest.approx(gap.mean() + 1.96 * error, abs=0.1 * error)
    from statistics import NormalDist

    assert found.p == pytest.approx(2 * NormalDist().cdf(-abs(gap.mean()) / error), abs=0.02)


def test_of_cells_that_do_not_differ_few_are_told_apart() -> None:
    """The share of false alarms is about the level; and a large difference is never missed."""
    generator = np.random.default_rng(3)
    alarms = 0
    for _ in range(100):
        scores = 100.0 * (generator.random((2, 3, 60)) < 0.5)
        ((_, found),) = differences(cells_of(scores)).items()
        alarms += found.clear
    assert alarms <= 15
    scores[0] = 100.0 * (generator.random((3, 60)) < 0.9)
    ((_, found),) = differences(cells_of(scores)).items()
    assert found.clear and found.low > 0


@given(st.integers(0, 1000), st.integers(1, 3), st.integers(1, 12))
@settings(max_examples=20, deadline=None)
def test_differences_are_antisymmetric_and_need_what_is_shared(seed: int, seeds: int, videos: int) -> None:
    scores = np.random.default_rng(seed).integers(0, 2, (3, seeds, videos)) * 100.0
    cells = cells_of(scores)
    found = differences(cells)
    back = differences(dict(reversed(cells.items())))
    assert len(found) == 3
    for (one, other), difference in found.items():
        mirror = back[other, one]
        assert difference.mean == pytest.approx(-mirror.mean) and difference.p == pytest.approx(mirror.p)
        assert difference.low <= difference.mean + 1e-9 and difference.mean <= difference.high + 1e-9
        assert 2 / (RESAMPLES + 1) <= difference.p <= 1
    same = differences({"a": cells["cell 0"], "b": cells["cell 0"]})
    assert same["a", "b"].p == 1 and same["a", "b"].low == same["a", "b"].high == 0


def test_only_shared_seeds_are_compared() -> None:
    scores = np.random.default_rng(0).random((3, 2, 5)) * 100
    scores[1, 0] = np.nan
    scores[2, 1] = np.nan
    found = differences(cells_of(scores))
    assert {pair: difference.seeds for pair, difference in found.items()} == {
        ("cell 0", "cell 1"): 1,
        ("cell 0", "cell 2"): 1,
    }
    assert differences({}) == differences({"a": cells_of(scores)["cell 0"]}) == {}


# In every format ------------------------------------------------------------------------------------------------------


@pytest.fixture
def compared(tmp_path: Path) -> Path:
    """A folder with the files of a table: 'one | two' is the best, B far behind, C near."""
    found, runs = pretended(tmp_path)
    generator = np.random.default_rng(0)
    right = {"one | two": 46, "B": 10, "C": 44}
    for run in runs:
        hits = 100.0 * (generator.permutation(50) < right[run.cell.name])
        pretend(run, "retrieval", {"r@1": float(hits.mean())})
        videos = {"video": [f"a/{number}.mp4" for number in range(50)], "r@1": hits.tolist()}
        write_csv(run.folder / "evaluations" / "retrieval.videos.csv", videos)
    write(table_of(found, runs), tmp_path)
    return tmp_path


def test_the_best_is_bold_and_what_may_be_chance_is_marked(compared: Path) -> None:
    text = (compared / "table.md").read_text()
    figures = {row[0]: row[1] for row in rows_of(text)[1:]}
    assert figures["one \\| two"].startswith("**9") and figures["one \\| two"].endswith("**")
    assert "*" not in figures["B"] + figures["C"]
    assert figures["C"].endswith(" ≈") and "≈" not in figures["B"]
    assert "Bold: the best of ours." in text and "paired bootstrap" in text
    with open(compared / "significance.csv", newline="") as file:
        rows = {(row["cell"], row["other"]): row for row in csv.DictReader(file)}
    assert set(rows) == {("one | two", "B"), ("one | two", "C"), ("B", "C")}
    assert float(rows["one | two", "B"]["p"]) < 0.05 <= float(rows["one | two", "C"]["p"])
    assert rows["B", "C"]["metric"] == "folder/retrieval/r@1" and rows["B", "C"]["videos"] == "50"


class Cells(HTMLParser):
    """The texts of a page's table, row by row, with the class of each."""

    def __init__(self) -> None:
        super().__init__()
        self.rows: list[list[tuple[str, str]]] = []
        self.kind: str | None = None

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        if tag == "tr":
            self.rows.append([])
        if tag in ("td", "th"):
            self.rows[-1].append(("", dict(attributes).get("class") or ""))
            self.kind = tag

    def handle_endtag(self, tag: str) -> None:
        self.kind = None

    def handle_data(self, data: str) -> None:
        if self.kind:
            text, kind = self.rows[-1][-1]
            self.rows[-1][-1] = (text + data, kind)


def test_html_says_what_markdown_says(compared: Path) -> None:
    page = Cells()
    page.feed((compared / "table.html").read_text(encoding="utf-8"))
    plain = [[text for text, _ in row] for row in page.rows]
    told = [
        [cell.replace("\\|", "|").replace("**", "") for cell in row]
        for row in rows_of((compared / "table.md").read_text())
    ]
    assert plain == told
    assert [kind for row in page.rows for _, kind in row].count("best") == 1 and page.rows[1][1][1] == "best"


def test_latex_says_what_markdown_says(compared: Path) -> None:
    lines = (compared / "table.tex").read_text(encoding="utf-8").splitlines()
    body = lines[lines.index(r"\midrule") + 1 : lines.index(r"\bottomrule")]
    assert len(body) == 3 and all(line.endswith(r" \\") and line.count(" & ") == 4 for line in body)
    assert body[0].startswith(r"one $|$ two & \textbf{9") and r"$\pm$" in body[0] and r"$\approx$" in body[2]
    assert lines[-1] == r"\end{tabular}" and any(line.startswith(r"\begin{tabular}{lrrrr}") for line in lines)


def test_nothing_in_a_name_is_read_as_markup(tmp_path: Path) -> None:
    found = read_sweep(sweep_file(tmp_path, {"name": "<b>50% & $x_1$</b>", "plugins": []}))
    write(table_of(found, runs_of(found, tmp_path / "run")), tmp_path)
    assert "&lt;b&gt;50% &amp; $x_1$&lt;/b&gt;" in (tmp_path / "table.html").read_text()
    assert r"$<$b$>$50\% \& \$x\_1\$$<$/b$>$" in (tmp_path / "table.tex").read_text()
    assert in_latex("a\\b{~^}#") == r"a\textbackslash{}b\{\textasciitilde{}\textasciicircum{}\}\#"
    assert all((tmp_path / name).exists() for name in FILES)


def test_scores_that_are_not_ours_are_not_compared(compared: Path) -> None:
    found, runs = pretended(compared)
    path = runs[0].folder / "evaluations" / "retrieval.videos.csv"
    for text in ("", "video,r@1\nx,nonsense\n", "nothing\n1\n"):
        path.write_text(text)
        assert runs[0].scores("retrieval", *runs[0].judged_on) == {}
    assert table_of(found, runs).columns[0].values["one | two"]
