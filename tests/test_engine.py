"""The engine.

What neighbours may do to each other, what a step does to the weights, what is announced, and what is written.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from small_runs import (
    BATCH,
    STEPS,
    VIDEOS,
    Colour,
    Stop,
    StopAt,
    Watch,
    assert_equal,
    open_small,
    train,
    weights,
    with_broken,
)
from torch import Tensor, nn

from vssl_core import (
    ANY,
    Appearance,
    Batch,
    Combiner,
    ConfigError,
    Context,
    Objective,
    Observer,
    ParameterGroup,
    PluginConfig,
    PluginError,
    Request,
    Run,
    Shared,
    Strides,
    Terms,
    gather,
    hookimpl,
)
from vssl_core.run.terms import NonFiniteError, ObjectiveError
from vssl_core.run.weights import WEIGHTS

# Objectives with one trait each ---------------------------------------------------------------------------------------


class Plain(Objective):
    """A linear head on the pooled features of one clip; a subclass says what is made of its outputs."""

    outputs = 3

    def __init__(self, config: Any, context: Context) -> None:
        super().__init__(config, context)
        self.head = nn.Linear(context.feature_dim, self.outputs)

    def requests(self) -> Mapping[str, Request]:
        return {"clip": Request()}

    def told(self, batch: Batch) -> Tensor:
        return self.head(batch["clip"][0].features.vector)

    def forward(self, batch: Batch) -> Terms:
        return Terms({"size": self.told(batch).square().mean()})


class Noisy(Plain):
    """Draws from torch's global generator, in forward and in announcements, and keeps a moving buffer."""

    def __init__(self, config: Any, context: Context) -> None:
        super().__init__(config, context)
        self.register_buffer("target", torch.zeros(self.outputs))

    def forward(self, batch: Batch) -> Terms:
        told = self.told(batch)
        return Terms({"noise": (told - self.target - torch.randn_like(told)).square().mean()})

    @hookimpl
    def vssl_step_end(self) -> None:
        self.target.copy_(torch.randn(self.outputs))


class Busy(Plain):
    """A greedy neighbour.

    Batch norm of its own, two clips of other geometry, a private forward, draws of every kind.
    """

    def __init__(self, config: Any, context: Context) -> None:
        super().__init__(config, context)
        self.norm = nn.BatchNorm1d(context.feature_dim)
        self.register_buffer("steps", torch.zeros(()))

    def requests(self) -> Mapping[str, Request]:
        return {
            "pair": Request(
                clips=2, strides=Strides((1, 2, 3)), appearance=Appearance(per="frame"), boxes=ANY, turns=ANY
            )
        }

    def forward(self, batch: Batch) -> Terms:
        left, right = batch["pair"]
        rows = self.norm(left.features.vector) - batch.encode(right.clip.flip(2)).vector + torch.rand(())
        return Terms({"busy": self.head(rows).square().mean() + right.features.vector.mean()}, keep={"rows": rows})

    @hookimpl
    def vssl_step_end(self) -> None:
        self.steps += 1


# Neighbours -----------------------------------------------------------------------------------------------------------


def alone_and_beside(
    tmp_path: Path, weight: float, first: bool = False, **changes: Any
) -> tuple[Run, Run, Watch, Watch]:
    """Two objectives without and with a third one at this weight."""
    own = {"colour": Colour, "noisy": Noisy}
    more = {"busy": Busy, **own} if first else {**own, "busy": Busy}
    alone, beside = Watch(), Watch()
    left = train(tmp_path / "alone", {**own, "watch": alone}, **changes)
    right = train(tmp_path / "beside", {**more, "watch": beside}, weights={"busy": weight}, **changes)
    return left, right, alone, beside


@pytest.mark.parametrize("first", [False, True], ids=["named last", "named first"])
@pytest.mark.parametrize("join", [False, True], ids=["views apart", "views joined"])
def test_a_neighbour_at_weight_zero_changes_nothing(tmp_path: Path, join: bool, first: bool) -> None:
    """The others' losses, the backbone's weights and buffers, and the others' state are bit-identical.

    With joining allowed too, as long as the neighbour's requests contradict theirs.
    """
    left, right, alone, beside = alone_and_beside(tmp_path, 0.0, first, views={"join": join})
    kept = [{name: loss for name, loss in losses.items() if not name.startswith("busy")} for losses in beside.losses]
    assert kept == alone.losses
    assert_equal(weights(left.backbone), weights(right.backbone))
    for name in ("colour", "noisy"):
        assert_equal(weights(left.objectives[name]), weights(right.objectives[name]))
        assert_equal(
            *[
                {key: value for key, value in run.state()["optimizer"].items() if f".{name}." in key}
                for run in (left, right)
            ]
        )


def test_the_promise_has_a_counterpart(tmp_path: Path) -> None:
    """At a weight above 0 the same neighbour does change the backbone: the test above can fail."""
    left, right, *_ = alone_and_beside(tmp_path, 0.5, views={"join": False})
    assert any(
        not torch.equal(value, right.backbone.state_dict()[name]) for name, value in left.backbone.state_dict().items()
    )


class Pair(Plain):
    """Two clips of whatever geometry: it joins anybody."""

    def requests(self) -> Mapping[str, Request]:
        return {"pair": Request(clips=2, strides=ANY, placement=ANY, boxes=ANY, flips=ANY, turns=ANY, appearance=ANY)}

    def forward(self, batch: Batch) -> Terms:
        left, right = batch["pair"]
        return Terms({"pair": (self.head(left.features.vector) - self.head(right.features.vector)).square().mean() + 1})


