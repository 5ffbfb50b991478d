"""`vssl train`: one run, in one process or as one of several ranks that torchrun started."""

from __future__ import annotations

import os
from collections.abc import Sequence
from contextlib import contextmanager
from pathlib import Path

from vssl_core.config import RunConfig, load_config
from vssl_core.errors import ConfigError, UserError, VsslError


def place(text: str) -> tuple[str, str | None]:
    """(source, root) of a --data argument: SOURCE, SOURCE:ROOT, or a plain path whose kind is found out."""
    from vssl_core.data.sources import builtin_sources, guess_source

    source, colon, root = text.partition(":")
    if source in builtin_sources() or (colon and not os.path.exists(text)):
        return source, root or None
    if not os.path.exists(text) and not any(mark in text for mark in "/."):
        return text, None
    return guess_source(text), text


def names(text: str | None) -> list[str] | None:
    """The names of a comma-separated list."""
    return None if text is None else [name.strip() for name in text.split(",") if name.strip()]


def configure(plugins: str | None, config: str | None, data: str | None, overrides: Sequence[str]) -> RunConfig:
    """The configuration of a command line."""
    settled = load_config(config, plugins=names(plugins), data=place(data) if data else None, overrides=overrides)
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
) -> int:
    """Train to the end, or print what would be trained."""
    from vssl_core.run.build import choose

    settled = configure(plugins, config, data, overrides)
    chosen = choose(settled)
    if dry_run:
        from vssl_core.commands.dry_run import show

        return show(chosen, given=data is not None)
    folder = Path(run or Path("runs") / ",".join(settled.plugins))
    with ranks(settled):
        from vssl_core.run.build import open_data
        from vssl_core.run.folder import open_run
        from vssl_core.run.seeds import seed_process

        seed_process(settled.seed)
        splits = open_data(chosen.config, chosen.manager)
        _print_notes(splits.notes)
        open_run(chosen, splits, folder).train()
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
    import torch.distributed as dist

    from vssl_core.run.build import choose_device

    device = choose_device(config)
    dist.init_process_group("nccl" if device.type == "cuda" else "gloo")
    try:
        yield
    except VsslError as error:
        if not _first_to_tell():
            raise SystemExit(getattr(error, "exit_code", 2 if isinstance(error, UserError) else 1)) from None
        raise
    finally:
        dist.destroy_process_group()


def _first_to_tell() -> bool:
    """Whether no other rank has met an error before this one: what all ranks meet is said once."""
    from torch.distributed.distributed_c10d import _get_default_store

    return _get_default_store().add("errors told", 1) == 1
