"""What a batch script does when its tasks have failed: `python -m vssl_core.run.launch_after FOLDER REQUEUES TRIES`.

A task that failed by itself would fail again. One that was killed, or lost with its node, is started again, from the
last checkpoint.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

from vssl_core.errors import VsslError
from vssl_core.run import launch_records as records
from vssl_core.run import slurm
from vssl_core.run.launch_array import launched_by


def after(launched: Path, job: str, restart: int, requeues: int, tries: int) -> str:
    """Put the job back into the queue, or leave it; what was done and why, in a sentence."""
    for failure in records.failures_of(launched, job):
        if failure["restart"] == restart:
            return f"rank {failure['rank']} failed and would again: {failure['error']}"
    state = slurm.state_of(job)
    if state is not None and state.name != "RUNNING":
        return f"the job is {state.name}"
    reason = records.given_up(launched, job, requeues, tries)
    if reason:
        records.note_failure(launched, job, restart, 0, f"a task was lost, and the job is given up: {reason}")
        return f"not started again: {reason}"
    slurm.requeue(job)
    return "a task was lost; the job is started again and goes on from its last checkpoint"


def main() -> None:
    """The program."""
    requeues, tries = int(sys.argv[2]), int(sys.argv[3])
    job, element = os.environ.get("SLURM_JOB_ID", ""), os.environ.get("SLURM_ARRAY_TASK_ID")
    if element is not None:
        job = f"{os.environ['SLURM_ARRAY_JOB_ID']}_{element}"
    launched = launched_by(Path(sys.argv[1]), int(element or 0))
    try:
        done = after(launched, job, int(os.environ.get("SLURM_RESTART_COUNT", 0)), requeues, tries)
    except VsslError as error:
        done = str(error)
    print(f"vssl launch: {done}", file=sys.stderr)


if __name__ == "__main__":
    main()
