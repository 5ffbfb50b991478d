"""What is asked of Slurm's own commands: partitions, the state of a job, and to start one again."""

from __future__ import annotations

import re
import shutil
import subprocess
from collections.abc import Iterable
from dataclasses import dataclass

from vssl_core.errors import ConfigError, VsslError, did_you_mean

COMMANDS = ("sbatch", "srun", "squeue", "scontrol", "sinfo")
PATIENCE = 30  # seconds for an answer
OVER = {"COMPLETED", "CANCELLED", "FAILED", "TIMEOUT", "NODE_FAIL", "OUT_OF_MEMORY", "BOOT_FAIL", "DEADLINE"}


class SlurmError(VsslError):
    """Slurm refuses, or does not answer."""


@dataclass(frozen=True)
class JobState:
    """What Slurm says of a job."""

    name: str  # PENDING, RUNNING, COMPLETED, ...
    nodes: str = ""
    reason: str = ""  # why it is waiting
    restarts: int | None = None  # where it says

    @property
    def over(self) -> bool:
        """Whether the job has ended for good."""
        return self.name in OVER


def ask(*words: str) -> str:
    """What a command prints; `SlurmError` with its own words where it fails."""
    try:
        done = subprocess.run(words, capture_output=True, text=True, timeout=PATIENCE)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise SlurmError(f"{words[0]}: does not answer ({_why(error)}); ask whoever looks after the cluster") from None
    if done.returncode:
        raise SlurmError(f"{words[0]}: {last_error(done.stderr) or f'ended with {done.returncode}'}")
    return done.stdout


def _why(error: Exception) -> str:
    return f"for {PATIENCE} s" if isinstance(error, subprocess.TimeoutExpired) else str(error)


def last_error(text: str) -> str:
    """The reason in what a command of Slurm wrote to stderr: its last error, without the command's name."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return re.sub(r"^\w+: ((error|fatal): )?", "", lines[-1]) if lines else ""


def there() -> bool:
    """Whether Slurm's commands are on this machine."""
    return all(shutil.which(command) for command in COMMANDS)


def require() -> None:
    """Raise `ConfigError` where jobs cannot be submitted from this machine."""
    missing = [command for command in COMMANDS if shutil.which(command) is None]
    if missing:
        raise ConfigError(
            f"--launch slurm: there is no Slurm on this machine ({missing[0]} is not found); "
            "run this on a cluster's login node, or use --launch local"
        )


def check_partition(name: str | None, minutes: float) -> None:
    """Raise `ConfigError` for a partition that the cluster does not have, or for more time than it gives.

    Slurm itself may take such a job and never start it. `SlurmError` where the cluster does not answer.
    """
    try:
        rows = [line.split("|") for line in ask("sinfo", "--noheader", "--format=%R|%P|%l").splitlines()]
    except SlurmError as error:
        raise SlurmError(
            f"--launch slurm: Slurm does not answer here ({error}); "
            "run this on a login node of your cluster, or name its settings in SLURM_CONF"
        ) from None
    limits = {plain: minutes_of(limit) for plain, _, limit in rows}
    marked = [plain for plain, shown, _ in rows if shown.endswith("*")]  # the default one
    chosen = name.split(",") if name is not None else marked[:1]
    for one in chosen:
        if one not in limits:
            raise ConfigError(
                f"launch.partition: this cluster has no partition '{one}'{did_you_mean(one, limits)}; "
                f"choose one of {', '.join(sorted(limits))}, or null for its default"
            )
    most = max((limits[one] for one in chosen), default=float("inf"))
    if minutes > most:
        raise ConfigError(
            f"launch.timeout_minutes: {minutes:g} is more than the {most:g} that partition {', '.join(chosen)} gives; "
            "ask for less, since a job that is cut short goes on by itself, or choose another launch.partition"
        )


def minutes_of(limit: str) -> float:
    """The minutes of a time limit as Slurm writes it: 2-00:00:00, 1:00:00, 30:00 or infinite; infinite if unclear."""
    found = re.fullmatch(r"(?:(\d+)-)?(?:(\d+):)?(\d+):(\d+)", limit.strip())
    if found is None:
        return float("inf")
    days, hours, minutes, seconds = (int(part or 0) for part in found.groups())
    return (days * 24 + hours) * 60 + minutes + seconds / 60


def state_of(job: str) -> JobState | None:
    """What Slurm says of a job, from its memory or else its accounting; None where neither knows it."""
    fields = "State:|,RestartCnt:|,NodeList:|,Reason:|"
    try:
        told = ask("squeue", "--noheader", "--states=all", f"--jobs={job}", f"--Format={fields}").strip()
    except SlurmError:  # an id that is forgotten is an error
        told = ""
    if told:
        name, restarts, nodes, reason = (part.strip() for part in told.splitlines()[0].split("|")[:4])
        return JobState(name, nodes, "" if reason == "None" else reason, int(restarts or 0))
    try:
        told = ask("sacct", "--noheader", "--allocations", "--parsable2", f"--jobs={job}", "--format=State,NodeList")
    except SlurmError:  # many clusters keep no accounts
        return None
    lines = told.splitlines()
    if not lines:
        return None
    name, _, nodes = lines[-1].partition("|")
    return JobState(name.split()[0], nodes)  # 'CANCELLED by 1000'


def states_of(jobs: Iterable[str]) -> dict[str, JobState]:
    """What Slurm says of many jobs, also elements of arrays, asked together; those it has forgotten are missing."""
    wanted = set(jobs)
    if not wanted:
        return {}
    fields = "ArrayJobID:|,ArrayTaskID:|,JobID:|,State:|,NodeList:|"
    told = ask("squeue", "--noheader", "--states=all", "--array", "--me", f"--Format={fields}")
    found = {}
    for line in told.splitlines():
        array, element, job, name, nodes = (part.strip() for part in line.split("|")[:5])
        found[job if element == "N/A" else f"{array}_{element}"] = JobState(name, nodes)
    known = {job: state for job, state in found.items() if job in wanted}
    lost = {job: state for job in wanted - set(known) if (state := state_of(job)) is not None}
    return known | lost


def requeue(job: str) -> None:
    """Put a job that is running back into the queue: Slurm ends what is left of it first."""
    ask("scontrol", "requeue", job)
