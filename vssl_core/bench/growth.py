"""Rows on what grows: memory while a run goes on, time and memory with the length of the list."""

from __future__ import annotations

import gc
import os
import time
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from vssl_core.bench import memory_runs
from vssl_core.bench.files import Files
from vssl_core.bench.rows import Row, Spread, at_most, count, not_measured
from vssl_core.data.sources import SourceOptions, builtin_sources, open_source
from vssl_core.data.videos import Splits
from vssl_core.hookspecs import hookimpl
from vssl_core.run.engine import Run
from vssl_core.run.order import draw_order

# Each worker must have met nearly every video once, since its tables and its decoder's memory grow until then.
VIDEOS, WARM_STEPS, STEPS, EVERY = 600, 1800, 2000, 25
SHORT_LIST = 100_000
MOST_BYTES = 100  # a video


# Memory of a run ------------------------------------------------------------------------------------------------------


class _Scale:
    """An observer that weighs the run and its workers every few steps."""

    def __init__(self, every: int) -> None:
        self.every, self.seen = every, []

    @hookimpl
    def vssl_step_end(self, run: Run) -> None:
        """Weigh."""
        if run.step % self.every == 0:
            self.seen.append((run.step, proportional_bytes()))


def memory_slope_mib(files: Files, share: float = 1.0) -> Row:
    """A whole run with two workers, its log writers and checkpoints: what it gains after warm-up."""
    name, case = (
        "memory_slope_mib",
        f"MiB gained in {STEPS} steps over {VIDEOS} videos after warm-up, 2 workers included",
    )
    if not Path("/proc/self/smaps_rollup").exists():
        return not_measured(name, case, at_most(5), "this system does not tell the memory of a process")
    warm, steps = count(WARM_STEPS, share), count(STEPS, share)
    paths = _many(files, count(VIDEOS, share))
    epochs = -(-(warm + steps) // len(paths))
    overrides = [
        *memory_runs.NULL_RUN, "batch_size=1", f"epochs={epochs}", "log.tensorboard=false",
        "checkpoint.every_steps=1000000", "data.workers=2",
    ]  # fmt: skip
    run = memory_runs.build_run({"null": memory_runs.Null}, files.scratch / "memory", overrides, paths)
    scale = _Scale(min(EVERY, max(1, steps // 4)))
    run.manager.register(scale, "scale")
    run.train()
    held = np.array([weight for step, weight in scale.seen if step > warm]) / 2**20
    fifth = max(1, len(held) // 5)  # batches on their way weigh too, and come and go: so means, and not the ends
    before, after = held[:fifth].mean(), held[-fifth:].mean()
    gained = float(after - before) * (len(held) / max(len(held) - fifth, 1))
    return Row(
        name, case, at_most(5), Spread(gained, gained, gained), ours=f"{after:.0f} MiB at the end",
        other=f"{before:.0f} MiB after warm-up", repeats=1, files=files.names(tuple(dict.fromkeys(paths)))[:30],
    )  # fmt: skip


def _many(files: Files, wanted: int) -> list[str]:
    """As many paths as wanted, files again where there are fewer."""
    from vssl_core.data import decode
    from vssl_core.errors import VideoError

    found: list[str] = []
    for path in (
        files.everything if files.root is None else files.everything[:: max(1, len(files.everything) // wanted)]
    ):
        try:
            facts = decode.scan(path)
        except VideoError:
            continue
        if facts.skips and facts.height * facts.width <= 320 * 240 and facts.frames >= 30:  # of one codec or two
            found.append(path)
    return [found[number % len(found)] for number in range(wanted)]


def proportional_bytes() -> int:
    """Memory of this process and its children; what several share counts once in all."""
    return sum(_rollup(process) for process in [os.getpid(), *_children(os.getpid())])


def _children(process: int) -> list[int]:
    try:
        direct = [int(child) for child in Path(f"/proc/{process}/task/{process}/children").read_text().split()]
    except OSError:
        return []
    return [*direct, *(grandchild for child in direct for grandchild in _children(child))]


def _rollup(process: int) -> int:
    try:
        lines = Path(f"/proc/{process}/smaps_rollup").read_text().splitlines()
    except OSError:  # it has just ended
        return 0
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith("Pss:")), 0)


# Length of the list ---------------------------------------------------------------------------------------------------


def growth_10x(files: Files, share: float = 1.0) -> Row:
    """From a list file to the first batch's place in an epoch, at ten times the videos; and bytes a video."""
    short = count(SHORT_LIST, share)
    lists = [_list_file(files, number) for number in (short, 10 * short)]
    _start(lists[0], files)
    ratios, again, seconds = [], [], []
    for _ in range(count(3, share)):
        times = [_timed(lambda path=path: _start(path, files)) for path in (lists[0], lists[1], lists[0])]
        seconds.append(times)
        ratios.append(times[1] / ((times[0] + times[2]) / 2))
        again.append(times[2] / times[0])
    held = _bytes_a_video(lists[0], short, files)
    median = np.median(seconds, axis=0)
    return Row(
        "growth_10x", f"list read, run built, first epoch begun: {10 * short} videos over {short}", at_most(12),
        Spread.of(ratios), Spread.of(again), f"{median[1]:.3g} s", f"{median[0]:.3g} s", len(ratios),
        note=f"{held:.0f} bytes a video, bar <= {MOST_BYTES}", holds=held <= MOST_BYTES,
    )  # fmt: skip


def _list_file(files: Files, rows: int) -> str:
    path = files.scratch / f"list_{rows}.txt"
    exists = files.originals[0]
    with open(path, "w", encoding="utf-8") as file:
        file.write(f"{exists}\n")
        for number in range(rows - 1):
            file.write(f"/videos/class_{number % 400:03d}/v_{number:09d}_g{number % 25:02d}.mp4\n")
    return str(path)


def _start(path: str, files: Files) -> Any:
    """What stands in memory when the first batch is about to be read."""
    videos = open_source("list", path, SourceOptions(), builtin_sources()).train
    run = memory_runs.build_run({"null": memory_runs.Null}, files.scratch / "growth", memory_runs.NULL_RUN)
    run.videos = Splits(videos, None, "bench").train
    run.order = draw_order(run)
    return videos, run, run._batches()


def _bytes_a_video(path: str, rows: int, files: Files) -> float:
    """What is held when the first batch is about to be read, less what a list of one would hold."""
    tracemalloc.start()
    try:
        held, least = (_held(list_file, files) for list_file in (path, _list_file(files, 1)))
    finally:
        tracemalloc.stop()
    return (held - least) / rows


def _held(path: str, files: Files) -> int:
    gc.collect()
    before, _ = tracemalloc.get_traced_memory()
    kept = _start(path, files)
    gc.collect()
    after, _ = tracemalloc.get_traced_memory()
    return after - before if kept else 0


def _timed(work: Callable[[], object]) -> float:
    start = time.process_time()
    work()
    return time.process_time() - start
