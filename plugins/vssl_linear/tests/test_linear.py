"""The linear probe against scikit-learn and against loops; its independence of shared random state; and its errors."""

from __future__ import annotations

import json
from math import exp

import pytest
import torch
from pydantic import ValidationError
from sklearn.linear_model import LogisticRegression
from torch import nn
from torch.nn import functional as F

import vssl_linear
from vssl_core import ClipSettings, ConfigError, Context, ExtractedFeatures, SplitFeatures, UserError
from vssl_linear.evaluation import Linear

WIDTH, CLIPS = 16, 5


def build(**options: object) -> Linear:
    context = Context(
        name="linear",
        clip=ClipSettings(8, 16, 1),
        backbone=nn.Identity(),
        feature_dim=WIDTH,
        stages={"stage4": (WIDTH, 2, 2, 2), "stage5": (WIDTH, 2, 2, 2)},
        videos=40,
        epochs=1,
        steps_per_epoch=1,
        batch_size=4,
        world_size=1,
    )
    return Linear(Linear.Config(**options), context)


def split(count: int, classes: int, seed: int, noise: float) -> SplitFeatures:
    """Videos whose clips scatter around a centre of their class; stage4 holds nothing but noise."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(count) % classes
    centres = torch.randn(classes, WIDTH, generator=torch.Generator().manual_seed(99))
    scatter = torch.randn(count, 1, WIDTH, generator=generator) + torch.randn(count, CLIPS, WIDTH, generator=generator)
    vectors = {"stage4": scatter, "stage5": centres[labels][:, None] + noise * scatter + 1}
    return SplitFeatures(vectors, labels, tuple(f"{number}.avi" for number in range(count)))


def features(
    classes: int = 8, noise: float = 1.0, seed: int = 0, train: int = 160, test: int = 400
) -> ExtractedFeatures:
    splits = {"train": split(train, classes, 1, noise), "test": split(test, classes, 2, noise)}
    return ExtractedFeatures(splits, tuple(f"class {number}" for number in range(classes)), ("stage4", "stage5"), seed)


# The numbers ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("noise", [1.0, 2.0])
def test_it_agrees_with_logistic_regression(noise):
    source = features(noise=noise)
    train, test = (source.splits[name] for name in ("train", "test"))
    rows = F.normalize(train.vectors["stage5"].flatten(0, 1), dim=1)
    average, deviation = rows.mean(dim=0), rows.std(dim=0)
    wanted = LogisticRegression(C=1.0, max_iter=2000)
    wanted.fit(((rows - average) / deviation).numpy(), train.labels.repeat_interleave(CLIPS).numpy())
    sought = (F.normalize(test.vectors["stage5"], dim=2) - average) / deviation
    probabilities = wanted.predict_proba(sought.flatten(0, 1).numpy()).reshape(len(test.labels), CLIPS, -1).mean(axis=1)
    accuracy = 100 * (probabilities.argmax(axis=1) == test.labels.numpy()).mean()
    metrics = build().run(source).metrics
    assert metrics["top1"] == pytest.approx(accuracy, abs=4)
    assert 30 < metrics["top1"] < 100 and metrics["clip_top1"] <= metrics["top1"] <= metrics["top5"]


def test_features_that_name_the_class_give_everything_and_noise_gives_chance():
    assert build(epochs=20).run(features(noise=0.01)).metrics["top1"] == 100
    assert build(epochs=20, stage="stage4").run(features()).metrics["top1"] < 30  # chance is 12.5


def test_a_video_is_the_mean_of_its_clips_probabilities():
    linear, source = build(epochs=5), features(noise=2.5)
    train, test = (source.splits[name] for name in ("train", "test"))
    classifier = linear._fit(train.vectors["stage5"], train.labels, 8, source.seed)
    with torch.no_grad():
        logits = classifier(test.vectors["stage5"].flatten(0, 1)).view(len(test.labels), CLIPS, 8).tolist()
    videos = clips = best_five = by_logits = 0
    for video, label in zip(logits, test.labels.tolist(), strict=True):
        summed = [0.0] * 8
        for clip in video:
            total = sum(exp(value) for value in clip)
            summed = [before + exp(value) / total for before, value in zip(summed, clip, strict=True)]
            clips += max(range(8), key=clip.__getitem__) == label
        ranking = sorted(range(8), key=summed.__getitem__, reverse=True)
        videos += ranking[0] == label
        best_five += label in ranking[:5]
        by_logits += max(range(8), key=[sum(column) for column in zip(*video, strict=True)].__getitem__) == label
    count = len(test.labels)
    metrics = linear.run(source).metrics
    assert metrics["top1"] == pytest.approx(100 * videos / count) and by_logits != videos
    assert metrics["clip_top1"] == pytest.approx(100 * clips / count / CLIPS)
    assert metrics["top5"] == pytest.approx(100 * best_five / count)


def test_a_list_of_stages_is_judged_as_each_alone():
    source = features()
    both = build(epochs=3, stage=["stage4", "stage5"]).run(source)
    for stage in ("stage4", "stage5"):
        alone = build(epochs=3, stage=stage).run(source)
        assert {f"{stage}/{name}": value for name, value in alone.metrics.items()}.items() <= both.metrics.items()
        assert both.tables[f"{stage}/per_class"] == alone.tables["per_class"]
    assert build(stage=["stage4", "stage5"]).needs().stages == ("stage4", "stage5")
    with pytest.raises(ConfigError, match="stage6"):
        build(stage=["stage4", "stage6"]).needs()


def test_with_few_classes_there_is_no_top5():
    assert set(build(epochs=2).run(features(classes=5)).metrics) == {"top1", "clip_top1"}


def test_the_table_of_classes_adds_up():
    result = build(epochs=3).run(features())
    table = result.tables["per_class"]
    assert [row["class"] for row in table] == [f"class {number}" for number in range(8)]
    assert sum(row["videos"] * row["top1"] for row in table) / 400 == pytest.approx(result.metrics["top1"])


def test_without_the_norm_it_is_one_linear_layer():
    linear, source = build(norm=False, epochs=30), features(noise=0.5)
    train = source.splits["train"]
    classifier = linear._fit(train.vectors["stage5"], train.labels, 8, 0)
    assert {name for name, _ in classifier.named_parameters()} == {"weight", "bias"}
    assert linear.run(source).metrics["top1"] > 60


# Where its numbers come from ------------------------------------------------------------------------------------------


def test_only_the_seed_of_the_run_decides():
    source = features(noise=1.5)
    torch.manual_seed(1)
    state = torch.get_rng_state()
    first = build(epochs=3)._fit(source.splits["train"].vectors["stage5"], source.splits["train"].labels, 8, seed=0)
    assert torch.equal(torch.get_rng_state(), state)
    torch.manual_seed(2)
    second = build(epochs=3)._fit(source.splits["train"].vectors["stage5"], source.splits["train"].labels, 8, seed=0)
    other = build(epochs=3)._fit(source.splits["train"].vectors["stage5"], source.splits["train"].labels, 8, seed=1)
    assert torch.equal(first.weight, second.weight) and not torch.equal(first.weight, other.weight)


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_it_trains_where_gradients_are_switched_off(mode):
    with mode():
        source = features()
        found = build(epochs=3).run(source).metrics
    assert found == build(epochs=3).run(features()).metrics


def test_features_stay_as_they_are():
    source = features()
    before = {name: rows.clone() for name, rows in source.splits["train"].vectors.items()}
    for norm in (True, False):
        build(epochs=2, norm=norm).run(source)
    assert all(torch.equal(rows, before[name]) for name, rows in source.splits["train"].vectors.items())


def test_the_rate_falls_after_its_shares_of_the_epochs():
    source = features()
    train = source.splits["train"]

    def weight(**options: object) -> torch.Tensor:
        return build(**options)._fit(train.vectors["stage5"], train.labels, 8, 0).weight

    assert torch.equal(weight(epochs=4, milestones=[0.9]), weight(epochs=4, milestones=[]))  # falls after the last one
    assert not torch.equal(weight(epochs=4, milestones=[0.5]), weight(epochs=4, milestones=[]))


def test_no_step_is_left_with_a_single_clip():
    for batch_size in (2, 7, 14):  # 15 clips
        build(epochs=1, batch_size=batch_size).run(features(classes=2, train=3, test=4))


# Protocol, needs and errors -------------------------------------------------------------------------------------------


def test_it_needs_the_last_stage_or_the_one_that_is_named():
    assert build().needs().stages is None and build().needs().clips == 10
    assert build(stage="stage4", clips=3).needs().stages == ("stage4",)
    with pytest.raises(ConfigError, match="no stage 'stage6'"):
        build(stage="stage6").needs()


def test_the_protocol_is_json_and_follows_the_options():
    plain = build(epochs=1).run(features()).protocol
    assert json.loads(json.dumps(plain))["backbone"] == "frozen, eval mode"
    assert plain == build(epochs=1).run(features(noise=0.1)).protocol
    assert plain != build(epochs=2).run(features()).protocol


def test_unlabelled_empty_and_broken_splits_are_errors():
    source = features()
    source.splits["train"].labels[:3] = -1
    with pytest.raises(UserError, match="evaluation 'linear': 3 of 160 videos of the train split have no class"):
        build().run(source)
    with pytest.raises(UserError, match="the test split has 0 readable videos"):
        build().run(features(test=0))
    source = features()
    source.splits["test"].vectors["stage5"][0, 0, 0] = float("inf")
    with pytest.raises(UserError, match="stage5 in the test split are not finite"):
        build().run(source)


@pytest.mark.parametrize(
    "options",
    [{"epochs": 0}, {"learning_rate": 0}, {"milestones": [0.5, 1]}, {"batch_size": 1}, {"weight_decay": -1}, {"lr": 1}],
)
def test_options_have_bounds(options):
    with pytest.raises(ValidationError):
        Linear.Config(**options)


def test_the_plugin_offers_it():
    assert vssl_linear.vssl_evaluation() is Linear and "NeurIPS 2020" in vssl_linear.PAPER
