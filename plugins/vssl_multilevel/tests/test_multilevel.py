"""MLRep as an objective: what it asks for, when its terms are in force, its state, and the stages of papers' nets."""

from __future__ import annotations

from collections import deque
from copy import deepcopy
from dataclasses import replace
from math import ceil, log
from types import SimpleNamespace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError
from torch import Tensor, nn
from torch.nn import functional as F

import vssl_multilevel
from vssl_core import (
    ANY,
    PLAIN,
    Appearance,
    Batch,
    Between,
    Boxes,
    ClipSettings,
    ConfigError,
    Context,
    Features,
    Flips,
    Halves,
    Independent,
    Sample,
    Strides,
    Turns,
    View,
    Windows,
    build_backbone,
    sinkhorn,
)
from vssl_core.nets.stages import stage_shapes
from vssl_core.plugins import new_manager
from vssl_core.windows import draw_windows
from vssl_multilevel.losses import compare, graph, together, towards
from vssl_multilevel.objective import MultiLevel
from vssl_multilevel.options import VARIANTS

VIDEOS, FRAMES, SIZE = 6, 8, 16
STAGES = {"stage1": (4, 8, 6, 6), "stage2": (32, 8, 5, 5), "stage3": (48, 4, 3, 3), "stage4": (64, 2, 2, 2)}
TEMPORAL = {f"{task}_{level}" for task in ("order", "timestamp") for level in ("low", "mid")} | {"timestamp_high"}


def context(stages: dict[str, tuple[int, int, int, int]] | None = None, **changes: object) -> Context:
    stages = STAGES if stages is None else stages
    made = Context(
        name="multilevel",
        clip=ClipSettings(FRAMES, SIZE, 1),
        backbone=nn.Identity(),
        feature_dim=list(stages.values())[-1][0] if stages else 0,
        stages=stages,
        videos=60,
        epochs=20,
        steps_per_epoch=10,
        batch_size=VIDEOS,
        world_size=1,
    )
    return replace(made, **changes)  # type: ignore[arg-type]


def build(about: Context | None = None, **options: object) -> MultiLevel:
    torch.manual_seed(0)
    return MultiLevel(MultiLevel.Config(**options), about or context())  # type: ignore[arg-type]


def maps(stages: dict[str, tuple[int, int, int, int]], videos: int = VIDEOS, seed: int = 0) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {name: torch.rand(videos, *shape, generator=generator) for name, shape in stages.items()}


def windows_of(objective: MultiLevel, totals: list[int]) -> list[Windows]:
    """The windows that are really drawn for these videos, clip by clip."""
    asked = objective.requests()["clips"]
    whole = replace(asked, frames=FRAMES, size=SIZE, turns=Turns((0,)), flips=Flips(0.5))
    whole = replace(whole, boxes=replace(whole.boxes, aspect=(0.75, 1.33)))
    drawn = [
        draw_windows(whole, Sample(0, 0, 0, video), "clips", total, (48, 64)) for video, total in enumerate(totals)
    ]
    return [Windows.of(clip) for clip in zip(*drawn, strict=True)]