def test_a_neighbour_that_joins_and_asks_for_nothing_new_changes_nothing(tmp_path: Path) -> None:
    """A second clip beside the first one leaves the first one, and all that is learned from it, as it was."""
    alone, beside = Watch(), Watch()
    left = train(tmp_path / "alone", {"colour": Colour, "watch": alone})
    right = train(tmp_path / "beside", {"colour": Colour, "pair": Pair, "watch": beside}, weights={"pair": 0})
    assert [dict(group.members) for group in right.plan.groups] == [{"colour/clip": 1, "pair/pair": 2}]
    assert [losses["colour/error"] for losses in beside.losses] == [losses["colour/error"] for losses in alone.losses]
    assert_equal(weights(left.backbone), weights(right.backbone))


def test_weight_zero_is_evaluated_logged_and_heard(tmp_path: Path) -> None:
    """Its losses are there, its hooks run and its kept rows arrive.

    Its parameters and statistics stay, without gradient.
    """
    watch = Watch()
    run = open_small(tmp_path, {"colour": Colour, "busy": Busy, "watch": watch}, weights={"busy": 0.0})
    before = weights(run.objectives["busy"])
    run.train()
    after = run.objectives["busy"].state_dict()
    assert int(after["steps"]) == run.step
    assert all(math.isfinite(losses["busy/busy"]) for losses in watch.losses)
    assert all(report.kept["busy"]["rows"].shape[0] == BATCH for report in watch.reports)
    for name in ("head.weight", "norm.weight", "norm.running_mean", "norm.num_batches_tracked"):
        assert torch.equal(before[name], after[name]), name
    assert not moments(run, "objectives.busy.")
    assert watch.reports[0].loss == pytest.approx(watch.losses[0]["colour/error"])


def moments(run: Run, prefix: str) -> list[str]:
    """The parameters below a prefix that the optimizer has moved: those with a moment that is not zero."""
    found = {name: state for name, state in run.state()["optimizer"].items() if name.startswith(prefix)}
    return [
        name
        for name, state in found.items()
        if any(bool(value.any()) for value in state.values() if isinstance(value, Tensor))
    ]


def test_weights_follow_their_schedule(tmp_path: Path) -> None:
    """Nothing before its epoch, then evenly up; the sum is of weight times loss."""
    watch = Watch()
    schedule = {"value": 2.0, "start_epoch": 1, "ramp_epochs": 1}
    train(
        tmp_path,
        {"colour": Colour, "plain": Plain, "watch": watch},
        epochs=3,
        weights={"plain": schedule, "colour": 0.5},
    )
    seen = [report.weights["plain"] for report in watch.reports]
    assert seen == pytest.approx([0, 0, 0, 0, 2 / 3, 4 / 3, 2, 2, 2])
    for report, losses in zip(watch.reports, watch.losses, strict=True):
        assert float(report.loss) == pytest.approx(
            0.5 * losses["colour/error"] + report.weights["plain"] * losses["plain/size"], rel=1e-5
        )


@pytest.mark.parametrize("epochs", [2, 49])
def test_a_schedule_begins_with_the_first_step_of_its_epoch(tmp_path: Path, epochs: int) -> None:
    """However the number of epochs divides: 1 / 49 * 49 is less than 1 in floating point."""
    watch = Watch()
    plugins = {"colour": Colour, "plain": Plain, "watch": watch, "stop": StopAt(STEPS + 1, save=False)}
    with pytest.raises(Stop):
        train(tmp_path, plugins, epochs=epochs, weights={"plain": {"value": 1.0, "start_epoch": 1}})
    assert [report.weights["plain"] for report in watch.reports] == [0, 0, 0, 1]


# Gradients ------------------------------------------------------------------------------------------------------------


class WarmUp(Plain):
    """Two heads; one of them, and its term, comes into force in the second epoch."""

    def __init__(self, config: Any, context: Context) -> None:
        super().__init__(config, context)
        self.late = nn.Linear(context.feature_dim, 1)

    def forward(self, batch: Batch) -> Terms:
        losses = {"size": self.told(batch).square().mean()}
        if batch.epoch >= 1:
            losses["late"] = self.late(batch["clip"][0].features.vector).square().mean()
        return Terms(losses)


class Gradients:
    """An observer that keeps which parameters had gradients in each step."""

    def __init__(self) -> None:
        self.named: list[set[str]] = []
        self.values: list[dict[str, Tensor]] = []

    @hookimpl(trylast=True)
    def vssl_backward_end(self, run: Run) -> None:
        found = {
            name: parameter.grad.clone()
            for name, parameter in run.ensemble.named_parameters()
            if parameter.grad is not None
        }
        self.named.append(set(found))
        self.values.append(found)


@pytest.mark.parametrize("optimizer", ["sgd", "adamw", "lars"])
def test_what_no_term_in_force_reaches_is_left_alone(tmp_path: Path, optimizer: str) -> None:
    """No gradient, no moment, no decay, until its term comes into force; then it moves."""
    gradients = Gradients()
    run = open_small(
        tmp_path,
        {"warm": WarmUp, "seen": gradients, "stop": StopAt(STEPS)},
        optim={"name": optimizer, "lr": 0.05, "weight_decay": 0.1},
    )
    before = weights(run.ensemble)
    with pytest.raises(Stop):
        run.train()
    late = "objectives.warm.late.weight"
    assert all(late not in named and "objectives.warm.head.weight" in named for named in gradients.named)
    assert torch.equal(run.ensemble.state_dict()[late], before[late])
    assert not moments(run, late) and moments(run, "objectives.warm.head.weight")
    assert not torch.equal(
        run.ensemble.state_dict()["objectives.warm.head.weight"], before["objectives.warm.head.weight"]
    )
    rest = open_small(
        tmp_path,
        {"warm": WarmUp, "seen": gradients, "stop": StopAt(-1)},
        optim={"name": optimizer, "lr": 0.05, "weight_decay": 0.1},
    )
    rest.train()
    assert late in gradients.named[-1]
    assert not torch.equal(rest.ensemble.state_dict()[late], before[late])


