"""`vssl data labels`: what a plugin reads off clips, drawn for a person or compared with what it reads otherwise."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console
from rich.table import Table
from rich.text import Text

from vssl_core.config import load_config
from vssl_core.data.batches import prepare
from vssl_core.data.check import bar
from vssl_core.data.clips import ClipLoader, Clips, Cutter
from vssl_core.data.containers import sentence
from vssl_core.data.raw import RawBatch, Visit, collate
from vssl_core.data.sources import place
from vssl_core.data.videos import Videos
from vssl_core.errors import ConfigError, DataError, PluginError, VideoError, VsslError
from vssl_core.objective import Objective, Shot
from vssl_core.plugins import load
from vssl_core.requests import Measure
from vssl_core.run.build import Chosen, Parts, build_parts, choose, normalisation_of, open_data
from vssl_core.run.terms import ObjectiveError
from vssl_core.views import Batch, Features, View
from vssl_core.windows import Sample, Window

CLIP = ("clip.frames=16", "clip.size=112")  # unless the command line says otherwise: large enough to be looked at


def labels(
    plugin: str, text: str, out: str | None, overrides: Sequence[str], videos: int | None, against: Sequence[str]
) -> int:
    """Draw the labels of a few training videos, or compare them with those under the options of `against`.

    Raises ConfigError, DataError and PluginError for what cannot be drawn or compared.
    """
    chosen = _choose(plugin, text, overrides)
    if against:
        other = _choose(plugin, text, [*overrides, *against])
        return _compare(chosen, other, plugin, 40 if videos is None else videos)
    if chosen.plugins[plugin].objective is None or chosen.plugins[plugin].objective.pictures is Objective.pictures:
        raise PluginError(f"--plugin: '{plugin}' draws no pictures of labels; give its objective a method `pictures`")
    return _draw(chosen, plugin, Path(out or f"labels/{plugin}"), 4 if videos is None else videos)


def _choose(plugin: str, text: str, overrides: Sequence[str]) -> Chosen:
    """A run of the plugin alone; an override that is one of the plugin's own options needs no prefix."""
    (found,) = load([plugin])[1].values()
    own = found.objective.Config.model_fields if found.objective else {}
    full = [f"plugins.{plugin}.{word}" if word.partition("=")[0].split(".")[0] in own else word for word in overrides]
    return choose(load_config(None, plugins=[plugin], data=place(text), overrides=[*CLIP, *full]))


def _some(videos: Videos, count: int) -> list[int]:
    """So many of the videos, or all there are, spread evenly over the list: it may be sorted by class."""
    if count < 1:
        raise ConfigError(f"--videos: must be at least 1, got {count}")
    return [int(number) for number in np.linspace(0, len(videos) - 1, min(count, len(videos))).round()]


# Drawing --------------------------------------------------------------------------------------------------------------


@dataclass
class _Camera:
    """The function of a measure that keeps what was cut."""

    shots: list[Shot]

    def __call__(self, frames: np.ndarray, clip: np.ndarray, window: Window) -> np.ndarray:
        self.shots.append(Shot(window, frames, clip.copy()))
        return np.zeros(0)


def _draw(chosen: Chosen, plugin: str, folder: Path, count: int) -> int:
    videos = open_data(chosen.config, chosen.manager).train
    parts = build_parts(chosen, len(videos))
    tried, failures, drawn = _some(videos, count), [], 0
    for number in tried:
        try:
            figures = _figures(chosen, parts, plugin, videos, number)
        except VideoError as error:
            failures.append(error)
            continue
        for name, figure in figures.items():
            print(_save(figure, folder, f"{number:04d}_{Path(videos.path(number)).stem}_{name}.png"))
            drawn += 1
    for failure in failures:
        print(failure)
    if len(failures) == len(tried):
        raise _none_read(failures[0])
    if not drawn:
        raise PluginError(f"--plugin: '{plugin}' draws no pictures of labels with these options")
    return 0


def _save(figure: Any, folder: Path, name: str) -> Path:
    target = folder / name
    try:
        folder.mkdir(parents=True, exist_ok=True)
        figure.savefig(target, dpi=100)
    except OSError as error:
        raise DataError(f"--out: {target} cannot be written: {sentence(error)}; choose another place") from error
    return target


def _none_read(first: VideoError | str) -> DataError:
    return DataError(f"data: none of the videos that were tried could be read, the first was {first}; try others")


