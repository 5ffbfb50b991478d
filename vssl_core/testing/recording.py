"""A short run of the real engine, and everything that is announced in it, written down."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.modules.dropout import _DropoutNd

from vssl_core.config import RunConfig
from vssl_core.distributed import rank
from vssl_core.hookspecs import hookimpl
from vssl_core.objective import Objective, Terms, is_scalar
from vssl_core.run import checkpoint
from vssl_core.run.build import choose
from vssl_core.run.engine import Run
from vssl_core.run.folder import open_run
from vssl_core.run.report import Report
from vssl_core.testing import videos
from vssl_core.testing.stand_in import with_stand_ins

COPY_AT = 2  # the step whose checkpoint is kept for a restart
STATISTICS = ("running_mean", "running_var", "num_batches_tracked")


@dataclass(frozen=True)
class Job:
    """A run to be recorded, as plain values that travel to another process."""

    config: Mapping[str, Any]
    videos: str  # the folder they lie in
    rows: tuple[int, ...]  # those that are trained on
    folder: str  # of the run
    stand_ins: int = 0
    exact: bool = False  # made so that only rounding may tell one rank from two: no dropout, no kinks


@dataclass
class Recording:
    """What a run gave, step by step; tensors and plain values only."""

    losses: list[dict[str, Tensor]] = field(default_factory=list)  # averaged over ranks
    totals: list[Tensor] = field(default_factory=list)
    gradients: list[dict[str, Tensor]] = field(default_factory=list)  # averaged over ranks
    kept: list[dict[str, Tensor]] = field(default_factory=list)  # {'objective/name': (global batch, ...)}
    state: dict[str, Tensor] = field(default_factory=dict)  # of backbone and objectives, at the end
    complaints: dict[str, list[str]] = field(default_factory=dict)  # {what was looked at: what is wrong}


def record(job: Job) -> Recording:
    """Train to the end with the real engine, and watch; what the run raises is raised."""
    chosen = with_stand_ins(choose(RunConfig.model_validate(job.config)), job.stand_ins)
    run = open_run(chosen, videos.splits(Path(job.videos), tuple(job.rows)), Path(job.folder))
    if run.manager.has_plugin("progress"):  # nobody watches
        run.manager.unregister(name="progress")
    if job.exact:
        smooth(run.ensemble)
    witness = Witness(run)
    run.manager.register(witness, "witness")
    run.train()
    witness.recording.state = {name: value.detach().clone() for name, value in run.ensemble.state_dict().items()}
    return witness.recording


def smooth(module: nn.Module) -> None:
    """Take out dropout, whose draws belong to batches, and the kinks, where rounding decides which way a gradient goes."""
    for parent in list(module.modules()):
        for name, child in list(parent.named_children()):
            if isinstance(child, nn.ReLU):
                setattr(parent, name, nn.SiLU())
            elif isinstance(child, _DropoutNd):
                child.p = 0.0


def plain(recording: Recording) -> dict[str, Any]:
    """The recording as tensors and plain values."""
    return asdict(recording)


class Witness:
    """An observer that writes down losses, gradients and kept rows, and looks on at every forward."""

    def __init__(self, run: Run) -> None:
        self.recording = Recording()
        for name, objective in run.objectives.items():
            Onlooker(name, objective, run.ensemble, self.recording.complaints)

    @hookimpl(trylast=True)
    def vssl_backward_end(self, run: Run) -> None:
        """Gradients as the optimizer will see them."""
        found = {
            name: parameter.grad.clone()
            for name, parameter in run.ensemble.named_parameters()
            if parameter.grad is not None
        }
        self.recording.gradients.append(found)

    @hookimpl(trylast=True)
    def vssl_step_end(self, run: Run, report: Report) -> None:
        """Losses and kept rows; before the next checkpoint is written, the last one is put aside for a restart."""
        self.recording.losses.append({name: loss.clone() for name, loss in report.losses.items()})
        self.recording.totals.append(report.loss.clone())
        self.recording.kept.append(
            {f"{name}/{key}": rows.clone() for name, kept in report.kept.items() for key, rows in kept.items()}
        )
        if report.step == COPY_AT + 1 and rank() == 0 and (run.folder / checkpoint.NAME).exists():
            aside = restart_folder(run.folder)
            aside.mkdir(exist_ok=True)
            for name in ("config.yaml", checkpoint.NAME):
                shutil.copyfile(run.folder / name, aside / name)


def restart_folder(folder: Path) -> Path:
    """Where a run's early checkpoint is put aside."""
    return folder.with_name(f"{folder.name}-restarted")


class Onlooker:
    """Looks at one objective's forward: what state it changes, and what it gives back."""

    def __init__(self, name: str, objective: Objective, ensemble: nn.Module, complaints: dict[str, list[str]]) -> None:
        self.name, self.ensemble, self.complaints = name, ensemble, complaints
        self.free = running_statistics(ensemble)
        self.before: dict[str, Tensor] = {}
        objective.register_forward_pre_hook(self._before)
        objective.register_forward_hook(self._after)

    def _before(self, objective: nn.Module, arguments: Any) -> None:
        self.before = self._state()

    def _after(self, objective: nn.Module, arguments: Any, terms: Any) -> None:
        after, own = self._state(), f"objectives.{self.name}."
        for key in sorted({**self.before, **after}):
            if key not in self.before or key not in after or not same(self.before[key], after[key]):
                self._complain("state", f"forward changes '{key.removeprefix(own)}'")
        if isinstance(terms, Terms):
            self._look_at(terms, len(arguments[0]))

    def _look_at(self, terms: Terms, rows: int) -> None:
        for kind in ("losses", "metrics", "keep"):
            for key, value in getattr(terms, kind).items():
                if not isinstance(key, str) or not key.replace("_", "").replace("@", "").isalnum():
                    self._complain("terms", f"{kind}: {key!r} is not a plain name of letters, digits and _")
                if kind == "metrics" and not (is_scalar(value) or isinstance(value, int | float)):
                    self._complain("terms", f"metric '{key}' is not one number")
                if kind == "keep" and not (isinstance(value, Tensor) and value.ndim and len(value) == rows):
                    shape = tuple(value.shape) if isinstance(value, Tensor) else type(value).__name__
                    self._complain(
                        "terms", f"keep '{key}' must have a row for each of the {rows} videos of the batch, got {shape}"
                    )

    def _state(self) -> dict[str, Tensor]:
        return {
            key: value.detach().clone()
            for key, value in self.ensemble.state_dict().items()
            if isinstance(value, Tensor) and key not in self.free
        }

    def _complain(self, about: str, what: str) -> None:
        known = self.complaints.setdefault(about, [])
        if what not in known:
            known.append(what)


def running_statistics(module: nn.Module) -> set[str]:
    """The names of the running statistics of all normalisations in a module: the only state that a forward may change."""
    return {
        f"{name}.{statistic}" if name else statistic
        for name, norm in module.named_modules()
        if isinstance(norm, _NormBase)
        for statistic in STATISTICS
    }


def same(left: Tensor, right: Tensor) -> bool:
    """Whether two tensors are equal bit for bit, not-a-number included."""
    return (
        left.shape == right.shape
        and left.dtype == right.dtype
        and torch.equal(left.isnan(), right.isnan())
        and torch.equal(left.nan_to_num(), right.nan_to_num())
    )