class Flicker(Plain):
    """Its term is always there; which head it stands on changes within an epoch."""

    def __init__(self, config: Any, context: Context) -> None:
        super().__init__(config, context)
        self.other = nn.Linear(context.feature_dim, self.outputs)

    def forward(self, batch: Batch) -> Terms:
        head = self.head if batch.progress < 0.3 else self.other
        return Terms({"size": head(batch["clip"][0].features.vector).square().mean()})


def test_what_is_reached_may_change_within_an_epoch(tmp_path: Path) -> None:
    """The head that is in use has the gradient, in every step."""
    gradients = Gradients()
    train(tmp_path, {"flicker": Flicker, "seen": gradients})
    used = [
        [head for head in ("head", "other") if f"objectives.flicker.{head}.weight" in named]
        for named in gradients.named
    ]
    assert used == [["head"], ["head"], ["other"], ["other"], ["other"], ["other"]]


class Never(Plain):
    """No term in force in the first epoch."""

    def forward(self, batch: Batch) -> Terms:
        return super().forward(batch) if batch.epoch >= 1 else Terms({})


@pytest.mark.parametrize("precision", ["float32", "float16"])
def test_a_step_without_any_term_moves_nothing(tmp_path: Path, precision: str) -> None:
    """Not even by decay, under a gradient scaler too; the run goes on."""
    device, head = {"kind": "cpu", "precision": precision}, "objectives.never.head.weight"
    stopped, on = {"never": Never, "stop": StopAt(STEPS)}, {"never": Never, "stop": StopAt(-1)}
    run = open_small(tmp_path, stopped, device=device, epochs=9)
    before = dict(weights(run.ensemble))
    with pytest.raises(Stop):
        run.train()
    assert all(torch.equal(value, before[name]) for name, value in run.ensemble.named_parameters())
    run = open_small(tmp_path, on, device=device, epochs=9)
    run.train()
    assert not torch.equal(run.ensemble.state_dict()[head], before[head])


class Keeper(Plain):
    """Keeps a row for each video; no batch statistics but the backbone's."""

    def forward(self, batch: Batch) -> Terms:
        rows = batch["clip"][0].clip.flatten(1)[:, :5]
        return Terms(
            {"size": self.told(batch).square().mean()}, {"mean": rows.mean()}, {"pixels": rows, "index": batch.index}
        )


def without_batch_statistics(run: Run) -> Run:
    """Every batch norm uses its running statistics."""
    for module in run.backbone.modules():
        if isinstance(module, nn.BatchNorm3d):
            module.eval()
    return run


@pytest.mark.parametrize("pieces", [2, 4])
def test_accumulated_microbatches_equal_one_batch(tmp_path: Path, pieces: int) -> None:
    """Where no batch statistics are used: losses, metrics, gradients and weights.

    Kept rows are joined in order, bit for bit.
    """
    runs, watches, gradients = [], [], []
    for count in (1, pieces):
        watches.append(Watch())
        gradients.append(Gradients())
        run = open_small(
            tmp_path / str(count),
            {"keeper": Keeper, "watch": watches[-1], "seen": gradients[-1]},
            optim={"lr": 0.01, "accumulate": count},
        )
        without_batch_statistics(run).train()
        runs.append(run)
    for whole, split in zip(watches[0].reports, watches[1].reports, strict=True):
        assert split.index.tolist() == whole.index.tolist()
        assert split.kept["keeper"]["index"].tolist() == whole.index.tolist()
        assert torch.equal(split.kept["keeper"]["pixels"], whole.kept["keeper"]["pixels"])
        assert split.numbers["keeper/mean"] == pytest.approx(whole.numbers["keeper/mean"], rel=1e-5, abs=1e-6)
        assert split.numbers["loss"] == pytest.approx(whole.numbers["loss"], rel=1e-4)
    for whole, split in zip(gradients[0].values, gradients[1].values, strict=True):
        for name, value in whole.items():
            torch.testing.assert_close(split[name], value, rtol=1e-3, atol=1e-5 + 1e-3 * float(value.abs().max()))


class Fickle(Plain):
    """A term that is there for some clips and not for others."""

    def forward(self, batch: Batch) -> Terms:
        losses = {"size": self.told(batch).square().mean()}
        if int(batch.index[0]) % 2:
            losses["odd"] = losses["size"] * 2
        return Terms(losses)


def test_a_term_that_depends_on_the_clips_is_named(tmp_path: Path) -> None:
    """Microbatches of one step must agree on their terms."""
    with pytest.raises(ObjectiveError, match="objective 'fickle': 'fickle/odd' is in one microbatch"):
        train(tmp_path, {"fickle": Fickle}, optim={"accumulate": 2})


def test_gradients_are_clipped_after_they_were_announced(tmp_path: Path) -> None:
    """The norm that is reported is the one before clipping; the step is that of the clipped gradient."""
    gradients, watch = Gradients(), Watch()
    run = open_small(
        tmp_path,
        {"colour": Colour, "seen": gradients, "watch": watch, "stop": StopAt(1)},
        optim={"clip_norm": 0.01, "momentum": 0.0, "weight_decay": 0.0, "lr": 1.0, "schedule": "constant"},
    )
    before = weights(run.ensemble)
    with pytest.raises(Stop):
        run.train()
    norm = torch.stack([value.norm() for value in gradients.values[0].values()]).norm()
    assert norm > 0.01
    assert watch.reports[0].numbers["gradient_norm"] == pytest.approx(float(norm), rel=1e-5)
    for name, gradient in gradients.values[0].items():
        torch.testing.assert_close(
            run.ensemble.state_dict()[name], before[name] - gradient * 0.01 / norm, rtol=1e-4, atol=1e-6
        )


