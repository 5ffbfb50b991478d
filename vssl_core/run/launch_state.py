"""How the job of a run stands, in words: for `vssl status`, and to keep two jobs out of one folder."""

from __future__ import annotations

from pathlib import Path

from vssl_core.run import launch_records as records
from vssl_core.run import slurm
from vssl_core.run.launch_records import Submitted


def is_over(launched: Path, job: Submitted) -> bool:
    """Whether the job has ended for good, as far as can be told: one that nobody knows any more has."""
    if job.cluster == "local":
        return not _alive(launched, job.job)
    state = slurm.state_of(job.job) if slurm.there() else None
    return state is None or state.over


def describe(folder: Path) -> list[str]:
    """The lines of `vssl status` on the run's last job; none where it was never launched."""
    launched = folder / records.FOLDER
    job = records.submitted(launched)
    if job is None:
        return []
    restarts = max(len(records.starts_of(launched, job.job)) - 1, 0)
    lines = [f"job {job.job} on {job.cluster}: {_state(launched, job)}{_times(restarts)}"]
    lines += [f"  rank {failure['rank']} failed: {failure['error']}" for failure in _failures(launched, job)]
    return [*lines, f"  log: {records.log_of(launched, job, 0)}{_more(job)}"]


def _state(launched: Path, job: Submitted) -> str:
    if job.cluster == "local":
        return "running" if _alive(launched, job.job) else "ended"
    state = slurm.state_of(job.job) if slurm.there() else None
    if state is None:
        return "Slurm does not know it any more" if slurm.there() else "there is no Slurm here to ask"
    where = f" on {state.nodes}" if state.nodes else ""
    why = f" ({state.reason})" if state.reason and not state.over and state.name != "RUNNING" else ""
    return f"{state.name}{where}{why}"


def _failures(launched: Path, job: Submitted) -> list[dict]:
    """One for each thing that went wrong: what all ranks met is said once."""
    once = {failure["error"]: failure for failure in reversed(records.failures_of(launched, job.job))}
    return list(reversed(once.values()))


def _times(restarts: int) -> str:
    if restarts == 0:
        return ""
    return ", started again " + ("once" if restarts == 1 else f"{restarts} times")


def _more(job: Submitted) -> str:
    ranks = job.nodes * job.tasks
    return f" (rank 0; beside it those up to rank {ranks - 1})" if ranks > 1 else ""


def _alive(launched: Path, process: str) -> bool:
    """Whether the process that leads the tasks of a local job lives; its number may be another's by now."""
    try:
        words = Path(f"/proc/{process}/cmdline").read_bytes().split(b"\0")
    except OSError:
        return False
    return any(str(launched).encode() in word for word in words)
