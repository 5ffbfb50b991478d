"""`vssl sweep`: from a sweep file to runs, evaluations and the table."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from rich import get_console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeElapsedColumn

from vssl_core.commands.cells import check_cells, check_data
from vssl_core.commands.estimate import Estimate, estimate, summary
from vssl_core.commands.evaluate import evaluate_run
from vssl_core.commands.train import train_tree
from vssl_core.data.sources import place
from vssl_core.errors import ConfigError
from vssl_core.plain import flatten, to_tree
from vssl_core.run.files import last_json_line
from vssl_core.run.side_by_side import Child, SideBySide
from vssl_core.run.signals import Interrupted, Signals
from vssl_core.run.sweep import Cell, Sweep, read_sweep
from vssl_core.run.sweep_cluster import OnCluster, Watched
from vssl_core.run.sweep_runs import SweepRun, check_folder, held, runs_of
from vssl_core.run.table import table_of
from vssl_core.run.table_files import FILES, write


def sweep(
    file: str,
    run: str | None,
    data: str | None,
    parallel: int | None,
    overrides: Sequence[str],
    *,
    evaluation_data: Sequence[str] = (),
    retry_failed: bool = False,
    dry_run: bool = False,
    measure: bool = False,
    cluster: str | None = None,
) -> int:
    """Do what is not done yet, write the table, and print it; 1 where a run has failed or is left undone."""
    if measure and not dry_run:
        raise ConfigError("--measure: belongs to --dry-run; give both")
    if parallel is not None and parallel < 1:
        raise ConfigError(f"--parallel: {parallel} runs at a time do nothing; give at least 1")
    settled = read_sweep(file, None if data is None else place(data), overrides, evaluation_data)
    folder = Path(run or Path("runs") / "sweeps" / settled.name)
    runs = runs_of(settled, folder)
    check_cells(settled, runs, data is not None, cluster)
    check_data(settled, runs, look=not dry_run and cluster != "slurm")
    if dry_run:
        check_folder(settled, folder)
        return show(settled, runs, measure, given=data is not None)
    with held(settled, folder) as number:
        for failed in runs if retry_failed else ():
            failed.forget_failure()
        _work(settled, runs, folder, parallel, number if cluster != "slurm" else None)
    return _sum_up(settled, runs, folder)


def _work(settled: Sweep, runs: Sequence[SweepRun], folder: Path, parallel: int | None, held_by: int | None) -> None:
    """Do all that is to be done; the table is written anew after each run, and on the way out.

    With the number that holds the folder the runs are processes here, and without it jobs of a cluster.
    """
    standings = {run: run.standing for run in runs}
    board = Board(len(runs), sum(standing == "done" for standing in standings.values()))
    for run in runs:
        if standings[run] == "failed":
            board.say(f"{run.name}: failed before ({run.failure}); give --retry-failed to do it again")

    def tell(run: SweepRun, what: str, more: str) -> None:
        board.tell(run, what, more)
        if what not in ("started", "submitted"):
            write(table_of(settled, runs), folder)

    todo = [run for run in runs if standings[run] in ("to do", "half done")]
    crew: SideBySide | OnCluster
    if held_by is None:
        crew = OnCluster(todo, folder, parallel, tell, {"train": train_tree, "evaluate": evaluate_run})
    else:
        crew = SideBySide(todo, parallel or 1, held_by, tell)
    with Signals() as signals, board.shown():
        try:
            crew.work(lambda: signals.asked, lambda: board.refresh(crew.children))
        finally:
            write(table_of(settled, runs), folder)
    if signals.asked:
        if isinstance(crew, OnCluster) and crew.left:
            arrays = " ".join(sorted({job.partition("_")[0] for job in crew.left}))
            how = (
                f"and not watched now, but its jobs go on; the same command watches again, `scancel {arrays}` ends them"
            )
            raise Interrupted(signals.asked, folder, how)
        raise Interrupted(signals.asked, folder)


def _sum_up(settled: Sweep, runs: Sequence[SweepRun], folder: Path) -> int:
    console = get_console()
    console.print((folder / "table.md").read_text(encoding="utf-8"), markup=False, highlight=False, soft_wrap=True)
    undone = [run for run in runs if run.standing != "done"]
    console.print(
        f"{settled.name}: {len(runs) - len(undone)} of {len(runs)} runs done; below {folder}: {', '.join(FILES)}",
        markup=False, highlight=False, soft_wrap=True,
    )  # fmt: skip
    return 1 if undone else 0


# What is seen meanwhile -----------------------------------------------------------------------------------------------


class Board:
    """The console while runs are at work: a bar for all, a bar for each that trains, a line for each that ends."""

    def __init__(self, total: int, done: int) -> None:
        self.console = get_console()
        columns = (TextColumn("{task.description}"), BarColumn(bar_width=24), MofNCompleteColumn(), TimeElapsedColumn())
        # No thread of its own: the processes are started from here, and a fork with threads is asking for trouble
        self.bars = Progress(
            *columns, TextColumn("{task.fields[more]}"), console=self.console, auto_refresh=False, transient=True,
            disable=not self.console.is_terminal,
        )  # fmt: skip
        self.all = self.bars.add_task("runs", total=total, completed=done, more="")
        self.one: dict[str, TaskID] = {}

    @contextmanager
    def shown(self) -> Iterator[None]:
        """While it is open, the bars are on the console."""
        with self.bars:
            yield

    def say(self, line: str) -> None:
        """A line above the bars."""
        self.console.print(line, markup=False, highlight=False, soft_wrap=True)

    def tell(self, run: SweepRun, what: str, more: str) -> None:
        """A run has got somewhere."""
        self.say(f"{run.name}: {what}{': ' if more else ''}{more}")
        if what == "done":
            self.bars.advance(self.all)

    def refresh(self, children: Sequence[Child | Watched]) -> None:
        """Read how far each is, and draw."""
        if self.bars.disable:
            return
        now = {f"{child.run.name}: {child.doing}": child for child in children if child.doing != "wait"}
        for gone in set(self.one) - set(now):
            self.bars.remove_task(self.one.pop(gone))
        for name, child in now.items():
            if name not in self.one:
                epochs = child.run.cell.config.epochs if child.doing == "train" else None
                self.one[name] = self.bars.add_task(escape(name), total=epochs, more="")
            line = last_json_line(child.run.folder / "metrics.jsonl") if child.doing == "train" else None
            if line and {"epoch", "loss"} <= line.keys():
                self.bars.update(self.one[name], completed=line["epoch"], more=f"loss {line['loss']:.4g}")
        self.bars.refresh()


# The dry run ----------------------------------------------------------------------------------------------------------


def show(settled: Sweep, runs: Sequence[SweepRun], measure: bool, given: bool) -> int:
    """Print cells, what each changes in the base, and what is to be done; writes nothing and needs no data.

    With `measure` a step of each cell is run here, and what the sweep will take is estimated from it.
    """
    estimates: dict[str, Estimate] = {}
    for cell in settled.cells:
        standings = Counter(run.standing for run in runs if run.cell is cell)
        told = {
            "plugins": [", ".join(cell.config.plugins) or "none: random initialisation"],
            "changes": changes(settled, cell),
            "paper": [f"{metric} {number:g}" for metric, number in cell.paper.items()],
            "runs": [", ".join(f"{count} {standing}" for standing, count in standings.items())],
        }
        if measure:
            estimates[cell.name] = found = estimate(cell, given)
            told["cost"] = [str(found)]
        print(cell.name)
        for what, lines in told.items():
            for number, line in enumerate(lines):
                print(f"    {'' if number else what:<8} {line}")
    standings = Counter(run.standing for run in runs)
    print(
        f"cells: {len(settled.cells)}; seeds: {', '.join(map(str, settled.seeds))}; runs: {len(runs)} ("
        + ", ".join(f"{count} {standing}" for standing, count in standings.items())
        + f"), {sum(run.cell.trains for run in runs)} of them trained; evaluations: "
        + (", ".join(settled.evaluations) or "none")
        + (f", on {', '.join(data.name for data in settled.evaluation_data)}" if settled.evaluation_data else "")
    )
    todo = Counter(run.cell.name for run in runs if run.standing in ("to do", "half done"))
    for line in summary(estimates, todo):
        print(line)
    return 0


def changes(settled: Sweep, cell: Cell) -> list[str]:
    """The keys in which a cell differs from the base, but for those of plugins that it leaves out."""
    before, after = _comparable(to_tree(settled.base)), _comparable(to_tree(cell.given))
    left_out = set(settled.base.plugins) - set(cell.config.plugins)
    lines = []
    for key in {**before, **after}:
        gone = key.startswith(("plugins.", "weights.")) and key.split(".")[1] in left_out
        if not gone and before.get(key) != after.get(key):
            lines.append(f"{key}: {_shown(before, key)} -> {_shown(after, key)}")
    return lines


def _comparable(tree: Mapping[str, Any]) -> dict[str, Any]:
    """Keys and values, without the plugins that have no options and the empty mappings."""
    return {key: value for key, value in flatten(tree).items() if value != {}}


def _shown(values: Mapping[str, Any], key: str) -> str:
    return str(values.get(key, "default"))