# Optimizers -----------------------------------------------------------------------------------------------------------


class Grouped(Plain):
    """Three parameters, each trained in its own way."""

    def __init__(self, config: Any, context: Context) -> None:
        super().__init__(config, context)
        self.fast = nn.Parameter(torch.ones(4))
        self.steady = nn.Parameter(torch.ones(4))

    def forward(self, batch: Batch) -> Terms:
        return Terms({"size": self.told(batch).square().mean() + self.fast.sum() + self.steady.sum()})

    def parameter_groups(self) -> list[ParameterGroup]:
        return [
            ParameterGroup([self.fast], learning_rate_scale=10.0, weight_decay=0.5),
            ParameterGroup([self.steady], schedule="constant"),
        ]


def test_parameter_groups_are_trained_their_own_way(tmp_path: Path) -> None:
    """Scaled rate, own decay, a rate that does not fall; beside the run's own cosine."""
    watch = Watch()
    run = open_small(
        tmp_path, {"grouped": Grouped, "watch": watch}, optim={"lr": 0.1, "momentum": 0.0, "weight_decay": 0.25}
    )
    run.train()
    rates = [0.1 * 0.5 * (1 + math.cos(math.pi * step / 6)) for step in range(6)]
    assert [report.learning_rate for report in watch.reports] == pytest.approx(rates, rel=1e-5)
    fast, steady = torch.ones(4), torch.ones(4)
    for rate in rates:
        fast = fast - 10 * rate * (1 + 0.5 * fast)
        steady = steady - 0.1 * (1 + 0.25 * steady)
    torch.testing.assert_close(run.objectives["grouped"].fast.detach(), fast)
    torch.testing.assert_close(run.objectives["grouped"].steady.detach(), steady)


@pytest.mark.parametrize(
    ("groups", "told"),
    [
        (lambda self: [ParameterGroup([self.fast]), ParameterGroup([self.fast])], "twice"),
        (lambda self: [ParameterGroup([nn.Parameter(torch.ones(1))])], "not trained in this run"),
    ],
)
def test_wrong_parameter_groups_are_named(tmp_path: Path, groups: Any, told: str) -> None:
    """With the plugin's name."""
    wrong = type("Wrong", (Grouped,), {"parameter_groups": groups})
    with pytest.raises(PluginError, match=f"plugin 'wrong': parameter_groups names a parameter.* {told}"):
        open_small(tmp_path, {"wrong": wrong})


class Scaled(Combiner):
    """The sum, times a number that is learnt without decay."""

    def __init__(self, config: Any, names: tuple[str, ...]) -> None:
        super().__init__(config, names)
        self.scale = nn.Parameter(torch.tensor(3.0))
        self.plain = nn.Parameter(torch.tensor(3.0))

    def forward(self, losses: Mapping[str, Tensor], weights: Mapping[str, float], shared: Shared) -> Tensor:
        return torch.stack(list(losses.values())).sum() + 0 * (self.scale + self.plain)

    def parameter_groups(self) -> list[ParameterGroup]:
        return [ParameterGroup([self.scale], weight_decay=0.0)]


def test_a_combiner_has_parameter_groups_too(tmp_path: Path) -> None:
    """Without a gradient but zero, only decay moves: it moves the plain number and not the other."""
    plugins = {"plain": Plain, "scaled": Scaled}
    run = train(tmp_path / "one", plugins, combine={"name": "scaled"}, optim={"lr": 0.1, "weight_decay": 0.5})
    assert run.ensemble.combiner.scale.item() == 3.0 and run.ensemble.combiner.plain.item() < 2.5
    twice = type("Twice", (Scaled,), {"parameter_groups": lambda self: 2 * [ParameterGroup([self.scale])]})
    with pytest.raises(PluginError, match="combiner Twice: parameter_groups names a parameter twice"):
        open_small(tmp_path / "two", {"plain": Plain, "scaled": twice}, combine={"name": "scaled"})


@pytest.mark.parametrize(
    ("optim", "expected"),
    [
        ({"schedule": "constant"}, lambda epoch: 0.1),
        (
            {"schedule": "steps", "milestones": [1, 3], "gamma": 0.1},
            lambda epoch: 0.1 * 0.1 ** ((epoch >= 1) + (epoch >= 3)),
        ),
        (
            {"schedule": "cosine", "final_lr": 0.02},
            lambda epoch: 0.02 + 0.08 * 0.5 * (1 + math.cos(math.pi * epoch / 4)),
        ),
        (
            {"warmup_epochs": 1.0, "warmup_lr": 0.01},
            lambda epoch: 0.01 + 0.09 * epoch if epoch < 1 else 0.1 * 0.5 * (1 + math.cos(math.pi * (epoch - 1) / 3)),
        ),
    ],
    ids=["constant", "steps", "cosine", "warm-up"],
)
def test_the_learning_rate_follows_its_schedule(tmp_path: Path, optim: dict[str, Any], expected: Any) -> None:
    """Step by step."""
    watch = Watch()
    train(tmp_path, {"colour": Colour, "watch": watch}, epochs=4, optim={"lr": 0.1, **optim})
    rates = [report.learning_rate for report in watch.reports]
    assert rates == pytest.approx([expected(step / STEPS) for step in range(4 * STEPS)], rel=1e-6)


