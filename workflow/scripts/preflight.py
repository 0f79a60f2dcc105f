"""Say in one line what this machine lacks, before anything is downloaded.

``python3 workflow/scripts/preflight.py [install|run]`` works with any python3 and needs nothing
installed. ``make setup`` and ``make reproduce`` run it.
"""

import os
import platform
import resource
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from ijepa.cores import usable_memory as memory  # noqa: E402

PYTHON = "3.11"
"""Version that is used without uv: the one that everything here is tested with."""
GB = 10**9
LEAST_DISK = {"install": 12 * GB, "run": 3 * GB}
"""Bytes: the environment takes 6 GB and as much again while it is installed, data and results 1."""
LEAST_CACHE = 6 * GB
"""Bytes of packages that uv downloads before it puts them into the environment."""
LEAST_MEMORY = 4 * GB
LEAST_ADDRESSES = 8 * GB
"""Bytes that PyTorch maps, most of which it never touches."""
LEAST_LIBC = (2, 28)
"""Version of glibc that PyTorch's packages ask for: of RHEL 8, Debian 10, Ubuntu 20.04."""
PROCESSORS = ("x86_64", "aarch64", "arm64")
VERSIONS = ((3, 11), (3, 14))
"""First Python that the packages are for, and the first that they are not for."""


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


def output(*command: str, **more: str) -> "tuple[int, str]":
    """Exit status and all text of a command."""
    # Not by capture_output, which the python3 of RHEL 8, 3.6, lacks.
    done = subprocess.run(
        command,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        env=dict(os.environ, **more),
        check=False,
    )
    return done.returncode, done.stdout.decode(errors="replace")


def right_python() -> bool:
    """True if that Python is installed, with what makes an environment (a package of its own)."""
    python = shutil.which("python" + PYTHON)
    return python is not None and output(python, "-m", "ensurepip", "--version")[0] == 0


def reaches_index(installer: "str | None") -> bool:
    """True if the package index answers where uv, or else pip, is set up to look for it."""
    with tempfile.TemporaryDirectory() as folder:
        wanted = Path(folder) / "wanted.txt"
        wanted.write_text("six\n")
        if installer:
            command = [installer, "pip", "compile", "--quiet", "--no-deps", "--no-cache"]
            command += ["--no-python-downloads", "--python-version", PYTHON, str(wanted)]
        else:
            command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest"]
            command += [folder, "--no-cache-dir", "--retries", "0", "--timeout", "8"]
            command += ["--disable-pip-version-check", "--requirement", str(wanted)]
        status, text = output(*command, UV_HTTP_TIMEOUT="8", UV_HTTP_RETRIES="0")
    # Without pip, or a Python for uv to ask, the index cannot be asked: the installer will say so.
    return status == 0 or "No module named pip" in text or "interpreter" in text.lower()


def environment(folder: Path) -> "str | None":
    """Why the folder's environment cannot be used, with the remedy; None also without one."""
    python = folder / ".venv" / "bin" / "python"
    if not python.parent.exists():
        return None
    code = "import sys; print(*sys.version_info[:2])"
    try:
        status, text = output(str(python), "-c", code)
    except OSError:
        status, text = 1, ""
    if status != 0:
        return f"{python} does not start any more: delete its environment (rm -r .venv)"
    version = tuple(map(int, text.split()))
    if not VERSIONS[0] <= version < VERSIONS[1]:
        return (
            f"{python} is Python {'.'.join(text.split())}, the packages are for 3.11 to 3.13: "
            "delete its environment (rm -r .venv)"
        )
    return None


def full_cache(installer: str, folder: Path) -> "str | None":
    """Reason why uv's downloads do not fit where it keeps them, if that is another disk."""
    status, text = output(installer, "cache", "dir")
    cache = Path(text.strip() if status == 0 else folder).resolve()
    while not cache.exists():
        cache = cache.parent
    free = shutil.disk_usage(str(cache)).free
    if cache.stat().st_dev == folder.stat().st_dev or free >= LEAST_CACHE:
        return None
    return (
        f"{cache}, where uv keeps its downloads, has {free / GB:.1f} GB of disk left, "
        f"{LEAST_CACHE / GB:.0f} are needed: export UV_CACHE_DIR, a folder on a larger disk"
    )


def fault(task: str, folder: str = ".") -> "str | None":
    """The first thing that is lacking for ``install`` or ``run``, with its remedy; or None."""
    return lacks(Path(folder).resolve(), LEAST_DISK[task]) or (
        cannot_install(Path(folder).resolve()) if task == "install" else None
    )


def lacks(folder: Path, disk: int) -> "str | None":
    """The first thing that every command needs and that this machine or folder lacks; or None."""
    if not shutil.which("git"):
        return (
            "git is not installed: install it (apt-get install git), each result names its commit"
        )
    if ":" in str(folder):
        return f"{folder}: a colon divides the folders of PYTHONPATH and PATH: rename the folder"
    if not os.access(str(folder), os.W_OK):
        return f"{folder} cannot be written: clone to a folder of your own, on a writable disk"
    free = shutil.disk_usage(str(folder)).free
    if free < disk:
        return (
            f"{folder} has {free / GB:.1f} GB of disk left, {disk / GB:.0f} are "
            "needed: free some, or clone to another disk"
        )
    if memory() < 0.95 * LEAST_MEMORY:
        return (
            f"this machine (or container, or job) has {memory() / GB:.1f} GB of memory, "
            f"{LEAST_MEMORY / GB:.0f} are needed: give it more, or take a larger one"
        )
    addresses = resource.getrlimit(resource.RLIMIT_AS)[0]
    if 0 <= addresses < LEAST_ADDRESSES:
        return (
            f"ulimit -v allows {addresses / GB:.1f} GB of addresses, of which PyTorch maps "
            f"{LEAST_ADDRESSES / GB:.0f}: ulimit -v unlimited"
        )
    return environment(folder)


def cannot_install(folder: Path) -> "str | None":
    """First need of an installation that this machine lacks, in words; None if it has all."""
    wrong = wrong_system()
    if wrong is not None:
        return wrong
    installer = uv()
    if not installer and not right_python():
        return (
            f"there is no Python {PYTHON} with venv here: install it (apt-get install "
            f"python{PYTHON}-venv), or uv, which brings it: python3 -m pip install --user uv"
        )
    full = full_cache(installer, folder) if installer else None
    if full is not None:
        return full
    if not reaches_index(installer):
        mirror = "uv of a mirror (export UV_DEFAULT_INDEX=ADDRESS)"
        if not installer:
            mirror = "pip of a mirror (pip config set global.index-url ADDRESS)"
        return f"the package index cannot be reached: connect this machine, or tell {mirror}"
    return None


if __name__ == "__main__":
    lacking = fault(sys.argv[1] if len(sys.argv) > 1 else "install")
    if lacking:
        sys.exit("error: " + lacking)
