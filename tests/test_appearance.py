"""Colour, blur and angle against slow plain references, and the promises about samples, batches and random numbers."""

from __future__ import annotations

import colorsys
import pickle
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError
from torch import Tensor

from vssl_core import looks
from vssl_core.data import appearance
from vssl_core.data.appearance import NORMALISATIONS, Normalisation, apply, normalise_only
from vssl_core.looks import PRESETS, AppearanceSettings, Recipe, draw, resolve

IMAGENET = NORMALISATIONS["imagenet"]
UNIT = Normalisation("unit", (0.0, 0.0, 0.0), (1.0, 1.0, 1.0))
LUMA = np.array([0.299, 0.587, 0.114])


def noise(batch: int = 2, frames: int = 3, height: int = 10, width: int = 14, seed: int = 0) -> Tensor:
    """uint8 clips (B, T, H, W, 3) of independent bytes."""
    generator = np.random.default_rng(seed)
    return torch.from_numpy(generator.integers(0, 256, (batch, frames, height, width, 3), dtype=np.uint8))


def collate(recipe: Recipe, seeds: range, frames: int) -> dict[str, Tensor]:
    """Parameters of one clip for each seed, as a loader would hand them over."""
    drawn = [draw(recipe, np.random.default_rng(seed), frames) for seed in seeds]
    return {name: torch.from_numpy(np.stack([one[name] for one in drawn])) for name in drawn[0]}


def with_colour(matrices: np.ndarray, frames: int) -> dict[str, Tensor]:
    """Parameters with the same [A | M] for every frame of each clip: (B, 3, 6)."""
    colour = np.repeat(matrices[:, None], frames, axis=1)
    return {"colour": torch.from_numpy(colour.astype(np.float32))}


def only(name: str, strength: float, **others: Any) -> Recipe:
    return Recipe(**{name: strength, "jitter_probability": 1.0, **others})


# --- references -------------------------------------------------------------------------------------------------------


def plain_jitter(clip: np.ndarray, steps: list[tuple[str, float]], per: str) -> np.ndarray:
    """The steps one after the other, frame by frame in float64, without a clamp: (T, H, W, 3) in [0, 1]."""
    frames = [frame.copy() for frame in clip]
    for name, factor in steps:
        means = [float((frame @ LUMA).mean()) for frame in frames]
        for number, frame in enumerate(frames):
            mean = means[number] if per == "frame" else sum(means) / len(means)
            frames[number] = plain_step(frame, name, factor, mean)
    return np.stack(frames)


def plain_step(frame: np.ndarray, name: str, factor: float, mean: float) -> np.ndarray:
    luma = (frame @ LUMA)[..., None]
    if name == "brightness":
        return factor * frame
    if name == "contrast":
        return factor * frame + (1 - factor) * mean
    if name == "saturation":
        return factor * frame + (1 - factor) * luma
    if name == "hue":
        return plain_hue(frame, factor)
    if name == "luma":
        return np.repeat(luma, 3, axis=-1)
    return np.repeat(frame[..., int(factor)][..., None], 3, axis=-1)


def plain_hue(frame: np.ndarray, turns: float) -> np.ndarray:
    """Rotates (I, Q) as a complex number; I and Q are the colour differences B - Y and R - Y, turned by 33 degrees."""
    matrix = np.array([[0.299, 0.587, 0.114], [0.5959, -0.2746, -0.3213], [0.2115, -0.5227, 0.3112]])
    y, i, q = (frame @ row for row in matrix)
    turned = (i + 1j * q) * np.exp(-2j * np.pi * turns)
    return np.stack([y, turned.real, turned.imag], axis=-1) @ np.linalg.inv(matrix).T


def plain_blur(frame: np.ndarray, sigma: float) -> np.ndarray:
    """Direct double sum over rows, then columns, of a (H, W, C) frame; weights sum to one over the pixels there are."""
    for axis in (0, 1):
        frame = np.moveaxis(frame, axis, 0)
        blurred = np.zeros_like(frame)
        for target in range(len(frame)):
            weights = [np.exp(-((target - source) ** 2) / (2 * sigma**2)) for source in range(len(frame))]
            for source, weight in enumerate(weights):
                blurred[target] += weight / sum(weights) * frame[source]
        frame = np.moveaxis(blurred, 0, axis)
    return frame


