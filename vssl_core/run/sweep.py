"""The sweep file: a base experiment, what varies, and the papers' numbers beside it; read into checked cells."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import combinations, product
from pathlib import Path
from typing import Annotated, Any

from pydantic import BeforeValidator, Field, field_validator, model_validator

from vssl_core.config import Plugins, RunConfig, Section, build_options, settle
from vssl_core.data.named import DataSet, data_sets
from vssl_core.errors import ConfigError, UserError
from vssl_core.plain import build, read_yaml, to_tree
from vssl_core.plugins import load
from vssl_core.run.build import choose

# The file -------------------------------------------------------------------------------------------------------------


def _with_options(value: Any) -> Any:
    """Evaluations as {name: options}: from a list of names, of which each may carry options, or from just that."""
    if isinstance(value, list | tuple):
        named: dict[Any, Any] = {}
        for entry in value:
            for name, options in entry.items() if isinstance(entry, dict) else [(entry, None)]:
                if name in named:
                    raise ValueError(f"names '{name}' twice")
                named[name] = options
        value = named
    return {name: options or {} for name, options in value.items()} if isinstance(value, dict) else value


def _path_of_metric(key: str) -> str:
    if key.count("/") < 2 or not all(key.split("/")):
        raise ValueError("a number belongs to data/evaluation/metric, for example ucf101/retrieval/r@1")
    return key


Metric = Annotated[str, BeforeValidator(lambda key: _path_of_metric(str(key)))]


class CellSection(Section):
    """One row of the table: which plugins, what else differs from the base, and what a paper reports for it."""

    name: str = Field(min_length=1, description="what the row is called")
    plugins: Plugins = Field(
        description="a list of names, or a mapping of options; none: the net as the seed draws it, untrained"
    )
    overrides: dict[str, Any] = Field(default_factory=dict, description="further keys, as {optim.lr: 0.1}")
    paper: dict[Metric, float] = Field(default_factory=dict, description="the paper's numbers, in percent")


class SweepFile(Section):
    """What a sweep file may hold."""

    base: str | dict[str, Any] = Field(description="a configuration file, or a configuration")
    seeds: tuple[Annotated[int, Field(ge=0, lt=2**31)], ...] = Field((0,), min_length=1, description="one run each")
    evaluations: Annotated[dict[str, dict[str, Any]], BeforeValidator(_with_options)] = Field(
        description="what each run is judged by: names, or {name: options}"
    )
    evaluation_data: tuple[str, ...] = Field(
        (), description="on which data, as [NAME=]SOURCE[:ROOT]; none: on what the run was trained on"
    )
    columns: tuple[str, ...] | None = Field(
        None, description="metrics of the table, * for any; null: those without a prefix, and those of the paper"
    )
    cells: tuple[CellSection, ...] | None = Field(None, min_length=1, description="the rows, one by one")
    grid: dict[str, Annotated[list[Any], Field(min_length=1)]] | None = Field(
        None, min_length=1, description="{key: values}: every combination"
    )
    powerset: tuple[str, ...] | None = Field(None, min_length=1, description="plugins: every subset, the empty one too")

    @field_validator("seeds", "powerset")
    @classmethod
    def _different(cls, values: tuple[Any, ...] | None) -> tuple[Any, ...] | None:
        if values and len(set(values)) < len(values):
            raise ValueError("names one of them twice")
        return values

    @model_validator(mode="after")
    def _one_way(self) -> SweepFile:
        ways = [way for way in ("cells", "grid", "powerset") if getattr(self, way) is not None]
        if len(ways) != 1:
            raise ValueError(
                f"needs one of cells, grid and powerset, and has {' and '.join(ways) or 'none'}; "
                "list the cells where one is not enough"
            )
        return self


# What it comes to -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class Cell:
    """A row of the table, resolved: the configuration of its runs but for the seed."""

    name: str
    config: RunConfig  # with every option of every plugin, defaults included
    trains: bool  # False where no plugin has an objective: the net as the seed draws it
    given: RunConfig = field(repr=False)  # before the plugins' defaults were filled in
    paper: Mapping[str, float] = field(default_factory=dict)

    @property
    def slug(self) -> str:
        """The name as the name of a folder."""
        return re.sub(r"[^a-z0-9.=_]+", "-", self.name.lower()).strip("-.")[:100]

    def with_seed(self, seed: int) -> RunConfig:
        """The configuration of one run."""
        return self.config.model_copy(update={"seed": seed})


@dataclass(frozen=True, eq=False)
class Sweep:
    """A sweep file, read and checked."""

    path: str
    base: RunConfig
    seeds: tuple[int, ...]
    evaluations: Mapping[str, Mapping[str, Any]]
    cells: tuple[Cell, ...]
    columns: tuple[str, ...] | None = None
    evaluation_data: tuple[DataSet, ...] = ()  # none: each run is judged on its own

    @property
    def name(self) -> str:
        """The file's name."""
        return Path(self.path).stem

    def evaluation_overrides(self, names: Sequence[str]) -> list[str]:
        """The options of these evaluations, as `vssl evaluate` takes them."""
        return [
            f"plugins.{name}.{option}={_text(value)}"
            for name in names
            for option, value in self.evaluations[name].items()
        ]


