"""A run is a folder; starting it again resumes it. Here it is opened, and what lies in it is checked."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from vssl_core.config import RunConfig, build, differences, from_yaml, read_yaml, to_tree, to_yaml
from vssl_core.data.sources import Splits
from vssl_core.distributed import rank
from vssl_core.errors import CheckpointError, ConfigError
from vssl_core.run import checkpoint
from vssl_core.run.build import Chosen
from vssl_core.run.engine import Run
from vssl_core.run.files import is_leftover, write_atomically, write_json
from vssl_core.run.launch_records import FOLDER as LAUNCHED

CONFIG = "config.yaml"
EVALUATIONS = "evaluations"  # of the run's own data; of other data in a folder of its name below


def open_run(chosen: Chosen, splits: Splits, folder: Path) -> Run:
    """A new run in an empty folder, or the one that is there, restored.

    Raises:
        ConfigError: the folder holds a run with another configuration, or something else.
        CheckpointError: its checkpoint cannot be restored, or the folder cannot be written.
    """
    state = _saved(chosen.config, folder)
    run = Run(chosen, splits, folder, resumes=state is not None)
    if state is not None:
        run.restore(state, str(folder / checkpoint.NAME))
    if rank() == 0:
        _tidy(folder)
        write_atomically(folder / CONFIG, to_yaml(to_tree(chosen.config)).encode())
        write_json(folder / "plan.json", run.plan.describe())
    return run


def check_folder(config: RunConfig, folder: Path) -> None:
    """Raise what `open_run` would where the folder cannot be trained in; writes nothing."""
    _saved(config, folder)


def read_run(folder: Path, flag: str = "--run ") -> RunConfig:
    """The configuration of a run folder; `flag` is what stands before it on the command line."""
    path = folder / CONFIG
    if not path.exists():
        raise CheckpointError(f"{flag}{folder}: holds no run (there is no {CONFIG}); give the folder of a run")
    return build(RunConfig, read_yaml(str(path)), str(path))


def _saved(config: RunConfig, folder: Path) -> dict[str, Any] | None:
    """The checkpoint of a folder that may be trained in; None where there is none yet."""
    try:
        names = {path.name for path in folder.iterdir() if not is_leftover(path)} if folder.exists() else set()
        names -= {LAUNCHED}  # of a job that has not begun, or has failed before it did
    except OSError as error:
        raise ConfigError(
            f"--run {folder}: is not a folder that can be read ({error.strerror}); choose another"
        ) from error
    state = checkpoint.load(folder / checkpoint.NAME) if checkpoint.NAME in names else None
    if CONFIG in names:
        _refuse_another(folder, to_tree(read_run(folder)), config)
    elif state is not None:
        _refuse_another(folder, from_yaml(state["config"], str(folder / checkpoint.NAME)), config)
    elif names:
        raise ConfigError(f"--run {folder}: is not empty and holds no run (it has {min(names)}); choose another folder")
    return state


def _refuse_another(folder: Path, before: Mapping[str, Any], config: RunConfig) -> None:
    changed = differences(before, to_tree(config))
    if changed:
        raise ConfigError(
            f"--run {folder}: holds a run with another configuration ({'; '.join(changed)}); "
            "choose another --run, or give the same configuration to go on"
        )


def _tidy(folder: Path) -> None:
    """Remove what a process that was killed while saving has left."""
    for place in (folder, folder / "checkpoints"):
        for path in place.iterdir() if place.is_dir() else ():
            if is_leftover(path):
                path.unlink(missing_ok=True)
