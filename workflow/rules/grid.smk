# The plan of the config (workflow.plan.grid), and the files that the user must bring first.

import getpass
import os
import subprocess
import sys
from dataclasses import asdict

from snakemake.utils import available_cpu_count

from ijepa.cores import usable_cores
from ijepa.errors import UserError
from ijepa.files import read_yaml, writable
from workflow.plan.benchmark import DATASET_NAME, read_benchmark
from workflow.plan.grid import Grid, Group
from workflow.plan.options import LAUNCH, as_options, launch_options, register_entry

# A user may have no name, as by docker run -u; Snakemake asks for one.
try:
    getpass.getuser()
except (KeyError, OSError):
    os.environ.setdefault("LOGNAME", str(os.getuid()))

try:
    # Read once more: Snakemake's reader takes the last of two equal keys.
    for file in workflow.configfiles:
        read_yaml(Path(file))
    # "cores: all" are those of the machine, also in a container with a quota below. A number may
    # be meant for a cluster's nodes, which have nothing to do with this machine, their login node.
    ALL = workflow.cores == available_cpu_count()
    GRID = Grid(read_benchmark(dict(config)), usable_cores() if ALL else workflow.cores)
except UserError as error:
    raise WorkflowError(str(error))
RESULTS = GRID.results
THREADS = GRID.threads


def run_module(module, *arguments):
    """Output of a command of this project; its error becomes one of Snakemake's."""
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-m", module, *arguments]
    done = subprocess.run(command, env=env, text=True, capture_output=True)
    if done.returncode:
        raise WorkflowError(done.stderr.strip() or f"{module} failed")
    return done.stdout.strip()


# Keys of a profile that are names, even if they read as Python.
NAMES = ("slurm_partition", "slurm_account", "qos", "constraint", "gpu_model", "card")


def take_names_as_they_are():
    """Undo Snakemake's evaluation of names: ``all`` is a function for it, ``2024-15`` is 2009.

    A text with a quote, a space or a parenthesis is an expression.
    """
    settings = workflow.resource_settings
    for part in (
        settings._parsed_default_resources,
        *settings._parsed_overwrite_resources.values(),
    ):
        for key in [key for key in NAMES if key in part]:
            text = str(part[key].raw)
            if text in ("True", "False", "None"):
                remedy = (
                    "leave the line out"
                    if text == "None"
                    else f'quote it, as {key}: "on"'
                )
                raise WorkflowError(
                    f"{key} in the profile: YAML takes this word for {text}: {remedy}"
                )
            if not set(text) & set("'\"( "):
                part[key] = text


take_names_as_they_are()


def check_folders():
    """Refuse folders that cannot be written, before hours of training."""
    try:
        for folder in ("results", "data/shards", "logs", "work"):
            writable(Path(folder))
    except UserError as error:
        raise WorkflowError(str(error))


def check_marks():
    """Refuse a folder data/raw/NAME in which ``fetch`` could not leave its mark, as a read-only link."""
    for text in GRID.missing_raw():
        folder = Path("data/raw", text.partition("=")[0])
        if (folder / "fetched").exists():
            continue
        try:
            writable(folder)
        except UserError as error:
            raise WorkflowError(
                f"{error}. If it is a link, remove it and name its target in the config's `raw:`"
            )


MISSING = []
if workflow.is_main_process:
    GRID.write_plan()  # not in onstart, which --no-hooks leaves out
    logger.info(GRID.grouped())
    for path in GRID.forget_incomplete():
        logger.warning(f"{path} is gone: it is made again")
    # A warning while the plan is made; an error before the first job (onstart).
    if folders := GRID.missing_raw():
        MISSING += run_module("ijepa.data", "missing", *folders).splitlines()
    if MISSING := [*MISSING, *GRID.missing_weights()]:
        logger.warning("\n".join(["Files that you must bring:", *MISSING]))
