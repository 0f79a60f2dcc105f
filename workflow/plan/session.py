"""Steps of a Snakemake that plans, beyond the plan itself (workflow.plan.hooks takes them).

Snakemake reads some texts otherwise than users mean them, and it finds out late what it cannot
write. Every function raises UserError, which the hooks turn into an error of Snakemake's.
"""

import getpass
import os
import subprocess
import sys
from collections.abc import Iterable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

from ijepa.errors import UserError
from ijepa.files import ROOT, read_yaml, writable
from ijepa.lock import held
from workflow.plan.benchmark import read_benchmark
from workflow.plan.grid import Grid

NAMES = ("slurm_partition", "slurm_account", "qos", "constraint", "gpu_model", "card")
"""Keys of a profile that are names, even if they read as Python."""


def hold(patience: float = 0) -> AbstractContextManager[None]:
    """Hold this folder against a second workflow; the lock ends with its process.

    Snakemake's own lock stays after a kill. One that is ending is waited for, ``patience`` seconds.
    """
    taken = "another snakemake works in this folder (process {process})"
    return held(Path(".snakemake/running"), taken, patience)


def name_the_user() -> None:
    """Give a user without a name one, as by ``docker run -u``: Snakemake asks for it."""
    try:
        getpass.getuser()
    except (KeyError, OSError):
        os.environ.setdefault("LOGNAME", str(os.getuid()))


def plan(config: dict[str, Any], files: Iterable[str], cores: int) -> Grid:
    """The plan of a config that Snakemake has read from ``files``.

    They are read once more, because Snakemake's reader takes the last of two equal keys.
    """
    for file in files:
        read_yaml(Path(file))
    return Grid(read_benchmark(config), cores)


def take_names_as_they_are(resources: dict[str, Any]) -> None:
    """Undo Snakemake's evaluation of names: ``all`` is a function for it, ``2024-15`` is 2009.

    A text with a quote, a space or a parenthesis is an expression. ``resources`` are those that
    Snakemake has parsed from a profile, and are changed.
    """
    for key in [key for key in NAMES if key in resources]:
        text = str(resources[key].raw)
        if text in ("True", "False", "None"):
            remedy = "leave the line out" if text == "None" else f'quote it, as {key}: "on"'
            raise UserError(f"{key} in the profile: YAML takes this word for {text}: {remedy}")
        if not set(text) & set("'\"( "):
            resources[key] = text


def check_folders(grid: Grid) -> None:
    """Refuse folders that cannot be written, before hours of training.

    ``data/raw/NAME`` needs room for the mark that ``fetch`` leaves there.
    """
    for name in ("results", "data/shards", "logs", "work"):
        writable(Path(name))
    for text in grid.missing_raw():
        mark = Path(Grid.fetched(text.partition("=")[0]))
        if mark.exists():
            continue
        try:
            writable(mark.parent)
        except UserError as error:
            raise UserError(
                f"{error}. If it is a link, remove it and name its target in the config's `raw:`"
            ) from None


def missing_files(grid: Grid) -> list[str]:
    """The files that the user must bring before the first job, a line each."""
    folders = grid.missing_raw()
    raw = run_module("ijepa.data", "missing", *folders).splitlines() if folders else []
    return [*raw, *grid.missing_weights()]


def run_module(module: str, *arguments: str) -> str:
    """Output of a command of this project; its error becomes a UserError."""
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-m", module, *arguments]
    done = subprocess.run(command, env=env, text=True, capture_output=True, check=False)
    if done.returncode:
        raise UserError(done.stderr.strip() or f"{module} failed")
    return done.stdout.strip()
