"""What each run, evaluation and other job cost: ``python -m evals.gpu_hours --help``.

One tidy table, a row for each of a config's jobs and each source that tells of it: ``log``, the
time that jobs noted themselves (where there is no cluster, processes) times their GPUs; and
``slurm``, the time that the cluster's accounting has for the same jobs, every start of a requeued
one included (``sacct -D -X``), where it knows them all and they did nothing else. Both have all
tries, failed ones too. Rows without a run are of what runs share, such as tokens.
"""

import argparse
import dataclasses
import json
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from ijepa import slurm
from ijepa.errors import run_command
from ijepa.files import write_text

COLUMNS = ["rule", "run", "seed", "item", "source", "jobs", "starts", "hours", "gpu_hours"]


@dataclass(frozen=True)
class Start:
    """One start of a job, or of a process in none: how many seconds it had how many GPUs."""

    job: str | None
    seconds: float
    gpus: int


@dataclass(frozen=True)
class Work:
    """All that was started to make one thing; ``jobs`` are the numbers, if all of it was jobs."""

    rule: str
    run: str
    seed: int | None
    item: str
    starts: list[Start]
    jobs: list[str]
    on_slurm: bool

    def row(self, source: str, starts: int, seconds: float, gpu_seconds: float) -> dict[str, Any]:
        """By COLUMNS."""
        told = [self.rule, self.run, self.seed, self.item, source, " ".join(self.jobs), starts]
        return dict(zip(COLUMNS, [*told, seconds / 3600, gpu_seconds / 3600], strict=True))


def tabulate(results: Path, notes: Path) -> pd.DataFrame:
    """The rows of all jobs of a config, by COLUMNS; hours are of the whole job.

    ``results`` is the folder of its results, ``notes`` that of workflow/scripts/note_job.sh.
    """
    noted = _noted(notes)
    works = [
        *(_pretraining(path) for path in sorted(results.glob("runs/*/seed*/job.json"))),
        *(_extraction(path, noted) for path in sorted(results.glob("features/*/*/*/about.json"))),
        *(_evaluation(path, noted) for path in sorted(results.glob("evaluations/*/*/*.json"))),
        # What no result names: shards, tokens, and what the config does not ask for any more.
        *(_of_jobs(*place, starts) for place, starts in sorted(noted.items())),
    ]
    times = Counter(job for work in works for job in set(work.jobs) if work.on_slurm)
    known = slurm.gpu_seconds(times)
    rows = []
    for work in works:
        seconds = sum(start.seconds for start in work.starts)
        gpu_seconds = sum(start.seconds * start.gpus for start in work.starts)
        rows.append(work.row("log", len(work.starts), seconds, gpu_seconds))
        # A job that did more, such as a whole workflow, or did not do all of it, tells nothing.
        if work.on_slurm and all(times[job] == 1 and job in known for job in work.jobs):
            found = [known[job] for job in work.jobs]
            seconds, counted, starts = (sum(values) for values in zip(*found, strict=True))
            # A cluster without gres/gpu in its AccountingStorageTRES counts no GPUs.
            if counted or not gpu_seconds:
                rows.append(work.row("slurm", int(starts), seconds, counted))
    return pd.DataFrame(rows, columns=COLUMNS).astype({"seed": "Int64"})


def _noted(notes: Path) -> dict[tuple[str, str], list[Start]]:
    """The starts that jobs have noted, by rule and by the wildcards of what it was to make."""
    noted: dict[tuple[str, str], list[Start]] = {}
    for path in sorted(notes.rglob("*.json"), key=lambda path: path.stat().st_mtime):
        told = json.loads(path.read_text(encoding="utf-8"))
        rule, _, wildcards = str(path.parent.relative_to(notes)).partition("/")
        seconds = path.stat().st_mtime - told["begun"]
        start = Start(told["job"], seconds, told["gpus"])
        noted.setdefault((rule.removeprefix("rule_"), wildcards), []).append(start)
    return noted


def _pretraining(path: Path) -> Work:
    told = json.loads(path.read_text(encoding="utf-8"))
    return Work(
        "pretrain",
        path.parts[-3],
        _seed(path.parts[-2]),
        told["name"],
        [
            Start(each["job"], each["ended"] - each["begun"], each["gpus"])
            for each in told["attempts"]
        ],
        [job["number"] for job in told["jobs"]],
        all(job["cluster"] == "slurm" for job in told["jobs"]),
    )


def _extraction(path: Path, noted: dict[tuple[str, str], list[Start]]) -> Work:
    told = json.loads(path.read_text(encoding="utf-8"))
    made, (run, seed, dataset) = told["features"], path.parts[-4:-1]
    gpus = 0 if "core" in made["machine"] else 1
    starts = (
        noted.pop(("extract_pixels", dataset), [])
        if run == "pixels"
        else noted.pop(("extract_features", f"{run}_{_seed(seed)}_{dataset}"), [])
    )
    own = Start(made.get("job"), told["feature_seconds"], gpus)
    return _of_result("extract_features", run, seed, dataset, starts, own)


def _evaluation(path: Path, noted: dict[tuple[str, str], list[Start]]) -> Work:
    told = json.loads(path.read_text(encoding="utf-8"))
    run, seed, name = *path.parts[-3:-1], path.stem
    starts = noted.pop(("evaluate", f"{run}_{_seed(seed)}_{name}"), [])
    own = Start(told.get("job"), told["seconds"], int(told["gpu_seconds"] > 0))
    return _of_result("evaluate", run, seed, name, starts, own)


def _of_result(rule: str, run: str, seed: str, item: str, starts: list[Start], own: Start) -> Work:
    """``own`` is what the process that made it says, for where its job noted nothing."""
    if own.job is None or own.job not in [start.job for start in starts]:
        starts = [*starts, own]
    work = _of_jobs(rule, item, starts)
    return dataclasses.replace(work, run=run, seed=_seed(seed))


def _of_jobs(rule: str, item: str, starts: list[Start]) -> Work:
    jobs = list(dict.fromkeys(start.job for start in starts if start.job is not None))
    on_slurm = all(start.job is not None for start in starts)
    return Work(rule, "", None, item, starts, jobs, on_slurm)


def _seed(folder: str) -> int:
    return int(folder.removeprefix("seed"))


def markdown(table: pd.DataFrame) -> str:
    """Hours and GPU-hours of each run, by rule and source, as a table for people."""
    keys = ["run", "rule", "source"]
    total = table.groupby(keys, as_index=False)[["hours", "gpu_hours"]].sum()
    lines = ["| run | rule | source | hours | GPU-hours |", "|---|---|---|---:|---:|"]
    lines += [
        f"| {run or '-'} | {rule} | {source} | {hours:.3f} | {gpu_hours:.3f} |"
        for run, rule, source, hours, gpu_hours in total.to_numpy().tolist()
    ]
    return "\n".join(lines) + "\n"


def main() -> None:
    """Entry point of the command line."""
    parser = argparse.ArgumentParser(prog="python -m evals.gpu_hours", description=__doc__)
    parser.add_argument("results", type=Path, help="folder of a config's results")
    parser.add_argument("--notes", type=Path, required=True, help="folder of its jobs' notes")
    parser.add_argument("--out", type=Path, required=True, help="CSV file; Markdown beside it")
    options = parser.parse_args()
    table = tabulate(options.results, options.notes)
    write_text(options.out, table.round(6).to_csv(index=False))
    write_text(options.out.with_suffix(".md"), markdown(table))
    print(markdown(table))


if __name__ == "__main__":
    run_command(main)