def batch_of(
    objective: MultiLevel, seed: int = 0, epoch: int = 19, totals: list[int] | None = None, alike: bool = False
) -> Batch:
    """A batch of random stages; with `alike` all clips of a video have the same ones."""
    totals = totals or [90] * VIDEOS
    views = []
    for clip, windows in enumerate(windows_of(objective, totals)):
        frames = windows.indices.shape[1]
        shapes = {
            name: (channels, timestamps * frames // FRAMES, *place)
            for name, (channels, timestamps, *place) in objective.context.stages.items()
        }
        stages = maps(shapes, len(totals), 10 * seed + (0 if alike else clip))
        pixels = torch.rand(len(totals), 3, frames, SIZE, SIZE, generator=torch.Generator().manual_seed(seed + clip))
        views.append(View(pixels, pixels[:, :, :0], windows, {}, Features(lambda stages=stages: stages)))
    samples = [Sample(seed, epoch, 0, video) for video in range(len(totals))]
    index = torch.arange(len(totals))
    return Batch("multilevel", {"clips": tuple(views)}, index, samples, epoch=epoch, progress=0.5, encode=_encode)


def _encode(clip: Tensor, statistics: bool) -> Features:
    """A net that sees order: the frames' brightness, weighed by their place."""
    weights = torch.arange(1.0, clip.shape[2] + 1)[:, None, None]
    seen = (clip.mean(dim=1, keepdim=True) * weights).mean(dim=(2, 3, 4), keepdim=True)  # (B, 1, 1, 1, 1)
    stages = {name: seen * torch.linspace(-1, 1, shape[0])[:, None, None, None] for name, shape in STAGES.items()}
    return Features(lambda: {name: F.pad(values, (0, 0, 0, 0, 0, 1)) for name, values in stages.items()})


def announce(objective: MultiLevel, hook: str, **arguments: object) -> None:
    """A moment of the run, as the engine tells of it."""
    manager = new_manager()
    manager.register(objective, "multilevel")
    getattr(manager.hook, hook)(**arguments)


def end_step(objective: MultiLevel, scores: Tensor | None) -> None:
    kept = {} if scores is None else {"scores": scores}
    announce(objective, "vssl_step_end", run=None, report=SimpleNamespace(kept={"multilevel": kept}))


# What it asks for -----------------------------------------------------------------------------------------------------


def test_it_asks_for_two_halves_and_an_overview_of_one_span():
    request = build().requests()["clips"]
    assert request.clips == 3 and request.placement == Halves("sparse")
    assert request.strides == Strides(Between(1, 3), shared=True, short="fit")
    assert request.boxes == Boxes(Independent(), (0.5, 1.0)) and request.flips is ANY
    assert request.appearance == Appearance("jittered", "frame") and request.turns is PLAIN
    assert request.frames is PLAIN and request.size is PLAIN


def test_a_dense_overview_has_all_frames_of_both_halves():
    first, second, overview = windows_of(build(overview="dense"), [90, 80, 70])
    assert overview.indices.shape == (3, 2 * FRAMES)
    assert torch.equal(overview.indices, torch.cat([first.indices, second.indices], dim=1))
    assert not torch.equal(overview.box, first.box)  # a crop of its own


def test_without_timestamps_to_find_it_does_without_the_overview():
    for options in ({"temporal": "none"}, {"temporal": "input"}, {"temporal_weights": (0, 0, 0)}):
        request = build(**options).requests()["clips"]
        assert request.clips == 2 and request.placement == Halves()


@given(total=st.integers(16, 400), seed=st.integers(0, 1000))
@settings(max_examples=40, deadline=None)
def test_the_overview_is_every_second_frame_of_the_halves(total, seed):
    first, second, overview = windows_of(build(), [total])
    if first.real.all() and second.real.all():
        assert torch.equal(torch.cat([first.indices, second.indices], dim=1)[:, ::2], overview.indices)


# Which terms are in force ---------------------------------------------------------------------------------------------


def test_the_graph_waits_for_the_second_stage():
    objective = build(first_stage=0.2)  # of 20 epochs
    first, second = (set(objective(batch_of(objective, epoch=epoch)).losses) for epoch in (3, 4))
    assert first == {"instance", "semantic"} | TEMPORAL
    assert second - first == {"graph_low", "graph_mid"}


@pytest.mark.parametrize(("share", "epoch"), [(0, 0), (0.15, 45), (1 / 6, 50), (1, 300)])
def test_the_first_stage_is_a_share_of_the_run(share, epoch):
    assert build(context(epochs=300), first_stage=share).graph_epoch == epoch


@pytest.mark.parametrize(
    ("options", "wanted"),
    [
        ({"graph_weights": (0, 0, 0)}, {"instance", "semantic"} | TEMPORAL),
        ({"graph_weights": (0, 0, 1)}, {"instance", "semantic", "graph_high"} | TEMPORAL),
        ({"temporal": "none"}, {"instance", "semantic", "graph_low", "graph_mid"}),
        ({"temporal": "input"}, {"instance", "semantic", "graph_low", "graph_mid", "clip_order"}),
        ({"variant": "official"}, {"instance", "semantic", "graph_low", "graph_mid", "graph_high"} | TEMPORAL),
        ({"semantic_weight": 0, "graph": "one_hot"}, {"instance", "graph_low", "graph_mid"} | TEMPORAL),
    ],
)
def test_what_is_switched_off_has_neither_term_nor_parameters(options, wanted):
    objective = build(**options)
    terms = objective(batch_of(objective))
    assert set(terms.losses) == wanted
    torch.stack(list(terms.losses.values())).sum().backward()
    assert all(parameter.grad is not None for parameter in objective.parameters())


@pytest.mark.parametrize(("overview", "missing"), [("sparse", {"timestamp_high"}), ("dense", set())])
def test_one_timestamp_has_no_order_and_is_looked_for_only_among_several(overview, missing):
    small = {"stage3": (8, 4, 2, 2), "stage4": (8, 2, 1, 1), "stage5": (8, 1, 1, 1)}
    objective = build(context(small), overview=overview)
    assert set(objective(batch_of(objective)).losses) == {"instance", "semantic", "graph_low", "graph_mid"} | (
        TEMPORAL - missing
    )


def test_weights_are_factors():
    heavy = {"semantic_weight": 1.0, "temporal_weights": (0.6, 1.0, 2.0), "graph_weights": (0.6, 1.0, 0.0)}
    plain, doubled = build(), build(**heavy)
    doubled.load_state_dict(plain.state_dict())
    once, twice = (objective(batch_of(objective)).losses for objective in (plain, doubled))
    assert once.keys() == twice.keys()
    for name in once:
        factor = 1 if name == "instance" else 2
        torch.testing.assert_close(factor * once[name], twice[name])


def test_clips_without_a_seam_alone_count_in_finding_timestamps():
    objective = build().eval()
    mixed = objective(batch_of(objective, totals=[90, 90, 90, 90, 10, 5])).losses
    whole = objective(batch_of(objective, totals=[90] * 4 + [95, 97])).losses
    short = objective(batch_of(objective, totals=[10] * VIDEOS)).losses
    values = {name: [losses[name].item() for losses in (mixed, whole, short)] for name in mixed}
    assert values["timestamp_low"][0] != values["timestamp_low"][1] and values["timestamp_low"][2] == 0
    assert values["instance"][0] == values["instance"][1] == values["instance"][2]


@pytest.mark.parametrize(("overview", "as_one"), [("sparse", 2), ("dense", 1)])
def test_timestamps_of_the_halves_are_those_of_the_overview(overview, as_one):
    """Halves one behind the other, each averaged to half its length where the overview is as short as one of them."""
    objective = build(retrieval="short", overview=overview).eval()
    batch = batch_of(objective)
    for name in ("low", "mid", "high"):
        level, stage = objective._level(name), objective.stages[name]
        said = []
        for view in batch["clips"]:
            excited = level.excite(level(view.features.stages[stage]))
            said.append(level.timestamps("timestamp", excited))  # (B, T, D)
        half = said[0].shape[1] // as_one
        pooled = [F.adaptive_avg_pool1d(one.transpose(1, 2), half).transpose(1, 2) for one in said[:2]]
        cosines = F.cosine_similarity(torch.cat(pooled, dim=1)[:, :, None], said[2][:, None], dim=3)
        wanted = F.cross_entropy((cosines / 0.07).flatten(0, 1), torch.arange(2 * half).repeat(VIDEOS))
        found = objective(batch).losses[f"timestamp_{name}"] / objective.temporal_weights[name]
        assert found.item() == pytest.approx(wanted.item(), rel=1e-4)


def test_order_tells_that_motion_excitation_is_in_the_path():
    """Averages over time do not see the order; only what motion excitation adds does."""
    objective = build()
    for level in ("low", "mid"):
        objective.levels[level].motion.expand[1].weight.data.zero_()
    batch = batch_of(objective, alike=True)
    blind = objective(batch).losses
    assert blind["order_low"].item() == pytest.approx(0.3 * log(3), rel=1e-5)
    assert blind["order_mid"].item() == pytest.approx(0.5 * log(3), rel=1e-5)
    for level in ("low", "mid"):
        objective.levels[level].motion.expand[1].weight.data.fill_(2.0)
    seeing = objective(batch).losses
    assert abs(seeing["order_low"].item() - 0.3 * log(3)) > 1e-3
    assert abs(seeing["order_mid"].item() - 0.5 * log(3)) > 1e-3


@pytest.mark.parametrize("name", ["low", "mid"])
def test_order_sets_each_half_against_its_own_map_played_backwards(name):
    objective = build(changes=("reverse",)).eval()
    batch, level, stage = batch_of(objective), objective._level(name), objective.stages[name]
    shown = [view.features.stages[stage] for view in batch["clips"][:2]]
    first, second = (level.rows("order", level.excite(level(maps))) for maps in shown)
    turned = [level.rows("order", level.excite(level(maps.flip(2)))) for maps in shown]
    losses = []
    for own, changed in ((first, turned[0]), (second, turned[1])):
        scores = torch.stack([(first * second).sum(1), (own * changed).sum(1)], dim=1) / 0.07
        losses.append(F.cross_entropy(scores, torch.zeros(VIDEOS, dtype=torch.long)))
    found = objective(batch).losses[f"order_{name}"] / objective.temporal_weights[name]
    assert found.item() == pytest.approx(torch.stack(losses).mean().item(), rel=1e-4)


@pytest.mark.parametrize("kind", ["combined", "instance", "semantic", "one_hot"])
def test_levels_are_drawn_to_what_the_high_level_says(kind):
    objective = build(graph=kind, queue=0, prototypes=2).eval()
    batch = batch_of(objective)
    shown = [view.features.stages for view in batch["clips"][:2]]

    def rows(name: str, task: str) -> Tensor:
        level = objective._level(name)
        return torch.stack([level.rows(task, level.excite(level(maps[objective.stages[name]]))) for maps in shown], 1)

    scores = [objective.prototypes(maps["stage4"].mean(dim=(2, 3, 4))) for maps in shown]
    labels = (sinkhorn(scores[0]) + sinkhorn(scores[1])).argmax(dim=1)
    assert 0 < labels.sum() < VIDEOS  # both prototypes are in use
    high = compare(rows("high", "instance"), 0.07)
    edges = {
        "combined": graph(high, labels, 0.05, both=True),
        "instance": graph(high, None, 0.05, both=True),
        "semantic": (labels[:, None] == labels).float() / (labels[:, None] == labels).sum(dim=1, keepdim=True),
        "one_hot": torch.eye(VIDEOS),
    }[kind]
    losses = objective(batch).losses
    for name, weight in (("low", 0.3), ("mid", 0.5)):
        wanted = weight * towards(together(compare(rows(name, "graph"), 0.07)), edges)
        torch.testing.assert_close(losses[f"graph_{name}"], wanted, rtol=1e-4, atol=1e-5)


def test_the_conventional_way_reads_clips_in_other_orders():
    objective = build(temporal="input", changes=("reverse",))
    batch = batch_of(objective)
    first, second = (
        objective._level("high").rows("clip_order", maps["stage4"].mean(dim=(3, 4)))
        for maps in (view.features.stages for view in batch["clips"])
    )
    turned = [_encode(view.clip.flip(2), False).stages["stage4"].mean(dim=(3, 4)) for view in batch["clips"]]
    turned = [objective._level("high").rows("clip_order", values) for values in turned]
    losses = []
    for own, changed in ((first, turned[0]), (second, turned[1])):
        scores = torch.stack([(first * second).sum(1), (own * changed).sum(1)], dim=1) / 0.07
        losses.append(F.cross_entropy(scores, torch.zeros(VIDEOS, dtype=torch.long)))
    assert objective(batch).losses["clip_order"].item() == pytest.approx(torch.stack(losses).mean().item(), rel=1e-5)


def test_what_can_be_learnt_by_the_heads_is_learnt():
    objective = build()
    batch, optimizer = batch_of(objective, alike=True), torch.optim.Adam(objective.parameters(), lr=3e-3)
    history = []
    for _ in range(25):
        losses = objective(batch).losses
        history.append({name: loss.item() for name, loss in losses.items()})
        optimizer.zero_grad()
        torch.stack(list(losses.values())).sum().backward()
        optimizer.step()
        objective.prototypes.make_unit()
    for name in ("instance", "semantic", "graph_low", "graph_mid", "order_mid"):
        assert history[-1][name] < 0.2 * history[0][name], name
    assert all(history[-1][name] < 0.95 * history[0][name] for name in ("order_low", "timestamp_low", "timestamp_mid"))


def test_half_precision_around_it_keeps_losses_near():
    objective = build()
    exact = objective(batch_of(objective)).losses
    with torch.autocast("cpu", dtype=torch.bfloat16):
        rough = objective(batch_of(objective)).losses
    for name, loss in rough.items():
        assert loss.dtype == torch.float32 and loss.item() == pytest.approx(exact[name].item(), rel=0.3, abs=0.3)


# State ----------------------------------------------------------------------------------------------------------------


def test_forward_changes_nothing_but_running_statistics():
    objective = build(queue_epoch=0)
    before = deepcopy(objective.state_dict())
    objective(batch_of(objective))
    changed = {name for name, value in objective.state_dict().items() if not torch.equal(value, before[name])}
    assert changed and all(name.endswith(("running_mean", "running_var", "num_batches_tracked")) for name in changed)


@pytest.mark.parametrize(("queue", "batch"), [(24, 6), (20, 6)])
def test_the_queue_holds_the_last_scores_in_order(queue, batch):
    objective = build(queue=queue, prototypes=5)
    told: deque[Tensor] = deque(maxlen=queue)
    for step in range(ceil(queue / batch) + 2):
        terms = objective(batch_of(objective, seed=step))
        assert not terms.keep["scores"].requires_grad
        end_step(objective, terms.keep["scores"])
        told.extend(terms.keep["scores"].unbind())
        rows = objective.prototypes.queue.rows_in_order()
        assert torch.equal(rows, torch.stack(list(told)))
    assert len(rows) == queue and not rows.requires_grad


def test_earlier_videos_are_assigned_along_from_their_epoch_on():
    objective = build(queue=18, queue_epoch=2, prototypes=5)
    stored = []
    for step in range(4):
        kept = objective(batch_of(objective, seed=step)).keep["scores"]
        end_step(objective, kept)
        stored.append(kept.unflatten(1, (2, -1)))
    scores = torch.rand(VIDEOS, 2, 5)
    together = torch.cat([*stored[-2:], scores])  # with the step's own six they are eighteen
    early, late = (objective.prototypes.assign(scores, epoch) for epoch in (1, 2))
    for clip in (0, 1):
        torch.testing.assert_close(early[:, clip], sinkhorn(scores[:, clip]))
        torch.testing.assert_close(late[:, clip], sinkhorn(together[:, clip])[-VIDEOS:])
    assert (early - late).abs().max() > 1e-3


def test_a_batch_as_long_as_the_queue_needs_no_company():
    objective = build(queue=VIDEOS, queue_epoch=0, prototypes=5)
    end_step(objective, torch.rand(VIDEOS, 10))
    scores = torch.rand(VIDEOS, 2, 5)
    torch.testing.assert_close(objective.prototypes.assign(scores, 9)[:, 0], sinkhorn(scores[:, 0]))


def test_prototypes_have_unit_length_before_every_forward():
    objective = build(prototypes=5)
    weight = objective.prototypes.centres.weight
    optimizer = torch.optim.SGD(objective.parameters(), lr=1.0)
    for step in range(3):
        torch.testing.assert_close(weight.norm(dim=1), torch.ones(5))
        optimizer.zero_grad()
        terms = objective(batch_of(objective, seed=step))
        terms.losses["semantic"].backward()
        optimizer.step()
        assert (weight.norm(dim=1) - 1).abs().max() > 1e-4
        end_step(objective, terms.keep["scores"])


@pytest.mark.parametrize(("epoch", "frozen"), [(0, True), (1, False), (7, False)])
def test_prototypes_rest_in_the_first_epoch_only(epoch, frozen):
    objective = build()
    torch.stack(list(objective(batch_of(objective)).losses.values())).sum().backward()
    announce(objective, "vssl_backward_end", run=SimpleNamespace(epoch=epoch))
    assert (objective.prototypes.centres.weight.grad is None) == frozen
    assert all(parameter.grad is not None for parameter in objective.prototypes.projector.parameters())


def test_announcements_without_prototypes_do_nothing():
    objective = build(semantic_weight=0, graph="instance")
    announce(objective, "vssl_backward_end", run=SimpleNamespace(epoch=0))
    end_step(objective, None)
    assert objective.prototypes is None and not objective(batch_of(objective)).keep


def test_sizes_follow_list_batch_and_run_unless_they_are_given():
    def sizes(**options: object) -> tuple[int, int, int]:
        about = {name: options.pop(name) for name in ("videos", "batch_size", "epochs") if name in options}
        prototypes = build(context(**about), **options).prototypes
        return prototypes.centres.out_features, len(prototypes.queue or ()), prototypes.queue_epoch

    assert sizes(videos=240_000, batch_size=256, epochs=100) == (1000, 1024, 10)
    assert sizes(videos=9537, batch_size=256, epochs=300) == (953, 1024, 10)
    assert sizes(videos=12, batch_size=5, epochs=2) == (2, 10, 0)
    assert sizes(prototypes=7, queue=0, queue_epoch=3) == (7, 0, 3)


# Stages ---------------------------------------------------------------------------------------------------------------


def test_levels_are_the_last_three_stages_unless_they_are_named():
    assert list(build().stages.values()) == ["stage2", "stage3", "stage4"]
    assert list(build(low="stage1").stages.values()) == ["stage1", "stage3", "stage4"]


@pytest.mark.parametrize(
    ("options", "stages", "sentence"),
    [
        ({"low": "layer2"}, STAGES, r"plugins\.multilevel: .*no stage 'layer2'.* stage1, stage2, stage3, stage4"),
        ({"low": "stage3"}, STAGES, r"low, mid and high are stage3, stage3, stage4; choose three different stages of"),
        ({}, {"stage1": (4, 2, 1, 1)}, r"plugins\.multilevel: needs three levels, the backbone has 1 stage \(stage1\)"),
        ({"queue": 61}, STAGES, r"plugins\.multilevel\.queue: 61 rows .* 60 videos"),
    ],
)
def test_what_cannot_be_is_refused_in_a_sentence(options, stages, sentence):
    with pytest.raises(ConfigError, match=sentence):
        build(context(stages), **options)


NETS = {
    ("r3d_18_hara", 16): [(128, 8), (256, 4), (512, 2)],
    ("s3d", 16): [(480, 8), (832, 4), (1024, 2)],
    ("slowfast_r50", 16): [(576, 4), (1152, 4), (2304, 4)],
    ("tiny", 4): [(32, 4), (64, 2), (128, 1)],
}


@pytest.mark.parametrize(("net", "frames"), list(NETS))
def test_it_reads_the_stages_of_the_papers_nets(net, frames):
    stages = stage_shapes(build_backbone(net), frames, 112)
    objective = build(context(stages, clip=ClipSettings(frames, 112, 1)))
    read = [stages[objective.stages[level]] for level in ("low", "mid", "high")]
    assert [shape[:2] for shape in read] == NETS[net, frames]
    losses = objective(batch_of(objective, totals=[90, 90])).losses
    assert {name for name in losses if name.startswith("timestamp")} == {
        f"timestamp_{level}" for level, shape in zip(("low", "mid", "high"), read, strict=True) if shape[1] > 1
    }
    assert all(loss.isfinite() for loss in losses.values())


# Options --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("variant", ["paper", "official"])
def test_a_variant_is_defaults_that_what_is_given_replaces(variant):
    config = MultiLevel.Config(variant=variant)
    assert {name: getattr(config, name) for name in VARIANTS[variant]} == VARIANTS[variant]
    given = MultiLevel.Config(variant=variant, changes=["shuffle"])
    assert given.changes == ("shuffle",) and given.graph_weights == config.graph_weights
    assert MultiLevel.Config(**config.model_dump()) == config


@pytest.mark.parametrize(
    ("options", "clause"),
    [
        ({"variant": "code"}, "variant"),
        ({"graph_weights": (0.1, -1, 0)}, "weights are not below 0"),
        ({"temporal_weights": (0.1, 0.2)}, "temporal_weights"),
        ({"strides": (3, 1)}, "lowest, highest"),
        ({"strides": (0.5, 1)}, "from 1 on"),
        ({"area": (0.5, 1.5)}, "highest <= 1"),
        ({"changes": ()}, "changes"),
        ({"changes": ("reverse", "reverse")}, "names a change twice"),
        ({"semantic_weight": 0}, "graph combined needs prototypes"),
        ({"temporal": "none", "changes": ("reverse",)}, "changes has no effect with temporal: none"),
        ({"overview": "whole"}, "overview"),
        ({"temporal": "none", "overview": "dense"}, "overview has no effect with temporal: none"),
        ({"temporal": "input", "retrieval": "short"}, "retrieval has no effect with temporal: input"),
        ({"threshold": 1.5}, "threshold"),
        ({"prototypes": 1}, "prototypes"),
        ({"levels": 4}, "levels"),
    ],
)
def test_options_have_bounds(options, clause):
    with pytest.raises(ValidationError, match=clause):
        MultiLevel.Config(**options)


def test_the_plugin_offers_it():
    assert vssl_multilevel.vssl_objective() is MultiLevel and "ICCV 2021" in vssl_multilevel.PAPER
