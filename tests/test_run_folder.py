"""What a run leaves in its folder: metrics, events, the ledger, checkpoints, the backbone.

And how it leaves when told to.
"""

from __future__ import annotations

import gc
import json
import math
import os
import re
import resource
import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from small_runs import (
    STEPS,
    VIDEOS,
    Colour,
    Stop,
    StopAt,
    Watch,
    assert_equal,
    open_small,
    splits,
    train,
    videos_folder,
    weights,
    with_broken,
)  # fmt: skip

from vssl_core import CheckpointError, ConfigError, DataError, Run, Terms, hookimpl, load_backbone
from vssl_core.config import build, read_yaml, to_tree
from vssl_core.run import checkpoint
from vssl_core.run.folder import read_run
from vssl_core.run.signals import Interrupted
from vssl_core.run.weights import CARD, WEIGHTS

ALWAYS = {
    "step",
    "epoch",
    "loss",
    "lr",
    "clips_per_second",
    "data_wait",
    "weight/colour",
    "colour/error",
    "colour/brightness",
}


def lines(folder: Path, name: str = "metrics.jsonl") -> list[dict[str, Any]]:
    """The objects of a file that holds one a line; NaN and Infinity, which are not JSON, are refused."""

    def refuse(literal: str) -> None:
        raise AssertionError(f"{name} holds {literal}")

    return [json.loads(line, parse_constant=refuse) for line in (folder / name).read_text().splitlines()]


# Metrics --------------------------------------------------------------------------------------------------------------


def test_metrics_hold_a_line_for_each_step(tmp_path: Path) -> None:
    """With the same numbers as the reports."""
    watch = Watch()
    train(tmp_path, {"colour": Colour, "watch": watch})
    found = lines(tmp_path)
    assert [line["step"] for line in found] == [1, 2, 3, 4, 5, 6]
    assert [line["epoch"] for line in found] == [0, 0, 0, 1, 1, 1]
    assert all(set(line) == ALWAYS for line in found)
    assert [line["colour/error"] for line in found] == [losses["colour/error"] for losses in watch.losses]
    assert all(line["clips_per_second"] > 0 and 0 <= line["data_wait"] <= 1 for line in found)


def test_metrics_may_be_written_less_often(tmp_path: Path) -> None:
    """Every second step, and the norm of the gradient where it is clipped."""
    train(tmp_path, {"colour": Colour}, log={"every_steps": 2}, optim={"clip_norm": 1.0})
    assert [line["step"] for line in lines(tmp_path)] == [2, 4, 6]
    assert all(line["gradient_norm"] > 0 for line in lines(tmp_path))


class Undefined(Colour):
    """A metric that has no value in some steps."""

    def forward(self, batch: Any) -> Terms:
        terms = super().forward(batch)
        return Terms(terms.losses, {"share": torch.tensor(math.nan if batch.progress < 0.4 else 0.5)})


def test_a_number_that_is_none_is_left_out(tmp_path: Path) -> None:
    """A metric that is not a number has no key in that line, and is no reason to stop."""
    train(tmp_path, {"undefined": Undefined})
    assert ["undefined/share" in line for line in lines(tmp_path)] == [False, False, False, True, True, True]


def test_a_resume_cuts_what_came_after_the_checkpoint(tmp_path: Path) -> None:
    """A killed run had logged further than it had saved; its last line was cut short."""
    with pytest.raises(Stop):
        train(tmp_path, {"colour": Colour, "stop": StopAt(2)})
    path = tmp_path / "metrics.jsonl"
    before = path.read_text()
    path.write_text(before + '{"step": 3, "loss": 77.0}\n{"step": 4, "lo')
    train(tmp_path, {"colour": Colour, "stop": StopAt(-1)})
    assert path.read_text().startswith(before)
    assert [line["step"] for line in lines(tmp_path)] == [1, 2, 3, 4, 5, 6]
    assert lines(tmp_path)[2]["loss"] != 77.0


