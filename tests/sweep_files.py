"""Small sweep files, for the tests of sweeps and of their tables."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml
from small_runs import videos_folder

QUICK = {"retrieval": {"clips": 2, "stages": "last"}}


def base(**changes: Any) -> dict[str, Any]:
    """An experiment of a second, on a dozen tiny videos."""
    return {
        "data": {"source": "folder", "root": str(videos_folder()), "workers": 0},
        "clip": {"frames": 4, "size": 16},
        "plugins": {"rotation": {}},
        "epochs": 1,
        "batch_size": 4,
        "device": {"kind": "cpu"},
        "log": {"tensorboard": False},
        **changes,
    }


def written(place: Path, text: Mapping[str, Any] | str) -> str:
    """A sweep file; its path."""
    path = place / "small.yaml"
    path.write_text(text if isinstance(text, str) else yaml.safe_dump(dict(text), sort_keys=False))
    return str(path)


def sweep_file(place: Path, *cells: Mapping[str, Any], **keys: Any) -> str:
    """A sweep file of these cells, or of another kind given by `keys`."""
    rows = {"cells": [dict(cell) for cell in cells]} if cells else {}
    return written(place, {"base": base(), "seeds": [0], "evaluations": QUICK, **rows, **keys})
