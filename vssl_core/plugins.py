"""Find, load and check the plugins that were named; the others are never imported."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from importlib.metadata import EntryPoint, entry_points
from typing import TYPE_CHECKING, Any

import pluggy

from vssl_core import hookspecs
from vssl_core.errors import PluginError, did_you_mean

if TYPE_CHECKING:
    from vssl_core.objective import PluginConfig

GROUP = "vssl"
NAME = re.compile(r"[a-z][a-z0-9_-]*")
_KINDS = ("objective", "evaluation", "combine", "observer")  # what a hook vssl_<kind> offers as a class


@dataclass(frozen=True)
class Offer:
    """An installed plugin, not yet imported."""

    name: str
    module: str
    distribution: str
    version: str
    entry_point: EntryPoint


@dataclass(frozen=True)
class Plugin:
    """A loaded plugin and what it offers."""

    name: str
    distribution: str
    module: Any
    objective: type | None
    evaluation: type | None
    combiner: type | None
    observer: type | None = None

    @property
    def kind(self) -> str:
        offered = {"objective": self.objective, "evaluation": self.evaluation, "combiner": self.combiner}
        return next((kind for kind, what in offered.items() if what is not None), "observer")

    @property
    def options(self) -> type[PluginConfig]:
        """The class of the plugin's options."""
        from vssl_core.objective import PluginConfig

        offered: Any = self.objective or self.evaluation or self.combiner or self.observer
        return offered.Config if offered else PluginConfig


def installed() -> dict[str, list[Offer]]:
    """All offers by name, in the order of names; a name with several offers is offered by several distributions."""
    offers: dict[str, list[Offer]] = {}
    for point in sorted(entry_points(group=GROUP), key=lambda point: point.name):
        distribution = point.dist
        name, version = (distribution.name, distribution.version) if distribution else ("unknown distribution", "?")
        offer = Offer(point.name, point.value, name, version, point)
        known = offers.setdefault(point.name, [])
        if not any(
            (other.distribution, other.module) == (name, point.value) for other in known
        ):  # one distribution may stand on the path twice
            known.append(offer)
    return offers


def new_manager() -> pluggy.PluginManager:
    """A plugin manager that knows the hooks and no plugin."""
    manager = pluggy.PluginManager(hookspecs.PROJECT)
    manager.add_hookspecs(hookspecs)
    return manager


def load(
    names: Sequence[str], manager: pluggy.PluginManager | None = None
) -> tuple[pluggy.PluginManager, dict[str, Plugin]]:
    """Import and register the named plugins, in this order.

    Raises:
        PluginError: a name twice, unknown, offered by two distributions, not importable; a hook misspelt or with a
        wrong argument.
    """
    manager = manager or new_manager()
    _refuse_twice(names)
    offers = installed()
    chosen = {name: _choose(name, offers) for name in names}
    return manager, {name: _load(offer, manager) for name, offer in chosen.items()}


def _refuse_twice(names: Sequence[str]) -> None:
    for name in names:
        if names.count(name) > 1:
            raise PluginError(f"plugins: '{name}' is named {names.count(name)} times; name it once")


def _choose(name: str, offers: dict[str, list[Offer]]) -> Offer:
    if name not in offers:
        there = f", there are {', '.join(offers) or 'none'}"
        again = "(an editable install must be repeated after a new entry point)"
        advice = did_you_mean(name, offers) or f"{there}; install the distribution that offers it {again}"
        raise PluginError(f"plugins: no plugin named '{name}' is installed{advice}")
    if not NAME.fullmatch(name):
        raise PluginError(
            f"plugins: '{name}' of {offers[name][0].distribution} is not a usable name; its author must use "
            "small letters, digits, _ and -"
        )
    if len(offers[name]) > 1:
        who = " and ".join(f"{offer.distribution} ({offer.module})" for offer in offers[name])
        raise PluginError(f"plugins: '{name}' is offered by {who}; uninstall one of them")
    return offers[name][0]


def _load(offer: Offer, manager: pluggy.PluginManager) -> Plugin:
    where = f"plugin '{offer.name}' of {offer.distribution} {offer.version}"
    try:
        module = offer.entry_point.load()
    except Exception as error:
        raise PluginError(
            f"{where}: cannot be imported ({type(error).__name__}: {error}); ask its author or reinstall it"
        ) from error
    return register(manager, offer.name, module, where, offer.distribution)


def register(manager: pluggy.PluginManager, name: str, module: Any, where: str, distribution: str = "") -> Plugin:
    """Register a plugin's module (or object) and read what it offers; a misspelt hook is an error that names it."""
    listen(manager, module, name, where)
    offered = {kind: _ask(module, f"vssl_{kind}", where) for kind in _KINDS}
    _check_classes(offered, where)
    return Plugin(name, distribution, module, *offered.values())


def listen(manager: pluggy.PluginManager, listener: Any, name: str, where: str) -> None:
    """Let a module or object hear what is announced; `PluginError` for an unknown hook or a wrong argument."""
    check_hooks(manager, listener, where)
    try:
        manager.register(listener, name)
        manager.check_pending()  # a hook by another name, which pluggy would keep and never call
    except pluggy.PluginValidationError as error:
        raise PluginError(
            f"{where}: {_one_line(error)}; see vssl_core/hookspecs.py for the hooks and the arguments of each"
        ) from error


def check_hooks(manager: pluggy.PluginManager, module: Any, where: str) -> None:
    """Refuse names that look like hooks and are none: pluggy would ignore them in silence."""
    hooks = [name for name in vars(hookspecs) if name.startswith("vssl_")]
    for name in _public_names(module):
        if name.startswith("vssl_") and name not in hooks and manager.parse_hookimpl_opts(module, name) is not None:
            raise PluginError(f"{where}: there is no hook '{name}'{did_you_mean(name, hooks)}")
        if name in hooks and manager.parse_hookimpl_opts(module, name) is None:
            raise PluginError(f"{where}: '{name}' is not marked as a hook; write @hookimpl above it")


def _public_names(module: Any) -> Iterable[str]:
    return [
        name
        for name in dir(module if isinstance(module, type) or not hasattr(module, "forward") else type(module))
        if name.startswith("vssl_")
    ]


def _ask(module: Any, hook: str, where: str) -> type | None:
    implementation = getattr(module, hook, None)
    if implementation is None:
        return None
    try:
        return implementation()
    except Exception as error:
        raise PluginError(f"{where}: {hook} failed ({type(error).__name__}: {error})") from error


def _check_classes(offered: dict[str, Any], where: str) -> None:
    from vssl_core.objective import Combiner, Evaluation, Objective, Observer, PluginConfig

    kinds: dict[str, Any] = dict(zip(_KINDS, (Objective, Evaluation, Combiner, Observer), strict=True))
    for kind, offer in offered.items():
        if offer is None:
            continue
        if not (isinstance(offer, type) and issubclass(offer, kinds[kind])):
            raise PluginError(
                f"{where}: vssl_{kind} must return a subclass of vssl_core.{kinds[kind].__name__}, got {offer!r}"
            )
        config: Any = getattr(offer, "Config", None)
        if not (isinstance(config, type) and issubclass(config, PluginConfig)):
            raise PluginError(
                f"{where}: {offer.__name__}.Config must be a subclass of vssl_core.PluginConfig, got {config!r}"
            )


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split())
