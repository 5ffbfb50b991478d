"""A plugin on trial: the short runs that the checks look at, each made once and in the real engine."""

from __future__ import annotations

import random
from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch

from vssl_core.config import RunConfig, to_tree
from vssl_core.plugins import Plugin
from vssl_core.run.build import choose
from vssl_core.testing import videos
from vssl_core.testing.recording import COPY_AT, Job, Recording, record, restart_folder

EVERYTHING = tuple(range(len(videos.FRAMES)))
SETTINGS: dict[str, Any] = {
    "clip": {"frames": 8, "size": 32},
    "data": {"workers": 0, "max_bad_fraction": 0.0},
    "optim": {"lr": 0.02, "schedule": "constant"},
    "epochs": 2,
    "batch_size": 4,
    "device": {"kind": "cpu"},
    "checkpoint": {"every_steps": COPY_AT, "every_minutes": 1e6},
    "log": {"tensorboard": False},
}
SMALL = {"clip": {"frames": 4, "size": 16}, "batch_size": 2}


class Trial:
    """The runs of one plugin: alone where it has an objective of its own, else beside two stand-ins."""

    def __init__(self, plugin: Plugin, options: Mapping[str, Any], folder: Path) -> None:
        self.plugin, self.options, self.folder = plugin, options, folder
        self.stand_ins = 0 if plugin.objective is not None else 2

    def job(self, name: str, rows: tuple[int, ...] = EVERYTHING, *, exact: bool = False, **changes: Any) -> Job:
        """A run in a folder of this name, on these rows of the videos, with other settings where told."""
        tree = {**SETTINGS, "plugins": {self.plugin.name: dict(self.options)}}
        if self.plugin.combiner is not None:
            tree["combine"] = {"name": self.plugin.name}
        for key, value in changes.items():
            tree[key] = {**tree.get(key, {}), **value} if isinstance(value, dict) else value
        config = choose(RunConfig.model_validate(tree)).config  # options as the run's config.yaml would hold them
        return Job(to_tree(config), str(videos.folder()), rows, str(self.folder / name), self.stand_ins, exact)

    def record(self, name: str, rows: tuple[int, ...] = EVERYTHING, **changes: Any) -> Recording:
        """One more run."""
        return record(self.job(name, rows, **changes))

    @cached_property
    def first(self) -> Recording:
        """Six steps in two epochs."""
        scramble(1)
        return self.record("first")

    @cached_property
    def again(self) -> Recording:
        """The same run, with every global generator in another state; `moved` then names those that it moved."""
        _ = self.first  # imports what is imported late: some libraries draw a number then
        scramble(2)
        before = _generators()
        recording = self.record("again")
        self.moved = [name for name, state in _generators().items() if state != before[name]]
        return recording

    @cached_property
    def third(self) -> Recording:
        """The same run, with the global generators as before the first."""
        scramble(1)
        return self.record("third")

    @cached_property
    def restarted(self) -> Recording:
        """The first run, restarted from the checkpoint of its second step by another process, as it were."""
        _ = self.first
        scramble(3)
        return self.record(restart_folder(Path("first")).name)


def scramble(number: int) -> None:
    """Put all global generators into a state of this number."""
    torch.manual_seed(number)
    np.random.seed(number)
    random.seed(number)


def _generators() -> dict[str, Any]:
    kind, keys, *rest = np.random.get_state()
    return {"NumPy": (kind, keys.tobytes(), *rest), "Python": random.getstate()}
