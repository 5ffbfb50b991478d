"""A linear classifier on the frozen features of clips, judged on whole videos."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from pydantic import Field, field_validator
from torch import Tensor, nn

from vssl_core import Evaluation, ExtractedFeatures, Needs, PluginConfig, Result, SplitFeatures, UserError

VERSION = 1  # raised when the same options give other numbers


class Linear(Evaluation):
    """Trained on the clips of the training split; a test video's answer is the mean of its clips' probabilities."""

    class Config(PluginConfig):
        """Options of the linear probe."""

        stage: str | tuple[str, ...] | None = Field(
            None, description="stage of the backbone, or a list of them, each with its own classifier; null: the last"
        )
        clips: int = Field(10, ge=1, description="clips for each video, evenly spread, in training and test")
        norm: bool = Field(True, description="L2 norm and batch norm before the linear layer")
        epochs: int = Field(100, ge=1, description="passes over all training clips")
        learning_rate: float = Field(0.1, gt=0, description="of SGD with momentum 0.9, at the start")
        milestones: tuple[float, ...] = Field(
            (0.6, 0.8), description="after these shares of the epochs the rate falls to a tenth"
        )
        weight_decay: float = Field(1e-3, ge=0, description="on all parameters of the classifier")
        batch_size: int = Field(256, ge=2, description="clips in a step")

        @field_validator("milestones")
        @classmethod
        def _shares(cls, milestones: tuple[float, ...]) -> tuple[float, ...]:
            if any(not 0 < share < 1 for share in milestones):
                raise ValueError("needs shares of the epochs, between 0 and 1")
            return milestones

    config: Config

    def needs(self) -> Needs:
        """One stage, ten clips of each video, and classes."""
        for stage in self._stages or ():
            self.context.stage(stage)
        return Needs(stages=self._stages, clips=self.config.clips)

    @property
    def _stages(self) -> tuple[str, ...] | None:
        """What was asked for; None: the last."""
        return (self.config.stage,) if isinstance(self.config.stage, str) else self.config.stage

    def run(self, features: ExtractedFeatures) -> Result:
        """`top1` and, with more than five classes, `top5` of videos; `clip_top1` of single clips; in percent.

        Of a list of stages each key begins with the stage: `stage4/top1`.
        """
        metrics: dict[str, float] = {}
        tables: dict[str, Any] = {}
        videos: dict[str, Sequence[Any]] = {"video": features.splits["test"].paths}
        for stage in self._stages or (features.last,):
            found, table, right = self._judged(features, stage)
            prefix = f"{stage}/" if isinstance(self.config.stage, tuple) else ""
            metrics |= {f"{prefix}{name}": value for name, value in found.items()}
            tables[f"{prefix}per_class"] = table
            videos[f"{prefix}top1"] = (100.0 * right.double()).tolist()
        return Result(metrics=metrics, protocol=self.protocol(), tables=tables, videos=videos)

    def _judged(self, features: ExtractedFeatures, stage: str) -> tuple[dict[str, float], list[dict[str, Any]], Tensor]:
        """The metrics of one stage, its table of classes, and which test videos (N,) are right."""
        train, test = features.splits["train"], features.splits["test"]
        for split, rows in (("train", train), ("test", test)):
            check(f"evaluation '{self.context.name}'", split, rows, stage)
        classifier = self._fit(train.vectors[stage], train.labels, len(features.classes), features.seed)
        with torch.inference_mode():
            clips = classifier(test.vectors[stage].flatten(0, 1)).softmax(dim=1)  # (N * clips, classes)
        clips = clips.unflatten(0, test.vectors[stage].shape[:2])  # (N, clips, classes)
        videos = clips.mean(dim=1)  # (N, classes)
        right = videos.argmax(dim=1) == test.labels
        metrics = {"top1": percent(right), "clip_top1": percent(clips.argmax(dim=2) == test.labels[:, None])}
        if len(features.classes) > 5:
            metrics["top5"] = percent((videos.topk(5, dim=1).indices == test.labels[:, None]).any(dim=1))
        return metrics, per_class(right, test.labels, features.classes), right

    @torch.inference_mode(False)  # gradients are on in here, wherever it is called from
    def _fit(self, vectors: Tensor, labels: Tensor, classes: int, seed: int) -> nn.Module:
        """The classifier after the last epoch, in eval mode; the seed orders the clips, nothing else is random."""
        config = self.config
        rows = vectors.flatten(0, 1)  # (N * clips, D)
        targets = labels.repeat_interleave(vectors.shape[1])  # (N * clips,)
        classifier = Classifier(rows.shape[1], classes, config.norm)
        rows = classifier.scale(rows)  # once, not once an epoch
        generator = torch.Generator().manual_seed(seed)
        optimizer = torch.optim.SGD(
            classifier.parameters(), lr=config.learning_rate, momentum=0.9, weight_decay=config.weight_decay
        )
        milestones = [round(share * config.epochs) for share in config.milestones]
        schedule = torch.optim.lr_scheduler.MultiStepLR(optimizer, milestones)
        steps = max(len(rows) // config.batch_size, 1)  # never a step of a single clip, which batch norm cannot take
        for _ in range(config.epochs):
            for chosen in torch.randperm(len(rows), generator=generator).tensor_split(steps):
                optimizer.zero_grad()
                F.cross_entropy(classifier.logits(rows[chosen]), targets[chosen]).backward()
                optimizer.step()
            schedule.step()
        return classifier.eval()

    def protocol(self) -> Mapping[str, Any]:
        """What the numbers depend on, besides the clips, the lists of videos and the seed."""
        return {
            "evaluation": "linear",
            "version": VERSION,
            "train": "train",
            "test": "test",
            "placement": "uniform",
            "crop": "centre",
            "pooling": "mean",
            "backbone": "frozen, eval mode",
            "optimizer": "sgd, momentum 0.9",
            "reported": "last epoch",
            "video": "mean of clip probabilities",
            **self.config.model_dump(),
        }


class Classifier(nn.Module):
    """Features (N, D) to logits (N, classes): with `norm`, unit length and batch norm before the linear layer."""

    def __init__(self, inputs: int, classes: int, norm: bool) -> None:
        super().__init__()
        self.norm = nn.BatchNorm1d(inputs) if norm else None
        # Zeros: the problem is convex, so a random start would only add noise and disturb a shared generator.
        self.weight = nn.Parameter(torch.zeros(classes, inputs))
        self.bias = nn.Parameter(torch.zeros(classes))

    def scale(self, rows: Tensor) -> Tensor:
        """(N, D) rows of unit length, where the head normalises."""
        return rows.clone() if self.norm is None else F.normalize(rows, dim=1)

    def logits(self, rows: Tensor) -> Tensor:
        """(N, classes) of rows that are scaled already."""
        return F.linear(rows if self.norm is None else self.norm(rows), self.weight, self.bias)

    def forward(self, rows: Tensor) -> Tensor:
        return self.logits(self.scale(rows))


def check(where: str, split: str, rows: SplitFeatures, stage: str) -> None:
    """Raise a `UserError` for a split that nothing can be learned from."""
    count, unnamed = len(rows.labels), int((rows.labels < 0).sum())
    if rows.vectors[stage].shape[:2].numel() < 2:
        raise UserError(f"{where}: the {split} split has {count} readable videos; give data with more of them")
    if unnamed:
        raise UserError(f"{where}: {unnamed} of {count} videos of the {split} split have no class; give labelled data")
    if not rows.vectors[stage].isfinite().all():
        raise UserError(f"{where}: features of {stage} in the {split} split are not finite; the training has diverged")


def percent(right: Tensor) -> float:
    """The share of True, in percent."""
    return 100 * right.double().mean().item()


def per_class(right: Tensor, labels: Tensor, classes: Sequence[str]) -> list[dict[str, Any]]:
    """A row for each class that was tested: its name, how many videos, and the percentage that is right."""
    rows = [(name, right[labels == label]) for label, name in enumerate(classes)]
    return [{"class": name, "videos": len(own), "top1": percent(own)} for name, own in rows if len(own)]