def channels_last(planes: Tensor) -> np.ndarray:
    return planes.permute(0, 2, 3, 4, 1).double().numpy()


# --- normalisation ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["imagenet", "minus1_1", "raw255"])
def test_normalisation_is_x_over_255_less_mean_over_deviation(name: str) -> None:
    clip = noise()
    result = normalise_only(clip, NORMALISATIONS[name])
    mean, deviation = np.array(NORMALISATIONS[name].mean), np.array(NORMALISATIONS[name].deviation)
    expected = (clip.double().numpy() / 255 - mean) / deviation
    assert result.dtype == torch.float32 and result.is_contiguous() and result.shape == (2, 3, 3, 10, 14)
    np.testing.assert_allclose(channels_last(result), expected, rtol=1e-6, atol=1e-6)


def test_normalisations_reach_their_ends() -> None:
    ends = torch.tensor([0, 255], dtype=torch.uint8).view(1, 1, 1, 2, 1).expand(1, 1, 1, 2, 3)
    assert normalise_only(ends, NORMALISATIONS["minus1_1"])[0, 0].flatten().tolist() == [-1.0, 1.0]
    every = torch.arange(256, dtype=torch.uint8).view(1, 1, 16, 16, 1).expand(1, 1, 16, 16, 3)
    assert torch.equal(normalise_only(every, NORMALISATIONS["raw255"])[0, 2].flatten(), torch.arange(256.0))


@pytest.mark.parametrize("name", list(NORMALISATIONS))
def test_kept_appearance_is_the_normalised_clip_itself(name: str) -> None:
    clip = noise()
    recipe = resolve(AppearanceSettings(preset="cstp"), "kept", "frame")
    parameters = collate(recipe, range(2), 3)
    result = apply(clip, parameters, recipe, NORMALISATIONS[name])
    assert torch.equal(result, normalise_only(clip, NORMALISATIONS[name]))


# --- colour -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("per", ["clip", "frame"])
@pytest.mark.parametrize("name", ["brightness", "contrast", "saturation", "hue"])
def test_one_step_alone_equals_the_plain_step(name: str, per: str) -> None:
    recipe = only(name, 0.4, per=per)
    clip, parameters = noise(4), collate(recipe, range(4), 3)
    if per == "frame":  # one factor for all frames, so that the plain reference needs one only
        parameters["colour"] = parameters["colour"][:, :1].expand(-1, 3, -1, -1)
    result = channels_last(apply(clip, parameters, recipe, UNIT))
    for row in range(4):
        factor = factor_of(name, parameters["colour"][row, 0].double().numpy())
        expected = plain_jitter(clip[row].double().numpy() / 255, [(name, factor)], per)
        np.testing.assert_allclose(result[row], expected.clip(0, 1), atol=2e-6)


def factor_of(name: str, matrix: np.ndarray) -> float:
    """The factor that one step's [A | M] was made of."""
    pixel = matrix[:, :3]
    if name == "saturation":
        return float(pixel[0, 0] - pixel[1, 0])  # s + (1 - s) l less (1 - s) l
    if name == "hue":
        return float(np.angle(complex_chroma(pixel @ [1, 0, 0]) / complex_chroma([1, 0, 0])) / (-2 * np.pi))
    return float(pixel[1, 1])


def complex_chroma(colour: Any) -> complex:
    return complex(np.dot([0.5959, -0.2746, -0.3213], colour), np.dot([0.2115, -0.5227, 0.3112], colour))


