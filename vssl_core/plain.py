"""Plain values: YAML in and out, and checked models with one sentence for the first mistake."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import BaseModel, ValidationError

from vssl_core.errors import ConfigError, did_you_mean

Model = TypeVar("Model", bound=BaseModel)

# YAML -----------------------------------------------------------------------------------------------------------------


def read_yaml(path: str) -> dict[str, Any]:
    """A YAML file as a mapping; `ConfigError` where it is missing or not one."""
    try:
        text = Path(path).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: cannot be read ({error}); give the path of a YAML file") from error
    tree = from_yaml(text, path)
    if tree is None:
        return {}
    if not isinstance(tree, dict):
        raise ConfigError(f"{path}: must hold keys and values, got a {type(tree).__name__}; write key: value lines")
    return tree


class _Loader(yaml.SafeLoader):
    """YAML in which 1e-4 is a number and no key stands twice in one place."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        keys = [key.value for key, _ in node.value]
        twice = next((key for key in node.value if keys.count(key[0].value) > 1), None)
        if twice is not None:
            what = f"'{twice[0].value}' stands there twice"
            raise yaml.constructor.ConstructorError(None, None, what, twice[0].start_mark)
        return super().construct_mapping(node, deep)


class _Dumper(yaml.SafeDumper):
    """Writes what `_Loader` reads: a text that looks like 1e-4 gets quotes."""


NUMBER = re.compile(r"[-+]?(?:\d+\.?\d*|\.\d+)[eE][-+]?\d+")  # YAML 1.1 wants a point and a sign, people write neither
for _kind in (_Loader, _Dumper):
    _kind.add_implicit_resolver("tag:yaml.org,2002:float", NUMBER, list("-+.0123456789"))


def from_yaml(text: str, where: str) -> Any:
    """The value of a YAML text; `ConfigError` where it is none."""
    try:
        return yaml.load(text, _Loader)  # a SafeLoader
    except (yaml.YAMLError, ValueError, TypeError) as error:  # a date or a key that cannot be
        raise ConfigError(f"{where}: is not YAML ({_yaml_fault(error)}); correct it") from error


def _yaml_fault(error: Exception) -> str:
    """The line and what is wrong there, without the reader's picture of it."""
    mark = getattr(error, "problem_mark", None) or getattr(error, "context_mark", None)
    what = getattr(error, "problem", None) or getattr(error, "reason", None) or error
    told = " ".join(str(what).split()).replace("'<stream end>'", "the end")
    told = told.replace("expected <block end>, but found", "what stands above cannot go on with")
    return f"line {mark.line + 1}: {told}" if mark else told


def to_yaml(tree: Mapping[str, Any]) -> str:
    """Plain values as YAML, short lists on one line, keys in their order."""
    return yaml.dump(
        dict(tree), Dumper=_Dumper, sort_keys=False, default_flow_style=None, allow_unicode=True, width=100
    )


# Checked models -------------------------------------------------------------------------------------------------------


def build(model: type[Model], tree: Mapping[str, Any], where: str, sign: str = ": ") -> Model:
    """A checked model from plain values; the first thing that is wrong becomes one sentence.

    `sign` stands between where the values come from and the key.
    """
    try:
        built = model.model_validate(tree)
    except ValidationError as error:
        raise ConfigError(_sentence(model, tree, error, where + sign, where)) from None
    counted = next(_counted(tree, built), None)
    if counted:
        key, given = counted
        raise ConfigError(f"{where}{sign}{key}: must be a number, got {given!r}")
    return built


def _counted(given: Any, built: Any, key: str = "") -> Iterable[tuple[str, bool]]:
    """(key, value) of each true or false that pydantic took for 1 or 0."""
    if isinstance(given, bool) and type(built) in (int, float):
        yield key, given
    elif isinstance(given, Mapping):
        for name, value in given.items():
            inner = built.get(name) if isinstance(built, Mapping) else getattr(built, str(name), None)
            yield from _counted(value, inner, f"{key}.{name}" if key else str(name))
    elif isinstance(given, list | tuple) and isinstance(built, list | tuple):
        for number, (value, inner) in enumerate(zip(given, built, strict=False)):
            yield from _counted(value, inner, f"{key}.{number}")


