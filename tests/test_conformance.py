"""Every plugin of ours keeps its promises, and one that breaks a promise is told so: the right check and sentence."""

from __future__ import annotations

import random
import re
import subprocess
import sys
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
        assert failures("echo", {"moments": 2}, only=lambda check: check in ("defaults", "training"))[0] == {}
        with pytest.raises(ConformanceError, match="defaults: .*moments: .* less than or equal to 64, got 65"):
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

SOUND = """
import random, time
import numpy as np
import torch
import torch.nn.functional as F
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field
from typing import Annotated
from torch import nn
import torch.distributed as dist
from vssl_core import rank, world_size, Flips, Measure, Objective, PluginConfig, Request, Terms, Turns, hookimpl

times = []

def number_of_the_day(crop, clip, window):
    return np.float32(random.random())

def everyone(rows):
    found = [torch.zeros_like(rows) for _ in range(world_size())]
    dist.all_gather(found, rows.detach()) if world_size() > 1 else found.__setitem__(0, rows)
    return torch.cat(found)

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
"""


class Broken:
    """Offers the sound objective with one line changed."""

    def __init__(self, distribute: Callable[..., None]) -> None:
        self.distribute, self.count = distribute, 0

    def __call__(self, old: str = "", new: str = "", door: str = DOOR) -> str:
        assert old in SOUND
        self.count += 1
        name = f"broken{self.count}"
        module = f"vssl_{name}_{random.getrandbits(40):x}"  # never a name that the ranks have imported before
        objective = SOUND.replace(old, new, 1) if old else SOUND
        files = {f"{module}.py": door.replace("MODULE", module), f"{module}_objective.py": objective}
        self.distribute(f"vssl-{name}", {name: module}, files)
        return name


@pytest.fixture
def broken(distribute) -> Broken:
    return Broken(distribute)


def test_what_is_to_be_broken_is_sound(broken):
    check_plugin(broken())


# What is replaced, by what, which check must fail, and what its sentence must say ------------------------------------

LOSS = "loss = (told - wanted - self.bank).square().mean()"
FIELD = 'width: int = Field(8, ge=1, description="width of the hidden layer")'
CLIP = 'return {"clip": Request()}'
BUFFER = 'self.register_buffer("bank", torch.zeros(3))'
MOVE = 'self.bank.lerp_(report.kept[self.context.name]["colours"].mean(dim=0), 0.1)'
TERMS = 'return Terms({"colour": loss}, {"error": loss.sqrt()}, {"colours": wanted})'

OPTIONS = {
    "one must be given": (FIELD.replace("8, ", ""), "defaults", "width: field required"),
    "a default beyond its bound": (FIELD.replace("8,", "0,"), "defaults", "refused when they are read back"),
    "a validator that changes its own result": (
        "width: Annotated[int, BeforeValidator(lambda value: value // 2)] = Field(8, ge=1, validate_default=True)",
        "defaults",
        "option 'width' is 4 in config.yaml and 2 when read back",
    ),
    "unknown keys pass": (
        f"model_config = ConfigDict(extra='ignore')\n        {FIELD}",
        "unknown options",
        "Broken.Config lets unknown keys pass",
    ),
    "unknown keys pass further in": (
        'part: type("Part", (BaseModel,), {}) | None = Field(None, description="a part")',
        "unknown options",
        "Part lets unknown keys pass",
    ),
    "they change": (
        f"model_config = ConfigDict(frozen=False)\n        {FIELD}",
        "unknown options",
        "can be changed after it was checked",
    ),
    "one without words": ("width: int = Field(8, ge=1)", "descriptions", "option 'width' has no description"),
    "one without bounds": (
        'width: float | None = Field(None, description="a")',
        "bounds",
        "option 'width' has no bound",
    ),
    "one that is mended": (
        'width: Annotated[int, BeforeValidator(lambda value: max(value, 1))] = Field(8, ge=1, description="a")',
        "bounds",
        "option 'width' takes values outside its own bounds",
    ),
}

REQUESTS = {
    "no request": ('return {"clip": "one please"}', "training", "plugin 'broken1': requests must give"),
    "a list": ('return {"clip": Request(turns=Turns([0, 1]))}', "requests", "cannot be compared"),
    "a measure that cannot travel": (
        'return {"clip": Request(measures=(Measure("m", lambda crop, clip, window: 0),))}',
        "requests",
        "cannot be sent to loader workers",
    ),
    "it depends on the day": (
        'self.calls += 1; return {"clip": Request(flips=Flips(1 / self.calls))}',
        "requests",
        "something else when it is asked twice",
    ),
    "a measure that draws": (
        'return {"clip": Request(measures=(Measure("m", number_of_the_day),))}',
        "randomness",
        "draws from Python's global generator",
    ),
}

