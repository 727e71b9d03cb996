"""The resources that this process may use: cores and memory within the container's limits, CPU features, a GPU."""

import os
import platform
import sys
from collections.abc import Iterator
from pathlib import Path

CGROUP, MEMBERSHIP = Path("/sys/fs/cgroup"), Path("/proc/self/cgroup")


def cpu_limit(cgroup: Path = CGROUP, membership: Path = MEMBERSHIP) -> int:
    """Number of CPU cores that this process may use, by CFS quotas and affinity mask. At least 1."""
    allowed = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    quotas = (_cpu_quota(group) for group in _groups("cpu", cgroup, membership))
    return max(1, round(min([allowed, *filter(None, quotas)])))


def cpu_features(cpuinfo: Path = Path("/proc/cpuinfo")) -> set[str]:
    """The CPU's instruction sets, in the spelling of Linux. Empty on other systems."""
    lines = _read(cpuinfo).splitlines()
    flags = (line.partition(":")[2] for line in lines if line.startswith(("flags", "Features")))
    return set(next(flags, "").split())


def cpu_name(cpuinfo: Path = Path("/proc/cpuinfo")) -> str:
    """The CPU's model name. On other systems than Linux, only its architecture."""
    lines = _read(cpuinfo).splitlines()
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(names, platform.machine())


def has_gpu() -> bool:
    """Whether the machine has an NVIDIA driver or an Apple GPU. It imports no library."""
    return Path("/dev/nvidiactl").exists() or (platform.system() == "Darwin" and platform.machine() == "arm64")


def memory_limit(cgroup: Path = CGROUP, membership: Path = MEMBERSHIP) -> int:
    """Bytes of memory that this process may use: the smallest limit of its control groups, or the machine's memory.

    0 if the system does not say.
    """
    if not hasattr(os, "sysconf"):
        return 0
    machine = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    groups = _groups("memory", cgroup, membership)
    limits = (_read(group / name) for group in groups for name in ("memory.max", "memory.limit_in_bytes"))
    return min([machine, *(int(limit) for limit in limits if limit.isdigit())])


def peak_memory() -> int | None:
    """Peak memory of this process in bytes. None if the system does not say."""
    if sys.platform == "win32":
        return None
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def _groups(controller: str, cgroup: Path, membership: Path) -> Iterator[Path]:
    """The folders of this process's control group and of its parents: a limit of each one applies. cgroup v2 and v1.

    A container may see the path of its group on the host, where the folder does not exist: reading then finds nothing.
    """
    for line in ["0::/", f"1:{controller}:/", *_read(membership).splitlines()]:
        _, controllers, path = line.split(":", 2)
        if controllers and controller not in controllers.split(","):
            continue
        root = cgroup / controller if controllers else cgroup
        group = root / path.strip("/")
        yield group
        yield from (parent for parent in group.parents if parent.is_relative_to(root))


def _cpu_quota(group: Path) -> float | None:
    """CPU quota of a control group in cores. None without a quota."""
    of_v1 = f"{_read(group / 'cpu.cfs_quota_us')} {_read(group / 'cpu.cfs_period_us')}"
    quota, _, period = (_read(group / "cpu.max") or of_v1).partition(" ")
    return int(quota) / int(period) if quota.isdigit() and period.isdigit() else None


def _read(file: Path) -> str:
    """The content without white space around it. Empty if the file cannot be read."""
    try:
        return file.read_text().strip()
    except OSError:
        return ""
