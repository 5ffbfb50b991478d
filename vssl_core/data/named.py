"""A data set by its name: what results of it are filed under, and heads the columns of a table."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable
from dataclasses import dataclass, field

from vssl_core.config import DataSection
from vssl_core.data.sources import place
from vssl_core.data.videos import absolute
from vssl_core.errors import ConfigError, told_of

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]*")  # it becomes a folder's and a part of a metric's


@dataclass(frozen=True)
class DataSet:
    """A source and its root, under a name."""

    name: str
    source: str
    root: str | None
    named: bool = field(default=False, compare=False)  # by you; otherwise after its source

    def __str__(self) -> str:
        """As `data_set` reads it."""
        return f"{self.name}={self.source}" + (f":{self.root}" if self.root is not None else "")

    def is_of(self, section: DataSection) -> bool:
        """Whether a configuration names the same source and root."""
        return (self.source, _settled(self.root)) == (section.source, _settled(section.root))


def _settled(root: str | None) -> str | None:
    return None if root is None else absolute(os.path.expanduser(root)).rstrip("/")


def data_set(text: str) -> DataSet:
    """The data set of a text: SOURCE[:ROOT] or a path, with NAME= before it or named after its source.

    Raises:
        ConfigError: a name that cannot be a folder's.
        DataError: a path that is not there.
    """
    name, equals, rest = text.partition("=")
    named = bool(equals) and not (set("/:") & set(name) or os.path.exists(text))
    source, root = place(rest if named else text)
    name = name if named else source
    if not NAME.fullmatch(name):
        raise ConfigError(
            f"'{name}' cannot name a data set; give it a name of letters, digits, - and _, as in ours={source}:ROOT"
        )
    return DataSet(name, source, root, named)


def data_sets(texts: Iterable[str], where: str) -> dict[str, DataSet]:
    """{name: data set}; `where` is what errors begin with, and `ConfigError` is raised for a name that comes twice."""
    found: dict[str, DataSet] = {}
    for text in texts:
        with told_of(where):
            given = data_set(text)
        if given.name in found:
            raise ConfigError(
                f"{where}: two data sets are named '{given.name}'; give one a name of its own, as in other=SOURCE:ROOT"
            )
        found[given.name] = given
    return found
