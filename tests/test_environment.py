"""A clone and its environment are the same everywhere: line ends, pins, the version of Python."""

import re
import shutil
import subprocess
import tomllib
from pathlib import Path

import pytest

from workflow.scripts.conda_environment import environment

ROOT = Path(__file__).parents[1]
LOCK = (ROOT / "requirements.lock").read_text()


def test_the_conda_environment_has_the_pins_of_the_lock() -> None:
    assert (ROOT / "environment.yml").read_text() == environment(LOCK), "run make lock"


def test_the_lock_pins_everything_that_the_project_asks_for() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    requirements = project["dependencies"] + project["optional-dependencies"]["dev"]
    pinned = set(re.findall(r"^([\w.-]+)==", LOCK, re.MULTILINE))
    assert {re.split(r"[><=]", name)[0] for name in requirements} <= pinned


def test_the_lock_names_no_index() -> None:
    assert "://" not in LOCK
    assert "--" not in LOCK


def test_a_clone_by_git_for_windows_has_the_line_ends_of_linux(tmp_path: Path) -> None:
    """A shell under Linux (WSL, a shared folder) reads a script with CRLF as other commands."""
    files = {"Makefile": b"all:\n\ttrue\n", "run": b"#!/bin/sh\n", "a.png": b"\x89PNG\r\n\x1a\n\0"}
    shutil.copy(ROOT / ".gitattributes", tmp_path)
    for name, content in files.items():
        (tmp_path / name).write_bytes(content)

    def git(command: str) -> None:
        windows = ["git", "-c", "core.autocrlf=true", *command.split()]
        subprocess.run(windows, cwd=tmp_path, check=True, capture_output=True)

    git("init -q")
    git("add .")
    for name in files:
        (tmp_path / name).unlink()
    git("checkout -- .")
    assert {name: (tmp_path / name).read_bytes() for name in files} == files


PYTHON = """#!/bin/bash
# A Python whose pip may not install, and whose environments tell which one made them.
case "$*" in
  "-m site"*) echo /nowhere ;;
  "-m pip install --quiet --user uv") exit 1 ;;
  "-m venv"*) mkdir -p .venv/bin; echo "${0##*/}" > .venv/made; cp "$0" .venv/bin/python ;;
esac
"""


@pytest.mark.parametrize("versions", [["3.11", "3.12"], ["3.12", "3.13"]])
def test_without_uv_the_environment_is_made_by_python_3_11_or_by_none(
    versions: list[str], tmp_path: Path
) -> None:
    """The tests have run with 3.11 only."""
    programs = tmp_path / "bin"
    programs.mkdir()
    for name in ("bash", "cp", "ln", "mkdir", "touch"):
        (programs / name).symlink_to(shutil.which(name) or name)
    for name in ("python3", *(f"python{version}" for version in versions)):
        (programs / name).write_text(PYTHON)
        (programs / name).chmod(0o755)
    (tmp_path / "requirements.lock").touch()
    done = subprocess.run(
        [shutil.which("make") or "make", "-f", ROOT / "Makefile", "setup"],
        cwd=tmp_path, env={"PATH": str(programs)}, text=True, capture_output=True, check=False,
    )  # fmt: skip
    made = tmp_path / ".venv" / "made"
    if "3.11" in versions:
        assert (done.returncode, made.read_text()) == (0, "python3.11\n"), done.stderr
    else:
        assert "error: there is neither uv nor Python 3.11 here" in done.stderr
        assert not made.exists()
    assert (tmp_path / ".venv" / "complete").exists() == ("3.11" in versions)