@settings(max_examples=80, deadline=None)
@given(
    uniform=st.lists(st.floats(0, 1, exclude_max=True), min_size=6, max_size=6),
    order=st.permutations(range(4)),
    gray=st.sampled_from(["luma", "channel"]),
    gray_first=st.booleans(),
    per=st.sampled_from(["clip", "frame"]),
    seed=st.integers(0, 5),
)
def test_composed_steps_equal_the_plain_steps_in_any_order(
    uniform: list[float], order: list[int], gray: Any, gray_first: bool, per: Any, seed: int
) -> None:
    recipe = Recipe(
        0.8, 0.7, 0.6, 0.3, jitter_probability=1.0, gray_probability=0.5, gray=gray, gray_first=gray_first, per=per
    )
    brightness, contrast, saturation, hue, chance, channel = uniform
    row = np.array([[0.0, brightness, contrast, saturation, hue, chance, channel]])
    turns = 0.3 * (2 * hue - 1)
    matrices = looks._colour_matrices(recipe, row, np.array([turns]))
    factors = [0.2 + 1.6 * brightness, 0.3 + 1.4 * contrast, 0.4 + 1.2 * saturation, turns]
    names = ["brightness", "contrast", "saturation", "hue"]
    steps = [(names[step], factors[step]) for step in order]
    if chance < 0.5:
        steps.insert(0 if gray_first else 4, (gray, float(int(3 * channel))))
    clip = (noise(1, seed=seed) * torch.tensor([1.0, 0.7, 0.4])).to(torch.uint8)  # tinted: no two channels' means agree
    result = channels_last(apply(clip, with_colour(matrices, 3), recipe, UNIT))[0]
    expected = plain_jitter(clip[0].double().numpy() / 255, steps, per).clip(0, 1)
    np.testing.assert_allclose(result, expected, atol=5e-6)


@pytest.mark.parametrize("name", list(NORMALISATIONS))
def test_normalisation_is_folded_into_the_matrix_and_the_clamp(name: str) -> None:
    normalisation, recipe = NORMALISATIONS[name], resolve(AppearanceSettings(preset="vivid"), "jittered", "frame")
    clip, parameters = noise(8), collate(recipe, range(8), 3)
    unit = channels_last(apply(clip, parameters, recipe, UNIT))
    expected = (unit - np.array(normalisation.mean)) / np.array(normalisation.deviation)
    result = channels_last(apply(clip, parameters, recipe, normalisation))
    np.testing.assert_allclose(result, expected, rtol=1e-5, atol=5e-6)
    assert (unit == 0).any() and (unit == 1).any(), "the clamp was never reached"


@pytest.mark.parametrize("kind", ["luma", "channel"])
@pytest.mark.parametrize("gray_first", [False, True])
@pytest.mark.parametrize("exact_hue", [False, True])
def test_gray_clips_are_gray(kind: Any, gray_first: bool, exact_hue: bool) -> None:
    recipe = Recipe(
        0.4, 0.4, 0.4, 0.1, 1.0, gray_probability=1.0, gray=kind, gray_first=gray_first, exact_hue=exact_hue
    )
    result = apply(noise(6), collate(recipe, range(6), 3), recipe, UNIT)
    assert torch.allclose(result, result[:, :1].expand_as(result), atol=1e-6)
    assert result.std() > 0.1


def test_gray_is_the_luma_or_one_of_the_three_channels() -> None:
    clip = noise(30)
    unit = clip.double().numpy() / 255
    luma = Recipe(gray_probability=1.0)
    np.testing.assert_allclose(
        channels_last(apply(clip, collate(luma, range(30), 3), luma, UNIT))[..., 0], unit @ LUMA, atol=1e-6
    )
    channel = Recipe(gray_probability=1.0, gray="channel")
    result = channels_last(apply(clip, collate(channel, range(30), 3), channel, UNIT))
    distance = np.abs(result[..., :1] - unit).max(axis=(1, 2, 3))  # (30, 3)
    assert (distance.min(axis=1) < 1e-6).all()
    assert set(distance.argmin(axis=1)) == {0, 1, 2}


def hue_matrix(turns: float) -> np.ndarray:
    return looks._chroma_matrices(np.ones(1), np.array([turns]))[0]


@settings(max_examples=30, deadline=None)
@given(turns=st.floats(-0.5, 0.5))
def test_hue_keeps_luma_and_gray(turns: float) -> None:
    matrix = hue_matrix(turns)
    np.testing.assert_allclose(LUMA @ matrix, LUMA, atol=1e-12)
    np.testing.assert_allclose(matrix @ np.ones(3), np.ones(3), atol=1e-12)
    np.testing.assert_allclose(matrix @ hue_matrix(-turns), np.eye(3), atol=1e-12)


