"""Write one self-contained page of tables and pictures: ``python -m evals.report RESULTS``."""

import argparse
from pathlib import Path

from ijepa.errors import program, run_command


def parser() -> argparse.ArgumentParser:
    """Options of the command line."""
    options = argparse.ArgumentParser(prog=program("evals.report"), description=__doc__)
    options.add_argument("results", type=Path, help="results folder, for example results/mini")
    options.add_argument("--data", type=Path, required=True, help="folder of shards")
    options.add_argument("--plan", type=Path, required=True, help="work/NAME/plan/HASH/tables.yaml")
    options.add_argument("--gpu-hours", type=Path, help="CSV of evals.report.gpu_hours")
    options.add_argument("--predicted", type=Path, help="CSV of workflow.plan.cost")
    options.add_argument("--drawn", type=Path, nargs="*", default=[], help="PNG files to show too")
    options.add_argument("--out", type=Path, required=True, help="file for the page")
    options.add_argument(
        "--chosen", type=Path, nargs="*", required=True, help="results to show, JSON"
    )
    return options


def main() -> None:
    """Entry point of the command line."""
    options = parser().parse_args()
    # Not at the top: torch takes seconds to import, and --help does not need it.
    from evals.report.page import report
    from evals.report.plan import read_plan

    report(
        options.results,
        options.chosen,
        options.data,
        read_plan(options.plan),
        options.out,
        options.gpu_hours,
        options.predicted,
        options.drawn,
    )


if __name__ == "__main__":
    run_command(main)
