"""Retrieval against brute force in numpy, for all lineages; what each lineage is blind to; and its errors."""

from __future__ import annotations

import json
import sys

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError
from torch import Tensor, nn

import vssl_retrieval
from vssl_core import ClipSettings, ConfigError, Context, ExtractedFeatures, SplitFeatures, UserError
from vssl_retrieval.evaluation import PRESETS, Lineage, Retrieval, nearest, videos

pytest.importorskip("faiss", reason="needs faiss: pip install 'vssl[cpu]'")

STAGES = {"stage3": 6, "stage4": 7, "stage5": 9}
CLASSES = ("jump", "run", "walk", "swim")


def build(**options: object) -> Retrieval:
    context = Context(
        name="retrieval",
        clip=ClipSettings(8, 16, 1),
        backbone=nn.Identity(),
        feature_dim=9,
        stages={name: (width, 2, 2, 2) for name, width in STAGES.items()},
        videos=40,
        epochs=1,
        steps_per_epoch=1,
        batch_size=4,
        world_size=1,
    )
    return Retrieval(Retrieval.Config(**options), context)


def split(count: int, seed: int, clips: int = 10) -> SplitFeatures:
    """Videos whose clips scatter around a centre of their class."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(len(CLASSES), (count,), generator=generator)
    vectors = {}
    for stage, width in STAGES.items():
        centres = torch.randn(len(CLASSES), width, generator=torch.Generator().manual_seed(width))
        noise = torch.randn(count, 1, width, generator=generator) + torch.randn(
            count, clips, width, generator=generator
        )
        vectors[stage] = centres[labels][:, None] + 1.5 * noise + 0.7
    return SplitFeatures(vectors, labels, tuple(f"{number}.avi" for number in range(count)))


def features(gallery: int = 60, queries: int = 40, seed: int = 0) -> ExtractedFeatures:
    return ExtractedFeatures(
        {"train": split(gallery, seed), "test": split(queries, seed + 1)}, CLASSES, tuple(STAGES), seed=0
    )


def altered(source: ExtractedFeatures, change) -> ExtractedFeatures:
    """The same videos with every split's vectors changed by `change(split, vectors)`."""
    splits = {
        name: SplitFeatures(
            {stage: change(name, rows) for stage, rows in part.vectors.items()}, part.labels, part.paths
        )
        for name, part in source.splits.items()
    }
    return ExtractedFeatures(splits, source.classes, source.stages, source.seed)


def slow(source: ExtractedFeatures, stage: str, lineage: str, k: int) -> float:
    """R@k in percent, straight from the table of the three lineages, in double precision."""

    def rows_of(part: SplitFeatures) -> list[np.ndarray]:
        rows = []
        for clips in part.vectors[stage].double().numpy():
            if lineage == "cstp":
                clips = [clip / np.linalg.norm(clip) for clip in clips]
            rows.append(sum(clips) / len(clips))
        if lineage == "coclr":
            average = sum(rows) / len(rows)
            rows = [row - average for row in rows]
        return [row / np.linalg.norm(row) for row in rows]

    gallery, query = source.splits["train"], source.splits["test"]
    known, hits = rows_of(gallery), 0
    for row, label in zip(rows_of(query), query.labels.tolist(), strict=True):
        order = np.argsort([-row @ other for other in known], kind="stable")[:k]
        hits += label in [gallery.labels[number].item() for number in order]
    return 100 * hits / len(query.labels)


# The numbers ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(4))
def test_every_stage_and_lineage_is_what_brute_force_finds(seed):
    source = features(seed=10 * seed)
    metrics = build().run(source).metrics
    wanted = {}
    for stage in STAGES:
        for lineage in PRESETS:
            prefix = "/".join(part for part in (stage, lineage) if part not in ("stage5", "vcop"))
            for k in (1, 5, 10, 20, 50):
                wanted[f"{prefix}/r@{k}" if prefix else f"r@{k}"] = slow(source, stage, lineage, k)
    assert metrics == pytest.approx(wanted)
    assert len({metrics["r@1"], metrics["cstp/r@1"], metrics["coclr/r@1"], metrics["stage4/r@1"]}) > 1


