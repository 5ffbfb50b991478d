"""The options of multi-level feature optimisation, and what follows where the paper and its released code differ."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field, field_validator, model_validator

from vssl_core import PluginConfig

Weights = tuple[float, float, float]  # of the low, the middle and the high level
Change = Literal["reverse", "shuffle"]

LEVELS = ("low", "mid", "high")
VARIANTS: dict[str, dict[str, Any]] = {
    "paper": {
        "graph_weights": (0.3, 0.5, 0.0),
        "target_views": "both",
        "graph_views": "both",
        "changes": ("reverse", "shuffle"),
        "negatives": "own",
    },
    "official": {
        "graph_weights": (0.3, 0.5, 1.0),
        "target_views": "one_way",
        "graph_views": "one_way",
        "changes": ("reverse",),
        "negatives": "batch",
    },
}
PAPER = VARIANTS["paper"]


class Options(PluginConfig):
    """Options of multi-level feature optimisation."""

    variant: Literal["paper", "official"] = Field(
        "paper", description="whose graph_weights, target_views, graph_views, changes and negatives are the defaults"
    )
    low: str | None = Field(None, description="stage of the low level; null: the last but two")
    mid: str | None = Field(None, description="stage of the middle level; null: the last but one")
    high: str | None = Field(None, description="stage of the high level; null: the last")
    strides: tuple[float, float] = Field((1.0, 3.0), description="lowest and highest stride, drawn evenly, one a video")
    area: tuple[float, float] = Field((0.5, 1.0), description="share of the frame that each clip shows")
    projection: int = Field(128, ge=1, description="size of what all heads give")
    temperature: float = Field(0.07, ge=1e-3, le=1e3, description="cosines are divided by it, in all contrasts")

    semantic_weight: float = Field(0.5, ge=0, description="weight of predicting the other half's assignment")
    prototypes: int | None = Field(None, ge=2, description="null: 1000, or a tenth of the videos if less")
    prediction_temperature: float = Field(0.1, ge=1e-3, le=1e3, description="of the prediction of assignments")
    epsilon: float = Field(0.05, ge=0.01, le=10, description="of the assignment: small makes it hard")
    iterations: int = Field(3, ge=1, le=100, description="of Sinkhorn-Knopp")
    queue: int | None = Field(
        None,
        ge=0,
        description="videos that are assigned together, earlier ones with the step's; null: 1024, or the multiple of "
        "the batch that the training list holds; 0: the step's alone",
    )
    queue_epoch: int | None = Field(
        None, ge=0, description="earlier videos take part from this epoch on; null: 10, or a tenth of the run if less"
    )
    frozen_epochs: int = Field(1, ge=0, description="epochs, from the first, in which prototypes are not trained")

    graph: Literal["combined", "instance", "semantic", "one_hot"] = Field(
        "combined", description="which videos levels are drawn together by: alike, of one prototype, both, or neither"
    )
    graph_weights: Weights = Field(PAPER["graph_weights"], description="of the graph's terms at low, mid and high")
    threshold: float = Field(
        0.05, ge=0, le=1, description="eta: edges with a smaller share of a video's likeness are cut"
    )
    target_views: Literal["both", "one_way"] = Field(
        PAPER["target_views"], description="likeness of videos: mean over all pairs of clips, or first to second only"
    )
    graph_views: Literal["both", "one_way"] = Field(
        PAPER["graph_views"], description="what is drawn to the graph: both clips, or the first towards second ones"
    )
    first_stage: float = Field(
        0.15, ge=0, le=1, description="share of the run's epochs before the graph is in force: the first of two stages"
    )

    temporal: Literal["features", "input", "none"] = Field(
        "features", description="order is changed in features, in clips (the conventional way), or not at all"
    )
    temporal_weights: Weights = Field((0.3, 0.5, 1.0), description="of the temporal terms at low, mid and high")
    changes: tuple[Change, ...] = Field(PAPER["changes"], min_length=1, description="how the order is changed")
    negatives: Literal["own", "batch"] = Field(
        PAPER["negatives"],
        description="what a clip is told from: its own changed order, or both clips' and all other videos",
    )
    overview: Literal["sparse", "dense"] = Field(
        "sparse", description="of both halves: every second frame, as many as a half has, or all, twice as many"
    )
    retrieval: Literal["both", "short"] = Field(
        "both", description="find timestamps in the overview and the overview's in the halves, or the first alone"
    )
    reduction: int = Field(16, ge=1, description="motion excitation looks at the channels divided by this")

    @model_validator(mode="before")
    @classmethod
    def _as_the_variant_says(cls, given: Any) -> Any:
        variant = given.get("variant", "paper") if isinstance(given, dict) else None
        return {**VARIANTS[variant], **given} if variant in ("paper", "official") else given

    @field_validator("strides")
    @classmethod
    def _strides_ascend(cls, value: tuple[float, float]) -> tuple[float, float]:
        if not 1 <= value[0] <= value[1]:
            raise ValueError("must be (lowest, highest), from 1 on")
        return value

    @field_validator("area")
    @classmethod
    def _a_share(cls, value: tuple[float, float]) -> tuple[float, float]:
        if not 0 < value[0] <= value[1] <= 1:
            raise ValueError("must be (lowest, highest) with 0 < lowest <= highest <= 1")
        return value

    @field_validator("graph_weights", "temporal_weights")
    @classmethod
    def _not_negative(cls, value: Weights) -> Weights:
        if min(value) < 0:
            raise ValueError("weights are not below 0")
        return value

    @field_validator("changes")
    @classmethod
    def _different(cls, value: tuple[Change, ...]) -> tuple[Change, ...]:
        if len(set(value)) < len(value):
            raise ValueError("names a change twice")
        return value

    @model_validator(mode="after")
    def _consistent(self) -> Options:
        if self.semantic_weight == 0 and any(self.graph_weights) and self.graph in ("combined", "semantic"):
            raise ValueError(
                f"graph {self.graph} needs prototypes, which are not trained with semantic_weight 0; "
                "choose graph instance or one_hot, or a semantic_weight"
            )
        if self.temporal != "features":
            self._refuse(("overview", "retrieval"))
        if self.temporal == "none":
            self._refuse(("temporal_weights", "changes", "negatives"))
        return self

    def _refuse(self, keys: tuple[str, ...]) -> None:
        for key in keys:
            default = VARIANTS[self.variant].get(key, type(self).model_fields[key].default)
            if getattr(self, key) != default:
                raise ValueError(f"{key} has no effect with temporal: {self.temporal}; remove it")
