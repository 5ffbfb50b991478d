"""A short run of the real engine, and everything that is announced in it, written down."""

from __future__ import annotations

import re
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.modules.dropout import _DropoutNd

from vssl_core.config import RunConfig
from vssl_core.distributed import rank
from vssl_core.errors import VsslError
from vssl_core.hookspecs import hookimpl
from vssl_core.objective import Objective, Terms
from vssl_core.run import checkpoint
from vssl_core.run.build import choose
from vssl_core.run.engine import Run
from vssl_core.run.folder import open_run
from vssl_core.run.report import Report
from vssl_core.run.terms import check_finite
from vssl_core.testing import videos
from vssl_core.testing.stand_in import with_stand_ins

COPY_AT = 2  # the step whose checkpoint is kept for a restart
PLAIN_NAME = re.compile(r"[A-Za-z0-9_@]+")
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
    gradients: list[dict[str, Tensor]] = field(default_factory=list)  # averaged over ranks
    kept: list[dict[str, Tensor]] = field(default_factory=list)  # {'objective/name': (global batch, ...)}
    start: dict[str, Tensor] = field(default_factory=dict)  # the state of backbone and objectives before the first step
    state: dict[str, Tensor] = field(default_factory=dict)  # ... and after the last
    complaints: dict[str, list[str]] = field(default_factory=dict)  # {what was looked at: what is wrong}


def record(job: Job) -> Recording:
    """Train to the end with the real engine, and watch; what the run raises is raised."""
    chosen = with_stand_ins(choose(RunConfig.model_validate(job.config)), job.stand_ins)
    run = open_run(chosen, videos.splits(Path(job.videos), tuple(job.rows)), Path(job.folder))
    if run.manager.has_plugin("vssl/progress"):  # nobody watches
        run.manager.unregister(name="vssl/progress")
    if job.exact:
        smooth(run.ensemble)
    witness = Witness(run)
    run.manager.register(witness, "witness")
    run.train()
    witness.recording.state = _copy(run.ensemble.state_dict())
    return witness.recording


def smooth(module: nn.Module) -> None:
    """Take out dropout, whose draws belong to batches, and kinks, where rounding decides on the gradient."""
    for parent in list(module.modules()):
        for name, child in list(parent.named_children()):
            if isinstance(child, nn.ReLU):
                setattr(parent, name, nn.SiLU())
            elif isinstance(child, _DropoutNd):
                child.p = 0.0


class Witness:
    """An observer that writes down losses, gradients and kept rows, and looks on at every forward."""

    def __init__(self, run: Run) -> None:
        self.recording = Recording()
        for name, objective in run.objectives.items():
            Onlooker(name, objective, run.ensemble, self.recording.complaints)

    @hookimpl
    def vssl_run_start(self, run: Run) -> None:
        """What the run begins with."""
        self.recording.start = _copy(run.ensemble.state_dict())

    @hookimpl(trylast=True)
    def vssl_backward_end(self, run: Run) -> None:
        """Gradients as the optimizer will see them; raises `VsslError` for one that is not finite."""
        parameters = run.ensemble.named_parameters()
        found = {name: parameter.grad.clone() for name, parameter in parameters if parameter.grad is not None}
        for name, gradient in found.items():
            if not bool(gradient.isfinite().all()):
                raise VsslError(f"the gradient of '{name}' is not finite in step {run.step + 1}")
        self.recording.gradients.append(found)

    @hookimpl(trylast=True)
    def vssl_step_end(self, run: Run, report: Report) -> None:
        """Losses and kept rows; before the next checkpoint is written, the last one is put aside for a restart."""
        check_finite({"the combined loss": report.loss}, report.step)
        self.recording.losses.append(_copy(report.losses))
        kept = {f"{name}/{key}": rows for name, kept in report.kept.items() for key, rows in kept.items()}
        self.recording.kept.append(_copy(kept))
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
        for kind in ("losses", "metrics", "keep") if isinstance(terms, Terms) else ():
            for key in getattr(terms, kind):
                if not isinstance(key, str) or not PLAIN_NAME.fullmatch(key):
                    self._complain("terms", f"{kind}: {key!r} is not a plain name of letters, digits and _")

    def _state(self) -> dict[str, Tensor]:
        return _copy({key: value for key, value in self.ensemble.state_dict().items() if key not in self.free})

    def _complain(self, about: str, what: str) -> None:
        known = self.complaints.setdefault(about, [])
        if what not in known:
            known.append(what)


def _copy(tensors: Mapping[str, Any]) -> dict[str, Tensor]:
    return {name: value.detach().clone() for name, value in tensors.items() if isinstance(value, Tensor)}


def running_statistics(module: nn.Module) -> set[str]:
    """The names of the running statistics in a module: the only state that a forward may change."""
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
