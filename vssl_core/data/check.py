"""The data set's doctor: decode every file to its end, in parallel, and say of each what is wrong with it."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.text import Text

from vssl_core.data import decode
from vssl_core.data.workers import Lost, each
from vssl_core.errors import DataError, VideoError


@dataclass(frozen=True)
class Finding:
    """What one file is: it is `ok` when it decodes to its end; `reason` says why not, `note` what else is odd."""

    path: str
    ok: bool
    packets: int = 0  # frames that the container promises
    frames: int = 0  # frames that were decoded
    height: int = 0  # as shown
    width: int = 0
    fps: float | None = None
    reason: str = ""
    note: str = ""


@dataclass
class Report:
    """The findings of a check, in the order of the files."""

    findings: list[Finding] = field(default_factory=list)

    @property
    def bad(self) -> list[Finding]:
        """The files that cannot be read to their end."""
        return [finding for finding in self.findings if not finding.ok]

    @property
    def noted(self) -> list[Finding]:
        """The files that can be read, but are not what their container promises."""
        return [finding for finding in self.findings if finding.ok and finding.note]

    def write(self, path: str) -> None:
        """Write the findings as JSON, all or nothing; raises DataError where that cannot be done."""
        content = {
            "readable": len(self.findings) - len(self.bad),
            "unreadable": len(self.bad),
            "files": [asdict(finding) for finding in self.findings],
        }
        temporary = f"{path}.{os.getpid()}.part"
        try:
            Path(temporary).write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
            os.replace(temporary, path)
        except OSError as error:
            raise _unwritable(path, error) from error
        finally:
            Path(temporary).unlink(missing_ok=True)


def check(
    rows: Iterable[str],
    workers: int = 2,
    seconds_per_file: float = 60.0,
    progress: bool = True,
    console: Console | None = None,
) -> Report:
    """Decode every file in parallel processes, each file in its time limit; bad ones are printed to a given console."""
    paths = list(rows)
    findings: list[Finding | None] = [None] * len(paths)
    with bar(console or Console(stderr=True), progress) as shown:
        task = shown.add_task("checking", total=len(paths))
        for position, outcome in each(inspect, paths, workers, seconds_per_file):
            if isinstance(outcome, Lost):
                outcome = Finding(paths[position], ok=False, reason=outcome.reason)
            findings[position] = outcome
            if not outcome.ok and console is not None:
                console.print(Text(f"{outcome.path}: {outcome.reason}"), soft_wrap=True)
            shown.advance(task)
    return Report([finding for finding in findings if finding is not None])


def inspect(path: str) -> Finding:
    """Decode one file from start to end."""
    finding = partial(Finding, path)
    try:
        facts = decode.scan(path)
    except VideoError as error:
        return finding(ok=False, reason=error.reason)
    rate = float(facts.rate) if facts.rate else None
    finding = partial(finding, packets=facts.frames, height=facts.height, width=facts.width, fps=rate)
    frames = 0
    try:
        for _ in decode.sequence(path, facts.stream):
            frames += 1
    except VideoError as error:
        return finding(ok=False, frames=frames, reason=error.reason)
    note = f"{frames} frames where the container holds {facts.frames} packets" if frames != facts.frames else ""
    return finding(ok=True, frames=frames, note=note)


def run_check(paths: list[str], out: str | None, workers: int, seconds: float) -> int:
    """The command: print each bad file with its reason and a summary; 0 where all can be read, 1 where some cannot."""
    if out is not None:
        _require_writable(out)
    console = Console()
    report = check(paths, workers, seconds, progress=True, console=console)
    for finding in report.noted:
        console.print(Text(f"{finding.path}: note: {finding.note}"), soft_wrap=True)
    good = len(report.findings) - len(report.bad)
    console.print(Text(f"{good} of {len(report.findings)} files can be read, {len(report.bad)} cannot"))
    if out is not None:
        report.write(out)
        console.print(Text(f"findings: {out}"), soft_wrap=True)
    return 1 if report.bad else 0


def bar(console: Console, shown: bool = True) -> Progress:
    """A progress bar, where somebody can see it."""
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    return Progress(*columns, console=console, disable=not (shown and console.is_terminal), transient=True)


def _require_writable(path: str) -> None:
    """Find out before the work that the report can be written."""
    folder = os.path.dirname(os.path.abspath(path))
    if os.path.isdir(path):
        raise DataError(f"--out: {path} is a folder; name a file")
    try:
        os.makedirs(folder, exist_ok=True)
        probe = f"{path}.{os.getpid()}.part"
        Path(probe).touch()
        Path(probe).unlink()
    except OSError as error:
        raise _unwritable(path, error) from error


def _unwritable(path: str, error: OSError) -> DataError:
    return DataError(f"--out: {path} cannot be written: {(error.strerror or str(error)).lower()}; choose another place")
