"""Commands that users type on a cluster, and accidents there: for test_slurm.py and chaos.py."""

import contextlib
import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas as pd
import psutil
import yaml

ROOT = Path(__file__).parents[2]
CLUSTER = Path(__file__).with_name("cluster")


def start(command: list[str], log: Path) -> subprocess.Popen[bytes]:
    """Start a command in a session of its own, as in another terminal."""
    with log.open("ab") as file:
        return subprocess.Popen(
            command,
            cwd=ROOT,
            env={**os.environ, "PYTHONPATH": str(ROOT)},
            stdout=file,
            stderr=file,
            start_new_session=True,
            # A command that a shell starts with "&" ignores Ctrl-C, and so do its children.
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
        )


def workflow(
    folder: Path,
    config: dict[str, Any],
    minutes: int,
    pretrain: dict[str, Any],
    targets: Sequence[str] = (),
    **profile: Any,
) -> list[str]:
    """Command ``snakemake --profile slurm`` in ``folder``; the real profile, edited as by a user.

    ``pretrain`` are that rule's resources, ``profile`` other keys; no job gets more minutes.
    Without ``targets`` all is made.
    """
    edited = yaml.safe_load((ROOT / "slurm" / "config.yaml").read_text())
    edited["default-resources"] |= {"runtime": minutes, "mem_mb": "1000 * attempt"}
    edited["default-resources"]["slurm_extra"] = "'--nice=7'"
    edited["set-resources"]["pretrain"] |= {"cpus_per_gpu": 1, "gb_per_gpu": 2, **pretrain}
    for rule in ("evaluate_features", "evaluate"):
        edited["set-resources"][rule] |= {"runtime": minutes, "mem_mb": "2500 * attempt"}
    for name, content in {"config.yaml": config, "profile/config.yaml": edited | profile}.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(yaml.safe_dump(content))
    command = [sys.executable, "-m", "snakemake", *targets, "--profile", str(folder / "profile")]
    return [*command, "--directory", str(folder), "--configfile", str(folder / "config.yaml")]


def slurm_rows(*command: str) -> list[list[str]]:
    """Rows of a Slurm command's output, whose columns are separated by ``|``."""
    env = {**os.environ, "SLURM_TIME_FORMAT": "%s"}
    done = subprocess.run(command, capture_output=True, text=True, check=True, env=env)
    return [line.split("|") for line in done.stdout.splitlines()]


def starts(job: str) -> pd.DataFrame:
    """Every start of a job that accounting knows, with its begin and its end in seconds."""
    columns = "State,Start,End,ElapsedRaw"
    rows = slurm_rows("sacct", "-D", "-X", "-n", "-P", "-j", job, "-o", columns)
    return pd.DataFrame(rows, columns=columns.split(","))


def gpu_hours(folder: Path) -> float:
    """GPU-hours that the controller has counted for all jobs that were submitted from a folder."""
    columns = "ElapsedRaw,AllocTRES,WorkDir"
    command = ("sacct", "-a", "-D", "-X", "-n", "-P", "-S", "now-3hours", "-o", columns)
    return sum(
        int(elapsed) * int((tres.split("gres/gpu=")[1:] or ["0"])[0].split(",")[0]) / 3600
        for elapsed, tres, work_dir in slurm_rows(*command)
        if Path(work_dir) == folder
    )


def live() -> list[str]:
    """Ids of the jobs that have not ended."""
    return [row[0] for row in slurm_rows("squeue", "-h", "-o", "%A")]


def lose_a_node(node: str) -> None:
    """End a node's daemons and then all that they have started, as a power cut would."""
    for daemons in (True, False):
        for process in psutil.process_iter():
            with contextlib.suppress(psutil.Error, OSError):
                daemon = Path(process.exe()).name.startswith(("slurmd", "slurmstepd"))
                files = [str(fd.readlink()) for fd in Path(f"/proc/{process.pid}/fd").iterdir()]
                marks = [*process.cmdline(), *files, process.environ().get("SLURMD_NODENAME", "")]
                ours = process.environ().get("SLURM_CONF") == os.environ["SLURM_CONF"]
                if ours and daemon == daemons and any(node in mark for mark in marks):
                    process.kill()
