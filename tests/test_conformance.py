"""Every plugin of ours keeps its promises, and a plugin that breaks one is told so: the right check, the right sentence."""

from __future__ import annotations

import random
import re
from collections.abc import Callable
from importlib import metadata
from pathlib import Path

import numpy as np
import pytest
import torch

from vssl_core.errors import PluginError
from vssl_core.testing import ConformanceError, check_plugin, failures

ECHO = Path(__file__).parent / "thirdparty" / "vssl_echo"
OURS = sorted(point.name for point in metadata.distribution("vssl").entry_points if point.group == "vssl")


@pytest.mark.parametrize("name", OURS)
def test_our_plugins_keep_their_promises(name):
    check_plugin(name)


def test_options_are_checked_as_they_are_given(distribute):
    distribute("vssl-echo", {"echo": "vssl_echo"}, {})
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(ECHO)
        check_plugin("echo", moments=2)
        with pytest.raises(ConformanceError, match="defaults: plugins.echo.moments: .* less than or equal to 64, got 65"):
            check_plugin("echo", moments=65)


def test_a_plugin_that_is_not_there():
    with pytest.raises(PluginError, match="no plugin named 'ech0' is installed"):
        check_plugin("ech0")


# Broken objectives ----------------------------------------------------------------------------------------------------

DOOR = '''
"""Offers an objective."""
from vssl_core import hookimpl

@hookimpl
def vssl_objective():
    from MODULE_objective import Broken
    return Broken
'''

SOUND = '''
import random, time
import numpy as np
import torch
import torch.nn.functional as F
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field
from typing import Annotated
from torch import nn
from vssl_core import ANY, Flips, Measure, Objective, PluginConfig, Request, Terms, Turns, hookimpl

times = []

def number_of_the_day(crop, clip, window):
    return np.float32(random.random())

class Broken(Objective):
    class Config(PluginConfig):
        width: int = Field(8, ge=1, description="width of the hidden layer")

    def __init__(self, config, context):
        super().__init__(config, context)
        self.head = nn.Sequential(nn.Linear(context.feature_dim, 8), nn.ReLU(), nn.Linear(8, 3))
        self.register_buffer("bank", torch.zeros(3))
        self.calls = 0

    def requests(self):
        return {"clip": Request()}

    def forward(self, batch):
        view = batch["clip"][0]
        told = self.head(view.features.vector).float()
        wanted = view.clip.mean(dim=(2, 3, 4))
        loss = (told - wanted - self.bank).square().mean()
        return Terms({"colour": loss}, {"error": loss.sqrt()}, {"colours": wanted})

    @hookimpl
    def vssl_step_end(self, run, report):
        self.bank.lerp_(report.kept[self.context.name]["colours"].mean(dim=0), 0.1)
'''


class Broken:
    """Offers the sound objective with one line changed."""

    def __init__(self, distribute: Callable[..., None]) -> None:
        self.distribute, self.count = distribute, 0

    def __call__(self, old: str = "", new: str = "", door: str = DOOR) -> str:
        assert old in SOUND
        self.count += 1
        name = f"broken{self.count}"
        module = f"vssl_{name}_{random.getrandbits(40):x}"  # never a name that the ranks have imported before
        files = {f"{module}.py": door.replace("MODULE", module), f"{module}_objective.py": SOUND.replace(old, new, 1) if old else SOUND}
        self.distribute(f"vssl-{name}", {name: module}, files)
        return name


@pytest.fixture
def broken(distribute) -> Broken:
    return Broken(distribute)


def test_what_is_to_be_broken_is_sound(broken):
    check_plugin(broken())


LOSS = "loss = (told - wanted - self.bank).square().mean()"
FIELD = 'width: int = Field(8, ge=1, description="width of the hidden layer")'
CLIP = 'return {"clip": Request()}'
BUFFER = 'self.register_buffer("bank", torch.zeros(3))'
MOVE = 'self.bank.lerp_(report.kept[self.context.name]["colours"].mean(dim=0), 0.1)'
TERMS = 'return Terms({"colour": loss}, {"error": loss.sqrt()}, {"colours": wanted})'

