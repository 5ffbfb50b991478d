"""Colour, blur and small rotations: drawn per sample in the loader worker, applied to whole batches on the device."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Annotated, Literal

import numpy as np
import torch
from pydantic import BaseModel, ConfigDict, Field, model_validator
from torch import Tensor

Colour = Literal["jittered", "kept"]
Per = Literal["clip", "frame"]
Preset = Literal["none", "default", "simclr", "cstp", "pace", "mlrep", "saccades"]
Probability = Annotated[float, Field(ge=0.0, le=1.0)]
Strength = Annotated[float, Field(ge=0.0, le=10.0, allow_inf_nan=False)]
Sigma = Annotated[float, Field(ge=0.0, le=100.0, allow_inf_nan=False)]

LUMA = np.array([0.299, 0.587, 0.114])  # ITU-R BT.601
# Rows Y, I, Q. The rows of I and Q sum to zero, so turning the I-Q plane moves neither gray nor luma.
YIQ = np.array([LUMA, [0.5959, -0.2746, -0.3213], [0.2115, -0.5227, 0.3112]])
YIQ_INVERSE = np.linalg.inv(YIQ)


@dataclass(frozen=True)
class Normalisation:
    """What a net expects of its input: (x / 255 - mean) / deviation per channel, for x from 0 to 255."""

    name: str
    mean: tuple[float, float, float]
    deviation: tuple[float, float, float]

    def affine(self, channel: int) -> tuple[float, float]:
        """Scale and shift that take a value of [0, 1] to the net's range."""
        return 1.0 / self.deviation[channel], -self.mean[channel] / self.deviation[channel]