PLAIN_WORDS = {  # where pydantic speaks of Python
    "dict_type": "must hold keys and values",
    "model_type": "must hold keys and values",
    "tuple_type": "must be a list",
    "invalid_key": "a key must be a word",
}


def _sentence(model: type[BaseModel], tree: Mapping[str, Any], error: ValidationError, above: str, where: str) -> str:
    # A value that fits no kind of a union has an error for each kind: the one that looked deepest is the kind meant.
    keys = [_key(tree, problem) for problem in error.errors()]
    alike = [number for number, key in enumerate(keys) if key[: len(keys[0])] == keys[0]]
    chosen = max(alike, key=lambda number: (len(keys[number]), -number))
    problem, location = error.errors()[chosen], keys[chosen]
    at = above + ".".join(location) if location else where
    others = len({key for key in keys if key[: len(keys[0])] != keys[0]})
    more = f" (and {others} more)" if others else ""
    if problem["type"] == "extra_forbidden":
        return f"{at}: there is no such key{_suggest(model, location)}; remove or correct it{more}"
    message = PLAIN_WORDS.get(problem["type"]) or _entries(problem, error) or problem["msg"]
    message = message.removeprefix("Value error, ")
    whole = problem["type"] == "value_error" and isinstance(problem["input"], dict)
    given = "" if _is_missing_key(problem) or whole else f", got {problem['input']!r}"
    return f"{at}: {message[:1].lower() + message[1:]}{given}{more}"


def _entries(problem: Mapping[str, Any], error: ValidationError) -> str | None:
    """How many entries a list needs, where that is the problem."""
    match problem["type"]:
        case "too_short":
            return f"needs at least {_count(problem['ctx']['min_length'])}"
        case "too_long":
            return f"needs at most {_count(problem['ctx']['max_length'])}"
        case "missing" if not _is_missing_key(problem):
            alike = [other["loc"] for other in error.errors() if other["loc"][:-1] == problem["loc"][:-1]]
            return f"needs {_count(max(place for *_, place in alike) + 1)}"
    return None


def _count(number: int) -> str:
    return f"{number} entr{'y' if number == 1 else 'ies'}"


def _is_missing_key(problem: Mapping[str, Any]) -> bool:
    """Whether a key is missing, and not an entry of a list that needs more of them."""
    return problem["type"] == "missing" and isinstance(problem["loc"][-1], str)


def _key(tree: Any, problem: Mapping[str, Any]) -> tuple[str, ...]:
    """The key that a problem is about as the file has it, without the names of types that pydantic puts in between."""
    key, value = [], tree
    for place, part in enumerate(problem["loc"], 1):
        if _holds(value, part):
            key.append(str(part))
            value = value[part]
        elif _is_missing_key(problem) and place == len(problem["loc"]):
            key.append(str(part))
    return tuple(key)


def _holds(value: Any, part: Any) -> bool:
    if isinstance(value, Mapping):
        return part in value
    return isinstance(value, list | tuple) and isinstance(part, int) and part < len(value)


def _suggest(model: type[BaseModel], location: Sequence[str]) -> str:
    fields = model
    for part in location[:-1]:
        if part in fields.model_fields:  # else it is a name that the user gave, as below weights
            inner = next(iter(_models(fields.model_fields[part].annotation)), None)
            if inner is None:
                return ""
            fields = inner
    names = list(fields.model_fields)
    return did_you_mean(location[-1], names) or f"; there are {', '.join(names) if names else 'no options'}"


def _models(annotation: Any) -> Iterable[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    for inner in getattr(annotation, "__args__", ()):
        yield from _models(inner)


def to_tree(model: BaseModel) -> dict[str, Any]:
    """A model as plain values, defaults included."""
    return model.model_dump(mode="json")


def flatten(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """{'a.b': value} of nested mappings; an empty mapping is a value."""
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        if isinstance(value, Mapping) and value:
            flat.update(flatten(value, f"{prefix}{key}."))
        else:
            flat[f"{prefix}{key}"] = value
    return flat
