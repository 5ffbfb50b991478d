"""Runs as jobs: a small training, a plugin that makes it slow or fail where a test wants it, and what a job became."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path

from small_runs import videos_folder

VSSL = [sys.executable, "-P", "-m", "vssl_core.cli"]
STEPS = 12  # three an epoch
SETTINGS = [
    "--plugins", "simclr,trouble", "clip.frames=4", "clip.size=16", "batch_size=4", "epochs=4", "optim.lr=0.05",
    "data.workers=1", "log.tensorboard=false", "device.kind=cpu", "checkpoint.every_steps=1000",
]  # fmt: skip
JOB = ["launch.cpus_per_task=1", "launch.timeout_minutes=20", "launch.signal_seconds=60"]
PATIENCE = 400  # seconds for what a busy machine does

TROUBLE = '''
"""Makes a run slow, or fail at one step of one rank; changes nothing of what it learns."""

import os
import signal
import time

from pydantic import Field

from vssl_core import Observer, PluginConfig, hookimpl, rank


class Trouble(Observer):
    """The observer."""

    class Config(PluginConfig):
        """What happens."""

        seconds: float = Field(0.0, ge=0, description="how long each step lasts")
        step: int = Field(0, ge=0, description="the step at which it happens; 0 is never")
        rank: int = Field(0, ge=0, description="to whom")
        killed: bool = Field(False, description="killed, else an error")

    @hookimpl
    def vssl_step_end(self, run):
        time.sleep(self.config.seconds)
        if run.step == self.config.step and rank() == self.config.rank:
            if self.config.killed:
                os.kill(os.getpid(), signal.SIGKILL)
            raise RuntimeError("something of its own")


@hookimpl
def vssl_observer():
    return Trouble
'''


def write_trouble(place: Path) -> Path:
    """A throw-away distribution with the plugin; the folder that goes onto PYTHONPATH."""
    about = place / "vssl_trouble-1.0.dist-info"
    about.mkdir(parents=True)
    (about / "METADATA").write_text("Metadata-Version: 2.1\nName: vssl-trouble\nVersion: 1.0\n")
    (about / "entry_points.txt").write_text("[vssl]\ntrouble = trouble\n")
    (place / "trouble.py").write_text(TROUBLE)
    return place


def wait_for(what: str, there: Callable[[], object], seconds: float = PATIENCE) -> None:
    """Until something is the case; fails with its name where it never is."""
    until = time.monotonic() + seconds
    while not there():
        assert time.monotonic() < until, f"no {what} after {seconds:g} s"
        time.sleep(0.1)


class Launched:
    """A run that is submitted as a job, and looked at from outside."""

    def __init__(self, folder: Path, environment: Mapping[str, str], cluster: str = "slurm") -> None:
        self.folder, self.cluster = folder, cluster
        self.environment = {**environment, "OMP_NUM_THREADS": "1"}

    def words(self, *more: str) -> list[str]:
        """The command line of the run, as you would type it."""
        train = [*VSSL, "train", "--run", str(self.folder), "--data", f"folder:{videos_folder()}"]
        return [*train, *SETTINGS, *more]

    def vssl(self, *words: str) -> subprocess.CompletedProcess[str]:
        """A command to its end."""
        return subprocess.run(words, env=self.environment, capture_output=True, text=True, timeout=PATIENCE)

    def submit(self, *more: str) -> str:
        """Submit; what the command printed."""
        done = self.vssl(*self.words("--launch", self.cluster, *JOB, *more))
        assert done.returncode == 0, done.stderr
        return done.stdout

    @property
    def launched(self) -> Path:
        """Where the job leaves what it writes."""
        return self.folder / "launch"

    @property
    def job(self) -> str:
        """The job's number."""
        return json.loads((self.launched / "job.json").read_text())["job"]

    @property
    def step(self) -> int:
        """The last step that was logged."""
        path = self.folder / "metrics.jsonl"
        lines = [line for line in (path.read_text().splitlines() if path.exists() else []) if line.endswith("}")]
        return json.loads(lines[-1])["step"] if lines else 0

    @property
    def starts(self) -> int:
        """How often the job has begun."""
        return len((self.launched / f"{self.job}_starts.jsonl").read_text().splitlines())

    def log(self, rank: int = 0) -> str:
        """What a task printed."""
        return (self.launched / f"{self.job}_{rank}_log.out").read_text()

    def status(self) -> str:
        """What `vssl status` says."""
        done = self.vssl(*VSSL, "status", str(self.folder))
        assert done.returncode == 0, done.stderr
        return done.stdout

    def state(self) -> str:
        """PENDING, RUNNING, COMPLETED, ...: the job's state as Slurm tells it."""
        words = ["squeue", "--noheader", "--states=all", f"--jobs={self.job}", "--format=%T"]
        return subprocess.run(words, env=self.environment, capture_output=True, text=True).stdout.strip()

    def reach(self, step: int) -> None:
        """Wait until the run has done a step."""
        wait_for(f"step {step}", lambda: self.step >= step)

    def end(self, state: str) -> None:
        """Wait until the job has ended in this state."""
        wait_for("end of the job", lambda: self.state() in ENDS)
        assert self.state() == state, f"{self.state()}\n{self.log()}"

    def tasks(self) -> dict[int, int]:
        """{rank: process} of a job that runs on this machine."""
        found = {}
        for place in Path("/proc").glob("[0-9]*"):
            try:
                words, environment = (place / "cmdline").read_text(), (place / "environ").read_text()
                leads = (place / "stat").read_text().rpartition(")")[2].split()[1]
                above = Path(f"/proc/{leads}/comm").read_text().strip()
            except (OSError, UnicodeDecodeError):  # gone meanwhile
                continue
            number = re.search(r"\0SLURM_PROCID=(\d+)\0", environment)
            if number and "submitit.core._submit" in words and str(self.folder) in words and above == "slurmstepd":
                found[int(number[1])] = int(place.name)
        return found


ENDS = {"COMPLETED", "CANCELLED", "FAILED", "TIMEOUT", "NODE_FAIL"}


def listening(process: int) -> list[str]:
    """The addresses on which a process accepts connections, in hexadecimal as the kernel writes them."""
    sockets = set()
    for path in Path(f"/proc/{process}/fd").iterdir():
        try:
            sockets.add(os.readlink(path))
        except OSError:  # closed meanwhile
            continue
    found = []
    for table in ("tcp", "tcp6"):
        for line in Path(f"/proc/{process}/net/{table}").read_text().splitlines()[1:]:
            parts = line.split()
            if parts[3] == "0A" and f"socket:[{parts[9]}]" in sockets:
                found.append(parts[1].partition(":")[0])
    return found