def test_plain_keys_come_first_and_stand_for_the_last_stage():
    keys = list(build().run(features()).metrics)
    assert keys[:6] == ["r@1", "r@5", "r@10", "r@20", "r@50", "cstp/r@1"]
    assert "stage4/cstp/r@1" in keys and "stage5/r@1" not in keys and "vcop/r@1" not in keys


@given(seed=st.integers(0, 10_000), gallery=st.integers(1, 30), queries=st.integers(1, 12))
@settings(max_examples=20, deadline=None)
def test_more_neighbours_never_find_less(seed, gallery, queries):
    metrics = build(stages="last").run(features(gallery, queries, seed)).metrics
    for lineage in ("", "cstp/", "coclr/"):
        found = [metrics[f"{lineage}r@{k}"] for k in (1, 5, 10, 20, 50) if k <= gallery]
        assert found == sorted(found) and 0 <= found[0] and found[-1] <= 100


def test_more_neighbours_than_videos_are_left_out_or_refused():
    """Where the whole gallery counts, nothing is measured: the default leaves such numbers out, yours are an error."""
    source = features(gallery=7, queries=9)
    metrics = build(stages="last", lineages=["vcop"]).run(source).metrics
    assert list(metrics) == ["r@1", "r@5"]
    told = r"plugins\.retrieval\.ks: there are no 8 neighbours among 7 training videos; choose numbers up to 7"
    with pytest.raises(ConfigError, match=told):
        build(stages="last", ks=[1, 8]).run(source)
    with pytest.raises(ConfigError, match="no 41 neighbours among 40"):
        build(ks=[1, 41]).needs()  # before anything is decoded
    metrics = build(stages="last", lineages=["vcop"], ks=[7]).run(source).metrics
    known = set(source.splits["train"].labels.tolist())
    share = sum(label in known for label in source.splits["test"].labels.tolist()) / 9
    assert metrics["r@7"] == pytest.approx(100 * share)


def test_features_that_name_the_class_find_it_always():
    source = features()
    perfect = {}
    for name, part in source.splits.items():
        rows = torch.eye(9)[part.labels][:, None].expand(-1, 10, -1)
        perfect[name] = SplitFeatures({"stage5": rows}, part.labels, part.paths)
    metrics = build(stages="last").run(ExtractedFeatures(perfect, CLASSES, tuple(STAGES), 0)).metrics
    assert set(metrics.values()) == {100.0}


def test_each_lineage_is_blind_to_what_it_normalises():
    source = features()
    before = build(stages="last").run(source).metrics

    def same(change, lineage: str) -> bool:
        after = build(stages="last").run(altered(source, change)).metrics
        return all(after[f"{lineage}r@{k}"] == pytest.approx(before[f"{lineage}r@{k}"]) for k in (1, 5, 10, 20, 50))

    def larger_clips(_: str, rows: Tensor) -> Tensor:
        return rows * torch.linspace(0.2, 5, rows.shape[1])[:, None]

    def moved(name: str, rows: Tensor) -> Tensor:
        return rows + (4.0 if name == "train" else -3.0)

    assert all(same(lambda _, rows: rows * 7, lineage) for lineage in ("", "cstp/", "coclr/"))
    assert same(larger_clips, "cstp/") and not same(larger_clips, "")
    assert same(moved, "coclr/") and not same(moved, "") and not same(moved, "cstp/")


def test_of_equal_neighbours_the_earlier_one_comes_first():
    row = np.ones((1, 4), np.float32) / 2
    gallery = np.concatenate([-row, np.repeat(row, 60, axis=0)])
    found = nearest("here", np.repeat(row, 30, axis=0), gallery, 50)
    assert (found == np.arange(1, 51)).all()


