# The config as workflow.plan.grid has it, and what must be brought before the first job.

import os
import subprocess
import sys
from dataclasses import asdict

from ijepa.errors import UserError
from workflow.plan.benchmark import read_benchmark
from workflow.plan.grid import Grid, Group, LAUNCH, as_options, launch_options
from workflow.plan.grid import register_entry

try:
    GRID = Grid(read_benchmark(dict(config)), workflow.cores)
except UserError as error:
    raise WorkflowError(str(error))
RESULTS = GRID.results
THREADS = GRID.threads


def run_module(module, *arguments):
    """The output of a command of this project, or its error as one of Snakemake's."""
    env = {**os.environ, "PYTHONPATH": str(workflow.basedir)}
    command = [sys.executable, "-m", module, *arguments]
    done = subprocess.run(command, env=env, text=True, capture_output=True)
    if done.returncode:
        raise WorkflowError(done.stderr.strip() or f"{module} failed")
    return done.stdout.strip()


MISSING = []
if workflow.is_main_process:
    logger.info(GRID.grouped())
    for path in GRID.forget_incomplete():
        logger.warning(f"{path} is gone: it is made again")
    # Said when a plan is made, and an error before the first job.
    if asked := GRID.missing_raw():
        MISSING += run_module("ijepa.data", "missing", *asked).splitlines()
    if MISSING := [*MISSING, *GRID.missing_weights()]:
        logger.warning("\n".join(["Files that you must bring:", *MISSING]))
