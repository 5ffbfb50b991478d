"""`vssl plugins`: what is installed, and one plugin in full: paper, options with defaults and bounds, requests."""

from __future__ import annotations

from typing import Any

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
    table = Table("option", "default", "bounds", "meaning", title="options")
    for option, field in config.model_fields.items():
        table.add_row(
            option, str(describe(field.get_default(call_default_factory=True))), _bounds(field), field.description or ""
        )
    if config.model_fields:
        console.print(table)
    if plugin.objective is not None:
        console.print(_requests(plugin))


def _bounds(field: FieldInfo) -> str:
    kind = getattr(field.annotation, "__name__", str(field.annotation)).replace("typing.", "")
    kind = (
        str(field.annotation).replace("typing.", "")
        if "[" in str(field.annotation) or "|" in str(field.annotation)
        else kind
    )
    signs = {"ge": ">=", "gt": ">", "le": "<=", "lt": "<", "min_length": "at least", "max_length": "at most"}
    limits = [
        f"{sign} {getattr(limit, key)}"
        for limit in field.metadata
        for key, sign in signs.items()
        if getattr(limit, key, None) is not None
    ]
    return " ".join([kind, *limits])


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
