"""Inputs, codes, attention and each term of the concepts, against slow references and the facts that must hold."""

from __future__ import annotations

from math import log

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional as F

from vssl_concepts.attention import Competing, Residual
from vssl_concepts.codes import Bank, most_active
from vssl_concepts.inputs import differences, still
from vssl_concepts.losses import alignment, contrast, local_contrast, magnitude, negentropy, reconstruction

C = 12


def seeded(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def indices(videos: int, count: int) -> Tensor:
    return torch.arange(count).expand(videos, -1)


# Inputs ---------------------------------------------------------------------------------------------------------------


@given(frames=st.integers(1, 6), tail=st.integers(1, 3), seed=st.integers(0, 99))
@settings(max_examples=20, deadline=None)
def test_differences_are_those_of_neighbours_and_the_last_one_reads_the_tail(frames, tail, seed):
    whole = seeded(2, 3, frames + tail, 4, 4, seed=seed)
    found = differences(whole[:, :, :frames], whole[:, :, frames:], indices(2, frames + tail))
    assert found.shape == (2, 3, frames, 4, 4)
    for moment in range(frames):
        assert torch.equal(found[:, :, moment], whole[:, :, moment + 1] - whole[:, :, moment])


def test_no_difference_goes_round_from_the_last_frame_to_the_first():
    """A ramp in time: each step is one, and a wrap would show as a jump back over the whole clip."""
    ramp = torch.arange(9.0).view(1, 1, 9, 1, 1).expand(2, 3, 9, 4, 4)
    assert torch.equal(differences(ramp[:, :, :8], ramp[:, :, 8:], indices(2, 9)), torch.ones(2, 3, 8, 4, 4))


def test_a_short_video_that_begins_anew_does_not_jump():
    video = 10 * seeded(1, 3, 5, 4, 4)
    order = torch.arange(9) % 5
    looped = video[:, :, order]
    found = differences(looped[:, :, :8], looped[:, :, 8:], order[None])
    assert not found[:, :, 4].any() and found[:, :, [0, 1, 2, 3, 5, 6, 7]].flatten(3).any(dim=3).all()


def test_a_static_video_has_no_difference_and_is_its_own_still_frame():
    clip = seeded(2, 3, 1, 4, 4).expand(-1, -1, 9, -1, -1)
    shown, tail = clip[:, :, :8], clip[:, :, 8:]
    assert not differences(shown, tail, indices(2, 9)).any()
    assert torch.equal(still(shown, torch.tensor([3, 7]), 8), shown)


def test_the_still_frame_is_the_chosen_one_of_each_video():
    clip = seeded(3, 3, 5, 4, 4)
    found = still(clip, torch.tensor([0, 4, 2]), 7)
    assert found.shape == (3, 3, 7, 4, 4)
    for video, frame in enumerate((0, 4, 2)):
        assert (found[video] == clip[video, :, frame, None]).all()


# Codes ----------------------------------------------------------------------------------------------------------------


def test_codes_are_cosines_that_no_scale_changes():
    torch.manual_seed(0)
    bank, vectors = Bank(7, C, transformed=False), seeded(5, C)
    codes = bank(vectors)
    wanted = [[F.cosine_similarity(vector, row, dim=0).item() for row in bank.rows] for vector in vectors]
    torch.testing.assert_close(codes, torch.tensor(wanted))
    assert (codes.abs() <= 1 + 1e-6).all()
    with torch.no_grad():
        bank.rows.mul_(torch.rand(7, 1) * 9 + 1)
    torch.testing.assert_close(bank(1000 * vectors), codes)


def test_codes_are_those_of_float32_under_half_precision():
    torch.manual_seed(0)
    bank, vectors = Bank(7, C, transformed=False), seeded(5, C)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        within = bank(vectors)
    assert torch.equal(within, bank(vectors))


def test_a_vector_of_zeros_has_a_code_of_zeros_and_costs_no_diversity():
    bank = Bank(7, C, transformed=False)
    codes = bank(torch.zeros(2, C))
    assert not codes.any() and magnitude(codes).item() == 0


def test_prototypes_come_back_to_unit_length():
    bank = Bank(7, C, transformed=False)
    with torch.no_grad():
        bank.rows.mul_(3)
    bank.make_unit()
    torch.testing.assert_close(bank.rows.norm(dim=1), torch.ones(7))


def test_a_transformed_bank_compares_something_else():
    torch.manual_seed(0)
    bank = Bank(7, C, transformed=True)
    torch.testing.assert_close(bank(seeded(5, C)).abs().amax() <= 1, torch.tensor(True))
    bank(seeded(5, C)).sum().backward()
    assert all(parameter.grad is not None for parameter in bank.parameters())


@given(concepts=st.integers(1, 12), count=st.integers(1, 12), seed=st.integers(0, 99))
@settings(max_examples=20, deadline=None)
def test_exactly_so_many_are_active_and_none_left_out_is_larger(concepts, count, seed):
    count = min(count, concepts)
    codes = seeded(4, concepts, seed=seed)
    active = most_active(codes, count)
    assert (active.sum(dim=1) == count).all()
    for code, row in zip(codes, active, strict=True):
        assert count == concepts or code[row].min() >= code[~row].max()


def test_ties_do_not_make_more_or_fewer_active():
    assert (most_active(torch.ones(3, 9), 4).sum(dim=1) == 4).all()


def test_what_both_codes_say_is_at_most_what_one_says_and_all_of_it_where_they_agree():
    one, other = seeded(6, 50), seeded(6, 50, seed=1)
    both = most_active(one, 5) & most_active(other, 5)
    assert (both.sum(dim=1) <= 5).all() and (both.sum(dim=1) < 5).any()
    assert ((most_active(one, 5) & most_active(one.clone(), 5)).sum(dim=1) == 5).all()


# Attention ------------------------------------------------------------------------------------------------------------


def attentions() -> list[nn.Module]:
    torch.manual_seed(0)
    return [Residual(C), Competing(C)]


@pytest.mark.parametrize("attention", attentions(), ids=["residual", "competing"])
def test_what_a_concept_takes_sums_to_one_over_all_places(attention):
    weights = attention.weights(seeded(5, C), 3 * seeded(2, 9, C))
    assert weights.shape == (2, 5, 9) and (weights >= 0).all()
    torch.testing.assert_close(weights.sum(dim=2), torch.ones(2, 5))


@pytest.mark.parametrize("attention", attentions(), ids=["residual", "competing"])
def test_places_have_no_order(attention):
    prototypes, places = seeded(5, C), seeded(2, 9, C)
    shuffled = places[:, torch.randperm(9, generator=torch.Generator().manual_seed(3))]
    torch.testing.assert_close(attention(prototypes, shuffled), attention(prototypes, places))


@pytest.mark.parametrize("attention", attentions(), ids=["residual", "competing"])
def test_without_values_every_video_gives_the_same(attention):
    with torch.no_grad():
        attention.value.weight.zero_()
    prototypes = seeded(5, C)
    found = attention(prototypes, seeded(3, 9, C))
    torch.testing.assert_close(found, found[:1].expand(3, -1, -1))
    if isinstance(attention, Residual):
        torch.testing.assert_close(found[0], prototypes)


def test_the_papers_attention_in_loops():
    torch.manual_seed(1)
    attention, prototypes, places = Residual(C), seeded(4, C), seeded(2, 6, C)
    found = attention(prototypes, places)
    for video in range(2):
        for concept in range(4):
            query = attention.query.weight @ prototypes[concept] * C**0.5  # of entries of unit size
            scores = torch.stack([query @ (attention.key.weight @ place) / C**0.5 for place in places[video]])
            shares = scores.softmax(dim=0)
            taken = sum(
                share * (attention.value.weight @ place) for share, place in zip(shares, places[video], strict=True)
            )
            torch.testing.assert_close(found[video, concept], prototypes[concept] + taken)


def test_a_concept_does_not_look_everywhere_alike_before_it_has_learned_where():
    torch.manual_seed(0)
    prototypes, places = F.normalize(seeded(5, 256), dim=1), seeded(2, 18, 256).relu()
    shares = 18 * Residual(256).weights(prototypes, places)  # of what each place would get if all were alike
    assert (shares.amax(dim=2) > 1.2).all() and (shares.amin(dim=2) < 0.85).all()


def test_the_codes_attention_in_loops():
    torch.manual_seed(1)
    attention, prototypes, places = Competing(C), seeded(4, C), seeded(2, 6, C)
    found = attention(prototypes, places)
    asked = [attention.query.weight @ attention.prototype_norm(row) for row in prototypes]
    for video in range(2):
        rows = [attention.place_norm(place) for place in places[video]]
        shares = torch.stack(
            [torch.stack([query @ (attention.key.weight @ row) / C**0.5 for query in asked]).softmax(0) for row in rows]
        )  # (places, concepts)
        shares = shares / shares.sum(dim=0)
        for concept in range(4):
            taken = sum(
                share * (attention.value.weight @ row) for share, row in zip(shares[:, concept], rows, strict=True)
            )
            gathered = prototypes[concept] + taken
            wanted = gathered + attention.refine(attention.norm(gathered))
            torch.testing.assert_close(found[video, concept], wanted)


# Terms ----------------------------------------------------------------------------------------------------------------


@given(videos=st.integers(1, 6), concepts=st.integers(1, 9), seed=st.integers(0, 99))
@settings(max_examples=20, deadline=None)
def test_alignment_is_the_cross_entropy(videos, concepts, seed):
    scores = seeded(videos, concepts, seed=seed).clamp(-1, 1)
    wanted = torch.softmax(seeded(videos, concepts, seed=seed + 1), dim=1)
    total = 0.0
    for row, target in zip((scores / 0.1).tolist(), wanted.tolist(), strict=True):
        whole = log(sum(torch.tensor(value - max(row)).exp().item() for value in row)) + max(row)
        total += -sum(share * (value - whole) for share, value in zip(target, row, strict=True))
    assert alignment(scores, wanted, 0.1).item() == pytest.approx(total / videos, rel=1e-4, abs=1e-5)


def test_no_gradient_flows_into_what_is_wanted_or_rebuilt():
    scores, wanted = seeded(3, 4).requires_grad_(), seeded(3, 4).softmax(dim=1).requires_grad_()
    guess, features = seeded(3, C).requires_grad_(), seeded(3, C, seed=1).requires_grad_()
    keys = F.normalize(seeded(3, 4, C), dim=2).requires_grad_()
    queries = F.normalize(seeded(3, 4, C, seed=1), dim=2).detach().requires_grad_()
    total = alignment(scores, wanted, 0.1) + local_contrast(queries, keys, torch.ones(3, 4, dtype=torch.bool), 1.4)
    total = total + sum(reconstruction(guess, features, kind) for kind in ("unit", "l2_raw", "cosine"))
    total = total + contrast(guess, features, 0.07)
    total.backward()
    assert wanted.grad is None and features.grad is None and keys.grad is None
    assert all(tensor.grad.isfinite().all() and tensor.grad.any() for tensor in (scores, guess, queries))


def test_the_size_of_codes_is_their_l1_norm():
    assert magnitude(torch.tensor([[1.0, -2.0], [0.5, 0.5]])).item() == pytest.approx(2.0)


def test_the_negative_entropy_is_least_where_all_concepts_are_alike():
    assert negentropy(torch.zeros(3, 8), 0.1).item() == pytest.approx(-log(8))
    assert negentropy(50.0 * torch.eye(8), 0.1).item() == pytest.approx(0, abs=1e-5)


def test_the_three_reconstructions_by_hand():
    guess, features = seeded(5, C), 4 * seeded(5, C, seed=1)
    cosines = [F.cosine_similarity(one, other, dim=0).item() for one, other in zip(guess, features, strict=True)]
    raw = [
        sum((a - b) ** 2 for a, b in zip(one.tolist(), other.tolist(), strict=True))
        for one, other in zip(guess, features, strict=True)
    ]
    units = (F.normalize(guess, dim=1) - F.normalize(features, dim=1)).square().sum(dim=1).mean().item()
    assert reconstruction(guess, features, "unit").item() == pytest.approx(units, rel=1e-4)
    assert reconstruction(guess, features, "l2_raw").item() == pytest.approx(sum(raw) / 5, rel=1e-4)
    assert reconstruction(guess, features, "cosine").item() == pytest.approx(-sum(cosines) / 5, rel=1e-4)
    assert reconstruction(3 * features, features, "unit").item() == pytest.approx(0, abs=1e-5)


def slow_local(queries: Tensor, keys: Tensor, valid: Tensor, margin: float) -> float:
    """The paper's equation 9 in loops, with negatives averaged and divided by how many concepts are valid."""
    total, count = 0.0, 0
    for video in range(len(queries)):
        for concept in range(queries.shape[1]):
            if not valid[video, concept]:
                continue
            count += 1
            total += float((queries[video, concept] - keys[video, concept]).norm() ** 2)
            pushes = [
                max(margin - float((queries[video, concept] - keys[other, concept]).norm()), 0) ** 2
                for other in range(len(queries))
                if other != video
            ]
            total += sum(pushes) / len(pushes) if pushes else 0.0
    return total / count if count else 0.0


@given(videos=st.integers(1, 5), concepts=st.integers(1, 6), margin=st.floats(0, 2), seed=st.integers(0, 99))
@settings(max_examples=30, deadline=None)
def test_the_local_contrast_in_loops(videos, concepts, margin, seed):
    queries, keys = (F.normalize(seeded(videos, concepts, C, seed=seed + more), dim=2) for more in (0, 1))
    valid = seeded(videos, concepts, seed=seed + 2) > 0
    found = local_contrast(queries, keys, valid, margin).item()
    assert found == pytest.approx(slow_local(queries, keys, valid, margin), rel=1e-4, abs=1e-6)


def test_identical_pairs_far_from_all_others_cost_nothing():
    rows = torch.eye(C)[:4, None].expand(-1, 3, -1)  # videos at right angles: sqrt 2 apart, more than 1.4
    valid = torch.ones(4, 3, dtype=torch.bool)
    assert local_contrast(rows, rows.clone(), valid, 1.4).item() == 0
    assert local_contrast(rows, rows.clone(), valid, 1.5).item() > 0


def test_where_nothing_is_valid_it_is_zero_and_still_in_the_graph():
    queries = F.normalize(seeded(3, 4, C), dim=2).requires_grad_()
    found = local_contrast(queries, queries, torch.zeros(3, 4, dtype=torch.bool), 1.4)
    found.backward()
    assert found.item() == 0 and not queries.grad.any()


def test_videos_that_are_all_alike_have_finite_gradients():
    queries = F.normalize(torch.ones(4, 3, C), dim=2).requires_grad_()
    local_contrast(queries, queries, torch.ones(4, 3, dtype=torch.bool), 1.4).backward()
    assert queries.grad.isfinite().all()


def test_the_contrast_finds_its_own_key():
    rows = torch.eye(C)[:6]
    assert contrast(rows, rows, 0.07).item() == pytest.approx(0, abs=1e-4)
    assert contrast(torch.ones(6, C), rows, 0.07).item() == pytest.approx(log(6))
