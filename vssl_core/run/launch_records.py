"""What the jobs of a run leave in its folder: who was submitted, each start, each failure, and what follows from it."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from vssl_core.run.files import read_json, write_json

FOLDER = "launch"  # below the run's folder
CHECKPOINT = "checkpoint.pt"  # beside it


@dataclass(frozen=True)
class Submitted:
    """The last job that was submitted for a run."""

    cluster: str  # slurm or local
    job: str  # Slurm's number, or the process that leads the tasks
    nodes: int
    tasks: int  # on each node
    logs: str = ""  # the folder of its logs, where that is not the run's launch folder: those of an array lie together

    def write(self, launched: Path) -> None:
        """Remember it in the run's launch folder."""
        write_json(launched / "job.json", asdict(self))


def submitted(launched: Path) -> Submitted | None:
    """The last job of a run; None where it never was launched."""
    values = read_json(launched / "job.json")
    return Submitted(**values) if isinstance(values, dict) else None


def log_of(launched: Path, job: Submitted, rank: int) -> Path:
    """What a task printed, all starts of the job one after another."""
    return Path(job.logs or launched) / f"{job.job}_{rank}_log.out"


# Starts ---------------------------------------------------------------------------------------------------------------


def note_start(launched: Path, job: str) -> None:
    """Remember that the job starts, and what was saved by then; called by its first rank."""
    with open(launched / f"{job}_starts.jsonl", "a", encoding="utf-8") as file:
        file.write(json.dumps({"saved": saved(launched)}) + "\n")


def starts_of(launched: Path, job: str) -> list[str]:
    """What was saved at each start of a job so far."""
    path = launched / f"{job}_starts.jsonl"
    lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
    return [json.loads(line)["saved"] for line in lines]


def saved(launched: Path) -> str:
    """What tells one checkpoint of the run from another; '' before there is one."""
    try:
        about = (launched.parent / CHECKPOINT).stat()
    except FileNotFoundError:
        return ""
    return f"{about.st_mtime_ns}/{about.st_size}"


def given_up(launched: Path, job: str, requeues: int, tries: int) -> str | None:
    """Why a job is not to be started again; None where it is."""
    starts = starts_of(launched, job)
    if len(starts) > requeues:
        return f"it was started {len(starts)} times, as often as launch.requeues, or submitit on one machine, allows"
    now, fruitless = saved(launched), 0
    while fruitless < len(starts) and starts[-1 - fruitless] == now:
        fruitless += 1
    if fruitless >= tries:
        return (
            f"{fruitless} starts in a row ended without a new checkpoint, as many as launch.tries allows; "
            "give it more launch.timeout_minutes, or longer launch.signal_seconds to save in"
        )
    return None


# Failures -------------------------------------------------------------------------------------------------------------


def note_failure(launched: Path, job: str, restart: int, rank: int, error: str) -> None:
    """Remember why a rank failed by itself: such a job is not started again."""
    write_json(launched / f"{job}_{rank}_failure.json", {"restart": restart, "rank": rank, "error": error})


def failures_of(launched: Path, job: str) -> list[dict[str, Any]]:
    """The failures of a job's last start that had any, by rank."""
    found = [read_json(path) for path in launched.glob(f"{job}_*_failure.json")]
    whole = [failure for failure in found if isinstance(failure, dict)]
    last = max((failure["restart"] for failure in whole), default=0)
    return sorted((failure for failure in whole if failure["restart"] == last), key=lambda failure: failure["rank"])
