"""Features that objectives offer to evaluations: read like stages, of the weights that were trained, or refused."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from small_runs import open_small, settings, splits, videos_folder

from vssl_core import Batch, Objective, Request, Terms, cli
from vssl_core.errors import CheckpointError, ConfigError
from vssl_core.objective import Evaluation, Needs, Result
from vssl_core.plugins import load
from vssl_core.run import checkpoint
from vssl_core.run.build import build_parts, choose, context_of
from vssl_core.run.evaluation import Extraction, extract, pooled, shared_extractions
from vssl_core.run.offered import EvaluationContext, Offers, named_features, offered_widths, offers_features
from vssl_core.run.terms import ObjectiveError
from vssl_core.testing import failures

PROBE = '''
"""Offers two vectors of a clip, and an evaluation that reads one of them."""
from vssl_core import hookimpl

@hookimpl
def vssl_objective():
    from MODULE_parts import Palette
    return Palette

@hookimpl
def vssl_evaluation():
    from MODULE_parts import Spread
    return Spread
'''
PARTS = """
import torch
from torch import nn
from vssl_core import Evaluation, Needs, Objective, Request, Result, Terms

class Palette(Objective):
    def __init__(self, config, context):
        super().__init__(config, context)
        self.head = nn.Linear(context.feature_dim, 3)
        self.noise = nn.Dropout(0.5)
        self.register_buffer("steps", torch.zeros(()))

    def requests(self):
        return {"clip": Request()}

    def forward(self, batch):
        (view,) = batch["clip"]
        return Terms({"error": (self.head(view.features.vector) - view.clip.mean(dim=(2, 3, 4))).square().mean()})

    def named_features(self, batch):
        (view,) = batch["clips"]
        told = self.noise(self.head(view.features.vector))
        return {"told": told, "all": torch.cat([told, view.features.vector], dim=1)}

class Spread(Evaluation):
    def needs(self):
        self.context.stage(f"{self.context.name}/told")
        return Needs(stages=(f"{self.context.name}/told",), clips=2, labels=False, splits=("test",))

    def run(self, features):
        rows = features.splits["test"].vectors[f"{self.context.name}/told"]
        return Result({"spread": float(rows.std().clamp(max=100))}, {"evaluation": "spread"})
