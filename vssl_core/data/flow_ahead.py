"""`vssl data flow`: the flow of every video of a source, computed once, in parallel, and checked."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import numpy as np
from rich.console import Console
from rich.text import Text

from vssl_core.data import decode
from vssl_core.data.check import bar
from vssl_core.data.containers import sentence
from vssl_core.data.flow import METHODS, bounded, estimator, grey_of, vectors
from vssl_core.data.flow_check import Agreement, Compared, agreement
from vssl_core.data.flow_store import FACTS, PART, FlowStore, Settings, blocks_of, save, true_path
from vssl_core.data.workers import Lost, each
from vssl_core.errors import ConfigError, DataError, VideoError, did_you_mean

SKIPPED = "skipped.jsonl"
CHECKED = 8  # videos whose stored flow is compared with flow taken on the fly
APART = 0.1  # of its length: flow of other frames is further apart, or flow by another method; the same not at all


@dataclass(frozen=True)
class Job:
    """One video whose flow is computed."""

    source: str
    target: str
    settings: Settings


@dataclass(frozen=True)
class Done:
    """What came of one video: how many pairs of frames, or the reason why there are none."""

    pairs: int = 0
    reason: str = ""
    kept: bool = False  # it lay there already
    fatal: bool = False  # nothing can be written


@dataclass(frozen=True)
class Computed:
    """What lies in the folder now."""

    store: FlowStore
    pairs: int
    written: int
    kept: int
    skipped: dict[str, str]  # {path: reason}
    paths: list[str]  # with flow


def run_flow(paths: Sequence[str], root: str, out: str, settings: Settings, workers: int) -> int:
    """The command: compute what is missing, check some of it; 0 where every video has its flow, 1 where some have not.

    Raises ConfigError and DataError for settings and folders that cannot be used.
    """
    console = Console()
    result = compute(paths, root, out, settings, workers, console)
    for path, reason in result.skipped.items():
        console.print(Text(f"{path}: {reason}"), soft_wrap=True)
    size = sum(os.path.getsize(result.store.place(path)) for path in result.paths)
    counts = f"{result.written} written, {result.kept} already there, {len(result.skipped)} left out"
    console.print(Text(f"{out}: {counts}; {result.pairs} pairs of frames, {size / 2**20:.1f} MiB"), soft_wrap=True)
    _compare(result, workers, console)
    return 1 if result.skipped else 0


def _compare(result: Computed, workers: int, console: Console) -> None:
    """Print how alike the flow of some videos is to flow taken on the fly; raises DataError where it is not."""
    tried = [Compared(result.store, path) for path in some(result.paths, CHECKED)]
    found = [outcome for _, outcome in _each(agreement, tried, workers, console, "checking")]
    found = [outcome for outcome in found if isinstance(outcome, Agreement)]
    if not found:
        return
    apart, alike = (np.mean([getattr(outcome, name) for outcome in found]) for name in ("apart", "correlation"))
    block, orientation, pair = np.mean([outcome.same for outcome in found], axis=0)
    sentence = (
        f"checked on {len(found)} clips against flow taken on the fly: boundary maps of 4 x 4 blocks correlate by "
        f"{alike:.3f}; the strongest block is the same in {block:.0%}, the orientation in it in {orientation:.0%}, the "
        f"strongest pair of frames in {pair:.0%}"
    )
    console.print(Text(sentence), soft_wrap=True)
    if apart > APART:
        folder, settings = result.store.folder, result.store.settings
        raise DataError(
            f"--out: {folder} does not hold the flow of these videos by {settings}: its numbers are {apart:.0%} apart "
            "from those that are found on the fly; remove it and compute it again"
        )


def compute(
    paths: Sequence[str], root: str, out: str, settings: Settings, workers: int = 2, console: Console | None = None
) -> Computed:
    """Compute the flow of the videos below `root` into `out`; begun again, it goes on where it was."""
    _check(settings)
    root, out = os.path.realpath(root), os.path.abspath(out)
    try:
        store = _opened(FlowStore(out, root, settings))
        jobs = [Job(video, store.place(video), settings) for video in dict.fromkeys(map(true_path, paths))]
        _check_names(jobs, root)
        outcomes = _run(jobs, workers, console or Console(stderr=True))
        for leftover in Path(out).rglob(f"*{PART}"):
            leftover.unlink(missing_ok=True)
        skipped = {job.source: done.reason for job, done in zip(jobs, outcomes, strict=True) if done.reason}
        lines = [json.dumps({"path": path, "reason": reason}) + "\n" for path, reason in skipped.items()]
        Path(out, SKIPPED).write_text("".join(lines), encoding="utf-8")
    except OSError as error:
        raise DataError(f"--out: {out} cannot be written: {sentence(error)}; choose another place") from error
    kept = sum(done.kept for done in outcomes)
    there = [job.source for job in jobs if job.source not in skipped]
    pairs = sum(done.pairs for done in outcomes)
    return Computed(store, pairs, len(there) - kept, kept, skipped, there)


def _check(settings: Settings) -> None:
    if settings.method not in METHODS:
        raise ConfigError(
            f"--method: no way to compute flow is called '{settings.method}'"
            f"{did_you_mean(settings.method, METHODS)}; choose one of {', '.join(METHODS)}"
        )
    for flag, number in (("--stride", settings.stride), ("--blocks", settings.blocks)):
        if number < 1:
            raise ConfigError(f"{flag}: must be at least 1, got {number}")
    estimator(settings.method)  # says here, and not in each process, what is not installed


def _opened(store: FlowStore) -> FlowStore:
    """The folder's own store where it is the same, else a new one; DataError where it holds other flow."""
    if not os.path.exists(os.path.join(store.folder, FACTS)):
        store.write()
        return store
    found = FlowStore.open(store.folder)
    if found.settings != store.settings or os.path.realpath(found.root) != store.root:
        raise DataError(
            f"--out: {store.folder} holds flow of {found.root} by {found.settings}, and this would be of {store.root} "
            f"by {store.settings}; give another folder"
        )
    return found


