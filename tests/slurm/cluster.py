"""A real Slurm on this machine alone, for tests: in a folder of its own, reached from nowhere else, without systemd.

    python tests/slurm/cluster.py start DIR     # then `. DIR/env.sh`; installs Slurm if it may
    python tests/slurm/cluster.py stop DIR

Two virtual nodes of two cores, in three partitions: `main`, from which a job in `urgent` takes the nodes away after
GRACE seconds, and `harsh`, from which it takes them without asking.
"""

from __future__ import annotations

import argparse
import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

PROGRAMS = ("munged", "slurmctld", "slurmd", "sbatch", "srun", "scontrol", "squeue", "scancel", "sinfo")
PACKAGES = ("slurm-wlm", "munge")
PATIENCE = 30  # seconds until a daemon must be there
GRACE = 30  # seconds that a job has to leave when another takes its nodes
LONGEST = 80  # of the folder's name: sockets lie in it
CORES = 2  # of each node
os.environ["PATH"] += os.pathsep + os.pathsep.join(("/usr/sbin", "/sbin"))  # where daemons are


class NoCluster(Exception):
    """Slurm cannot be had on this machine; the text says why."""


def install() -> None:
    """Install Slurm from the system's packages where it is missing; `NoCluster` where that is not allowed or fails."""
    if all(map(shutil.which, PROGRAMS)):
        return
    if os.geteuid() != 0 or shutil.which("apt-get") is None:
        raise NoCluster(f"Slurm is not installed, and only root can do that with apt-get: {' '.join(PACKAGES)}")
    quiet = {**os.environ, "DEBIAN_FRONTEND": "noninteractive", "RUNLEVEL": "1"}  # in which no service is started
    for words in (["update"], ["install", "--yes", "--no-install-recommends", *PACKAGES]):
        done = subprocess.run(["apt-get", *words], env=quiet, capture_output=True, text=True)
        if done.returncode:
            raise NoCluster(f"apt-get {words[0]} failed: {(done.stderr.strip().splitlines() or ['?'])[-1]}")
    missing = [program for program in PROGRAMS if shutil.which(program) is None]
    if missing:
        raise NoCluster(f"the packages {' '.join(PACKAGES)} do not hold {missing[0]}")


class Cluster:
    """One controller and two nodes, all on this machine; `environment` is what its commands need."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder.resolve()
        if len(str(self.folder)) > LONGEST:
            raise NoCluster(f"{self.folder} is too long for sockets, give a folder of at most {LONGEST} letters")
        self.host = socket.gethostname().partition(".")[0]
        self.nodes = (self.host, f"{self.host}-two")
        self.address = _address(self.host)
        self.environment = {**os.environ, "SLURM_CONF": str(self.folder / "slurm.conf")}

    # Start and stop ---------------------------------------------------------------------------------------------------

    def start(self) -> Cluster:
        """Start what is not running yet, and wait until jobs can be submitted."""
        for name in ("log", "state", "spool"):
            (self.folder / name).mkdir(parents=True, exist_ok=True)
        if not (self.folder / "slurm.conf").exists():
            self._configure()
        socket_file = self.folder / "munge.sock"
        files = {"socket": "munge.sock", "key-file": "munge.key", "pid-file": "munged.pid", "seed-file": "munge.seed"}
        options = [f"--{option}={self.folder / name}" for option, name in files.items()]
        self._daemon("munged", "munged", "--force", f"--log-file={self.folder}/log/munged.log", *options)
        self._wait("munged", socket_file.exists)
        self._daemon("slurmctld", "slurmctld")
        self._wait("slurmctld", lambda: "UP" in self.ask("scontrol", "ping", check=False))
        for node in self.nodes:
            self._daemon(f"slurmd-{node}", "slurmd", "-N", node)
        self._wait(
            "two idle nodes", lambda: self.ask("sinfo", "-h", "-N", "-p", "main", "-o", "%t").split().count("idle") == 2
        )
        return self

    def stop(self) -> None:
        """End all jobs and daemons of this folder, and no other."""
        if self.alive("slurmctld"):
            self.ask("scancel", "--state=PENDING", f"--user={os.getuid()}", check=False)
            self.ask("scancel", "--full", f"--user={os.getuid()}", check=False)
            self._wait("an empty queue", lambda: not self.ask("squeue", "-h", check=False).strip(), strict=False)
        for name in (*(f"slurmd-{node}" for node in self.nodes), "slurmctld", "munged"):
            if self.alive(name):
                os.kill(self._process(name), signal.SIGTERM)
                if not self._wait(name, lambda name=name: not self.alive(name), strict=False):
                    os.kill(self._process(name), signal.SIGKILL)

    def ask(self, *words: str, check: bool = True) -> str:
        """What a command prints, all of it."""
        done = subprocess.run(words, env=self.environment, capture_output=True, text=True, timeout=60)
        if check and done.returncode:
            raise RuntimeError(f"{' '.join(words)}: {done.stderr.strip()}")
        return done.stdout

    # Daemons ----------------------------------------------------------------------------------------------------------

    def alive(self, name: str) -> bool:
        """Whether a daemon runs: its number may be another's, or a dead process's that nobody has collected."""
        try:
            return name.partition("-")[0] in Path(f"/proc/{self._process(name)}/cmdline").read_text()
        except (OSError, ValueError):
            return False

    def _process(self, name: str) -> int:
        return int((self.folder / f"{name}.pid").read_text())

    def _daemon(self, name: str, *words: str) -> None:
        if not self.alive(name):
            done = subprocess.run(words, env=self.environment, capture_output=True, text=True)
            if done.returncode:
                raise NoCluster(f"{name} does not start: {done.stderr.strip()}")

    def _wait(self, what: str, there: Callable[[], bool], strict: bool = True) -> bool:
        until = time.monotonic() + PATIENCE
        while not there():
            if time.monotonic() > until:
                if strict:
                    raise NoCluster(f"no {what} after {PATIENCE} s, see {self.folder}/log")
                return False
            time.sleep(0.05)
        return True

    # Configuration ----------------------------------------------------------------------------------------------------

    def _configure(self) -> None:
        key = self.folder / "munge.key"
        key.touch(mode=0o600)
        key.write_bytes(secrets.token_bytes(1024))
        (self.folder / "env.sh").write_text(f'export SLURM_CONF="{self.folder}/slurm.conf"\n')
        (self.folder / "gres.conf").write_text(self._gpus())
        (self.folder / "slurm.conf").write_text(self._settings())

    def _gpus(self) -> str:
        """One GPU for each node that is none: Slurm wants a character device, and a different one for each."""
        devices = zip(self.nodes, ("/dev/null", "/dev/zero"), strict=True)
        return "AutoDetect=off\n" + "".join(f"NodeName={node} Name=gpu File={file}\n" for node, file in devices)

    def _settings(self) -> str:
        place, user = self.folder, _user()
        control, *ports = _free_ports(3)
        nodes = "\n".join(
            f"NodeName={node} NodeHostname={self.host} NodeAddr={self.address} Port={port} CPUs={CORES} "
            "RealMemory=100000 Gres=gpu:1 State=UNKNOWN"
            for node, port in zip(self.nodes, ports, strict=True)
        )
        return f"""\
