"""The runs of a sweep as folders: where each lies, how far it is, what it needs next, and whose folder it is."""

from __future__ import annotations

import csv
import fcntl
import json
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from hashlib import sha256
from pathlib import Path
from typing import Any

from vssl_core.config import Section, differences
from vssl_core.data.named import DataSet
from vssl_core.errors import ConfigError
from vssl_core.plain import build, flatten, read_yaml, to_tree, to_yaml
from vssl_core.run.files import explained, is_leftover, read_json, write_atomically, write_json
from vssl_core.run.folder import CONFIG, EVALUATIONS, read_run
from vssl_core.run.sweep import Cell, Sweep
from vssl_core.run.untrained import save_untrained
from vssl_core.run.weights import CARD, WEIGHTS

RECORD = "sweep.yaml"
LOCK = ".lock"
PATIENCE = 10.0  # seconds that the processes of a killed sweep have to save and leave

# One run --------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class SweepRun:
    """A cell with a seed: a run folder, and beside it its configuration, its log and, where it failed, why."""

    sweep: Sweep
    cell: Cell
    seed: int
    place: Path  # the folder of the sweep

    @property
    def name(self) -> str:
        """What messages call it."""
        return f"{self.cell.name}, seed {self.seed}"

    @property
    def folder(self) -> Path:
        """The run folder, as `vssl train` makes it."""
        return self.place / self.cell.slug / f"seed_{self.seed}"

    def beside(self, ending: str) -> Path:
        """A file beside the run folder, which belongs to the run alone: 'log', 'yaml' or 'failed.json'."""
        return self.folder.with_name(f"{self.folder.name}.{ending}")

    @property
    def trained(self) -> bool:
        """Whether the weights of the last epoch are there."""
        epochs = self.cell.config.epochs if self.cell.trains else 0
        card = read_json(self.folder / CARD)
        return (self.folder / WEIGHTS).exists() and card is not None and card["epochs"] >= epochs

    @property
    def judged_on(self) -> tuple[DataSet, ...]:
        """The data of its evaluations: what it was trained on, where the sweep names none."""
        own = self.cell.config.data
        return self.sweep.evaluation_data or (DataSet(own.source, own.source, own.root),)

    def results(self, data: DataSet) -> Path:
        """The folder with what evaluations found on this data, as `vssl evaluate` fills it."""
        place = self.folder / EVALUATIONS
        return place if data.is_of(self.cell.config.data) else place / data.name

    def result(self, evaluation: str, data: DataSet) -> dict[str, Any] | None:
        """What an evaluation of the present weights found on this data, or None."""
        found = read_json(self.results(data) / f"{evaluation}.json")
        if found is None or found["hashes"]["weights"] != _digest(self.folder / WEIGHTS):
            return None
        return found

    def scores(self, evaluation: str, data: DataSet) -> dict[str, dict[str, float]]:
        """{metric: {video: its score in percent}}, of the metrics that have one for each video."""
        try:
            with open(self.results(data) / f"{evaluation}.videos.csv", newline="", encoding="utf-8") as file:
                rows = list(csv.DictReader(file))
            metrics = [key for key in (rows[0] if rows else {}) if key != "video"]
            return {metric: {row["video"]: float(row[metric]) for row in rows} for metric in metrics}
        except (OSError, ValueError, KeyError, TypeError):  # not there, or not ours: then nothing is compared
            return {}

    @property
    def missing(self) -> dict[DataSet, list[str]]:
        """The evaluations that are still to be made, on each data set that misses any."""
        left = {
            data: [name for name in self.sweep.evaluations if self.result(name, data) is None]
            for data in self.judged_on
        }
        return {data: names for data, names in left.items() if names}

    @property
    def to_evaluate(self) -> list[tuple[str, str | None, list[str]]]:
        """What is missing as `vssl evaluate` takes it, a call for each data set: evaluations, --data, overrides."""
        calls = []
        for data, names in self.missing.items():
            options = self.sweep.evaluation_overrides(names)
            if not data.is_of(self.cell.config.data):
                calls.append((",".join(names), str(data), options))
            else:  # which may have moved since
                root = [] if data.root is None else [f"data.root={json.dumps(data.root, ensure_ascii=False)}"]
                calls.append((",".join(names), None, [*options, *root]))
        return calls

    @property
    def failure(self) -> str | None:
        """The sentence that the run failed with."""
        found = read_json(self.beside("failed.json"))
        return None if found is None else f"{found['command']}: {found['error']}"

    @property
    def standing(self) -> str:
        """'done', 'failed', 'half done' or 'to do'."""
        if self.trained and not self.missing:
            return "done"
        if self.failure is not None:
            return "failed"
        return "half done" if self.folder.exists() else "to do"

    def next_command(self) -> list[str] | None:
        """What `vssl` has to be called with next; None where everything is done.

        A net that is not trained is written here and now.
        """
        if not self.trained and self.cell.trains:
            write_atomically(self.beside("yaml"), to_yaml(to_tree(self.cell.with_seed(self.seed))).encode())
            return ["train", "--config", str(self.beside("yaml")), "--run", str(self.folder)]
        if not self.trained:
            save_untrained(self.cell.with_seed(self.seed), self.folder)
        for names, data, options in self.to_evaluate[:1]:
            on = [] if data is None else ["--data", data]
            return ["evaluate", "--run", str(self.folder), "--evaluations", names, *on, *options]
        return None

    def fail(self, command: str, error: str) -> None:
        """Remember why the run failed: it is not done again until that is forgotten."""
        write_json(self.beside("failed.json"), {"command": command, "error": error})

    def forget_failure(self) -> None:
        """Let the run be tried again."""
        self.beside("failed.json").unlink(missing_ok=True)


