"""Files for ``dvc metrics`` and ``dvc plots``: ``python -m evals.report.metrics --help``.

``metrics.json`` has the mean over seeds by encoder and evaluation, and the hours of the encoder's
pretraining, of all seeds together. ``plots/loss.csv`` has every logged step of every run,
``plots/accuracy.csv`` each accuracy with the hours of pretraining. Hours are wall-clock; GPU-hours
are in tables/gpu_hours.csv.
"""

import argparse
import json
from pathlib import Path
from typing import Any

import pandas as pd

from evals.report.tidy import read_results
from ijepa.errors import program, run_command
from ijepa.files import write_json, write_text


def metrics(tidy: pd.DataFrame) -> dict[str, Any]:
    """Mean over seeds of each evaluation, and hours of pretraining, by encoder."""
    by_encoder: dict[str, Any] = {}
    for run, of_run in tidy.groupby("run"):
        values = {
            str(name): round(float(of_seeds.mean()), 4)
            for name, of_seeds in of_run.groupby("evaluation")["value"]
            if of_seeds.notna().all()  # the tables list values that are no numbers
        }
        hours = of_run.groupby("seed")["train_minutes"].first().sum(skipna=False) / 60
        cost = {} if pd.isna(hours) else {"pretraining_hours": round(float(hours), 4)}
        by_encoder[str(run)] = values | cost
    return by_encoder


def accuracy(tidy: pd.DataFrame) -> pd.DataFrame:
    """Hours of pretraining and value, one row for each encoder, seed and accuracy."""
    rows = tidy[["run", "seed", "evaluation", "metric", "value"]].copy()
    rows.insert(3, "hours", (tidy["train_minutes"] / 60).round(4))
    return rows[rows["metric"] == "top1"].drop(columns="metric")


def losses(logs: list[Path]) -> pd.DataFrame:
    """Rows of every logged step: run, seed, step, images, loss, and the monitors."""
    rows = [
        {"run": log.parts[-3], "seed": log.parts[-2].removeprefix("seed"), **json.loads(line)}
        for log in sorted(logs)
        for line in log.read_text(encoding="utf-8").splitlines()
    ]
    of_step = ["step", "images", "loss", "lr", "grad_norm"]
    monitors = ["feature_std", "rankme", "knn_top1", "linear_top1"]
    return pd.DataFrame(rows, columns=["run", "seed", *of_step, *monitors])


def main() -> None:
    """Entry point of the command line."""
    parser = argparse.ArgumentParser(prog=program("evals.report.metrics"), description=__doc__)
    parser.add_argument("results", type=Path, nargs="*", help="results of evaluations, JSON")
    parser.add_argument("--logs", type=Path, nargs="*", default=[], help="train.jsonl of the runs")
    parser.add_argument("--out", type=Path, required=True, help="folder for metrics.json")
    options = parser.parse_args()
    tidy = read_results(options.results)
    write_json(options.out / "metrics.json", metrics(tidy))
    for name, table in (("loss", losses(options.logs)), ("accuracy", accuracy(tidy))):
        write_text(options.out / "plots" / f"{name}.csv", table.round(6).to_csv(index=False))


if __name__ == "__main__":
    run_command(main)
