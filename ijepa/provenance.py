"""Provenance of a number: the commit, the machine, the versions."""

import os
import platform
import subprocess
import sys
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

from ijepa.files import ROOT


@cache
def here() -> dict[str, Any]:
    """Commit of this process (with "+" if files differ from it), machine and versions."""
    return {
        "commit": commit(),
        "machine": machine(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "timm": metadata.version("timm"),
        # The job id, by which the cluster's accounting knows the cost.
        **({"job": os.environ["SLURM_JOB_ID"]} if "SLURM_JOB_ID" in os.environ else {}),
    }


def commit() -> str:
    """Commit of the working tree, with "+" if its code differs; "unknown" without its git.

    Profiles do not count as code: every user sets a cluster's names in them.
    """
    code = ["--", "Snakefile", "ijepa", "evals", "workflow", "requirements.lock"]
    code += [":(exclude)workflow/profiles"]
    try:
        if Path(_git("rev-parse", "--show-toplevel")).resolve() != ROOT.resolve():
            print(
                f"warning: {ROOT} lies unpacked in another repository, its commit unknown: "
                "clone the project to have it",
                file=sys.stderr,
            )
            return "unknown"
        head = _git("rev-parse", "--short=12", "HEAD")
        return head + ("+" if _git("status", "--porcelain", *code) else "")
    except FileNotFoundError:
        return "unknown"
    except subprocess.CalledProcessError as error:
        if "safe.directory" in error.stderr:  # a git before 2.38
            remedy = f"git config --global --add safe.directory {ROOT}"
            print(
                f"warning: {ROOT} is another user's, its commit unknown: {remedy}", file=sys.stderr
            )
        return "unknown"


def machine() -> str:
    """Number and name of the GPUs or, if there are none, of the processor's cores."""
    if torch.cuda.is_available():
        return f"{torch.cuda.device_count()} x {torch.cuda.get_device_name()}"
    info = Path("/proc/cpuinfo")
    lines = info.read_text(encoding="utf-8").splitlines() if info.exists() else []
    models = [line.split(":")[1].strip() for line in lines if line.startswith("model name")]
    name = models[0] if models else platform.processor() or platform.machine()
    cores = torch.get_num_threads()
    return f"{cores} core{'s' if cores > 1 else ''} of {name}"


def _git(*arguments: str) -> str:
    # Git refuses another user's checkout, as a shared or mounted one. Its code runs already.
    command = ["git", "-c", "safe.directory=*", *arguments]
    return subprocess.run(
        command, cwd=ROOT, check=True, capture_output=True, text=True
    ).stdout.strip()
