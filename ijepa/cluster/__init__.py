"""Jobs of pretraining, on Slurm or on this machine: submission, requeue and records."""