LOSSES = {
    "not a number": (f"{LOSS} / 0 * 0", "training", "colour = nan"),
    "a gradient that is not a number": (
        f"{LOSS} + (told * 0).square().sum().sqrt()",
        "training",
        "the gradient of '.*' is not finite in step 1",
    ),
    "no gradient": ("loss = (told * 0).square().mean()", "training", "give no parameter a gradient"),
    "detached": (f"{LOSS}.detach()", "training", "loss 'colour' is detached"),
    "an error": ("loss = told @ wanted", "training", "'broken1': RuntimeError"),
    "it moves state": (f"{LOSS}; self.bank += 0.01", "state", "forward changes 'bank'; change state in announcements"),
    "it moves weights": (f"{LOSS}; self.head[2].bias.data.zero_()", "state", "forward changes 'head.2.bias'"),
    "it draws": (f"{LOSS} + told.mean() * np.random.random()", "randomness", "draws from NumPy's global generator"),
    "the clock": (
        f"{LOSS} + told.mean() * (time.perf_counter() % 1)",
        "seed",
        "in a second run with the same seed",
    ),
    "what earlier runs left": (
        f"times.append(0); {LOSS} * len(times)",
        "seed",
        "in a second run with the same seed",
    ),
    "a number that is not saved": (
        f"self.calls += 1; {LOSS} * self.calls",
        "restart",
        "of step 3 becomes .* after a restart at step 2",
    ),
    "what bfloat16 cannot hold": (
        f"{LOSS} + torch.log(1 - (told * 0 + 0.999).bfloat16()).mean() * (view.clip.shape[2] == 4)",
        "bfloat16",
        "colour = -?inf",
    ),
    "a mean over no clip": (
        "real = view.windows.real.all(1); loss = ((told - wanted).square().mean(1) * real).sum() / real.sum()",
        "short videos",
        "colour = nan",
    ),
    "a gradient of its own": (
        f"{LOSS}; torch.autograd.grad(loss, told, retain_graph=True)",
        "weight 0",
        "does not require grad",
    ),
    "a mean of what is near": (
        f"told = told - told.mean(dim=0); {LOSS}",
        "ranks",
        "loss 'broken1/colour' of step 1 is .* on one rank and .* on two; meet other rows through vssl_core.gather",
    ),
    "a count of what is near": (
        "odd = (batch.index % 2).float(); loss = ((told - wanted).square().mean(1) * odd).sum() / odd.sum().clamp(1)",
        "ranks",
        "on one rank and .* on two",
    ),
    "noise for a batch": (f"told = told + torch.randn_like(told); {LOSS}", "ranks", "on one rank and .* on two"),
    "a gather without gradient": (
        "loss = (told[:, None] - everyone(told)).square().mean()",
        "ranks",
        "the averaged gradient of '.*' differs between one rank and two in step 1",
    ),
}

GIVEN_BACK = {
    "no loss": (TERMS.replace('{"colour": loss}', "{}"), "training", "no step has a loss"),
    "a path": (TERMS.replace('"colour"', '"colour/red"'), "terms", "losses: 'colour/red' is not a plain name"),
    "a metric of several numbers": (TERMS.replace("loss.sqrt()", "told.mean(dim=0)"), "training", "metric 'error'"),
    "kept rows that are none": (TERMS.replace(": wanted", ": wanted.mean(dim=0)"), "training", "keep 'colours' must"),
    "kept rows of one rank": (
        TERMS.replace(": wanted", ": wanted - wanted.mean(dim=0)"),
        "ranks",
        "kept rows 'broken1/colours' of step 1 differ",
    ),
}

HOOKS = {
    "state that is not saved": (
        "self.calls += 1; self.bank.fill_(self.calls)",
        "restart",
        "loss 'broken1/colour' of step 4 becomes .* after a restart at step 2; hold all that changes in parameters",
    ),
    "a buffer that grows": ('self.register_buffer("log", torch.zeros(run.step))', "restart", "log"),
    "the backbone": ("next(run.backbone.parameters()).data.mul_(0.9)", "weight 0", "'backbone.*' changes though"),
    "clusters of one rank": (
        "pass\n\n    @hookimpl\n    def vssl_epoch_start(self, run):\n        self.bank.fill_(run.epoch * rank())",
        "ranks",
        "loss 'broken1/colour' of step 3 is .* on one rank and .* on two",
    ),
    "rows of one rank": (
        "self.bank.fill_(rank())",
        "ranks",
        "'bank' differs between the two ranks after 2 steps|on one rank and .* on two",
    ),
}

