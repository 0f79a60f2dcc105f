"""Commands that users of DVC type, and accidents that happen to them, for this folder's tests."""

import contextlib
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import yaml

from tests.conftest import wait_until

ROOT = Path(__file__).parents[2]
DVC = [sys.executable, "-m", "dvc"]
SETTLE = [sys.executable, "-m", "workflow.scripts.versioned", "settle"]
UNLOCK = [*SETTLE[:-1], "unlock"]
CONFIG = Path("config/tiny.yaml")
LOCAL = Path("workflow/profiles/local")
QUICK = Path("workflow/profiles/quick")
"""The local profile without hooks: each Snakemake would check the config first, which takes 9 s."""
USUAL = ["env", "--unset=IJEPA_PROFILE"]
"""Beginning of a command that uses the local profile itself."""
PLAN = [sys.executable, "-m", "snakemake", "-n", "--profile", str(LOCAL)]


def run(folder: Path, *command: str) -> str:
    """Output of a command that must succeed."""
    process = attempt(folder, *command)
    assert process.returncode == 0, process.stdout + process.stderr
    return process.stdout + process.stderr


def attempt(folder: Path, *command: str) -> subprocess.CompletedProcess[str]:
    """Result of a command that may fail."""
    return subprocess.run(
        command, cwd=folder, env=environment(), capture_output=True, text=True, check=False
    )


def killed_when(condition: Callable[[], Any], folder: Path, *command: str) -> None:
    """Kill a command with all processes that it has started, once a condition is true."""
    quiet = subprocess.DEVNULL
    process = psutil.Popen(command, cwd=folder, env=environment(), stdout=quiet, stderr=quiet)
    try:
        wait_until(lambda: condition() or process.poll() is not None, seconds=600, every=0.001)
        assert process.poll() is None, f"{command} ended before it could be killed"
    finally:
        for victim in [*process.children(recursive=True), process]:
            with contextlib.suppress(psutil.NoSuchProcess):
                victim.kill()
        process.wait()


def tear_locks(folder: Path) -> None:
    """Leave an empty file of locks, as a kill of DVC at the wrong moment does (seen once in CI)."""
    (folder / ".dvc" / "tmp" / "rwlock").write_text("")


def environment() -> dict[str, str]:
    """Environment of all commands: this Python first, one thread each, the quick profile."""
    env = {key: value for key, value in os.environ.items() if key != "IJEPA_REGISTER"}
    path = f"{Path(sys.executable).parent}:{env['PATH']}"
    return env | {"PATH": path, "OMP_NUM_THREADS": "1", "IJEPA_PROFILE": str(QUICK)}


def commit(folder: Path) -> None:
    """Commit everything that git does not ignore."""
    run(folder, "git", "add", "-A")
    run(folder, "git", "-c", "user.name=a", "-c", "user.email=a@b", "commit", "-qm", "a commit")


def clone_of(origin: Path, folder: Path, address: str) -> Path:
    """A clone of a repository, with the address of its remote storage."""
    run(origin, "git", "clone", "-q", str(origin), str(folder))
    set_address(folder, address)
    return folder


def set_address(folder: Path, address: str) -> None:
    """Tell a repository where its remote storage is (``dvc remote modify --local``)."""
    (folder / ".dvc" / "config.local").write_text(f"['remote \"store\"']\n    url = {address}\n")


def pull_and_settle(clone: Path) -> None:
    """Pull a clone's results (``make pull``); then there is nothing to do."""
    run(clone, *UNLOCK)
    run(clone, *DVC, "pull")
    run(clone, *SETTLE)
    assert "Nothing to be done" in run(clone, *PLAN, "--configfile", str(CONFIG))


def change_evaluation(clone: Path) -> None:
    """Ask for other settings of one evaluation."""
    config = yaml.safe_load((clone / CONFIG).read_text())
    assert config["evaluations"][0] == {"name": "knn", "config": {"num_neighbours": 5}}
    config["evaluations"][0]["config"]["num_neighbours"] = 7
    (clone / CONFIG).write_text(yaml.safe_dump(config, sort_keys=False))


def finished(output: str) -> list[str]:
    """Rules whose jobs ran, in order."""
    return [
        line.split("Rule: ")[1].rstrip(")") for line in output.splitlines() if "(Rule: " in line
    ]


def different_files(first: Path, other: Path, folder: str) -> set[str]:
    """Paths in a folder of two repositories where a file is not byte for byte the same in both."""
    contents = [
        {str(path.relative_to(top)): path.read_bytes() for path in top.rglob("*") if path.is_file()}
        for top in (first / folder, other / folder)
    ]
    paths = contents[0].keys() | contents[1].keys()
    return {path for path in paths if contents[0].get(path) != contents[1].get(path)}


@contextlib.contextmanager
def disk(kind: str, folder: Path) -> Iterator[str]:
    """Mount XFS, whose files share blocks, or 8 MB that fill up; yields why it cannot be done."""
    if kind == "xfs":
        image = folder.with_suffix(".img")
        with image.open("wb") as file:
            file.truncate(400_000_000)
        make = f"mkfs.xfs -q -m reflink=1 {image} && mount -o loop {image} {folder}"
    else:
        make = f"mount -t tmpfs -o size=8m none {folder}"
    made = subprocess.run(make, shell=True, capture_output=True, text=True, check=False)
    if made.returncode != 0:
        yield f"no file system can be mounted here (root, xfsprogs): {made.stderr.strip()}"
        return
    try:
        yield ""
    finally:
        subprocess.run(["umount", "--lazy", folder], check=True)


@contextlib.contextmanager
def full(folder: Path, room: int = 0) -> Iterator[None]:
    """Fill a disk with one file, but for so many bytes; then delete the file."""
    filler = folder / "filler"
    with contextlib.suppress(OSError), filler.open("wb", buffering=0) as file:
        while True:
            file.write(bytes(4096))
    os.truncate(filler, filler.stat().st_size - room)
    yield
    filler.unlink()
