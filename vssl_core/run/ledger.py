"""The ledger of videos that could not be read: `skipped.jsonl`, a line each, with the reason and what came in their place."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from vssl_core.errors import DataError


class Ledger:
    """Every unreadable video once; the run stops when there are too many of them."""

    def __init__(self, path: Path | None, videos: int, max_bad_fraction: float) -> None:
        self.path, self.videos, self.max_bad_fraction = path, videos, max_bad_fraction
        self.known: set[str] = set(_paths(path)) if path else set()

    def write(self, lines: Iterable[Mapping[str, Any]]) -> None:
        """Add lines that are new. Raises `DataError` above the allowed share."""
        new = [line for line in {line["path"]: line for line in lines}.values() if line["path"] not in self.known]
        if not new:
            return
        self.known.update(line["path"] for line in new)
        if self.path:
            with open(self.path, "a", encoding="utf-8") as file:
                file.writelines(json.dumps(dict(line)) + "\n" for line in new)
        self.check()

    def check(self, known: int | None = None) -> None:
        """Raise `DataError` where more than the allowed share of the videos cannot be read; `known` counts those of all ranks."""
        bad = len(self.known) if known is None else known
        if bad > self.max_bad_fraction * self.videos:
            where = f", listed in {self.path}" if self.path else ""
            raise DataError(
                f"data: {bad} of {self.videos} videos cannot be read, more than data.max_bad_fraction = {self.max_bad_fraction:g} allows{where}; "
                "mend or remove them (`vssl data check` finds them all), or raise data.max_bad_fraction"
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