def test_hue_turns_red_towards_green_as_in_hsv() -> None:
    red = np.array([1.0, 0.0, 0.0])
    turned = hue_matrix(1 / 3) @ red
    assert turned.argmax() == 1
    assert (hue_matrix(-1 / 3) @ red).argmax() == 2


def test_exact_hue_is_that_of_hsv() -> None:
    recipe = Recipe(hue=0.5, jitter_probability=1.0, exact_hue=True, per="frame")
    clip, parameters = noise(5), collate(recipe, range(5), 3)
    parameters["hue"] = torch.linspace(-0.5, 0.5, 15).view(5, 3)
    clip[0, 0, 0, :3] = torch.tensor([[0, 0, 0], [255, 255, 255], [90, 90, 90]])
    result = channels_last(apply(clip, parameters, recipe, UNIT))
    for place in np.ndindex(5, 3, 10, 14):
        hue, saturation, value = colorsys.rgb_to_hsv(*(clip[place].double() / 255).tolist())
        turned = (hue + parameters["hue"][place[0], place[1]].item()) % 1.0
        np.testing.assert_allclose(result[place], colorsys.hsv_to_rgb(turned, saturation, value), atol=5e-6)


def test_contrast_is_about_the_mean_of_the_clip_and_the_tail_does_not_count() -> None:
    clip = torch.zeros(1, 3, 4, 4, 3, dtype=torch.uint8)
    clip[:, 1], clip[:, 2] = 100, 255
    recipe = only("contrast", 0.5)
    parameters = with_colour(flat_contrast(0.0), 3)
    whole = apply(clip, parameters, recipe, UNIT) * 255
    assert torch.allclose(whole, torch.full_like(whole, 355 / 3), atol=1e-4)
    without_tail = apply(clip, parameters, recipe, UNIT, tail=1) * 255
    assert torch.allclose(without_tail, torch.full_like(whole, 50.0), atol=1e-4)
    frames = apply(clip, parameters, only("contrast", 0.5, per="frame"), UNIT)
    assert torch.allclose(frames, normalise_only(clip, UNIT), atol=1e-6)


def flat_contrast(factor: float) -> np.ndarray:
    return np.concatenate([factor * np.eye(3), (1 - factor) * np.ones((3, 1)) * LUMA], axis=1)[None]


def test_mean_colour_is_exact_for_large_frames() -> None:
    clip = 255 - noise(1, 2, 500, 490) // 16
    expected = clip.double().mean(dim=(1, 2, 3)) / 255
    mean = appearance._mean_colour(appearance._planes(clip), "clip", 0)[:, 0]
    assert torch.allclose(mean, expected, rtol=1e-15, atol=0)


# --- per clip and per frame -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("exact_hue", [False, True])
@pytest.mark.parametrize("preset", ["default", "strong", "cstp", "vivid", "mlrep", "soft"])
def test_a_static_video_stays_static_per_clip_and_flickers_per_frame(preset: Any, exact_hue: bool) -> None:
    clip = noise(1, 1).expand(20, 6, -1, -1, -1)
    chosen = AppearanceSettings(preset=preset, exact_hue=exact_hue, gate_probability=1.0, jitter_probability=1.0)
    recipe = resolve(chosen, "jittered", "clip")
    result = apply(clip, collate(recipe, range(20), 6), recipe, IMAGENET)
    # The blur is a matrix product over all frames, which may round them differently.
    tolerance = 1e-5 if recipe.blurs else 0.0
    assert torch.allclose(result, result[:, :, :1].expand_as(result), rtol=0, atol=tolerance)
    recipe = resolve(chosen, "jittered", "frame")
    result = apply(clip, collate(recipe, range(20), 6), recipe, IMAGENET)
    assert ((result[:, :, 1:] - result[:, :, :-1]).abs().amax(dim=(1, 3, 4)) > 1e-3).all()