def runs_of(sweep: Sweep, place: Path) -> list[SweepRun]:
    """All runs, the first seed of every cell first, so that an early table has every row."""
    return [SweepRun(sweep, cell, seed, place) for seed in sweep.seeds for cell in sweep.cells]


def _digest(path: Path) -> str:
    if not path.exists():
        return ""
    about = path.stat()
    return _digest_of(path, about.st_mtime_ns, about.st_size)


@cache  # the table is written after each run, and a file is replaced, never changed
def _digest_of(path: Path, *about: int) -> str:
    return sha256(path.read_bytes()).hexdigest()[:16]


# The folder of a sweep ------------------------------------------------------------------------------------------------


def check_folder(sweep: Sweep, place: Path) -> None:
    """A sweep may grow in its folder, by cells, seeds, evaluations and their data; what is there may not change.

    Raises:
        ConfigError: the folder holds something else, another sweep, or runs of other configurations.
    """
    try:
        names = {path.name for path in place.iterdir() if not is_leftover(path)} if place.exists() else set()
    except OSError as error:
        raise ConfigError(
            f"--run {place}: is not a folder that can be read ({error.strerror}); choose another"
        ) from error
    if RECORD in names:
        before = build(Record, read_yaml(str(place / RECORD)), str(place / RECORD))
        changes = list(_changes(before, record(sweep)))
        if changes:
            raise ConfigError(
                f"--run {place}: holds a sweep that differs from {sweep.path} ({'; '.join(changes)}); "
                "choose another --run, or undo the change (cells, seeds, evaluations and evaluation data may be added)"
            )
    elif names - {LOCK}:
        first = min(names - {LOCK})
        raise ConfigError(f"--run {place}: is not empty and holds no sweep (it has {first}); choose another folder")
    for run in runs_of(sweep, place):
        _refuse_another_run(run)


def _refuse_another_run(run: SweepRun) -> None:
    if (run.folder / CONFIG).exists():
        changed = differences(to_tree(read_run(run.folder)), to_tree(run.cell.with_seed(run.seed)))
        if changed:
            raise ConfigError(
                f"{run.folder}: holds a run with another configuration than cell '{run.cell.name}' "
                f"({'; '.join(changed)}); move it away, or choose another --run"
            )


class Record(Section):
    """What the runs of a sweep depend on, as its folder remembers it."""

    seeds: tuple[int, ...]
    evaluations: dict[str, dict[str, Any]]
    evaluation_data: dict[str, dict[str, str]] = {}  # {name: its source}: roots may move
    cells: dict[str, dict[str, Any]]  # {name: configuration}, the seed being 0


def record(sweep: Sweep) -> Record:
    """What this sweep's folder has to remember."""
    return Record(
        seeds=sweep.seeds,
        evaluations={name: dict(options) for name, options in sweep.evaluations.items()},
        evaluation_data={data.name: {"source": data.source} for data in sweep.evaluation_data},
        cells={cell.name: to_tree(cell.with_seed(0)) for cell in sweep.cells},
    )


def _changes(before: Record, after: Record) -> Iterator[str]:
    """What was there before and is not there any more, or is another."""
    gone = [seed for seed in before.seeds if seed not in after.seeds]
    if gone:
        yield f"seeds: {', '.join(map(str, gone))} gone"
    for kind in ("evaluations", "evaluation_data", "cells"):
        there = getattr(after, kind)
        for name, options in getattr(before, kind).items():
            if name not in there:
                yield f"{kind}: '{name}' gone"
            elif changed := _differences(kind, options, there[name]):
                yield f"'{name}': {', '.join(changed)}"


def _differences(kind: str, before: Mapping[str, Any], after: Mapping[str, Any]) -> Sequence[str]:
    if kind == "cells":
        return differences(before, after)
    old, new = flatten(before), flatten(after)
    keys = [key for key in {**old, **new} if old.get(key, "default") != new.get(key, "default")]
    return [f"{key}: {old.get(key, 'default')} -> {new.get(key, 'default')}" for key in keys]


@contextmanager
def held(sweep: Sweep, place: Path) -> Iterator[int]:
    """The folder, checked, and ours alone until this process and all that inherit the number it gives have ended.

    Raises:
        ConfigError: as `check_folder`, or another sweep is at work in the folder.
        CheckpointError: the folder cannot be written.
    """
    check_folder(sweep, place)
    with explained(place):
        place.mkdir(parents=True, exist_ok=True)
        file = open(place / LOCK, "w")
    with file:
        _lock(file.fileno(), place)
        check_folder(sweep, place)  # as whoever held it before has left it
        write_atomically(place / RECORD, to_yaml(to_tree(record(sweep))).encode())
        yield file.fileno()


def _lock(number: int, place: Path) -> None:
    until = time.monotonic() + PATIENCE
    while True:
        try:
            return fcntl.flock(number, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if time.monotonic() > until:
                raise ConfigError(
                    f"--run {place}: another sweep, or a run that it started, is at work in this folder; "
                    "wait for it or end it, or choose another --run"
                ) from None
            time.sleep(0.2)
