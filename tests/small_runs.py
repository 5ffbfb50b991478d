"""Runs that take a second: a dozen tiny videos, a small configuration, and plugins that are classes of a test file."""

from __future__ import annotations

import atexit
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping
from functools import cache
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from vssl_core import (
    Batch,
    Combiner,
    Context,
    Objective,
    Observer,
    PluginConfig,
    Request,
    Splits,
    Terms,
    Videos,
    hookimpl,
    testing,
)
from vssl_core.config import RunConfig
from vssl_core.plugins import Plugin, load, new_manager, register
from vssl_core.run.build import choose
from vssl_core.run.engine import Run
from vssl_core.run.folder import open_run

VIDEOS, FRAMES, HEIGHT, WIDTH = 12, 24, 48, 64
BATCH, STEPS = 4, 3  # videos in a step, steps in an epoch
PLACE = "VSSL_TEST_VIDEOS"  # in the environment: where the videos lie
SETTINGS: dict[str, Any] = {
    "clip": {"frames": 4, "size": 16},
    "data": {"source": "folder", "workers": 0},
    "optim": {"lr": 0.05},
    "epochs": 2,
    "batch_size": BATCH,
    "device": {"kind": "cpu"},
    "checkpoint": {"every_steps": 1000, "every_minutes": 1e6},
    "log": {"tensorboard": False},
}


# Videos ---------------------------------------------------------------------------------------------------------------


@cache
def videos_folder() -> Path:
    """train/left, train/right (six videos each) and test/left, test/right (two each); removed when the process ends.

    Processes that this one starts read the same.
    """
    if PLACE in os.environ:
        return Path(os.environ[PLACE])
    place = Path(tempfile.mkdtemp(prefix="vssl-small-"))
    atexit.register(shutil.rmtree, place, ignore_errors=True)
    write_videos(place)
    os.environ[PLACE] = str(place)
    return place


def on_ranks(ranks: int, job: Callable[..., Any], limit: float = 300, /, **arguments: Any) -> list[Any]:
    """What each rank got from a function of a test file, given plain values; all read the same small videos."""
    videos_folder()
    return testing.on_ranks(ranks, job, limit, **arguments)


def write_videos(place: Path) -> None:
    """Write the folder of classes."""
    from vssl_core.data.demo import write_video

    for side, count in {"train": VIDEOS, "test": 4}.items():
        for number in range(count):
            path = place / side / ("left", "right")[number % 2] / f"{number:02d}.mp4"
            path.parent.mkdir(parents=True, exist_ok=True)
            write_video(path, drifting(FRAMES, number + 100 * (side == "test")))