def test_events_can_be_read(tmp_path: Path) -> None:
    """TensorBoard's own reader finds every number of every step, after a resume too."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    log = {"tensorboard": True}
    with pytest.raises(Stop):
        train(tmp_path, {"colour": Colour, "stop": StopAt(4)}, log=log)
    train(tmp_path, {"colour": Colour, "stop": StopAt(-1)}, log=log)
    events = EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()
    assert ALWAYS - {"step", "epoch"} <= set(events.Tags()["scalars"])
    found = [(event.step, event.value) for event in events.Scalars("colour/error")]
    assert found == [(line["step"], pytest.approx(line["colour/error"])) for line in lines(tmp_path)]


# The ledger -----------------------------------------------------------------------------------------------------------


def test_a_broken_video_is_replaced_and_listed_once(tmp_path: Path) -> None:
    """The batch names what was really read; the line tells path, reason and replacement; workers change nothing."""
    data, indices = with_broken(tmp_path, [3]), []
    for workers in (0, 2):
        watch, folder = Watch(), tmp_path / str(workers)
        train(
            folder, {"colour": Colour, "watch": watch}, videos=data, data={"workers": workers, "max_bad_fraction": 0.2}
        )
        indices.append([report.index.tolist() for report in watch.reports])
        (line,) = lines(folder, "skipped.jsonl")
        assert line["path"] == data.train.path(3) and line["video"] == 3 and line["epoch"] == 0
        assert line["reason"] and str(data.train.path(3)) not in line["reason"]
        assert line["replacement"] in [data.train.path(number) for number in range(VIDEOS) if number != 3]
    assert indices[0] == indices[1]
    assert 3 not in sum(indices[0], []) and len(sum(indices[0], [])) == 2 * VIDEOS


def test_too_many_broken_videos_stop_the_run(tmp_path: Path) -> None:
    """One sentence with both numbers; all that were met are listed; a restart counts anew, since they may be mended."""
    data = with_broken(tmp_path, [1, 4, 5, 8])
    settings: dict[str, Any] = {"videos": data, "data": {"workers": 0, "max_bad_fraction": 0.25}}
    told = (
        r"data: 4 of 12 videos cannot be read, more than data.max_bad_fraction = 0.25 allows, listed in .*skipped.jsonl"
        r", the first was .*\.mp4: .*; mend them \(`vssl data check` finds all that are damaged\), or raise"
    )
    for _ in range(2):
        with pytest.raises(DataError, match=told):
            train(tmp_path / "run", {"colour": Colour}, **settings)
    assert sorted(line["video"] for line in lines(tmp_path / "run", "skipped.jsonl")) == [1, 4, 5, 8]
    for number in (1, 4):
        Path(data.train.path(number)).write_bytes(Path(splits().train.path(number)).read_bytes())
    assert train(tmp_path / "run", {"colour": Colour}, **settings).step == 2 * STEPS


def test_videos_that_can_all_not_be_read_are_an_error(tmp_path: Path) -> None:
    """Named with the first reason, before any limit is reached; the ledger holds all that were tried."""
    data = with_broken(tmp_path, list(range(VIDEOS)))
    with pytest.raises(
        DataError, match=r"none of the (\d+) videos that were tried .* first was .*vssl data check"
    ) as told:
        train(tmp_path / "run", {"colour": Colour}, videos=data, data={"workers": 0, "max_bad_fraction": 1.0})
    tried = int(re.search(r"none of the (\d+)", str(told.value))[1])
    assert VIDEOS // 2 < tried <= VIDEOS
    assert len(lines(tmp_path / "run", "skipped.jsonl")) >= tried


def test_a_changed_list_is_refused_on_resume(tmp_path: Path) -> None:
    """Numbers of videos mean something to banks and orders; the place of the list does not."""
    with pytest.raises(Stop):
        train(tmp_path / "run", {"colour": Colour, "stop": StopAt(2)})
    moved = with_broken(tmp_path, [])
    assert open_small(tmp_path / "run", {"colour": Colour, "stop": StopAt(-1)}, videos=moved).step == 2
    shorter = splits()
    shorter = type(shorter)(shorter.train.select(range(1, VIDEOS)), None, "shorter")
    with pytest.raises(CheckpointError, match=r"another list of videos \(12 then, 11 now\)"):
        open_small(tmp_path / "run", {"colour": Colour, "stop": StopAt(-1)}, videos=shorter)


# Checkpoints ----------------------------------------------------------------------------------------------------------


class Saves:
    """An observer that writes down after which steps a new checkpoint was there."""

    def __init__(self) -> None:
        self.steps: list[int] = []

    @hookimpl
    def vssl_backward_end(self, run: Run) -> None:
        path = run.folder / checkpoint.NAME
        if path.exists() and (not self.steps or checkpoint.load(path)["step"] != self.steps[-1]):
            self.steps.append(checkpoint.load(path)["step"])


def test_checkpoints_come_every_so_many_steps_and_at_the_end_of_epochs(tmp_path: Path) -> None:
    saves = Saves()
    train(tmp_path, {"colour": Colour, "saves": saves}, checkpoint={"every_steps": 2}, epochs=3)
    assert saves.steps == [2, 3, 4, 6, 8]
    assert checkpoint.load(tmp_path / checkpoint.NAME)["step"] == 9


def test_checkpoints_come_every_so_many_minutes(tmp_path: Path) -> None:
    """A time that is over with the first step."""
    saves = Saves()
    train(tmp_path, {"colour": Colour, "saves": saves}, checkpoint={"every_minutes": 1e-6}, epochs=1)
    assert saves.steps == [1, 2]


@pytest.mark.parametrize(("every", "kept"), [(0, [5]), (2, [2, 4, 5])])
def test_checkpoints_of_epochs_are_kept(tmp_path: Path, every: int, kept: list[int]) -> None:
    """The last always; each holds the state at the end of its epoch, whatever was saved afterwards."""
    train(tmp_path, {"colour": Colour}, checkpoint={"keep_every_epochs": every}, epochs=5)
    found = {path.name: checkpoint.load(path) for path in sorted((tmp_path / "checkpoints").iterdir())}
    assert list(found) == [f"epoch_{epoch:04d}.pt" for epoch in kept]
    assert [state["step"] for state in found.values()] == [STEPS * epoch for epoch in kept]
    assert [state["epoch"] for state in found.values()] == kept


def test_a_kept_checkpoint_can_take_the_place_of_the_last(tmp_path: Path) -> None:
    """And ends with the same weights."""
    run = train(tmp_path, {"colour": Colour}, checkpoint={"keep_every_epochs": 1})
    last = (tmp_path / WEIGHTS).read_bytes()
    (tmp_path / checkpoint.NAME).write_bytes((tmp_path / "checkpoints" / "epoch_0001.pt").read_bytes())
    again = train(tmp_path, {"colour": Colour}, checkpoint={"keep_every_epochs": 1})
    assert again.step == run.step and (tmp_path / WEIGHTS).read_bytes() == last


def test_whoever_resumes_from_the_end_of_an_epoch_finds_all_else_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A kill between any two files of a save: the checkpoint comes last."""
    from vssl_core.run import files

    written: list[str] = []
    replace = os.replace
    monkeypatch.setattr(
        files.os, "replace", lambda beside, path: (written.append(Path(path).name), replace(beside, path))
    )
    train(tmp_path, {"colour": Colour}, epochs=1)
    assert written[-4:] == [WEIGHTS, CARD, "epoch_0001.pt", checkpoint.NAME]


