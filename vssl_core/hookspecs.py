"""The hooks: how plugins are found and what is announced to them. Read this first.

A hook finds; a class works. The first seven ask plugins for something, the others announce moments. An implementation
may take any subset of the arguments. Entry-point group `vssl`; the entry point's name is the plugin's name everywhere.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import pluggy

if TYPE_CHECKING:
    from torch import Tensor

    from vssl_core.objective import Combiner, Evaluation, Objective, Observer, Shared
    from vssl_core.run.engine import Run
    from vssl_core.run.report import Report

PROJECT = "vssl"
hookspec = pluggy.HookspecMarker(PROJECT)
hookimpl = pluggy.HookimplMarker(PROJECT)


@hookspec
def vssl_objective() -> type[Objective]:
    """Offer the objective this plugin trains."""


@hookspec
def vssl_evaluation() -> type[Evaluation]:
    """Offer a downstream protocol."""


@hookspec
def vssl_backbones() -> Mapping[str, Callable[..., Any]]:
    """Offer backbones by name: callables that build a `vssl_core.Backbone`."""


@hookspec
def vssl_sources() -> Mapping[str, Callable[..., Any]]:
    """Offer data sources by name: callables (root, options) that give `vssl_core.Splits`."""


@hookspec
def vssl_combine() -> type[Combiner]:
    """Offer a way from named losses to the scalar that is differentiated."""


@hookspec
def vssl_observer() -> type[Observer]:
    """Offer an observer that has options: the engine builds one for each run, and it hears what is announced."""


@hookspec
def vssl_epoch_order(run: Run) -> Sequence[int] | None:
    """The order of videos this epoch: final, may be shorter than the list and repeat videos; None for no opinion.

    Asked on rank 0.
    """


@hookspec
def vssl_run_start(run: Run) -> None:
    """The run is built and restored, no batch is drawn yet. Must be repeatable: a resumed run announces it again."""


@hookspec
def vssl_epoch_start(run: Run) -> None:
    """An epoch of the logical run begins: the place to cluster. Not announced again after a resume inside the epoch."""


@hookspec
def vssl_forward_end(run: Run, losses: Mapping[str, Tensor], weights: Mapping[str, float], shared: Shared) -> None:
    """The losses of a microbatch are there, by objective and unweighted, and nothing is differentiated yet.

    The graph is whole: `torch.autograd.grad(loss, shared.features, retain_graph=True)` is possible here.
    """


@hookspec
def vssl_backward_end(run: Run) -> None:
    """Gradients are in place and unscaled, not yet clipped."""


@hookspec
def vssl_step_end(run: Run, report: Report) -> None:
    """The optimizer has stepped: the moment for teachers, queues, banks and log writers."""


@hookspec
def vssl_epoch_end(run: Run) -> None:
    """The epoch is over and saved: the moment for probes. A run that resumes from this very save announces it again."""


@hookspec
def vssl_run_end(run: Run, error: BaseException | None) -> None:
    """The run leaves, with or without an error: close files."""
