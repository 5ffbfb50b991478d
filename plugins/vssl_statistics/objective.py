"""The heads that regress what was measured of a clip, and their losses."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
from pydantic import Field, field_validator, model_validator
from torch import Tensor, nn

from vssl_core import (
    ANY,
    Batch,
    ConfigError,
    Context,
    Fixed,
    Flow,
    Measure,
    Objective,
    ParameterGroup,
    PluginConfig,
    Request,
    Sample,
    Terms,
    View,
    hookimpl,
    mean,
)
from vssl_core import Appearance as Colours
from vssl_statistics import appearance, motion
from vssl_statistics.curriculum import UNKNOWN, Curriculum, Subset, count, easiest, part
from vssl_statistics.measures import Appearance, Motion
from vssl_statistics.scoring import scores_of

if TYPE_CHECKING:
    from vssl_core import Run, Shot

PATTERNS = (1, 2, 3)
BLOCK = 8  # pixels: all three patterns cut a clip of a multiple of them between pixels
WIDTH = 2048  # of the branches' hidden layers
LIGHT = "c3d_light"  # the backbone that was published with branches


class Statistics(Objective):
    """Two heads on the features of a clip: one tells its statistics of motion, the other those of colour."""

    class Config(PluginConfig):
        """Which statistics are told, how they are measured, and by what heads."""

        motion: bool = Field(True, description="tell the statistics of motion")
        appearance: bool = Field(True, description="tell the statistics of colour")
        motion_weight: float = Field(1.0, gt=0, description="weight of the loss on motion, the paper's lambda_m")
        appearance_weight: float = Field(0.1, gt=0, description="weight of the loss on colours, the paper's lambda_a")
        patterns: tuple[int, ...] = Field(
            PATTERNS, description="ways to divide a clip: 1 a grid of 4 x 4, 2 nested squares, 3 eight triangles"
        )
        whole: bool = Field(
            True, description="also the statistics of the whole clip: the frame that moves most, the dominant colour"
        )
        method: Literal["dis", "farneback", "tvl1"] | None = Field(
            None, description="how flow is computed, by the loader's workers or ahead; null: dis, or any ahead"
        )
        flow: str | None = Field(
            None, description="folder with flow computed ahead by `vssl data flow`; null: the loader's workers compute"
        )
        binning: Literal["hard", "soft"] = Field(
            "hard", description="orientations in eighths of a turn (thesis), or shared by the two nearest (code)"
        )
        loss: Literal["mse", "l2norm"] = Field(
            "mse", description="the mean squared error (code), or the distance of all labels together (thesis)"
        )
        heads: Literal["linear", "branches"] | None = Field(
            None, description="a linear layer each, or two hidden layers of 2048; null: branches for c3d_light alone"
        )
        bias_learning_rate: float = Field(2.0, gt=0, description="times the run's, for biases")
        biases: Literal["heads", "all"] = Field(
            "heads", description="whose biases: the heads' own, or the backbone's too, which neighbours feel"
        )
        weight_decay: float | None = Field(None, ge=0, description="of the heads; null is the run's")
        fixed: bool = Field(
            False, description="one clip in time for each video, the same in all epochs; always so with a curriculum"
        )
        curriculum: Curriculum | None = Field(
            None, description="show clips first whose motion is easy to find (pacing, first, step_length, ...)"
        )
        subset: Subset | None = Field(None, description="train on a part of the list only: 1/16, 1/8, 1/4, 1/2 or 3/4")

        @field_validator("patterns")
        @classmethod
        def _known(cls, patterns: tuple[int, ...]) -> tuple[int, ...]:
            if not set(patterns) <= set(PATTERNS) or len(set(patterns)) < len(patterns):
                raise ValueError("names each of 1, 2, 3 at most once")
            return tuple(sorted(patterns))

        @model_validator(mode="after")
        def _used(self) -> Statistics.Config:
            if not (self.motion or self.appearance):
                raise ValueError("motion and appearance are both off, so there is nothing to learn; switch one on")
            if not (self.patterns or self.whole):
                raise ValueError("no patterns and not the whole: no label is left; name a pattern, or set whole")
            if not self.motion:
                self._refuse(("motion_weight", "binning", "curriculum"), "with motion: false")
            if not self.appearance:
                self._refuse(("appearance_weight",), "with appearance: false")
            return self

        def _refuse(self, keys: tuple[str, ...], reason: str) -> None:
            for key in keys:
                if getattr(self, key) != type(self).model_fields[key].default:
                    raise ValueError(f"{key} has no effect {reason}; remove it")

    def __init__(self, config: Config, context: Context) -> None:
        super().__init__(config, context)
        self.flow = Flow(config.method or "dis", config.flow)
        self._check_clip()
        self._check_shown()
        self.columns = _columns(config)
        self.heads = nn.ModuleDict({name: self._head(len(kept)) for name, kept in self.columns.items()})
        if config.curriculum is not None:
            self.register_buffer("scores", torch.full((context.videos,), UNKNOWN))  # (N,) how easy each video is

    def _check_clip(self) -> None:
        clip, where = self.context.clip, f"plugins.{self.context.name}"
        if clip.size % BLOCK:
            near = max(clip.size // BLOCK, 1) * BLOCK
            raise ConfigError(
                f"{where}: clip.size must be a multiple of {BLOCK}, so that no pattern cuts a pixel, got {clip.size}; "
                f"set clip.size={near} or clip.size={near + BLOCK}"
            )
        if self.config.motion and clip.frames < 2:
            raise ConfigError(
                f"{where}: flow goes from one frame to the next, and clips have {clip.frames} frame; set "
                "clip.frames to 2 or more, or motion to false"
            )
        if self.config.motion:
            self.flow.check(where, clip.stride)
            self._check_method(where)

    def _check_method(self, where: str) -> None:
        if self.config.flow is None or self.config.method is None:
            return
        found = self.flow.computed_by
        if found != self.config.method:
            raise ConfigError(
                f"{where}: method is {self.config.method}, and the flow in {self.config.flow} was computed by {found}; "
                f"compute it with `vssl data flow --method {self.config.method}`, or leave method out"
            )

    def _check_shown(self) -> None:
        """Here, and not after hours of scoring: whether each epoch has a batch."""
        videos, batch_size = self.context.videos, self.context.batch_size
        rows, pacing = len(part(self.config.subset, videos)), self.config.curriculum
        shown = rows if pacing is None else count(pacing.share(0, self.context.epochs), rows)
        if batch_size > shown and shown < videos:
            raise ConfigError(
                f"plugins.{self.context.name}: the first epoch shows {shown} of {videos} videos, less than one batch "
                f"of {batch_size}; make batch_size smaller, or subset or curriculum.first larger"
            )

    def _head(self, outputs: int) -> nn.Module:
        light = getattr(self.context.backbone, "name", None) == LIGHT
        if (self.config.heads or ("branches" if light else "linear")) == "linear":
            return nn.Linear(self.context.feature_dim, outputs)
        *_, (channels, frames, height, width) = self.context.stages.values()
        branch = nn.Sequential(
            nn.Flatten(), nn.Linear(channels * frames * height * width, WIDTH), nn.ReLU(),
            nn.Linear(WIDTH, WIDTH), nn.ReLU(), nn.Linear(WIDTH, outputs),
        )  # fmt: skip
        for layer in branch:
            if isinstance(layer, nn.Linear):
                nn.init.ones_(layer.bias)
        return branch

    def requests(self) -> Mapping[str, Request]:
        """One clip in its own colours, neither turned nor at another pace; boxes, mirror images and place are free."""
        name, measures = self.context.name, []
        if self.config.motion:
            measures.append(Measure(f"{name}/motion", Motion(self.flow, self.config.binning), self.flow.whole))
        if self.config.appearance:
            measures.append(Measure(f"{name}/appearance", Appearance()))
        return {
            "clip": Request(
                placement=Fixed() if self.config.fixed or self.config.curriculum else ANY,
                boxes=ANY,
                flips=ANY,
                appearance=Colours(colour="kept", per="clip"),
                measures=tuple(measures),
            )
        }

    def forward(self, batch: Batch) -> Terms:
        """The loss on motion and on colours; how many labels are right to the nearest number; how many clips move."""
        (view,) = batch["clip"]
        losses, metrics = {}, {}
        weights = {"motion": self.config.motion_weight, "appearance": self.config.appearance_weight}
        for name, (truth, counts) in self.labels(view).items():  # (B, n), (B,)
            head = self.heads[name]
            told = head(view.features.vector if isinstance(head, nn.Linear) else view.features.map).float()  # (B, n)
            losses[name] = weights[name] * mean(distance(told, truth, self.config.loss), counts)
            metrics[f"{name}_accuracy"] = mean((told.detach().round() == truth).float().mean(dim=1), counts)
            if name == "motion":
                metrics["moving"] = mean(counts.float())
        return Terms(losses, metrics)

    def labels(self, view: View) -> dict[str, tuple[Tensor, Tensor]]:
        """{"motion": ((B, n) the labels that are told, each from 1; (B,) whether they count), "appearance": ...}.

        Motion does not count where nothing moves, nor where a clip has a seam: nothing moved like that.
        """
        found = {}
        for name, kept in self.columns.items():
            measured = view.measures[f"{self.context.name}/{name}"]
            counts = torch.ones(len(measured), dtype=torch.bool, device=measured.device)
            if name == "motion":
                counts = measured[:, motion.LABELS].bool() & view.windows.real[:, : self.context.clip.frames].all(dim=1)
            found[name] = measured[:, kept].float(), counts
        return found

    # Which videos an epoch shows --------------------------------------------------------------------------------------

    @hookimpl
    def vssl_epoch_start(self, run: Run) -> None:
        """Before the first epoch all videos are scored; later ones find the scores in the buffer."""
        if self.config.curriculum is not None and run.epoch == 0:
            self.scores.copy_(torch.from_numpy(scores_of(run, self.flow, self.context.name)))

    @hookimpl
    def vssl_epoch_order(self, run: Run) -> np.ndarray | None:
        """The easiest of the videos that take part, shuffled as the run would shuffle them; None for all."""
        pacing = self.config.curriculum
        if pacing is None and self.config.subset is None:
            return None
        rows = part(self.config.subset, self.context.videos)
        if pacing is not None:
            share = pacing.share(run.epoch, self.context.epochs)
            rows = easiest(self.scores.cpu().numpy(), rows, share, pacing.hardest_first)
        return rows[Sample(run.config.seed, run.epoch, 0, -1).generator("order").permutation(len(rows))]

    # What a person sees, and how it is trained ------------------------------------------------------------------------

    def pictures(self, batch: Batch, shots: Mapping[str, tuple[Shot, ...]]) -> Mapping[str, Any]:
        """The clip with patterns, boundaries and colours, and the labels on them, as they were measured."""
        from vssl_statistics.pictures import draw

        (view,), (shot,) = batch["clip"], shots["clip"]
        measured = {name: view.measures[f"{self.context.name}/{name}"][0].cpu().numpy() for name in self.columns}
        motion_labels, found = measured.get("motion"), None
        if motion_labels is not None:
            found = Motion(self.flow).boundaries(shot.frames, shot.clip, shot.window)
        return {"labels": draw(shot, motion_labels, found, measured.get("appearance"))}

    def parameter_groups(self) -> Iterable[ParameterGroup]:
        """Biases learn faster, in the heads and where it is asked for in the backbone; weights of heads may decay."""
        scale, decay = self.config.bias_learning_rate, self.config.weight_decay
        own = list(self.heads.named_parameters())
        yield ParameterGroup([parameter for name, parameter in own if _is_bias(name)], scale, weight_decay=decay)
        yield ParameterGroup([parameter for name, parameter in own if not _is_bias(name)], weight_decay=decay)
        if self.config.biases == "all":
            net = self.context.backbone.named_parameters()
            trained = [parameter for name, parameter in net if _is_bias(name) and parameter.requires_grad]
            yield ParameterGroup(trained, scale)


def distance(told: Tensor, truth: Tensor, loss: str) -> Tensor:
    """(B,) how far labels (B, n) are from the true ones: the mean of squares, or the length of the difference."""
    if loss == "mse":
        return (told - truth).square().mean(dim=1)
    return torch.linalg.vector_norm(told - truth, dim=1)


def _columns(config: Statistics.Config) -> dict[str, list[int]]:
    """Which of the labels that are measured are told, of motion and of colours."""
    local = [4 * (pattern - 1) + number for pattern in config.patterns for number in range(4)]
    whole = {"motion": range(12, motion.LABELS), "appearance": range(12, appearance.LABELS)}
    return {name: [*local, *(part if config.whole else ())] for name, part in whole.items() if getattr(config, name)}


def _is_bias(name: str) -> bool:
    return name.rpartition(".")[2] == "bias"
