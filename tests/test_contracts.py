"""The contracts carry what is still to come: a miniature objective for each unusual need, trained, resumed, and on
two ranks.
"""

from __future__ import annotations

import atexit
import random
import shutil
import tempfile
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
import rich.style  # noqa: F401 - draws from the global generator when it is first imported
import torch
import torch.nn.functional as F
from small_runs import (
    BATCH,
    STEPS,
    VIDEOS,
    Stop,
    StopAt,
    Watch,
    assert_equal,
    on_ranks,
    open_small,
    splits,
)
from torch import Tensor, nn

from vssl_core import ANY, Batch, Context, Halves, Measure, Objective, Request, Run, Terms, hookimpl, mean
from vssl_core.distributed import broadcast
from vssl_core.run.seeds import seed_process

RANKS = 2
RANK_STEPS = 2  # what moved after the first step is used in the second
BROKEN_AT = 4  # in the second epoch, between its steps
SETTINGS: dict[str, Any] = {
    "device": {"kind": "cpu", "sync_batch_norm": True},
    # And small steps: batch norm of four tiny maps multiplies rounding errors by hundreds
    "clip": {"frames": 4, "size": 32},
    "optim": {"lr": 3e-4},
}


# The miniatures -------------------------------------------------------------------------------------------------------


def change(crop: np.ndarray, clip: np.ndarray, window: Any) -> np.ndarray:
    """(2,) how much neighbouring frames differ, as filmed, in the left and right half of the box."""
    difference = np.abs(np.diff(crop.astype(np.float32), axis=0)).mean(axis=(0, 1, 3)) / 255  # (W,)
    left, right = np.array_split(difference, 2)
    return np.array([left.mean(), right.mean()], np.float32)


class FromPixels(Objective):
    """Labels measured on raw pixels, at source resolution."""

    def __init__(self, config: Any, context: Context) -> None:
        super().__init__(config, context)
        self.head = nn.Linear(context.feature_dim, 2)

    def requests(self) -> Mapping[str, Request]:
        return {"clip": Request(measures=(Measure("change", change),))}

    def forward(self, batch: Batch) -> Terms:
        (view,) = batch["clip"]
        return Terms({"change": F.mse_loss(self.head(view.features.vector), view.measures["change"])})


class AgainstStill(Objective):
    """A clip derived from the one that was read, through the same backbone: one of its frames, standing still."""

    def __init__(self, config: Any, context: Context) -> None:
        super().__init__(config, context)
        self.head = nn.Linear(context.feature_dim, 1)

    def requests(self) -> Mapping[str, Request]:
        return {"clip": Request()}

    def forward(self, batch: Batch) -> Terms:
        (view,) = batch["clip"]
        frames = view.clip.shape[2]
        which = batch.draw("frame", 0, frames)  # (B,)
        frozen = view.clip[torch.arange(len(batch)), :, which].unsqueeze(2).expand(-1, -1, frames, -1, -1)
        logits = self.head(torch.cat([view.features.vector, batch.encode(frozen).vector])).squeeze(1)  # (2B,)
        labels = torch.arange(2).repeat_interleave(len(batch)).float()
        return Terms({"moves": F.binary_cross_entropy_with_logits(logits, labels)})


class Bank(Objective):
    """A row for each video of the list, told from all others; rows move after each step, by the videos' numbers."""

    def __init__(self, config: Any, context: Context) -> None:
        super().__init__(config, context)
        self.register_buffer("rows", F.normalize(torch.randn(context.videos, context.feature_dim), dim=1))
        self.register_buffer("seen", torch.zeros(context.videos, dtype=torch.long))
        self.register_buffer("drawn", torch.zeros(3, dtype=torch.float64))

    def requests(self) -> Mapping[str, Request]:
        return {"clip": Request(appearance=ANY)}

    def forward(self, batch: Batch) -> Terms:
        (view,) = batch["clip"]
        rows = F.normalize(view.features.vector, dim=1)
        return Terms({"instance": F.cross_entropy(rows @ self.rows.T / 0.5, batch.index)}, keep={"rows": rows})

    @hookimpl
    def vssl_step_end(self, report: Any) -> None:
        kept = report.kept[self.context.name]["rows"]
        for video, row in zip(report.index.tolist(), kept, strict=True):  # a video may come twice in a step
            self.rows[video] = F.normalize(0.5 * self.rows[video] + 0.5 * row, dim=0)
            self.seen[video] += 1
        self.drawn.copy_(torch.tensor([torch.rand(()), np.random.random(), random.random()]))  # all are resumed