BROKEN = {
    # options
    "an option that must be given": (FIELD, FIELD.replace("8, ", ""), "defaults", "plugins.broken1.width: field required"),
    "a default beyond its bound": (FIELD, FIELD.replace("8,", "0,"), "defaults", "refused when they are read back from config.yaml"),
    "a validator that changes its own result": (
        FIELD, 'width: Annotated[int, BeforeValidator(lambda value: value // 2)] = Field(8, ge=1, description="a", validate_default=True)',
        "defaults", "option 'width' is 4 in config.yaml and 2 when read back"),
    "unknown keys pass": (FIELD, f"model_config = ConfigDict(extra='ignore')\n        {FIELD}", "unknown options", "Broken.Config lets unknown keys pass"),
    "options that change": (FIELD, f"model_config = ConfigDict(frozen=False)\n        {FIELD}", "unknown options", "can be changed after it was checked"),
    "unknown keys pass further in": (
        FIELD, 'part: Annotated[type("Part", (BaseModel,), {}), Field(description="a part")] = None', "unknown options", "Part lets unknown keys pass"),
    "an option without words": (FIELD, "width: int = Field(8, ge=1)", "descriptions", "option 'width' has no description"),
    "an option without bounds": (FIELD, 'width: float | None = Field(None, description="a")', "bounds", "option 'width' has no bound"),
    "an option that is mended": (
        FIELD, 'width: Annotated[int, BeforeValidator(lambda value: max(value, 1))] = Field(8, ge=1, description="a")',
        "bounds", "option 'width' takes values outside its own bounds"),
    # requests
    "no request": (CLIP, 'return {"clip": "one please"}', "training", "broken1"),
    "a list in a request": (CLIP, 'return {"clip": Request(turns=Turns([0, 1]))}', "requests", "cannot be compared"),
    "a measure that cannot travel": (
        CLIP, 'return {"clip": Request(measures=(Measure("m", lambda crop, clip, window: 0),))}', "requests", "cannot be sent to loader workers"),
    "a slot of two words": (CLIP, 'return {"the clip": Request()}', "requests", "slot 'the clip' is not a plain name"),
    "a request that depends on the day": (
        CLIP, 'self.calls += 1\n        return {"clip": Request(flips=Flips(1 / self.calls))}', "requests", "something else when it is asked twice"),
    # training
    "a loss that is not a number": (LOSS, f"{LOSS} / 0 * 0", "training", "colour = nan"),
    "a gradient that is not a number": (LOSS, f"{LOSS} + (told * 0).square().sum().sqrt()", "training", "the gradient of '.*' is not finite in step 1"),
    "no loss": (TERMS, 'return Terms({}, {"error": loss.detach()}, {"colours": wanted})', "training", "no step has a loss"),
    "no gradient": (LOSS, "loss = (told * 0).square().mean()", "training", "give no parameter a gradient"),
    "a detached loss": (LOSS, f"{LOSS}.detach()", "training", "loss 'colour' is detached"),
    "an error": (LOSS, "loss = told @ wanted", "training", "broken1.*RuntimeError"),
    # terms
    "a term with a path": (TERMS, TERMS.replace('"colour"', '"colour/red"'), "terms", "losses: 'colour/red' is not a plain name"),
    "a metric of several numbers": (TERMS, TERMS.replace("loss.sqrt()", "told.mean(dim=0)"), "terms", "metric 'error' is not one number"),
    "kept rows that are none": (TERMS, TERMS.replace('"colours": wanted', '"colours": wanted, "mean": wanted.mean(dim=0)'), "terms",
                                "keep 'mean' must have a row for each of the 4 videos"),
    # state
    "a forward that moves state": (LOSS, f"{LOSS}; self.bank += 0.01", "state", "forward changes 'bank'"),
    "a forward that moves weights": (LOSS, f"{LOSS}; self.head[2].bias.data.zero_()", "state", "forward changes 'head.2.bias'"),
    # random numbers
    "NumPy's global generator": (LOSS, f"{LOSS} + told.mean() * np.random.random()", "randomness", "draws from NumPy's global generator"),
    "Python's global generator in a measure": (
        CLIP, 'return {"clip": Request(measures=(Measure("m", number_of_the_day),))}', "randomness", "draws from Python's global generator"),
    "NumPy's global generator at the start": (
        BUFFER, f"{BUFFER}; self.head[2].bias.data.fill_(np.random.random())", "randomness", "NumPy's global generator"),
    "the clock": (LOSS, f"{LOSS} + told.mean() * (time.perf_counter() % 1)", "seed", "in a second run with the same seed"),
    "what earlier runs left": (LOSS, f"times.append(0); {LOSS} * len(times)", "seed", "in a second run with the same seed"),
    # restart
    "state that is not saved": (MOVE, "self.bank = self.bank + 0.1; self._buffers.pop('bank'); self.__dict__['bank'] = torch.ones(3) * run.step",
                                "restart", "after a restart at step 2|'bank'"),
    "a number that is not saved": (LOSS, f"self.calls += 1; {LOSS} * self.calls", "restart", "of step 3 becomes .* after a restart at step 2"),
    "a buffer that grows": (MOVE, "self.bank = torch.zeros(run.step, 3).mean(dim=0).expand(run.step, 3)[0:run.step]",
                            "restart", "holds another architecture"),
    # what is lowered, short, or worth nothing
    "a logarithm that bfloat16 cannot hold": (
        "told = self.head(view.features.vector).float()",
        "told = self.head(view.features.vector); told = (told + torch.log(1 - (told.tanh() * 1e-4 + 0.999).to(told.dtype))).float()",
        "bfloat16", "is not finite|= -?inf|= nan"),
    "a mean over no clip": (
        LOSS, "real = view.windows.real.all(dim=1); loss = ((told - wanted).square().mean(dim=1) * real).sum() / real.sum()",
        "short videos", "colour = nan"),
    "a gradient of its own": (LOSS, f"{LOSS}; torch.autograd.grad(loss, told, retain_graph=True)", "weight 0", "does not require grad"),
    # ranks
    "a mean of what is near": (LOSS, "told = told - told.mean(dim=0); " + LOSS, "ranks", "loss 'broken1/colour' of step 1 is .* on one rank and .* on two"),
    "a count of what is near": (
        LOSS, "bright = (wanted.mean(dim=1) > 0).float(); loss = ((told - wanted).square().mean(dim=1) * bright).sum() / bright.sum().clamp(min=1)",
        "ranks", "on one rank and .* on two|averaged gradient"),
    "noise for a batch": (LOSS, f"told = told + torch.randn_like(told); {LOSS}", "ranks", "on one rank and"),
    "rows of one rank": (MOVE, "self.bank.fill_(float(self.last))", "ranks", "'bank' differs between the two ranks|on one rank and"),
    "a gradient that skips the others": (
        LOSS, "from vssl_core import gather; others = gather(told).detach(); loss = (told[:, None] - others[None]).square().mean()",
        "ranks", "the averaged gradient of '.*' differs between one rank and two in step 1"),
}  # fmt: skip


