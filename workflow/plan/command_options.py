"""Options of commands, from a profile's resources and from the register of data sets."""

import shlex
from typing import Any

from ijepa.data import register
from ijepa.data.addresses import unsigned
from ijepa.files import read_yaml

REQUEST = {
    "slurm_partition": "partition",
    "slurm_account": "account",
    "qos": "qos",
    "constraint": "constraint",
    "slurm_extra": "extra",
    "runtime": "minutes",
    "gpu_model": "gpu-model",
    "mem_mb_per_cpu": "mem-mb-per-cpu",
}
"""Resources of any rule that a profile may set, with their options of ijepa.cluster.launch."""
PRETRAIN = {
    "cluster": "cluster",
    "gpus_per_node": "gpus-per-node",
    "cpus_per_gpu": "cpus-per-gpu",
    "gb_per_gpu": "gb-per-gpu",
    "save_seconds": "save-seconds",
    "poll_seconds": "poll",
    "stage": "stage",
    "setup": "setup",
}
"""Resources of pretraining alone, with theirs."""


def launch_options(gpus: int, resources: Any, threads: int) -> str:
    """The options of ijepa.cluster.launch, from a run's GPUs and the profile's resources."""
    return _options(REQUEST | PRETRAIN, resources, gpus=gpus, threads=threads)


def check_options(resources: Any, threads: int) -> str:
    """Options of ijepa.cluster.launch --check for a job of another rule than pretraining.

    Such a job is one task, whose cores and memory are those of all its GPUs together.
    """
    gpus = resources.get("gpu", 0)
    share = max(1, gpus)
    return _options(
        REQUEST,
        resources,
        minutes=1,  # without a runtime, the partition's default
        gpus=gpus,
        **{
            "save-seconds": 0,
            "gpus-per-node": gpus,
            "cpus-per-gpu": -(-threads // share),
            "gb-per-gpu": -(-resources.get("mem_mb", 0) // (1024 * share)),
        },
    )


def _options(names: dict[str, str], resources: Any, **others: Any) -> str:
    """Values as options; what the profile does not set is left to the launcher's defaults."""
    chosen = {names[key]: resources.get(key) for key in names if resources.get(key) is not None}
    return as_options({**others, **chosen})


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
