"""Provenance of a table's numbers: ``python -m evals.report.provenance --help``.

For example, ``python -m evals.report.provenance results/mini/tables/cifar10 mae`` prints for each
cell of the row its result file, config, seed, commits, data version, hash of the encoder, machines,
job ids and GPU-hours.
"""

import argparse
import json
import math
import statistics
from pathlib import Path
from typing import Any

from ijepa.errors import UserError, program, run_command
from ijepa.result_file import read_result


def parser() -> argparse.ArgumentParser:
    """Options of the command line."""
    options = argparse.ArgumentParser(prog=program("evals.report.provenance"), description=__doc__)
    options.add_argument("table", type=Path, help="results/NAME/tables/TABLE")
    options.add_argument("row", help="the encoder's name")
    options.add_argument("--json", action="store_true", help="print JSON, for programs")
    return options


if __name__ == "__main__":
    parser().parse_args()  # answers --help before pandas is imported, which takes a second

import pandas as pd
from rich.console import Console
from rich.table import Table

from evals.report.tidy import external
from ijepa.encoder_file import encoder_digest
from ijepa.files import read_json


def trace(table: Path, row: str) -> list[dict[str, Any]]:
    """Entries of the results behind a row: value, protocol, data, code, machine and cost of each.

    The entry of a result from outside has the columns of its CSV file. Raises UserError for an
    unknown table or row, and for a result that has changed since the table was made.
    """
    path = table.with_suffix(".csv")
    if not path.exists():
        names = ", ".join(sorted(file.stem for file in path.parent.glob("*.md"))) or "none"
        raise UserError(f"{path} does not exist: tables here are {names}")
    cells = pd.read_csv(path, dtype={"run": str})
    if "run" not in cells or row not in set(cells["run"]):
        rows = ", ".join(map(str, cells["run"])) if "run" in cells else "none with results"
        raise UserError(f"{path} has no row {row!r}: there are {rows}")
    table_row = cells[cells["run"] == row].iloc[0]
    tidy = pd.read_csv(path.with_name("tidy.csv"), dtype={"run": str})
    tidy = tidy[(tidy["run"] == row) & tidy["evaluation"].isin(cells.columns)]
    entries: list[dict[str, Any]] = []
    for tidy_row, is_external in zip(tidy.to_dict("records"), external(tidy), strict=True):
        if is_external:  # there are no facts beyond its CSV file
            facts = {str(key): value for key, value in tidy_row.items() if pd.notna(value)}
            entries.append({**facts, "result": facts.pop("source")})
            continue
        name = f"{row}/seed{tidy_row['seed']}/{tidy_row['evaluation']}.json"
        result = entry(path.parents[1], path.parents[1] / "evaluations" / name)
        # tidy.csv has six digits.
        if abs(result["value"] - tidy_row["value"]) > max(1e-3, 1e-5 * abs(result["value"])):
            raise UserError(
                f"{path.with_name('tidy.csv')}: {row}, {tidy_row['evaluation']} is "
                f"{tidy_row['value']}, {result['result']} says {result['value']:.4f}: "
                "make the tables again"
            )
        entries.append(result)
    for name in {result["evaluation"] for result in entries}:
        values = [result["value"] for result in entries if result["evaluation"] == name]
        # A cell with a problem has results but no number: nan, which passes this check.
        if abs(statistics.mean(values) - table_row[name]) > 1e-3:
            raise UserError(
                f"{path}: {row}, {name} is {table_row[name]}, its results give "
                f"{statistics.mean(values):.4f}: make the tables again"
            )
    return entries


def entry(results: Path, file: Path) -> dict[str, Any]:
    """Provenance of one result, by name of the fact."""
    result = read_result(file)
    about, facts = result["about"], result["about"].get("facts", {})
    encoder = next(results.glob(f"*/{file.parts[-3]}/{file.parts[-2]}/encoder.safetensors"), None)
    job = encoder.with_name("job.json") if encoder is not None else None
    jobs = read_json(job)["jobs"] if job is not None and job.exists() else []
    numbers = [str(item["number"]) for item in jobs if item.get("number") is not None]
    if encoder is not None and (digest := encoder_digest(Path(encoder))) != about["encoder"]:
        raise UserError(
            f"{file} is of encoder {about['encoder']}, but {encoder} is {digest}: evaluate it again"
        )
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
        "encoder": about["encoder"] + ("" if encoder is None else f" = {encoder}"),
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
    entries = trace(options.table, options.row)
    if options.json:
        print(json.dumps(entries, indent=1))
        return
    for result in entries:
        table = Table("", f"{options.row}, {result['evaluation']}", show_lines=False)
        for key, value in result.items():
            table.add_row(key, str(value))
        Console().print(table)


if __name__ == "__main__":
    run_command(main)
