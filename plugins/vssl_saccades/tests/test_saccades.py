"""Saccades as a whole: the contrast in loops, what moves when, when it clusters, real runs, and what is refused."""

from __future__ import annotations

from copy import deepcopy
from math import exp, log
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from small_runs import BATCH, STEPS, VIDEOS, Stop, StopAt, Watch, open_small, weights, with_broken
from torch import Tensor, nn
from torch.nn import functional as F

import vssl_saccades
from vssl_core import (
    ANY,
    PLAIN,
    Batch,
    ClipSettings,
    ConfigError,
    Context,
    DataError,
    Features,
    MemoryBank,
    Sample,
    ShardedMemoryBank,
    View,
)
from vssl_core.config import build_options
from vssl_core.plugins import new_manager
from vssl_core.testing import check_plugin
from vssl_saccades import reorganisation as room
from vssl_saccades.objective import Saccades
from vssl_saccades.options import OFFICIAL
from vssl_saccades.reorganisation import first_epoch

pytest.importorskip("faiss", reason="needs faiss: pip install 'vssl[cpu]'")

LIST, FEATURES, SIZE, FRAMES = 9, 12, 8, 3
SEEN = [4, 0, 7]  # the videos of a batch


class Net(nn.Module):
    """A backbone of one layer and a batch norm."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Conv3d(3, FEATURES, 2), nn.BatchNorm3d(FEATURES), nn.ReLU())

    def forward(self, clip: Tensor) -> dict[str, Tensor]:
        """{'stage5': the map}."""
        return {"stage5": self.body(clip)}


def build(seed: int = 0, videos: int = LIST, epochs: int = 12, **options: Any) -> Saccades:
    torch.manual_seed(seed)
    context = Context(
        name="saccades",
        clip=ClipSettings(FRAMES, SIZE, 1),
        backbone=Net(),
        feature_dim=FEATURES,
        stages={"stage5": (FEATURES, 2, 7, 7)},
        videos=videos,
        epochs=epochs,
        steps_per_epoch=3,
        batch_size=len(SEEN),
        world_size=1,
    )
    return Saccades(build_options(Saccades.Config, {"restarts": 1, **options}, "saccades"), context)


def clips(count: int, seed: int = 0) -> Tensor:
    return torch.randn(count, 3, FRAMES, SIZE, SIZE, generator=torch.Generator().manual_seed(seed))


def batch_of(objective: Saccades, index: list[int] = SEEN, epoch: int = 0, measures: Any = None) -> Batch:
    """A batch of these videos: two noisy clips for each fixation, which nobody may read but masked."""
    count = 2 * objective.config.fixations

    def never() -> dict[str, Tensor]:
        raise AssertionError("a clip was read without its mask")

    def encode(clip: Tensor, statistics: bool) -> Features:
        asked.append((clip, statistics))
        return Features(lambda: objective.context.backbone(clip))

    asked: list[tuple[Tensor, bool]] = []
    shown = [clips(LIST)[index] + 0.1 * clips(len(index), seed + 1) for seed in range(count)]
    views = tuple(View(clip, clip[:, :, :0], None, (measures or [{}] * count)[at], Features(never))
                  for at, clip in enumerate(shown))  # fmt: skip
    samples = [Sample(0, epoch, 0, video) for video in index]
    batch = Batch(
        "saccades", {"clips": views}, torch.tensor(index), samples, epoch=epoch, progress=epoch / 12, encode=encode
    )
    batch.asked = asked
    return batch


class Run:
    """What the objective reads of a run; the whole list is extracted in two batches."""

    def __init__(self, objective: Saccades, epoch: int = 0, unreadable: tuple[int, ...] = ()) -> None:
        self.objective, self.epoch, self.unreadable = objective, epoch, unreadable
        self.device, self.config = torch.device("cpu"), SimpleNamespace(seed=0)
        self.extractions = 0

    def extract(self, request: Any, encode: Any) -> dict[str, Any]:
        """As the engine does it: eval mode, index order, unreadable rows left out."""
        self.extractions += 1
        backbone = self.objective.context.backbone.eval()
        index = torch.tensor([row for row in range(LIST) if row not in self.unreadable])
        parts = []
        for part in index.chunk(2):
            view = View(clips(LIST)[part], None, None, {}, None)
            batch = Batch("extract", {"clips": (view,)}, part, [], epoch=0, progress=0.0,
                          encode=lambda clip, statistics: Features(lambda: backbone(clip)))  # fmt: skip
            parts.append(encode(batch)["rows"])
        backbone.train()
        return {"rows": torch.cat(parts), "index": index, "unreadable": list(self.unreadable)}


def announce(objective: Saccades, hook: str, **arguments: object) -> None:
    """A moment of the run, as the engine tells of it."""
    manager = new_manager()
    manager.register(objective, "saccades")
    getattr(manager.hook, hook)(**arguments)


def step(objective: Saccades, index: list[int] = SEEN, epoch: int = 0) -> Any:
    """Forward, and what is announced after it."""
    terms = objective(batch_of(objective, index, epoch))
    kept = {name: rows.detach() for name, rows in terms.keep.items()}
    report = SimpleNamespace(kept={"saccades": kept}, index=torch.tensor(index))
    announce(objective, "vssl_step_end", run=Run(objective), report=report)
    return terms


# What is asked and shown ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("fixations", [5, 9])
def test_it_asks_for_two_clips_of_each_fixation_with_boxes_of_their_own(fixations: int) -> None:
    request = build(fixations=fixations).requests()["clips"]
    assert request.clips == 2 * fixations and request.flips is ANY and request.measures == ()
    assert {request.strides, request.placement, request.turns, request.frames, request.size} == {PLAIN}
    assert request.appearance.colour == "jittered" and request.appearance.per == "clip"


@pytest.mark.parametrize("mask", ["multiply", "residual", "none"])
def test_the_net_sees_masked_clips_alone_in_one_forward_that_moves_the_running_statistics(mask: str) -> None:
    objective = build(mask=mask)
    batch = batch_of(objective)
    objective(batch)
    ((seen, statistics),) = batch.asked
    assert statistics and seen.shape == (10 * len(SEEN), 3, FRAMES, SIZE, SIZE)
    for number, view in enumerate(batch["clips"]):
        own = objective.masks[number % 5]  # the same fixation at both moments
        wanted = {"multiply": view.clip * own, "residual": view.clip * (1 + own), "none": view.clip}[mask]
        torch.testing.assert_close(seen[number * len(SEEN) : (number + 1) * len(SEEN)], wanted)


def test_fixations_of_a_crop_show_the_same_part_of_it_mirrored_or_not() -> None:
    clip, crop = build(), build(mask_space="crop")
    fixations, flip = torch.tensor([0, 0, 4]), torch.tensor([False, True, True])
    seen = clips(3)
    view = View(torch.where(flip[:, None, None, None, None], seen.flip(4), seen), None, SimpleNamespace(flip=flip), {},
                Features(dict))  # fmt: skip
    found = crop._masked(view, fixations)
    back = torch.where(flip[:, None, None, None, None], found.flip(4), found)
    torch.testing.assert_close(back, seen * crop.masks[fixations][:, None, None])
    assert torch.equal(clip._masked(view, fixations), view.clip * clip.masks[fixations][:, None, None])
    assert torch.equal(found[[0, 2]], clip._masked(view, fixations)[[0, 2]])  # the centre is its own mirror image


# The contrast ---------------------------------------------------------------------------------------------------------


def slow_contrast(objective: Saccades, batch: Batch, options: dict[str, Any]) -> tuple[float, Tensor]:
    """(the loss, the unit rows (B, 10, D)), anchor by anchor."""
    slots = 1 if options.get("slots") == "video" else 5
    net, whole = deepcopy(objective.context.backbone), objective.context.videos * slots
    masked = [
        view.clip if options.get("mask") == "none" else view.clip * objective.masks[number % 5]
        for number, view in enumerate(batch["clips"])
    ]
    with torch.no_grad():
        vectors = net(torch.cat(masked))["stage5"].mean(dim=(2, 3, 4)).view(10, len(batch), FEATURES)
    rows = F.normalize(vectors, dim=2).transpose(0, 1)
    siblings = options.get("siblings", "always")
    count = options["negatives"] - (slots - 1 if siblings == "always" else 0)
    drawn = batch.draw("negatives", 0, whole - (1 if siblings == "sampled" else slots), (10, count))
    bank, total = objective.bank.rows.double(), 0.0
    for row, video in enumerate(batch.index.tolist()):
        family = list(range(video * slots, (video + 1) * slots))
        for clip in range(10):
            own = family[clip % 5 if slots > 1 else 0]
            if siblings == "sampled":
                others = [number for number in range(whole) if number != own]
            else:
                others = [number for number in range(whole) if number not in family]
            negatives = [others[number] for number in drawn[row, clip].tolist()]
            negatives += [slot for slot in family if slot != own] if siblings == "always" else []
            assert own not in negatives and len(negatives) == options["negatives"]
            anchor = rows[row, clip].double()
            positive = rows[row, (clip + 5) % 10].double() if options.get("positive") == "view" else bank[own]
            scores = [float(anchor @ other) / 0.07 for other in (positive, *bank[negatives])]
            highest = max(scores)
            total += log(sum(exp(score - highest) for score in scores)) + highest - scores[0]
    return total / (10 * len(batch)), rows


@pytest.mark.parametrize(
    "options",
    [
        {"negatives": 12},
        {"negatives": 12, "siblings": "sampled"},
        {"negatives": 12, "siblings": "never"},
        {"negatives": 4},  # the siblings and nobody else
        {"negatives": 7, "positive": "view"},
        {"negatives": 6, "mask": "none", "slots": "video"},
        {"negatives": 12, "bank": "sharded"},
    ],
)
def test_the_contrast_is_the_one_in_loops(options: dict[str, Any]) -> None:
    objective = build(**options)
    step(objective)  # the bank is not all random any more
    batch = batch_of(objective, epoch=1)
    wanted, rows = slow_contrast(objective, batch, options)
    terms = objective(batch)
    assert terms.losses["contrast"].item() == pytest.approx(wanted, rel=1e-4)
    torch.testing.assert_close(terms.keep["rows"], (rows[:, :5] + rows[:, 5:]) / 2)


def test_a_clip_is_told_from_as_many_slots_as_there_are() -> None:
    assert build().negatives == 9 * 5 - 1 and build(siblings="never").negatives == 8 * 5
    assert build(videos=9537).negatives == 1024 and build(videos=1).negatives == 4
    assert build(mask="none", slots="video").negatives == 8


@pytest.mark.parametrize("videos", [1, 2])
def test_lists_of_one_or_two_videos_have_a_loss(videos: int) -> None:
    objective = build(videos=videos)
    assert objective(batch_of(objective, [0, videos - 1])).losses["contrast"].isfinite()


def test_gradients_reach_the_net_and_the_predictor_and_no_slot() -> None:
    objective = build(projection=6)
    terms = objective(batch_of(objective))
    assert set(terms.losses) == {"contrast", "prediction"}
    sum(terms.losses.values()).backward()
    trained = [*objective.parameters(), *objective.context.backbone.parameters()]
    assert all(parameter.grad is not None and parameter.grad.isfinite().all() for parameter in trained)
    assert not objective.bank.rows.requires_grad and objective.bank.rows.shape == (45, 6)
    (group,) = objective.parameter_groups()
    assert group.learning_rate_scale == 1e-3 and len(list(group.parameters)) == 2
    assert not list(build().parameter_groups())


def test_a_loss_has_its_weight_and_without_any_nothing_of_it_is_built() -> None:
    whole, half = build(), build(prediction_weight=0.5)
    losses = [objective(batch_of(objective)).losses["prediction"].item() for objective in (whole, half)]
    assert losses[1] == pytest.approx(losses[0] / 2)
    found = []
    for weight in (1.0, 0.5):
        objective = build(reorganisation_weight=weight, reorganise_from=0)
        announce(objective, "vssl_epoch_start", run=Run(objective))
        found.append(objective(batch_of(objective)).losses["clusters"].item())
    assert found[1] == pytest.approx(found[0] / 2) and found[0] > 0
    bare = build(prediction_weight=0, reorganisation_weight=0, reorganise_from=0)
    assert bare.predictor is None and bare.clusters is None and list(bare.state_dict()) == ["bank.rows"]
    assert set(bare(batch_of(bare, epoch=9)).losses) == {"contrast"}


def test_states_of_one_moment_are_apart_or_one() -> None:
    """The states that meet are the same fixation of the same video at two moments; mixed, all fixations of a moment."""
    seen: list[tuple[Tensor, Tensor]] = []
    for mixed in (False, True):
        objective = build(mix_fixations=mixed)
        objective.predictor.forward = lambda early, late: (seen.append((early, late)), early.mean())[1]
        batch = batch_of(objective)
        objective(batch)
        with torch.no_grad():
            maps = deepcopy(objective.context.backbone)(batch.asked[0][0])["stage5"].flatten(2)
        maps = maps.view(10, len(SEEN), FEATURES, -1)
        for moment, states in enumerate(seen[-1]):
            if mixed:
                wanted = torch.cat(list(maps[5 * moment : 5 * moment + 5]), dim=2)
            else:
                wanted = torch.cat(list(maps[5 * moment : 5 * moment + 5]))
            torch.testing.assert_close(states.detach(), wanted)


# The bank -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("bank", ["replicated", "sharded"])
@pytest.mark.parametrize("index", [SEEN, [4, 7, 4]])
def test_a_step_touches_the_slots_of_its_videos_and_no_other(bank: str, index: list[int]) -> None:
    objective = build(bank=bank)
    before = objective.bank.rows.clone()
    step(objective, index)
    touched = [slot for slot in range(45) if not torch.equal(before[slot], objective.bank.rows[slot])]
    assert touched == [slot for slot in range(45) if slot // 5 in index]
    torch.testing.assert_close(objective.bank.rows.norm(dim=1), torch.ones(45))


def test_momentum_decides_how_far_a_slot_moves() -> None:
    still, new, half = build(momentum=0), build(momentum=1), build()
    before = half.bank.rows.clone()
    for objective in (still, new, half):
        kept = step(objective).keep["rows"]
    assert torch.equal(still.bank.rows, before)
    for row, video in enumerate(SEEN):
        latest = F.normalize(kept[row], dim=1)
        slots = slice(5 * video, 5 * video + 5)
        torch.testing.assert_close(new.bank.rows[slots], latest)
        torch.testing.assert_close(half.bank.rows[slots], F.normalize(before[slots] + latest, dim=1))


def test_a_slot_for_a_video_is_the_mean_of_its_clips() -> None:
    objective = build(mask="none", slots="video", momentum=1)
    kept = step(objective).keep["rows"]
    assert len(objective.bank) == LIST
    torch.testing.assert_close(objective.bank.rows[SEEN], F.normalize(kept.mean(dim=1), dim=1))


def test_forward_changes_nothing_but_running_statistics() -> None:
    objective = build(reorganise_from=0)
    announce(objective, "vssl_epoch_start", run=Run(objective))
    before = deepcopy(objective.state_dict())
    objective(batch_of(objective, epoch=0))
    assert all(torch.equal(value, before[name]) for name, value in objective.state_dict().items())


def test_the_bank_is_of_the_kind_and_precision_that_was_asked() -> None:
    assert type(build().bank) is MemoryBank and type(build(bank="sharded").bank) is ShardedMemoryBank
    assert build(bank_precision="float16").bank.rows.dtype == torch.float16


# Reorganisation -------------------------------------------------------------------------------------------------------


def test_it_clusters_from_its_start_on_every_few_epochs_and_never_before(monkeypatch: pytest.MonkeyPatch) -> None:
    objective = build(clusters=[3, 6], reorganise_from=3, every=5)
    run, calls, clusterings = Run(objective), [], []
    real = room.kmeans
    monkeypatch.setattr(room, "kmeans", lambda *given, **options: (calls.append(given[1]), real(*given, **options))[1])
    for epoch in range(12):
        run.epoch, before, seen = epoch, deepcopy(objective.state_dict()), len(calls)
        announce(objective, "vssl_epoch_start", run=run)
        now = calls[seen:]
        assert now in ([], [3, 6])
        clusterings += [epoch] if now else []
        clusters = [name for name in before if name.startswith("clusters.")]
        assert len(clusters) == 3
        assert all(torch.equal(before[name], objective.state_dict()[name]) for name in clusters) != bool(now)
        terms = step(objective, epoch=epoch)
        assert ("clusters" in terms.losses) == (epoch >= 3)
        with torch.no_grad():
            for parameter in objective.context.backbone.parameters():
                parameter.add_(0.05 * torch.randn(parameter.shape))
    assert clusterings == [3, 8] and run.extractions == 2


def test_what_is_clustered_is_every_part_of_the_middle_of_every_video() -> None:
    objective = build(clusters=[4], reorganise_from=0)
    announce(objective, "vssl_epoch_start", run=Run(objective, unreadable=(2,)))
    assert (objective.clusters.assignments[0, 2] == -1).all() and (objective.clusters.assignments >= 0).sum() == 40
    net = deepcopy(objective.context.backbone).eval()
    with torch.no_grad():
        rows = torch.stack([F.normalize(net(clips(LIST) * mask)["stage5"].mean(dim=(2, 3, 4)), dim=1)
                            for mask in objective.masks], dim=1)  # fmt: skip
    for cluster in range(4):
        members = rows[objective.clusters.assignments[0] == cluster]
        middle = F.normalize(members.mean(dim=0), dim=0)
        torch.testing.assert_close(objective.clusters.prototypes[cluster], middle, rtol=1e-3, atol=1e-3)
    assert objective.clusters.concentrations.mean().item() == pytest.approx(0.07, rel=1e-4)
    terms = objective(batch_of(objective, [2, 2, 2]))
    assert terms.losses["clusters"] == 0  # a video that could not be read has no cluster to find


@pytest.mark.parametrize(("options", "forwards"), [({}, 5), ({"mask": "none", "siblings": "never"}, 1)])
def test_parts_that_look_alike_are_looked_at_once(options: dict[str, Any], forwards: int) -> None:
    objective, view = build(**options), View(clips(2), None, None, {}, None)
    seen: list[Tensor] = []

    def encode(clip: Tensor, statistics: bool) -> Features:
        seen.append(clip)
        return Features(lambda: objective.context.backbone(clip))

    batch = Batch("extract", {"clips": (view,)}, torch.arange(2), [], epoch=0, progress=0.0, encode=encode)
    assert objective._look(batch)["rows"].shape == (2, 5, FEATURES) and len(seen) == forwards


def test_a_clip_finds_the_cluster_of_its_own_part() -> None:
    objective = build(clusters=[4], reorganise_from=0, negatives=30)
    announce(objective, "vssl_epoch_start", run=Run(objective))
    terms = objective(batch_of(objective))
    with torch.no_grad():
        batch, rows = batch_of(objective), slow_contrast(objective, batch_of(objective), {"negatives": 30})[1]
        losses = []
        for row, video in enumerate(batch.index.tolist()):
            for clip in range(10):
                logits = rows[row, clip] @ objective.clusters.prototypes.T / objective.clusters.concentrations
                own = objective.clusters.assignments[0, video, clip % 5]
                losses.append(F.cross_entropy(logits, own))
    assert terms.losses["clusters"].item() == pytest.approx(float(torch.stack(losses).mean()), rel=1e-4)


def test_it_starts_at_the_published_share_of_the_run_and_not_in_its_first_epoch() -> None:
    assert first_epoch(None, 360) == 300 and first_epoch(None, 20) == 16 and first_epoch(None, 1) == 1
    assert first_epoch(0, 20) == 0 and first_epoch(61, 100) == 61


def test_numbers_of_clusters_follow_the_list() -> None:
    assert build(videos=9537).clusters.clusters == (1500, 1500, 1500)
    assert build(videos=60).clusters.clusters == (10, 10, 10) and build(videos=9).clusters.clusters == (2, 2, 2)


# Real runs ------------------------------------------------------------------------------------------------------------


def test_a_run_that_is_stopped_in_its_last_phase_goes_on_as_if_nothing_had_happened(tmp_path: Path) -> None:
    options = {"saccades": {"clusters": [2, 4], "restarts": 1, "bank_precision": "float16"}}
    watch = Watch()
    whole = open_small(tmp_path / "whole", {"saccades": None, "watch": watch}, options=options)
    whole.train()
    assert ["saccades/clusters" in losses for losses in watch.losses] == [False] * STEPS + [True] * STEPS
    with pytest.raises(Stop):
        open_small(tmp_path / "cut", {"saccades": None, "stop": StopAt(STEPS + 1)}, options=options).train()
    resumed = open_small(tmp_path / "cut", {"saccades": None, "stop": StopAt(99)}, options=options)
    assert resumed.step == STEPS + 1
    resumed.train()
    before, after = weights(whole.ensemble), weights(resumed.ensemble)
    assert all(torch.equal(before[name], after[name]) for name in before) and "objectives.saccades.bank.rows" in before


def test_the_statistics_of_the_net_follow_masked_clips(tmp_path: Path) -> None:
    run = open_small(tmp_path, {"saccades": None}, epochs=1)
    names = [name for name in run.backbone.state_dict() if name.endswith("running_mean")]
    before = weights(run.backbone)
    run.train()
    assert names and all(not torch.equal(before[name], run.backbone.state_dict()[name]) for name in names)


def test_a_video_that_cannot_be_read_keeps_its_slots(tmp_path: Path) -> None:
    run = open_small(
        tmp_path / "run",
        {"saccades": None},
        videos=with_broken(tmp_path, [5]),
        options={"saccades": {"clusters": [3], "restarts": 1}},
        data={"max_bad_fraction": 0.5},
    )
    before = run.objectives["saccades"].bank.rows.clone()
    run.train()
    saccades = run.objectives["saccades"]
    assert torch.equal(saccades.bank.rows[25:30], before[25:30]) and (saccades.clusters.assignments[0, 5] == -1).all()
    assert len(run.objectives["saccades"].bank) == 5 * VIDEOS and BATCH < VIDEOS


@pytest.mark.slow
@pytest.mark.parametrize(
    "options",
    [
        {"bank": "sharded", "bank_precision": "float16", "siblings": "sampled"},
        {"variant": "official", "fixations": 9, "area": 0.2, "attention_power": 4, "projection": 16},
        {"mask": "none", "slots": "video", "positive": "view", "prediction_weight": 0, "reorganisation_weight": 0},
    ],
    ids=["spread", "official", "no saccades"],
)
def test_other_choices_keep_the_contract_too(options: dict[str, Any]) -> None:
    """Two ranks equal one with a spread bank as well, and a restart changes nothing."""
    check_plugin("saccades", **options)


# Saliency -------------------------------------------------------------------------------------------------------------


def write_maps(path: Path, leave_out: tuple[int, ...] = (), bright: int = 3) -> Path:
    """Maps of 6x8 for the dozen videos, all their saliency in one quarter of the frame."""
    quarter = np.zeros((4, 6, 8), np.uint8)
    quarter[:, 3 * (bright // 2) : 3 * (bright // 2) + 3, 4 * (bright % 2) : 4 * (bright % 2) + 4] = 255
    named = {f"train/{('left', 'right')[number % 2]}/{number:02d}": quarter for number in range(VIDEOS)}
    np.savez(path, **{name: maps for name, maps in named.items() if int(name[-2:]) not in leave_out})
    return path


def guided(tmp_path: Path, maps: Path, **options: Any) -> Any:
    return open_small(
        tmp_path / "run",
        {"saccades": None},
        options={"saccades": {"maps": str(maps), "reorganisation_weight": 0, **options}},
        epochs=1,
        clip={"area": (1.0, 1.0), "aspect": (4 / 3, 4 / 3), "flip": 0.0},  # clips show the whole frame
    )


@pytest.mark.parametrize("more", [{}, {"mask_space": "crop"}, {"mask_space": "frame", "mask": "residual"}])
def test_saliency_chooses_the_fixations_and_only_their_slots_move(tmp_path: Path, more: dict[str, str]) -> None:
    run = guided(tmp_path, write_maps(tmp_path / "maps.npz"), perturbation=0, **more)
    before = run.objectives["saccades"].bank.rows.clone()
    run.train()
    bank = run.objectives["saccades"].bank.rows
    moved = [slot for slot in range(5 * VIDEOS) if not torch.equal(before[slot], bank[slot])]
    assert moved == [5 * video + 3 for video in range(VIDEOS)]
    torch.testing.assert_close(bank.norm(dim=1), torch.ones(5 * VIDEOS))


def test_perturbed_fixations_are_drawn_evenly(tmp_path: Path) -> None:
    watch, run = Watch(), guided(tmp_path, write_maps(tmp_path / "maps.npz"))
    run.manager.register(watch, "watch")
    run.train()
    seen = torch.cat([report.kept["saccades"]["fixations"] for report in watch.reports]).flatten()  # 60
    shares = torch.bincount(seen, minlength=5) / len(seen)
    assert 0.4 < shares[3] < 0.8 and (shares > 0).all()  # 0.6: a half, and a fifth of the other half


def test_votes_of_both_moments_count_and_where_there_are_none_all_fixations_take_turns() -> None:
    objective = build()
    object.__setattr__(objective.config, "maps", "some.npz")
    object.__setattr__(objective.config, "perturbation", 0.0)
    votes = torch.zeros(10, len(SEEN), 5)
    votes[0, 0, 1], votes[5, 0, 2] = 1, 2  # the first pair of the first video: two frames against one
    votes[6, 1, 4] = 3  # the second pair of the second
    batch = batch_of(objective, measures=[{"saccade_votes": rows} for rows in votes])
    found = objective._fixations(batch)
    assert found[0].tolist() == [2, 1, 2, 3, 4] and found[1].tolist() == [0, 4, 2, 3, 4]
    assert found[2].tolist() == [0, 1, 2, 3, 4]


def test_a_video_without_maps_is_a_sentence(tmp_path: Path) -> None:
    run = guided(tmp_path, write_maps(tmp_path / "maps.npz", leave_out=(4, 7)))
    wanted = (
        r"^plugins\.saccades\.maps: .*maps\.npz holds no maps for 2 videos, the first is .*/04\.mp4.*'04'; add them"
    )
    with pytest.raises(DataError, match=wanted):
        run.train()


# Mistakes -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"clusters": [3, 46]}, r"clusters: 46 clusters cannot be made of the 45 slots of 9 videos; choose .* 2 to 45"),
        ({"clusters": [1]}, r"clusters: 1 clusters cannot be made"),
        ({"negatives": 45}, r"negatives: 45 cannot be taken from the 44 other slots of 9 videos.* from 4 to 44"),
        ({"negatives": 3}, r"negatives: 3 cannot .* of which 4 at least"),
        ({"stage": "stage6"}, r"no stage 'stage6'.* did you mean 'stage5'"),
        ({"mask_space": "frame"}, r"mask_space: frame leaves clips empty .* add mask: residual"),
        ({"slots": "video"}, r"slots: video gives different parts one slot; add mask: none"),
        ({"mask": "none", "maps": "some.npz"}, r"maps has no effect with mask: none"),
        ({"fixations": 7}, r"fixations: .*5 or 9"),
        ({"maps": "/no/such/file.npz"}, r"maps: /no/such/file\.npz cannot be read as a file of saliency maps"),
        ({"fixation": 5}, r"did you mean 'fixations'"),
    ],
)
def test_what_cannot_be_is_one_sentence(options: dict[str, Any], says: str) -> None:
    with pytest.raises(ConfigError, match=rf"^plugins\.saccades.*{says}") as error:
        build(**options)
    assert "\n" not in str(error.value)


def test_a_bank_that_does_not_fit_says_how_much_it_needs() -> None:
    with pytest.raises(
        ConfigError, match=r"^plugins\.saccades\.bank: 25,000,000,000 rows of 12 numbers need 1\.2e\+03 GB"
    ):
        build(videos=5 * 10**9, reorganisation_weight=0)


def test_too_few_readable_videos_are_a_sentence() -> None:
    objective = build(clusters=[44], reorganise_from=0)
    wanted = r"^plugins\.saccades\.clusters: 8 of 9 videos can be read, whose 40 slots cannot form 44 clusters; .* 40"
    with pytest.raises(DataError, match=wanted):
        announce(objective, "vssl_epoch_start", run=Run(objective, unreadable=(2,)))


def test_the_variant_of_the_code_changes_defaults_and_yields_to_what_you_say() -> None:
    official, mixed = (build_options(Saccades.Config, {"variant": "official", **more}, "saccades")
                       for more in ({}, {"siblings": "always"}))  # fmt: skip
    assert {name: getattr(official, name) for name in OFFICIAL} == dict(OFFICIAL)
    assert mixed.siblings == "always" and mixed.mask == "residual" and Saccades.Config().mask == "multiply"


def test_the_plugin_offers_it() -> None:
    assert vssl_saccades.vssl_objective() is Saccades and "2023" in vssl_saccades.PAPER
