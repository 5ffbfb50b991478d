"""`vssl plugins`: what is installed, and one plugin in full: paper, options with defaults and bounds, requests."""

from __future__ import annotations

from collections.abc import Iterable
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from pydantic import BaseModel
from pydantic.fields import FieldInfo
from rich.console import Console
from rich.table import Table

from vssl_core.errors import PluginError
from vssl_core.joining import describe
from vssl_core.plugins import Offer, Plugin, installed, load


def show(name: str | None) -> int:
    """Print all plugins, or one."""
    console = Console()
    if name is None:
        console.print(_all())
        return 0
    (plugin,) = load([name])[1].values()
    offer = installed()[name][0]
    _one(console, plugin, offer)
    return 0


def _all() -> Table:
    table = Table("name", "kind", "distribution", "paper", title="plugins")
    for name, offers in installed().items():
        distributions = ", ".join(f"{offer.distribution} {offer.version}" for offer in offers)
        try:
            plugin = load([name])[1][name]
        except PluginError as error:  # a broken stranger must not hide the others
            table.add_row(name, "cannot be used", distributions, str(error))
            continue
        table.add_row(name, plugin.kind, distributions, getattr(plugin.module, "PAPER", ""))
    return table


def _one(console: Console, plugin: Plugin, offer: Offer) -> None:
    console.print(
        f"[bold]{plugin.name}[/bold], {plugin.kind}, from {offer.distribution} {offer.version} ({offer.module})",
        highlight=False,
    )
    console.print((plugin.module.__doc__ or "").strip(), highlight=False, markup=False)
    config = plugin.options
    table = Table("option", "default", "values", "meaning", title="options")
    for option, field in config.model_fields.items():
        table.add_row(
            option, str(describe(field.get_default(call_default_factory=True))), values(field), field.description or ""
        )
    if config.model_fields:
        console.print(table)
    if plugin.objective is not None:
        console.print(_requests(plugin))


# What an option takes, in words ---------------------------------------------------------------------------------------

KINDS = {bool: "true or false", int: "whole number", float: "number", str: "text", Any: "anything"}
SIGNS = {"ge": "at least", "gt": "above", "le": "at most", "lt": "below"}


def values(field: FieldInfo) -> str:
    """What a field takes: 'one of fit, loop', 'list of whole numbers, at least 1 entry, or null'."""
    return _words(field.annotation, field.metadata)


def _words(kind: Any, limits: Iterable[Any] = ()) -> str:
    origin, parts = get_origin(kind), get_args(kind)
    if origin is Annotated:
        return _words(parts[0], [*parts[1:], *limits])
    if origin in (Union, UnionType):
        some = [part for part in parts if part is not NoneType]
        either = _with_limits(", or ".join(_words(part) for part in some), limits)
        return f"{either}, or null" if NoneType in parts else either
    return _with_limits(_kind(kind, origin, parts), limits)


def _kind(kind: Any, origin: Any, parts: tuple[Any, ...]) -> str:
    if origin is Literal:
        return f"one of {', '.join(map(str, parts))}"
    if origin in (tuple, list):
        return _list(parts, open_ended=origin is list or parts[-1] is Ellipsis)
    if origin is dict:
        return "keys and values" if parts[1] is Any else f"keys and values (each {_words(parts[1])})"
    if isinstance(kind, type) and issubclass(kind, BaseModel):
        return f"the keys {', '.join(kind.model_fields)}"
    return KINDS.get(kind) or getattr(kind, "__name__", str(kind)).lower()


def _list(parts: tuple[Any, ...], open_ended: bool) -> str:
    many = "list" if open_ended else f"list of {len(parts)}"
    if len(set(parts) - {Ellipsis}) > 1:
        return many
    if parts[0] in (int, float, str):
        return f"{many}{' of' * open_ended} {KINDS[parts[0]]}s"
    return f"{many} (each {_words(parts[0])})"


def _with_limits(words: str, limits: Iterable[Any]) -> str:
    return ", ".join(dict.fromkeys([words, *_limits(limits)]))


def _limits(limits: Iterable[Any]) -> Iterable[str]:
    for limit in limits:
        yield from _limits(limit.metadata if isinstance(limit, FieldInfo) else ())
        for key, sign in SIGNS.items():
            if (bound := getattr(limit, key, None)) is not None:
                yield f"{sign} {int(bound) if bound == int(bound) else bound}"
        for key, sign in {"min_length": "at least", "max_length": "at most"}.items():
            if (bound := getattr(limit, key, None)) is not None:
                yield f"{sign} {bound} entr{'y' if bound == 1 else 'ies'}"


# What a plugin asks for -----------------------------------------------------------------------------------------------


def _requests(plugin: Plugin) -> Table:
    """What the plugin asks for with its defaults, on the default clip and backbone."""
    from vssl_core.config import RunConfig
    from vssl_core.run.build import choose, context_of, make_backbone

    chosen = choose(RunConfig(plugins={plugin.name: {}}))
    context = context_of(chosen.config, plugin.name, make_backbone(chosen.config, chosen.manager), videos=1000)
    objective = plugin.objective(chosen.options[plugin.name], context)  # type: ignore[misc]
    table = Table("slot", "field", "value", title="requests (PLAIN: the run's; ANY: whatever a neighbour needs)")
    for slot, request in objective.requests().items():
        for field, value in describe(request).items():
            table.add_row(slot, field, _short(value))
            slot = ""
    return table


def _short(value: Any) -> str:
    return (
        ", ".join(f"{key} {_short(inner)}" for key, inner in value.items()) if isinstance(value, dict) else str(value)
    )
