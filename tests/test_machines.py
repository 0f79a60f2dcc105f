"""Machines as users have them: quotas, small disks in memory, disks without locks, hidden GPUs."""

import errno
import fcntl
import os
import shutil
import subprocess
import tempfile
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from ijepa import cores
from ijepa.cluster.submission import visible_gpus
from ijepa.data import download, loader
from ijepa.errors import UserError, shorten_temporary_names
from ijepa.lock import held


@pytest.fixture
def eight_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(8)))


def put_into(
    group: str, files: dict[str, Any], folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Let this process be in a cgroup; ``files`` are those of the kernel's tree of groups."""
    for name, content in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(f"{content}\n")
    (folder / "own").write_text(f"{group}\n")
    monkeypatch.setattr(cores, "GROUPS", folder)
    monkeypatch.setattr(cores, "Path", lambda _proc_self_cgroup: folder / "own")


@pytest.mark.usefixtures("eight_cores")
@pytest.mark.parametrize(
    ("group", "files", "usable"),
    [
        ("0::/", {}, 8),
        ("0::/", {"cpu.max": "max 100000"}, 8),
        ("0::/", {"cpu.max": "250000 100000"}, 2),
        ("0::/", {"cpu.max": "50000 100000"}, 1),
        ("0::/", {"cpu.max": "9900000 100000"}, 8),
        ("0::/a/b", {"a/b/cpu.max": "max 100000", "a/cpu.max": "300000 100000"}, 3),
        ("4:cpu,cpuacct:/a", {"cpu/a/cpu.cfs_quota_us": 400, "cpu/a/cpu.cfs_period_us": 100}, 4),
        (
            "4:cpu,cpuacct:/a",
            {"cpu,cpuacct/a/cpu.cfs_quota_us": 400, "cpu,cpuacct/a/cpu.cfs_period_us": 100},
            4,
        ),
        ("4:cpu,cpuacct:/gone", {"cpu/cpu.cfs_quota_us": 400, "cpu/cpu.cfs_period_us": 100}, 4),
        ("4:cpu:/", {"cpu/cpu.cfs_quota_us": -1, "cpu/cpu.cfs_period_us": 100}, 8),
        ("4:memory:/a", {"cpu/a/cpu.cfs_quota_us": 400, "cpu/a/cpu.cfs_period_us": 100}, 8),
    ],
)
def test_a_container_s_quota_limits_the_cores(
    group: str, files: dict[str, Any], usable: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Versions 2 and 1 of cgroups; the smallest quota of a group and of those above counts."""
    put_into(group, files, tmp_path, monkeypatch)
    assert cores.usable_cores() == usable


@pytest.mark.parametrize(
    ("group", "files", "usable"),
    [
        ("0::/", {}, 8e9),
        ("0::/a", {"a/memory.max": "max"}, 8e9),
        ("0::/a/b", {"a/b/memory.max": "max", "a/memory.max": 3_000_000_000}, 3e9),
        ("7:memory:/a", {"memory/a/memory.limit_in_bytes": 9223372036854771712}, 8e9),
        ("7:memory:/gone", {"memory/memory.limit_in_bytes": 2_000_000_000}, 2e9),
    ],
)
def test_a_container_s_limit_is_its_memory(
    group: str,
    files: dict[str, Any],
    usable: float,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A fit that the machine could hold would be killed there without a word."""
    put_into(group, files, tmp_path, monkeypatch)
    monkeypatch.setattr(os, "sysconf", {"SC_PAGE_SIZE": 4000, "SC_PHYS_PAGES": 2_000_000}.get)
    assert cores.usable_memory() == usable


def test_a_system_without_affinity_has_its_machine_s_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    """MacOS is such a system."""
    monkeypatch.delattr(os, "sched_getaffinity")
    monkeypatch.setattr(os, "cpu_count", lambda: 6)
    monkeypatch.setattr(cores, "quota", lambda: float("inf"))
    assert cores.usable_cores() == 6


@pytest.mark.parametrize(
    ("free", "processes", "workers"), [(10**6, 1, 8), (20_000, 1, 2), (20_000, 2, 1), (100, 1, 0)]
)
def test_as_many_loader_processes_start_as_dev_shm_has_room_for(
    free: int,
    processes: int,
    workers: int,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """A batch has 4 kB here, and each process makes two ahead."""
    monkeypatch.setattr(loader, "SHARED", tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=free))
    views: Any = [[np.zeros(600, np.uint8), np.zeros(400, np.uint8)]] * 4
    assert loader.fitting(views, range(4), 8, processes) == workers
    assert ("--shm-size" in capsys.readouterr().err) == (workers < 8)
    assert loader.fitting(views, range(4), 0, processes) == 0


@pytest.fixture(params=[errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.EIO])
def fault(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> int:
    """A fault of every file lock."""

    def refuse(*_: Any) -> None:
        raise OSError(request.param, os.strerror(request.param))

    monkeypatch.setattr(fcntl, "flock", refuse)
    return int(request.param)


def test_on_a_disk_without_locks_work_goes_on_with_a_warning(
    fault: int, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Lustre without the option flock is such a disk. A disk that fails is another matter."""
    for work in (held(tmp_path / "lock", "taken"), download._alone(tmp_path / "file.part")):
        if fault == errno.EIO:
            with pytest.raises(OSError, match="Input/output error"), work:
                pass
        else:
            with work:
                pass
            assert "its disk has no file locks: nothing is locked" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("folder", "taken"),
    [("/scratch/job.1", "/scratch/job.1"), (f"/{61 * 'a'}", "/tmp"), (f"/{31 * 'ü'}", "/tmp")],
)
def test_tmp_is_taken_if_names_of_sockets_would_be_too_long(
    folder: str, taken: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", folder)
    monkeypatch.setenv("TMPDIR", folder)
    with monkeypatch.context() as patch:
        patch.setattr(os, "access", lambda *_: False)
        if taken == "/tmp":
            with pytest.raises(UserError, match=r"TMPDIR: .* is too long .* at most 60 characters"):
                shorten_temporary_names()
    shorten_temporary_names()
    assert (tempfile.gettempdir(), os.environ["TMPDIR"]) == (taken, taken)


LISTING = """GPU 0: NVIDIA A100 (UUID: GPU-aaaa-1)
  MIG 1g.5gb Device 0: (UUID: MIG-cccc-1)
GPU 1: NVIDIA A100 (UUID: GPU-bbbb-2)
"""


@pytest.mark.parametrize(
    ("variable", "count"),
    [
        (None, 2), ("", 0), ("-1", 0), ("NoDevFiles", 0), ("1", 1), ("0, 1", 2), ("0,-1,1", 1),
        ("0,2,1", 1), ("0,0", 1), ("0,1,0", 2),
        ("GPU-bbbb-2", 1), ("GPU-aa", 1), ("GPU-zz", 0), ("MIG-cccc-1", 1),
    ],
)  # fmt: skip
def test_gpus_are_counted_as_cuda_reads_its_variable(
    variable: str | None, count: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A run on the CPU must not be charged as a GPU's."""
    monkeypatch.setattr(shutil, "which", lambda _: "/bin/nvidia-smi")
    listing = subprocess.CompletedProcess([], 0, LISTING, "")
    monkeypatch.setattr(subprocess, "run", lambda *_given, **_named: listing)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    if variable is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", variable)
    assert visible_gpus() == count
