"""Which checks a plugin must pass, by what it offers, in the order in which they are made."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from vssl_core.plugins import Plugin
from vssl_core.testing import evaluations, module, objectives, options
from vssl_core.testing.trial import Trial


@dataclass(frozen=True)
class Check:
    """One promise: `run` gives the sentence that says how it is broken, or nothing; it may raise instead."""

    name: str
    run: Callable[[], str | None]
    vital: bool = False  # where it fails, those after it cannot pass


def checks_of(plugin: Plugin, chosen: Mapping[str, Any], folder: Path) -> Iterator[Check]:
    """All checks of a plugin with the chosen options; runs are kept below `folder`."""
    yield Check("documentation", partial(module.documentation, plugin))
    yield Check("imports", partial(module.imports, plugin))
    yield Check("offers", partial(module.offers, plugin))
    yield from _of(options.CHECKS, plugin, chosen)
    if plugin.evaluation is not None:
        yield from _of(evaluations.CHECKS, evaluations.Examination(plugin, chosen))
    if plugin.evaluation is None or plugin.objective is not None or plugin.combiner is not None:
        trial = Trial(plugin, chosen, folder)
        yield from _of(objectives.TRAINING, trial)
        if plugin.objective is not None:
            yield from _of(objectives.CHECKS, trial)


def _of(checks: Mapping[str, Callable[..., str | None]], *arguments: Any) -> Iterator[Check]:
    for name, check in checks.items():
        yield Check(name, partial(check, *arguments), vital=name in ("defaults", "training", "results"))
