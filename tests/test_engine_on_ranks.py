"""The engine on two ranks: what one of them alone meets, all of them act on; and what is written is written once."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import small_runs
import torch
import torch.distributed as dist
from small_runs import (
    BATCH,
    STEPS,
    VIDEOS,
    Colour,
    Stop,
    StopAt,
    Watch,
    assert_equal,
    on_ranks,
    open_small,
    train,
    with_broken,
)
from torch import Tensor, nn

from vssl_core import Batch, Context, Objective, Request, Run, Terms, VsslError, hookimpl, rank
from vssl_core.run import checkpoint

RANKS = 2
BROKEN = 5  # a video that cannot be read


class WarmUp(Colour):
    """A second head comes into force in the second epoch, a third one never."""

    def __init__(self, config: Any, context: Context) -> None:
        super().__init__(config, context)
        self.late, self.never = nn.Linear(3, 1), nn.Linear(3, 1)

    def forward(self, batch: Batch) -> Terms:
        terms = super().forward(batch)
        if batch.epoch == 0:
            return terms
        late = self.late(self.head(batch["clip"][0].features.vector)).square().mean()
        return Terms({**terms.losses, "late": late}, terms.metrics)


class Keeps(Objective):
    """Keeps pixels and numbers of every video."""

    def __init__(self, config: Any, context: Context) -> None:
        super().__init__(config, context)
        self.head = nn.Linear(context.feature_dim, 1)

    def requests(self) -> Mapping[str, Request]:
        return {"clip": Request()}

    def forward(self, batch: Batch) -> Terms:
        (view,) = batch["clip"]
        drawn = batch.draw("number", 0.0, 1.0, (2,))
        kept = {"pixels": view.clip.flatten(1)[:, :7], "index": batch.index, "drawn": drawn}
        return Terms({"size": self.head(view.features.vector).square().mean()}, {"pixel": view.clip.mean()}, kept)


class Sees:
    """An observer that keeps gradients and batch norms' statistics of every step."""

    def __init__(self) -> None:
        self.gradients: list[dict[str, Tensor]] = []

    @hookimpl(trylast=True)
    def vssl_backward_end(self, run: Run) -> None:
        named = run.ensemble.named_parameters()
        self.gradients.append({name: value.grad.clone() for name, value in named if value.grad is not None})


class Order:
    """An observer that decides the order, on whatever rank it is asked, and counts."""

    def __init__(self) -> None:
        self.asked = 0

    @hookimpl
    def vssl_epoch_order(self) -> Any:
        self.asked += 1
        return range(VIDEOS)


# Jobs: each runs on both ranks; some also run alone, to compare with --------------------------------------------------


def warm_up(folder: Path, videos: Path) -> dict[str, Any]:
    """Four steps: the last one is the first of the second epoch."""
    seen = Sees()
    run = open_small(
        folder, {"warm": WarmUp, "sees": seen, "stop": StopAt(STEPS + 1, save=False)}, optim={"weight_decay": 0.1}
    )
    before = {name: value.clone() for name, value in run.objectives["warm"].state_dict().items()}
    until_stopped(run)
    after = run.objectives["warm"].state_dict()
    moved = {name for name in before if not torch.equal(before[name], after[name])}
    return {
        "gradients": [sorted(found) for found in seen.gradients],
        "moved": sorted(moved),
        "weights": run.ensemble.state_dict(),
    }


def accumulated(folder: Path, videos: Path, pieces: int = 2) -> dict[str, Any]:
    """One epoch of microbatches; ranks exchange gradients once a step."""
    seen, watch = Sees(), Watch()
    run = open_small(
        folder, {"keeps": Keeps, "sees": seen, "watch": watch}, epochs=1, optim={"accumulate": pieces, "lr": 0.01}
    )
    for module in run.backbone.modules():
        if isinstance(module, nn.BatchNorm3d):
            module.eval()
    run.train()
    reports = watch.reports
    return {
        "gradients": seen.gradients, "kept": [dict(report.kept["keeps"]) for report in reports],
        "index": [report.index for report in reports], "numbers": [shown(report.numbers) for report in reports],
    }  # fmt: skip


def statistics(folder: Path, videos: Path) -> dict[str, Any]:
    """One step with each rank's own batch statistics."""
    run = open_small(folder, {"colour": Colour, "stop": StopAt(1, save=False)})
    until_stopped(run)
    return {name: value for name, value in run.backbone.state_dict().items() if "running" in name}


def broken_video(folder: Path, videos: Path) -> dict[str, Any]:
    """One bad video, which one rank meets."""
    watch = Watch()
    train(
        folder,
        {"colour": Colour, "watch": watch},
        videos=small_runs.splits(videos / "one" / "videos"),
        data={"max_bad_fraction": 0.1},
    )
    return {"index": [report.index for report in watch.reports]}


