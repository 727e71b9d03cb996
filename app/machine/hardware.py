"""The resources that this process may use: cores and memory within the container's limits, CPU features, a GPU."""

import os
import platform
from pathlib import Path

CGROUP = Path("/sys/fs/cgroup")


def cpu_limit(cgroup: Path = CGROUP) -> int:
    """Number of CPU cores that this process may use, by CFS quota and affinity mask. At least 1."""
    allowed = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    quota = _cpu_quota(cgroup)
    return max(1, min(allowed, round(quota))) if quota else allowed


def cpu_features(cpuinfo: Path = Path("/proc/cpuinfo")) -> set[str]:
    """The CPU's instruction sets, in the spelling of Linux. Empty on other systems."""
    try:
        lines = cpuinfo.read_text().splitlines()
    except OSError:
        return set()
    flags = (line.partition(":")[2] for line in lines if line.startswith(("flags", "Features")))
    return set(next(flags, "").split())


def cpu_name(cpuinfo: Path = Path("/proc/cpuinfo")) -> str:
    """The CPU's model name. On other systems than Linux, only its architecture."""
    try:
        lines = cpuinfo.read_text().splitlines()
    except OSError:
        lines = []
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(names, platform.machine())


def has_gpu() -> bool:
    """Whether the machine has an NVIDIA driver or an Apple GPU. It imports no library."""
    return Path("/dev/nvidiactl").exists() or (platform.system() == "Darwin" and platform.machine() == "arm64")


def memory_limit(cgroup: Path = CGROUP) -> int:
    """Bytes of memory that this process may use: the container's limit, or the machine's memory."""
    machine = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    for name in ("memory.max", "memory/memory.limit_in_bytes"):
        try:
            limit = (cgroup / name).read_text().strip()
        except OSError:
            continue
        return min(machine, int(limit)) if limit.isdigit() else machine
    return machine


def _cpu_quota(cgroup: Path) -> float | None:
    """CPU quota in cores, from cgroup v2 or v1. None without a quota."""
    try:
        if (cgroup / "cpu.max").exists():
            quota, period = (cgroup / "cpu.max").read_text().split()
        else:
            quota = (cgroup / "cpu/cpu.cfs_quota_us").read_text().strip()
            period = (cgroup / "cpu/cpu.cfs_period_us").read_text().strip()
    except (OSError, ValueError):
        return None
    return int(quota) / int(period) if quota.isdigit() else None
