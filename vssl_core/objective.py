"""What a plugin author writes: an objective (a loss on views), an evaluation, a combiner of losses, an observer."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import torch
from pydantic import BaseModel, ConfigDict
from torch import Tensor, nn

from vssl_core.requests import Request

if TYPE_CHECKING:
    import numpy as np

    from vssl_core.views import Batch
    from vssl_core.windows import Window


class PluginConfig(BaseModel):
    """Options of a plugin: frozen, unknown keys are errors, every field described and bounded."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


@dataclass(frozen=True)
class ClipSettings:
    """The run's clip: frames, and pixels of its square."""

    frames: int
    size: int
    stride: int


@dataclass(frozen=True)
class Context:
    """What an objective cannot know by itself: the run it is part of."""

    name: str  # the plugin's name, as in the config
    clip: ClipSettings
    backbone: nn.Module  # to copy for a teacher; never train or change it here
    feature_dim: int
    stages: Mapping[str, tuple[int, int, int, int]]  # {name: (C,T,H,W)} for the run's clip
    videos: int  # how many the training list holds
    epochs: int
    steps_per_epoch: int
    batch_size: int  # videos in one step, over all ranks
    world_size: int

    def stage(self, name: str) -> tuple[int, int, int, int]:
        """(C,T,H,W) of a stage; `ConfigError` names those there are where it is not one of them."""
        from vssl_core.errors import ConfigError, did_you_mean

        if name not in self.stages:
            raise ConfigError(
                f"plugins.{self.name}: the backbone has no stage '{name}', it has "
                f"{', '.join(self.stages)}{did_you_mean(name, self.stages)}"
            )
        return self.stages[name]


@dataclass
class Terms:
    """What an objective gives back for one step."""

    losses: Mapping[str, Tensor]  # scalars; a term may be absent, by epoch or progress, never by what the clips show
    metrics: Mapping[str, Tensor] = field(default_factory=dict)  # scalars for the log
    keep: Mapping[str, Tensor] = field(
        default_factory=dict
    )  # {name: (B, ...)}: travels to `vssl_step_end` as `report.kept`


@dataclass(frozen=True)
class ParameterGroup:
    """Parameters that are not trained like the rest."""

    parameters: Iterable[nn.Parameter]
    learning_rate_scale: float = 1.0
    schedule: Literal["run", "constant"] = "run"  # "constant": the learning rate is not decayed
    weight_decay: float | None = None  # None: the run's


class Objective(nn.Module, ABC):
    """One pretext task or contrastive framework: what it asks of clips, and its losses on them.

    `forward` computes and changes no state but the running statistics of normalisation. Teachers, queues and banks
    are parameters
    or buffers, and move in announcements (`@hookimpl def vssl_step_end(self, run, report)`): so they are saved with
    the run.
    """

    Config: ClassVar[type[PluginConfig]] = PluginConfig

    def __init__(self, config: Any, context: Context) -> None:
        super().__init__()
        self.config = config
        self.context = context

    @abstractmethod
    def requests(self) -> Mapping[str, Request]:
        """{slot: what it needs}; `batch[slot]` then holds the views."""

    @abstractmethod
    def forward(self, batch: Batch) -> Terms:
        """The losses of one batch."""

    def parameter_groups(self) -> Iterable[ParameterGroup]:
        """Parameters that are not trained like the rest; each at most once."""
        return ()

    def named_features(self, batch: Batch) -> Mapping[str, Tensor]:
        """{name: (B, D)} of `(view,) = batch["clips"]`: vectors that evaluations may read like a stage of the backbone,
        as `<plugin>/<name>`.

        In eval mode, without gradient, of a clip without tail; names and widths do not depend on what the clip shows.
        """
        return {}

    def pictures(self, batch: Batch, shots: Mapping[str, tuple[Shot, ...]]) -> Mapping[str, Any]:
        """{name: a matplotlib figure}: what a person looks at to believe the labels; `vssl data labels` shows it.

        `batch` holds one video as `forward` sees it; `shots` have the same clips, slot by slot, as pixels and windows.
        """
        return {}


@dataclass(frozen=True)
class Shot:
    """One clip as it was cut: pixels that nothing was done to yet, and where they come from."""

    window: Window
    frames: np.ndarray  # (T,H,W,3) uint8, whole frames as filmed
    clip: np.ndarray  # (T,S,S,3) uint8, cut, resized, mirrored and turned; tail frames included

    @property
    def crop(self) -> np.ndarray:
        """(T,h,w,3) the window's box at source resolution, mirrored and turned as the clip is."""
        top, left, height, width = self.window.box
        box = self.frames[:, top : top + height, left : left + width]
        return self.window.carry(box.transpose(0, 3, 1, 2)).transpose(0, 2, 3, 1)


