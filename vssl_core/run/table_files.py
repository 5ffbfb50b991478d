"""A sweep's table as files: Markdown, CSV, LaTeX and HTML, and the differences of all pairs of cells."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from functools import cache
from pathlib import Path
from statistics import mean
from typing import TYPE_CHECKING, Any

from vssl_core.run.files import csv_text, write_atomically
from vssl_core.run.table import NEAR, Entry, Table, deviation

if TYPE_CHECKING:
    from jinja2 import Environment


def markdown(table: Table) -> str:
    """What table.md holds."""
    fields = list(table.fields)
    lines = [_line(["cell", *(field.title for field in fields)]), _line(["---", *["---:"] * len(fields)])]
    for cell in table.sweep.cells:
        entries = (field.entries.get(cell.name, Entry("")) for field in fields)
        lines.append(_line([cell.name, *map(_in_markdown, entries)]))
    notes = ["", *(f"* {note}" for note in table.notes)] if table.notes else []
    return "\n".join([f"# {table.sweep.name}", "", table.legend, "", *lines, *notes, ""])


def _in_markdown(entry: Entry) -> str:
    return f"{f'**{entry.text}**' if entry.best else entry.text}{f' {NEAR}' if entry.near else ''}"


def _line(cells: Iterable[str]) -> str:
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"


def as_csv(table: Table) -> str:
    """What table.csv holds: the same, unrounded, each figure in a column of its own."""
    fields: list[tuple[str, Mapping[str, Any]]] = []
    for metric, columns in table.groups:
        for column in columns:
            for what, figure in {"mean": mean, "std": deviation, "seeds": len}.items():
                found = {cell: figure(values) for cell, values in column.values.items()}  # type: ignore[operator]
                fields.append((f"{column.title} {what}", found))
        if paper := table.paper(metric):
            fields.append((f"{metric} paper", paper))
    rows = [["cell", "plugins", *(title for title, _ in fields)]]
    for cell in table.sweep.cells:
        numbers = (found.get(cell.name) for _, found in fields)
        rows.append([cell.name, " ".join(cell.config.plugins), *map(_figure, numbers)])
    return csv_text(rows)


def significance(table: Table) -> str:
    """What significance.csv holds: a row for each metric of the table and each pair of cells that can be compared."""
    head = "metric,cell,other,difference,low,high,p,seeds,videos"
    rows = [head.split(",")]
    for _, columns in table.groups:
        for column in columns:
            for (one, other), found in column.differences.items():
                numbers = (found.mean, found.low, found.high, found.p, found.seeds, found.videos)
                rows.append([column.title, one, other, *map(_figure, numbers)])
    return csv_text(rows)


def _figure(number: float | None) -> str:
    return "" if number is None else f"{number:.6g}"


def latex(table: Table) -> str:
    """What table.tex holds: a tabular of the package booktabs, for \\input."""
    return _filled("table.tex.jinja", table)


def html(table: Table) -> str:
    """What table.html holds: a page of its own."""
    return _filled("table.html.jinja", table)


def _filled(template: str, table: Table) -> str:
    fields = list(table.fields)
    rows = [(cell.name, [field.entries.get(cell.name, Entry("")) for field in fields]) for cell in table.sweep.cells]
    return _templates().get_template(template).render(table=table, fields=fields, rows=rows, near=NEAR)


@cache
def _templates() -> Environment:
    from jinja2 import Environment, FileSystemLoader, StrictUndefined, select_autoescape

    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=select_autoescape(["html.jinja"]),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters["tex"] = in_latex
    return environment


# What LaTeX would read as its own.
SPECIAL = str.maketrans(
    {
        "\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}",
        **{character: f"\\{character}" for character in "&%$#_{}"},
        "±": r"$\pm$", NEAR: r"$\approx$", "<": r"$<$", ">": r"$>$", "|": r"$|$",
    }
)  # fmt: skip


def in_latex(text: str) -> str:
    """Text that LaTeX prints as it stands."""
    return text.translate(SPECIAL)


FILES: Mapping[str, Callable[[Table], str]] = {
    "table.md": markdown,
    "table.csv": as_csv,
    "table.tex": latex,
    "table.html": html,
    "significance.csv": significance,
}


def write(table: Table, place: Path) -> None:
    """Every file, each whole or not at all."""
    for name, content in FILES.items():
        write_atomically(place / name, content(table).encode())