def test_what_a_killed_save_left_is_cleared_away(tmp_path: Path) -> None:
    """Half-written files are neither a run nor in the way of one."""
    left = [tmp_path / ".config.yaml.123.tmp", tmp_path / "checkpoints" / ".epoch_0001.pt.123.tmp"]
    for path in left:
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(b"half")
    (tmp_path / "config.yaml").write_text(read_config_of(tmp_path / "other"))
    train(tmp_path, {"colour": Colour}, epochs=1)
    assert not any(path.exists() for path in left)


def read_config_of(folder: Path) -> str:
    open_small(folder, {"colour": Colour}, epochs=1)
    return (folder / "config.yaml").read_text()


def test_the_folder_tells_what_is_trained(tmp_path: Path) -> None:
    """The configuration with every default, read back as it was; the plan as JSON."""
    run = open_small(tmp_path, {"colour": Colour}, options={"colour": {"factor": 2.0}})
    assert read_run(tmp_path) == build(type(run.config), to_tree(run.config), "run")
    assert read_yaml(str(tmp_path / "config.yaml"))["plugins"] == {"colour": {"factor": 2.0}}
    plan = json.loads((tmp_path / "plan.json").read_text())
    assert plan["groups"][0]["members"] == {"colour/clip": 1} and plan["groups"][0]["request"]["frames"] == 4