"""
WORDS = ["clip.frames=4", "clip.size=16", "epochs=2", "batch_size=4", "data.workers=0", "device.kind=cpu"]
WORDS += ["log.tensorboard=false", "optim.lr=0.05"]

Distribute = Callable[..., None]


@pytest.fixture
def palette(distribute: Distribute) -> None:
    """A plugin that is installed and offers an objective, two features and an evaluation of one of them."""
    distribute(
        "vssl-palette", {"palette": "palette_door"},
        {"palette_door.py": PROBE.replace("MODULE", "palette"), "palette_parts.py": PARTS},
    )  # fmt: skip


def vssl(*words: str) -> int:
    return cli.main(list(words))


def trained(folder: Path, *words: str) -> Path:
    """A run folder of two epochs."""
    assert (
        vssl("train", "--plugins", "palette", "--data", str(videos_folder()), "--run", str(folder), *WORDS, *words) == 0
    )
    return folder


def found(folder: Path, evaluation: str) -> dict:
    return json.loads((folder / "evaluations" / f"{evaluation}.json").read_text())


def extracted(folder: Path, stages: tuple[str, ...]) -> dict[str, torch.Tensor]:
    """What `vssl evaluate` would hand to an evaluation, of the training videos."""
    offers, config, backbone = opened(folder)
    made = extract(
        config, {"trained": backbone}, splits(), Extraction(2, ("train",), stages), torch.device("cpu"), None,
        {"trained": offers.trained},
    )  # fmt: skip
    return dict(made["trained"].splits["train"].vectors)


def opened(folder: Path):  # type: ignore[no-untyped-def]
    from vssl_core.run.folder import read_run
    from vssl_core.run.weights import load_backbone

    config = read_run(folder)
    manager, plugins = load(list(config.plugins))
    return Offers(config, manager, plugins, folder), config, load_backbone(folder)


# In a run folder ------------------------------------------------------------------------------------------------------


def test_they_are_read_like_stages_and_by_what_the_plugin_itself_offers(palette: None, tmp_path: Path) -> None:
    run = trained(tmp_path / "run")
    stages = "plugins.retrieval.stages=[stage5,palette/told,palette/all]"
    assert (
        vssl("evaluate", "--run", str(run), "--evaluations", "retrieval,palette", "--baseline", "random", stages) == 0
    )
    result = found(run, "retrieval")
    assert {"r@1", "palette/told/r@1", "palette/all/coclr/r@1"} <= set(result["metrics"])
    assert set(result["metrics"]) == set(result["baselines"]["random"]["metrics"])
    assert result["protocol"]["stages"] == ["stage5", "palette/told", "palette/all"]
    assert result["hashes"]["objectives"] and found(run, "palette")["metrics"]["spread"] > 0
    assert vssl("evaluate", "--run", str(run), "--evaluations", "linear", "plugins.linear.stage=palette/told") == 0
    assert found(run, "linear")["protocol"]["stage"] == "palette/told"


def test_they_are_those_of_the_trained_weights(palette: None, tmp_path: Path) -> None:
    """The head's answer to the backbone's vector, by hand; without dropout, and the same at every call."""
    run = trained(tmp_path / "run")
    vectors = extracted(run, ("palette/told", "palette/all", "stage5"))
    state = checkpoint.load(run / checkpoint.NAME)["ensemble"]
    weight, bias = (state[f"objectives.palette.head.{name}"] for name in ("weight", "bias"))
    torch.testing.assert_close(vectors["palette/told"], vectors["stage5"] @ weight.T + bias)
    torch.testing.assert_close(vectors["palette/all"], torch.cat([vectors["palette/told"], vectors["stage5"]], dim=2))
    assert torch.equal(extracted(run, ("palette/told",))["palette/told"], vectors["palette/told"])


def test_the_random_net_has_objectives_without_a_step(palette: None, tmp_path: Path) -> None:
    offers, config, _ = opened(trained(tmp_path / "run"))
    untouched = build_parts(choose(config), videos=12).ensemble.objectives["palette"]
    one, other, learned = (
        objective.head.weight for objective in (offers.untrained["palette"], untouched, offers.trained["palette"])
    )
    assert torch.equal(one, other) and not torch.equal(one, learned)


def test_they_stand_before_the_stages_so_that_the_last_stage_stays_the_last(palette: None, tmp_path: Path) -> None:
    offers, config, backbone = opened(trained(tmp_path / "run"))
    made = extract(
        config, {"trained": backbone}, splits(), Extraction(1, ("train",), ("palette/told", "stage4")),
        torch.device("cpu"), None, {"trained": offers.trained},
    )["trained"]  # fmt: skip
    assert made.stages == ("palette/told", "stage1", "stage2", "stage3", "stage4", "stage5") and made.last == "stage5"
    assert set(made.splits["train"].vectors) == {"palette/told", "stage4"}


def test_nothing_is_built_or_loaded_where_nothing_is_asked_for(palette: None, tmp_path: Path) -> None:
    """Without its checkpoint a run can still be evaluated by its stages, and only by them."""
    run = trained(tmp_path / "run")
    for path in [run / checkpoint.NAME, *(run / "checkpoints").glob("*.pt")]:
        path.unlink()
    assert vssl("evaluate", "--run", str(run), "--evaluations", "retrieval") == 0
    assert "objectives" not in found(run, "retrieval")["hashes"]
    with pytest.raises(CheckpointError, match="there is no such checkpoint"):
        opened(run)[0].widths  # noqa: B018


def test_the_net_that_was_seen_is_one_forward_for_stages_and_features(palette: None, tmp_path: Path) -> None:
    offers, _, backbone = opened(trained(tmp_path / "run"))
    calls: list[int] = []
    backbone.register_forward_hook(lambda *_: calls.append(1))
    from vssl_core.run.extract import still_batch, with_features
    from vssl_core.views import View
    from vssl_core.windows import Sample

    clip = torch.randn(3, 3, 4, 16, 16)
    view = with_features(View(clip, clip[:, :, :0], None, {}, None), backbone)  # type: ignore[arg-type]
    samples = [Sample(0, 0, 0, number) for number in range(3)]
    batch = still_batch("extract", (view, view), torch.arange(3), samples, backbone)
    rows = pooled(batch, {"net": backbone}, ("palette/told", "palette/all", "stage3"), {"net": offers.trained})
    assert len(calls) == 2  # one for each clip
    assert {name: tuple(value.shape) for name, value in rows.items()} == {
        "net/palette/told": (3, 2, 3), "net/palette/all": (3, 2, 131), "net/stage3": (3, 2, 32),
    }  # fmt: skip


def test_a_run_that_has_gone_on_is_told_so_unless_the_epochs_checkpoint_was_kept(palette: None, tmp_path: Path) -> None:
    run = trained(tmp_path / "run")
    state = checkpoint.load(run / checkpoint.NAME)
    key = next(name for name in state["ensemble"] if name.startswith("backbone.") and name.endswith("weight"))
    state["ensemble"][key] += 1
    checkpoint.save(run / checkpoint.NAME, state)
    assert opened(run)[0].widths == {"palette/told": 3, "palette/all": 131}
    (run / "checkpoints" / "epoch_0002.pt").unlink()
    with pytest.raises(CheckpointError, match="palette need the checkpoint .* has gone on since; let it finish"):
        opened(run)[0].widths  # noqa: B018


def test_another_list_of_videos_changes_no_size(palette: None, tmp_path: Path) -> None:
    """Queues and banks are as long as the run's own list asks, wherever it is evaluated."""
    small = tmp_path / "small"
    for side in ("train", "test"):
        for name in ("left", "right"):
            (small / side / name).mkdir(parents=True)
            for number, path in enumerate(sorted((videos_folder() / side / name).glob("*.mp4"))[:1]):
                (small / side / name / f"{number}.mp4").write_bytes(path.read_bytes())
    run = tmp_path / "run"
    words = ["--data", str(videos_folder()), "--run", str(run), *WORDS]
    assert vssl("train", "--plugins", "palette,moco", *words) == 0
    stages = "plugins.retrieval.stages=[palette/told]"
    assert vssl("evaluate", "--run", str(run), "--evaluations", "retrieval", "--data", str(small), stages) == 0


