"""Imports of commands and jobs: torch takes 3 s and timm 7 s in each of them (2 slow cores)."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from workflow.__main__ import COMMANDS as DOORS

ROOT = Path(__file__).parents[1]


def module_of(path: Path) -> str:
    """Name by which ``python -m`` runs a file."""
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__main__")


COMMANDS = sorted(
    module_of(path)
    for package in ("ijepa", "evals", "workflow")
    for path in (ROOT / package).rglob("*.py")
    if "run_command(main)" in path.read_text(encoding="utf-8")
)

NETWORKS, FIGURES = ["torch", "timm", "sklearn"], ["matplotlib"]
NOT_IMPORTED = {
    # Modules of jobs without a network, and modules that plan jobs or read their results.
    "ijepa.released.download": NETWORKS,
    "ijepa.data.shards": NETWORKS,
    "ijepa.cluster.launch": NETWORKS,
    "ijepa.released.layouts": NETWORKS,
    "ijepa.cluster.slurm": NETWORKS,
    "workflow.plan.audit": NETWORKS,
    "evals.report.compare": NETWORKS,
    "evals.report.gpu_hours": NETWORKS,
    "evals.report.metrics": NETWORKS,
    "evals.report.provenance": NETWORKS,
    "evals.report.reference": NETWORKS,
    "evals.report.tables": NETWORKS + FIGURES,
    "evals.report.figures": NETWORKS,
    "workflow.plan.estimate": NETWORKS,
    "workflow.plan.grid": NETWORKS,
    "workflow.reproduce": NETWORKS,
    # Modules that build no ViT, or not always.
    "workflow.plan.check": ["timm"],
    "evals.protocols.low_shot": ["timm"],
    "ijepa.config": ["timm"],
    "evals.report.page": ["timm"],
    "ijepa.data.tokens": ["timm"],
    "evals.group": ["timm"],
    "evals.run": ["timm"],
}
"""Packages that a module must not import, neither at its top nor through another module."""

HELP = """
import contextlib, runpy, sys
sys.argv = [sys.argv[1], "--help"]
with contextlib.suppress(SystemExit):
    runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)
print(*sorted({"torch", "timm", "sklearn", "matplotlib"} & {*sys.modules}))
"""
IMPORTS = """
import importlib, json, sys
for module, packages in json.loads(sys.argv[1]).items():
    importlib.import_module(module)
    if imported := [package for package in packages if package in sys.modules]:
        sys.exit(f"{module} imports {', '.join(imported)}")
"""


def python(code: str, word: str) -> subprocess.CompletedProcess[str]:
    """Run code with one argument in a fresh interpreter."""
    command = [sys.executable, "-c", code, word]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)


def test_the_one_door_leads_to_every_command() -> None:
    assert sorted(module for module, _ in DOORS.values()) == COMMANDS


def test_usage_names_the_command_as_it_was_called() -> None:
    """``python -m`` is held by the test of each command's help, the one door here."""
    command = [sys.executable, "-m", "workflow", "tables", "--help"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.stdout.startswith("usage: ijepa-bench tables "), done.stderr


@pytest.mark.parametrize("command", COMMANDS)
def test_help_of_a_command_waits_for_no_large_package(command: str) -> None:
    done = python(HELP, command)
    *text, imported = done.stdout.splitlines() or [""]
    assert "".join(text[:1]).startswith(f"usage: python -m {command}"), done.stderr
    assert imported == ""


def test_modules_do_not_import_a_large_package_that_they_do_not_need() -> None:
    """All in one process, in this order: if none of the first has torch, no single one has.

    Over 5 s on a busy machine: it imports the packages that only the last ones may.
    """
    done = python(IMPORTS, json.dumps(NOT_IMPORTED))
    assert done.returncode == 0, done.stderr
