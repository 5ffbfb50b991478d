"""The table of a sweep: mean and spread over seeds beside the papers' numbers, as Markdown and CSV.

Numbers that were measured by different protocols, or on different splits, never share a column.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from itertools import groupby
from pathlib import Path
from statistics import mean, stdev
from typing import Any

from vssl_core.plain import flatten
from vssl_core.run.files import write_atomically
from vssl_core.run.sweep import Sweep
from vssl_core.run.sweep_runs import SweepRun


@dataclass(frozen=True)
class Column:
    """One metric as one protocol measured it on one split, or only a paper."""

    metric: str  # data/evaluation/metric
    variant: int | None  # which of several protocols, from 0; None where there is but one
    values: Mapping[str, Sequence[float]]  # {cell: a number for each seed}

    @property
    def title(self) -> str:
        """What heads it."""
        return self.metric if self.variant is None else f"{self.metric} ({letter(self.variant)})"


@dataclass(frozen=True)
class Table:
    """All that the runs of a sweep found."""

    sweep: Sweep
    columns: tuple[Column, ...]  # those of one metric beside each other
    notes: tuple[str, ...]  # what the reader must know

    def paper(self, metric: str) -> dict[str, float]:
        """{cell: the paper's number}."""
        return {cell.name: cell.paper[metric] for cell in self.sweep.cells if metric in cell.paper}

    def markdown(self) -> str:
        """What table.md holds."""
        fields: list[tuple[str, dict[str, str]]] = []
        for metric, columns in self.groups:
            fields += [
                (column.title, {cell: spread(found) for cell, found in column.values.items()}) for column in columns
            ]
            if paper := self.paper(metric):
                fields.append((f"{metric}, paper", {cell: f"{number:.1f}" for cell, number in paper.items()}))
        names = [cell.name for cell in self.sweep.cells]
        lines = [_line(["cell", *(title for title, _ in fields)]), _line(["---", *["---:"] * len(fields)])]
        lines += [_line([name, *(found.get(name, "") for _, found in fields)]) for name in names]
        notes = ["", *(f"* {note}" for note in self.notes)] if self.notes else []
        return "\n".join([f"# {self.sweep.name}", "", LEGEND, "", *lines, *notes, ""])

    def csv(self) -> str:
        """What table.csv holds: the same, unrounded, each figure in a column of its own."""
        fields: list[tuple[str, Mapping[str, Any]]] = []
        for metric, columns in self.groups:
            for column in columns:
                for what, figure in {"mean": mean, "std": deviation, "seeds": len}.items():
                    found = {cell: figure(values) for cell, values in column.values.items()}  # type: ignore[operator]
                    fields.append((f"{column.title} {what}", found))
            if paper := self.paper(metric):
                fields.append((f"{metric} paper", paper))
        text = io.StringIO()
        writer = csv.writer(text, lineterminator="\n")
        writer.writerow(["cell", "plugins", *(title for title, _ in fields)])
        for cell in self.sweep.cells:
            numbers = (found.get(cell.name) for _, found in fields)
            plugins = " ".join(cell.config.plugins)
            writer.writerow([cell.name, plugins, *("" if number is None else f"{number:.6g}" for number in numbers)])
        return text.getvalue()

    def write(self, place: Path) -> None:
        """Both files, each whole or not at all."""
        write_atomically(place / "table.md", self.markdown().encode())
        write_atomically(place / "table.csv", self.csv().encode())

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


LEGEND = "Percent: mean ± standard deviation over seeds (how many seeds), and the number that a paper reports."


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


def _line(cells: Iterable[str]) -> str:
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"


# From the runs to the table -------------------------------------------------------------------------------------------


def table_of(sweep: Sweep, runs: Sequence[SweepRun]) -> Table:
    """What the runs have found so far."""
    columns: list[Column] = []
    notes = list(_left(runs))
    results = [(run, name, found) for run in runs for name in sweep.evaluations if (found := run.result(name))]
    for prefix in dict.fromkeys(_prefix(run, name) for run, name, _ in results):
        group = [(run, found) for run, name, found in results if _prefix(run, name) == prefix]
        variants = {_hashes(found): found["protocol"] for _, found in group}
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


def _prefix(run: SweepRun, evaluation: str) -> str:
    return f"{run.cell.config.data.source}/{evaluation}"


def _hashes(found: Mapping[str, Any]) -> tuple[str, str]:
    return found["hashes"]["protocol"], found["hashes"]["split"]


def _columns(
    prefix: str, group: Sequence[tuple[SweepRun, Mapping[str, Any]]], variants: Sequence[tuple[str, str]]
) -> list[Column]:
    columns = []
    for number, variant in enumerate(variants):
        values: dict[str, dict[str, list[float]]] = {}
        for run, found in group:
            if _hashes(found) == variant:
                for metric, value in found["metrics"].items():
                    values.setdefault(metric, {}).setdefault(run.cell.name, []).append(value)
        which = number if len(variants) > 1 else None
        columns += [Column(f"{prefix}/{metric}", which, found) for metric, found in values.items()]
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