def test_per_frame_draws_have_their_own_chance() -> None:
    recipe = resolve(AppearanceSettings(preset="vivid"), "jittered", "frame")
    colour = draw(recipe, np.random.default_rng(0), 4000)["colour"]
    untouched = (colour == np.eye(3, 6, dtype=np.float32)).all(axis=(1, 2))
    assert 0.17 < untouched.mean() < 0.23
    pairs = untouched[1:] & untouched[:-1]
    assert 0.02 < pairs.mean() < 0.06, "neighbouring frames are left alone together more or less often than by chance"


# --- draws ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("preset", list(PRESETS))
@pytest.mark.parametrize("per", ["clip", "frame"])
@pytest.mark.parametrize("exact_hue", [False, True])
def test_shapes_never_depend_on_what_is_drawn(preset: Any, per: Any, exact_hue: bool) -> None:
    recipe = replace(resolve(AppearanceSettings(preset=preset), "jittered", per), exact_hue=exact_hue)
    expected = {"colour": (7, 3, 6), "blur": (), "angle": ()} | ({"hue": (7,)} if exact_hue else {})
    for seed in range(30):
        parameters = draw(recipe, np.random.default_rng(seed), 7)
        assert {name: value.shape for name, value in parameters.items()} == expected
        assert all(isinstance(value, np.ndarray) and value.dtype == np.float32 for value in parameters.values())


@pytest.mark.parametrize("per", ["clip", "frame"])
def test_draws_are_a_function_of_the_generator_and_longer_clips_begin_alike(per: Any) -> None:
    recipe = resolve(AppearanceSettings(preset="cstp", gate_probability=1.0, exact_hue=True), "jittered", per)
    first, again = (draw(recipe, np.random.default_rng(3), 8) for _ in range(2))
    other, longer = draw(recipe, np.random.default_rng(4), 8), draw(recipe, np.random.default_rng(3), 9)
    for name, value in first.items():
        np.testing.assert_array_equal(value, again[name])
        np.testing.assert_array_equal(value, longer[name][:8] if value.ndim else longer[name])
    assert not np.array_equal(first["colour"], other["colour"])


def test_the_count_of_random_numbers_does_not_depend_on_what_is_drawn() -> None:
    recipe = resolve(AppearanceSettings(preset="cstp"), "jittered", "clip")
    for seed in range(20):
        used, reference = np.random.default_rng(seed), np.random.default_rng(seed)
        draw(recipe, used, 5)
        draw(only("brightness", 0.4), reference, 5)
        assert used.random() == reference.random()


@pytest.mark.parametrize(
    ("name", "low", "high"),
    [("brightness", 0.6, 1.4), ("contrast", 0.6, 1.4), ("saturation", 0.6, 1.4), ("hue", -0.4, 0.4)],
)
def test_factors_are_uniform_over_their_range(name: str, low: float, high: float) -> None:
    colour = draw(only(name, 0.4, per="frame"), np.random.default_rng(0), 3000)["colour"].astype(np.float64)
    factors = np.array([factor_of(name, matrix) for matrix in colour])
    assert factors.min() >= low - 1e-6 and factors.max() <= high + 1e-6
    counts, _ = np.histogram(factors, bins=8, range=(low, high))
    assert (np.abs(counts - 375) < 90).all()


def test_strengths_above_one_never_turn_negative() -> None:
    colour = draw(only("brightness", 3.0, per="frame"), np.random.default_rng(0), 2000)["colour"]
    assert colour[:, 0, 0].min() >= 0 and colour[:, 0, 0].max() > 3.5


def test_blur_angle_and_gate_have_the_chances_and_ranges_of_cstp() -> None:
    recipe = resolve(AppearanceSettings(preset="cstp"), "jittered", "clip")
    drawn = [draw(recipe, np.random.default_rng(seed), 1) for seed in range(4000)]
    blur, angle = np.array([one["blur"] for one in drawn]), np.array([one["angle"] for one in drawn])
    opened = angle != 0
    assert 0.27 < opened.mean() < 0.33
    assert 0.45 < (blur[opened] > 0).mean() < 0.55
    assert (blur[~opened] == 0).all()
    assert blur[blur > 0].min() >= 0.1 and 1.9 < blur.max() <= 2.0
    assert -10 <= angle.min() < -9.5 and 9.5 < angle.max() <= 10
    closed = np.stack([one["colour"] for one in drawn])[~opened]
    np.testing.assert_array_equal(closed, np.broadcast_to(np.eye(3, 6), closed.shape))


