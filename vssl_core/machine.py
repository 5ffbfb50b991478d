"""What this machine has: cores, memory and space, as a process in a container really gets them."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

CGROUP = Path("/sys/fs/cgroup")


def cores(cgroup: Path = CGROUP) -> float:
    """Cores this process may use: its affinity, or less where a container's quota says so."""
    allowed = float(len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1)
    quota = _numbers(cgroup / "cpu.max")  # "200000 100000": microseconds per period
    if len(quota) != 2:
        quota = [*_numbers(cgroup / "cpu/cpu.cfs_quota_us"), *_numbers(cgroup / "cpu/cpu.cfs_period_us")]
    return min(allowed, quota[0] / quota[1]) if len(quota) == 2 and min(quota) > 0 else allowed


def memory_bytes(cgroup: Path = CGROUP, meminfo: Path = Path("/proc/meminfo")) -> int | None:
    """Memory this process may use: the machine's, or less where a container's limit says so; None if unknown."""
    lines = meminfo.read_text().splitlines() if meminfo.exists() else []
    totals = [int(line.split()[1]) * 1024 for line in lines if line.startswith("MemTotal:")]
    limits = [*_numbers(cgroup / "memory.max"), *_numbers(cgroup / "memory/memory.limit_in_bytes")]
    return min([*totals, *limits], default=None)


def free_bytes(folder: Path) -> int | None:
    """Space left below a folder; None where there is no such folder."""
    return shutil.disk_usage(folder).free if folder.is_dir() else None


def _numbers(path: Path) -> list[int]:
    """The whole numbers in a small file; none where it is missing or says "max"."""
    words = path.read_text().split() if path.is_file() else []
    return [int(word) for word in words] if all(word.lstrip("-").isdigit() for word in words) else []
