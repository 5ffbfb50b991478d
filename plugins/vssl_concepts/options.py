"""The options of the concepts, and the choices of the paper's released code where they differ from the paper."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

from pydantic import Field, model_validator

from vssl_core import ConfigError, Context, PluginConfig

PUBLISHED_CONCEPTS = 50
PUBLISHED_QUEUE = 1024
PUBLISHED_WARMUP = 5

OFFICIAL: Mapping[str, Any] = {
    "clips": 2,
    "still": "own",
    "strides": (1.0, 3.0),
    "transform": "mlp",
    "alignment": "all",
    "diversity": "mismatch",
    "diversity_factor": 0.1,
    "fidelity": "cosine",
    "attention": "competing",
    "pairs": "within",
    "selection": "joint",
    "warmup_epochs": 10,
    "contrast": True,
}


class Options(PluginConfig):
    """Options of the concepts; `variant: official` changes the defaults of those that are named in `OFFICIAL`."""

    variant: Literal["paper", "official"] = Field(
        "paper", description="whose choices the options below have where you say nothing: the paper's, or its code's"
    )
    static_concepts: int | None = Field(
        None,
        ge=2,
        description="prototypes of what stands still; null: 50, or a quarter of the features where that is less",
    )
    dynamic_concepts: int | None = Field(None, ge=2, description="prototypes of what moves; null: as above")
    stage: str | None = Field(None, description="stage of the backbone that is read; null: the last")
    clips: int = Field(
        1, ge=1, le=4, description="clips of each video, each in all three inputs (code: 2, which follow each other)"
    )
    still: Literal["clip", "own"] = Field(
        "clip", description="the frame that stands still is one of the clip's, or one of its own crop and colour (code)"
    )
    strides: tuple[float, float] | None = Field(
        None, description="lowest and highest stride, drawn evenly for each video (code: 1 to 3); null: the run's"
    )
    transform: Literal["identity", "mlp"] = Field(
        "identity", description="what features go through before they meet the prototypes (code: mlp)"
    )
    temperature: float = Field(0.1, ge=1e-3, le=1e3, description="codes are divided by it to become a distribution")
    epsilon: float = Field(0.05, ge=0.01, le=10, description="of the assignment: small makes it hard")
    iterations: int = Field(3, ge=1, le=100, description="of Sinkhorn-Knopp")
    queue: int | None = Field(
        None,
        ge=0,
        description="videos whose earlier codes are assigned along; null: 1024, or the multiple of the batch that the "
        "training list holds; 0: none",
    )
    queue_epoch: int = Field(1, ge=0, description="the queue takes part from this epoch on")
    frozen_epochs: int = Field(1, ge=0, description="epochs, from the first, in which prototypes are not trained")
    alignment: Literal["cross", "all"] = Field(
        "cross",
        description="cross: video with still frame and with differences, both ways, summed; all: the mean over all "
        "ordered pairs of inputs that share a kind of concept (code)",
    )
    diversity: Literal["l1", "mismatch"] = Field(
        "l1",
        description="l1: the size of all codes; mismatch: the negative entropy of static codes of differences and of "
        "dynamic codes of still frames (code)",
    )
    diversity_factor: float = Field(0.01, ge=0, description="of the diversity term; 0: none")
    fidelity: Literal["unit", "l2_raw", "cosine"] = Field(
        "unit",
        description="distance of features from what their code rebuilds: squared between unit vectors, squared as they "
        "are, or the negative cosine (code)",
    )
    fidelity_factor: float = Field(1.0, ge=0, description="of the fidelity term; 0: none")
    attention: Literal["residual", "competing"] = Field(
        "residual", description="residual: softmax over places; competing: softmax over concepts (code)"
    )
    local_factor: float = Field(1.0, ge=0, description="of the local term; 0: none, and no attention")
    warmup_epochs: int | None = Field(
        None, ge=0, description="epochs before the local term; null: 5, or a quarter of the run where that is less"
    )
    valid: float = Field(0.1, gt=0, le=1, description="share of the concepts that a code says are there")
    selection: Literal["half", "joint"] = Field(
        "half", description="a video's concepts are selected among those of each kind, or among all (code)"
    )
    margin: float = Field(
        1.4, ge=0, le=2, description="distance of unit vectors beyond which other videos are let alone"
    )
    pairs: Literal["cross", "within"] = Field(
        "cross",
        description="local features are contrasted between video and still frame, video and differences, or between "
        "two clips in the same input (code; needs two clips)",
    )
    contrast: bool = Field(False, description="instance discrimination between inputs beside all that (code)")
    contrast_temperature: float = Field(0.07, ge=1e-3, le=1e3, description="of that")

    @model_validator(mode="before")
    @classmethod
    def _of_the_variant(cls, given: Any) -> Any:
        official = isinstance(given, Mapping) and given.get("variant") == "official"
        return {**OFFICIAL, **given} if official else given

    @model_validator(mode="after")
    def _possible(self) -> Options:
        if self.pairs == "within" and self.clips < 2 and self.local_factor:
            raise ValueError(f"pairs: within compares clips of a video, and clips is {self.clips}; take at least 2")
        if self.strides is not None and not 0 < self.strides[0] <= self.strides[1]:
            raise ValueError(f"strides must be (low, high) with 0 < low <= high, got {self.strides}")
        return self


def concepts_of(options: Options, features: int, context: Context) -> tuple[int, int]:
    """How many static and dynamic concepts; `ConfigError` for more than there are features."""
    default = max(min(PUBLISHED_CONCEPTS, features // 4), 2)
    static, dynamic = options.static_concepts or default, options.dynamic_concepts or default
    if static + dynamic > features:
        raise ConfigError(
            f"plugins.{context.name}.static_concepts, dynamic_concepts: {static} and {dynamic} concepts are more than "
            f"the {features} features they shall describe in few words; choose at most {features} together, or null"
        )
    return static, dynamic


def warmup_of(options: Options, context: Context) -> int:
    """The first epoch of the local term."""
    return min(PUBLISHED_WARMUP, context.epochs // 4) if options.warmup_epochs is None else options.warmup_epochs