def test_norms_and_biases_can_be_left_undecayed(tmp_path: Path) -> None:
    """`decay_norms: false` puts them, and nothing else, into a group without decay."""
    run = open_small(tmp_path, {"colour": Colour}, optim={"decay_norms": False, "weight_decay": 0.1})
    bare = {name for group in run.optimizer.param_groups if group["weight_decay"] == 0 for name in group["names"]}
    shapes = {name: parameter.ndim for name, parameter in run.ensemble.named_parameters()}
    assert bare == {name for name, axes in shapes.items() if axes == 1}


def test_lars_follows_a_slow_reference() -> None:
    """Ten steps of three tensors; vectors and weights or gradients of zero are not scaled."""
    from vssl_core.run.optim import Lars

    generator = torch.Generator().manual_seed(0)
    start = [torch.randn(4, 3, generator=generator), torch.randn(5, generator=generator), torch.zeros(2, 2)]
    ours = [nn.Parameter(value.clone()) for value in start]
    theirs, buffers = [value.clone() for value in start], [torch.zeros_like(value) for value in start]
    lars = Lars(ours, lr=0.2, momentum=0.9, weight_decay=0.01)
    for step in range(10):
        gradients = [torch.randn(value.shape, generator=generator) * (step != 4) for value in start]
        for parameter, gradient in zip(ours, gradients, strict=True):
            parameter.grad = gradient.clone()
        lars.step()
        for number, (value, gradient) in enumerate(zip(list(theirs), gradients, strict=True)):
            direction = gradient + 0.01 * value
            if value.ndim > 1 and float(value.norm()) > 0 and float(direction.norm()) > 0:
                direction = direction * (0.001 * float(value.norm()) / float(direction.norm()))
            buffers[number] = 0.9 * buffers[number] + direction
            theirs[number] = value - 0.2 * buffers[number]
    for parameter, value in zip(ours, theirs, strict=True):
        torch.testing.assert_close(parameter.detach(), value)


# Observers ------------------------------------------------------------------------------------------------------------


class Slopes(Observer):
    """Notes the gradient of each objective on the shared features, every so many steps."""

    class Config(PluginConfig):
        """How often."""

        every: int = 1

    @hookimpl
    def vssl_forward_end(self, run: Run, losses: Mapping[str, Tensor], shared: Any) -> None:
        if run.step % self.config.every == 0:
            for name, loss in losses.items():
                found = torch.autograd.grad(loss, shared.features, retain_graph=True, allow_unused=True)
                size = sum(part.square().sum() for part in found if part is not None)
                run.note(f"{self.name}/{name}", size.sqrt())


def test_an_observer_differentiates_and_changes_nothing(tmp_path: Path) -> None:
    """What it notes stands beside the step's metrics, in the steps it looks at; the weights are as without it."""
    plugins, watch = {"colour": Colour, "plain": Plain}, Watch()
    alone = train(tmp_path / "alone", plugins)
    both = train(
        tmp_path / "both", {**plugins, "slopes": Slopes, "watch": watch}, options={"slopes": {"every": 2}}, epochs=2
    )
    assert_equal(weights(alone.ensemble), weights(both.ensemble))
    noted = [{name for name in report.metrics if name.startswith("slopes/")} for report in watch.reports]
    assert noted[:4] == [{"slopes/colour", "slopes/plain"}, set()] * 2
    assert all(report.numbers["slopes/colour"] > 0 for report in watch.reports[::2])


# Combiners ------------------------------------------------------------------------------------------------------------


class Loudest(Combiner):
    """The largest weighted loss alone, times a factor that it learns; remembers what it was given."""

    class Config(PluginConfig):
        """A factor."""

        factor: float = 1.0

    def __init__(self, config: Any, names: tuple[str, ...]) -> None:
        super().__init__(config, names)
        self.scale = nn.Parameter(torch.tensor(config.factor))
        self.given: list[Any] = []

    def forward(self, losses: Mapping[str, Tensor], weights: Mapping[str, float], shared: Shared) -> Tensor:
        self.given.append((set(losses), dict(weights), [tuple(value.shape) for value in shared.features]))
        return self.scale * torch.stack([weights[name] * loss for name, loss in losses.items()]).max()


def test_a_combiner_decides_what_is_differentiated(tmp_path: Path) -> None:
    """It is told sums, weights and shared maps, its parameters are trained and saved, weight 0 is not shown to it."""
    gradients, watch = Gradients(), Watch()
    plugins = {"colour": Colour, "plain": Plain, "pair": Pair, "loudest": Loudest, "seen": gradients, "watch": watch}
    run = train(
        tmp_path,
        plugins,
        combine={"name": "loudest"},
        weights={"pair": 0, "plain": 100.0},
        options={"loudest": {"factor": 3.0}},
        views={"join": False},
        optim={"lr": 1e-5},
    )
    given = run.ensemble.combiner.given[0]
    assert given[0] == {"colour", "plain"} and given[1]["plain"] == 100.0
    assert len(given[2]) == 2  # the clips of colour and plain stand apart; pair was evaluated without gradient
    assert watch.reports[0].numbers["loss"] == pytest.approx(300 * watch.losses[0]["plain/size"], rel=1e-5)
    assert "objectives.colour.head.weight" in gradients.named[0]  # reached, by a gradient of zero
    assert float(gradients.values[0]["objectives.colour.head.weight"].abs().max()) == 0
    assert float(run.ensemble.combiner.scale.detach()) != 3.0
    assert "combiner.scale" in run.state()["optimizer"]


