"""What a training with a plugin must satisfy: each function gives the sentence that says what is wrong, or None."""

from __future__ import annotations

import pickle
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor

from vssl_core.testing import videos
from vssl_core.testing.recording import COPY_AT, Recording, same
from vssl_core.testing.trial import SMALL, Trial

LONG = tuple(number for number in range(len(videos.FRAMES)) if number not in videos.SHORT)
TOLERANCE = 1e-4  # between one rank and two, relative to the size of a tensor
TOGETHER: dict[str, Any] = {
    "epochs": 2,
    "batch_size": 6,
    "optim": {"lr": 1e-4},  # small: steps as large as usual blow rounding up
    "device": {"sync_batch_norm": True},
}
ADVICE = "meet other rows through vssl_core.gather, divide by counts with vssl_core.mean, draw with batch.draw"
NOISE = 1e-5  # of what is zero but for rounding, relative to the size of all gradients together


# Training, with any plugin --------------------------------------------------------------------------------------------


def training(trial: Trial) -> str | None:
    """Losses and gradients are finite, and there are some."""
    return _trains(trial.first)


def randomness(trial: Trial) -> str | None:
    """Nothing is drawn from a global generator but what the engine itself seeds."""
    _ = trial.again
    if trial.moved:
        whose = " and ".join(trial.moved)
        return f"a step draws from {whose}'s global generator; draw with batch.draw, which belongs to the sample"
    if _apart(trial.first, trial.again) and not _apart(trial.first, trial.third):
        return (
            f"{_apart(trial.first, trial.again)} when a global generator stood elsewhere before the run; "
            "draw with batch.draw, or from a generator seeded by run.config.seed"
        )
    return None


def seed(trial: Trial) -> str | None:
    """Two runs with one seed are equal bit for bit."""
    if _apart(trial.first, trial.again) and (apart := _apart(trial.first, trial.third)):
        return (
            f"{apart} in a second run with the same seed; "
            "take no number from the clock, from hashes, or from what earlier runs left behind"
        )
    return None


def restart(trial: Trial) -> str | None:
    """A run that is restarted in the middle of an epoch goes on as if nothing had happened."""
    apart = _apart(trial.first, trial.restarted, skip=COPY_AT)
    if apart:
        return (
            f"{apart} after a restart at step {COPY_AT}; "
            "hold all that changes in parameters and buffers, of shapes that follow from config and context"
        )
    return None


# Objectives -----------------------------------------------------------------------------------------------------------


def requests(trial: Trial) -> str | None:
    """Requests are values: equal when asked for twice, hashable, picklable."""
    from vssl_core.config import RunConfig
    from vssl_core.run.build import build_parts, choose

    name = trial.plugin.name
    chosen = choose(RunConfig.model_validate(trial.job("requests").config))
    objective = build_parts(chosen, len(videos.FRAMES)).ensemble.objectives[name]
    asked = objective.requests()
    for slot, request in asked.items():
        try:
            hash(request)
        except TypeError as error:
            return f"the request of slot '{slot}' cannot be compared ({error}); use tuples, not lists"
        try:
            copy = pickle.loads(pickle.dumps(request))
        except Exception as error:  # pickle raises several kinds
            return (
                f"the request of slot '{slot}' cannot be sent to loader workers ({error}); "
                "a measure is a function of a module, not a lambda"
            )
        if copy != request:
            return f"the request of slot '{slot}' is another one after pickling; build it from plain values"
    if dict(objective.requests()) != dict(asked):
        return "requests() gives something else when it is asked twice; let it depend on config and context alone"
    return None


def terms(trial: Trial) -> str | None:
    """Losses, metrics and kept rows have plain names and the right shapes."""
    return _told(trial.first.complaints.get("terms"))


def state(trial: Trial) -> str | None:
    """`forward` changes nothing but running statistics."""
    complaints = trial.first.complaints.get("state")
    return f"{_told(complaints)}; change state in announcements, such as vssl_step_end" if complaints else None


def weight_zero(trial: Trial) -> str | None:
    """At weight 0 an objective is evaluated without gradient, and the backbone stays as it is."""
    recording = trial.record("weight 0", LONG[:4], epochs=1, weights={trial.plugin.name: 0.0})
    for key, value in recording.start.items():
        if key.startswith("backbone.") and not same(value, recording.state[key]):
            return f"'{key}' changes though the weight is 0; leave the backbone to the optimizer"
    return None