class Clusters(Objective):
    """Classes that are found at the start of each epoch, from the features of all videos."""

    def __init__(self, config: Any, context: Context) -> None:
        super().__init__(config, context)
        self.head = nn.Linear(context.feature_dim, 3)
        self.register_buffer("labels", torch.zeros(context.videos, dtype=torch.long))
        self.register_buffer("clusterings", torch.zeros((), dtype=torch.long))

    def requests(self) -> Mapping[str, Request]:
        return {"clip": Request()}

    @hookimpl
    def vssl_epoch_start(self, run: Run) -> None:
        found = run.extract(Request(), lambda batch: {"rows": batch["clips"][0].features.vector})
        assert found["index"].tolist() == list(range(VIDEOS)) and found["unreadable"] == []
        self.labels[found["index"]] = broadcast(nearest_of_three(found["rows"]))
        self.clusterings += 1

    def forward(self, batch: Batch) -> Terms:
        (view,) = batch["clip"]
        return Terms({"cluster": F.cross_entropy(self.head(view.features.vector), self.labels[batch.index])})


def nearest_of_three(rows: Tensor) -> Tensor:
    """(N,) which of three means each row is nearest to, after five of Lloyd's steps."""
    centres = rows[torch.randperm(len(rows))[:3]]  # (3, D)
    for _ in range(5):
        labels = torch.cdist(rows, centres).argmin(dim=1)
        centres = torch.stack(
            [rows[labels == label].mean(dim=0) if (labels == label).any() else centres[label] for label in range(3)]
        )
    return labels


class Levels(Objective):
    """A loss on each of several stages."""

    STAGES = ("stage2", "stage4", "stage5")

    def __init__(self, config: Any, context: Context) -> None:
        super().__init__(config, context)
        self.heads = nn.ModuleDict({stage: nn.Linear(context.stage(stage)[0], 1) for stage in self.STAGES})

    def requests(self) -> Mapping[str, Request]:
        return {"clip": Request()}

    def forward(self, batch: Batch) -> Terms:
        (view,) = batch["clip"]
        mirrored = view.windows.flip.float()
        pooled = {stage: view.features.stages[stage].mean(dim=(2, 3, 4)) for stage in self.STAGES}
        return Terms(
            {
                stage: F.binary_cross_entropy_with_logits(self.heads[stage](pooled[stage]).squeeze(1), mirrored)
                for stage in self.STAGES
            }
        )


class Curriculum(Bank):
    """Decides which videos an epoch shows, and how often: few at first, one of them three times."""

    ORDERS = ([0, 0, 1, 2, 3, 4, 0, 5], [*range(VIDEOS), 0, 6, 6, 7])

    @hookimpl
    def vssl_epoch_order(self, run: Run) -> list[int]:
        return self.ORDERS[run.epoch]


class Three(Objective):
    """Two halves of one span and the whole of it: which half is the earlier one, seen beside the overview."""

    OVERVIEW: Literal["sparse", "dense"] = "sparse"

    def __init__(self, config: Any, context: Context) -> None:
        super().__init__(config, context)
        self.head = nn.Linear(2 * context.feature_dim, 1)

    def requests(self) -> Mapping[str, Request]:
        return {"span": Request(clips=3, placement=Halves(self.OVERVIEW))}

    def forward(self, batch: Batch) -> Terms:
        first, second, overview = batch["span"]
        halves = torch.cat([first.windows.indices, second.windows.indices], dim=1)  # (B, 2T)
        assert torch.equal(overview.windows.indices, halves[:, :: 2 if self.OVERVIEW == "sparse" else 1])
        assert overview.clip.shape[2] == overview.windows.indices.shape[1]
        pairs = [torch.cat([half.features.vector, overview.features.vector], dim=1) for half in (first, second)]
        logits = self.head(torch.cat(pairs)).squeeze(1)  # (2B,)
        return Terms(
            {"half": F.binary_cross_entropy_with_logits(logits, torch.arange(2).repeat_interleave(len(batch)).float())}
        )


class Longer(Three):
    """The same with clips of two lengths in one group: the overview has all frames of both halves."""

    OVERVIEW = "dense"


class Two(Objective):
    """A neighbour that reads two clips, wherever they lie."""

    def __init__(self, config: Any, context: Context) -> None:
        super().__init__(config, context)
        self.head = nn.Linear(context.feature_dim, context.feature_dim)

    def requests(self) -> Mapping[str, Request]:
        return {"pair": Request(clips=2, placement=ANY, boxes=ANY, strides=ANY)}

    def forward(self, batch: Batch) -> Terms:
        left, right = batch["pair"]
        later = right.windows.start > left.windows.start
        distance = (self.head(left.features.vector) - right.features.vector).square().mean(dim=1)
        return Terms({"distance": mean(distance, later)}, {"later": later.float().mean()})


