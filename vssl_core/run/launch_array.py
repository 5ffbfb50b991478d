"""Many runs as one array of a Slurm cluster: each element trains or evaluates a run of its own."""

from __future__ import annotations

import io
import json
import shlex
from collections.abc import Callable, Sequence
from contextlib import redirect_stderr
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vssl_core.config import RunConfig
from vssl_core.run import launch_records as records
from vssl_core.run.files import explained, write_json
from vssl_core.run.launch import as_from_a_shell, check, executor_for, refused
from vssl_core.run.launch_records import Submitted
from vssl_core.run.launch_task import Task

ELEMENTS = "elements.json"  # the run folders of an array, in the order of its elements


@dataclass(frozen=True)
class Element:
    """What one element of an array does."""

    folder: Path  # of the run
    work: Callable[[], Any]

    @property
    def launched(self) -> Path:
        """Where it leaves its records."""
        return self.folder.resolve() / records.FOLDER


def launch_array(
    config: RunConfig, elements: Sequence[Element], place: Path, *, at_once: int | None = None, after: str | None = None
) -> list[Submitted]:
    """Submit an array; the job of each element, which is in the queue when this returns.

    `config` says what each element asks of the cluster, `place` keeps the scripts and the logs, at most `at_once`
    elements run at a time, and with `after`, an array with as many elements, each waits until its like there is done.

    Raises:
        ConfigError: the jobs cannot be as the configuration asks.
        SlurmError: Slurm refuses the array, or does not answer.
    """
    check(config, "slurm")
    place = place.resolve()
    for folder in (place, *(element.launched for element in elements)):
        with explained(folder):
            folder.mkdir(parents=True, exist_ok=True)
    write_json(place / ELEMENTS, [str(element.launched) for element in elements])
    executor = executor_for(config, place, f"vssl-{place.parent.name}-{place.name}", shlex.quote(str(place)))
    settings: dict[str, Any] = {"array_parallelism": at_once or len(elements)}
    if after is not None:
        settings["dependency"] = f"{'aftercorr' if len(elements) > 1 else 'afterok'}:{after}"
        extra = executor.parameters["additional_parameters"]
        settings["additional_parameters"] = {**extra, "kill_on_invalid_dep": "yes"}
    executor.update_parameters(**settings)
    with as_from_a_shell(), refused(), redirect_stderr(io.StringIO()), executor.batch():
        jobs = [executor.submit(Task(element.work, element.launched, config.launch)) for element in elements]
    submitted = [
        Submitted("slurm", str(job.job_id), config.launch.nodes, config.launch.tasks, str(place)) for job in jobs
    ]
    for element, job in zip(elements, submitted, strict=True):
        job.write(element.launched)
    return submitted


def launched_by(place: Path, element: int) -> Path:
    """The launch folder of an element of the array whose scripts lie here, or this folder where it is no array's."""
    try:
        folders = json.loads((place / ELEMENTS).read_text(encoding="utf-8"))
    except FileNotFoundError:
        return place
    return Path(folders[element])
