"""Colour, blur and small rotations, applied to whole batches on the device."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from vssl_core.looks import Per, Recipe


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


_UNIT = Normalisation("unit", (0.0, 0.0, 0.0), (1.0, 1.0, 1.0))


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
    """y = A x + M mean, normalised and clamped at once: (B, 3, T, H, W), (B, T, 3, 6) -> (B, 3, T, H, W).

    Plain products and sums, not a batched matrix product: three rows of three gain little from one, it may run in
    reduced precision, and here a row does not notice its batch.
    """
    colour, mean = colour.double(), _mean_colour(planes, per, tail)
    result = torch.empty_like(planes)
    for channel in range(3):
        scale, shift = normalisation.affine(channel)
        row = colour[:, :, channel] * scale  # (B, T, 6)
        red, green, blue = _per_frame(row[..., :3] / 255.0).unbind(2)
        constant = _per_frame((row[..., 3:] * mean).sum(-1) + shift)
        out = result[:, channel]
        # The constant last: an addcmul that begins with a broadcast value is four times slower on a CPU.
        torch.mul(planes[:, 0], red, out=out).addcmul_(planes[:, 1], green).addcmul_(planes[:, 2], blue)
        out.add_(constant).clamp_(shift, scale + shift)
    return result


def _per_frame(values: Tensor) -> Tensor:
    return values.float()[..., None, None]  # two axes more, for rows and columns


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
    if planes.device.type != "cpu":  # to look which clips are blurred would make the device wait
        return torch.where((sigma > 0)[:, None, None, None, None], _blurred(planes, sigma), planes)
    rows = sigma.nonzero().squeeze(1)
    return planes.index_copy(0, rows, _blurred(planes[rows], sigma[rows])) if len(rows) else planes


def _blurred(planes: Tensor, sigma: Tensor) -> Tensor:
    batch, channels, frames, height, width = planes.shape
    rows = planes.view(batch, -1, width) @ _gaussian_weights(sigma, width).transpose(1, 2)  # (B, 3 T H, W)
    rows = rows.view(batch, channels * frames, height, width)
    return (_gaussian_weights(sigma, height)[:, None] @ rows).view_as(planes)  # (B, 3, T, H, W)


def _gaussian_weights(sigma: Tensor, size: int) -> Tensor:
    """How much pixel j adds to pixel i: (B,) -> (B, size, size), rows summing to one; sigma 0 is the identity."""
    place = torch.arange(size, device=sigma.device, dtype=torch.float64)
    distance = (place[:, None] - place) / sigma.double().clamp_min(1e-3)[:, None, None]
    weights = torch.exp(-0.5 * distance.square())
    weights = weights * (distance.abs() < 7)  # what lies beyond adds nothing, and denormal numbers are slow
    return (weights / weights.sum(-1, keepdim=True)).float()