def read_sweep(
    path: str,
    data: tuple[str, str | None] | None = None,
    overrides: Sequence[str] = (),
    evaluation_data: Sequence[str] = (),
) -> Sweep:
    """A sweep file with every cell resolved as `vssl train` would; the first mistake is one sentence.

    `data` and `overrides` change the base, or the options of an evaluation where they begin with `plugins.<its name>`;
    `evaluation_data` is added to the file's, or takes the place of what has the same name there.

    Raises:
        ConfigError, PluginError: a key, a value, a plugin or an option that cannot be, with the file and the cell.
        DataError: data to judge on that cannot be.
    """
    file = build(SweepFile, read_yaml(path), path)
    mine = [override for override in overrides if override.startswith(tuple(f"plugins.{n}." for n in file.evaluations))]
    theirs = [override for override in overrides if override not in mine]
    evaluations = _evaluations(path, file, mine)
    judged = data_sets(file.evaluation_data, f"{path}: evaluation_data")
    judged |= data_sets(evaluation_data, "--evaluation-data")
    tree, where = _base(path, file.base)
    _refuse_seed("the command line", [override.partition("=")[0] for override in theirs])
    base = settle(tree, where, data=data, overrides=theirs)
    sections = list(_sections(file, list(base.plugins)))
    _refuse_unheard(path, file, theirs, sections)
    cells = tuple(_cell(path, base, section) for section in sections)
    _refuse_twins(path, cells)
    return Sweep(path, base, file.seeds, evaluations, cells, file.columns, tuple(judged.values()))


def _base(path: str, base: str | Mapping[str, Any]) -> tuple[Mapping[str, Any], str]:
    """The base's keys and where they stand; a file is looked for from here and from each folder above the sweep's."""
    if not isinstance(base, str):
        return base, f"{path}: base"
    for place in (Path(), *Path(path).resolve().parents):
        if (place / base).is_file():
            return read_yaml(str(place / base)), str(place / base)
    raise ConfigError(
        f"{path}: base: there is no file {base}, neither here nor in a folder above the sweep file; correct the path"
    )


def _evaluations(path: str, file: SweepFile, overrides: Sequence[str]) -> dict[str, dict[str, Any]]:
    """The options of each evaluation with the command line's, checked."""
    where = f"{path}: evaluations"
    named = settle({"plugins": file.evaluations}, where, overrides=overrides).plugins
    try:
        plugins = load(list(named))[1]
        for name, options in named.items():
            kind: Any = plugins[name].evaluation
            if kind is None:
                raise ConfigError(f"'{name}' is no evaluation; `vssl plugins` lists those that are")
            build_options(kind.Config, options, name)
    except UserError as error:
        raise type(error)(f"{where}: {str(error).removeprefix('plugins: ')}") from error
    return named