CASES: dict[str, dict[str, type[Objective]]] = {
    "measure": {"pixels": FromPixels},
    "derived": {"against-still": AgainstStill},
    "bank": {"bank": Bank},
    "clusters": {"clusters": Clusters},
    "stages": {"levels": Levels},
    "order": {"curriculum": Curriculum},
    "three-and-two": {"three": Three, "two": Two},
    "two-lengths": {"longer": Longer, "two": Two},
}
every_case = pytest.mark.parametrize("case", CASES)


# One rank -------------------------------------------------------------------------------------------------------------


class Recorder(Watch):
    """Also keeps the gradients of every step."""

    def __init__(self) -> None:
        super().__init__()
        self.gradients: list[dict[str, Tensor]] = []

    @hookimpl(trylast=True)
    def vssl_backward_end(self, run: Run) -> None:
        named = run.ensemble.named_parameters()
        self.gradients.append({name: parameter.grad.clone() for name, parameter in named if parameter.grad is not None})


def opened(case: str, folder: Path, **observers: Any) -> Run:
    """A run of the case, new or resumed.

    Its net is smooth, since a ReLU turns a rounding error into a jump of the gradient.
    """
    run = open_small(folder, {**CASES[case], **observers}, **SETTINGS)
    for parent in list(run.backbone.modules()):
        for name, child in parent.named_children():
            if isinstance(child, nn.ReLU):
                setattr(parent, name, nn.SiLU())
    return run