@pytest.mark.parametrize("exact_hue", [False, True])
def test_a_closed_gate_leaves_the_clip_alone(exact_hue: bool) -> None:
    recipe = resolve(AppearanceSettings(preset="cstp", exact_hue=exact_hue), "jittered", "clip")
    parameters = collate(recipe, range(40), 3)
    closed = parameters["angle"] == 0
    clip = noise(40)
    result, plain = apply(clip, parameters, recipe, IMAGENET), normalise_only(clip, IMAGENET)
    assert torch.allclose(result[closed], plain[closed], atol=1e-6)
    assert ((result - plain)[~closed].abs().amax(dim=(1, 2, 3, 4)) > 1e-2).all()


# --- blur and angle ---------------------------------------------------------------------------------------------------


@settings(max_examples=25, deadline=None)
@given(sigma=st.floats(0.05, 4.0), height=st.integers(1, 9), width=st.integers(1, 9))
def test_blur_equals_the_direct_sum(sigma: float, height: int, width: int) -> None:
    clip = noise(1, 2, height, width)
    blurred = channels_last(appearance._blur(normalise_only(clip, UNIT), torch.tensor([sigma])))[0]
    for frame in range(2):
        expected = plain_blur(clip[0, frame].double().numpy() / 255, float(np.float32(sigma)))
        np.testing.assert_allclose(blurred[frame], expected, atol=2e-6)


def test_blur_equals_scipy_away_from_the_border() -> None:
    ndimage = pytest.importorskip("scipy.ndimage")
    clip, sigmas = noise(3, 2, 40, 50), [0.3, 1.0, 2.0]
    blurred = channels_last(appearance._blur(normalise_only(clip, UNIT), torch.tensor(sigmas)))
    for row, sigma in enumerate(sigmas):
        expected = ndimage.gaussian_filter(clip[row].double().numpy() / 255, (0, sigma, sigma, 0), truncate=6.0)
        np.testing.assert_allclose(blurred[row][:, 13:-13, 13:-13], expected[:, 13:-13, 13:-13], atol=2e-6)


def test_sigma_zero_and_angle_zero_pass_the_very_same_values() -> None:
    planes = normalise_only(noise(3), IMAGENET)
    blurred = appearance._blur(planes, torch.tensor([0.0, 1.0, 0.0]))
    tilted = appearance._tilt(planes, torch.tensor([0.0, 5.0, 0.0]))
    for result in (blurred, tilted):
        assert torch.equal(result[[0, 2]], planes[[0, 2]])
        assert not torch.allclose(result[1], planes[1], atol=1e-2)


@settings(max_examples=20, deadline=None)
@given(value=st.integers(0, 255), angle=st.floats(-180, 180), sigma=st.floats(0.1, 3.0))
def test_blur_and_angle_keep_a_flat_clip_flat(value: int, angle: float, sigma: float) -> None:
    planes = normalise_only(torch.full((1, 2, 7, 9, 3), value, dtype=torch.uint8), IMAGENET)
    changed = appearance._blur(appearance._tilt(planes, torch.tensor([angle])), torch.tensor([sigma]))
    assert torch.allclose(changed, planes, atol=1e-5)


@pytest.mark.parametrize("quarter", [1, 2, 3])
def test_angles_of_quarter_turns_are_exact_and_counter_clockwise(quarter: int) -> None:
    planes = normalise_only(noise(1, 2, 9, 9), UNIT)
    tilted = appearance._tilt(planes, torch.tensor([90.0 * quarter]))
    assert torch.allclose(tilted, torch.rot90(planes, quarter, dims=(3, 4)), atol=1e-5)


@pytest.mark.parametrize("degrees", [-10.0, 3.0, 10.0])
def test_angle_equals_scipy_on_oblong_frames(degrees: float) -> None:
    ndimage = pytest.importorskip("scipy.ndimage")
    planes = normalise_only(noise(1, 2, 30, 44), UNIT)
    tilted = appearance._tilt(planes, torch.tensor([degrees]))[0]
    expected = ndimage.rotate(planes[0].double().numpy(), degrees, axes=(3, 2), reshape=False, order=1)
    np.testing.assert_allclose(tilted[..., 8:-8, 8:-8], expected[..., 8:-8, 8:-8], atol=1e-5)