ClusterName=test
SlurmctldHost={self.host}({self.address})
SlurmctldPort={control}
SlurmUser={user}
SlurmdUser={user}
# Nobody outside this machine is listened to
CommunicationParameters=NoCtldInAddrAny,NoInAddrAny
# A job that goes back into the queue waits until its old credential has run out: 5 s is the least
AuthInfo=socket={place}/munge.sock,cred_expire=5
StateSaveLocation={place}/state
SlurmdSpoolDir={place}/spool/%n
SlurmctldPidFile={place}/slurmctld.pid
SlurmdPidFile={place}/slurmd-%n.pid
SlurmctldLogFile={place}/log/slurmctld.log
SlurmdLogFile={place}/log/slurmd-%n.log
ProctrackType=proctrack/linuxproc
MailProg=/bin/true
# What the nodes have is what is written here
SlurmdParameters=config_overrides
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
SchedulerParameters=sched_interval=1,bf_interval=1
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
SlurmctldParameters=preempt_send_user_signal
JobRequeue=0
# What can never start is refused, instead of waiting for ever
EnforcePartLimits=ALL
KillWait=10
MinJobAge=86400
ReturnToService=2
GresTypes=gpu
{nodes}
PartitionName=main Nodes=ALL Default=YES MaxTime=60 State=UP PriorityTier=1 GraceTime={GRACE}
PartitionName=harsh Nodes=ALL MaxTime=60 State=UP PriorityTier=1
PartitionName=urgent Nodes=ALL MaxTime=60 State=UP PriorityTier=10 PreemptMode=OFF
"""


def _user() -> str:
    import pwd

    return pwd.getpwuid(os.getuid()).pw_name


def _address(host: str) -> str:
    try:
        return socket.gethostbyname(host)
    except OSError as error:
        raise NoCluster(f"this machine's name {host} leads nowhere; put '127.0.0.1 {host}' into /etc/hosts") from error


def _free_ports(count: int) -> list[int]:
    """Ports that nobody listens on right now."""
    servers = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [server.getsockname()[1] for server in servers]
    for server in servers:
        server.close()
    return ports


def main() -> int:
    """The program."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["start", "stop"])
    parser.add_argument("folder", type=Path, help="the cluster's folder")
    options = parser.parse_args()
    try:
        if options.what == "stop":
            Cluster(options.folder).stop()
            return 0
        install()
        cluster = Cluster(options.folder).start()
    except NoCluster as error:
        print(f"cluster: {error}", file=sys.stderr)
        return 1
    print(cluster.ask("sinfo", "-N"), end="")
    print(f"ready: . {cluster.folder}/env.sh")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