BUILDING = {
    "it draws": (
        f"{BUFFER}; self.bank.fill_(np.random.random())",
        "randomness",
        "NumPy's global generator|when a global generator stood elsewhere before the run",
    )
}

BROKEN = {
    f"{what}: {how}": (old, *case)
    for what, old, cases in (
        ("options", FIELD, OPTIONS),
        ("requests", CLIP, REQUESTS),
        ("the loss", LOSS, LOSSES),
        ("what forward gives", TERMS, GIVEN_BACK),
        ("the hook", MOVE, HOOKS),
        ("building", BUFFER, BUILDING),
    )
    for how, case in cases.items()
}


@pytest.mark.parametrize("how", BROKEN)
def test_a_broken_objective_is_caught(broken, how):
    old, new, check, sentence = BROKEN[how]
    found, _ = failures(broken(old, new), {}, only=lambda name: name == check)
    assert set(found) == {check}
    assert re.search(sentence, found[check]), found[check]
    assert "\n" not in found[check]


def test_a_door_without_words_and_with_heavy_imports(broken):
    door = DOOR.replace('"""Offers an objective."""', "import torch")
    found, _ = failures(broken(door=door), {}, only=lambda name: name in ("documentation", "imports"))
    assert "has no docstring" in found["documentation"]
    assert re.search("importing 'vssl_broken1_.*' also imports torch; import the classes inside", found["imports"])


ONE_FILE = f'"""Offers an objective."""\n{SOUND}\n\nvssl_objective = hookimpl(lambda: Broken)\n'


def test_a_plugin_of_one_file_imports_torch_and_nothing_heavier(broken):
    """Its class derives from one of ours, so it cannot do without; of all else it is asked as any other."""
    only = {"only": lambda name: name == "imports"}
    assert failures(broken(door=ONE_FILE), {}, **only) == ({}, None)
    found, _ = failures(broken(door=f"{ONE_FILE}\nimport matplotlib\n"), {}, **only)
    assert re.search("also imports matplotlib; import the classes inside", found["imports"])


def test_all_that_fails_is_told_at_once_a_sentence_each(broken):
    door = DOOR.replace("Offers an objective.", "")
    name = broken(LOSS, f"{LOSS}; self.bank += 0.01; np.random.random()", door=door)
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


def test_it_needs_no_test_runner_and_is_imported_at_no_cost():
    program = "import sys, vssl_core.testing; print(sorted({'pytest', 'torch', 'av'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", program], capture_output=True, text=True).stdout.strip() == "[]"


def test_two_ranks_serve_all_checks_and_come_back_after_a_failure(broken):
    from vssl_core.testing.ranks import pool

    def ranks(check):
        return check == "ranks"

    sound, wrong = broken(), broken(LOSS, "from vssl_core import world_size; assert world_size() == 1\n        " + LOSS)
    assert failures(sound, {}, only=ranks)[0] == {}
    first = [process.pid for process in pool().processes]
    assert failures(sound, {}, only=ranks)[0] == {}
    assert [process.pid for process in pool().processes] == first
    assert re.search("rank [01] of 2: .*AssertionError", failures(wrong, {}, only=ranks)[0]["ranks"])
    assert failures(sound, {}, only=ranks)[0] == {}


# Evaluations, combiners, observers ------------------------------------------------------------------------------------

JUDGE = '''
"""Offers an evaluation."""
from vssl_core import hookimpl

@hookimpl
def vssl_evaluation():
    import random
    from vssl_core import Evaluation, Needs, PluginConfig, Result

    class Judge(Evaluation):
        def needs(self):
            return Needs(clips=2)

        def run(self, features):
            rows = features.splits["test"].vectors[features.last]
            right = rows.mean(dim=1)[:, 0] > 0
            return Result({"top1": 100 * right.double().mean().item()}, {"evaluation": "judge"}, {"classes": [1, 2]})

    return Judge
'''

