"""Runs that need no files and no plugins: what the engine itself costs, on clips that are in memory already."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vssl_core.config import load_config
from vssl_core.data.raw import CutClip, RawBatch, Visit, collate
from vssl_core.data.videos import Splits, Videos
from vssl_core.hookspecs import hookimpl
from vssl_core.joining import Group
from vssl_core.looks import draw
from vssl_core.nets.stages import Backbone
from vssl_core.objective import Objective, Terms
from vssl_core.plugins import Plugin, new_manager
from vssl_core.requests import ANY, Request, Strides, Turns
from vssl_core.run.build import choose, recipe_of
from vssl_core.run.engine import Run
from vssl_core.views import Batch
from vssl_core.windows import Sample, draw_windows

PACES, TURNS, TEMPERATURE = (1, 2, 3, 4), (0, 1, 2, 3), 0.1
NULL = "null-net"
NULL_RUN = (f"backbone.name={NULL}", "optim.lr=1e-9")  # its loss has no least value: so it must not move
TOTAL, FRAME_SIZE = 100, (120, 160)  # of the video that the clips in memory are said to be cut from
ANYHOW: dict[str, Any] = {"placement": ANY, "boxes": ANY, "flips": ANY, "appearance": ANY}


# Losses, written once, so that the engine and a bare loop compute the same --------------------------------------------


def contrast(head: nn.Module, left: Tensor, right: Tensor) -> Tensor:
    """InfoNCE of the two clips of a video against the other videos: (B, D), (B, D) -> scalar."""
    unit = [F.normalize(head(vector), dim=1) for vector in (left, right)]
    logits = unit[0] @ unit[1].T / TEMPERATURE  # (B, B)
    labels = torch.arange(len(logits))
    return (F.cross_entropy(logits, labels) + F.cross_entropy(logits.T, labels)) / 2


def classify(head: nn.Module, left: Tensor, right: Tensor, labels: Tensor) -> Tensor:
    """Cross-entropy of a label of each clip: (B, D), (B, D), (2B,) -> scalar."""
    return F.cross_entropy(head(torch.cat([left, right])), labels)


def pace_labels(strides: Tensor) -> Tensor:
    """(N,) the number of each clip's stride among the paces."""
    return (strides[:, None] - torch.tensor(PACES, dtype=strides.dtype)).abs().argmin(dim=1)


class Contrast(Objective):
    """Tells a video's other clip from those of other videos."""

    def __init__(self, config: Any, context: Any) -> None:
        super().__init__(config, context)
        self.head = nn.Linear(context.feature_dim, 64)

    def requests(self) -> Mapping[str, Request]:
        return {"pair": Request(clips=2, strides=ANY, turns=ANY, **ANYHOW)}

    def forward(self, batch: Batch) -> Terms:
        left, right = batch["pair"]
        return Terms({"contrast": contrast(self.head, left.features.vector, right.features.vector)})


class Turned(Objective):
    """Tells the quarter turns of both clips."""

    def __init__(self, config: Any, context: Any) -> None:
        super().__init__(config, context)
        self.head = nn.Linear(context.feature_dim, len(TURNS))

    def requests(self) -> Mapping[str, Request]:
        return {"pair": Request(clips=2, strides=ANY, turns=Turns(TURNS), **ANYHOW)}

    def forward(self, batch: Batch) -> Terms:
        left, right = batch["pair"]
        labels = torch.cat([left.windows.turns, right.windows.turns])
        return Terms({"turns": classify(self.head, left.features.vector, right.features.vector, labels)})


class Paced(Objective):
    """Tells the paces of both clips."""

    def __init__(self, config: Any, context: Any) -> None:
        super().__init__(config, context)
        self.head = nn.Linear(context.feature_dim, len(PACES))

    def requests(self) -> Mapping[str, Request]:
        return {"pair": Request(clips=2, strides=Strides(PACES), turns=ANY, **ANYHOW)}

    def forward(self, batch: Batch) -> Terms:
        left, right = batch["pair"]
        labels = pace_labels(torch.cat([left.windows.stride, right.windows.stride]))
        return Terms({"paces": classify(self.head, left.features.vector, right.features.vector, labels)})


class Null(Objective):
    """Costs next to nothing: one number times the mean feature; and hears four announcements."""

    def __init__(self, config: Any, context: Any) -> None:
        super().__init__(config, context)
        self.scale = nn.Parameter(torch.ones(()))

    def requests(self) -> Mapping[str, Request]:
        return {"clip": Request(strides=ANY, turns=ANY, **ANYHOW)}

    def forward(self, batch: Batch) -> Terms:
        return Terms({"null": self.scale * batch["clip"][0].features.vector.mean()})

    @hookimpl
    def vssl_backward_end(self, run: Run) -> None:
        """Nothing."""

    @hookimpl
    def vssl_step_end(self, run: Run, report: Any) -> None:
        """Nothing."""

    @hookimpl
    def vssl_epoch_start(self, run: Run) -> None:
        """Nothing."""

    @hookimpl
    def vssl_epoch_end(self, run: Run) -> None:
        """Nothing."""


class NullNet(Backbone):
    """The clip times one number."""

    def __init__(self) -> None:
        super().__init__(NULL, {"stage1": 3})
        self.scale = nn.Parameter(torch.ones(()))

    def forward(self, clip: Tensor) -> dict[str, Tensor]:
        return {"stage1": clip * self.scale}


class _Offer:
    """Offers the null net."""

    @hookimpl
    def vssl_backbones(self) -> dict[str, Any]:
        return {NULL: NullNet}


def build_run(
    objectives: Mapping[str, type[Objective]], folder: Path, overrides: Sequence[str], paths: Sequence[str] = ()
) -> Run:
    """A run of these objectives on a list of videos (made up where none are given), without log writers."""
    manager = new_manager()
    manager.register(_Offer(), "bench")
    plugins = {name: Plugin(name, "", None, kind, None, None) for name, kind in objectives.items()}
    chosen = choose(load_config(None, plugins=list(plugins), overrides=overrides), (manager, plugins))
    names = paths or [f"{number}.mp4" for number in range(chosen.config.batch_size)]
    return quiet(Run(chosen, Splits(Videos.build(names, None, (), "/"), None, "bench"), folder))


def quiet(run: Run) -> Run:
    """The run without the engine's own log writers: they write, which is not what is measured."""
    for name, plugin in run.manager.list_name_plugin():
        if type(plugin).__module__ == "vssl_core.run.logs":
            run.manager.unregister(name=name)
    return run


def batch_in_memory(run: Run, size: int) -> RawBatch:
    """A batch as the loader would give it, of noise."""
    return collate([_sample(run, group, number) for number in range(size) for group in run.plan.groups])


def _sample(run: Run, group: Group, number: int) -> dict[str, Any]:
    request, recipe, sample = group.request, recipe_of(run.config, group), Sample(0, 0, 0, number)
    windows = draw_windows(request, sample, group.stream, TOTAL, FRAME_SIZE)
    generator = np.random.default_rng(number)
    clips = [
        CutClip(
            generator.integers(0, 256, (window.frames, request.size, request.size, 3), dtype=np.uint8),
            window,
            draw(recipe, sample.generator("looks", window.clip), window.frames),
            {},
        )
        for window in windows
    ]
    return {"visit": Visit(0, 0, number), "groups": [clips], "ledger": []}
