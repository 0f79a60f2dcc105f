"""Preparation of a cluster before a Snakemake's first job there."""

import os
import shlex
import sys
from pathlib import Path
from typing import Any

from snakemake_executor_plugin_slurm.job_status_query import get_min_job_age
from snakemake_executor_plugin_slurm.validation import validate_slurm_extra

from ijepa.cluster.slurm import EVERYTHING
from ijepa.errors import UserError
from ijepa.files import ROOT
from workflow.plan import session
from workflow.plan.command_options import check_options
from workflow.plan.grid import Grid

SECONDS_BETWEEN_CHECKS = 180
"""Longest pause of Snakemake's plugin between two checks of its jobs' states."""


def prepare(workflow: Any, grid: Grid) -> None:
    """Refuse jobs that Slurm will not run, and end the jobs that a killed Snakemake left here.

    Without Slurm it does nothing. The caller holds the folder, so no other Snakemake can still wait
    for jobs of its rules.
    """
    if workflow.executor_plugin.common_settings.local_exec:
        return
    os.environ |= EVERYTHING  # for the plugin's own queries
    session.run_module("ijepa.cluster.slurm", str(Path.cwd()))
    check_job_age(workflow.executor_settings, get_min_job_age())
    settings = workflow.remote_execution_settings
    settings.precommand = " && ".join(filter(None, [first_command(grid), settings.precommand]))
    requests: dict[str, str] = {}
    for job in workflow.dag.needrun_jobs():
        validate_slurm_extra(job)  # the plugin does so only when it submits the job
        if options := slurm_options(job):
            requests.setdefault(options, job.rule.name)
    for options, name in requests.items():
        try:
            session.run_module("ijepa.cluster.launch", "--check", *shlex.split(options))
        except UserError as error:
            raise UserError(f"of {name}: {error}") from None


def check_job_age(settings: Any, age: int | None) -> None:
    """Refuse a controller that forgets a job before the plugin sees that the job has ended.

    The plugin would wait for the job for ever. If the controller forgets jobs even sooner, the
    plugin asks accounting by itself.
    """
    if settings.status_command != "squeue" or age is None:
        return
    if 3 * settings.init_seconds_before_status_checks <= age <= SECONDS_BETWEEN_CHECKS:
        raise UserError(
            f"This cluster forgets a job {age} s after its end (MinJobAge), and is asked as "
            f"seldom as every {SECONDS_BETWEEN_CHECKS} s: let accounting be asked instead, in the "
            "profile: "
            f"slurm-init-seconds-before-status-checks: {age // 3 + 1}"
        )


def first_command(grid: Grid) -> str:
    """Command by which a job notes how long it has its GPUs, and ends older jobs like itself."""
    paths = (ROOT, sys.executable, Path(grid.jobs).absolute(), Path.cwd())
    code, python, notes, folder = (shlex.quote(str(path)) for path in paths)
    again = f"PYTHONPATH={code} {python} -m ijepa.cluster.slurm {folder} --again"
    return f"notes={notes} && . {code}/ijepa/cluster/note_job.sh && {again}"


def slurm_options(job: Any) -> str:
    """A job's request as options of ijepa.cluster.launch; "" if the job stays on this machine."""
    if job.rule.name == "pretrain":
        options: str = job.params.launch  # the options that its launcher gets
        return options
    return "" if job.is_local else check_options(job.resources, job.threads)
