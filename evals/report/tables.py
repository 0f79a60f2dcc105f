"""Make tables from results, or print them: ``python -m evals.report.tables write|show``.

Some or all results of a config may be missing: a number that is not measured yet is a dash.
"""

import argparse
from pathlib import Path

from ijepa.errors import program, run_command


def parser() -> argparse.ArgumentParser:
    """Options of the command line."""
    options = argparse.ArgumentParser(prog=program("evals.report.tables"), description=__doc__)
    commands = options.add_subparsers(dest="command", required=True)
    show_parser = commands.add_parser("show", help="print the tables of a results folder")
    show_parser.add_argument("folder", type=Path, help="for example results/mini")
    write_parser = commands.add_parser("write", help="write tables from results, all or only some")
    write_parser.add_argument("results", type=Path, nargs="*", help="results of evaluations, JSON")
    write_parser.add_argument(
        "--plan", type=Path, required=True, help="work/NAME/plan/HASH/tables.yaml"
    )
    write_parser.add_argument("--gpu-hours", type=Path, help="CSV; by default OUT/gpu_hours.csv")
    write_parser.add_argument("--out", type=Path, required=True, help="folder for the tables")
    return options


if __name__ == "__main__":
    parser().parse_args()  # answers --help before pandas is imported, which takes a second

import pandas as pd
from rich.console import Console
from rich.markdown import Markdown

from evals.report import formats
from evals.report.plan import ReportPlan, read_plan
from evals.report.table import Table, tabulate
from evals.report.table_view import note, view
from evals.report.tidy import read_external, read_results, to_csv
from ijepa.files import write_text


def tidy_results(plan: ReportPlan, paths: list[Path], gpu_hours: Path | None) -> pd.DataFrame:
    """Tidy results of a plan: its own, from ``paths``, and those measured elsewhere."""
    external = read_external([Path(path) for path in plan.external])
    return pd.concat([read_results(paths, gpu_hours), external], ignore_index=True)


def tables_of(plan: ReportPlan, results: pd.DataFrame) -> dict[str, Table]:
    """Every table of a plan, by name."""
    return {spec.name: tabulate(results, spec) for spec in plan.tables}


def write_tables(plan: ReportPlan, results: pd.DataFrame, out: Path) -> None:
    """Write every table of a plan in every format, its figure, and beside them tidy results."""
    # Not at the top: matplotlib takes a second to import, and only figures need it.
    from evals.report import figures

    tables = tables_of(plan, results)
    for name, table in tables.items():
        path = out / f"{name}.csv"
        write_text(path, table.rows.to_csv(index=False, float_format="%.4f"))
        parts = (table.title, view(table), note(table), table.problems)
        write_text(path.with_suffix(".md"), formats.markdown(*parts))
        write_text(path.with_suffix(".tex"), formats.latex(*parts))
        write_text(path.with_suffix(".html"), formats.html(*parts))
        write_text(path.with_suffix(".svg"), figures.accuracy(table))
        for problem in table.problems:
            print(f"{name}: {problem}")
    write_text(out / "tidy.csv", to_csv(results))


def show(folder: Path) -> None:
    """Print every table of a results folder, and the path of the report."""
    console = Console()
    console = Console(width=max(console.width, 110))  # in a narrower one, every cell would break
    for path in sorted((folder / "tables").glob("*.md")):
        console.print(Markdown(path.read_text(encoding="utf-8")))
    console.print(f"\nReport: {folder / 'report.html'}", highlight=False)


def main() -> None:
    """Entry point of the command line."""
    options = parser().parse_args()
    if options.command == "show":
        show(options.folder)
        return
    plan = read_plan(options.plan)
    hours = options.gpu_hours or options.out / "gpu_hours.csv"
    write_tables(plan, tidy_results(plan, options.results, hours), options.out)
    print(f"{len(options.results)} results; tables in {options.out}")


if __name__ == "__main__":
    run_command(main)
