"""How clips look: the settings, the recipe of a request, and the draws of the loader workers. NumPy only, no torch."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Annotated, Literal

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, model_validator

Colour = Literal["jittered", "kept"]
Per = Literal["clip", "frame"]
Preset = Literal["none", "default", "strong", "cstp", "vivid", "mlrep", "soft"]
Probability = Annotated[float, Field(ge=0.0, le=1.0)]
Strength = Annotated[float, Field(ge=0.0, le=10.0, allow_inf_nan=False)]
Sigma = Annotated[float, Field(ge=0.0, le=100.0, allow_inf_nan=False)]

LUMA = np.array([0.299, 0.587, 0.114])  # ITU-R BT.601
# Rows Y, I, Q. The rows of I and Q sum to zero, so turning the I-Q plane moves neither gray nor luma.
YIQ = np.array([LUMA, [0.5959, -0.2746, -0.3213], [0.2115, -0.5227, 0.3112]])
YIQ_INVERSE = np.linalg.inv(YIQ)


@dataclass(frozen=True)
class Recipe:
    """The numbers by which a clip's appearance is drawn, nothing left open; `Recipe()` keeps the clip as it is."""

    brightness: float = 0.0
    contrast: float = 0.0
    saturation: float = 0.0
    hue: float = 0.0
    jitter_probability: float = 0.0
    gray_probability: float = 0.0
    gray: Literal["luma", "channel"] = "luma"
    gray_first: bool = False
    blur_sigma: tuple[float, float] = (0.1, 2.0)
    blur_probability: float = 0.0
    angle_degrees: float = 0.0
    gate_probability: float = 1.0
    exact_hue: bool = False
    per: Per = "clip"

    @property
    def changes_colour(self) -> bool:
        """Whether any draw can differ from the identity in colour."""
        jitter = self.jitter_probability > 0 and max(self.brightness, self.contrast, self.saturation, self.hue) > 0
        return self.gate_probability > 0 and (jitter or self.gray_probability > 0)

    @property
    def turns_hue_exactly(self) -> bool:
        """Whether the hue is turned in HSV, after the matrix, instead of in YIQ, inside it."""
        return self.changes_colour and self.exact_hue and self.hue > 0 and self.jitter_probability > 0

    @property
    def blurs(self) -> bool:
        """Whether any draw can blur."""
        return self.gate_probability > 0 and self.blur_probability > 0 and self.blur_sigma[1] > 0

    @property
    def tilts(self) -> bool:
        """Whether any draw can rotate by a small angle."""
        return self.gate_probability > 0 and self.angle_degrees > 0

    @property
    def keeps(self) -> bool:
        """Whether every draw leaves the clip as it is."""
        return not (self.changes_colour or self.blurs or self.tilts)


PRESETS: dict[str, Recipe] = {
    "none": Recipe(),
    "default": Recipe(0.4, 0.4, 0.4, 0.1, jitter_probability=0.8, gray_probability=0.2),
    "strong": Recipe(0.6, 0.6, 0.6, 0.15, jitter_probability=0.8, gray_probability=0.2, blur_probability=0.5),
    "cstp": Recipe(
        0.4, 0.4, 0.4, 0.1, jitter_probability=0.8, gray_probability=0.2, gray="channel", blur_probability=0.5,
        angle_degrees=10.0, gate_probability=0.3,
    ),
    "vivid": Recipe(0.8, 0.8, 0.8, 0.2, jitter_probability=0.8),
    "mlrep": Recipe(
        0.5, 0.5, 0.5, 0.25, jitter_probability=1.0, gray_probability=0.5, gray="channel", gray_first=True
    ),
    "soft": Recipe(0.4, 0.4, 0.4, 0.1, jitter_probability=0.8, blur_probability=0.5),
}  # fmt: skip


# What has no effect while its probability is zero.
_DEPENDENT = {
    "jitter_probability": ("brightness", "contrast", "saturation", "hue", "exact_hue"),
    "gray_probability": ("gray", "gray_first"),
    "blur_probability": ("blur_sigma",),
}


