"""From one command to a job of several tasks on nodes of a cluster, or in the background here: checked, then submitted.

What the tasks do is in launch_task.py, what they leave behind in launch_records.py.
"""

from __future__ import annotations

import io
import math
import os
import re
import shlex
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext, redirect_stderr
from pathlib import Path
from typing import Any

from vssl_core.config import LaunchSection, RunConfig
from vssl_core.errors import ConfigError
from vssl_core.run import launch_records as records
from vssl_core.run import slurm
from vssl_core.run.files import explained
from vssl_core.run.launch_records import Submitted
from vssl_core.run.launch_state import is_over
from vssl_core.run.launch_task import Task

#: What a job asks of Slurm, in the words of sbatch.
ASKED = ("partition", "account", "qos", "constraint", "time", "nodes", "ntasks_per_node", "cpus_per_task")
ASKED += ("gpus_per_node", "mem")
LOCAL_STARTS = 6
PYTHON = f"{shlex.quote(sys.executable)} -P"  # nothing from the folder where you are shadows a library
# What Slurm, submitit and torchrun tell the processes of a job; what you set for Slurm's commands stays, as SLURM_CONF
_OF_A_JOB = re.compile(
    r"SLURM_(?!CONF$|JWT$|CLUSTERS$|EXPORT_ENV$)\w+|SLURMD_\w+|SRUN_\w+|SUBMITIT_\w+|TORCHELASTIC_\w+"
    r"|MASTER_(ADDR|PORT)|(LOCAL_|GROUP_|ROLE_)?(RANK|WORLD_SIZE)"
)


def launch(config: RunConfig, folder: Path, work: Callable[[], Any], cluster: str) -> Submitted:
    """Submit a job whose tasks each call `work`; it is in the queue when this returns, and remembered in the folder.

    Raises:
        ConfigError: the job cannot be as the configuration asks, or one is at work in the folder.
        SlurmError: Slurm refuses it, or does not answer.
    """
    check(config, cluster)
    refuse_second(folder)
    launched = folder.resolve() / records.FOLDER
    with _only_if_it_works(launched), as_from_a_shell():
        name, where = f"vssl-{launched.parent.name}", shlex.quote(str(launched))
        executor = executor_for(config, launched, name, where) if cluster == "slurm" else _local(config, launched)
        with _quiet_children(launched / "local.log") if cluster == "local" else nullcontext():
            job = _submit(executor, Task(work, launched, _limits(config.launch, cluster)))
        submitted = Submitted(cluster, job, config.launch.nodes, config.launch.tasks)
        submitted.write(launched)
    return submitted


# Checks ---------------------------------------------------------------------------------------------------------------


def check(config: RunConfig, cluster: str) -> None:
    """Raise `ConfigError` where a job could not train, before anything is written."""
    section = config.launch
    if cluster == "slurm":
        slurm.require()
        slurm.check_partition(section.partition, section.timeout_minutes)
    elif section.nodes > 1:
        raise ConfigError(f"launch.nodes: {section.nodes}: --launch local has this machine alone; set it to 1")
    pieces = section.ranks * config.optim.accumulate
    if config.batch_size % pieces:
        raise ConfigError(
            f"batch_size: {config.batch_size} cannot be divided over {section.ranks} ranks (launch.nodes times tasks) "
            f"and {config.optim.accumulate} microbatches; choose a multiple of {pieces}"
        )
    if section.gpus_per_node and config.device.kind == "cpu":
        raise ConfigError(
            f"launch.gpus_per_node: {section.gpus_per_node} GPUs would idle under device.kind: cpu; "
            "set launch.gpus_per_node=0 and launch.tasks_per_node, or device.kind=cuda"
        )
    if not section.gpus_per_node and config.device.kind == "cuda":
        raise ConfigError("device.kind: cuda needs GPUs, and launch.gpus_per_node is 0; set it to how many a node has")
    _check_time(config)


def _check_time(config: RunConfig) -> None:
    """Every start must have time for a checkpoint that was not asked for: a lost node asks for none."""
    section = config.launch
    working = section.timeout_minutes - section.signal_seconds / 60
    if working <= 0:
        raise ConfigError(
            f"launch.timeout_minutes: {section.timeout_minutes:g} leaves no time to train, since the job is told to "
            f"save {section.signal_seconds} s before (launch.signal_seconds); give it more, or be told later"
        )
    if working < config.checkpoint.every_minutes:
        raise ConfigError(
            f"launch.timeout_minutes: {section.timeout_minutes:g} is too short for one checkpoint every "
            f"{config.checkpoint.every_minutes:g} minutes (checkpoint.every_minutes) before the job is told to save "
            f"({section.signal_seconds} s ahead, launch.signal_seconds); give it more time, or save more often"
        )


def refuse_second(folder: Path) -> None:
    """Raise `ConfigError` where a job trains in the folder, or waits to: two runs would write into each other."""
    launched = folder.resolve() / records.FOLDER
    last = records.submitted(launched)
    if last is not None and not is_over(launched, last):
        end = f"scancel {last.job}" if last.cluster == "slurm" else f"kill {last.job}"
        raise ConfigError(
            f"--run {folder}: job {last.job} is at work in this folder or waits to be; wait for it, "
            f"or end it with `{end}`, or choose another --run"
        )


