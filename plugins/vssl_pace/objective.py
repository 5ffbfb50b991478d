"""How fast a clip is played: the label is the window's stride."""

from __future__ import annotations

from collections.abc import Mapping
from fractions import Fraction
from typing import TYPE_CHECKING, Annotated, Any, Literal

import torch
import torch.nn.functional as F
from pydantic import Field, PlainSerializer, PlainValidator, field_validator, model_validator
from torch import Tensor, nn

from vssl_core import (
    ANY,
    Appearance,
    Batch,
    Context,
    Objective,
    PluginConfig,
    Request,
    Strides,
    Terms,
    View,
    head,
    mean,
)
from vssl_pace.contrast import Reading, contrast

if TYPE_CHECKING:
    from vssl_core import Shot

UNKNOWN = -1  # the label of a clip with a seam, which would give its pace away


def _read(value: Any) -> int | Fraction:
    """A pace as written in a config: 3, or '1/3'."""
    try:
        known = isinstance(value, int | str | Fraction) and not isinstance(value, bool)
        pace = Fraction(value) if known else Fraction(0)
    except (ValueError, ZeroDivisionError):
        pace = Fraction(0)
    if pace <= 0 or 1 not in (pace.numerator, pace.denominator):
        raise ValueError("a pace is a whole number from 1, or a fraction written '1/2', '1/3', ...")
    return pace if pace.denominator > 1 else int(pace)


def _write(pace: int | Fraction) -> int | str:
    return str(pace) if isinstance(pace, Fraction) else pace


Rate = Annotated[int | Fraction, PlainValidator(_read), PlainSerializer(_write)]


