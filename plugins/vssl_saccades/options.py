"""The options of saccades, and the choices of the released code where they differ from the paper."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

from pydantic import Field, model_validator

from vssl_core import PluginConfig

OFFICIAL: Mapping[str, Any] = {
    "mask": "residual",
    "mask_space": "frame",
    "siblings": "sampled",
    "projection": 512,
    "project_states": True,
    "mix_fixations": True,
}


class Options(PluginConfig):
    """Options of saccades; `variant: official` changes the defaults of those that are named in `OFFICIAL`."""

    variant: Literal["paper", "official"] = Field(
        "paper", description="whose choices the options below have where you say nothing: the paper's, or its code's"
    )
    fixations: Literal[5, 9] = Field(5, description="parts of the picture: quarters and centre, or a 3x3 grid")
    area: float = Field(0.25, gt=0, le=1, description="share of the picture that a fixation shows, before the border")
    mask: Literal["multiply", "residual", "none"] = Field(
        "multiply", description="outside a fixation clips are zero; or inside twice as strong; or not masked at all"
    )
    mask_space: Literal["clip", "crop", "frame"] = Field(
        "clip",
        description="fixations are parts of the clip, of its crop before that is mirrored, or of the whole frame",
    )
    maps: str | None = Field(
        None, description="file of saliency maps that choose the fixations; null: each is shown once at each moment"
    )
    perturbation: float = Field(
        0.5, ge=0, le=1, description="how often a fixation is drawn although maps have chosen one"
    )
    temperature: float = Field(
        0.07,
        ge=1e-3,
        le=1e3,
        description="cosines with slots are divided by it; the mean concentration of clusters",
    )
    negatives: int | None = Field(
        None, ge=1, description="slots, and clusters, that a clip is told from; null: 1024, or all others if fewer"
    )
    siblings: Literal["always", "sampled", "never"] = Field(
        "always", description="whether the other slots of the own video are negatives; sampled: as any other slot"
    )
    positive: Literal["bank", "view"] = Field("bank", description="what a clip finds: its slot, or its other clip")
    slots: Literal["fixation", "video"] = Field("fixation", description="what a slot of the bank stands for")
    bank: Literal["replicated", "sharded"] = Field(
        "replicated", description="each rank's device holds the whole bank, or a share of it"
    )
    bank_precision: Literal["float32", "float16"] = Field("float32", description="how the bank keeps its rows")
    momentum: float = Field(0.5, ge=0, le=1, description="share of a slot that comes from its latest clips")
    projection: int | None = Field(
        None, ge=1, description="size of a linear layer before the bank and the clusters; null: none"
    )
    projection_learning_rate: float = Field(1e-3, gt=0, le=1e3, description="of that layer, times the run's")
    prediction_weight: float = Field(1.0, ge=0, description="of the prediction error; 0: left out")
    stage: str | None = Field(None, description="stage of the backbone that is predicted; null: the last one")
    attention_power: float = Field(1.0, gt=0, le=16, description="the likeness of two places is raised to it")
    unit_values: bool = Field(True, description="what is attended to has unit length at each place")
    project_states: bool = Field(False, description="a linear layer before states are compared and predicted")
    mix_fixations: bool = Field(False, description="all fixations of a moment are one state")
    reorganisation_weight: float = Field(1.0, ge=0, description="of the contrast with clusters; 0: left out")
    reorganise_from: int | None = Field(
        None, ge=0, description="epoch, from 0, of the first clustering; null: at five sixths of the run"
    )
    clusters: tuple[int, ...] | None = Field(
        None,
        min_length=1,
        max_length=16,
        description="number of clusters of each clustering; null: three of 1500, or a thirtieth of the slots",
    )
    every: int = Field(5, ge=1, description="epochs from one clustering to the next")
    smoothing: float = Field(10.0, ge=1, le=1e6, description="keeps small clusters from looking tight")
    iterations: int = Field(20, ge=1, le=1000, description="of k-means")
    restarts: int = Field(5, ge=1, le=100, description="of k-means, of which the best is taken")

    @model_validator(mode="before")
    @classmethod
    def _of_the_variant(cls, given: Any) -> Any:
        official = isinstance(given, Mapping) and given.get("variant") == "official"
        return {**OFFICIAL, **given} if official else given

    @model_validator(mode="after")
    def _can_be_meant(self) -> Options:
        if self.mask_space == "frame" and self.mask != "residual":
            raise ValueError("mask_space: frame leaves clips empty that miss the fixation; add mask: residual")
        if self.slots == "video" and self.mask != "none":
            raise ValueError("slots: video gives different parts one slot; add mask: none, or leave it out")
        if self.maps and self.mask == "none":
            raise ValueError("maps has no effect with mask: none; remove it")
        return self
