# One workflow at a time in a folder.

import os
import shlex
import sys

from snakemake_executor_plugin_slurm.job_status_query import get_min_job_age
from snakemake_executor_plugin_slurm.validation import validate_slurm_extra

from ijepa.cluster.slurm import EVERYTHING

# Longest pause of the plugin between two checks of its jobs' states.
SECONDS_BETWEEN_CHECKS = 180


def hold_folder():
    """Refuse a second workflow in this folder."""
    global HELD  # until this process ends
    HELD = session.hold()
    with errors_of_snakemake():
        HELD.__enter__()


def check_cluster():
    """Refuse jobs that Slurm will not run, and end the jobs that a killed Snakemake left there.

    Without Slurm it does nothing. This process holds the folder, so no other Snakemake can still
    wait for jobs of its rules.
    """
    if workflow.executor_plugin.common_settings.local_exec:
        return
    os.environ |= EVERYTHING  # for the plugin's own queries
    with errors_of_snakemake():
        session.run_module("ijepa.cluster.slurm", os.getcwd())
    check_job_age()
    begin_jobs()
    requests = {}
    for job in workflow.dag.needrun_jobs():
        validate_slurm_extra(job)  # the plugin does so only when it submits the job
        if options := slurm_options(job):
            requests.setdefault(options, job.rule.name)
    for options, name in requests.items():
        try:
            session.run_module("ijepa.cluster.launch", "--check", *shlex.split(options))
        except UserError as error:
            raise WorkflowError(f"of {name}: {error}")


def check_job_age():
    """Refuse a controller that forgets a job before the plugin sees that the job has ended.

    The plugin would wait for the job for ever. If the controller forgets jobs even sooner, the
    plugin asks accounting by itself.
    """
    settings, age = workflow.executor_settings, get_min_job_age()
    if settings.status_command != "squeue" or age is None:
        return
    if 3 * settings.init_seconds_before_status_checks <= age <= SECONDS_BETWEEN_CHECKS:
        raise WorkflowError(
            f"This cluster forgets a job {age} s after its end (MinJobAge), and is asked as seldom "
            f"as every {SECONDS_BETWEEN_CHECKS} s: let accounting be asked instead, in the profile: "
            f"slurm-init-seconds-before-status-checks: {age // 3 + 1}"
        )


def begin_jobs():
    """Make every job first note how long it has its GPUs, and end older jobs with the same output."""
    code, python, notes, folder = map(
        shlex.quote,
        (
            str(ROOT),
            sys.executable,
            os.path.abspath(GRID.jobs),
            os.getcwd(),
        ),
    )
    steps = [
        f"notes={notes}",
        f". {code}/ijepa/cluster/note_job.sh",
        f"PYTHONPATH={code} {python} -m ijepa.cluster.slurm {folder} --again",
    ]
    settings = workflow.remote_execution_settings
    settings.precommand = " && ".join(filter(None, [*steps, settings.precommand]))


def slurm_options(job):
    """A job's request as options of ijepa.cluster.launch; "" if the job stays on this machine."""
    if job.rule.name == "pretrain":
        return job.params.launch  # the options that its launcher gets
    return "" if job.is_local else check_options(job.resources, job.threads)