class Pace(Objective):
    """A classifier of paces on the features of each clip; optionally a contrast between clips."""

    class Config(PluginConfig):
        """Which paces are told apart, what counts, and the contrast."""

        paces: tuple[Rate, ...] | None = Field(
            None, description="from one sampled frame to the next, in frames, whole or '1/q'; null is 1, 1 + step, ..."
        )
        step: int = Field(1, ge=1, description="from one pace to the next, where `paces` is null")
        count: int = Field(4, ge=2, le=16, description="how many paces, where `paces` is null")
        short: Literal["fit", "loop"] = Field(
            "fit", description="videos too short for a pace: draw only paces that fit, or start again (a seam)"
        )
        mask_wrapped: bool = Field(True, description="leave clips with a seam out of the labels")
        views: Literal["mean", "sum", "first"] = Field(
            "mean", description="a pair: the mean of both losses, their sum (CSTP's code), or the first (its text)"
        )
        layers: int = Field(1, ge=1, le=3, description="linear layers of the head")
        classification_weight: float = Field(
            1.0, ge=0, description="weight of the classification, the paper's lambda_cls; 0 is the contrast alone"
        )
        contrast: Literal["none", "same_context", "same_pace"] = Field(
            "none", description="draw clips of one video together, or clips of one pace"
        )
        contrast_weight: float = Field(0.1, gt=0, description="weight of the contrast, the paper's lambda_ctr")
        reading: Reading = Field(
            "row", description="a contrast over each anchor's own pairs, over all pairs, or one ratio of all pairs"
        )
        projection: int | None = Field(
            128, ge=1, description="width of a linear layer and ReLU before the contrast; null contrasts the features"
        )

        @field_validator("paces")
        @classmethod
        def _different(cls, paces: tuple[Rate, ...] | None) -> tuple[Rate, ...] | None:
            if paces is not None and not 2 <= len(set(paces)) == len(paces):
                raise ValueError("needs at least two paces, all different")
            return paces

        @model_validator(mode="after")
        def _consistent(self) -> Pace.Config:
            if self.paces is not None:
                self._refuse(("step", "count"), "with paces, which names each of them")
            if self.classification_weight == 0:
                self._refuse(("layers", "views"), "with classification_weight: 0")
            if self.contrast == "none":
                self._refuse(("contrast_weight", "reading", "projection"), "with contrast: none")
                if self.classification_weight == 0:
                    raise ValueError("classification_weight is 0 and contrast none: nothing to learn; set one of them")
            return self

        def _refuse(self, keys: tuple[str, ...], reason: str) -> None:
            for key in keys:
                if getattr(self, key) != type(self).model_fields[key].default:
                    raise ValueError(f"{key} has no effect {reason}; remove it")

    def __init__(self, config: Config, context: Context) -> None:
        super().__init__(config, context)
        self.paces = config.paces or tuple(1 + config.step * number for number in range(config.count))
        width = context.feature_dim
        if config.classification_weight > 0:
            self.head = head(width, len(self.paces), config.layers)
        if config.contrast != "none":
            layers = (nn.Linear(width, config.projection), nn.ReLU()) if config.projection else ()
            self.projector = nn.Sequential(*layers)

    def requests(self) -> Mapping[str, Request]:
        """Clips at the paces; jittered by frame, since the change from frame to frame would give the pace away."""
        read = 1 if self.config.views == "first" else (1, 2)
        clips = {"none": read, "same_context": 2, "same_pace": 1}[self.config.contrast]
        shared = False if self.config.contrast == "same_context" else ANY  # a video's two clips at paces of their own
        return {
            "clip": Request(
                clips=clips,
                strides=Strides(self.paces, shared=shared, short=self.config.short),
                appearance=Appearance("jittered", per="frame"),
                placement=ANY,
                boxes=ANY,
                flips=ANY,
                turns=ANY,
            )
        }

    def forward(self, batch: Batch) -> Terms:
        """Cross-entropy of the paces, and the contrast where it is asked for."""
        views = batch["clip"]
        losses, metrics = {}, {}
        if self.config.classification_weight > 0:
            loss, metrics["accuracy"] = self._classify(views[:1] if self.config.views == "first" else views)
            losses["classification"] = self.config.classification_weight * loss
        if self.config.contrast != "none":
            losses["contrast"] = self.config.contrast_weight * self._contrast(views, batch.index)
        return Terms(losses, metrics)

    def labels(self, view: View) -> Tensor:
        """(B,) the number of each clip's pace, `UNKNOWN` where the clip has a seam and such are masked."""
        distances = torch.stack([(view.windows.stride - float(pace)).abs() for pace in self.paces], dim=1)  # (B, paces)
        whole = view.windows.real[:, : view.clip.shape[2]].all(dim=1)  # the tail is not seen
        labels = distances.argmin(dim=1)
        return torch.where(whole, labels, UNKNOWN) if self.config.mask_wrapped else labels

    def _classify(self, views: tuple[View, ...]) -> tuple[Tensor, Tensor]:
        labels = torch.cat([self.labels(view) for view in views])  # (V*B,)
        logits = self.head(torch.cat([view.features.vector for view in views])).float()  # (V*B, paces)
        known = labels != UNKNOWN
        loss = mean(F.cross_entropy(logits, labels, ignore_index=UNKNOWN, reduction="none"), known)
        accuracy = mean((logits.argmax(dim=1) == labels).float(), known)
        return loss * (len(views) if self.config.views == "sum" else 1), accuracy

    def _contrast(self, views: tuple[View, ...], index: Tensor) -> Tensor:
        rows = torch.stack([self.projector(view.features.vector) for view in views], dim=1).flatten(0, 1)  # (B*V, D)
        keys = index if self.config.contrast == "same_context" else self.labels(views[0])  # (B,)
        return contrast(rows, keys.repeat_interleave(len(views)), self.config.reading)

    def pictures(self, batch: Batch, shots: Mapping[str, tuple[Shot, ...]]) -> Mapping[str, Any]:
        """The frames that each clip reads, on a line of time, and its pace."""
        from vssl_pace.pictures import draw

        labels = [int(self.labels(view)[0]) for view in batch["clip"]]
        told = [
            "no label" if label == UNKNOWN else f"label {label}: pace {self.paces[label]}, of {_listed(self.paces)}"
            for label in labels
        ]
        return {"paces": draw(shots["clip"], told)}


def _listed(paces: tuple[int | Fraction, ...]) -> str:
    return ", ".join(str(pace) for pace in paces)