JUDGEMENTS = {
    "what it needs": ("Needs(clips=2)", "(2, 'clips')", "needs", "must give vssl_core.Needs, got tuple"),
    "a split that is not there": (
        "clips=2",
        "splits=('train', 'val')",
        "needs",
        "splits 'train' and 'test', got clips=",
    ),
    "a stage that is not there": ("clips=2", "stages=('stage9',)", "needs", "stage 'stage9', there are stage1, stage2"),
    "no result": (
        "return Result(",
        "return (lambda *parts: parts)(",
        "results",
        "must give vssl_core.Result, got tuple",
    ),
    "no metric": ('{"top1": 100 * right.double().mean().item()}', "{}", "results", "gives no metric"),
    "no percentage": ("100 *", "1000 *", "results", "metric 'top1' must be a percentage from 0 to 100, got"),
    "no number": ("right.double()", "(0 / right.double().new_zeros(1))", "results", "must be a percentage .* got nan"),
    "features that change": (
        "rows =",
        "features.splits['test'].vectors[features.last] += 1; rows =",
        "results",
        "changes",
    ),
    "a judge who throws dice": ("100 *", "random.random() *", "seed", "metric 'top1' is .* once and .* the next time"),
    "a protocol of tensors": ('{"evaluation": "judge"}', '{"rows": rows}', "JSON", "its protocol cannot be written as"),
    "no protocol": ('{"evaluation": "judge"}', "{}", "JSON", "its protocol is empty"),
    "tables that are no numbers": ("[1, 2]", "[float('nan')]", "JSON", "its tables cannot be written as JSON"),
}


@pytest.mark.parametrize("how", JUDGEMENTS)
def test_a_broken_evaluation_is_caught(distribute, how):
    old, new, check, sentence = JUDGEMENTS[how]
    assert old in JUDGE
    distribute("vssl-judge", {"judge": "vssl_judge"}, {"vssl_judge.py": JUDGE.replace(old, new, 1)})
    found, _ = failures("judge", {}, only=lambda name: name == check)
    assert set(found) == {check}
    assert re.search(sentence, found[check]), found[check]


OTHERS = '''
"""Offers what stands beside objectives."""
import random
from vssl_core import hookimpl
'''

COMBINER = f"""{OTHERS}
@hookimpl
def vssl_combine():
    import torch
    from vssl_core import Combiner

    class Largest(Combiner):
        def forward(self, losses, weights, shared):
            return torch.stack([weights[name] * loss for name, loss in losses.items()]).max()

    return Largest
"""

OBSERVER = f"""{OTHERS}
seen = []

@hookimpl
def vssl_step_end(run, report):
    seen.append(float(report.loss))
"""


@pytest.mark.parametrize(
    ("text", "check", "sentence"),
    [
        (COMBINER.replace(".max()", ""), "training", "must give a scalar that depends on the losses, got .*2"),
        (COMBINER.replace(".max()", ".max().detach()"), "training", "must give a scalar that depends on the losses"),
        (COMBINER.replace(".max()", ".max() / 0"), "training", "is not finite|= inf|= nan"),
        (COMBINER.replace(".max()", ".max() * random.random()"), "randomness", "Python's global generator"),
        (OBSERVER.replace("seen.append(", "random.random("), "training", "TypeError"),
        (OBSERVER.replace("seen.append(float(report.loss))", "random.random()"), "randomness", "Python's global"),
    ],
)
def test_broken_combiners_and_observers_are_caught(distribute, text, check, sentence):
    distribute("vssl-other", {"other": "vssl_other"}, {"vssl_other.py": text})
    found, _ = failures("other", {}, only=lambda name: name == check)
    assert set(found) == {check}
    assert re.search(sentence, found[check]), found[check]


OFFERS = f"""{OTHERS}
@hookimpl
def vssl_backbones():
    from vssl_core import build_backbone

    return {{"small": lambda: build_backbone("tiny")}}

@hookimpl
def vssl_sources():
    return {{"shelf": print}}
"""


@pytest.mark.parametrize(
    ("old", "new", "sentence"),
    [
        ('{"small": lambda:', "[lambda:", "vssl_backbones must give {name: function}"),
        ("build_backbone", "str", "backbone 'small' must be a vssl_core.Backbone, got str"),
        ("print", "'print'", "vssl_sources must give {name: function}"),
    ],
)
def test_broken_offers_are_caught(distribute, old, new, sentence):
    text = OFFERS.replace(old, new)
    text = text.replace('("tiny")}', '("tiny")]') if "[" in new else text.replace("import str", "import build_backbone")
    distribute("vssl-other", {"other": "vssl_other"}, {"vssl_other.py": text})
    assert sentence in failures("other", {}, only=lambda name: name == "offers")[0]["offers"]


@pytest.mark.parametrize(
    "text", [JUDGE, COMBINER, OBSERVER, OFFERS], ids=["evaluation", "combiner", "observer", "offers"]
)
def test_sound_evaluations_combiners_and_observers_pass(distribute, text):
    distribute("vssl-other", {"other": "vssl_other"}, {"vssl_other.py": text})
    check_plugin("other")