def test_another_configuration_is_refused_with_its_differences(tmp_path: Path) -> None:
    """Even where config.yaml is gone.

    Settings that cannot change weights are free, and the new ones are written down.
    """
    with pytest.raises(Stop):
        train(tmp_path, {"colour": Colour, "stop": StopAt(2)})
    on = {"colour": Colour, "stop": StopAt(-1)}
    told = r"another configuration \(optim.lr: 0.05 -> 0.2; seed: 0 -> 3\)"
    with pytest.raises(ConfigError, match=told):
        open_small(tmp_path, on, optim={"lr": 0.2}, seed=3)
    with pytest.raises(ConfigError, match="plugins.colour.factor: 1.0 -> 3.0"):
        open_small(tmp_path, on, options={"colour": {"factor": 3.0}})
    run = open_small(tmp_path, on, log={"every_steps": 2}, checkpoint={"every_steps": 7}, data={"workers": 1})
    assert run.step == 2 and read_run(tmp_path).data.workers == 1
    (tmp_path / "config.yaml").unlink()
    with pytest.raises(ConfigError, match=told):
        open_small(tmp_path, on, optim={"lr": 0.2}, seed=3)
    assert open_small(tmp_path, on).step == 2


# The backbone ---------------------------------------------------------------------------------------------------------


def test_the_backbone_s_bytes_depend_on_its_weights_alone(tmp_path: Path) -> None:
    """Other plugins at weight 0, another folder, another log: the same bytes. One more step: others."""
    train(tmp_path / "one", {"colour": Colour})
    train(tmp_path / "two", {"colour": Colour, "watch": Watch()}, log={"every_steps": 5}, checkpoint={"every_steps": 1})
    train(tmp_path / "three", {"colour": Colour}, epochs=3)
    one, two, three = ((tmp_path / name / WEIGHTS).read_bytes() for name in ("one", "two", "three"))
    assert one == two != three


def test_the_backbone_can_be_loaded_alone(tmp_path: Path) -> None:
    """In eval mode, with its card, equal to the one that was trained."""
    run = train(tmp_path, {"colour": Colour})
    backbone = load_backbone(tmp_path)
    assert not backbone.training
    assert_equal(weights(backbone), weights(run.backbone))
    clip = torch.randn(2, 3, 4, 16, 16)
    with torch.no_grad():
        assert_equal(backbone(clip), run.backbone.eval()(clip))
    assert (
        backbone.card["steps"] == 6
        and backbone.card["normalisation"] == "imagenet"
        and backbone.card["plugins"] == ["colour"]
    )


@pytest.mark.parametrize("what", ["missing", "cut", "another net"])
def test_a_backbone_that_cannot_be_loaded_is_named(tmp_path: Path, what: str) -> None:
    train(tmp_path, {"colour": Colour}, epochs=1)
    path = tmp_path / WEIGHTS
    if what == "missing":
        path.unlink()
    elif what == "cut":
        path.write_bytes(path.read_bytes()[:1000])
    else:
        (tmp_path / CARD).write_text(
            json.dumps({**json.loads((tmp_path / CARD).read_text()), "name": "c3d_light", "options": {}})
        )
    told = {
        "missing": "there is no such file; put a whole one",
        "cut": "is not a whole safetensors file .*; put a whole one",
        "another net": r"holds another architecture \(.* differences\); backbone.json says that it is a c3d_light",
    }[what]
    with pytest.raises(CheckpointError, match=f"{WEIGHTS}: {told}"):
        load_backbone(tmp_path)


# Starting from another run --------------------------------------------------------------------------------------------


class Named(Colour):
    """Colour's parameters under its own name, and one more head."""

    def __init__(self, config: Any, context: Any) -> None:
        super().__init__(config, context)
        self.more = torch.nn.Linear(2, 2)

    def forward(self, batch: Any) -> Terms:
        terms = super().forward(batch)
        return Terms({**terms.losses, "more": self.more(torch.ones(1, 2)).square().mean()})


