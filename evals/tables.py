"""Results in, tables out: ``python -m evals.tables write|show``.

Results may be all, some or none of a config's: what is not measured yet is a dash.
"""

import argparse
import json
from pathlib import Path
from typing import Any

from ijepa.errors import run_command


def parser() -> argparse.ArgumentParser:
    """Options of the command line."""
    options = argparse.ArgumentParser(prog="python -m evals.tables", description=__doc__)
    commands = options.add_subparsers(dest="command", required=True)
    shown = commands.add_parser("show", help="print the tables of a results folder")
    shown.add_argument("folder", type=Path, help="for example results/mini")
    writer = commands.add_parser("write", help="write tables from results, all or only some")
    writer.add_argument(
        "results",
        type=Path,
        nargs="*",
        help="results of evaluations, JSON; by default what lies in OUT/../evaluations of the "
        "config's runs, seeds and evaluations",
    )
    writer.add_argument("--config", required=True, help="the config: a file, or its text as JSON")
    writer.add_argument("--gpu-hours", type=Path, help="CSV; by default OUT/gpu_hours.csv")
    writer.add_argument("--out", type=Path, required=True, help="folder for the tables")
    return options


if __name__ == "__main__":
    parser().parse_args()  # --help is answered before pandas is there, which takes a second

import pandas as pd
from rich.console import Console
from rich.markdown import Markdown

from evals import formats
from evals.results import read_external, read_results, to_csv
from evals.shapes import note, view
from evals.tabulate import Table, tabulate
from ijepa.files import read_yaml, write_text


def specs(config: dict[str, Any]) -> list[dict[str, Any]]:
    """The tables of a config, each with what it must know of the rest of the config."""
    evaluations, runs = config["evaluations"], config.get("runs", [])
    about = {
        "titles": {item["name"]: item["title"] for item in evaluations if "title" in item},
        # For whom the config itself asks for another protocol.
        "differs": {item["name"]: sorted(item.get("config_of", {})) for item in evaluations},
        "encoders": [item["name"] for item in [*runs, *config.get("released", [])]],
        "seeds": config["seeds"],
    }
    return [{**about, **table} for table in config["tables"]]


def read(config: dict[str, Any], paths: list[Path], gpu_hours: Path | None) -> pd.DataFrame:
    """Tidy results of a config: its own, of ``paths``, and those that were measured elsewhere."""
    external = read_external([Path(path) for path in config.get("external", [])])
    return pd.concat([read_results(paths, gpu_hours), external], ignore_index=True)


def tables_of(config: dict[str, Any], results: pd.DataFrame) -> dict[str, Table]:
    """Every table of a config, by name."""
    return {spec["name"]: tabulate(results, spec) for spec in specs(config)}


def write(config: dict[str, Any], results: pd.DataFrame, out: Path) -> None:
    """Write every table of a config in every format, and its figure; beside them tidy results."""
    # Not at the top: matplotlib takes a second, and only figures need it.
    from evals import figures

    made = tables_of(config, results)
    for name, table in made.items():
        path = out / f"{name}.csv"
        write_text(path, table.rows.to_csv(index=False, float_format="%.4f"))
        told = (table.title, view(table), note(table), table.problems)
        write_text(path.with_suffix(".md"), formats.markdown(*told))
        write_text(path.with_suffix(".tex"), formats.latex(*told))
        write_text(path.with_suffix(".html"), formats.html(*told))
        write_text(path.with_suffix(".svg"), figures.accuracy(table))
        for problem in table.problems:
            print(f"{name}: {problem}")
    write_text(out / "tidy.csv", to_csv(results))


def read_config(text: str) -> dict[str, Any]:
    """A config, from its file or from its text as JSON."""
    config: dict[str, Any] = json.loads(text) if text.startswith("{") else read_yaml(Path(text))
    return config


def show(folder: Path) -> None:
    """Print every table of a results folder, and where the report lies."""
    console = Console()
    console = Console(width=max(console.width, 110))  # narrower, every cell would break
    for path in sorted((folder / "tables").glob("*.md")):
        console.print(Markdown(path.read_text(encoding="utf-8")))
    console.print(f"\nReport: {folder / 'report.html'}", highlight=False)


def main() -> None:
    """Entry point of the command line."""
    options = parser().parse_args()
    if options.command == "show":
        show(options.folder)
        return
    config = read_config(options.config)
    hours = options.gpu_hours or options.out / "gpu_hours.csv"
    paths = options.results or existing(config, options.out.parent / "evaluations")
    write(config, read(config, paths, hours), options.out)
    print(f"{len(paths)} results; tables in {options.out}")


def existing(config: dict[str, Any], folder: Path) -> list[Path]:
    """Those results of a config that are there."""
    runs = [item["name"] for item in config.get("runs", [])]
    seeds = {run: config["seeds"] for run in [*runs, *(["random_init"] if runs else [])]}
    seeds |= {item["name"]: [0] for item in config.get("released", [])} | {"pixels": [0]}
    wanted = (
        folder / run / f"seed{seed}" / f"{evaluation['name']}.json"
        for run, of_run in seeds.items()
        for seed in of_run
        for evaluation in config["evaluations"]
    )
    return [path for path in wanted if path.exists()]


if __name__ == "__main__":
    run_command(main)