def bfloat16(trial: Trial) -> None:
    """Losses and gradients stay finite under autocast, on two clips of 4x16x16."""
    trial.record("bfloat16", LONG[:4], epochs=1, device={"precision": "bfloat16"}, **SMALL)


def short_videos(trial: Trial) -> None:
    """Videos shorter than any clip can be trained on."""
    trial.record("short videos", videos.SHORT, batch_size=len(videos.SHORT))


def ranks(trial: Trial) -> str | None:
    """Two ranks with half the batch each do what one does with all of it."""
    from vssl_core.testing.ranks import on_two_ranks

    settings = {**TOGETHER, "exact": True}
    one = trial.record("one rank", **settings)
    first, second = on_two_ranks(trial.job("two ranks", **settings))
    problem = _ranks_apart(trial.plugin.name, one, first, second)
    return f"{problem}; {ADVICE}" if problem else None


# Comparing ------------------------------------------------------------------------------------------------------------


def _trains(recording: Recording) -> str | None:
    if not any(recording.losses):
        return "no step has a loss; return at least one with Terms(losses=...)"
    if not any(bool(gradient.any()) for found in recording.gradients for gradient in found.values()):
        return (
            "its losses give no parameter a gradient; let them follow from view.features or from parameters of its own"
        )
    return None


def _told(problems: Iterable[str] | None) -> str | None:
    return "; ".join(problems) if problems else None


def _apart(left: Recording, right: Recording, skip: int = 0) -> str | None:
    """The first thing that two recordings do not share bit for bit, the left one from its step `skip` on."""
    for step, (old, new) in enumerate(zip(left.losses[skip:], right.losses, strict=True), start=skip + 1):
        for name in {**old, **new}:
            if name not in old or name not in new:
                return f"loss '{name}' of step {step} comes and goes"
            if not same(old[name], new[name]):
                return f"loss '{name}' of step {step} becomes {float(new[name]):.9g} instead of {float(old[name]):.9g}"
    return next(
        (
            f"'{name}' ends with other values"
            for name, value in left.state.items()
            if not same(value, right.state[name])
        ),
        None,
    )


def _ranks_apart(name: str, one: Recording, first: Recording, second: Recording) -> str | None:
    for step, (alone, together) in enumerate(zip(one.losses, first.losses, strict=True), start=1):
        for term in {**alone, **together}:
            if term not in alone or term not in together:
                return f"loss '{term}' of step {step} is there on one rank and not on two, or the other way round"
            if not _close(alone[term], together[term], NOISE):
                values = f"{float(alone[term]):.6g} on one rank and {float(together[term]):.6g} on two"
                return f"loss '{term}' of step {step} is {values}"
        problem = _gradients_apart(one.gradients[step - 1], first.gradients[step - 1])
        if problem:
            return f"{problem} in step {step}"
        for key, rows in one.kept[step - 1].items():
            if not _close(rows, first.kept[step - 1].get(key), NOISE):
                return f"kept rows '{key}' of step {step} differ between one rank and two"
    own = f"objectives.{name}."
    for key, value in first.state.items():
        if key.startswith(own) and not same(value, second.state[key]):
            return f"'{key.removeprefix(own)}' differs between the two ranks after {len(one.losses)} steps"
    return None


def _gradients_apart(alone: dict[str, Tensor], together: dict[str, Tensor]) -> str | None:
    floor = NOISE * float(torch.stack([gradient.norm() for gradient in alone.values()]).norm()) if alone else 0.0
    for name in {**alone, **together}:
        if name not in alone or name not in together:
            return f"'{name}' has a gradient on one rank and none on two, or the other way round"
        if not _close(alone[name], together[name], floor):
            return f"the averaged gradient of '{name}' differs between one rank and two"
    return None


def _close(left: Tensor, right: Tensor | None, floor: float) -> bool:
    """Whether two tensors differ by less than the tolerance, as vectors."""
    if right is None or left.shape != right.shape:
        return False
    left, right = left.double(), right.double()
    return bool((left - right).norm() <= TOLERANCE * left.norm() + floor)


TRAINING: dict[str, Callable[[Trial], str | None]] = {
    "training": training,
    "randomness": randomness,
    "seed": seed,
    "restart": restart,
}
CHECKS: dict[str, Callable[[Trial], str | None]] = {
    "requests": requests,
    "terms": terms,
    "state": state,
    "weight 0": weight_zero,
    "bfloat16": bfloat16,
    "short videos": short_videos,
    "ranks": ranks,
}