# Refusals -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("stage", "told"),
    [
        (
            "palette/tol",
            "no features 'palette/tol', they offer palette/told, palette/all; did you mean 'palette/told'?",
        ),
        ("rotation/told", "no features 'rotation/told', they offer palette/told"),
        ("stage9", "the backbone has no stage 'stage9', it has stage1"),
    ],
)
def test_what_is_not_there_is_a_sentence(
    palette: None, tmp_path: Path, capsys: pytest.CaptureFixture[str], stage: str, told: str
) -> None:
    run = trained(tmp_path / "run")
    assert vssl("evaluate", "--run", str(run), "--evaluations", "linear", f"plugins.linear.stage={stage}") == 2
    error = capsys.readouterr().err
    assert told in error and "Traceback" not in error


def test_a_run_that_offers_nothing_says_so(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = tmp_path / "run"
    words = ["--data", str(videos_folder()), "--run", str(run), *WORDS]
    assert vssl("train", "--plugins", "rotation", *words) == 0
    assert vssl("evaluate", "--run", str(run), "--evaluations", "linear", "plugins.linear.stage=palette/told") == 2
    assert "the run's objectives offer no features 'palette/told', they offer none" in capsys.readouterr().err


class Asks(Evaluation):
    """Needs whatever its options say, and asks nobody whether it is there."""

    def needs(self) -> Needs:
        return Needs(stages=("stage5", "palette/told"))

    def run(self, features):  # type: ignore[no-untyped-def]
        return Result({"top1": 0.0}, {"evaluation": "asks"})


def test_extractions_that_are_shared_hold_what_is_offered_first() -> None:
    config = settings({})
    parts = build_parts(choose(settings({"rotation": {}})), videos=12)
    context = context_of(config, "asks", parts.ensemble.backbone, 12)
    shared = shared_extractions({"asks": Asks(None, context)}, tuple(parts.ensemble.backbone.stages))
    assert list(shared) == [Extraction(10, ("train", "test"), ("palette/told", "stage5"))]


class Plain(Objective):
    """Offers nothing."""

    def requests(self):  # type: ignore[no-untyped-def]
        return {"clip": Request()}

    def forward(self, batch: Batch) -> Terms:
        return Terms({})


class Odd(Plain):
    """Offers what its test tells it to."""

    given: object = None

    def named_features(self, batch: Batch):  # type: ignore[no-untyped-def]
        if isinstance(self.given, Exception):
            raise self.given
        return self.given


def test_only_who_overrides_it_offers_features(tmp_path: Path) -> None:
    assert offers_features(Odd) and not offers_features(Plain) and not offers_features(None)
    run = open_small(tmp_path, {"rotation": None})
    (objective,) = run.objectives.values()
    assert objective.named_features(None) == {}  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("given", "told"),
    [
        (torch.zeros(2, 3), r"objective 'odd': named_features must give \{name: \(B, D\)\}, got shape \(2, 3\)"),
        ({"x": torch.zeros(3, 3)}, "a row of D numbers for each video, 'x' has shape .3, 3. for 2 videos"),
        ({"x": torch.zeros(2)}, "'x' has shape .2,. for 2 videos"),
        ({"x": [1, 2]}, "'x' has list for 2 videos"),
        (KeyError("slot"), "objective 'odd': named_features: KeyError"),
    ],
)
def test_what_cannot_be_read_is_refused_with_the_name_of_who_offers_it(
    tmp_path: Path, given: object, told: str
) -> None:
    run = open_small(tmp_path, {"rotation": None})
    odd = Odd(None, context_of(run.config, "odd", run.backbone, 12))
    odd.given = given
    with pytest.raises(ObjectiveError, match=told):
        offered_widths(run.config, run.backbone, {"odd": odd})