# Submitting -----------------------------------------------------------------------------------------------------------


def _limits(section: LaunchSection, cluster: str) -> LaunchSection:
    """submitit's own controller, which leads the tasks on one machine, starts them six times at most."""
    most = section.requeues if cluster == "slurm" else min(section.requeues, LOCAL_STARTS - 1)
    return section.model_copy(update={"requeues": most})


def executor_for(config: RunConfig, place: Path, name: str, where: str) -> Any:
    """What submits to Slurm: scripts and logs lie in `place`.

    `where` is the folder of the records, in words of the shell, for what is to be done when a task was lost.
    """
    from submitit import SlurmExecutor

    section = config.launch
    executor = SlurmExecutor(place, max_num_timeout=section.requeues, python=PYTHON)
    cores = section.cpus_per_task or config.device.threads + config.data.workers
    wishes = {
        "partition": section.partition,
        "account": section.account,
        "qos": section.qos,
        "constraint": section.constraint,
        "gpus_per_node": section.gpus_per_node or None,
        "mem": f"{math.ceil(section.memory_gb * 1024)}M" if section.memory_gb else None,
    }
    executor.update_parameters(
        job_name=name,
        time=math.ceil(section.timeout_minutes),  # Slurm counts whole ones
        signal_delay_s=section.signal_seconds,
        nodes=section.nodes,
        ntasks_per_node=section.tasks,
        cpus_per_task=cores,
        setup=list(section.setup),
        teardown=_afterwards(section, where),
        stderr_to_stdout=True,
        # One task that is lost ends the others, and each gets the cores that the job has: neither goes without saying
        srun_args=["--kill-on-bad-exit=1", f"--cpus-per-task={cores}"],
        wckey=None,  # submitit would name its own, which clusters that check them refuse
        additional_parameters={"requeue": True},  # where a node fails, even if the cluster's default is not to
        **{name: wish for name, wish in wishes.items() if wish is not None},
    )
    return executor


def _afterwards(section: LaunchSection, where: str) -> list[str]:
    """The lines of the batch script behind the tasks: where one was lost, the job may be started again."""
    after = f"{PYTHON} -m vssl_core.run.launch_after {where} {section.requeues} {section.tries}"
    return ["code=$?", f"[ $code -eq 0 ] || {after}", "exit $code"]


def _local(config: RunConfig, launched: Path) -> Any:
    from submitit import LocalExecutor

    section = config.launch
    executor = LocalExecutor(launched, max_num_timeout=section.requeues, python=PYTHON)
    executor.update_parameters(
        timeout_min=section.timeout_minutes,
        signal_delay_s=section.signal_seconds,
        tasks_per_node=section.tasks,
        gpus_per_node=section.gpus_per_node,
        setup=list(section.setup),
        stderr_to_stdout=True,
    )
    return executor


def _submit(executor: Any, task: Task) -> str:
    """The job's number; what submitit prints meanwhile is the reason where it fails."""
    asked = ", ".join(f"{key} {value}" for key, value in executor.parameters.items() if key in ASKED)
    with refused(f", which asks for {asked}"), redirect_stderr(io.StringIO()):
        return str(executor.submit(task).job_id)


@contextmanager
def refused(asked: str = "") -> Iterator[None]:
    """Turn what submitit raises where Slurm refuses a job into one sentence: `SlurmError`."""
    from submitit.core.utils import FailedJobError, FailedSubmissionError

    try:
        yield
    except (FailedJobError, FailedSubmissionError) as error:
        raise slurm.SlurmError(
            f"--launch slurm: Slurm refuses the job ({slurm.last_error(str(error))}){asked}; change that under "
            "`launch` (`sinfo --Node --long` shows what there is)"
        ) from None


@contextmanager
def _only_if_it_works(launched: Path) -> Iterator[None]:
    """The folder, made; where submitting fails, it is left as it was, or not there."""
    made = [place for place in (launched, *launched.parents) if not place.exists()]
    with explained(launched):
        launched.mkdir(parents=True, exist_ok=True)
    before = set(launched.iterdir())
    try:
        yield
    except BaseException:
        for path in set(launched.iterdir()) - before:
            path.unlink()
        for place in made:
            place.rmdir()
        raise


@contextmanager
def as_from_a_shell() -> Iterator[None]:
    """Without what tells the processes of a job who they are: a job may be submitted from within another."""
    kept = {name: os.environ.pop(name) for name in list(os.environ) if _OF_A_JOB.fullmatch(name)}
    try:
        yield
    finally:
        os.environ.update(kept)


@contextmanager
def _quiet_children(log: Path) -> Iterator[None]:
    """Processes that are started meanwhile write into a file: they outlive this one, and whoever reads its output."""
    sys.stdout.flush()
    kept = [os.dup(number) for number in (1, 2)]
    try:
        with open(log, "ab") as file:
            for number in (1, 2):
                os.dup2(file.fileno(), number)
        yield
    finally:
        for number, copy in zip((1, 2), kept, strict=True):
            os.dup2(copy, number)
            os.close(copy)
