"""Runs of a sweep on a Slurm cluster: an array that trains, an array that evaluates behind it, and their watching."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import count
from pathlib import Path
from typing import Any

from vssl_core.config import RunConfig
from vssl_core.plain import to_tree
from vssl_core.run import launch_records as records
from vssl_core.run import slurm
from vssl_core.run.files import read_json, write_json
from vssl_core.run.launch_array import Element, launch_array
from vssl_core.run.launch_records import Submitted
from vssl_core.run.sweep_runs import SweepRun
from vssl_core.run.untrained import save_untrained

JOBS = "jobs.json"  # in the sweep's folder: {run: {what it does: job}}
ARRAYS = "arrays"  # ... the scripts and logs of all arrays
POLL = 2.0  # seconds between two questions to Slurm
LOOKS = 3  # how often a job must be seen to be over: files of other machines come late
STEPS = ("train", "evaluate")

Tell = Callable[[SweepRun, str, str], None]
Work = Callable[..., Any]


@dataclass
class Watched:
    """A run and its jobs."""

    run: SweepRun
    jobs: dict[str, str]  # {'train' or 'evaluate': job}
    doing: str = "wait"
    missed: int = 0  # looks at which its jobs were over and its work was not done


class OnCluster:
    """All runs in the queue at once, at most `at_once` of them at work; whoever watches may leave and come back."""

    def __init__(
        self, runs: Sequence[SweepRun], place: Path, at_once: int | None, tell: Tell, work: Mapping[str, Work]
    ) -> None:
        """`work` trains, given a folder and a plain configuration, and evaluates, given a folder and calls."""
        self.waiting = list(runs)
        self.place, self.at_once = place, at_once
        self._work = work
        self.children: list[Watched] = []
        self._jobs: dict[SweepRun, dict[str, str]] = {}
        self._tell = tell

    def work(self, asked: Callable[[], int], tick: Callable[[], None]) -> None:
        """Until every run is done or failed, or `asked` gives a signal: the jobs go on without us then."""
        self._take_up()
        self._submit()
        self.waiting = []
        while self.children and not asked():
            self._look()
            until = time.monotonic() + POLL
            while time.monotonic() < until and not asked():
                tick()
                time.sleep(0.1)

    @property
    def left(self) -> list[str]:
        """The jobs that are still to end."""
        return [job for watched in self.children for job in watched.jobs.values()]

    # Into the queue ---------------------------------------------------------------------------------------------------

    def _take_up(self) -> None:
        """Watch what is in the queue since somebody watched before us."""
        known = read_json(self.place / JOBS) or {}
        states = slurm.states_of({job for jobs in known.values() for job in jobs.values()})
        alive = {job for job, state in states.items() if not state.over}
        for run in list(self.waiting):
            jobs = {what: job for what, job in known.get(run.name, {}).items() if job in alive}
            if jobs:
                self.children.append(Watched(run, jobs))
                self.waiting.remove(run)

    def _submit(self) -> None:
        """One array for all that ask the same of the cluster, and behind it one for the evaluations."""
        for run in self.waiting:
            if not run.cell.trains and not run.trained:
                save_untrained(run.cell.with_seed(run.seed), run.folder)
        train = [run for run in self.waiting if not run.trained]
        only_evaluate = [run for run in self.waiting if run.trained]
        for runs in _alike(train):
            self._remember(runs, "train", self._array("train", runs, None))
            array = self._jobs[runs[0]]["train"].partition("_")[0]
            self._remember(runs, "evaluate", self._array("evaluate", runs, array))
        for runs in _alike(only_evaluate):
            self._remember(runs, "evaluate", self._array("evaluate", runs, None))
        for run in self.waiting:
            self.children.append(Watched(run, self._jobs[run]))
            self._tell(run, "submitted", ", ".join(f"{what} in job {job}" for what, job in self._jobs[run].items()))

    def _array(self, what: str, runs: Sequence[SweepRun], after: str | None) -> list[Submitted]:
        if what == "evaluate" and not runs[0].sweep.evaluations:
            return []
        config = runs[0].cell.config
        settled = config if what == "train" else single(config)
        elements = [Element(run.folder, partial(self._work[what], *_words(what, run))) for run in runs]
        return launch_array(settled, elements, self._fresh(what), at_once=self.at_once, after=after)

    def _fresh(self, what: str) -> Path:
        """A folder for an array's scripts and logs that no array had before."""
        return next(path for number in count(1) if not (path := self.place / ARRAYS / f"{what}_{number}").exists())

    def _remember(self, runs: Sequence[SweepRun], what: str, jobs: Sequence[Submitted]) -> None:
        """Keep the jobs at once: whoever comes after us must not submit them again."""
        for run, job in zip(runs, jobs, strict=False):  # none where nothing is evaluated
            self._jobs.setdefault(run, {})[what] = job.job
        known = (read_json(self.place / JOBS) or {}) | {run.name: given for run, given in self._jobs.items()}
        write_json(self.place / JOBS, known)

    # Watching ---------------------------------------------------------------------------------------------------------

    def _look(self) -> None:
        states = slurm.states_of({job for watched in self.children for job in watched.jobs.values()})
        for watched in list(self.children):
            if watched.run.standing == "done":
                self._end(watched, "done", "")
                continue
            alive = [what for what in STEPS if (state := states.get(watched.jobs.get(what, ""))) and not state.over]
            watched.doing = alive[0] if alive and states[watched.jobs[alive[0]]].name == "RUNNING" else "wait"
            watched.missed = 0 if alive else watched.missed + 1
            if watched.missed >= LOOKS:
                what, error = self._reason(watched, states)
                watched.run.fail(what, error)
                self._end(watched, "failed", f"{what}: {error}")

    def _reason(self, watched: Watched, states: dict[str, slurm.JobState]) -> tuple[str, str]:
        """Which job failed, and why: what a rank has written down, else how Slurm says it ended."""
        run = watched.run
        what = "evaluate" if run.trained and "evaluate" in watched.jobs else "train"
        job = watched.jobs.get(what, "")
        launched = run.folder.resolve() / records.FOLDER
        for failure in records.failures_of(launched, job):
            return what, failure["error"]
        state = states.get(job)
        ended = f"job {job} ended as {state.name}" if state else f"job {job} is not in the queue any more"
        logs = sorted((self.place / ARRAYS).glob(f"*/{job}_0_log.out"))
        return what, ended + "".join(f"; see {log}" for log in logs)

    def _end(self, watched: Watched, what: str, more: str) -> None:
        self.children.remove(watched)
        self._tell(watched.run, what, more)


def single(config: RunConfig) -> RunConfig:
    """The same for a job of one process: an evaluation."""
    section = config.launch
    one = {"nodes": 1, "tasks_per_node": 1, "gpus_per_node": min(section.gpus_per_node, 1)}
    return config.model_copy(update={"launch": section.model_copy(update=one)})


def _alike(runs: Iterable[SweepRun]) -> Iterator[list[SweepRun]]:
    """Runs that ask the same of the cluster, together."""
    groups: dict[str, list[SweepRun]] = {}
    for run in runs:
        config = run.cell.config
        asked = (to_tree(config.launch), config.device.threads, config.data.workers)
        groups.setdefault(json.dumps(asked, sort_keys=True), []).append(run)
    yield from groups.values()


def _words(what: str, run: SweepRun) -> tuple[Any, ...]:
    if what == "train":
        return str(run.folder.resolve()), to_tree(run.cell.with_seed(run.seed))
    return str(run.folder.resolve()), run.to_evaluate