def _check_names(jobs: Sequence[Job], root: str) -> None:
    taken: dict[str, str] = {}
    for job in jobs:
        if os.path.relpath(job.source, root).startswith(os.pardir):
            raise DataError(f"{job.source}: does not lie below {root}; give a folder that holds all videos")
        other = taken.setdefault(job.target, job.source)
        if other != job.source:
            raise DataError(f"{job.source} and {other}: differ in nothing but their endings; rename one of them")


def _run(jobs: Sequence[Job], workers: int, console: Console) -> list[Done]:
    outcomes = [Done()] * len(jobs)
    for position, outcome in _each(ahead, jobs, workers, console, "flow"):
        done = Done(reason=outcome.reason) if isinstance(outcome, Lost) else outcome
        if done.fatal:
            raise OSError(done.reason)
        outcomes[position] = done
    return outcomes


def _each(
    function: Callable[[Any], Any], items: Sequence[Any], workers: int, console: Console, name: str
) -> Iterator[tuple[int, Any]]:
    """`each`, with a bar."""
    with bar(console) as shown:
        task = shown.add_task(name, total=len(items))
        for found in each(function, items, workers):
            yield found
            shown.advance(task)


# One video ------------------------------------------------------------------------------------------------------------


def ahead(job: Job) -> Done:
    """Compute and keep the flow of one video, from its first frame to its last, or to where it is damaged."""
    if (pairs := _finished(job)) is not None:
        return Done(pairs, kept=True)
    try:
        Path(job.target).unlink(missing_ok=True)  # of an earlier time, when the video was another
        facts = decode.scan(job.source)
        blocks, frames = _blocks(job, facts)
        save(job.target, blocks, (frames, facts.height, facts.width))
    except VideoError as error:
        return Done(reason=error.reason)
    except OSError as error:  # reading raises VideoError, so this is about writing
        return Done(reason=sentence(error), fatal=True)
    return Done(len(blocks))


def _blocks(job: Job, facts: decode.Scan) -> tuple[list[np.ndarray], int]:
    """The blocks of each pair of frames, and how many frames there are; only `stride` frames are held at a time.

    Raises VideoError where there is no pair.
    """
    stride, damage = job.settings.stride, None
    blocks: list[np.ndarray] = []
    waiting: list[np.ndarray] = []
    frames = 0
    try:
        with closing(decode.sequence(job.source, facts.stream)) as sequence:
            for frame in sequence:
                frames += 1
                shown = decode.Frames({0: frame}, facts.height, facts.width, facts.rotation)
                waiting.append(bounded(grey_of(shown.rgb([0])))[0])
                if len(waiting) > stride:
                    flow = vectors(waiting.pop(0), waiting[-1], job.settings.method)
                    blocks.append(blocks_of(flow, job.settings.blocks))
    except VideoError as error:  # what came before is as good as any
        damage = error
    if not blocks:
        raise damage or VideoError(job.source, f"has {frames} frames, and flow needs two that lie {stride} apart")
    return blocks, frames


def _finished(job: Job) -> int | None:
    """How many pairs an earlier time has left, where the file is whole and not older than the video."""
    try:
        if os.stat(job.target).st_mtime < os.stat(job.source).st_mtime:
            return None
        with np.load(job.target) as stored:
            return int(stored["frame"][0]) - job.settings.stride
    except (OSError, ValueError, KeyError, BadZipFile):
        return None


def some(paths: Sequence[str], count: int) -> list[str]:
    """At most so many of the paths, spread evenly."""
    places = np.linspace(0, len(paths) - 1, min(count, len(paths))).round().astype(int)
    return [paths[place] for place in places]