def test_rows_of_zeros_stay_finite():
    zeros = torch.zeros(5, 10, 9)
    for lineage in PRESETS.values():
        assert np.isfinite(videos(zeros, lineage)).all()
    assert np.isfinite(videos(torch.ones(1, 10, 9), Lineage(center=True))).all()  # one video is its own mean


def test_lineages_of_your_own_and_stages_by_name():
    source = features()
    both = build(stages=["stage4"], ks=[1, 3], lineages={"both": {"clip_l2": True, "center": True}, "vcop": {}})
    metrics = both.run(source).metrics
    assert list(metrics) == ["stage4/both/r@1", "stage4/both/r@3", "stage4/r@1", "stage4/r@3"]
    assert metrics["stage4/r@3"] == pytest.approx(slow(source, "stage4", "vcop", 3))
    assert list(build(stages="last", lineages=["coclr"], ks=[1]).run(source).metrics) == ["coclr/r@1"]


def test_the_table_of_classes_adds_up():
    source = features()
    result = build().run(source)
    table = result.tables["per_class"]
    assert sum(row["videos"] for row in table) == 40 and {row["class"] for row in table} <= set(CLASSES)
    assert sum(row["videos"] * row["r@1"] for row in table) / 40 == pytest.approx(result.metrics["r@1"])


# Protocol, needs and errors -------------------------------------------------------------------------------------------


def test_it_needs_ten_clips_of_all_stages():
    needs = build().needs()
    assert (needs.stages, needs.clips, needs.labels, needs.splits) == (tuple(STAGES), 10, True, ("train", "test"))
    assert build(stages="last").needs().stages is None
    assert build(stages=["stage4"], clips=3).needs().stages == ("stage4",)


def test_an_unknown_stage_is_named():
    with pytest.raises(ConfigError, match="no stage 'stage6'.*stage3, stage4, stage5"):
        build(stages=["stage6"]).needs()


def test_the_protocol_is_json_and_follows_the_options():
    plain, other = build().run(features()).protocol, build(lineages=["vcop"]).run(features()).protocol
    assert json.loads(json.dumps(plain))["lineages"]["coclr"] == {"clip_l2": False, "center": True}
    assert json.dumps(plain) != json.dumps(other)
    assert json.dumps(plain) == json.dumps(build().run(features(seed=5)).protocol)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"ks": []}, "at least 1 item"),
        ({"ks": [0, 1]}, "numbers from 1 on"),
        ({"ks": [5, 1]}, "larger than the one before"),
        ({"lineages": ["vcopp"]}, "no preset is called 'vcopp'"),
        ({"lineages": {"cstp": {"center": True}}}, "'cstp' is a preset with other settings"),
        ({"lineages": {"a/b": {}}}, "cannot hold a slash"),
        ({"lineages": {}}, "at least 1 item"),
        ({"clips": 0}, "greater than or equal to 1"),
        ({"k": 1}, "Extra inputs"),
    ],
)
def test_options_have_bounds(options, message):
    with pytest.raises(ValidationError, match=message):
        Retrieval.Config(**options)


def test_unlabelled_videos_are_an_error_that_counts_them():
    source = features()
    source.splits["test"].labels[:3] = -1
    with pytest.raises(UserError, match="evaluation 'retrieval': 3 of 40 videos of the test split have no class"):
        build().run(source)


def test_an_empty_split_and_broken_features_are_errors():
    with pytest.raises(UserError, match="no video of the train split"):
        build().run(features(gallery=0))
    source = features()
    source.splits["train"].vectors["stage4"][2, 3, 4] = float("nan")
    with pytest.raises(UserError, match="1 of 60 train videos have features of stage4 that are not finite"):
        build().run(source)
    build(stages="last").run(source)  # what is not asked for does not matter


def test_without_faiss_it_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "faiss", None)
    with pytest.raises(
        UserError, match=r"evaluation 'retrieval': faiss is not installed; run: pip install 'vssl\[cpu\]'"
    ):
        build().run(features())


def test_the_plugin_offers_it():
    assert vssl_retrieval.vssl_evaluation() is Retrieval and "CVPR 2019" in vssl_retrieval.PAPER