def test_looking_what_is_offered_leaves_no_trace(palette: None, tmp_path: Path) -> None:
    offers, config, _ = opened(trained(tmp_path / "run"))
    ensemble = offers._restored
    ensemble.train()
    before = {name: value.clone() for name, value in ensemble.state_dict().items()}
    torch.manual_seed(3)
    expected = torch.rand(4)
    torch.manual_seed(3)
    assert offered_widths(config, ensemble.backbone, offers.trained) == {"palette/told": 3, "palette/all": 131}
    assert torch.equal(torch.rand(4), expected) and ensemble.training and all(m.training for m in ensemble.modules())
    assert all(torch.equal(value, before[name]) for name, value in ensemble.state_dict().items())


def test_the_context_of_an_evaluation_asks_only_when_it_must(tmp_path: Path) -> None:
    run = open_small(tmp_path, {"rotation": None})
    asked: list[int] = []

    def offers() -> dict[str, int]:
        asked.append(1)
        return {"palette/told": 3}

    context = EvaluationContext.of(context_of(run.config, "linear", run.backbone, 12), offers)
    assert context.stage("stage5") == context.stages["stage5"]
    with pytest.raises(ConfigError, match="no stage 'stage9'"):
        context.stage("stage9")
    assert not asked and "palette/told" not in context.stages
    assert context.stage("palette/told") == (3, 1, 1, 1) and asked


def test_rows_are_float32_whatever_is_offered(tmp_path: Path) -> None:
    from vssl_core.run.extract import still_batch
    from vssl_core.windows import Sample

    odd = Odd(None, None)  # type: ignore[arg-type]
    odd.given = {"x": torch.zeros(1, 2, dtype=torch.bfloat16)}
    batch = still_batch("odd", (), torch.arange(1), [Sample(0, 0, 0, 0)], torch.nn.Identity())
    assert named_features(odd, batch)["odd/x"].dtype == torch.float32


# The conformance kit --------------------------------------------------------------------------------------------------


def test_a_plugin_that_evaluates_what_it_offers_keeps_its_promises(palette: None) -> None:
    assert failures("palette", {}, only=lambda check: check in ("needs", "results", "seed", "JSON"))[0] == {}


def test_an_evaluation_that_asks_for_what_nobody_offers_is_caught(distribute: Distribute) -> None:
    parts = PARTS.replace('return {"told": told,', 'return {"tald": told,')
    distribute(
        "vssl-palette", {"palette": "palette_door"},
        {"palette_door.py": PROBE.replace("MODULE", "palette"), "palette_parts.py": parts},
    )  # fmt: skip
    found, _ = failures("palette", {}, only=lambda check: check == "needs")
    assert (
        "plugins.palette: the run's objectives offer no features 'palette/told', they offer palette/tald"
        in found["needs"]
    )
