"""`vssl status`: how far a run is, read from its folder alone."""

from __future__ import annotations

import json
from pathlib import Path

from vssl_core.run.folder import read_run


def status(folder: str) -> int:
    """Print step, epoch, losses, rate and what could not be read."""
    path = Path(folder)
    config = read_run(path)
    line = _last_line(path / "metrics.jsonl")
    skipped = path / "skipped.jsonl"
    bad = len(skipped.read_text().splitlines()) if skipped.exists() else 0
    if line is None:
        print(f"{folder}: no step is logged yet")
        return 0
    done = (path / "backbone.json").exists() and json.loads((path / "backbone.json").read_text())[
        "epochs"
    ] >= config.epochs
    terms = ", ".join(
        f"{name} {value:.4g}" for name, value in line.items() if "/" in name and not name.startswith("weight/")
    )
    print(
        f"{folder}: {'done' if done else 'unfinished'}, step {line['step']}, epoch {line['epoch'] + 1} of "
        f"{config.epochs}, loss {line['loss']:.4g} ({terms}), "
        f"{line['clips_per_second']:.0f} clips/s, {bad} videos skipped"
    )
    return 0


def _last_line(path: Path) -> dict | None:
    if not path.exists():
        return None
    for line in reversed(path.read_text().splitlines()):
        try:
            return json.loads(line)
        except ValueError:  # cut short by a kill
            continue
    return None
