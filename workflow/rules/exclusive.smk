# One workflow at a time in a folder.

from snakemake_executor_plugin_slurm.job_status_query import get_min_job_age
from snakemake_executor_plugin_slurm.validation import validate_slurm_extra

from ijepa.lock import held

# Of the plugin, between two questions for the states of its jobs, at most.
SECONDS_BETWEEN_CHECKS = 180


def hold_folder():
    """Refuse a second workflow in this folder; unlike Snakemake's lock, this one dies with us."""
    global HELD  # until this process ends
    taken = "another snakemake works in this folder (process {process})"
    HELD = held(Path(".snakemake/running"), taken, patience=0)
    try:
        HELD.__enter__()
    except UserError as error:
        raise WorkflowError(str(error))


def check_cluster():
    """Where jobs go to Slurm: refuse what it will not run, and end what a killed Snakemake left.

    This folder is held, so that no other Snakemake can still wait for jobs of its rules.
    """
    if workflow.executor_plugin.common_settings.local_exec:
        return
    run_module("ijepa.cluster.slurm", os.getcwd())
    check_job_age()
    begin_jobs()
    asked = {}
    for job in workflow.dag.needrun_jobs():
        validate_slurm_extra(job)  # the plugin asks it of a job when it submits it
        if options := asked_of_slurm(job):
            asked.setdefault(options, job.rule.name)
    for options, name in asked.items():
        try:
            run_module("ijepa.cluster.launch", "--check", *shlex.split(options))
        except WorkflowError as error:
            raise WorkflowError(f"of {name}: {error}")


def check_job_age():
    """Refuse where the controller forgets a job before the plugin sees that it has ended.

    It would wait for it for ever. What is forgotten sooner yet it asks accounting for by itself.
    """
    settings, kept = workflow.executor_settings, get_min_job_age()
    if settings.status_command != "squeue" or kept is None:
        return
    if 3 * settings.init_seconds_before_status_checks <= kept <= SECONDS_BETWEEN_CHECKS:
        raise WorkflowError(
            f"This cluster forgets a job {kept} s after its end (MinJobAge), and is asked as seldom "
            f"as every {SECONDS_BETWEEN_CHECKS} s: let accounting be asked instead, in the profile: "
            f"slurm-init-seconds-before-status-checks: {kept // 3 + 1}"
        )


def begin_jobs():
    """Let each job first of all note how long it has its GPUs, and end what makes the same."""
    code, python, notes, folder = map(
        shlex.quote,
        (
            str(workflow.basedir),
            sys.executable,
            os.path.abspath(GRID.jobs),
            os.getcwd(),
        ),
    )
    first = [
        f"notes={notes}",
        f". {code}/ijepa/cluster/note_job.sh",
        f"PYTHONPATH={code} {python} -m ijepa.cluster.slurm {folder} --again",
    ]
    settings = workflow.remote_execution_settings
    settings.precommand = " && ".join(filter(None, [*first, settings.precommand]))


def asked_of_slurm(job):
    """What a job will ask for, as options of ijepa.cluster.launch; "" if it stays on this machine."""
    if job.rule.name == "pretrain":
        return job.params.launch  # as its launcher will be told
    if job.is_local:
        return ""
    asked, gpus = job.resources, job.resources.get("gpu", 0)
    return as_options(
        {
            "partition": asked.get("slurm_partition", ""),
            "account": asked.get("slurm_account", ""),
            "minutes": asked.get("runtime", 1),
            "save-seconds": 0,
            "gpus": gpus,
            "gpus-per-node": gpus,
            "cpus-per-gpu": job.threads,
            "gb-per-gpu": -(-asked.get("mem_mb", 0) // 1024),
        }
    )