@cache
def unbroken(case: str) -> tuple[Run, Recorder, dict[str, Any]]:
    """The case, trained to the end in one go: the run, what was heard, and its state, generators included."""
    folder = Path(tempfile.mkdtemp(prefix="vssl-contract-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    seed_process(0)
    recorder = Recorder()
    run = opened(case, folder, recorder=recorder, stop=StopAt(-1))
    run.train()
    return run, recorder, run.state()


@every_case
def test_it_trains(case: str) -> None:
    """Every loss is there in every step, and every parameter that it should move has moved."""
    run, recorder, _ = unbroken(case)
    assert len(recorder.losses) == run.step == 2 * STEPS
    assert all(set(losses) == set(recorder.losses[0]) for losses in recorder.losses)
    trained = {name for name, parameter in run.ensemble.named_parameters() if parameter.requires_grad}
    assert set(recorder.gradients[-1]) == trained
    assert all(gradient.isfinite().all() for gradient in recorder.gradients[-1].values())


@every_case
def test_it_resumes_in_the_middle_of_an_epoch(case: str, tmp_path: Path) -> None:
    """State and further losses are those of the unbroken run, bit for bit."""
    _, expected, whole = unbroken(case)
    seed_process(0)
    with pytest.raises(Stop):
        opened(case, tmp_path, recorder=Recorder(), stop=StopAt(BROKEN_AT)).train()
    seed_process(99)  # another process
    rest = Recorder()
    run = opened(case, tmp_path, recorder=rest, stop=StopAt(-1))
    assert run.step == BROKEN_AT and run.position > 0
    run.train()
    assert rest.losses == expected.losses[BROKEN_AT:]
    assert_equal(run.state(), whole)


class Peek:
    """An observer that keeps the batches that one objective saw."""

    def __init__(self, name: str) -> None:
        self.name, self.batches = name, []

    @hookimpl
    def vssl_run_start(self, run: Run) -> None:
        run.objectives[self.name].register_forward_pre_hook(lambda objective, inputs: self.batches.append(inputs[0]))


def test_a_measure_sees_the_pixels_as_filmed(tmp_path: Path) -> None:
    """What came with the batch is what a plain decoder and slicing give."""
    import av

    peek = Peek("pixels")
    opened("measure", tmp_path, peek=peek).train()
    (view,) = peek.batches[0]["clip"]
    for row in range(BATCH):
        with av.open(splits().train.path(int(view.windows.video[row]))) as container:
            whole = [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]
        top, left, height, width = view.windows.box[row].tolist()
        crop = np.stack([whole[index][top : top + height, left : left + width] for index in view.windows.indices[row]])
        expected = change(crop[:, :, ::-1] if view.windows.flip[row] else crop, crop, None)
        np.testing.assert_allclose(view.measures["change"][row].numpy(), expected, atol=0.02)
        assert expected.min() > 0.03  # the tolerance is for colour conversion at the edges of the box


def test_a_derived_clip_leaves_running_statistics_alone(tmp_path: Path) -> None:
    """After one step they are those of a twin that derives nothing."""

    class Twin(AgainstStill):
        def forward(self, batch: Batch) -> Terms:
            (view,) = batch["clip"]
            return Terms({"moves": self.head(view.features.vector).square().mean()})

    statistics = []
    for number, objective in enumerate((AgainstStill, Twin)):
        run = open_small(tmp_path / str(number), {"against-still": objective, "stop": StopAt(1, save=False)})
        with pytest.raises(Stop):
            run.train()
        statistics.append({name: value for name, value in run.backbone.state_dict().items() if "running" in name})
    assert_equal(*statistics)


def test_a_bank_moves_by_the_numbers_of_the_videos() -> None:
    """Each row moved once in each epoch, since each video came once; and rows are still unit vectors."""
    bank = unbroken("bank")[0].objectives["bank"]
    assert bank.seen.tolist() == [2] * VIDEOS
    torch.testing.assert_close(bank.rows.norm(dim=1), torch.ones(VIDEOS))


def test_clusters_are_found_once_in_each_epoch() -> None:
    """From all videos, and they are not all one."""
    clusters = unbroken("clusters")[0].objectives["clusters"]
    assert int(clusters.clusterings) == 2
    assert len(clusters.labels.unique()) == 3


def test_an_own_order_is_followed(tmp_path: Path) -> None:
    """Its length decides the steps, and a video that comes again is cut elsewhere."""
    run, recorder, _ = unbroken("order")
    orders = [report.index.tolist() for report in recorder.reports]
    assert sum(orders[:2], []) == Curriculum.ORDERS[0] and sum(orders[2:], []) == Curriculum.ORDERS[1]
    peek = Peek("curriculum")
    opened("order", tmp_path, peek=peek).train()
    windows = [batch["clip"][0].windows for batch in peek.batches[:2]]
    zero = [window.box[row].tolist() for window in windows for row in range(BATCH) if int(window.video[row]) == 0]
    assert [int(visit) for window in windows for visit in window.visit[window.video == 0]] == [0, 1, 2]
    assert len({tuple(box) for box in zero}) == 3


def test_a_neighbour_reads_two_of_three_clips() -> None:
    """They share one group: three forwards in a step."""
    run, *_ = unbroken("three-and-two")
    assert [dict(group.members) for group in run.plan.groups] == [{"three/span": 3, "two/pair": 2}]
    assert run.ensemble.forwards == 3 * run.step


# Two ranks ------------------------------------------------------------------------------------------------------------


@every_case
def test_two_ranks_equal_one(case: str, two_ranks: list[dict[str, Any]]) -> None:
    """Losses, averaged gradients, buffers and kept rows of the first steps, within 1e-4.

    And both ranks hold the same.
    """
    _, recorder, _ = unbroken(case)
    ranks = [recorded[case] for recorded in two_ranks]
    assert_equal(ranks[0]["buffers"], ranks[1]["buffers"])
    assert_equal(ranks[0]["kept"], ranks[1]["kept"])
    for step, losses in enumerate(ranks[0]["losses"]):
        close(losses, recorder.losses[step], f"losses of step {step}")
        close(ranks[0]["gradients"][step], recorder.gradients[step], f"gradients of step {step}")
        assert ranks[0]["index"][step].tolist() == recorder.reports[step].index.tolist()
        for name, rows in recorder.reports[step].kept.items():
            close(ranks[0]["kept"][step][name], rows, f"kept rows of step {step}")


def close(left: Mapping[str, Any], right: Mapping[str, Any], where: str) -> None:
    """Equal within a share of 1e-4 of the largest entry of each tensor."""
    assert set(left) == set(right), where
    for name, value in right.items():
        wanted, got = torch.as_tensor(value), torch.as_tensor(left[name])
        scale = float(wanted.abs().max())
        torch.testing.assert_close(
            got, wanted, rtol=1e-4, atol=1e-4 * scale + 1e-7, msg=lambda text, name=name: f"{where}, {name}: {text}"
        )


@pytest.fixture(scope="module")
def two_ranks(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """{case: what a rank recorded} of all cases, for each of the ranks."""
    return on_ranks(RANKS, all_cases, folder=str(tmp_path_factory.mktemp("ranks")))


def all_cases(folder: str) -> dict[str, Any]:
    """Train every case as one of the ranks, for the first steps."""
    recorded = {}
    for case in CASES:
        seed_process(0)
        recorder = Recorder()
        run = opened(case, Path(folder) / case, recorder=recorder, stop=StopAt(RANK_STEPS, save=False))
        try:
            run.train()
        except Stop:
            pass
        reports = recorder.reports
        recorded[case] = {
            "losses": recorder.losses,
            "gradients": recorder.gradients,
            "buffers": dict(run.ensemble.named_buffers()),
            "index": [report.index for report in reports],
            "kept": [dict(report.kept) for report in reports],
        }
    return recorded
