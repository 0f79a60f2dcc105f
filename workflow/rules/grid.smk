# What the config asks for: asked of workflow.plan.grid, in the words that the rules use.

import os
import shlex
import subprocess
import sys
from pathlib import Path

from workflow.plan.grid import Grid, Group, LAUNCH, as_options, launch_options
from workflow.plan.grid import register_entry

GRID = Grid(config, workflow.cores)
RESULTS = GRID.results
THREADS = GRID.threads


def group_of(wc):
    """The evaluations that one job makes."""
    return Group(wc.run, int(wc.seed), wc.dataset)


def group_subject(wc):
    """The files that a group works on; raw pixels have no encoder."""
    files = {"data": GRID.index(wc.dataset)}
    if encoder := GRID.encoder(wc.run, wc.seed):
        files["encoder"] = encoder
    return files


def subject_of(wc):
    """The files that a single evaluation works on.

    What its outcome depends on is encoder and data. Features that were extracted anew, because they
    were not kept, are the same as before: hence ancient.
    """
    dataset = GRID.evaluations[wc.evaluation]["dataset"]
    files = {"data": GRID.index(dataset), "encoder": GRID.encoder(wc.run, wc.seed)}
    if GRID.uses(wc.run, wc.evaluation) == "both":
        files["features"] = ancient(GRID.features(wc.run, wc.seed, dataset))
    return files


def run_module(module, *arguments, **options):
    """The output of a command of this project, or its error as one of Snakemake's."""
    env = {**os.environ, "PYTHONPATH": str(workflow.basedir)}
    command = [sys.executable, "-m", module, *arguments]
    done = subprocess.run(command, env=env, text=True, capture_output=True, **options)
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
        MISSING += run_module("ijepa.data.shards", "missing", *asked).splitlines()
    MISSING += GRID.missing_weights()
if MISSING:
    MISSING = "\n".join(["Files that you must bring:", *MISSING])
    logger.warning(MISSING)
