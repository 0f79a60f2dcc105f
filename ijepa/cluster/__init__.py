"""Where a pretraining runs: submission, requeue and records of jobs, on Slurm or this machine."""
