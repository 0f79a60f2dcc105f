"""What each run and evaluation cost: ``python -m evals.gpu_hours --help``.

One tidy table, a row for each of a config's jobs and each source that tells of it: ``log``, the
time that processes noted themselves times their GPUs, and ``slurm``, the time that the cluster's
accounting has for the same jobs, every start of a requeued one included (``sacct -D -X``), where it
knows them all and they did nothing else. Failed tries of evaluations are only in the cluster's
accounting, under other numbers, and not here.
"""

import argparse
import json
from collections import Counter
from pathlib import Path
from typing import Any

import pandas as pd

from ijepa import slurm
from ijepa.errors import run_command
from ijepa.files import write_text

COLUMNS = ["rule", "run", "seed", "item", "source", "jobs", "starts", "hours", "gpu_hours"]


def tabulate(results: Path) -> pd.DataFrame:
    """The rows of all jobs of a config's results, by COLUMNS; hours are of the whole job."""
    rows = [
        *(_pretraining(path) for path in sorted(results.glob("runs/*/seed*/job.json"))),
        *(_extraction(path) for path in sorted(results.glob("features/*/seed*/*/about.json"))),
        *(_evaluation(path) for path in sorted(results.glob("evaluations/*/seed*/*.json"))),
    ]
    jobs_of = Counter(job for row in rows for job in row["slurm"])
    known = slurm.gpu_seconds(set(jobs_of))
    told = []
    for row in rows:
        numbers = row.pop("slurm")
        told.append(row)
        # A job that did more, such as a whole workflow, or did not do all of it, tells nothing.
        if numbers and all(jobs_of[number] == 1 and number in known for number in numbers):
            found = [known[number] for number in numbers]
            seconds, gpu_seconds, starts = (sum(values) for values in zip(*found, strict=True))
            told.append(
                row
                | {
                    "source": "slurm",
                    "starts": starts,
                    "hours": seconds / 3600,
                    "gpu_hours": gpu_seconds / 3600,
                }
            )
    return pd.DataFrame(told, columns=COLUMNS)


def _pretraining(path: Path) -> dict[str, Any]:
    told = json.loads(path.read_text(encoding="utf-8"))
    on_slurm = all(job["cluster"] == "slurm" for job in told["jobs"])
    lived = [(one["ended"] - one["begun"], one["gpus"]) for one in told["attempts"]]
    return {
        "rule": "pretrain",
        "run": path.parts[-3],
        "seed": int(path.parts[-2].removeprefix("seed")),
        "item": told["name"],
        "source": "log",
        "jobs": " ".join(job["number"] for job in told["jobs"]),
        "starts": len(lived),
        "hours": sum(seconds for seconds, _ in lived) / 3600,
        "gpu_hours": sum(seconds * gpus for seconds, gpus in lived) / 3600,
        "slurm": [job["number"] for job in told["jobs"]] if on_slurm else [],
    }


def _extraction(path: Path) -> dict[str, Any]:
    told = json.loads(path.read_text(encoding="utf-8"))
    made, seconds = told["features"], told["feature_seconds"]
    gpus = 0 if "core" in made["machine"] else 1
    return _own("extract_features", path.parts[-4], path.parts[-3], path.parts[-2], made) | {
        "hours": seconds / 3600,
        "gpu_hours": seconds * gpus / 3600,
    }


def _evaluation(path: Path) -> dict[str, Any]:
    told = json.loads(path.read_text(encoding="utf-8"))
    return _own("evaluate", path.parts[-3], path.parts[-2], path.stem, told) | {
        "hours": told["seconds"] / 3600,
        "gpu_hours": told["gpu_seconds"] / 3600,
    }


def _own(rule: str, run: str, seed: str, item: str, made: dict[str, Any]) -> dict[str, Any]:
    job = made.get("job")
    return {
        "rule": rule,
        "run": run,
        "seed": int(seed.removeprefix("seed")),
        "item": item,
        "source": "log",
        "jobs": job or "",
        "starts": 1,
        "slurm": [job] if job else [],
    }


def markdown(table: pd.DataFrame) -> str:
    """Hours and GPU-hours of each run, by rule and source, as a table for people."""
    keys = ["run", "rule", "source"]
    total = table.groupby(keys, as_index=False)[["hours", "gpu_hours"]].sum()
    lines = ["| run | rule | source | hours | GPU-hours |", "|---|---|---|---:|---:|"]
    lines += [
        f"| {row.run} | {row.rule} | {row.source} | {row.hours:.3f} | {row.gpu_hours:.3f} |"
        for row in total.itertuples()
    ]
    return "\n".join(lines) + "\n"


def main() -> None:
    """Entry point of the command line."""
    parser = argparse.ArgumentParser(prog="python -m evals.gpu_hours", description=__doc__)
    parser.add_argument("results", type=Path, help="folder of a config's results")
    parser.add_argument("--out", type=Path, required=True, help="CSV file; Markdown beside it")
    options = parser.parse_args()
    table = tabulate(options.results)
    write_text(options.out, table.round(6).to_csv(index=False))
    write_text(options.out.with_suffix(".md"), markdown(table))
    print(markdown(table))


if __name__ == "__main__":
    run_command(main)
