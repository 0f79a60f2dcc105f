"""Environment variables by which other jobs, and a user's defaults, would change a job."""

import os

from ijepa.cluster.slurm import Request

SHADOWS = {
    "SBATCH_PARTITION": "partition",
    "SBATCH_ACCOUNT": "account",
    "SBATCH_QOS": "qos",
    "SBATCH_CONSTRAINT": "constraint",
    **{f"SBATCH_{name}": "gpus" for name in ("GRES", "GPUS", "GPUS_PER_NODE", "GPUS_PER_TASK")},
    **{f"SBATCH_MEM_PER_{name}": "memory" for name in ("CPU", "GPU", "NODE")},
    **{
        f"SBATCH_{name}": "minutes"
        for name in (
            *("TIMELIMIT", "CPUS_PER_GPU", "TRES_PER_TASK", "JOB_NAME", "SIGNAL", "REQUEUE"),
            *("NO_REQUEUE", "OUTPUT", "ERROR", "OPEN_MODE", "ARRAY_INX", "WAIT"),
        )
    },
}
"""Variables that sbatch prefers to the options of a job's script, and the fields of a Request that
decide these options; ``minutes`` stands for what is always decided."""

OF_THE_CLUSTER = ("SLURM_CONF", "SLURM_CONF_SERVER", "SLURM_CLUSTERS", "SLURM_JWT")
"""Variables that do not tell of the job which this process is in."""


def forget_other_jobs(request: Request) -> None:
    """Remove variables that would change a job behind its script's back.

    They are those of a job in which this process runs: its memory would stand beside the new job's,
    which srun refuses. And they are the user's defaults of options that the profile decides.
    """
    for name in sorted(os.environ):
        if name.startswith("SLURM_") and name not in OF_THE_CLUSTER:
            del os.environ[name]
        elif (key := SHADOWS.get(name)) and getattr(request, key):
            print(f"{name} is not used here: the profile decides this option", flush=True)
            del os.environ[name]