def test_a_combiner_must_be_used_and_must_combine(tmp_path: Path) -> None:
    """Chosen without being named, or giving back what cannot be differentiated."""
    with pytest.raises(ConfigError, match="'loudest' combines losses and is not used; set combine.name=loudest"):
        open_small(tmp_path / "unused", {"colour": Colour, "loudest": Loudest})
    with pytest.raises(ConfigError, match="combine.name: 'colour' is not a chosen plugin that offers a combiner"):
        open_small(tmp_path / "none", {"colour": Colour}, combine={"name": "colour"})
    broken = type("Broken", (Loudest,), {"forward": lambda self, losses, weights, shared: torch.ones(2)})
    with pytest.raises(
        ObjectiveError, match=r"combiner Broken: must give a scalar that depends on the losses, got shape \(2,\)"
    ):
        train(tmp_path / "broken", {"colour": Colour, "broken": broken}, combine={"name": "broken"})


# Objectives that break their word -------------------------------------------------------------------------------------


def returning(value: Any) -> type[Objective]:
    """An objective whose forward gives `value(self, outputs)`."""
    return type("Broken", (Plain,), {"forward": lambda self, batch: value(self, self.told(batch))})


def raising(self: Any, told: Tensor) -> Terms:
    raise KeyError("left")


@pytest.mark.parametrize(
    ("value", "told"),
    [
        (raising, "KeyError: 'left'"),
        (lambda self, told: told.mean(), "forward must return vssl_core.Terms, got Tensor"),
        (lambda self, told: Terms({"size": told}), r"loss 'size' must be a scalar tensor, got shape \(4, 3\)"),
        (lambda self, told: Terms({"size": 1.0}), "loss 'size' must be a scalar tensor, got float"),
        (lambda self, told: Terms({"size": told.detach().mean()}), "loss 'size' is detached"),
        (
            lambda self, told: Terms({"size": told.mean()}, {"size": told.mean()}),
            "metric 'size' has the name of a loss",
        ),
        (
            lambda self, told: Terms({"size": told.mean()}, {"all": told}),
            r"metric 'all' must be one number, got shape \(4, 3\)",
        ),
        (
            lambda self, told: Terms({"size": told.mean()}, keep={"rows": told[:2]}),
            r"keep 'rows' must have a row for each of the 4 videos, got shape \(2, 3\)",
        ),
    ],
)
def test_a_broken_objective_is_named_with_the_shapes_it_saw(tmp_path: Path, value: Any, told: str) -> None:
    """One sentence, before anything is stepped."""
    with pytest.raises(
        ObjectiveError, match=rf"objective 'broken': {told}.*it saw clips of shape .*\(4, 3, 4, 16, 16\)"
    ):
        train(tmp_path, {"colour": Colour, "broken": returning(value)})


def test_a_detached_zero_is_no_mistake(tmp_path: Path) -> None:
    """A loss that is exactly 0 teaches nothing, rightly."""
    run = train(
        tmp_path,
        {"colour": Colour, "nothing": returning(lambda self, told: Terms({"size": torch.zeros(())}))},
        epochs=1,
    )
    assert run.step == STEPS


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_loss_that_is_not_finite_is_named(tmp_path: Path, value: float) -> None:
    """With the step and the shapes; the last checkpoint stays, loads, and holds finite weights."""

    class Exploding(Plain):
        def forward(self, batch: Batch) -> Terms:
            loss = super().forward(batch).losses["size"]
            return Terms({"size": loss * value if batch.progress > 0.6 else loss})

    with pytest.raises(
        NonFiniteError, match=rf"step 5: exploding/size = {value} .*clips of shape.*the last checkpoint is untouched"
    ):
        train(tmp_path, {"colour": Colour, "exploding": Exploding}, checkpoint={"every_steps": 2})
    run = open_small(tmp_path, {"colour": Colour, "exploding": Exploding}, checkpoint={"every_steps": 2})
    assert run.step == 4
    assert all(bool(value.isfinite().all()) for value in run.ensemble.state_dict().values())


def test_weights_that_are_not_finite_are_never_saved(tmp_path: Path) -> None:
    """A gradient that explodes while every loss is finite: the checkpoint before it stays."""

    class Poison:
        @hookimpl
        def vssl_backward_end(self, run: Run) -> None:
            if run.step == 3:
                run.objectives["colour"].head.weight.grad[0, 0] = math.nan

    with pytest.raises(NonFiniteError, match=r"step 4: objectives\.colour\.head\.weight = nan"):
        train(tmp_path, {"colour": Colour, "poison": Poison()}, checkpoint={"every_steps": 1})
    assert open_small(tmp_path, {"colour": Colour, "poison": Poison()}, checkpoint={"every_steps": 1}).step == 3


@pytest.mark.parametrize(
    ("trait", "told"),
    [
        ({"requests": lambda self: {}}, "requests must give"),
        ({"requests": lambda self: {"a/b": Request()}}, "slots being plain words"),
        ({"requests": lambda self: {"clip": 3}}, "slots being plain words"),
    ],
)
def test_requests_are_checked(tmp_path: Path, trait: dict[str, Any], told: str) -> None:
    """With the plugin's name."""
    with pytest.raises(PluginError, match=f"plugin 'odd': .*{told}"):
        open_small(tmp_path, {"odd": type("Odd", (Plain,), trait)})


def test_an_objective_that_cannot_be_built_is_named(tmp_path: Path) -> None:
    """Whether it raises, forgets its parent, or holds on to the run's own backbone."""

    class Raises(Plain):
        def __init__(self, config: Any, context: Context) -> None:
            raise ZeroDivisionError("nothing there")

    class Forgets(Plain):
        def __init__(self, config: Any, context: Context) -> None:
            nn.Module.__init__(self)

    class Holds(Plain):
        def __init__(self, config: Any, context: Context) -> None:
            super().__init__(config, context)
            self.net = context.backbone

    for kind, told in (
        (Raises, "ZeroDivisionError: nothing there"),
        (Forgets, "must call super"),
        (Holds, "holds the run's backbone itself"),
    ):
        with pytest.raises((ObjectiveError, PluginError), match=f"plugin 'odd'.*{told}"):
            open_small(tmp_path, {"odd": kind})


