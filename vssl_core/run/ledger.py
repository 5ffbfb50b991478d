"""The ledger of videos that could not be read.

`skipped.jsonl`, a line each, with the reason and what came in their place.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from vssl_core.errors import DataError
from vssl_core.run.files import explained


class Ledger:
    """Every unreadable video once; the run stops when there are too many of them.

    All ranks hear of all lines; one of them, which has a path, writes. What was written before is not counted again: a
    video may have been mended since.
    """

    def __init__(self, path: Path | None, videos: int, max_bad_fraction: float) -> None:
        self.path, self.videos, self.max_bad_fraction = path, videos, max_bad_fraction
        self.met: set[str] = set()  # by this process
        self._first = ""
        self._written = set(_paths(path)) if path else set()

    def write(self, lines: Iterable[Mapping[str, Any]]) -> None:
        """Add lines that are new. Raises `DataError` above the allowed share."""
        new = {line["path"]: line for line in lines if line["path"] not in self.met}
        self._first = self._first or next((f"{path}: {line['reason']}" for path, line in new.items()), "")
        if not new:
            return
        self.met.update(new)
        if self.path:
            with explained(self.path), open(self.path, "a", encoding="utf-8") as file:
                file.writelines(
                    json.dumps(dict(line)) + "\n" for path, line in new.items() if path not in self._written
                )
        self._check()

    def _check(self) -> None:
        if len(self.met) > self.max_bad_fraction * self.videos:
            where = f", listed in {self.path}" if self.path else ""
            raise DataError(
                f"data: {len(self.met)} of {self.videos} videos cannot be read, more than data.max_bad_fraction = "
                f"{self.max_bad_fraction:g} allows{where}, the first was {self._first}; mend them (`vssl data check` "
                "finds all that are damaged), or raise data.max_bad_fraction"
            )


def _paths(path: Path) -> list[str]:
    if not path.exists():
        return []
    paths = []
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            paths.append(json.loads(line)["path"])
        except (ValueError, KeyError, TypeError):  # a line cut short by a kill
            continue
    return paths
