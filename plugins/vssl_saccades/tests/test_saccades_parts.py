"""The parts of saccades, each against loops: masks, negatives, prediction and clusters."""

from __future__ import annotations

from itertools import combinations
from math import ceil, exp, floor, log, sqrt
from operator import mul
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as some
from torch import Tensor, nn
from torch.nn import functional as F

from vssl_saccades.fixations import clip_masks, frame_masks, regions, show
from vssl_saccades.negatives import negative_slots
from vssl_saccades.prediction import Prediction, attention
from vssl_saccades.reorganisation import Reorganisation, against_clusters


def numbers(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


# Masks ----------------------------------------------------------------------------------------------------------------


def test_five_masks_of_a_quarter_tile_the_frame_and_share_a_quarter_with_the_centre() -> None:
    masks = clip_masks(5, 0.25, 112)
    assert [int(mask.sum()) for mask in masks] == [3136] * 5
    assert (masks[:4].sum(axis=0) == 1).all()  # the corners are disjoint and tile the frame
    assert [int((masks[4] & corner).sum()) for corner in masks[:4]] == [784] * 4
    assert masks[4, 28:84, 28:84].all() and masks[0, :56, :56].all() and masks[1, :56, 56:].all()


def test_nine_masks_of_a_ninth_tile_the_frame() -> None:
    masks = clip_masks(9, 1 / 9, 48)
    assert (masks.sum(axis=0) == 1).all() and [int(mask.sum()) for mask in masks] == [256] * 9


def test_masks_beyond_a_quarter_are_cut_at_the_border() -> None:
    masks = clip_masks(5, 0.35, 112)
    assert [round(100 * mask.mean(), 1) for mask in masks] == [29.7] * 4 + [34.7]


@given(
    fixations=some.sampled_from([5, 9]),
    area=some.floats(0.01, 1.0),
    size=some.integers(4, 64),
)
@settings(max_examples=60, deadline=None)
def test_masks_are_the_pixels_whose_middles_lie_in_a_rectangle_around_a_fixed_centre(
    fixations: int, area: float, size: int
) -> None:
    side, steps = size * sqrt(area), {5: (0.25, 0.75), 9: (1 / 6, 0.5, 5 / 6)}[fixations]
    centres = [(down, right) for down in steps for right in steps] + [(0.5, 0.5)] * (fixations == 5)
    for (down, right), mask in zip(centres, clip_masks(fixations, area, size), strict=True):
        assert mask.any() and not (mask.any(axis=1)[:, None] & mask.any(axis=0) & ~mask).any()  # one rectangle
        for y, x in np.ndindex(size, size):
            apart = [abs(y + 0.5 - size * down), abs(x + 0.5 - size * right)]
            if max(apart) < side / 2 - 1e-6:
                assert mask[y, x]
            elif max(apart) > max(side / 2, 0.5) + 1e-6:
                assert not mask[y, x]


def test_no_two_fixations_are_the_same() -> None:
    for fixations in (5, 9):
        for first, second in combinations(clip_masks(fixations, 0.5, 16), 2):
            assert (first != second).any()
        assert all(0 <= low < high <= 1 for region in regions(fixations, 0.9) for low, high in (region[:2], region[2:]))


def cut(boxes: list[tuple[int, ...]], frame: tuple[int, int], flips: list[bool]) -> SimpleNamespace:
    rows = len(boxes)
    return SimpleNamespace(
        box=torch.tensor(boxes), frame_size=torch.tensor([frame] * rows), flip=torch.tensor(flips)
    )  # fmt: skip


def test_parts_of_the_frame_are_followed_into_the_clip() -> None:
    size, frame = 8, (48, 64)
    boxes = [(0, 0, 48, 64), (0, 0, 24, 32), (10, 7, 30, 20), (10, 20, 30, 30), (10, 20, 30, 30)]
    windows, chosen = cut(boxes, frame, [False, False, False, False, True]), torch.tensor([2, 3, 4, 0, 0])
    found = frame_masks(5, 0.25, windows, chosen, size)
    for (top, left, height, width), flip, fixation, mask in zip(
        boxes, windows.flip.tolist(), chosen.tolist(), found, strict=True
    ):
        low_y, high_y, low_x, high_x = regions(5, 0.25)[fixation]
        for y, x in np.ndindex(size, size):
            column = size - 1 - x if flip else x
            shares = (top + (y + 0.5) * height / size) / 48, (left + (column + 0.5) * width / size) / 64
            assert bool(mask[y, x]) == (low_y <= shares[0] < high_y and low_x <= shares[1] < high_x)
    assert np.array_equal(found[0].numpy(), clip_masks(5, 0.25, size)[2])  # of a whole frame: of the clip
    assert not found[1].any()  # the last quarter is not to be seen in the first
    assert torch.equal(found[4], found[3].flip(1)) and not torch.equal(found[4], found[3])


def test_outside_its_fixation_a_clip_is_zero_or_as_it_was() -> None:
    clip, masks = numbers(2, 3, 4, 8, 8), torch.from_numpy(clip_masks(5, 0.25, 8)[[0, 4]]).float()
    multiplied, emphasised = show(clip, masks, "multiply"), show(clip, masks, "residual")
    inside = masks[:, None, None].bool().expand_as(clip)
    assert torch.equal(multiplied[inside], clip[inside]) and not multiplied[~inside].any()
    assert torch.equal(emphasised[inside], 2 * clip[inside]) and torch.equal(emphasised[~inside], clip[~inside])


# Negatives ------------------------------------------------------------------------------------------------------------


@given(
    videos=some.integers(2, 6),
    slots=some.sampled_from([1, 5, 9]),
    siblings=some.sampled_from(["always", "sampled", "never"]),
    seed=some.integers(0, 10_000),
)
@settings(max_examples=80, deadline=None)
def test_negatives_are_never_the_own_slot(videos: int, slots: int, siblings: str, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    whole = videos * slots
    own = torch.randint(0, whole, (3, 4), generator=generator)
    others = whole - (1 if siblings == "sampled" else slots)
    drawn = torch.randint(0, others, (3, 4, 7), generator=generator)
    found = negative_slots(own, drawn, slots, siblings)
    assert found.shape == (3, 4, 7 + (slots - 1) * (siblings == "always"))
    for place, row in zip(own.flatten().tolist(), found.flatten(0, 1).tolist(), strict=True):
        family = set(range(place // slots * slots, place // slots * slots + slots))
        assert place not in row and all(0 <= slot < whole for slot in row)
        if siblings == "always":
            assert set(row) & family == family - {place} and len([slot for slot in row if slot in family]) == slots - 1
        if siblings == "never":
            assert not set(row) & family


@pytest.mark.parametrize("siblings", ["always", "sampled", "never"])
def test_every_slot_that_may_be_drawn_is_drawn_by_one_number(siblings: str) -> None:
    own, slots, whole = torch.tensor([[7]]), 5, 15
    others = whole - (1 if siblings == "sampled" else slots)
    found = negative_slots(own, torch.arange(others).view(1, 1, -1), slots, siblings).flatten().tolist()
    assert len(set(found)) == len(found)
    assert set(found) == set(range(whole)) - ({7} if siblings != "never" else set(range(5, 10)))


# Prediction -----------------------------------------------------------------------------------------------------------


def plain(channels: int, **options: object) -> Prediction:
    """A predictor whose values are the states themselves."""
    predictor = Prediction(channels, **{"unit_values": False, **options})
    with torch.no_grad():
        predictor.value.weight.copy_(torch.eye(channels))
        predictor.value.bias.zero_()
    return predictor


def slow_prediction(predictor: Prediction, states: Tensor, power: float, unit: bool) -> Tensor:
    """(M, C, U), one pair of places after the other."""
    weight, bias = predictor.value.weight.double(), predictor.value.bias.double()
    found = torch.zeros_like(states, dtype=torch.float64)
    for row, state in enumerate(states.double()):
        for u in range(state.shape[1]):
            for v in range(state.shape[1]):
                cosine = state[:, u] @ state[:, v] / (state[:, u].norm() * state[:, v].norm())
                value = weight @ state[:, v] + bias
                value = value / value.norm() if unit else value
                found[row, :, u] += max(float(cosine), 0.0) ** power * value
    return found


@pytest.mark.parametrize(("power", "unit"), [(1.0, False), (1.0, True), (4.0, True)])
def test_the_prediction_and_its_error_are_those_in_loops(power: float, unit: bool) -> None:
    torch.manual_seed(0)
    predictor = Prediction(5, power=power, unit_values=unit)
    early, late = numbers(2, 5, 6), numbers(2, 5, 6, seed=1)
    with torch.no_grad():
        forth = slow_prediction(predictor, early, power, unit)
        back = slow_prediction(predictor, late, power, unit)
        torch.testing.assert_close(predictor.predict(early), forth.float(), rtol=1e-4, atol=1e-5)
        wanted = ((late - forth).abs().mean() + (early - back).abs().mean()) / 2
        assert predictor(early, late).item() == pytest.approx(wanted.item(), rel=1e-5)


def test_a_layer_in_front_is_in_prediction_and_target_alike() -> None:
    torch.manual_seed(0)
    predictor, early, late = Prediction(5, project=True), numbers(2, 5, 6), numbers(2, 5, 6, seed=1)
    bare = Prediction(5)
    bare.value = predictor.value
    with torch.no_grad():
        wanted = bare(predictor.projector(early), predictor.projector(late))
        torch.testing.assert_close(predictor(early, late), wanted)


def test_attention_is_positive_and_one_with_itself() -> None:
    found = attention(numbers(3, 8, 10))
    assert (found >= 0).all() and (found == 0).any()
    torch.testing.assert_close(found.diagonal(dim1=1, dim2=2), torch.ones(3, 10))
    torch.testing.assert_close(attention(numbers(3, 8, 10), 4.0), found**4)


def test_places_that_are_permuted_are_predicted_permuted() -> None:
    torch.manual_seed(0)
    predictor, states = Prediction(8), numbers(2, 8, 10)
    order = torch.randperm(10, generator=torch.Generator().manual_seed(3))
    with torch.no_grad():
        torch.testing.assert_close(predictor.predict(states[:, :, order]), predictor.predict(states)[:, :, order])


def test_orthogonal_places_predict_themselves_and_identical_ones_their_number() -> None:
    orthogonal = torch.linalg.qr(numbers(8, 8))[0][None, :, :6] * torch.arange(1, 7)
    with torch.no_grad():
        torch.testing.assert_close(plain(8).predict(orthogonal), orthogonal, rtol=1e-4, atol=1e-5)
        alike = F.normalize(numbers(1, 8, 1), dim=1).expand(1, 8, 7)
        torch.testing.assert_close(plain(8).predict(alike), 7 * alike)


def test_targets_get_no_gradient() -> None:
    """With values of zero nothing depends on the states but as targets: then nothing has a gradient."""
    predictor, early, late = plain(8), numbers(2, 8, 5).requires_grad_(), numbers(2, 8, 5, seed=1).requires_grad_()
    predictor(early, late).backward()
    assert early.grad.any() and late.grad.any()  # both predict
    early.grad = late.grad = None
    with torch.no_grad():
        predictor.value.weight.zero_()
    predictor(early, late).backward()
    assert not early.grad.any() and not late.grad.any() and predictor.value.weight.grad.any()


@pytest.mark.parametrize(("unit", "settles"), [(True, True), (False, False)])
def test_at_the_published_learning_rate_only_values_of_unit_length_settle(unit: bool, settles: bool) -> None:
    """Why `unit_values` is on: states as a last stage gives them, 2x7x7 places, against predicting nothing at all."""
    torch.manual_seed(0)
    shared = numbers(2, 512, 1).abs()
    early, late = ((shared + 0.7 * numbers(2, 512, 98, seed=seed)).relu() for seed in (1, 2))
    predictor = Prediction(512, unit_values=unit)
    optimizer = torch.optim.SGD(predictor.parameters(), lr=0.1, momentum=0.9, weight_decay=1e-4)
    for _ in range(60):
        optimizer.zero_grad()
        error = predictor(early, late)
        error.backward()
        optimizer.step()
    nothing = torch.cat([early, late]).abs().mean()
    assert (error < nothing) == settles


def test_half_precision_around_it_does_not_reach_the_sums() -> None:
    predictor, early, late = Prediction(16, project=True), numbers(2, 16, 30), numbers(2, 16, 30, seed=1)
    with torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16):
        within = predictor(early, late)
    assert torch.equal(within, predictor(early, late).detach())


# Clusters -------------------------------------------------------------------------------------------------------------


def slow_entropy(
    query: list[float], own: int, others: list[int], rows: list[list[float]], spread: list[float]
) -> float:
    scores = {
        cluster: sum(a * b for a, b in zip(query, rows[cluster], strict=True)) / spread[cluster]
        for cluster in {own, *others}
    }
    highest = max(scores.values())
    return log(sum(exp(score - highest) for score in scores.values())) + highest - scores[own]


@given(
    rows=some.integers(1, 6), clusters=some.integers(2, 9), negatives=some.integers(1, 12), seed=some.integers(0, 9999)
)
@settings(max_examples=40, deadline=None)
def test_the_contrast_with_clusters_is_the_one_in_loops(rows: int, clusters: int, negatives: int, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    queries = F.normalize(torch.randn(rows, 5, generator=generator, dtype=torch.float64), dim=1)
    prototypes = F.normalize(torch.randn(clusters, 5, generator=generator, dtype=torch.float64), dim=1)
    spread = 0.1 + torch.rand(clusters, generator=generator, dtype=torch.float64)
    own = torch.randint(-1, clusters, (rows,), generator=generator)
    ranks = torch.rand(rows, clusters, generator=generator)
    some_of_them = negatives < clusters - 1
    found, accuracy = against_clusters(queries, own, prototypes, spread, negatives, ranks if some_of_them else None)
    wanted, first = [], []
    for query, cluster, order in zip(queries.tolist(), own.tolist(), ranks.tolist(), strict=True):
        others = sorted((other for other in range(clusters) if other != cluster), key=order.__getitem__)
        if cluster >= 0:
            wanted.append(slow_entropy(query, cluster, others[:negatives], prototypes.tolist(), spread.tolist()))
            scores = [sum(map(mul, query, prototypes[other].tolist())) / spread[other] for other in others[:negatives]]
            first.append(sum(map(mul, query, prototypes[cluster].tolist())) / spread[cluster] > max(scores))
    assert found.item() == pytest.approx(sum(wanted) / max(len(wanted), 1), rel=1e-9, abs=1e-12)
    assert accuracy.item() == pytest.approx(sum(first) / max(len(first), 1))


def test_the_accuracy_counts_whose_own_cluster_comes_first_and_no_strangers() -> None:
    """Four clips: two that look like their own cluster, one that looks like another, and one of no cluster."""
    prototypes, own = torch.eye(3), torch.tensor([0, 1, 2, -1])
    queries = torch.eye(3)[[0, 1, 0, 0]]
    _, accuracy = against_clusters(queries, own, prototypes, torch.ones(3), 2, None)
    assert accuracy.item() == pytest.approx(2 / 3)
    _, alone = against_clusters(queries[2:3], own[2:3], prototypes, torch.ones(3), 1, torch.tensor([[0.9, 0.1, 0.5]]))
    assert alone.item() == 1  # the cluster that it looks like is not among the candidates


@pytest.mark.parametrize("negatives", [4, 8])
def test_logits_that_are_all_equal_cost_the_logarithm_of_the_candidates(negatives: int) -> None:
    """ln(Q + 1) for Q negatives; the own cluster is one candidate, once, wherever it stands."""
    queries, prototypes = torch.tensor([[1.0, 0.0]]).expand(3, 2), torch.tensor([[0.0, 1.0]]).expand(9, 2)
    ranks = numbers(3, 9).abs() if negatives < 8 else None
    found, _ = against_clusters(queries, torch.tensor([4, 0, 8]), prototypes, torch.rand(9) + 0.1, negatives, ranks)
    assert found.item() == pytest.approx(log(negatives + 1))


def clustered(temperature: float = 0.07) -> tuple[Reorganisation, Tensor]:
    pytest.importorskip("faiss", reason="needs faiss: pip install 'vssl[cpu]'")
    rooms = Reorganisation((4, 7), 30, 5, 6)
    rows = F.normalize(numbers(29, 5, 6) + 3 * numbers(1, 5, 6, seed=1), dim=2)
    index = torch.tensor([number for number in range(30) if number != 3])  # video 3 could not be read
    rooms.cluster(
        rows,
        index,
        seed=0,
        temperature=temperature,
        smoothing=10,
        iterations=20,
        restarts=2,
        device=torch.device("cpu"),
    )
    return rooms, rows


def test_the_mean_concentration_is_the_temperature_and_the_range_is_bounded() -> None:
    rooms, rows = clustered()
    for number, spread in enumerate(rooms.concentrations.split(rooms.clusters)):
        assert spread.mean().item() == pytest.approx(0.07, rel=1e-5)
        own = torch.cat([rooms.assignments[number, :3], rooms.assignments[number, 4:]]).flatten()
        centres = torch.stack([rows.flatten(0, 1)[own == cluster].mean(dim=0) for cluster in range(len(spread))])
        raw = []
        for cluster in range(len(spread)):
            members = rows.flatten(0, 1)[own == cluster]
            raw.append(float((members - centres[cluster]).norm(dim=1).mean()) / log(len(members) + 10))
        raw = sorted(raw)
        place = 0.1 * (len(raw) - 1), 0.9 * (len(raw) - 1)
        low, high = (raw[floor(at)] + (at - floor(at)) * (raw[ceil(at)] - raw[floor(at)]) for at in place)
        assert float(spread.max() / spread.min()) <= high / low * (1 + 1e-2)


def test_every_slot_of_every_video_that_was_read_belongs_to_its_nearest_centroid() -> None:
    rooms, rows = clustered()
    assert (rooms.assignments[:, 3] == -1).all() and (rooms.assignments >= 0).sum() == 2 * 29 * 5
    torch.testing.assert_close(rooms.prototypes.norm(dim=1), torch.ones(11))
    for number, prototypes in enumerate(rooms.prototypes.split(rooms.clusters)):
        own = torch.cat([rooms.assignments[number, :3], rooms.assignments[number, 4:]]).flatten()
        for cluster in own.unique().tolist():
            middle = F.normalize(rows.flatten(0, 1)[own == cluster].mean(dim=0), dim=0)
            torch.testing.assert_close(prototypes[cluster], middle, rtol=1e-3, atol=1e-3)


def test_several_clusterings_are_averaged_and_strangers_left_out() -> None:
    rooms, _ = clustered()
    queries, index = F.normalize(numbers(3, 2, 6), dim=2), torch.tensor([0, 3, 8])
    slots = torch.tensor([[0, 4], [1, 2], [3, 3]])
    ranks = {f"clusters{number}": torch.rand(3, count) for number, count in enumerate((4, 7))}
    found, _ = rooms(queries, (index, slots), 2, lambda name, count: ranks[name])
    wanted = 0.0
    for number in range(2):
        rows, spread = (
            rooms.prototypes.split(rooms.clusters)[number],
            rooms.concentrations.split(rooms.clusters)[number],
        )
        losses = []
        for row in (0, 2):
            for clip in range(2):
                own = int(rooms.assignments[number, index[row], slots[row, clip]])
                order = ranks[f"clusters{number}"][row].tolist()
                others = sorted((other for other in range(len(rows)) if other != own), key=order.__getitem__)[:2]
                losses.append(slow_entropy(queries[row, clip].tolist(), own, others, rows.tolist(), spread.tolist()))
        wanted += sum(losses) / len(losses) / 2
    assert found.item() == pytest.approx(wanted, rel=1e-4)


def test_clusterings_of_one_size_differ_and_the_same_seed_gives_the_same() -> None:
    pytest.importorskip("faiss", reason="needs faiss: pip install 'vssl[cpu]'")
    rows, found = F.normalize(numbers(40, 5, 6), dim=2), []
    for seed in (0, 0, 1):
        rooms = Reorganisation((9, 9), 40, 5, 6)
        rooms.cluster(
            rows, torch.arange(40), seed=seed, temperature=0.07, smoothing=10, iterations=3, restarts=1,
            device=torch.device("cpu"),
        )  # fmt: skip
        found.append(rooms.prototypes.split(rooms.clusters))
    first, again, other = found
    assert torch.equal(first[0], again[0]) and torch.equal(first[1], again[1])
    different = (first[0], first[1], other[0], other[1])
    assert not any(torch.allclose(one, two) for one, two in combinations(different, 2))


def test_a_state_brings_the_clusters_back() -> None:
    rooms, _ = clustered()
    other = Reorganisation((4, 7), 30, 5, 6)
    other.load_state_dict(rooms.state_dict())
    for name, value in rooms.state_dict().items():
        assert torch.equal(value, other.state_dict()[name]) and value.any()
    assert isinstance(other, nn.Module) and len(other.state_dict()) == 3
