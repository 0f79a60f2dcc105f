"""What users of DVC type, and what befalls them: for the tests of this folder."""

import contextlib
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil

from tests.conftest import eventually

ROOT = Path(__file__).parents[2]
DVC = [sys.executable, "-m", "dvc"]
SETTLE = [sys.executable, "-m", "workflow.scripts.versioned", "settle"]
UNLOCK = [*SETTLE[:-1], "unlock"]
CONFIG = Path("config/tiny.yaml")
PLAN = [sys.executable, "-m", "snakemake", "-n", "--profile", "workflow/profiles/local"]


def run(folder: Path, *command: str) -> str:
    """What a command says; it must succeed."""
    done = attempt(folder, *command)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr


def attempt(folder: Path, *command: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command, cwd=folder, env=environment(), capture_output=True, text=True, check=False
    )


def killed_when(what: Callable[[], Any], folder: Path, *command: str) -> None:
    """A command that is killed once something is true, with all that it has started."""
    quiet = subprocess.DEVNULL
    process = psutil.Popen(command, cwd=folder, env=environment(), stdout=quiet, stderr=quiet)
    try:
        eventually(what, seconds=600, every=0.001)
    finally:
        for one in [*process.children(recursive=True), process]:
            with contextlib.suppress(psutil.NoSuchProcess):
                one.kill()
        process.wait()


def tear_locks(folder: Path) -> None:
    """What a kill of DVC leaves at the wrong moment (seen once in CI)."""
    (folder / ".dvc" / "tmp" / "rwlock").write_text("")


def environment() -> dict[str, str]:
    env = {key: value for key, value in os.environ.items() if key != "IJEPA_REGISTER"}
    path = f"{Path(sys.executable).parent}:{env['PATH']}"
    return env | {"PATH": path, "OMP_NUM_THREADS": "1"}


def commit(folder: Path) -> None:
    run(folder, "git", "add", "-A")
    run(folder, "git", "-c", "user.name=a", "-c", "user.email=a@b", "commit", "-qm", "a commit")


def clone_of(origin: Path, folder: Path) -> Path:
    run(origin, "git", "clone", "-q", str(origin), str(folder))
    return folder


def bring(clone: Path) -> None:
    """Pull a clone's results (``make pull``); then there is nothing to do."""
    run(clone, *UNLOCK)
    run(clone, *DVC, "pull")
    run(clone, *SETTLE)
    assert "Nothing to be done" in run(clone, *PLAN, "--configfile", str(CONFIG))


def finished(said: str) -> list[str]:
    """The rules whose jobs ran, in order."""
    return [line.split("Rule: ")[1].rstrip(")") for line in said.splitlines() if "(Rule: " in line]
