"""The concepts as a whole: the loss in loops, when its terms are in force, what moves when, and what is refused."""

from __future__ import annotations

from copy import deepcopy
from itertools import product
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from pydantic import ValidationError
from torch import Tensor, nn
from torch.nn import functional as F

import vssl_concepts
from vssl_concepts import objective as room
from vssl_concepts.objective import INPUTS, Concepts, ordered_pairs
from vssl_concepts.options import OFFICIAL
from vssl_core import ANY, PLAIN, Batch, ClipSettings, ConfigError, Context, Features, Halves, Sample, View
from vssl_core.plugins import new_manager

C, VIDEOS, FRAMES, SIZE = 16, 5, 4, 8
MAP = (C, 2, 2, 2)


def build(videos: int = 40, batch_size: int = VIDEOS, epochs: int = 40, seed: int = 0, **options: object) -> Concepts:
    torch.manual_seed(seed)
    context = Context(
        name="concepts",
        clip=ClipSettings(FRAMES, SIZE, 1),
        backbone=nn.Identity(),
        feature_dim=C,
        stages={"stage4": (C // 2, 4, 4, 4), "stage5": MAP},
        videos=videos,
        epochs=epochs,
        steps_per_epoch=10,
        batch_size=batch_size,
        world_size=1,
    )
    options = {"static_concepts": 6, "dynamic_concepts": 4, "valid": 0.5, "queue": 10, **options}
    return Concepts(Concepts.Config(**options), context)


def net(clip: Tensor) -> dict[str, Tensor]:
    """A backbone without state: fixed random convolutions."""
    generator = torch.Generator().manual_seed(99)
    weight = torch.randn(C, 3, 2, 4, 4, generator=generator)
    stage5 = F.conv3d(clip, weight, stride=(2, 4, 4)).relu()
    return {"stage4": F.interpolate(stage5[:, : C // 2], size=(4, 4, 4)), "stage5": stage5}


def batch_of(clips: int = 1, epoch: int = 0, seed: int = 0, still: bool = False) -> Batch:
    generator = torch.Generator().manual_seed(seed)
    encoded: list[Tensor] = []

    def features(clip: Tensor) -> Features:
        return Features(lambda: net(clip))

    def view(frames: int) -> View:
        shown = torch.randn(VIDEOS, 3, frames + 1, SIZE, SIZE, generator=generator)
        windows: Any = SimpleNamespace(indices=torch.arange(frames + 1).expand(VIDEOS, -1))
        clip = shown[:, :, :frames].contiguous()
        return View(clip, shown[:, :, frames:], windows, {}, features(clip))

    def encode(clip: Tensor, statistics: bool) -> Features:
        encoded.append(clip)
        return features(clip)

    slots = {"clips": tuple(view(FRAMES) for _ in range(clips))}
    if still:
        slots["still"] = tuple(view(1) for _ in range(clips))
    samples = [Sample(0, 0, 0, number) for number in range(VIDEOS)]
    batch = Batch("concepts", slots, torch.arange(VIDEOS), samples, epoch=epoch, progress=0.0, encode=encode)
    batch.encoded = encoded  # type: ignore[attr-defined]
    return batch


def announce(objective: Concepts, hook: str, **arguments: object) -> None:
    """A moment of the run, as the engine tells of it."""
    manager = new_manager()
    manager.register(objective, "concepts")
    getattr(manager.hook, hook)(**arguments)


def push(objective: Concepts, kept: Tensor) -> None:
    report = SimpleNamespace(kept={"concepts": {"codes": kept}})
    announce(objective, "vssl_step_end", run=None, report=report)


# The loss in loops ----------------------------------------------------------------------------------------------------


def slow_assignments(scores: Tensor, epsilon: float = 0.05, iterations: int = 3) -> Tensor:
    """Sinkhorn-Knopp, written down."""
    matrix = ((scores - scores.max()) / epsilon).exp()
    for _ in range(iterations):
        matrix = matrix / matrix.sum(dim=0, keepdim=True) / matrix.shape[1]
        matrix = matrix / matrix.sum(dim=1, keepdim=True) / matrix.shape[0]
    return matrix / matrix.sum(dim=1, keepdim=True)


def entropy(wanted: Tensor, scores: Tensor) -> Tensor:
    return -(wanted * F.log_softmax(scores / 0.1, dim=1)).sum(dim=1).mean()


def seen(batch: Batch, still: bool = False) -> dict[str, list[Tensor]]:
    """Maps of the three inputs of each clip, from the equations alone."""
    frame = batch.draw("frame", 0, FRAMES)
    maps: dict[str, list[Tensor]] = {name: [] for name in INPUTS}
    for number, view in enumerate(batch["clips"]):
        whole = torch.cat([view.clip, view.tail], dim=2)
        stills = [
            batch["still"][number].clip[video, :, 0] if still else view.clip[video, :, frame[video]]
            for video in range(VIDEOS)
        ]
        maps["static"].append(net(torch.stack(stills)[:, :, None].repeat(1, 1, FRAMES, 1, 1))["stage5"])
        maps["dynamic"].append(
            net(torch.stack([whole[:, :, t + 1] - whole[:, :, t] for t in range(FRAMES)], 2))["stage5"]
        )
        maps["video"].append(net(view.clip)["stage5"])
    return maps


def slow_codes(objective: Concepts, name: str, values: Tensor) -> Tensor:
    bank = objective.banks[name]
    rows = bank.transform(values.mean(dim=(2, 3, 4)))
    return torch.stack(
        [torch.stack([F.cosine_similarity(row, prototype, dim=0) for prototype in bank.rows]) for row in rows]
    )


def top(code: Tensor, count: int) -> set[int]:
    return set(sorted(range(len(code)), key=lambda k: -float(code[k]))[:count])


def slow_pair(one: Tensor, other: Tensor, valid: list[set[int]]) -> Tensor:
    """Equation 9, both ways, for unit local features (B, K, C)."""
    total, count = torch.zeros(()), sum(map(len, valid))
    for first, second in ((one, other), (other, one)):
        for video, concepts in enumerate(valid):
            for k in concepts:
                total = total + (first[video, k] - second[video, k]).norm() ** 2 / count
                for stranger in set(range(VIDEOS)) - {video}:
                    lack = (1.4 - (first[video, k] - second[stranger, k]).norm()).clamp(min=0)
                    total = total + lack**2 / (VIDEOS - 1) / count
    return total


@torch.no_grad()
def test_the_papers_loss_in_loops():
    objective, batch = build(), batch_of(epoch=5)
    for seed in (7, 8, 9):
        push(objective, objective(batch_of(seed=seed)).keep["codes"])
    maps = {name: clips[0] for name, clips in seen(batch).items()}
    codes = {name: slow_codes(objective, name, values) for name, values in maps.items()}
    halves = {"static": codes["video"][:, :6], "dynamic": codes["video"][:, 6:]}
    queued = objective.queue.rows_in_order()
    past = {"static": (queued[:, :6], queued[:, 10:16]), "dynamic": (queued[:, 6:10], queued[:, 16:])}
    aligned = torch.zeros(())
    for kind in ("static", "dynamic"):
        wanted = [
            slow_assignments(torch.cat([old, own]))[-VIDEOS:]
            for old, own in zip(past[kind], (codes[kind], halves[kind]), strict=True)
        ]
        aligned = aligned + entropy(wanted[0], halves[kind]) + entropy(wanted[1], codes[kind])
    diverse = sum(code.abs().sum(dim=1).mean() for code in codes.values())
    rebuilt = torch.zeros(())
    for name, values in maps.items():
        guess = F.normalize(objective.decoders[name](codes[name]), dim=1)
        rebuilt = rebuilt + (guess - F.normalize(values.mean(dim=(2, 3, 4)), dim=1)).square().sum(dim=1).mean()
    features = {
        name: F.normalize(objective.attention(objective.banks[name].rows, values.flatten(2).transpose(1, 2)), dim=2)
        for name, values in maps.items()
    }
    local = torch.zeros(())
    for kind, half, count in (("static", slice(0, 6), 3), ("dynamic", slice(6, 10), 2)):
        valid = [top(codes[kind][video], count) & top(halves[kind][video], count) for video in range(VIDEOS)]
        assert any(valid) and not all(len(found) == count for found in valid)
        local = local + slow_pair(features[kind], features["video"][:, half], valid)
    losses = objective(batch).losses
    torch.testing.assert_close(losses["alignment"], aligned, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(losses["diversity"], 0.01 * diverse, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(losses["fidelity"], rebuilt, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(losses["local"], local, rtol=1e-4, atol=1e-5)
    assert set(losses) == {"alignment", "diversity", "fidelity", "local"}


@torch.no_grad()
def test_the_codes_loss_in_loops():
    objective = build(variant="official", warmup_epochs=0, queue=0)
    batch = batch_of(clips=2, still=True)
    maps = seen(batch, still=True)
    codes = {name: [slow_codes(objective, name, values) for values in clips] for name, clips in maps.items()}
    halves = {"static": slice(0, 6), "dynamic": slice(6, 10)}
    own = {kind: [code[:, half] for code in codes[kind]] for kind, half in halves.items()}
    aligned = mismatched = torch.zeros(())
    for kind, half in halves.items():
        four = [*own[kind], *(code[:, half] for code in codes["video"])]
        pairs = [(i, j) for i, j in product(range(4), repeat=2) if i != j]
        aligned = aligned + sum(entropy(slow_assignments(four[j]), four[i]) for i, j in pairs) / len(pairs)
        (other,) = set(halves) - {kind}
        shares = [(code[:, halves[other]] / 0.1).softmax(dim=1) for code in codes[kind]]
        mismatched = mismatched + sum((share * share.log()).sum(dim=1).mean() for share in shares) / 2
    local = torch.zeros(())
    for name in INPUTS:
        rows = objective.banks[name].rows[halves.get(name, slice(None))]
        gathered = [
            F.normalize(objective.attention(rows, values.flatten(2).transpose(1, 2)), dim=2) for values in maps[name]
        ]
        used = codes["video"] if name == "video" else own[name]
        count = {"static": 3, "dynamic": 2, "video": 5}[name]
        valid = [top(used[0][video], count) & top(used[1][video], count) for video in range(VIDEOS)]
        local = local + slow_pair(*gathered, valid)
    losses = objective(batch).losses
    torch.testing.assert_close(losses["alignment"], aligned, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(losses["diversity"], 0.1 * mismatched, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(losses["local"], local, rtol=1e-4, atol=1e-5)
    assert set(losses) == {"alignment", "diversity", "fidelity", "local", "contrast"}


@torch.no_grad()
def test_the_codes_contrast_in_loops():
    objective, batch = build(variant="official"), batch_of(clips=2, still=True)
    vectors = {
        name: [values.mean(dim=(2, 3, 4)) for values in clips] for name, clips in seen(batch, still=True).items()
    }
    rows = {
        name: [F.normalize(objective.projectors[name](one), dim=1) for one in clips] for name, clips in vectors.items()
    }

    def both(one: Tensor, other: Tensor) -> Tensor:
        logits = one @ other.T / 0.07
        return (F.cross_entropy(logits, torch.arange(VIDEOS)) + F.cross_entropy(logits.T, torch.arange(VIDEOS))) / 2

    wanted = both(*rows["video"])
    for kind in ("static", "dynamic"):
        wanted = wanted + (both(rows["video"][0], rows[kind][1]) + both(rows["video"][1], rows[kind][0])) / 2
    torch.testing.assert_close(objective(batch).losses["contrast"], wanted, rtol=1e-4, atol=1e-5)


def test_the_pairs_of_the_alignment():
    assert ordered_pairs(1, "cross") == ([(0, 1), (1, 0)], 2.0)
    assert ordered_pairs(1, "all") == ([(0, 1), (1, 0)], 1.0)
    assert len(ordered_pairs(2, "cross")[0]) == 8 and len(ordered_pairs(2, "all")[0]) == 12


def test_alignment_does_not_ask_which_is_the_video():
    objective = build(queue=0)
    codes = {name: [torch.randn(VIDEOS, 10).clamp(-1, 1)] for name in INPUTS}
    one = {"static": [codes["static"][0][:, :6]], "dynamic": [codes["dynamic"][0][:, :4]], "video": codes["video"]}
    turned = {
        "static": [codes["video"][0][:, :6]],
        "dynamic": [codes["video"][0][:, 6:]],
        "video": [torch.cat([one["static"][0], one["dynamic"][0]], dim=1)],
    }
    torch.testing.assert_close(objective._alignment(one, 0), objective._alignment(turned, 0))


def test_the_queue_takes_part_from_its_epoch_on():
    objective = build(queue=10)
    push(objective, objective(batch_of(seed=5)).keep["codes"])
    early, late = (objective(batch_of(epoch=epoch)).losses["alignment"].item() for epoch in (0, 1))
    alone = build(queue=0)
    assert early == pytest.approx(alone(batch_of()).losses["alignment"].item(), rel=1e-5) and abs(early - late) > 1e-5
    empty = build(queue=10)(batch_of(epoch=1)).losses["alignment"].item()
    assert empty == pytest.approx(early, rel=1e-5)


def test_gradients_reach_everything_that_is_trained():
    for options in ({}, {"variant": "official", "warmup_epochs": 0}):
        objective = build(**options)
        official = bool(options)
        terms = objective(batch_of(clips=1 + official, epoch=5, still=official))
        sum(terms.losses.values()).backward()
        for name, parameter in objective.named_parameters():
            assert parameter.grad is not None and parameter.grad.isfinite().all(), name
        assert all(objective.banks[name].rows.grad.any() for name in INPUTS)


def test_the_backbone_gets_gradients_through_codes_but_not_through_what_is_rebuilt():
    objective = build()
    vector = torch.randn(VIDEOS, C, requires_grad=True)
    codes = {name: [torch.randn(VIDEOS, size)] for name, size in (("static", 6), ("dynamic", 4), ("video", 10))}
    objective._fidelity(codes, {name: [vector] for name in INPUTS}).backward()
    assert vector.grad is None


def test_halves_have_names_and_both_fit_together():
    objective = build()
    assert objective.halves == {"static": slice(0, 6), "dynamic": slice(6, 10)}
    assert [len(objective.banks[name].rows) for name in INPUTS] == [6, 4, 10]
    assert [len(build(diversity="mismatch").banks[name].rows) for name in INPUTS] == [10, 10, 10]


# When terms are in force ----------------------------------------------------------------------------------------------


def test_before_its_epoch_the_local_term_is_absent_and_nothing_is_selected(monkeypatch):
    def refuse(*_: object) -> None:
        raise AssertionError("selected before the warm-up is over")

    objective = build()
    monkeypatch.setattr(room, "most_active", refuse)
    monkeypatch.setattr(objective.attention, "forward", refuse)
    for epoch in range(5):
        assert "local" not in objective(batch_of(epoch=epoch)).losses
    with pytest.raises(AssertionError, match="before the warm-up"):
        objective(batch_of(epoch=5))


def test_factors_of_zero_leave_terms_and_nets_out():
    objective = build(local_factor=0, fidelity_factor=0, diversity_factor=0)
    assert objective.attention is None and objective.decoders is None
    assert set(objective(batch_of(epoch=9)).losses) == {"alignment"}


def test_factors_multiply_their_terms():
    names = ("diversity", "fidelity", "local")
    once, twice = build(diversity_factor=1), build(diversity_factor=2, fidelity_factor=2, local_factor=2)
    one, two = (objective(batch_of(epoch=9)).losses for objective in (once, twice))
    for name in names:
        assert two[name].item() == pytest.approx(2 * one[name].item(), rel=1e-5)
    assert two["alignment"].item() == one["alignment"].item()


def test_the_backbone_runs_once_for_each_input():
    for options, wanted in (({}, 2), ({"variant": "official"}, 4)):
        batch = batch_of(clips=1 + bool(options), still=bool(options))
        build(**options)(batch)
        assert len(batch.encoded) == wanted
        assert all(clip.shape == (VIDEOS, 3, FRAMES, SIZE, SIZE) for clip in batch.encoded)


def test_another_stage_may_be_read():
    objective = build(stage="stage4", static_concepts=3, dynamic_concepts=3)
    assert objective.banks["video"].rows.shape == (6, C // 2)
    assert objective(batch_of(epoch=9)).losses["local"].isfinite()


# State ----------------------------------------------------------------------------------------------------------------


def test_prototypes_are_unit_and_move_only_in_announcements():
    objective = build()
    optimizer = torch.optim.SGD(objective.parameters(), lr=1.0)
    for step in range(2):
        optimizer.zero_grad()
        terms = objective(batch_of(seed=step, epoch=5))
        sum(terms.losses.values()).backward()
        optimizer.step()
        assert (objective.banks["video"].rows.norm(dim=1) - 1).abs().max() > 1e-4
        push(objective, terms.keep["codes"])
        for bank in objective.banks.values():
            torch.testing.assert_close(bank.rows.norm(dim=1), torch.ones(len(bank.rows)))


@pytest.mark.parametrize(("epoch", "frozen"), [(0, True), (1, False)])
def test_prototypes_rest_in_the_first_epoch(epoch, frozen):
    objective = build()
    sum(objective(batch_of()).losses.values()).backward()
    announce(objective, "vssl_backward_end", run=SimpleNamespace(epoch=epoch))
    assert all((bank.rows.grad is None) == frozen for bank in objective.banks.values())
    assert all(parameter.grad is not None for parameter in objective.decoders.parameters())


def test_forward_changes_nothing_but_running_statistics():
    objective = build(variant="official", warmup_epochs=0)
    before = deepcopy(objective.state_dict())
    objective(batch_of(clips=2, epoch=3, still=True))
    changed = {name for name, value in objective.state_dict().items() if not torch.equal(value, before[name])}
    assert changed and all(name.endswith(("running_mean", "running_var", "num_batches_tracked")) for name in changed)


def test_the_queue_holds_the_codes_of_all_inputs():
    objective = build(queue=10)
    kept = objective(batch_of()).keep["codes"]
    assert kept.shape == (VIDEOS, 6 + 4 + 10) and not kept.requires_grad
    push(objective, kept)
    assert torch.equal(objective.queue.rows_in_order(), kept)
    assert build(queue=0)(batch_of()).keep == {}


# Options and requests -------------------------------------------------------------------------------------------------


def test_it_asks_for_one_colour_and_one_frame_more_and_yields_the_rest():
    (request,) = build().requests().values()
    assert (request.clips, request.tail) == (1, 1)
    assert request.appearance.per == "clip" and request.appearance.colour is ANY
    assert {request.placement, request.boxes, request.flips} == {ANY} and {request.strides, request.turns} == {PLAIN}


def test_the_code_asks_for_two_clips_that_follow_each_other_and_two_still_frames():
    asked = build(variant="official").requests()
    assert asked["clips"].placement == Halves() and asked["clips"].clips == 2 and asked["clips"].tail == 1
    assert (asked["clips"].strides.choices.low, asked["clips"].strides.choices.high) == (1, 3)
    assert (asked["still"].clips, asked["still"].frames) == (2, 1)


def test_the_variant_changes_defaults_and_what_you_say_stays():
    paper, official = Concepts.Config(), Concepts.Config(variant="official")
    assert {key: getattr(official, key) for key in OFFICIAL} == dict(OFFICIAL)
    assert all(getattr(paper, key) != value for key, value in OFFICIAL.items())
    assert Concepts.Config(variant="official", attention="residual").attention == "residual"
    read = Concepts.Config(**official.model_dump())
    assert read == official


def test_sizes_follow_features_list_and_run_unless_they_are_given():
    def sizes(features: int, **run: Any) -> tuple[int, ...]:
        context = build(**run).context
        wide = Context(**{**vars(context), "stages": {"stage5": (features, 2, 2, 2)}})
        made = Concepts(Concepts.Config(), wide)
        return (*made.widths, len(made.queue), made.warmup, made.counts["static"], made.counts["video"])

    assert sizes(512, videos=9537, batch_size=64, epochs=200) == (50, 50, 100, 1024, 5, 5, 10)
    assert sizes(128, videos=12, batch_size=4, epochs=2) == (32, 32, 64, 12, 0, 3, 6)
    assert sizes(16, videos=100, batch_size=8, epochs=8) == (4, 4, 8, 96, 2, 1, 1)


def test_more_concepts_than_features_are_refused_in_a_sentence():
    with pytest.raises(
        ConfigError, match=r"plugins\.concepts\.static_concepts.*: 10 and 8 concepts are more than .* 16 .*at most 16"
    ):
        build(static_concepts=10, dynamic_concepts=8)
    assert build(static_concepts=10, dynamic_concepts=6)


def test_a_stage_that_is_not_there_is_refused_in_a_sentence():
    with pytest.raises(
        ConfigError, match=r"plugins\.concepts: the backbone has no stage 'stage6', it has stage4, stage5"
    ):
        build(stage="stage6")


def test_a_queue_longer_than_the_list_is_refused():
    with pytest.raises(ConfigError, match=r"plugins\.concepts\.queue: 41 rows .* 40 videos"):
        build(queue=41)


@pytest.mark.parametrize(
    "options",
    [
        {"static_concepts": 1}, {"valid": 0}, {"valid": 1.1}, {"margin": 3}, {"clips": 0}, {"pairs": "within"},
        {"strides": (3, 1)}, {"strides": (0, 1)}, {"temperature": 0}, {"variant": "code"}, {"k": 5},
    ],
)  # fmt: skip
def test_options_have_bounds(options):
    with pytest.raises(ValidationError):
        Concepts.Config(**options)


# What evaluations may read --------------------------------------------------------------------------------------------


@torch.no_grad()
def test_named_features_are_those_of_the_papers_third_table():
    objective, batch = build(), batch_of(clips=1)
    found = objective.named_features(batch)
    values = net(batch["clips"][0].clip)["stage5"]
    torch.testing.assert_close(found["v"], values.mean(dim=(2, 3, 4)))
    codes = slow_codes(objective, "video", values)
    torch.testing.assert_close(found["q"], codes)
    torch.testing.assert_close(torch.cat([found["q_static"], found["q_dynamic"]], dim=1), codes)
    local = objective.attention(objective.banks["video"].rows, values.flatten(2).transpose(1, 2))
    for name, first, last, count in (("F", 0, 10, 5), ("F_static", 0, 6, 3), ("F_dynamic", 6, 10, 2)):
        for video in range(VIDEOS):
            chosen = [first + k for k in top(codes[video, first:last], count)]
            torch.testing.assert_close(found[name][video], local[video, chosen].mean(dim=0))
    weights = objective.attention.weights(objective.banks["video"].rows, values.flatten(2).transpose(1, 2))
    maps = found["maps"].unflatten(1, (2, -1))
    for video in range(VIDEOS):
        torch.testing.assert_close(maps[video, 0], weights[video, codes[video, :6].argmax()])
        torch.testing.assert_close(maps[video, 1], weights[video, 6 + codes[video, 6:].argmax()])
    assert found["frames"].shape == (VIDEOS, 2 * SIZE * SIZE)
    assert all(rows.shape[0] == VIDEOS and rows.ndim == 2 for rows in found.values())


def test_without_a_local_term_there_is_no_local_feature():
    assert set(build(local_factor=0).named_features(batch_of())) == {"v", "q", "q_static", "q_dynamic"}


def test_the_plugin_offers_both():
    from vssl_concepts.drawings import Drawings

    assert vssl_concepts.vssl_objective() is Concepts and "ECCV 2022" in vssl_concepts.PAPER
    assert vssl_concepts.vssl_evaluation() is Drawings