def too_many_broken(folder: Path, videos: Path) -> dict[str, Any]:
    """More than allowed; no rank alone has met so many."""
    data = {"max_bad_fraction": 0.25}
    return raised(
        lambda: train(
            folder, {"colour": Colour}, videos=small_runs.splits(videos / "four" / "videos"), data=data, batch_size=12
        )
    )


def a_signal(folder: Path, videos: Path) -> dict[str, Any]:
    """Sent to the second rank alone."""

    class Sends:
        @hookimpl
        def vssl_step_end(self, run: Run) -> None:
            if run.step == 2 and rank() == 1:
                os.kill(os.getpid(), signal.SIGTERM)

    found = raised(lambda: train(folder, {"colour": Colour, "sends": Sends()}))
    return {
        **found,
        "saved": checkpoint.load(folder / checkpoint.NAME)["step"],
    }  # both see it: none leaves before it is there


def two_orders(folder: Path, videos: Path) -> dict[str, Any]:
    """An error that only the first rank can notice."""
    return raised(lambda: train(folder, {"colour": Colour, "one": Order(), "two": Order()}))


def one_order(folder: Path, videos: Path) -> dict[str, Any]:
    """Asked on the first rank, followed on both."""
    order, watch = Order(), Watch()
    train(folder, {"colour": Colour, "order": order, "watch": watch}, epochs=1)
    return {"asked": order.asked, "index": [report.index.tolist() for report in watch.reports]}


def extraction(folder: Path, videos: Path) -> dict[str, Any]:
    """Every video, the bad one listed, the same on both ranks."""
    run = open_small(folder, {"colour": Colour}, videos=small_runs.splits(videos / "one" / "videos"))
    found = run.extract(
        Request(), lambda batch: {"rows": batch["clips"][0].features.vector, "start": batch["clips"][0].windows.start}
    )
    return {**found, "training": [module.training for module in run.ensemble.modules()]}


def extraction_in_train_mode(folder: Path, videos: Path) -> dict[str, Any]:
    """With batch norm over all ranks, which would wait for a rank that has fewer batches."""
    run = open_small(folder, {"colour": Colour}, device={"kind": "cpu", "sync_batch_norm": True})
    return raised(lambda: run.extract(Request(), lambda batch: {"index": batch.index}, train=True))


def resumed(folder: Path, videos: Path) -> dict[str, Any]:
    """Broken off in the second epoch, and gone on with."""
    until_stopped(open_small(folder, {"colour": Colour, "stop": StopAt(4)}))
    dist.barrier()
    watch = Watch()
    run = open_small(folder, {"colour": Colour, "stop": watch})
    run.train()
    whole = train(folder.with_name("whole"), {"colour": Colour, "stop": StopAt(-1)})
    return {"heard": watch.heard, "resumed": run.ensemble.state_dict(), "whole": whole.ensemble.state_dict()}


JOBS: dict[str, Callable[[Path, Path], dict[str, Any]]] = {
    job.__name__: job
    for job in (
        warm_up, accumulated, statistics, broken_video, too_many_broken, a_signal, two_orders, one_order, extraction,
        extraction_in_train_mode, resumed,
    )
}  # fmt: skip


def until_stopped(run: Run) -> None:
    try:
        run.train()
    except Stop:
        pass


def raised(what: Callable[[], Any]) -> dict[str, Any]:
    try:
        what()
    except VsslError as error:
        return {"kind": type(error).__name__, "told": str(error)}
    return {"kind": None, "told": ""}


def shown(numbers: Mapping[str, float]) -> dict[str, float]:
    return {name: value for name, value in numbers.items() if name not in ("clips_per_second", "data_wait")}


# The two processes ----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def videos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folders of videos with one and with four that cannot be read."""
    place = tmp_path_factory.mktemp("videos")
    for name, broken in {"one": [BROKEN], "four": [1, 4, 6, 9]}.items():
        (place / name).mkdir()
        with_broken(place / name, broken)
    return place


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the two ranks' runs lie, by job."""
    return tmp_path_factory.mktemp("ranks")


@pytest.fixture(scope="module")
def ranks(folder: Path, videos: Path) -> dict[str, list[Any]]:
    """{job: what each rank gave}."""
    both = on_ranks(RANKS, all_jobs, folder=str(folder), videos=str(videos))
    return {name: [given[name] for given in both] for name in JOBS}


def all_jobs(folder: str, videos: str) -> dict[str, Any]:
    """What every job gives, as one of the ranks."""
    given = {}
    for name, job in JOBS.items():
        given[name] = job(Path(folder) / name / "run", Path(videos))
        dist.barrier()
    return given


# What must hold -------------------------------------------------------------------------------------------------------


def test_what_is_not_in_force_has_no_gradient_on_any_rank(ranks: dict[str, list[Any]]) -> None:
    """Neither moved nor decayed, without a search for unused parameters; ranks stay equal."""
    first, second = ranks["warm_up"]
    assert_equal(first, second)
    late, never = "objectives.warm.late.weight", "objectives.warm.never.weight"
    assert [late in named for named in first["gradients"]] == [False, False, False, True]
    assert not any(never in named for named in first["gradients"])
    assert first["moved"] == ["head.bias", "head.weight", "late.bias", "late.weight"]