def test_names_of_module_attributes_are_names_like_any_other(tmp_path: Path) -> None:
    """A plugin may be called `type`, `train` or `half`."""
    run = train(tmp_path, {"type": Colour, "train": Plain, "half": Pair, "values": Plain}, epochs=1)
    assert list(run.objectives) == ["type", "train", "half", "values"]


def test_observers_alone_train_nothing(tmp_path: Path) -> None:
    """Which is said."""
    with pytest.raises(PluginError, match="watch trains nothing; choose at least one plugin with an objective"):
        open_small(tmp_path, {"watch": Watch()})


# Announcements --------------------------------------------------------------------------------------------------------


def expected_announcements(first: int, last: int, epochs: int = 2) -> list[str]:
    """What a run hears from its step `first` to `last`."""
    heard = []
    for step in range(first, last):
        if step % STEPS == 0:
            heard.append(f"epoch_start {step // STEPS}")
        heard += [f"backward_end {step}", f"step_end {step + 1}"]
        if (step + 1) % STEPS == 0:
            heard.append(f"epoch_end {(step + 1) // STEPS}")
    return heard


def test_moments_are_announced_in_order(tmp_path: Path) -> None:
    """Each once."""
    watch = Watch()
    train(tmp_path, {"colour": Colour, "watch": watch})
    assert watch.heard == ["run_start", *expected_announcements(0, 6), "run_end"]


@pytest.mark.parametrize("broken_at", [1, 2, 4, 5])
def test_an_epoch_is_announced_once_in_the_run_as_a_whole(tmp_path: Path, broken_at: int) -> None:
    """A run resumed inside an epoch goes on after its start."""
    first, second = Watch(), Watch()
    with pytest.raises(Stop):
        train(tmp_path, {"colour": Colour, "watch": first, "stop": StopAt(broken_at)})
    train(tmp_path, {"colour": Colour, "watch": second, "stop": StopAt(-1)})
    assert first.heard == ["run_start", *expected_announcements(0, broken_at), "run_end Stop"]
    assert second.heard == ["run_start", *expected_announcements(broken_at, 6), "run_end"]


def test_an_epoch_that_was_saved_and_not_yet_announced_is_announced_after_the_resume(tmp_path: Path) -> None:
    """The save of an epoch comes before its announcement: what hooks do there would be lost otherwise."""

    class Falls:
        @hookimpl(tryfirst=True)
        def vssl_epoch_end(self, run: Run) -> None:
            raise Stop

    watch = Watch()
    with pytest.raises(Stop):
        train(tmp_path, {"colour": Colour, "falls": Falls()})
    train(tmp_path, {"colour": Colour, "falls": watch})
    assert watch.heard == ["run_start", "epoch_end 1", *expected_announcements(3, 6), "run_end"]


def test_a_finished_run_has_nothing_left_to_announce(tmp_path: Path) -> None:
    """Starting it again changes no file of weights."""
    train(tmp_path, {"colour": Colour, "watch": Watch()})
    before = {name: (tmp_path / name).read_bytes() for name in ("checkpoint.pt", WEIGHTS, "metrics.jsonl")}
    watch = Watch()
    train(tmp_path, {"colour": Colour, "watch": watch})
    assert watch.heard == ["run_start", "run_end"]
    assert before == {name: (tmp_path / name).read_bytes() for name in before}


def test_hooks_take_any_subset_of_the_arguments(tmp_path: Path) -> None:
    """Objectives and observers alike, the epoch's order included."""
    heard = []

    class Listener(Plain):
        @hookimpl
        def vssl_step_end(self, report: Any) -> None:
            heard.append(report.step)

        @hookimpl
        def vssl_epoch_order(self) -> Any:
            return range(VIDEOS)

        @hookimpl
        def vssl_run_end(self, error: Any) -> None:
            heard.append(error)

    train(tmp_path, {"listener": Listener}, epochs=1)
    assert heard == [1, 2, 3, None]


# The order of an epoch ------------------------------------------------------------------------------------------------


class Order:
    """An observer that decides the order."""

    def __init__(self, order: Any) -> None:
        self.order = order

    @hookimpl
    def vssl_epoch_order(self, run: Run) -> Any:
        if isinstance(self.order, Exception):
            raise self.order
        return self.order


def test_each_epoch_shows_every_video_once_in_its_own_order(tmp_path: Path) -> None:
    """Orders differ by epoch and by seed, and nothing else decides them."""
    orders = {}
    for seed in (0, 1):
        watch = Watch()
        train(tmp_path / str(seed), {"colour": Colour, "watch": watch}, seed=seed)
        rows = [video for report in watch.reports for video in report.index.tolist()]
        orders[seed] = rows[:VIDEOS], rows[VIDEOS:]
    for order in (*orders[0], *orders[1]):
        assert sorted(order) == list(range(VIDEOS))
    assert len({tuple(order) for order in (*orders[0], *orders[1])}) == 4


def test_no_opinion_is_no_offer(tmp_path: Path) -> None:
    """None leaves the order to others."""
    run = train(tmp_path, {"colour": Colour, "none": Order(None), "some": Order(np.arange(8))}, epochs=1)
    assert run.step == 2