def drifting(frames: int, number: int) -> Iterator[np.ndarray]:
    """A coarse random texture that moves to one side: (48, 64, 3) uint8 each."""
    coarse = np.random.default_rng(number).integers(0, 256, (HEIGHT // 8, WIDTH // 8, 3), dtype=np.uint8)
    texture = coarse.repeat(8, axis=0).repeat(8, axis=1)
    speed = (1 if number % 2 else -1) * (1 + number % 3)
    for frame in range(frames):
        yield np.ascontiguousarray(np.roll(texture, speed * frame, axis=1))


def splits(place: Path | None = None) -> Splits:
    """The dozen as a training list, in order of their numbers."""
    names = [f"train/{('left', 'right')[number % 2]}/{number:02d}.mp4" for number in range(VIDEOS)]
    labels = [number % 2 for number in range(VIDEOS)]
    return Splits(Videos.build(names, labels, ("left", "right"), str(place or videos_folder())), None, "small")


def with_broken(place: Path, broken: list[int], content: bytes = b"no video at all") -> Splits:
    """The dozen in a folder of its own, `place`/videos, some of them replaced by what is no video."""
    shutil.copytree(videos_folder() / "train", place / "videos" / "train")
    found = splits(place / "videos")
    for number in broken:
        Path(found.train.path(number)).write_bytes(content)
    return found


# Runs -----------------------------------------------------------------------------------------------------------------


def settings(plugins: Mapping[str, Mapping[str, Any]], **changes: Any) -> RunConfig:
    """The small configuration with these plugins and options; `changes` are sections or values, laid over it."""
    tree: dict[str, Any] = {**SETTINGS, "plugins": {name: dict(options) for name, options in plugins.items()}}
    for key, value in changes.items():
        tree[key] = {**tree.get(key, {}), **value} if isinstance(value, dict) else value
    return RunConfig.model_validate(tree)


def open_small(
    folder: Path, plugins: Mapping[str, Any], *, videos: Splits | None = None, options: Any = None, **changes: Any
) -> Run:
    """A run in `folder`, new or resumed, that trains these plugins.

    A plugin is an Objective, Combiner or Observer class, any object with hooks, or None for one that is installed.
    `options` is {plugin: its options}.
    """
    options = options or {}
    config = settings({name: options.get(name, {}) for name in plugins}, **changes)
    manager = new_manager()
    loaded: dict[str, Plugin] = {}
    for name, what in plugins.items():
        loaded[name] = (
            load([name], manager)[1][name] if what is None else register(manager, name, offer(what), f"plugin '{name}'")
        )
    run = open_run(choose(config, (manager, loaded)), videos or splits(), folder)
    if run.manager.has_plugin("vssl/progress"):  # nobody watches
        run.manager.unregister(name="vssl/progress")
    return run


def offer(what: Any) -> Any:
    """A plugin's module, as it were: what offers this class, or the observer itself."""
    if isinstance(what, type) and issubclass(what, Objective):
        return SimpleNamespace(vssl_objective=hookimpl(lambda: what))
    if isinstance(what, type) and issubclass(what, Combiner):
        return SimpleNamespace(vssl_combine=hookimpl(lambda: what))
    if isinstance(what, type) and issubclass(what, Observer):
        return SimpleNamespace(vssl_observer=hookimpl(lambda: what))
    return what


def train(folder: Path, plugins: Mapping[str, Any], **changes: Any) -> Run:
    """Open and train to the end."""
    run = open_small(folder, plugins, **changes)
    run.train()
    return run


def weights(module: nn.Module, prefix: str = "") -> dict[str, Tensor]:
    """A copy of a module's whole state, or of what lies below a prefix."""
    return {name: value.detach().clone() for name, value in module.state_dict().items() if name.startswith(prefix)}


def assert_equal(left: Any, right: Any, where: str = "") -> None:
    """Trees of mappings, rows and tensors are equal bit for bit; the place is told where they are not."""
    assert type(left) is type(right), where
    if isinstance(left, Mapping):
        assert list(left) == list(right), where
        for key in left:
            assert_equal(left[key], right[key], f"{where}/{key}")
    elif isinstance(left, list | tuple):
        assert len(left) == len(right), where
        for number, (one, other) in enumerate(zip(left, right, strict=True)):
            assert_equal(one, other, f"{where}/{number}")
    elif isinstance(left, Tensor):
        assert left.dtype == right.dtype and torch.equal(left, right), where
    else:
        assert left == right, where


# Plugins that many tests train ----------------------------------------------------------------------------------------


class Colour(Objective):
    """Tells a clip's mean colour from its features."""

    class Config(PluginConfig):
        """Nothing but a factor."""

        factor: float = 1.0

    def __init__(self, config: Any, context: Context) -> None:
        super().__init__(config, context)
        self.head = nn.Linear(context.feature_dim, 3)

    def requests(self) -> Mapping[str, Request]:
        return {"clip": Request()}

    def forward(self, batch: Batch) -> Terms:
        (view,) = batch["clip"]
        colour = view.clip.mean(dim=(2, 3, 4))  # (B, 3)
        error = (self.head(view.features.vector) - colour).square().mean()
        return Terms({"error": self.config.factor * error}, {"brightness": colour.mean()})


class Watch:
    """An observer that writes down every announcement, and the losses of every step."""

    def __init__(self) -> None:
        self.heard: list[Any] = []
        self.losses: list[dict[str, float]] = []
        self.reports: list[Any] = []

    @hookimpl
    def vssl_run_start(self, run: Run) -> None:
        self.heard.append("run_start")

    @hookimpl
    def vssl_epoch_start(self, run: Run) -> None:
        self.heard.append(f"epoch_start {run.epoch}")

    @hookimpl
    def vssl_backward_end(self, run: Run) -> None:
        self.heard.append(f"backward_end {run.step}")

    @hookimpl
    def vssl_step_end(self, run: Run, report: Any) -> None:
        self.heard.append(f"step_end {run.step}")
        self.losses.append({name: float(loss) for name, loss in report.losses.items()})
        self.reports.append(report)

    @hookimpl
    def vssl_epoch_end(self, run: Run) -> None:
        self.heard.append(f"epoch_end {run.epoch}")

    @hookimpl
    def vssl_run_end(self, run: Run, error: BaseException | None) -> None:
        self.heard.append("run_end" if error is None else f"run_end {type(error).__name__}")


class Stop(Exception):
    """Raised by `StopAt`."""


class StopAt:
    """An observer that saves after a step and then makes the run fall over, as a kill right after a save would."""

    def __init__(self, step: int, save: bool = True) -> None:
        self.step, self.save = step, save

    @hookimpl(trylast=True)
    def vssl_step_end(self, run: Run) -> None:
        if run.step == self.step:
            if self.save:
                run.save()
            raise Stop