def _sections(file: SweepFile, base: Sequence[str]) -> Iterator[CellSection]:
    """The cells as if they had been listed."""
    if file.cells is not None:
        yield from file.cells
    elif file.powerset is not None:
        order = [*base, *(name for name in file.powerset if name not in base)]
        always = [name for name in order if name not in file.powerset]
        for size in range(len(file.powerset) + 1):
            for some in combinations(file.powerset, size):
                chosen = [name for name in order if name in always or name in some]
                cell = {"name": " + ".join(chosen) or "random initialisation", "plugins": chosen}
                yield build(CellSection, cell, "powerset")
    else:
        for values in product(*(file.grid or {}).values()):
            point = dict(zip(file.grid or {}, values, strict=True))
            chosen = point.pop("plugins", base)
            name = ", ".join(f"{key}={_shown(value)}" for key, value in zip(file.grid or {}, values, strict=True))
            yield build(CellSection, {"name": name, "plugins": chosen, "overrides": point}, f"grid, {name}")


def _shown(value: Any) -> str:
    return value if isinstance(value, str) else _text(value).replace('"', "")


def _text(value: Any) -> str:
    """A value as an override has it; JSON is YAML."""
    return json.dumps(value, default=str, ensure_ascii=False)


def _cell(path: str, base: RunConfig, section: CellSection) -> Cell:
    where = f"{path}: cell '{section.name}'"
    _refuse_seed(where, section.overrides)
    if "plugins" in section.overrides:
        raise ConfigError(
            f"{where}: overrides: the set of plugins stands in the cell's own key `plugins`; move it there"
        )
    try:
        given = settle(to_tree(base), where, plugins=list(section.plugins), overrides=list(_overrides(section)))
        chosen = choose(given)
    except UserError as error:
        raise error if str(error).startswith(where) else type(error)(f"{where}: {error}") from error
    trains = any(plugin.objective for plugin in chosen.plugins.values())
    return Cell(section.name, chosen.config, trains, given, section.paper)


def _overrides(section: CellSection) -> Iterator[str]:
    if not section.plugins:
        yield "combine.name=null"  # there is nothing to combine
    for name, options in section.plugins.items():
        yield from (f"plugins.{name}.{option}={_text(value)}" for option, value in options.items())
    yield from (f"{key}={_text(value)}" for key, value in section.overrides.items())


def _refuse_seed(where: str, keys: Sequence[str] | Mapping[str, Any]) -> None:
    if "seed" in keys:
        raise ConfigError(f"{where}: seed is not for one cell; list `seeds` in the sweep file")


def _refuse_unheard(path: str, file: SweepFile, overrides: Sequence[str], sections: Sequence[CellSection]) -> None:
    """A change of the base that a cell would lay its own over."""
    chosen = ["plugins"] if file.cells is not None or "plugins" in (file.grid or {}) else []
    for override in overrides:
        key = override.partition("=")[0]
        for section in sections:
            options = [f"plugins.{name}.{option}" for name, given in section.plugins.items() for option in given]
            own = [other for other in (*options, *section.overrides) if _overlap(key, other)]
            if key in chosen:
                own.append(key)
            if own:
                raise ConfigError(f"'{override}': {path} sets {own[0]} in cell '{section.name}'; change it there")


def _overlap(key: str, other: str) -> bool:
    """Whether two keys are one, or one lies below the other."""
    return f"{key}.".startswith(f"{other}.") or f"{other}.".startswith(f"{key}.")


def _refuse_twins(path: str, cells: Sequence[Cell]) -> None:
    seen: dict[str, str] = {}
    for cell in cells:
        if not cell.slug:
            raise ConfigError(f"{path}: cell '{cell.name}': the name needs a letter or a digit; rename it")
        if cell.slug in seen:
            raise ConfigError(
                f"{path}: cells '{seen[cell.slug]}' and '{cell.name}' would share the folder {cell.slug}; rename one"
            )
        seen[cell.slug] = cell.name