def test_accumulation_on_ranks_equals_one_batch_on_one(
    ranks: dict[str, list[Any]], tmp_path: Path, videos: Path
) -> None:
    """Losses, gradients; kept rows and numbers of videos in global order, bit for bit."""
    first, second = ranks["accumulated"]
    whole = accumulated(tmp_path, videos, pieces=1)
    assert_equal(first["kept"], second["kept"])
    assert_equal(first["index"], second["index"])
    assert_equal(first["kept"], whole["kept"])
    assert_equal(first["index"], whole["index"])
    for step, numbers in enumerate(whole["numbers"]):
        assert first["numbers"][step] == pytest.approx(numbers, rel=1e-4)
        assert first["numbers"][step] == second["numbers"][step]
    for step, gradients in enumerate(whole["gradients"]):
        assert_equal(first["gradients"][step], second["gradients"][step])
        for name, value in gradients.items():
            scale = float(value.abs().max())
            torch.testing.assert_close(first["gradients"][step][name], value, rtol=1e-3, atol=1e-3 * scale + 1e-6)


def test_running_statistics_are_those_of_all_ranks(ranks: dict[str, list[Any]], tmp_path: Path, videos: Path) -> None:
    """Equal, and for the first layer's mean, which depends on nothing else, the one of the whole batch."""
    first, second = ranks["statistics"]
    assert_equal(first, second)
    whole = statistics(tmp_path, videos)
    name = next(name for name in whole if name.endswith("running_mean"))
    torch.testing.assert_close(first[name], whole[name], rtol=1e-4, atol=1e-6)


def test_a_video_that_one_rank_cannot_read_is_listed(ranks: dict[str, list[Any]], folder: Path) -> None:
    """Once, whichever rank it was."""
    first, second = ranks["broken_video"]
    assert_equal(first, second)
    found = [json.loads(line) for line in (folder / "broken_video" / "run" / "skipped.jsonl").read_text().splitlines()]
    assert [line["video"] for line in found] == [BROKEN]
    assert BROKEN not in torch.cat(first["index"]).tolist()


def test_broken_videos_of_all_ranks_count_together(ranks: dict[str, list[Any]], folder: Path) -> None:
    """Both ranks leave with the same sentence but for the place that one of them writes to."""
    first, second = ranks["too_many_broken"]
    assert first["kind"] == second["kind"] == "DataError"
    for told in (first["told"], second["told"]):
        assert "4 of 12 videos cannot be read" in told
    assert len((folder / "too_many_broken" / "run" / "skipped.jsonl").read_text().splitlines()) == 4


def test_a_signal_to_one_rank_makes_all_leave(ranks: dict[str, list[Any]]) -> None:
    """After the same step, and not before it is saved."""
    for found in ranks["a_signal"]:
        assert found["kind"] == "Interrupted" and "SIGTERM" in found["told"] and found["saved"] == 2


def test_an_error_of_the_order_is_raised_on_all_ranks(ranks: dict[str, list[Any]]) -> None:
    first, second = ranks["two_orders"]
    assert first == second
    assert first["kind"] == "PluginError" and "both decide the order" in first["told"]


def test_an_order_is_asked_for_once(ranks: dict[str, list[Any]]) -> None:
    """On the first rank, and each rank takes its slice of each batch."""
    first, second = ranks["one_order"]
    assert (first["asked"], second["asked"]) == (1, 0)
    assert first["index"] == second["index"] == [list(range(start, start + BATCH)) for start in range(0, VIDEOS, BATCH)]


def test_an_extraction_is_whole_and_equal_on_every_rank(
    ranks: dict[str, list[Any]], tmp_path: Path, videos: Path
) -> None:
    """And equal to that of one rank."""
    first, second = ranks["extraction"]
    assert_equal(first, second)
    whole = extraction(tmp_path, videos)
    assert first["unreadable"] == whole["unreadable"] == [BROKEN]
    assert torch.equal(first["index"], whole["index"]) and torch.equal(first["start"], whole["start"])
    torch.testing.assert_close(first["rows"], whole["rows"], rtol=1e-4, atol=1e-5)


def test_an_extraction_that_ranks_could_not_end_together_is_refused(ranks: dict[str, list[Any]]) -> None:
    for found in ranks["extraction_in_train_mode"]:
        assert found["kind"] == "PluginError" and "extract in eval mode" in found["told"]


def test_two_ranks_resume_bit_for_bit(ranks: dict[str, list[Any]]) -> None:
    """Both, with equal state."""
    first, second = ranks["resumed"]
    assert_equal(first, second)
    assert_equal(first["resumed"], first["whole"])
    assert first["heard"][:2] == ["run_start", "backward_end 4"]