@pytest.mark.parametrize(
    ("orders", "told"),
    [
        ([range(VIDEOS), range(VIDEOS)], "order1 and order0|order0 and order1"),
        ([[0, 1, 2, VIDEOS]], "plugin 'order0': vssl_epoch_order gives video 12; the list has 0 to 11"),
        ([[0, 1, -1, 2]], "plugin 'order0': vssl_epoch_order gives video -1"),
        ([[0.5, 1, 2, 3]], "must give a flat row of whole numbers, got float64"),
        ([[[0, 1], [2, 3]]], r"must give a flat row of whole numbers, got int64 of shape \(2, 2\)"),
        ([[0, 1, 2]], "gives 3 videos, less than one batch of 4"),
        ([[]], "gives 0 videos, less than one batch of 4"),
        ([ZeroDivisionError("nothing")], "plugin 'order0': vssl_epoch_order raised ZeroDivisionError: nothing"),
    ],
)
def test_an_order_that_cannot_be_is_named(tmp_path: Path, orders: list[Any], told: str) -> None:
    """Two offers name both."""
    observers = {f"order{number}": Order(order) for number, order in enumerate(orders)}
    with pytest.raises(PluginError, match=told):
        train(tmp_path, {"colour": Colour, **observers})


# Extraction -----------------------------------------------------------------------------------------------------------


def features(batch: Batch) -> dict[str, Tensor]:
    """Pooled features and where the clip was cut."""
    (view,) = batch["clips"]
    return {"rows": view.features.vector, "start": view.windows.start, "noise": torch.rand(len(batch))}


def test_extraction_leaves_no_trace(tmp_path: Path) -> None:
    """Generators, statistics, modes and the place in the epoch stay, and so does all that is trained afterwards."""

    class Extracts:
        @hookimpl
        def vssl_step_end(self, run: Run) -> None:
            for train_mode in (False, True):
                before = run.state(), [module.training for module in run.ensemble.modules()]
                found = run.extract(Request(), features, train=train_mode)
                assert found["index"].tolist() == list(range(VIDEOS))
                assert_equal((run.state(), [module.training for module in run.ensemble.modules()]), before)

    alone, beside = Watch(), Watch()
    left = train(tmp_path / "alone", {"colour": Colour, "watch": alone})
    right = train(tmp_path / "beside", {"colour": Colour, "watch": beside, "extracts": Extracts()})
    assert beside.losses == alone.losses
    assert_equal(weights(left.ensemble), weights(right.ensemble))


def test_windows_of_an_extraction_depend_on_the_video_alone(tmp_path: Path) -> None:
    """Not on epoch, step, workers or batch; eval mode is not train mode."""
    found = []

    class Extracts:
        @hookimpl
        def vssl_epoch_start(self, run: Run) -> None:
            found.append(run.extract(Request(), features))

    train(tmp_path / "one", {"colour": Colour, "extracts": Extracts()})
    train(tmp_path / "two", {"colour": Colour, "extracts": Extracts()}, data={"workers": 2}, batch_size=6, epochs=1)
    assert len(found) == 3
    for later in found[1:]:
        assert torch.equal(later["start"], found[0]["start"])
    torch.testing.assert_close(found[2]["rows"], found[0]["rows"])  # the same weights, before the first step
    assert not torch.allclose(found[1]["rows"], found[0]["rows"])
    run = open_small(tmp_path / "three", {"colour": Colour})
    assert not torch.allclose(run.extract(Request(), features, train=True)["rows"], found[0]["rows"])


def test_an_extraction_lists_what_cannot_be_read(tmp_path: Path) -> None:
    """And leaves its rows out, without a replacement."""
    run = open_small(tmp_path / "run", {"colour": Colour}, videos=with_broken(tmp_path, [2, 7]))
    found = run.extract(Request(), features)
    assert found["unreadable"] == [2, 7]
    assert found["index"].tolist() == [number for number in range(VIDEOS) if number not in (2, 7)]
    assert len(found["rows"]) == VIDEOS - 2


def test_one_video_at_a_time_is_too_few_for_batch_norm(tmp_path: Path) -> None:
    """The user's mistake, and torch's own sentence names no key."""

    class Normed(Objective):
        def __init__(self, config: Any, context: Context) -> None:
            super().__init__(config, context)
            self.norm = nn.BatchNorm1d(context.feature_dim)

        def requests(self) -> Mapping[str, Request]:
            return {"clip": Request()}

        def forward(self, batch: Batch) -> Terms:
            return Terms({"size": self.norm(batch["clip"][0].features.vector).square().mean()})

    with pytest.raises(ConfigError, match="batch_size: objective 'normed' saw one video at a time"):
        train(tmp_path, {"normed": Normed}, batch_size=2, optim={"accumulate": 2})


def test_an_extraction_exchanges_nothing(tmp_path: Path) -> None:
    """On two ranks each would wait for the other for ever, so one alone refuses it already; the run goes on."""
    run = open_small(tmp_path, {"colour": Colour})
    with pytest.raises(PluginError, match="run.extract: encode exchanges something with other ranks"):
        run.extract(Request(), lambda batch: {"index": gather(batch.index)})
    run.train()


def test_an_order_is_decided_without_other_ranks(tmp_path: Path) -> None:
    """Only the first is asked: what needs all is told where it belongs."""

    class Extracts:
        @hookimpl
        def vssl_epoch_order(self, run: Run) -> Any:
            return run.extract(Request(), features)["index"].tolist()

    with pytest.raises(PluginError, match="plugin 'extracts': vssl_epoch_order .* do that in vssl_epoch_start"):
        train(tmp_path, {"colour": Colour, "extracts": Extracts()})


def test_an_extraction_needs_a_row_for_each_video(tmp_path: Path) -> None:
    """A plugin that pools over the batch is told so."""
    run = open_small(tmp_path, {"colour": Colour})
    with pytest.raises(
        PluginError, match=r"run.extract: 'mean' must have a row for each of the 4 videos, got shape \(\)"
    ):
        run.extract(Request(), lambda batch: {"mean": torch.zeros(())})