class AppearanceSettings(BaseModel):
    """How the run's clips look: a preset, and what differs from it (a value left out is the preset's)."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    preset: Preset = Field("default", description="strengths to start from; none keeps clips as they are")
    per: Per = Field("clip", description="one colour for all frames of a clip, or one for each frame")
    brightness: Strength | None = Field(None, description="factor drawn from 1 - x to 1 + x, not below 0")
    contrast: Strength | None = Field(None, description="factor drawn from 1 - x to 1 + x, not below 0")
    saturation: Strength | None = Field(None, description="factor drawn from 1 - x to 1 + x, not below 0")
    hue: Annotated[float, Field(ge=0.0, le=0.5)] | None = Field(None, description="drawn from -x to x, in full turns")
    jitter_probability: Probability | None = Field(None, description="how often the four above are applied")
    gray_probability: Probability | None = Field(None, description="how often the colour is taken away")
    gray: Literal["luma", "channel"] | None = Field(None, description="gray is the luma, or a copy of one channel")
    gray_first: bool | None = Field(None, description="gray before the jitter instead of after it")
    blur_sigma: tuple[Sigma, Sigma] | None = Field(None, description="lowest and highest, in pixels of the clip")
    blur_probability: Probability | None = Field(None, description="how often a clip is blurred")
    angle_degrees: Annotated[float, Field(ge=0.0, le=180.0)] | None = Field(
        None, description="the clip is rotated by an angle drawn from -x to x"
    )
    gate_probability: Probability | None = Field(None, description="how often a clip's appearance changes at all")
    exact_hue: bool | None = Field(None, description="turn the hue in HSV (several times slower) instead of YIQ")

    @model_validator(mode="after")
    def _blur_sigma_ascends(self) -> AppearanceSettings:
        if self.blur_sigma is not None and self.blur_sigma[0] > self.blur_sigma[1]:
            raise ValueError(f"blur_sigma: the lowest comes first, given {list(self.blur_sigma)}; swap the two")
        return self

    @model_validator(mode="after")
    def _given_numbers_are_used(self) -> AppearanceSettings:
        given = self.model_dump(exclude_none=True)
        for probability, names in _DEPENDENT.items():
            unused = [name for name in names if given.get(name)]
            if unused and probability not in given and getattr(PRESETS[self.preset], probability) == 0:
                raise ValueError(
                    f"{unused[0]}: has no effect while preset {self.preset} has {probability} 0; give {probability} too"
                )
        return self

    @property
    def colour(self) -> Colour:
        """What a request without a wish of its own gets: kept where these settings change no pixel."""
        return "kept" if _numbers(self).keeps else "jittered"


def resolve(settings: AppearanceSettings, colour: Colour, per: Per) -> Recipe:
    """The recipe of one request: the settings' numbers, or none at all where the colour is to be kept.

    Settings that keep the clip (preset none) give a request that needs jitter the strengths of preset default.
    """
    if colour == "kept":
        return Recipe(per=per)
    return replace(PRESETS["default"] if settings.colour == "kept" else _numbers(settings), per=per)


def draw(recipe: Recipe, generator: np.random.Generator, frames: int) -> dict[str, np.ndarray]:
    """One clip's colour (frames, 3, 6), blur () in pixels and angle () in degrees counter-clockwise, all float32.

    A row of colour is [A | M]: y = A x + M mean, with x the pixel and mean the mean colour of its clip, or of its frame
    where recipe.per is "frame". Where the hue is turned exactly there is also hue (frames,), in full turns. Keys,
    shapes and how many random numbers are used depend on the recipe and `frames` alone, and the frames that two lengths
    have in common get the same numbers.
    """
    if recipe.keeps:
        return _unchanged(frames)
    gate, blurred, sigma, angle = generator.random(4)
    rows = generator.random((frames if recipe.per == "frame" else 1, 7))
    open_gate = gate < recipe.gate_probability
    low, high = recipe.blur_sigma
    blur = low + (high - low) * sigma if open_gate and blurred < recipe.blur_probability else 0.0
    tilt = recipe.angle_degrees * (2 * angle - 1) if open_gate else 0.0
    hue = np.where(open_gate & (rows[:, 0] < recipe.jitter_probability), recipe.hue * (2 * rows[:, 4] - 1), 0.0)
    changes = open_gate and recipe.changes_colour
    colour = _colour_matrices(recipe, rows, hue) if changes else np.tile(np.eye(3, 6), (len(rows), 1, 1))
    parameters = {
        "colour": np.broadcast_to(colour, (frames, 3, 6)).astype(np.float32),
        "blur": np.float32(blur),
        "angle": np.float32(tilt),
    }
    if recipe.turns_hue_exactly:
        parameters["hue"] = np.broadcast_to(hue, (frames,)).astype(np.float32)
    return {name: np.asarray(value) for name, value in parameters.items()}


def _unchanged(frames: int) -> dict[str, np.ndarray]:
    colour = np.broadcast_to(np.eye(3, 6, dtype=np.float32), (frames, 3, 6))
    return {"colour": colour, "blur": np.zeros((), np.float32), "angle": np.zeros((), np.float32)}


def _numbers(settings: AppearanceSettings) -> Recipe:
    """The numbers of the preset, with those that the settings give in their place."""
    return replace(PRESETS[settings.preset], **settings.model_dump(exclude={"preset", "per"}, exclude_none=True))


def _colour_matrices(recipe: Recipe, rows: np.ndarray, hue: np.ndarray) -> np.ndarray:
    """[A | M] for each row of seven uniform numbers and its hue in full turns: (N, 7), (N,) -> (N, 3, 6).

    The four steps keep or scale luma and chroma apart, so without a clamp between them they commute: there is no order
    to draw.
    """
    strengths = np.array([recipe.brightness, recipe.contrast, recipe.saturation])
    lowest = np.maximum(0.0, 1.0 - strengths)
    brightness, contrast, saturation = (lowest + (1.0 + strengths - lowest) * rows[:, 1:4]).T
    chroma = _chroma_matrices(saturation, np.zeros_like(hue) if recipe.turns_hue_exactly else hue)
    pixel = (brightness * contrast)[:, None, None] * chroma
    mean = (brightness * (1.0 - contrast))[:, None, None] * np.ones((3, 1)) * LUMA
    jitter = np.concatenate([pixel, mean], axis=2)
    jitter = np.where((rows[:, 0] < recipe.jitter_probability)[:, None, None], jitter, np.eye(3, 6))
    gray = _gray_matrices(recipe, rows[:, 5], rows[:, 6])
    if recipe.gray_first:
        return np.concatenate([jitter[:, :, :3] @ gray, jitter[:, :, 3:] @ gray], axis=2)
    return gray @ jitter


def _chroma_matrices(saturation: np.ndarray, hue: np.ndarray) -> np.ndarray:
    """The I-Q plane stretched, and turned from red towards green for a positive hue: (N,), (N,) -> (N, 3, 3)."""
    cosine, sine = saturation * np.cos(2 * np.pi * hue), saturation * np.sin(2 * np.pi * hue)
    chroma = np.zeros((len(hue), 3, 3))
    chroma[:, 0, 0] = 1.0
    chroma[:, 1, 1] = chroma[:, 2, 2] = cosine
    chroma[:, 1, 2], chroma[:, 2, 1] = sine, -sine
    return YIQ_INVERSE @ chroma @ YIQ


def _gray_matrices(recipe: Recipe, chance: np.ndarray, channel: np.ndarray) -> np.ndarray:
    """Luma or one channel copied to all three where the chance falls, else the identity: (N,), (N,) -> (N, 3, 3)."""
    weights = np.eye(3)[(3 * channel).astype(int)] if recipe.gray == "channel" else np.tile(LUMA, (len(chance), 1))
    gray = np.repeat(weights[:, None], 3, axis=1)
    return np.where((chance < recipe.gray_probability)[:, None, None], gray, np.eye(3))
