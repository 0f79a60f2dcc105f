"""Say in one line what this machine lacks, before anything is downloaded.

``python3 workflow/scripts/preflight.py [install|run]`` works with any python3 and needs nothing
installed. ``make setup`` and ``make reproduce`` run it.
"""

import os
import platform
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

PYTHON = "3.11"
"""Version that is used without uv: the one that everything here is tested with."""
GB = 10**9
LEAST_DISK = {"install": 12 * GB, "run": 3 * GB}
"""Bytes: the environment takes 6 GB and as much again while it is installed, data and results 1."""
LEAST_MEMORY = 4 * GB
LEAST_LIBC = (2, 28)
"""Version of glibc that PyTorch's packages ask for: of RHEL 8, Debian 10, Ubuntu 20.04."""
PROCESSORS = ("x86_64", "aarch64", "arm64")
LIMITS = ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes")


def memory() -> float:
    """Bytes of memory that this process may use: the machine's, or its container's limit."""
    available = float(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"))
    for path in LIMITS:
        text = Path(path).read_text().strip() if Path(path).is_file() else ""
        if text.isdigit():
            available = min(available, float(text))
    return available


def libc() -> "tuple[int, ...]":
    """Version of glibc; (0,) on a Linux with another library, as Alpine's musl."""
    try:
        name, version = (os.confstr("CS_GNU_LIBC_VERSION") or "").split()
    except (ValueError, OSError):
        return (0,)
    return tuple(int(part) for part in version.split(".")[:2]) if name == "glibc" else (0,)


def wrong_system() -> "str | None":
    """A reason why PyTorch has no packages for this system, with the remedy; or None."""
    if sys.platform not in ("linux", "darwin"):
        return f"this is {sys.platform}: use Linux, on Windows that of WSL (wsl --install)"
    if platform.machine() not in PROCESSORS:
        return (
            f"PyTorch has no packages for processors of the kind {platform.machine()}: take a "
            f"machine with one of {', '.join(PROCESSORS)}"
        )
    if sys.platform == "linux" and libc() < LEAST_LIBC:
        name = "glibc " + ".".join(map(str, libc())) if libc() > (0,) else "no glibc"
        return (
            f"this Linux has {name}, PyTorch's packages ask for 2.28: use a newer one, or the "
            "container (workflow/container)"
        )
    return None


def uv() -> "str | None":
    """Path of uv, an installer that brings a Python of its own; None if it is not installed."""
    user = subprocess.run(
        [sys.executable, "-m", "site", "--user-base"], stdout=subprocess.PIPE, check=False
    )
    return shutil.which("uv") or shutil.which("uv", path=user.stdout.decode().strip() + "/bin")


def right_python() -> bool:
    """True if that Python is installed."""
    return shutil.which("python" + PYTHON) is not None


def network() -> bool:
    """True if the package index answers at the address that pip is set up with."""
    with tempfile.TemporaryDirectory() as folder:
        command = [
            sys.executable,
            "-m",
            "pip",
            "download",
            "--quiet",
            "--no-deps",
            "--dest",
            folder,
        ]
        command += ["--retries", "0", "--timeout", "8", "--disable-pip-version-check", "six"]
        # Not by capture_output, which the python3 of RHEL 8, 3.6, lacks.
        done = subprocess.run(
            command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, check=False
        )
    # Without pip the index cannot be asked; the installer will report that pip is missing.
    return done.returncode == 0 or b"No module named pip" in done.stdout


def fault(task: str, folder: str = ".") -> "str | None":
    """The first thing that is lacking for ``install`` or ``run``, with its remedy; or None."""
    if not shutil.which("git"):
        return (
            "git is not installed: install it (apt-get install git), each result names its commit"
        )
    if ":" in str(Path(folder).resolve()):
        return (
            f"{Path(folder).resolve()}: a colon divides the folders of PYTHONPATH and PATH: "
            "rename the folder"
        )
    free, needed = shutil.disk_usage(folder).free, LEAST_DISK[task]
    if free < needed:
        return (
            f"{Path(folder).resolve()} has {free / GB:.1f} GB of disk left, {needed / GB:.0f} are "
            "needed: free some, or clone to another disk"
        )
    if memory() < 0.95 * LEAST_MEMORY:
        return (
            f"this machine (or container) has {memory() / GB:.1f} GB of memory, "
            f"{LEAST_MEMORY / GB:.0f} are needed: give it more, or take a larger one"
        )
    if task == "run":
        return None
    wrong = wrong_system()
    if wrong is not None:
        return wrong
    if not uv() and not right_python():
        return (
            f"there is no Python {PYTHON} here: install it (python{PYTHON}, with venv), or uv, "
            "which brings it: python3 -m pip install --user uv"
        )
    if not network():
        return (
            "the package index cannot be reached: connect this machine, or tell pip of a mirror "
            "(pip config set global.index-url ADDRESS)"
        )
    return None


if __name__ == "__main__":
    lacking = fault(sys.argv[1] if len(sys.argv) > 1 else "install")
    if lacking:
        sys.exit("error: " + lacking)