@pytest.mark.parametrize("how", BROKEN)
def test_a_broken_objective_is_caught(broken, how):
    old, new, check, sentence = BROKEN[how]
    if how == "rows of one rank":
        new = "self.bank.fill_(float(report.index[0]) if __import__('vssl_core').rank() == 0 else 0.0)"
    found, _ = failures(broken(old, new), {}, only=lambda name: name == check)
    assert set(found) == {check}
    assert re.search(sentence, found[check]), found[check]
    assert "\n" not in found[check]


def test_a_door_without_words_and_with_heavy_imports(broken):
    door = DOOR.replace('"""Offers an objective."""', "import torch")
    found, _ = failures(broken(door=door), {}, only=lambda name: name in ("documentation", "imports"))
    assert "has no docstring" in found["documentation"]
    assert re.search("importing 'vssl_broken1_.*' also imports torch; import the classes inside", found["imports"])


def test_all_that_fails_is_told_at_once_a_sentence_each(broken):
    name = broken(LOSS, f"{LOSS}; self.bank += 0.01; told = told + np.random.random()", door=DOOR.replace("Offers an objective.", ""))
    with pytest.raises(ConformanceError) as told:
        check_plugin(name)
    assert list(told.value.failures) == ["documentation", "randomness", "state"]
    assert len(str(told.value).splitlines()) == 4
    assert str(told.value).startswith(f"plugin '{name}': 3 checks failed")


def test_what_follows_from_a_failed_training_is_not_told(broken):
    name = broken(LOSS, "loss = told @ wanted")
    with pytest.raises(ConformanceError, match="1 check failed") as told:
        check_plugin(name)
    assert list(told.value.failures) == ["training"]
    assert told.value.__cause__ is not None


def test_a_check_leaves_no_trace_in_generators_and_threads(broken):
    np.random.seed(3), random.seed(3), torch.manual_seed(3), torch.set_num_threads(1)
    name = broken()
    random.seed(3)
    before = np.random.get_state()[1].tolist(), random.getstate(), torch.get_rng_state().tolist()
    failures(name, {}, only=lambda check: check in ("training", "randomness"))
    assert before == (np.random.get_state()[1].tolist(), random.getstate(), torch.get_rng_state().tolist())
    assert torch.get_num_threads() == 1


def test_two_ranks_serve_all_checks_and_come_back_after_a_failure(broken):
    from vssl_core.testing.ranks import _pool

    def ranks(check):
        return check == "ranks"

    sound, wrong = broken(), broken(LOSS, "from vssl_core import world_size; assert world_size() == 1\n        " + LOSS)
    assert failures(sound, {}, only=ranks)[0] == {}
    first = [process.pid for process in _pool().processes]
    assert failures(sound, {}, only=ranks)[0] == {}
    assert [process.pid for process in _pool().processes] == first
    assert re.search("rank [01] of 2: .*AssertionError", failures(wrong, {}, only=ranks)[0]["ranks"])
    assert failures(sound, {}, only=ranks)[0] == {}