def test_a_run_starts_from_another_by_name(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Backbone and heads of one name are taken over; the names that are missing and left over are listed."""
    before = train(tmp_path / "before", {"colour": Colour, "gone": Colour})
    run = open_small(tmp_path / "after", {"colour": Named}, init=str(tmp_path / "before"))
    assert_equal(weights(run.backbone), weights(before.backbone))
    assert torch.equal(run.objectives["colour"].head.weight, before.objectives["colour"].head.weight)
    told = capsys.readouterr().out
    assert "2 names start afresh (objectives.colour.more.bias, objectives.colour.more.weight)" in told
    assert "2 are not used (objectives.gone.head.bias, objectives.gone.head.weight)" in told
    assert (
        run.step == 0
        and not run.state()["optimizer"]
        .get("backbone.net.blocks.0.conv.conv_t.weight", {})
        .get("momentum_buffer", torch.zeros(1))
        .any()
    )


def test_a_resumed_run_no_longer_needs_what_it_started_from(tmp_path: Path) -> None:
    """The other run may be gone by then."""
    import shutil

    train(tmp_path / "before", {"colour": Colour}, epochs=1)
    init = str(tmp_path / "before")
    whole = train(tmp_path / "whole", {"colour": Colour, "stop": StopAt(-1)}, init=init)
    with pytest.raises(Stop):
        train(tmp_path / "run", {"colour": Colour, "stop": StopAt(4)}, init=init)
    shutil.rmtree(tmp_path / "before")
    run = train(tmp_path / "run", {"colour": Colour, "stop": StopAt(-1)}, init=init)
    assert_equal(weights(run.ensemble), weights(whole.ensemble))


def test_a_teacher_is_copied_from_the_backbone_that_was_loaded(tmp_path: Path) -> None:
    """From weights alone, and from a run without that plugin."""
    before = train(tmp_path / "before", {"colour": Colour})
    for init in (tmp_path / "before" / WEIGHTS, tmp_path / "before"):
        run = open_small(tmp_path / f"after-{init.name}", {"byol": None}, init=str(init))
        assert_equal(weights(run.backbone), weights(before.backbone))
        assert_equal(weights(run.objectives["byol"].teacher.backbone), weights(before.backbone))


def test_a_start_that_fits_nothing_is_refused(tmp_path: Path) -> None:
    """Weights of another net, a missing folder, a text file."""
    from safetensors.torch import save_file

    save_file({"layer": torch.zeros(2)}, tmp_path / "other.safetensors")
    (tmp_path / "text.pt").write_text("weights")
    for name, told in (
        ("other.safetensors", "holds nothing that fits this backbone"),
        ("nowhere", "nowhere"),
        ("text.pt", "text.pt"),
    ):
        with pytest.raises(CheckpointError, match=told):
            open_small(tmp_path / "run", {"colour": Colour}, init=str(tmp_path / name))
    assert not (tmp_path / "run").exists()


# Leaving --------------------------------------------------------------------------------------------------------------


class Sends:
    """An observer that sends its own process a signal after a step."""

    def __init__(self, number: int, step: int) -> None:
        self.number, self.step = number, step

    @hookimpl
    def vssl_step_end(self, run: Run) -> None:
        if run.step == self.step:
            os.kill(os.getpid(), self.number)


@pytest.mark.parametrize("step", [2, 3], ids=["inside an epoch", "with the last step of an epoch"])
@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_saves_and_leaves(tmp_path: Path, number: int, code: int, step: int) -> None:
    """With its exit code, after the step that it came in; the handlers are put back.

    The run goes on from there, bit for bit.
    """
    handlers = [signal.getsignal(each) for each in (signal.SIGINT, signal.SIGTERM)]
    expected, whole, rest = Watch(), {"colour": Colour}, Watch()
    unbroken = train(tmp_path / "whole", {**whole, "sends": expected})
    with pytest.raises(Interrupted, match="and saved; start the same command again") as caught:
        train(tmp_path / "run", {**whole, "sends": Sends(number, step)})
    assert caught.value.exit_code == code
    assert [signal.getsignal(each) for each in (signal.SIGINT, signal.SIGTERM)] == handlers
    run = train(tmp_path / "run", {**whole, "sends": rest})
    assert rest.losses == expected.losses[step:]
    assert_equal(weights(run.ensemble), weights(unbroken.ensemble))
    assert rest.heard.count("epoch_start 0") == 0 and rest.heard.count("epoch_end 1") == 1


@pytest.fixture
def heard() -> Iterator[None]:
    """Ctrl-C is heard, also where the tests were started in the background, which ignores it."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("heard")
def test_a_second_interrupt_does_not_wait(tmp_path: Path) -> None:
    """As ever."""

    class Twice(Sends):
        @hookimpl
        def vssl_step_end(self, run: Run) -> None:
            ours = signal.getsignal(signal.SIGINT)
            super().vssl_step_end(run)
            while run.step == self.step and signal.getsignal(signal.SIGINT) is ours:
                time.sleep(0.01)  # two signals that nobody has heard yet are one
            super().vssl_step_end(run)

    with pytest.raises(KeyboardInterrupt):
        train(tmp_path, {"colour": Colour, "twice": Twice(signal.SIGINT, 2)})


def test_workers_outlive_a_signal_that_everybody_gets(tmp_path: Path) -> None:
    """Job managers send it to every process: the step that is under way still gets its batch, and the run saves."""
    import multiprocessing

    class ToAll:
        @hookimpl
        def vssl_step_end(self, run: Run) -> None:
            if run.step == 2:
                for process in (*multiprocessing.active_children(), None):
                    os.kill(process.pid if process else os.getpid(), signal.SIGTERM)
                time.sleep(0.5)

    with pytest.raises(Interrupted):
        train(tmp_path, {"colour": Colour, "all": ToAll()}, data={"workers": 2}, epochs=3)
    assert checkpoint.load(tmp_path / checkpoint.NAME)["step"] == 2


def test_whatever_ends_a_run_its_workers_end_with_it(tmp_path: Path) -> None:
    import multiprocessing

    with pytest.raises(Stop):
        train(tmp_path, {"colour": Colour, "stop": StopAt(2)}, data={"workers": 2})
    assert not multiprocessing.active_children()
    until = time.monotonic() + 10
    while threading.active_count() > 2 and time.monotonic() < until:
        time.sleep(0.05)  # they have been told to end
    assert threading.active_count() <= 2


def test_a_run_that_goes_astray_ends_with_1_and_keeps_its_last_checkpoint(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """By the command: the plugin is named in one sentence, twice the same, since the checkpoint before it is whole."""
    from vssl_core.cli import main

    words = ["train", "--plugins", "rotation", "--data", f"folder:{videos_folder()}", "--run", str(tmp_path / "run")]
    words += [
        "clip.frames=4",
        "clip.size=16",
        "batch_size=4",
        "device.kind=cpu",
        "data.workers=0",
        "log.tensorboard=false",
    ]
    words += ["optim.lr=1e18", "optim.warmup_epochs=2", "optim.warmup_lr=1e-3", "checkpoint.every_steps=1"]
    for _ in range(2):
        assert main(words) == 1
        told = capsys.readouterr().err
        assert told.startswith("vssl train: step ") and told.count("\n") == 1
        assert "rotation/turns = " in told and "the last checkpoint is untouched" in told
        state = checkpoint.load(tmp_path / "run" / checkpoint.NAME)
        assert state["step"] >= 1
        assert all(bool(value.isfinite().all()) for value in state["ensemble"].values())


# Memory ---------------------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_memory_stays_flat(tmp_path: Path) -> None:
    """The second hundred epochs take no more than the first: neither graphs nor batches nor reports are kept."""

    class Memory:
        def __init__(self) -> None:
            self.megabytes: list[float] = []

        @hookimpl
        def vssl_epoch_end(self, run: Run) -> None:
            if run.epoch % 25 == 0:
                gc.collect()
                pages = int(Path("/proc/self/statm").read_text().split()[1])
                self.megabytes.append(pages * resource.getpagesize() / 2**20)

    memory = Memory()
    train(
        tmp_path,
        {"stor": None, "byol": None, "colour": Colour, "memory": memory},
        epochs=200,
        checkpoint={"every_steps": 50},
    )
    first, *_, last = memory.megabytes[1:]
    assert last - first < 10
