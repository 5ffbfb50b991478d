"""`vssl status`: how far a run is, and how its job stands, read from its folder and asked of the job's manager."""

from __future__ import annotations

from pathlib import Path

from vssl_core.run.files import last_json_line, read_json
from vssl_core.run.folder import CONFIG, read_run
from vssl_core.run.launch_state import describe


def status(folder: str) -> int:
    """Print step, epoch, losses, rate, what could not be read, and the state of the run's last job."""
    path = Path(folder)
    job = describe(path)
    if job and not (path / CONFIG).exists():
        print(f"{folder}: its job has not begun to train")
    else:
        print(f"{folder}: {_progress(path)}")
    for line in job:
        print(line)
    return 0


def _progress(path: Path) -> str:
    config = read_run(path, flag="")
    line = last_json_line(path / "metrics.jsonl")
    skipped = path / "skipped.jsonl"
    bad = len(skipped.read_text().splitlines()) if skipped.exists() else 0
    if line is None:
        return "no step is logged yet"
    saved = read_json(path / "backbone.json")
    done = saved is not None and saved["epochs"] >= config.epochs
    terms = ", ".join(
        f"{name} {value:.4g}" for name, value in line.items() if "/" in name and not name.startswith("weight/")
    )
    return (
        f"{'done' if done else 'unfinished'}, step {line['step']}, epoch {line['epoch'] + 1} of "
        f"{config.epochs}, loss {line['loss']:.4g} ({terms}), "
        f"{line['clips_per_second']:.0f} clips/s, {bad} videos skipped"
    )
