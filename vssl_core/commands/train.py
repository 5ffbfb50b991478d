"""`vssl train`: one run, in one process or as one of several ranks that torchrun started."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from contextlib import contextmanager
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Any

from vssl_core.config import RunConfig, build, load_config, to_tree
from vssl_core.errors import ConfigError, UserError, VsslError


def names(text: str | None) -> list[str] | None:
    """The names of a comma-separated list."""
    return None if text is None else [name.strip() for name in text.split(",") if name.strip()]


def configure(plugins: str | None, config: str | None, data: str | None, overrides: Sequence[str]) -> RunConfig:
    """The configuration of a command line."""
    from vssl_core.data.sources import place

    found = None if data is None else place(data)
    settled = load_config(config, plugins=names(plugins), data=found, overrides=overrides)
    if not settled.plugins:
        raise ConfigError(
            "plugins: none is chosen; name some with --plugins, for example --plugins stor,pace,byol (`vssl "
            "plugins` lists them)"
        )
    return settled


def train(
    plugins: str | None,
    config: str | None,
    data: str | None,
    run: str | None,
    overrides: Sequence[str],
    dry_run: bool = False,
    cluster: str | None = None,
) -> int:
    """Train to the end, or print what would be trained, or submit a job to a cluster that does."""
    from vssl_core.run.build import choose

    settled = configure(plugins, config, data, overrides)
    chosen = choose(settled)
    if dry_run:
        from vssl_core.commands.dry_run import show
        from vssl_core.run.launch import check

        if cluster:
            check(settled, cluster)
        return show(chosen, given=data is not None)
    folder = Path(run or Path("runs") / ",".join(settled.plugins))
    if cluster:
        return _submit(chosen.config, folder, cluster)
    with ranks(settled):
        from vssl_core.run.launch import refuse_second

        refuse_second(folder)
        train_in(folder, settled)
    return 0


def train_in(folder: Path, config: RunConfig) -> None:
    """Train to the end in this process, as the rank that it is."""
    from vssl_core.run.build import choose, open_data
    from vssl_core.run.folder import open_run
    from vssl_core.run.seeds import seed_process

    chosen = choose(config)
    seed_process(config.seed)
    splits = open_data(chosen.config, chosen.manager)
    _print_notes(splits.notes)
    open_run(chosen, splits, folder).train()


def train_tree(folder: str, tree: Mapping[str, Any]) -> None:
    """As `train_in`, from the plain values of a configuration: what the tasks of a job are called with."""
    train_in(Path(folder), build(RunConfig, tree, "launch"))


def _submit(config: RunConfig, folder: Path, cluster: str) -> int:
    """Submit, and say where to look."""
    from vssl_core.run.folder import check_folder
    from vssl_core.run.launch import launch
    from vssl_core.run.launch_records import FOLDER, log_of

    check_folder(config, folder)
    # What the job trains is settled now: a file that is edited while it waits changes nothing
    job = launch(config, folder, partial(train_tree, str(folder.resolve()), to_tree(config)), cluster)
    where = "Slurm" if cluster == "slurm" else "this machine, in the background"
    print(f"job {job.job} on {where}: {job.nodes} node{'s' * (job.nodes > 1)} with {job.tasks} "
          f"task{'s' * (job.tasks > 1)} each")  # fmt: skip
    for rank in range(job.nodes * job.tasks):
        print(f"  log of rank {rank}: {log_of(folder / FOLDER, job, rank)}")
    print(f"  how far it is:  vssl status {folder}")
    print(f"  to end it:      {'scancel' if cluster == 'slurm' else 'kill'} {job.job}")
    return 0


def _print_notes(notes: Sequence[str]) -> None:
    from vssl_core.distributed import rank

    for note in notes if rank() == 0 else ():
        print(f"data: {note}")


@contextmanager
def ranks(config: RunConfig):  # type: ignore[no-untyped-def]
    """Join the other ranks where torchrun started several."""
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        yield
        return
    from vssl_core.distributed import join_ranks, leave_ranks
    from vssl_core.run.build import choose_device

    device = choose_device(config)
    patience = timedelta(seconds=config.launch.rank_timeout_seconds)
    join_ranks("nccl" if device.type == "cuda" else "gloo", timeout=patience)
    try:
        yield
    except VsslError as error:
        if not _first_to_tell():
            raise SystemExit(getattr(error, "exit_code", 2 if isinstance(error, UserError) else 1)) from None
        raise
    finally:
        leave_ranks()


def _first_to_tell() -> bool:
    """Whether no other rank has met an error before this one: what all ranks meet is said once."""
    from torch.distributed.distributed_c10d import _get_default_store

    return _get_default_store().add("errors told", 1) == 1