def _figures(chosen: Chosen, parts: Parts, plugin: str, videos: Videos, number: int) -> Mapping[str, Any]:
    """The figures of one video; raises VideoError where it cannot be read."""
    shots: list[list[Shot]] = [[] for _ in parts.plan.groups]
    groups = tuple(
        replace(
            group,
            request=replace(
                group.request,
                measures=(*group.request.measures, Measure("camera", _Camera(taken), whole=True)),
            ),
        )
        for group, taken in zip(parts.plan.groups, shots, strict=True)
    )
    dataset = Clips(
        videos, Cutter(groups, parts.recipes, chosen.config.data.decoder), chosen.config.seed, replace=False
    )
    raw = collate([dataset[Visit(0, 0, number)]])
    if raw.ledger:
        raise VideoError(raw.ledger[0]["path"], raw.ledger[0]["reason"])
    objective = parts.ensemble.objectives[plugin]
    slots = {slot: parts.plan.find(f"{plugin}/{slot}") for slot in objective.requests()}
    batch = _batch(chosen, parts, plugin, raw, slots)
    pictured = {slot: tuple(shots[group][:clips]) for slot, (group, clips) in slots.items()}
    try:
        with torch.no_grad():
            return objective.pictures(batch, pictured)
    except VsslError:
        raise
    except Exception as error:
        raise ObjectiveError(f"objective '{plugin}': pictures: {type(error).__name__}: {error}") from error


def _batch(chosen: Chosen, parts: Parts, plugin: str, raw: RawBatch, slots: Mapping[str, tuple[int, int]]) -> Batch:
    """The batch that `forward` would see."""
    clips = prepare(raw, parts.plan.groups, parts.recipes, normalisation_of(chosen.config))
    backbone = parts.ensemble.backbone.eval()

    def features(clip: torch.Tensor, statistics: bool = False) -> Features:
        return Features(lambda: backbone(clip))

    views = [
        tuple(View(cut.clip, cut.tail, cut.windows, cut.measures, features(cut.clip)) for cut in group)
        for group in clips
    ]
    samples = [Sample(chosen.config.seed, visit.epoch, visit.visit, visit.video) for visit in raw.visits]
    seen = {slot: views[group][:count] for slot, (group, count) in slots.items()}
    return Batch(plugin, seen, raw.index, samples, epoch=0, progress=0.0, encode=features)


# Comparing ------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Measured:
    """What was measured of one clip, and where it lies: {name: (...)} each."""

    values: Mapping[str, np.ndarray]
    windows: Mapping[str, np.ndarray]


def _compare(left: Chosen, right: Chosen, plugin: str, count: int) -> int:
    """Print how often each number that the plugin measures is the same on both sides, of the same clips."""
    videos = open_data(left.config, left.manager).train
    rows = _some(videos, count)
    console = Console(stderr=True)
    first, second = (_measured(chosen, videos, rows, console) for chosen in (left, right))
    known = [row for row in first if row in second]
    table = Table("measure", "number", "the same", title=f"{plugin}: the same clip of {len(known)} videos")
    pairs = [pair for row in known for pair in zip(first[row], second[row], strict=True)]
    for name in sorted({name for one, _ in pairs for name in one.values}):
        found = [(one, other) for one, other in pairs if name in one.values and name in other.values]
        if not found:
            continue
        equal = np.stack([_equal(one, other, name) for one, other in found])  # (clips, numbers)
        for number, share in enumerate(equal.mean(axis=0), start=1):
            table.add_row(name, str(number), f"{share:.0%}")
        table.add_row(name, "all", f"{equal.mean():.1%}", end_section=True)
    if not table.rows:
        raise PluginError(f"--against: '{plugin}' measures nothing in the loader's workers that could be compared")
    Console().print(table)
    return 0


def _equal(one: _Measured, other: _Measured, name: str) -> np.ndarray:
    """(numbers,) whether they are the same; raises ConfigError where they are not about the same clip."""
    if any(not np.array_equal(place, other.windows[key]) for key, place in one.windows.items()):
        raise ConfigError("--against: with these options other clips are cut, so there is nothing to compare")
    left, right = one.values[name], other.values[name]
    if left.shape != right.shape:
        raise ConfigError(
            f"--against: with these options '{name}' has the shape {right.shape}, and without them {left.shape}"
        )
    return np.isclose(left, right).ravel()


def _measured(chosen: Chosen, videos: Videos, rows: Sequence[int], console: Console) -> dict[int, list[_Measured]]:
    """{video: what was measured of each clip}, of the videos that could be read.

    Raises DataError where none could.
    """
    parts = build_parts(chosen, len(videos))
    cutter = Cutter(parts.plan.groups, parts.recipes, chosen.config.data.decoder)
    loader = ClipLoader(Clips(videos, cutter, chosen.config.seed, replace=False), chosen.config.data.workers)
    found: dict[int, list[_Measured]] = {}
    failure = ""
    with bar(console) as shown, closing(loader):
        task = shown.add_task("measuring", total=len(rows))
        for batch in loader.load([[Visit(0, 0, row)] for row in rows]):
            shown.advance(task)
            if batch.failure:
                failure = failure or batch.failure
                console.print(Text(batch.failure), soft_wrap=True)
                continue
            found[int(batch.index[0])] = [
                _Measured(_first(clip.measures), _first(clip.windows)) for group in batch.groups for clip in group
            ]
    if not found:
        raise _none_read(failure)
    return found


def _first(tree: Mapping[str, Any]) -> dict[str, np.ndarray]:
    return {name: np.asarray(values[0]) for name, values in tree.items()}
