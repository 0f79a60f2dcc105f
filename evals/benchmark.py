"""A whole benchmark's config, checked before its first job, and its outcome, shown after the last.

``python -m evals.benchmark check`` reads the config as YAML from standard input;
``python -m evals.benchmark show FOLDER`` prints the tables of a results folder.
"""

import argparse
import sys
from pathlib import Path
from typing import Any

import yaml
from rich.console import Console
from rich.markdown import Markdown

from evals import load
from ijepa import config
from ijepa.errors import UserError, run_command


def check(benchmark: dict[str, Any]) -> None:
    """Raise UserError unless every run, evaluation and table of the config can be carried out."""
    shared = {key: benchmark[key] for key in ("dataset", "vit")}
    for part in ("runs", "evaluations", "tables"):
        names = [item["name"] for item in benchmark[part]]
        if doubled := sorted({name for name in names if names.count(name) > 1}):
            raise UserError(f"{part}: {', '.join(doubled)} is there twice: one name, one item")
    for run in benchmark["runs"]:
        raw = {key: value for key, value in {**shared, **run}.items() if key != "name"}
        config.parse(raw, f"runs.{run['name']}")
    for evaluation in benchmark["evaluations"]:
        where = f"evaluations.{evaluation['name']}"
        config.strict(load(evaluation["name"]).Config, evaluation.get("config", {}), where)
    known = {evaluation["name"] for evaluation in benchmark["evaluations"]}
    for table in benchmark["tables"]:
        if missing := set(table["evaluations"]) - known:
            raise UserError(
                f"tables.{table['name']}: {', '.join(sorted(missing))} is not among evaluations "
                f"({', '.join(sorted(known))})"
            )


def show(results: Path) -> None:
    """Print every table of a results folder, and where the report lies."""
    console = Console()
    for table in sorted((results / "tables").glob("*.md")):
        console.print(Markdown(table.read_text(encoding="utf-8")))
    console.print(f"\nReport: {results / 'report.html'}", highlight=False)


def main() -> None:
    """Entry point of the command line."""
    parser = argparse.ArgumentParser(prog="python -m evals.benchmark", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("check", help="check a config from standard input")
    commands.add_parser("show", help="print the tables").add_argument("results", type=Path)
    options = parser.parse_args()
    if options.command == "check":
        check(yaml.safe_load(sys.stdin))
    else:
        show(options.results)


if __name__ == "__main__":
    run_command(main)
