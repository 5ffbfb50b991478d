"""The table of a sweep: mean and spread over seeds beside the papers' numbers, and which cells truly differ.

Numbers that were measured by different protocols, or on different splits, never share a column.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from functools import cached_property
from itertools import groupby
from statistics import mean, stdev
from typing import Any

from vssl_core.data.named import DataSet
from vssl_core.plain import flatten
from vssl_core.run.significance import Difference, Scores, differences
from vssl_core.run.sweep import Sweep
from vssl_core.run.sweep_runs import SweepRun


@dataclass(frozen=True)
class Column:
    """One metric as one protocol measured it on one split, or only a paper."""

    metric: str  # data/evaluation/metric
    variant: int | None  # which of several protocols, from 0; None where there is but one
    values: Mapping[str, Sequence[float]]  # {cell: a number for each seed}
    scores: Mapping[str, Scores] = field(default_factory=dict)  # {cell: {seed: {video: percent}}}, where it is known

    @property
    def title(self) -> str:
        """What heads it."""
        return self.metric if self.variant is None else f"{self.metric} ({letter(self.variant)})"

    @cached_property
    def best(self) -> set[str]:
        """The cells whose mean no other beats, where they beat any."""
        means = {cell: mean(values) for cell, values in self.values.items() if values}
        found = {cell for cell, value in means.items() if value == max(means.values())}
        return found if len(found) < len(means) else set()

    @cached_property
    def differences(self) -> dict[tuple[str, str], Difference]:
        """How much better one cell is than another, for all pairs."""
        return differences(self.scores)

    @property
    def near(self) -> set[str]:
        """The cells that are not the best, and whose distance from it may be chance."""
        doubtful = [pair for pair, difference in self.differences.items() if not difference.clear]
        return {cell for pair in doubtful if self.best & set(pair) for cell in pair} - self.best


@dataclass(frozen=True)
class Entry:
    """One figure as the reader sees it."""

    text: str
    best: bool = False
    near: bool = False


@dataclass(frozen=True)
class Field:
    """A column of the printed table: ours, or a paper's."""

    title: str
    entries: Mapping[str, Entry]  # {cell: figure}


@dataclass(frozen=True)
class Table:
    """All that the runs of a sweep found."""

    sweep: Sweep
    columns: tuple[Column, ...]  # those of one metric beside each other
    notes: tuple[str, ...]  # what the reader must know

    def paper(self, metric: str) -> dict[str, float]:
        """{cell: the paper's number}."""
        return {cell.name: cell.paper[metric] for cell in self.sweep.cells if metric in cell.paper}

    @property
    def groups(self) -> Iterator[tuple[str, list[Column]]]:
        """Each metric of the table with its columns: what the file asks for, and all that a paper has a number of."""
        for metric, columns in groupby(self.columns, key=lambda column: column.metric):
            if self._asked(metric) or self.paper(metric):
                yield metric, list(columns)

    def _asked(self, metric: str) -> bool:
        if self.sweep.columns is None:
            return metric.count("/") == 2
        return any(fnmatchcase(metric, pattern) for pattern in self.sweep.columns)

    @property
    def fields(self) -> Iterator[Field]:
        """What is printed, from left to right."""
        for metric, columns in self.groups:
            for column in columns:
                best, near = column.best, column.near
                yield Field(
                    column.title,
                    {cell: Entry(spread(found), cell in best, cell in near) for cell, found in column.values.items()},
                )
            if paper := self.paper(metric):
                yield Field(f"{metric}, paper", {cell: Entry(f"{number:.1f}") for cell, number in paper.items()})

    @property
    def legend(self) -> str:
        """What the figures mean."""
        told = "Percent: mean ± standard deviation over seeds (how many seeds), and the number that a paper reports."
        if any(column.best for _, columns in self.groups for column in columns):
            told += " Bold: the best of ours."
        if any(column.near for _, columns in self.groups for column in columns):
            told += f" {NEAR}: its distance from the best may be chance (paired bootstrap over videos and seeds, 5 %)."
        return told


NEAR = "≈"