NORMALISATIONS: dict[str, Normalisation] = {
    normalisation.name: normalisation
    for normalisation in (
        Normalisation("imagenet", (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
        Normalisation("minus1_1", (0.5, 0.5, 0.5), (0.5, 0.5, 0.5)),
        Normalisation("raw255", (0.0, 0.0, 0.0), (1 / 255, 1 / 255, 1 / 255)),
    )
}


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


PRESETS: dict[str, Recipe] = {
    "none": Recipe(),
    "default": Recipe(0.4, 0.4, 0.4, 0.1, jitter_probability=0.8, gray_probability=0.2),
    "simclr": Recipe(0.6, 0.6, 0.6, 0.15, jitter_probability=0.8, gray_probability=0.2, blur_probability=0.5),
    "cstp": Recipe(
        0.4, 0.4, 0.4, 0.1, jitter_probability=0.8, gray_probability=0.2, gray="channel", blur_probability=0.5,
        angle_degrees=10.0, gate_probability=0.3,
    ),
    "pace": Recipe(0.8, 0.8, 0.8, 0.2, jitter_probability=0.8),
    "mlrep": Recipe(
        0.5, 0.5, 0.5, 0.25, jitter_probability=1.0, gray_probability=0.5, gray="channel", gray_first=True
    ),
    "saccades": Recipe(0.4, 0.4, 0.4, 0.1, jitter_probability=0.8, blur_probability=0.5),
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
        recipe = _numbers(self)
        return "jittered" if recipe.changes_colour or recipe.blurs or recipe.tilts else "kept"


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
    gate, blurred, sigma, angle = generator.random(4)
    rows = generator.random((frames if recipe.per == "frame" else 1, 7))
    open_gate = gate < recipe.gate_probability
    low, high = recipe.blur_sigma
    blur = low + (high - low) * sigma if open_gate and blurred < recipe.blur_probability else 0.0
    tilt = recipe.angle_degrees * (2 * angle - 1) if open_gate else 0.0
    hue = np.where(open_gate & (rows[:, 0] < recipe.jitter_probability), recipe.hue * (2 * rows[:, 4] - 1), 0.0)
    colour = _colour_matrices(recipe, rows, hue) if open_gate else np.tile(np.eye(3, 6), (len(rows), 1, 1))
    parameters = {
        "colour": np.broadcast_to(colour, (frames, 3, 6)).astype(np.float32),
        "blur": np.float32(blur),
        "angle": np.float32(tilt),
    }
    if recipe.turns_hue_exactly:
        parameters["hue"] = np.broadcast_to(hue, (frames,)).astype(np.float32)
    return {name: np.asarray(value) for name, value in parameters.items()}


def apply(
    clip: Tensor, parameters: Mapping[str, Tensor], recipe: Recipe, normalisation: Normalisation, tail: int = 0
) -> Tensor:
    """The clips as the net reads them: uint8 (B, T, H, W, 3), parameters (B, ...) -> float32 (B, 3, T, H, W).

    The order is colour, clamp to [0, 1], angle, blur; the normalisation is folded in. Brightness, contrast, saturation,
    hue and gray are one matrix and one clamp. torchvision differs: it clamps (and, on uint8, rounds) after every step,
    which is what makes its random order matter, takes contrast about the mean of each frame, and turns the hue in HSV.
    Here contrast is about the mean of the whole clip, so that it does not flicker, and hue is a rotation in YIQ, which
    keeps the luma; `exact_hue` turns it in HSV, after all else. The last `tail` frames look like the others and do not
    count in the mean of the clip.

    A row does not notice its batch: colour and angle are equal bit for bit in any batch; blur, a matrix product per
    clip, to 1e-5 of the range at worst, since the library beneath may sum in another order (and no finer than
    torch.set_float32_matmul_precision allows). Which steps run depends on the recipe alone; a clip whose draw spares
    the angle or the blur passes that step with the very same values.
    """
    with torch.autocast(clip.device.type, enabled=False):
        planes = _planes(clip)  # (B, 3, T, H, W), 0 to 255
        if recipe.turns_hue_exactly:
            unit = _recolour(planes, parameters["colour"], recipe.per, tail, _UNIT)
            planes = _turn_hue(unit, parameters["hue"])
            planes = _scale(planes, normalisation, 1.0)
        elif recipe.changes_colour:
            planes = _recolour(planes, parameters["colour"], recipe.per, tail, normalisation)
        else:
            planes = _scale(planes, normalisation, 255.0)
        # Both steps below average neighbours with weights that sum to one, so they commute with the normalisation.
        if recipe.tilts:
            planes = _tilt(planes, parameters["angle"])
        if recipe.blurs:
            planes = _blur(planes, parameters["blur"])
    return planes


def normalise_only(clip: Tensor, normalisation: Normalisation) -> Tensor:
    """The clips as the net reads them, nothing changed: uint8 (B, T, H, W, 3) -> float32 (B, 3, T, H, W)."""
    return _scale(_planes(clip), normalisation, 255.0)


def _numbers(settings: AppearanceSettings) -> Recipe:
    """The numbers of the preset, with those that the settings give in their place."""
    return replace(PRESETS[settings.preset], **settings.model_dump(exclude={"preset", "per"}, exclude_none=True))


_UNIT = Normalisation("unit", (0.0, 0.0, 0.0), (1.0, 1.0, 1.0))


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


def _planes(clip: Tensor) -> Tensor:
    # Moving bytes and then converting is twenty times faster on a CPU than converting while moving.
    return clip.permute(0, 4, 1, 2, 3).contiguous().float()  # (B, T, H, W, 3) -> (B, 3, T, H, W)


def _scale(planes: Tensor, normalisation: Normalisation, highest: float) -> Tensor:
    """Normalises in place: values from 0 to `highest` -> the net's range."""
    for channel in range(3):
        scale, shift = normalisation.affine(channel)
        planes[:, channel].mul_(scale / highest).add_(shift)
    return planes


def _mean_colour(planes: Tensor, per: Per, tail: int) -> Tensor:
    """Mean colour from 0 to 1, (B, T, 3) float64, T = 1 for a whole clip.

    Sums of whole numbers below 2**24 are exact in float32, so the mean does not depend on the order of summation.
    """
    frames, height, width = planes.shape[2:]
    sums = planes.sum(-1).double().sum(-1).transpose(1, 2)  # (B, T, 3)
    if per == "clip":
        sums = sums[:, : frames - tail].sum(1, keepdim=True) / (frames - tail)
    return sums / (255.0 * height * width)


def _recolour(planes: Tensor, colour: Tensor, per: Per, tail: int, normalisation: Normalisation) -> Tensor:
    """y = A x + M mean, clamped and normalised in one pass: (B, 3, T, H, W), (B, T, 3, 6) -> (B, 3, T, H, W).

    Plain products and sums, not a batched matrix product: as fast here, never in reduced precision, and a row does not
    notice its batch.
    """
    colour, mean = colour.double(), _mean_colour(planes, per, tail)
    result = torch.empty_like(planes)
    for channel in range(3):
        scale, shift = normalisation.affine(channel)
        red, green, blue, *of_mean = (colour[:, :, channel] * scale).unbind(-1)  # six of (B, T)
        constant = of_mean[0] * mean[..., 0] + of_mean[1] * mean[..., 1] + of_mean[2] * mean[..., 2] + shift
        out = result[:, channel]
        torch.addcmul(_per_frame(constant), planes[:, 0], _per_frame(red / 255.0), out=out)
        out.addcmul_(planes[:, 1], _per_frame(green / 255.0)).addcmul_(planes[:, 2], _per_frame(blue / 255.0))
        out.clamp_(shift, scale + shift)
    return result


def _per_frame(values: Tensor) -> Tensor:
    return values.float()[..., None, None]  # (B, T) -> (B, T, 1, 1)


def _turn_hue(unit: Tensor, hue: Tensor) -> Tensor:
    """The hue turned in HSV by full turns (B, T), gray left alone: (B, 3, T, H, W) in [0, 1] -> the same shape."""
    value, chroma, sector = _hexcone(unit)
    sector = sector + 6.0 * hue[:, :, None, None]
    turned = torch.empty_like(unit)
    for channel, offset in enumerate((5.0, 3.0, 1.0)):
        place = torch.remainder(sector + offset, 6.0)
        turned[:, channel] = value - chroma * torch.minimum(place, 4.0 - place).clamp_(0.0, 1.0)
    return torch.where((hue != 0)[:, None, :, None, None], turned, unit)


def _hexcone(unit: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Value, chroma and the hue in sixths of a turn of HSV's hexcone: (B, 3, T, H, W) -> three of (B, T, H, W)."""
    red, green, blue = unit.unbind(1)
    value, chroma = unit.amax(1), unit.amax(1) - unit.amin(1)
    divisor = torch.where(chroma > 0, chroma, torch.ones_like(chroma))
    sector = torch.where(
        value == red,
        (green - blue) / divisor,
        torch.where(value == green, 2.0 + (blue - red) / divisor, 4.0 + (red - green) / divisor),
    )
    return value, chroma, sector


def _tilt(planes: Tensor, angle: Tensor) -> Tensor:
    """All frames of a clip rotated about its centre by one angle, the border mirrored: (B, 3, T, H, W), (B,)."""
    batch, channels, frames, height, width = planes.shape
    x = torch.arange(width, device=planes.device, dtype=torch.float32) - (width - 1) / 2
    y = torch.arange(height, device=planes.device, dtype=torch.float32)[:, None] - (height - 1) / 2
    radians = torch.deg2rad(angle.double())[:, None, None]  # float64, so that rounding is the same in any batch
    cosine, sine = torch.cos(radians).float(), torch.sin(radians).float()
    # Where each pixel comes from, in grid_sample's units: -1 and 1 are the outer edges of the first and last pixel.
    source = torch.stack([(cosine * x - sine * y) * (2 / width), (sine * x + cosine * y) * (2 / height)], -1)
    flat = planes.view(batch, channels * frames, height, width)
    tilted = torch.nn.functional.grid_sample(flat, source, padding_mode="reflection", align_corners=False)
    return torch.where((angle != 0)[:, None, None, None, None], tilted.view_as(planes), planes)


def _blur(planes: Tensor, sigma: Tensor) -> Tensor:
    """Gaussian blur over height and width, at the border over the pixels there are: (B, 3, T, H, W), (B,) in pixels."""
    batch, channels, frames, height, width = planes.shape
    rows = planes.view(batch, -1, width) @ _gaussian_weights(sigma, width).transpose(1, 2)  # (B, 3 T H, W)
    rows = rows.view(batch, channels * frames, height, width)
    blurred = _gaussian_weights(sigma, height)[:, None] @ rows  # (B, 3 T, H, W)
    return torch.where((sigma > 0)[:, None, None, None, None], blurred.view_as(planes), planes)


def _gaussian_weights(sigma: Tensor, size: int) -> Tensor:
    """How much pixel j adds to pixel i: (B,) -> (B, size, size), rows summing to one; sigma 0 is the identity."""
    place = torch.arange(size, device=sigma.device, dtype=torch.float64)
    distance = (place[:, None] - place) / sigma.double().clamp_min(1e-3)[:, None, None]
    weights = torch.exp(-0.5 * distance.square())
    weights = weights * (distance.abs() < 7)  # what lies beyond adds nothing, and denormal numbers are slow
    return (weights / weights.sum(-1, keepdim=True)).float()
