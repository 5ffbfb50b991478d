"""Observers that watch a run: metrics.jsonl, TensorBoard, the progress on the console and the table at the end."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vssl_core.distributed import rank
from vssl_core.hookspecs import hookimpl
from vssl_core.run.files import explained, write_atomically

if TYPE_CHECKING:
    from vssl_core.run.engine import Run
    from vssl_core.run.report import Report

SHORT = 2.0  # seconds that need no bar


class MetricsFile:
    """One JSON object for each logged step; on resume, lines after the checkpoint's step are cut."""

    def __init__(self, path: Path) -> None:
        self.path = path

    @hookimpl
    def vssl_run_start(self, run: Run) -> None:
        """Cut what a killed run wrote after its last checkpoint, and open for more."""
        if self.path.exists():
            kept = [line for line in self.path.read_text().splitlines() if _step_of(line) <= run.step]
            write_atomically(self.path, "".join(f"{line}\n" for line in kept).encode())
        with explained(self.path):
            # A line that could not be written is not tried again at the end
            self.file = open(self.path, "ab", buffering=0)

    @hookimpl
    def vssl_step_end(self, run: Run, report: Report) -> None:
        """Write a line; a number that is not finite is left out, since JSON has none."""
        if run.logs_now:
            values = {name: value for name, value in report.numbers.items() if math.isfinite(value)}
            line = json.dumps({"step": report.step, "epoch": report.epoch, **values}, allow_nan=False)
            with explained(self.path):
                self.file.write(f"{line}\n".encode())

    @hookimpl
    def vssl_run_end(self) -> None:
        """Close the file."""
        if hasattr(self, "file"):
            self.file.close()


def _step_of(line: str) -> float:
    try:
        return int(json.loads(line)["step"])
    except (ValueError, KeyError, TypeError):
        return math.inf  # a line cut short by a kill


class TensorBoard:
    """TensorBoard events beside metrics.jsonl."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    @hookimpl
    def vssl_run_start(self, run: Run) -> None:
        """Open the writer; steps after the checkpoint's are hidden."""
        from torch.utils.tensorboard import SummaryWriter

        self.writer = SummaryWriter(str(self.folder), purge_step=run.step + 1 if run.step else None)

    @hookimpl
    def vssl_step_end(self, run: Run, report: Report) -> None:
        """Write every number of a logged step."""
        if run.logs_now:
            for name, value in report.numbers.items():
                self.writer.add_scalar(name, value, report.step)

    @hookimpl
    def vssl_run_end(self) -> None:
        """Close the writer."""
        if hasattr(self, "writer"):
            self.writer.close()


class Progress:
    """The bar on the console: epochs, rate, share of time spent waiting for data, and every term.

    A table at the end.
    """

    def __init__(self) -> None:
        from rich import get_console
        from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn
        from rich.progress import Progress as Bar

        self.console = get_console()  # the shared one: bars of other rooms then stand below this one
        self.bar = Bar(
            TextColumn("epoch {task.fields[epoch]}"),
            BarColumn(bar_width=24),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            TextColumn("{task.fields[terms]}"),
            console=self.console,
            refresh_per_second=2,
        )
        self.first: dict[str, float] = {}
        self.last: dict[str, float] = {}

    @hookimpl
    def vssl_run_start(self, run: Run) -> None:
        """Show where the run stands, and start the bar."""
        self.console.print(
            f"[bold]{run.folder}[/bold]: "
            + (f"resumes at step {run.step}, epoch {run.epoch}" if run.step else "starts"),
            highlight=False,
        )
        self.bar.start()
        self.task = self.bar.add_task("", total=run.total_steps, completed=run.step, epoch=self._epoch(run), terms="")

    @hookimpl
    def vssl_step_end(self, run: Run, report: Report) -> None:
        """Move the bar; read numbers from the device only on logged steps."""
        self.bar.update(self.task, completed=report.step, epoch=self._epoch(run))
        if run.logs_now:
            self.last |= report.numbers  # what is not there in every step keeps its last value,
            self.first = report.numbers | self.first  # and what comes later its own first
            terms = " ".join(f"{name} {self.last[name]:.3g}" for name in report.losses)
            self.bar.update(
                self.task,
                terms=f"{self.last['clips_per_second']:.0f} clips/s, waiting {self.last['data_wait']:.0%}; {terms}",
            )

    @hookimpl
    def vssl_epoch_end(self, run: Run) -> None:
        """Where there is no terminal, a line for each epoch."""
        if not self.console.is_terminal and self.last:
            self.console.print(
                f"epoch {run.epoch}/{run.config.epochs} step {run.step} loss {self.last['loss']:.4g} "
                f"{self.last['clips_per_second']:.0f} clips/s waiting {self.last['data_wait']:.0%}",
                highlight=False,
            )

    @hookimpl
    def vssl_run_end(self, run: Run, error: BaseException | None) -> None:
        """Stop the bar; after a whole run, print first and last value of every term."""
        self.bar.stop()
        if error is None and self.last:
            self.console.print(self._table())

    def _epoch(self, run: Run) -> str:
        return f"{min(run.epoch + 1, run.config.epochs)}/{run.config.epochs}"

    def _table(self) -> Any:
        from rich.table import Table

        table = Table("term", "first", "last", title="training")
        for name, value in self.last.items():
            if name not in ("lr", "clips_per_second", "data_wait"):
                table.add_row(name, f"{self.first[name]:.4g}", f"{value:.4g}")
        return table


@contextmanager
def shown(what: str, total: int) -> Iterator[Callable[[int], None]]:
    """What hears how much of some long work is done: a bar on the terminal of rank 0, gone at the end.

    None where the work is short.
    """
    from rich import get_console
    from rich.progress import Progress as Bar

    bar = Bar(console=get_console(), transient=True, disable=rank() != 0 or not get_console().is_terminal)
    task, began = bar.add_task(what, total=total), time.monotonic()

    def advance(count: int) -> None:
        bar.advance(task, count)
        if time.monotonic() - began > SHORT:
            bar.start()

    try:
        yield advance
    finally:
        bar.stop()


def observers(folder: Path, tensorboard: bool) -> dict[str, Any]:
    """The engine's own observers, for rank 0, by names that no plugin can have; none on the others."""
    if rank() != 0:
        return {}
    found: dict[str, Any] = {"vssl/metrics": MetricsFile(folder / "metrics.jsonl"), "vssl/progress": Progress()}
    if tensorboard:
        found["vssl/tensorboard"] = TensorBoard(folder / "tensorboard")
    return found