@dataclass(frozen=True)
class Shared:
    """What the losses of one microbatch stand on together: where gradients of objectives meet."""

    features: tuple[Tensor, ...]  # the last feature map of every clip that was asked for, (B,D,T,H,W) each
    backbone: nn.Module

    @property
    def parameters(self) -> tuple[nn.Parameter, ...]:
        """Those of the backbone that are trained."""
        return tuple(parameter for parameter in self.backbone.parameters() if parameter.requires_grad)


class Combiner(nn.Module, ABC):
    """A way from named losses to the scalar that is differentiated; may hold parameters of its own.

    Under several ranks it runs on each with its own rows, before gradients are averaged: what compares gradients has to
    exchange them (`vssl_core.average`). It runs in float32 whatever the run's precision, and may differentiate.
    """

    Config: ClassVar[type[PluginConfig]] = PluginConfig

    def __init__(self, config: Any, names: tuple[str, ...]) -> None:
        super().__init__()
        self.config = config
        self.names = names

    @abstractmethod
    def forward(self, losses: Mapping[str, Tensor], weights: Mapping[str, float], shared: Shared) -> Tensor:
        """The total, a scalar; `losses` holds {objective: the sum of its terms}, only those with a weight above 0."""

    def parameter_groups(self) -> Iterable[ParameterGroup]:
        """Parameters of its own that are not trained like the rest; each at most once."""
        return ()


class Observer:
    """Watches a run and changes nothing in it: its `@hookimpl` methods hear what is announced, on every rank.

    `name` is the plugin's. What it measures it hands to `run.note(name, value)`, which logs it with the step.
    """

    Config: ClassVar[type[PluginConfig]] = PluginConfig

    def __init__(self, config: Any, name: str) -> None:
        self.config = config
        self.name = name


# Evaluations ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Needs:
    """What an evaluation reads; evaluations that ask for alike clips share one extraction."""

    stages: tuple[str, ...] | None = None  # None: the last one
    clips: int = 10  # evenly spread, centre crop
    labels: bool = True
    splits: tuple[str, ...] = ("train", "test")


@dataclass(frozen=True)
class SplitFeatures:
    """What was extracted from one split; unreadable videos are left out and listed."""

    vectors: Mapping[str, Tensor]  # {stage: (N, clips, D)} pooled, float32
    labels: Tensor  # (N,) int64
    paths: tuple[str, ...]
    unreadable: tuple[str, ...] = ()


@dataclass(frozen=True)
class ExtractedFeatures:
    """All splits, the names of the classes, and what the numbers depend on."""

    splits: Mapping[str, SplitFeatures]
    classes: tuple[str, ...]
    stages: tuple[str, ...]  # all stages there are, first to last
    seed: int

    @property
    def last(self) -> str:
        """The name of the backbone's last stage."""
        return self.stages[-1]


@dataclass(frozen=True)
class Result:
    """What an evaluation found."""

    metrics: Mapping[str, float]  # in percent: 'r@1', 'top1', 'stage4/r@1', 'cstp/r@1'
    protocol: Mapping[str, Any]  # everything the numbers depend on; its hash decides which rows may share a table
    tables: Mapping[str, Any] = field(default_factory=dict)  # per-class tables and the like, as JSON values
    figures: Mapping[str, Any] = field(default_factory=dict)  # {name: a matplotlib figure}
    # {'video': names, metric: a number for each, of which the metric is the mean}: what lets cells be compared in pairs
    videos: Mapping[str, Sequence[Any]] = field(default_factory=dict)


class Evaluation(ABC):
    """A downstream protocol on frozen features."""

    Config: ClassVar[type[PluginConfig]] = PluginConfig

    def __init__(self, config: Any, context: Context) -> None:
        self.config = config
        self.context = context

    @abstractmethod
    def needs(self) -> Needs:
        """What must be extracted."""

    @abstractmethod
    def run(self, features: ExtractedFeatures) -> Result:
        """The numbers."""


def is_scalar(value: object) -> bool:
    """Whether a value is a tensor with one number in it."""
    return isinstance(value, torch.Tensor) and value.ndim == 0
