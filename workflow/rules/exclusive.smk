# One workflow at a time in a folder.

import fcntl


def hold_folder():
    """Refuse a second workflow in this folder; unlike Snakemake's lock, this one dies with us."""
    global HELD
    HELD = open(".snakemake/running", "w")
    try:
        fcntl.flock(HELD, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise WorkflowError(
            "Another snakemake works in this folder: wait for it, or end it."
        )


def check_cluster():
    """Where jobs go to Slurm: refuse what it will not run, and end what a killed Snakemake left.

    This folder is held, so that no other Snakemake can still wait for jobs of its rules.
    """
    if workflow.executor_plugin.common_settings.local_exec:
        return
    run_module("ijepa.slurm", os.getcwd())
    # What each launcher will ask for, as it will be told.
    for options in {
        job.params.launch
        for job in workflow.dag.needrun_jobs()
        if job.rule.name == "pretrain"
    }:
        run_module("ijepa.launch", "--check", *shlex.split(options))
