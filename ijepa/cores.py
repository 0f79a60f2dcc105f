"""Cores and memory that this process may use.

The first look at a machine needs it too (workflow/scripts/preflight.py), by whatever python3 there
is: therefore the quoted type, which Python 3.6 could not evaluate.
"""

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


def usable_memory() -> float:
    """Bytes of memory of this machine, or of its container or job if that is limited to less."""
    machine = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return min(machine, *(_limit(folder) for folder in groups("memory")), math.inf)


def quota() -> float:
    """Cores of the smallest quota of this process's cgroup and those above, or infinite."""
    return min((_quota(folder) for folder in groups("cpu")), default=math.inf)


def groups(kind: str) -> "list[Path]":
    """Folders of this process's cgroup, of version 2 and of 1 for a kind, and of those above it."""
    own = Path("/proc/self/cgroup")
    folders: list[Path] = []
    for line in own.read_text(encoding="utf-8").splitlines() if own.exists() else []:
        _, kinds, group = line.split(":", 2)
        if not kinds or kind in kinds.split(","):
            # Version 1 has cpu and cpuacct in one folder, and in most containers links to it.
            named = [GROUPS / name for name in (kind, kinds) if (GROUPS / name).is_dir()]
            top = GROUPS if not kinds or not named else named[0]
            folder = top / group.strip("/")
            folders += [path for path in (folder, *folder.parents) if top in (path, *path.parents)]
    return folders


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


def _limit(folder: Path) -> float:
    """Bytes of one cgroup's memory, of version 2 or 1."""
    for name in ("memory.max", "memory.limit_in_bytes"):
        try:
            text = (folder / name).read_text(encoding="utf-8").strip()
        except OSError:
            continue
        return math.inf if text == "max" else int(text)
    return math.inf