def letter(number: int) -> str:
    """a, b, ..., z, aa, ..."""
    return ("" if number < 26 else letter(number // 26 - 1)) + chr(ord("a") + number % 26)


def deviation(values: Sequence[float]) -> float | None:
    """The standard deviation of a sample; None where there are not two."""
    return stdev(values) if len(values) > 1 else None


def spread(values: Sequence[float]) -> str:
    """'41.3 ± 1.2 (3)'; '41.3 (1)' of a single value, nothing of none."""
    if not values:
        return ""
    around = deviation(values)
    return f"{mean(values):.1f}{'' if around is None else f' ± {around:.1f}'} ({len(values)})"


# From the runs to the table -------------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class Found:
    """What an evaluation of a run found on a data set."""

    run: SweepRun
    data: DataSet
    evaluation: str
    result: Mapping[str, Any]

    @property
    def prefix(self) -> str:
        """What its metrics begin with."""
        return f"{self.data.name}/{self.evaluation}"

    @property
    def hashes(self) -> tuple[str, str]:
        """Those of protocol and split: equal where numbers share a column."""
        return self.result["hashes"]["protocol"], self.result["hashes"]["split"]


def _results(runs: Sequence[SweepRun]) -> Iterator[Found]:
    for run in runs:
        for data in run.judged_on:
            for name in run.sweep.evaluations:
                if found := run.result(name, data):
                    yield Found(run, data, name, found)


def table_of(sweep: Sweep, runs: Sequence[SweepRun]) -> Table:
    """What the runs have found so far."""
    columns: list[Column] = []
    notes = list(_left(runs))
    results = list(_results(runs))
    for prefix in dict.fromkeys(found.prefix for found in results):
        group = [found for found in results if found.prefix == prefix]
        variants = {found.hashes: found.result["protocol"] for found in group}
        columns += _columns(prefix, group, list(variants))
        if len(variants) > 1:
            notes.append(_note(prefix, variants))
    columns = _sorted(columns)
    known = {column.metric for column in columns}
    papers = dict.fromkeys(metric for cell in sweep.cells for metric in cell.paper if metric not in known)
    columns += [Column(metric, None, {}) for metric in papers]
    for pattern in sweep.columns or ():
        if not any(fnmatchcase(metric, pattern) for metric in (*known, *papers)):
            notes.append(f"columns: no run has measured {pattern}")
    return Table(sweep, tuple(columns), tuple(notes))


def _left(runs: Sequence[SweepRun]) -> Iterator[str]:
    """A note for each run that has failed, and one for all that are still to come."""
    standings = {run: run.standing for run in runs}
    for run, standing in standings.items():
        if standing == "failed":
            yield f"{run.name}: failed ({run.failure})"
    coming = [run.name for run, standing in standings.items() if standing in ("to do", "half done")]
    if coming:
        yield f"not done yet: {'; '.join(coming)}"


def _columns(prefix: str, group: Sequence[Found], variants: Sequence[tuple[str, str]]) -> list[Column]:
    columns = []
    for number, variant in enumerate(variants):
        values: dict[str, dict[str, list[float]]] = {}
        scores: dict[str, dict[str, dict[int, dict[str, float]]]] = {}
        for found in group:
            if found.hashes == variant:
                run = found.run
                for metric, value in found.result["metrics"].items():
                    values.setdefault(metric, {}).setdefault(run.cell.name, []).append(value)
                for metric, videos in run.scores(found.evaluation, found.data).items():
                    scores.setdefault(metric, {}).setdefault(run.cell.name, {})[run.seed] = videos
        which = number if len(variants) > 1 else None
        columns += [
            Column(f"{prefix}/{metric}", which, cells, scores.get(metric, {})) for metric, cells in values.items()
        ]
    return columns


def _sorted(columns: Sequence[Column]) -> list[Column]:
    """Columns of one metric beside each other, metrics in the order in which they came."""
    metrics = list(dict.fromkeys(column.metric for column in columns))
    return sorted(columns, key=lambda column: metrics.index(column.metric))


def _note(prefix: str, variants: Mapping[tuple[str, str], Mapping[str, Any]]) -> str:
    """That there are several, and in what they differ."""
    protocols = [flatten(protocol) for protocol in variants.values()]
    keys = list(dict.fromkeys(key for protocol in protocols for key in protocol))
    differ = [key for key in keys if len({str(protocol.get(key)) for protocol in protocols}) > 1]
    told = []
    for number, ((protocol, split), values) in enumerate(zip(variants, protocols, strict=True)):
        what = ", ".join(f"{key} {values.get(key)}" for key in differ)
        told.append(f"({letter(number)}) protocol {protocol}, split {split}{': ' if what else ''}{what}")
    return f"{prefix} was not measured in one way, so its numbers stand in columns of their own: {'; '.join(told)}"
