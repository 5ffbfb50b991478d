"""What a run writes when it saves, in an order in which a kill between any two files does no harm."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from vssl_core.distributed import rank
from vssl_core.run import checkpoint
from vssl_core.run.files import copy_atomically
from vssl_core.run.terms import check_finite
from vssl_core.run.weights import save_backbone

if TYPE_CHECKING:
    from vssl_core.run.engine import Run


def save(run: Run, epoch_end: bool) -> None:
    """Write the checkpoint, at the end of an epoch after the backbone alone; each whole, or the old one stays.

    Raises:
        NonFiniteError: the last losses or a weight are not finite: a run that has gone astray is not saved.
        CheckpointError: a file cannot be written.
    """
    _check_finite(run)
    if rank() != 0:
        return
    path = run.folder / checkpoint.NAME
    kept = _kept_path(run) if epoch_end else None
    if epoch_end:
        save_backbone(run.folder, run.backbone, _card(run))
    checkpoint.save(kept or path, run.state())
    if kept:
        copy_atomically(kept, path)  # last: whoever resumes from it finds all else written


def _check_finite(run: Run) -> None:
    if run.report is not None:
        check_finite({**run.report.losses, "loss": run.report.loss}, run.step)
    names, weights = zip(*run.ensemble.named_parameters(), strict=True)
    check_finite(dict(zip(names, torch._foreach_norm(list(weights)), strict=True)), run.step)


def _kept_path(run: Run) -> Path | None:
    every = run.config.checkpoint.keep_every_epochs
    keeps = run.epoch == run.config.epochs or (every and run.epoch % every == 0)
    return run.folder / "checkpoints" / f"epoch_{run.epoch:04d}.pt" if keeps else None


def _card(run: Run) -> dict[str, Any]:
    """What `backbone.json` tells: the fingerprint, the normalisation, and how long it was trained."""
    return {
        **run.fingerprint,
        "options": dict(run.config.backbone.options),
        "normalisation": run.config.clip.normalisation,
        "epochs": run.epoch,
        "steps": run.step,
        "seed": run.config.seed,
        "plugins": list(run.config.plugins),
    }
