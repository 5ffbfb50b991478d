"""What must hold of a plugin's options: every one described and bounded, nothing unknown let through."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

from pydantic import BaseModel, ValidationError
from pydantic.errors import PydanticInvalidForJsonSchema

from vssl_core.config import build_options, to_tree
from vssl_core.errors import ConfigError
from vssl_core.objective import PluginConfig
from vssl_core.plugins import Plugin

FAR = 10**12  # beyond any number that an option can sensibly be


def config_of(plugin: Plugin) -> type[PluginConfig]:
    """The class of the plugin's options, as the engine chooses it."""
    return plugin.options


def defaults(plugin: Plugin, chosen: Mapping[str, Any]) -> str | None:
    """The plugin works with what is chosen, and its options survive the run's config.yaml."""
    config = build_options(config_of(plugin), chosen, plugin.name)  # a ConfigError says what is wrong
    written = to_tree(config)
    try:
        read = build_options(config_of(plugin), written, plugin.name)
    except ConfigError as error:
        return (
            f"its own options are refused when they are read back from config.yaml ({error}); "
            "make its defaults and its validators agree"
        )
    if to_tree(read) != written:
        changed = next(key for key in written if to_tree(read).get(key) != written[key])
        return (
            f"option '{changed}' is {written[changed]!r} in config.yaml and {to_tree(read).get(changed)!r} when read "
            "back; a validator must leave its own result alone"
        )
    return None


def unknown(plugin: Plugin, chosen: Mapping[str, Any]) -> str | None:
    """An option that is misspelt must not be ignored, and options do not change during a run."""
    config = config_of(plugin)
    for model in (config, *_nested(config)):
        if model.model_config.get("extra") != "forbid":
            return f"{model.__qualname__} lets unknown keys pass; keep extra='forbid' of vssl_core.PluginConfig"
        if not model.model_config.get("frozen"):
            return (
                f"{model.__qualname__} can be changed after it was checked; keep frozen=True of vssl_core.PluginConfig"
            )
    try:
        build_options(config, {**chosen, "no_such_option": 1}, plugin.name)
    except ConfigError:
        return None
    return (
        f"{config.__qualname__} accepts the unknown key 'no_such_option'; "
        "let extra='forbid' of vssl_core.PluginConfig do its work"
    )


def described(plugin: Plugin, chosen: Mapping[str, Any]) -> str | None:
    """`vssl plugins NAME` prints what each option means."""
    config = config_of(plugin)
    bare = [
        name
        for model in (config, *_nested(config))
        for name, field in model.model_fields.items()
        if not (field.description or "").strip()
    ]
    if bare:
        return f"{_named(bare)} no description; write Field(default, description=...)"
    return None


def bounds(plugin: Plugin, chosen: Mapping[str, Any]) -> str | None:
    """A number has bounds, and what lies beyond them is refused."""
    config, loose, deaf = config_of(plugin), [], []
    for name, schema in _numbers(config):
        limits = list(_beyond(schema))
        if any(not _refuses(config, chosen, name, value) for value in limits):
            deaf.append(name)
        elif not limits and not _refuses(config, chosen, name, FAR) and not _refuses(config, chosen, name, -FAR):
            loose.append(name)
    if deaf:
        return (
            f"option {', '.join(map(repr, deaf))} takes values outside its own bounds; "
            "a validator must not mend what the user wrote, but refuse it"
        )
    if loose:
        return f"{_named(loose)} no bound; write Field(default, ge=..., le=..., description=...)"
    return None


def _named(names: list[str]) -> str:
    return (
        f"option {', '.join(map(repr, names))} has"
        if len(names) == 1
        else f"options {', '.join(map(repr, names))} have"
    )


def _nested(config: type[BaseModel]) -> Iterator[type[BaseModel]]:
    """Models inside the options."""
    waiting, seen = [field.annotation for field in config.model_fields.values()], {config}
    while waiting:
        kind = waiting.pop()
        waiting.extend(getattr(kind, "__args__", ()))
        if isinstance(kind, type) and issubclass(kind, BaseModel) and kind not in seen:
            seen.add(kind)
            waiting.extend(field.annotation for field in kind.model_fields.values())
            yield kind


def _numbers(config: type[BaseModel]) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """The options that are one number, or may be, each with its JSON schema."""
    try:
        properties = config.model_json_schema(by_alias=False).get("properties", {})
    except PydanticInvalidForJsonSchema:  # a kind of value that JSON has no word for: its own validator is its bound
        return
    for name, schema in properties.items():
        for choice in schema.get("anyOf", [schema]):
            if choice.get("type") in ("integer", "number") and "enum" not in choice and "const" not in choice:
                yield name, choice


def _beyond(schema: Mapping[str, Any]) -> Iterator[float]:
    """Values just outside the bounds that are declared."""
    step = 1 if schema["type"] == "integer" else 1e-3
    for key, sign in (("minimum", -1), ("maximum", 1)):
        if key in schema:
            yield schema[key] + sign * step * max(abs(schema[key]), 1)
    for key in ("exclusiveMinimum", "exclusiveMaximum"):
        if key in schema:
            yield schema[key]


def _refuses(config: type[BaseModel], chosen: Mapping[str, Any], name: str, value: float) -> bool:
    try:
        config.model_validate({**chosen, name: value})
    except ValidationError:
        return True
    return False


CHECKS: dict[str, Callable[[Plugin, Mapping[str, Any]], str | None]] = {
    "defaults": defaults,
    "unknown options": unknown,
    "descriptions": described,
    "bounds": bounds,
}