def test_angle_is_one_for_all_frames_of_a_clip() -> None:
    planes = normalise_only(noise(1, 1).expand(2, 5, -1, -1, -1), UNIT)
    tilted = appearance._tilt(planes, torch.tensor([7.0, -7.0]))
    assert torch.equal(tilted, tilted[:, :, :1].expand_as(tilted))
    assert not torch.allclose(tilted[0], tilted[1], atol=1e-2)


# --- batches ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("per", ["clip", "frame"])
@pytest.mark.parametrize("exact_hue", [False, True])
@pytest.mark.parametrize("shape", [(5, 17, 23), (8, 32, 32), (1, 7, 9)])
def test_a_row_does_not_notice_its_batch(shape: tuple[int, ...], exact_hue: bool, per: Any, threads: int) -> None:
    chosen = AppearanceSettings(preset="cstp", gate_probability=1.0, exact_hue=exact_hue)
    clip = noise(6, *shape)
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        for recipe, tolerance in (
            (resolve(chosen.model_copy(update={"blur_probability": 0.0}), "jittered", per), 0.0),
            (resolve(chosen, "jittered", per), 1e-5),
        ):
            parameters = collate(recipe, range(6), shape[0])
            whole = apply(clip, parameters, recipe, IMAGENET)
            for row in range(6):
                alone = {name: value[row : row + 1] for name, value in parameters.items()}
                single = apply(clip[row : row + 1], alone, recipe, IMAGENET)[0]
                assert torch.allclose(single, whole[row], rtol=0, atol=tolerance)
    finally:
        torch.set_num_threads(before)


def test_autocast_changes_nothing() -> None:
    recipe = resolve(AppearanceSettings(preset="cstp", gate_probability=1.0), "jittered", "clip")
    clip, parameters = noise(4), collate(recipe, range(4), 3)
    plain = apply(clip, parameters, recipe, IMAGENET)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        cast = apply(clip, parameters, recipe, IMAGENET)
    assert cast.dtype == torch.float32 and torch.equal(plain, cast)


def test_the_clip_is_left_as_it_came() -> None:
    clip, recipe = noise(3), resolve(AppearanceSettings(preset="cstp", gate_probability=1.0), "jittered", "clip")
    parameters = collate(recipe, range(3), 3)
    before = clip.clone(), {name: value.clone() for name, value in parameters.items()}
    apply(clip, parameters, recipe, IMAGENET)
    normalise_only(clip, IMAGENET)
    assert torch.equal(clip, before[0])
    assert all(torch.equal(value, before[1][name]) for name, value in parameters.items())


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("preset", ["default", "vivid", "cstp", "strong"])
def test_a_gpu_gives_what_the_cpu_gives(preset: Any) -> None:
    recipe = resolve(AppearanceSettings(preset=preset, gate_probability=1.0), "jittered", "frame")
    clip, parameters = noise(8, 8, 32, 32), collate(recipe, range(8), 8)
    there = apply(clip.cuda(), {name: value.cuda() for name, value in parameters.items()}, recipe, IMAGENET)
    assert there.is_cuda and there.is_contiguous()
    assert torch.allclose(there.cpu(), apply(clip, parameters, recipe, IMAGENET), atol=1e-4)


# --- settings and recipes ---------------------------------------------------------------------------------------------


def test_given_numbers_take_the_place_of_the_presets() -> None:
    chosen = AppearanceSettings(preset="cstp", brightness=0.1, blur_sigma=(0.5, 1.0), gray="luma")
    recipe = resolve(chosen, "jittered", "frame")
    assert (recipe.brightness, recipe.contrast, recipe.blur_sigma, recipe.gray) == (0.1, 0.4, (0.5, 1.0), "luma")
    assert recipe.per == "frame" and recipe.gate_probability == 0.3


