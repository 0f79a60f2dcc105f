"""Provenance of a table's numbers: ``python -m evals.report.provenance --help``.

For example ``python -m evals.report.provenance results/mini/tables/cifar10 mae``: from each cell of
the row to its result file, and on to config, seed, commits, data version, hash of the encoder,
machines, job numbers and GPU-hours.
"""

import argparse
import json
import math
import statistics
from pathlib import Path
from typing import Any

from ijepa.errors import UserError, run_command


def parser() -> argparse.ArgumentParser:
    """Options of the command line."""
    options = argparse.ArgumentParser(prog="python -m evals.report.provenance", description=__doc__)
    options.add_argument("table", type=Path, help="results/NAME/tables/TABLE")
    options.add_argument("row", help="the encoder's name")
    options.add_argument("--json", action="store_true", help="for programs")
    return options


if __name__ == "__main__":
    parser().parse_args()  # --help is answered before pandas is there, which takes a second

import pandas as pd
from rich.console import Console
from rich.table import Table

from evals.report.results import external
from ijepa.encoder_file import encoder_digest
from ijepa.files import read_json


def trace(table: Path, row: str) -> list[dict[str, Any]]:
    """One entry for each result behind a row: what was measured, on what, by whom, at what cost.

    Of a result from outside it is what its CSV file tells.
    Raises UserError for an unknown table or row, and for a file that is not what the table was
    made of any more.
    """
    path = table.with_suffix(".csv")
    if not path.exists():
        known = ", ".join(sorted(file.stem for file in path.parent.glob("*.md"))) or "none"
        raise UserError(f"{path} does not exist: tables here are {known}")
    cells = pd.read_csv(path)
    if "run" not in cells or row not in set(cells["run"]):
        rows = ", ".join(map(str, cells["run"])) if "run" in cells else "none with results"
        raise UserError(f"{path} has no row {row!r}: there are {rows}")
    shown = cells[cells["run"] == row].iloc[0]
    tidy = pd.read_csv(path.with_name("tidy.csv"), dtype={"run": str})
    tidy = tidy[(tidy["run"] == row) & tidy["evaluation"].isin(cells.columns)]
    found: list[dict[str, Any]] = []
    for made, elsewhere in zip(tidy.to_dict("records"), external(tidy), strict=True):
        if elsewhere:  # what its file tells is all that there is
            told = {str(key): value for key, value in made.items() if pd.notna(value)}
            found.append({**told, "result": told.pop("source")})
            continue
        name = f"{row}/seed{made['seed']}/{made['evaluation']}.json"
        one = entry(path.parents[1], path.parents[1] / "evaluations" / name)
        if abs(one["value"] - made["value"]) > 1e-3:
            raise UserError(
                f"{path.with_name('tidy.csv')}: {row}, {made['evaluation']} is {made['value']}, "
                f"{one['result']} says {one['value']:.4f}: make the tables again"
            )
        found.append(one)
    for name in {one["evaluation"] for one in found}:
        values = [one["value"] for one in found if one["evaluation"] == name]
        # Of a cell that has a problem there is no number, but there are results.
        if abs(statistics.mean(values) - shown[name]) > 1e-3:
            raise UserError(
                f"{path}: {row}, {name} is {shown[name]}, its results give "
                f"{statistics.mean(values):.4f}: make the tables again"
            )
    return found


def entry(results: Path, file: Path) -> dict[str, Any]:
    """What one result rests on."""
    result = read_json(file)
    about, facts = result["about"], result["about"].get("facts", {})
    made = next(results.glob(f"*/{file.parts[-3]}/{file.parts[-2]}/encoder.safetensors"), None)
    job = made.with_name("job.json") if made is not None else None
    jobs = read_json(job)["jobs"] if job is not None and job.exists() else []
    numbers = [str(one["number"]) for one in jobs if one.get("number") is not None]
    if made is not None and (now := encoder_digest(Path(made))) != about["encoder"]:
        raise UserError(f"{file} is of encoder {about['encoder']}, but {made} is {now}")
    scale = 100 if result["metric"] == "top1" else 1
    return {
        "evaluation": file.stem,
        "value": math.nan if result["value"] is None else scale * result["value"],
        "n": result["n"],
        "result": str(file),
        "seed": file.parts[-2].removeprefix("seed"),
        "protocol": json.dumps(result["protocol"]),
        "data": f"{result['dataset']} {about['data_version']}",
        "commit": result["commit"],
        "machine": result["machine"],
        "GPU-hours of the evaluation": round(result["gpu_seconds"] / 3600, 4),
        "job of the evaluation": result.get("job", "-"),
        "features": f"commit {about['features']['commit']}" if "features" in about else "-",
        "encoder": about["encoder"] + ("" if made is None else f" = {made}"),
        "config of the encoder": json.dumps(about.get("run", {})),
        "commit of the encoder": facts.get("commit", "-"),
        "machine of the encoder": facts.get("machine", "-"),
        "data of the encoder": facts.get("data_version", "-"),
        "hours of the encoder": round(facts.get("train_seconds", 0) / 3600, 4),
        "jobs of the encoder": " ".join(numbers) or "-",
        "all GPU-hours": str(results / "tables" / "gpu_hours.csv"),
    }


def main() -> None:
    """Entry point of the command line."""
    options = parser().parse_args()
    found = trace(options.table, options.row)
    if options.json:
        print(json.dumps(found, indent=1))
        return
    for one in found:
        shown = Table("", f"{options.row}, {one['evaluation']}", show_lines=False)
        for key, value in one.items():
            shown.add_row(key, str(value))
        Console().print(shown)


if __name__ == "__main__":
    run_command(main)
