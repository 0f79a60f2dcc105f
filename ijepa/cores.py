"""Cores that this process may use."""

import math
import os
from pathlib import Path

GROUPS = Path("/sys/fs/cgroup")


def usable_cores() -> int:
    """Cores of this process's affinity (of the machine, where there is none, as on a Mac).

    They are no more than the quota of its container: more threads than that run far slower.
    """
    has_affinity = hasattr(os, "sched_getaffinity")
    cores = len(os.sched_getaffinity(0)) if has_affinity else os.cpu_count() or 1
    return max(1, math.floor(min(cores, quota())))


def quota() -> float:
    """Cores of the smallest quota of this process's cgroup and those above, or infinite."""
    own = Path("/proc/self/cgroup")
    quotas = [math.inf]
    for line in own.read_text(encoding="utf-8").splitlines() if own.exists() else []:
        _, kinds, group = line.split(":", 2)
        if not kinds or "cpu" in kinds.split(","):
            top = GROUPS / "cpu" if kinds else GROUPS
            folder = top / group.strip("/")
            quotas += [
                _quota(path) for path in (folder, *folder.parents) if top in (path, *path.parents)
            ]
    return min(quotas)


def _quota(folder: Path) -> float:
    """Cores of one cgroup's quota, of version 2 or 1."""
    try:
        if (folder / "cpu.max").exists():
            limit, period = (folder / "cpu.max").read_text(encoding="utf-8").split()
        else:
            limit, period = (
                (folder / f"cpu.cfs_{name}_us").read_text(encoding="utf-8").strip()
                for name in ("quota", "period")
            )
    except OSError:
        return math.inf
    return math.inf if limit in ("max", "-1") else int(limit) / int(period)