def test_presets_are_those_of_the_papers() -> None:
    def strengths(name: str) -> tuple[float, ...]:
        recipe = PRESETS[name]
        return recipe.brightness, recipe.contrast, recipe.saturation, recipe.hue, recipe.jitter_probability

    assert strengths("default") == strengths("cstp") == strengths("soft") == (0.4, 0.4, 0.4, 0.1, 0.8)
    assert strengths("strong") == (0.6, 0.6, 0.6, 0.15, 0.8)
    assert strengths("vivid") == (0.8, 0.8, 0.8, 0.2, 0.8)
    assert strengths("mlrep") == (0.5, 0.5, 0.5, 0.25, 1.0)
    gray = {name: (recipe.gray_probability, recipe.gray) for name, recipe in PRESETS.items() if recipe.gray_probability}
    cstp, mlrep = (0.2, "channel"), (0.5, "channel")
    assert gray == {"default": (0.2, "luma"), "strong": (0.2, "luma"), "cstp": cstp, "mlrep": mlrep}
    assert {name for name, recipe in PRESETS.items() if recipe.gray_first} == {"mlrep"}
    assert {name for name, recipe in PRESETS.items() if recipe.blurs} == {"strong", "cstp", "soft"}
    assert {name for name, recipe in PRESETS.items() if recipe.tilts} == {"cstp"}
    assert PRESETS["cstp"].gate_probability == 0.3


def test_preset_none_keeps_clips_but_serves_a_request_that_needs_jitter() -> None:
    none = AppearanceSettings(preset="none")
    assert none.colour == "kept" and AppearanceSettings().colour == "jittered"
    assert resolve(none, "jittered", "clip") == PRESETS["default"]
    assert resolve(none, "kept", "clip") == Recipe()
    alone = AppearanceSettings(preset="none", brightness=0.2, jitter_probability=1.0)
    assert alone.colour == "jittered"
    assert resolve(alone, "jittered", "clip") == Recipe(brightness=0.2, jitter_probability=1.0)
    blurred = AppearanceSettings(preset="none", blur_probability=0.5)
    assert blurred.colour == "jittered"
    assert resolve(blurred, "jittered", "clip") == Recipe(blur_probability=0.5), "the run asked for blur and no colour"


@pytest.mark.parametrize(
    ("unused", "probability"),
    [
        ({"brightness": 0.2}, "jitter_probability"),
        ({"gray": "luma"}, "gray_probability"),
        ({"blur_sigma": (0.1, 1.0)}, "blur_probability"),
    ],
)
def test_a_number_without_effect_is_refused(unused: dict[str, Any], probability: str) -> None:
    with pytest.raises(ValidationError, match=f"{next(iter(unused))}: has no effect.*give {probability} too"):
        AppearanceSettings(preset="none", **unused)
    AppearanceSettings(preset="none", **unused, **{probability: 0.5})
    AppearanceSettings(preset="none", **unused, **{probability: 0.0})


@pytest.mark.parametrize("preset", list(PRESETS))
def test_recipes_survive_pickling_and_compare_by_their_numbers(preset: Any) -> None:
    recipe = resolve(AppearanceSettings(preset=preset), "jittered", "frame")
    assert pickle.loads(pickle.dumps(recipe)) == recipe
    assert recipe != resolve(AppearanceSettings(preset=preset), "jittered", "clip")
    assert hash(recipe) == hash(resolve(AppearanceSettings(preset=preset), "jittered", "frame"))


@pytest.mark.parametrize(
    "wrong",
    [
        {"preset": "smclr"},
        {"per": "video"},
        {"brightness": -0.1},
        {"hue": 0.6},
        {"gray_probability": 1.2},
        {"blur_sigma": (2.0, 0.1)},
        {"blur_sigma": (-1.0, 0.1)},
        {"brightnes": 0.1},
        {"contrast": float("nan")},
    ],
)
def test_settings_refuse_what_makes_no_sense(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValidationError, match=next(iter(wrong))):
        AppearanceSettings(**wrong)


def test_every_setting_is_described() -> None:
    assert all(field.description for field in AppearanceSettings.model_fields.values())
    assert set(AppearanceSettings.model_fields) - {"preset"} == {field for field in Recipe.__dataclass_fields__}
