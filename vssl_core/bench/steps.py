"""Rows on steps of training: what the engine adds to a bare loop, what joining plugins saves, what labels cost."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from vssl_core.bench import memory_runs
from vssl_core.bench.files import Files
from vssl_core.bench.rows import Row, Spread, at_most, count, not_measured, paired, several
from vssl_core.config import load_config
from vssl_core.data import clips, decode
from vssl_core.data.appearance import apply
from vssl_core.data.clips import Clips, Cutter
from vssl_core.data.raw import RawBatch, RawClip, Visit, collate
from vssl_core.data.videos import Splits, Videos
from vssl_core.nets.backbones import build_backbone
from vssl_core.run.build import choose, normalisation_of, recipe_of
from vssl_core.run.engine import Run
from vssl_core.windows import Sample, draw_windows

JOINED = ("stor", "pace", "rotation", "byol")  # rows that measure installed plugins name them
SHARE_ROW = "statistics_labels_share"
MEASURED = "statistics"  # whose labels take optical flow
WATCHING, EVERY = "conflict", 200  # an observer that differentiates each loss by itself, and how often by default
LARGE = ("clip.frames=16", "clip.size=112")
BLOCK = 200  # steps of the null model that are timed together


# The engine over a bare loop ------------------------------------------------------------------------------------------


def engine_overhead(files: Files, share: float = 1.0, pairs: int = 24) -> Row:
    """A step of three objectives on the smallest net, over the same losses written out by hand."""
    objectives = {"contrast": memory_runs.Contrast, "turned": memory_runs.Turned, "paced": memory_runs.Paced}
    overrides = [f"batch_size={pairs}", "optim.lr=0.01"]
    run = memory_runs.build_run(objectives, files.scratch / "engine_overhead", overrides)
    raw = memory_runs.batch_in_memory(run, pairs)
    bare = _BareLoop(run)
    times = paired(lambda _: run.step_on(raw), lambda _: bare.step(raw), count(40, share))
    case = f"tiny, {pairs} pairs of 8x48x48 in memory, three losses on shared features, over a bare loop"
    return times.row("engine_overhead", case, at_most(1.03), unit="ms a step")


class _BareLoop:
    """What somebody would write who wants these three losses and nothing else."""

    def __init__(self, run: Run) -> None:
        (group,) = run.plan.groups
        self.recipe, self.normalisation = recipe_of(run.config, group), normalisation_of(run.config)
        self.net = build_backbone(run.config.backbone.name)
        width = self.net.feature_dim
        self.contrast, self.turned, self.paced = nn.Linear(width, 64), nn.Linear(width, 4), nn.Linear(width, 4)
        modules = nn.ModuleList([self.net, self.contrast, self.turned, self.paced])
        optim = run.config.optim
        self.optimizer = torch.optim.SGD(
            modules.parameters(), lr=optim.lr, momentum=optim.momentum, weight_decay=optim.weight_decay, fused=True
        )

    def step(self, raw: RawBatch) -> Tensor:
        """One step of training."""
        (clips,) = raw.groups
        left, right = (self._vector(clip) for clip in clips)
        turns = torch.cat([torch.from_numpy(clip.windows["turns"]) for clip in clips])
        strides = torch.cat([torch.from_numpy(clip.windows["stride"]) for clip in clips])
        paces = memory_runs.pace_labels(strides)
        loss = (
            memory_runs.contrast(self.contrast, left, right)
            + memory_runs.classify(self.turned, left, right, turns)
            + memory_runs.classify(self.paced, left, right, paces)
        )
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        self.optimizer.step()
        return loss.detach()

    def _vector(self, clip: RawClip) -> Tensor:
        *_, last = self.net(apply(clip.frames, clip.looks, self.recipe, self.normalisation)).values()
        return last.mean(dim=(2, 3, 4))


def engine_microseconds(files: Files, share: float = 1.0, plugins: int = 8) -> Row:
    """What a step costs that computes nothing: eight plugins with hooks, over the same sums in a bare loop."""
    objectives = {f"null{number}": memory_runs.Null for number in range(plugins)}
    overrides = [*memory_runs.NULL_RUN, "clip.frames=1", "clip.size=8", "batch_size=2"]
    run = memory_runs.build_run(objectives, files.scratch / "engine_microseconds", overrides)
    raw = memory_runs.batch_in_memory(run, 2)
    steps = count(BLOCK, share)
    times = paired(
        several(lambda: _engine_step(run, raw), steps), several(_null_step(run, raw), steps), count(15, share)
    )
    mine = (times.ours + times.again) / 2
    added = 1e6 * (mine - times.other) / steps
    return Row(
        "engine_microseconds",
        f"null model, {plugins} plugins with four hooks each, microseconds a step over a bare loop",
        at_most(200), Spread.of(added), Spread.of(times.again / times.ours),
        f"{1e6 * np.median(mine) / steps:.0f} us a step", f"{1e6 * np.median(times.other) / steps:.0f} us a step",
        len(added),
    )  # fmt: skip


def _engine_step(run: Run, raw: RawBatch) -> None:
    run._announce("vssl_step_end", report=run.step_on(raw))


def _null_step(run: Run, raw: RawBatch) -> Callable[[], Tensor]:
    (group,) = run.plan.groups
    recipe, normalisation = recipe_of(run.config, group), normalisation_of(run.config)
    net = memory_runs.NullNet()
    scales = [nn.Parameter(torch.ones(())) for _ in run.objectives]
    optim = run.config.optim
    optimizer = torch.optim.SGD(
        [*net.parameters(), *scales], lr=optim.lr, momentum=optim.momentum, weight_decay=optim.weight_decay, fused=True
    )
    ((clip,),) = raw.groups

    def step() -> Tensor:
        (last,) = net(apply(clip.frames, clip.looks, recipe, normalisation)).values()
        vector = last.mean(dim=(2, 3, 4))
        loss = torch.stack([scale * vector.mean() for scale in scales]).sum()
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
        return loss.detach()

    return step


# Several plugins ------------------------------------------------------------------------------------------------------


def joint_vs_singles(
    files: Files,
    share: float = 1.0,
    overrides: Sequence[str] = ("backbone.name=r3d_10", *LARGE),
) -> Row:
    """One run of four plugins, decode included, over the sum of four runs of one."""
    paths = files.originals[:8]
    joint = _Training(JOINED, paths, files.scratch / "joint", overrides)
    singles = [_Training([name], paths, files.scratch / name, overrides) for name in JOINED]
    times = paired(joint.step, lambda number: [single.step(number) for single in singles], count(3, share), share >= 1)
    case = (
        f"{'+'.join(JOINED)} in one run, over the sum of single runs; batch 2, decode included, {', '.join(overrides)}"
    )
    return times.row("joint_vs_singles", case, at_most(0.6), unit="ms a step", files=files.names(paths))


def statistics_labels_share(
    files: Files,
    share: float = 1.0,
    overrides: Sequence[str] = ("backbone.name=r2plus1d_10", *LARGE),
) -> Row:
    """What a loader's worker measures of two clips, their frames' colours included, over the step that learns it."""
    paths = files.originals[:2]
    told = ", ".join(overrides)
    case = f"labels of a clip by DIS, from frames in the size of the file, over its share of a step; batch 2, {told}"
    if find_spec("cv2") is None:
        return not_measured(SHARE_ROW, case, at_most(0.25), "OpenCV is not installed")
    training = _Training([MEASURED], paths, files.scratch / "labels", overrides)
    raw, measure = training.read(0), _measuring(training)
    times = paired(lambda _: measure(), lambda _: training.run.step_on(raw), count(5, share), share >= 1)
    return times.row(SHARE_ROW, case, at_most(0.25), per=2, files=files.names(paths))


def conflict_share(files: Files, share: float = 1.0, videos: int = 8) -> Row:
    """What a step gains in which the angles between gradients are measured, over a step, one in 200."""
    paths, overrides = [f"{number}.mp4" for number in range(videos)], [f"batch_size={videos}"]
    plain = _Training(JOINED, paths, files.scratch / "unwatched", overrides).run
    often = [*overrides, f"plugins.{WATCHING}.every=1"]
    watched = _Training([*JOINED, WATCHING], paths, files.scratch / "watched", often).run
    raw = memory_runs.batch_in_memory(plain, videos)
    times = paired(lambda _: _next_step(watched, raw), lambda _: _next_step(plain, raw), count(40, share))
    mine = (times.ours + times.again) / 2
    added = (mine / times.other - 1) / EVERY
    return Row(
        "conflict_share",
        f"{'+'.join(JOINED)} on tiny, {videos} videos of 8x48x48 in memory: what measuring adds to {EVERY} steps",
        at_most(0.02), Spread.of(added), Spread.of(times.again / times.ours),
        f"{1e3 * np.median(mine):.0f} ms a step that measures", f"{1e3 * np.median(times.other):.0f} ms a step",
        len(added),
    )  # fmt: skip


def _next_step(run: Run, raw: RawBatch) -> None:
    run.step_on(raw)
    run.step += 1  # an observer measures a step once


def _measuring(training: _Training) -> Callable[[], None]:
    """Measures the clips of the first step anew, from decoded frames."""
    (group,) = training.run.plan.groups
    ready = []
    for video in range(2):
        path = training.run.videos.path(video)
        facts = decode.scan(path)
        size, sample = (facts.height, facts.width), Sample(0, 1, 0, video)
        (window,) = draw_windows(group.request, sample, group.stream, facts.frames, size, path)
        frames = decode.read(path, window.indices, facts)
        ready.append((frames, frames.resized(window.indices, window.box, group.request.size), window))

    def measure() -> None:
        for frames, clip, window in ready:
            clips._measure(group.request.measures, frames, clip, window)

    return measure


class _Training:
    """A run that is stepped by hand, from file to moved teacher."""

    def __init__(self, names: Sequence[str], paths: Sequence[str], folder: Path, overrides: Sequence[str]) -> None:
        chosen = choose(load_config(None, plugins=list(names), overrides=["batch_size=2", *overrides]))
        self.run = memory_runs.quiet(Run(chosen, Splits(Videos.build(paths, None, (), "/"), None, "bench"), folder))
        groups = self.run.plan.groups
        self.clips = Clips(
            self.run.videos, Cutter(groups, tuple(recipe_of(chosen.config, group) for group in groups)), 0
        )

    def read(self, number: int) -> RawBatch:
        """Two videos, read."""
        rows = [(2 * number + row) % len(self.clips) for row in range(2)]
        return collate([self.clips[Visit(number + 1, 0, row)] for row in rows])

    def step(self, number: int) -> None:
        """Two videos read, one step made."""
        self.run._announce("vssl_step_end", report=self.run.step_on(self.read(number)))
