"""Options of commands, from a profile's resources and from the register of data sets."""

import shlex
from typing import Any

from ijepa.data import register
from ijepa.data.addresses import unsigned
from ijepa.files import read_yaml

LAUNCH = {
    "cluster": "local",
    "gpus_per_node": 8,
    "cpus_per_gpu": 10,
    "gb_per_gpu": 55,
    "save_seconds": 120,
    "poll_seconds": 10,
    "stage": "",
    "setup": "",
}
"""Resources of pretraining that a profile may set; by default it is a process of this machine."""


def launch_options(gpus: int, resources: Any, threads: int) -> str:
    """The options of ijepa.cluster.launch, from a run's GPUs and the profile's resources."""
    return as_options(
        {
            "cluster": resources.cluster,
            "gpus": gpus,
            "threads": threads,
            "partition": resources.get("slurm_partition", ""),
            "account": resources.get("slurm_account", ""),
            "qos": resources.get("qos", ""),
            "constraint": resources.get("constraint", ""),
            "extra": resources.get("slurm_extra", ""),
            "minutes": resources.get("runtime", 1440),
            "gpus-per-node": resources.gpus_per_node,
            "cpus-per-gpu": resources.cpus_per_gpu,
            "gpu-model": resources.get("gpu_model", ""),
            "gb-per-gpu": resources.gb_per_gpu,
            "mem-mb-per-cpu": resources.get("mem_mb_per_cpu", ""),
            "save-seconds": resources.save_seconds,
            "poll": resources.poll_seconds,
            "stage": resources.stage,
            "setup": resources.setup,
        }
    )


def as_options(values: dict[str, Any]) -> str:
    """Values as a command takes them; an empty one is left out."""
    return " ".join(
        f"--{key}={shlex.quote(str(value))}" for key, value in values.items() if value != ""
    )


def register_entry(dataset: str) -> dict[str, Any]:
    """Keys of a data set's register entry that decide its shards: no titles, no signatures."""
    entry = read_yaml(register.REGISTER).get(dataset, {})
    words = {"title", "citation", "licence", "origins", "max_corrupt"}
    decisive: dict[str, Any] = unsigned({k: v for k, v in entry.items() if k not in words})
    return decisive
