"""Hours of each run, evaluation and other job: ``python -m evals.report.gpu_hours --help``.

The output is one tidy table with up to two rows for each of a config's jobs, one for each source.
``log`` is the time that jobs noted themselves (``ijepa/cluster/note_job.sh``; without a cluster,
processes) times their GPUs. ``slurm`` is the time of the same jobs in the cluster's accounting,
with every start of a requeued job (``sacct -D -X``), if accounting has all of them.

All tries of jobs count, failed ones too; without a cluster only the processes that made a result.
A training with other settings is another run and does not count. Rows without a run are of work
that runs share.
"""

import argparse
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from evals.about import read_about
from ijepa.cluster import slurm
from ijepa.cluster.slurm import Start
from ijepa.errors import program, run_command
from ijepa.files import read_json, write_text
from ijepa.result_file import read_result

COLUMNS = ["rule", "run", "seed", "item", "source", "jobs", "starts", "hours", "gpu_hours"]
SECONDS_TO_START = 600
"""Largest delay between Slurm's and a job's own start: a node wakes up, or its clock is wrong."""
LEAST_SECONDS = 2
"""A shorter job may be missing in accounting, which counts whole seconds."""


@dataclass(frozen=True)
class Work:
    """All starts that made one thing; ``on_slurm`` if all of them were jobs of Slurm."""

    rule: str
    run: str
    seed: int | None
    item: str
    starts: list[Start]
    jobs: list[str]
    on_slurm: bool

    def accounted(self, accounting: dict[str, list[Start]]) -> list[Start] | None:
        """Starts of all its jobs in accounting, or None if accounting does not have them.

        Slurm reuses job ids, and ids of another cluster mean nothing here. So if a job has noted
        starts itself, at least one of them must have begun when accounting says so.
        """
        if not self.on_slurm or not all(job in accounting for job in self.jobs):
            return None
        for job in self.jobs:
            notes = [start for start in self.starts if start.job == job]
            is_same_job = any(
                abs(recorded.begun - start.begun) < SECONDS_TO_START
                for recorded in accounting[job]
                for start in notes
            )
            too_short = not accounting[job] and all(
                start.seconds < LEAST_SECONDS for start in notes
            )
            if notes and not (is_same_job or too_short):
                return None
        return [start for job in self.jobs for start in accounting[job]]

    def row(self, source: str, starts: list[Start]) -> dict[str, Any]:
        """Row of the table, by COLUMNS."""
        hours = sum(start.seconds for start in starts) / 3600
        gpu_hours = sum(start.seconds * start.gpus for start in starts) / 3600
        values = [self.rule, self.run, self.seed, self.item, source, " ".join(self.jobs)]
        return dict(zip(COLUMNS, [*values, len(starts), hours, gpu_hours], strict=True))


def tabulate(results: Path, notes: Path) -> pd.DataFrame:
    """Table of all jobs of a config, by COLUMNS; hours are of the whole job.

    ``results`` is the folder of its results, ``notes`` the folder of its jobs' notes.
    """
    noted_starts = _noted(notes)
    grouped = [
        _group(path, noted_starts) for path in sorted(results.glob("features/*/*/*/about.json"))
    ]
    jobs = {job for work in grouped for job in work.jobs}
    evaluations = sorted(results.glob("evaluations/*/*/*.json"))
    works = [
        *(_pretraining(path) for path in sorted(results.glob("runs/*/seed*/job.json"))),
        *grouped,
        *(work for path in evaluations if (work := _evaluation(path, noted_starts, jobs)).starts),
        # Work that no result names: shards, tokens, and results that left the config.
        *(_work(*key, starts) for key, starts in sorted(noted_starts.items())),
    ]
    accounting = slurm.starts({job for work in works if work.on_slurm for job in work.jobs})
    rows = []
    for work in works:
        rows.append(work.row("log", work.starts))
        # A cluster without gres/gpu in its AccountingStorageTRES counts no GPUs.
        accounted, on_gpus = work.accounted(accounting), any(start.gpus for start in work.starts)
        if accounted is not None and (not on_gpus or any(start.gpus for start in accounted)):
            rows.append(work.row("slurm", accounted))
    return pd.DataFrame(rows, columns=COLUMNS).astype({"seed": "Int64"})


def _noted(notes: Path) -> dict[tuple[str, str], list[Start]]:
    """Starts that jobs have noted, by rule and by the wildcards of its output."""
    noted_starts: dict[tuple[str, str], list[Start]] = {}
    for path in notes.glob("rule_*/**/*.json"):
        rule, _, wildcards = str(path.parent.relative_to(notes)).partition("/")
        start = _start(read_json(path))
        noted_starts.setdefault((rule.removeprefix("rule_"), wildcards), []).append(start)
    return {
        key: sorted(starts, key=lambda start: start.begun) for key, starts in noted_starts.items()
    }


def _start(note: dict[str, Any]) -> Start:
    return Start(note["job"], note["begun"], note["ended"] - note["begun"], note["gpus"])


def _pretraining(path: Path) -> Work:
    record = read_json(path)
    submitted = [job["number"] for job in record["jobs"]]
    return Work(
        "pretrain",
        path.parts[-3],
        _seed(path.parts[-2]),
        record["name"],
        [_start(attempt) for attempt in record["attempts"]],
        # A launcher that was killed while it submitted noted no job id; the job's own note has it.
        list(dict.fromkeys([*submitted, *(attempt["job"] for attempt in record["attempts"])])),
        all(job["cluster"] == "slurm" for job in record["jobs"]),
    )


def _group(path: Path, noted_starts: dict[tuple[str, str], list[Start]]) -> Work:
    """Work of a job that extracted features and made the evaluations on them."""
    about = read_about(path)
    process, (run, seed, dataset) = about["features"], path.parts[-4:-1]
    seconds, gpus = about["feature_seconds"], _gpus(process["machine"])
    key = ("evaluate_features", f"{run}_{_seed(seed)}_{dataset}")
    starts = _with_own(noted_starts.pop(key, []), process.get("job"), seconds, gpus)
    return _work("evaluate_features", dataset, starts, run, _seed(seed))


def _evaluation(
    path: Path, noted_starts: dict[tuple[str, str], list[Start]], groups: set[str]
) -> Work:
    """Work of an evaluation; it has no starts if a group's job made it: the group has its time."""
    result = read_result(path)
    run, seed, name = *path.parts[-3:-1], path.stem
    starts = noted_starts.pop(("evaluate", f"{run}_{_seed(seed)}_{name}"), [])
    if result.get("job") not in groups:
        gpus = _gpus(result["machine"])
        starts = _with_own(starts, result.get("job"), result["seconds"], gpus)
    return _work("evaluate", name, starts, run, _seed(seed))


def _gpus(machine: str) -> int:
    """GPUs of a process, all that it saw, from its provenance: ``8 x NVIDIA H200``."""
    return 0 if "core" in machine else int(machine.split(" x ")[0])


def _with_own(starts: list[Start], job: str | None, seconds: float, gpus: int) -> list[Start]:
    """Return the starts; adds the process that made a result if its job noted nothing.

    The process's time is a part of its job's, or of an allocation in which much else was done.
    """
    if job is not None and job in [start.job for start in starts]:
        return starts
    return [*starts, Start(None, 0.0, seconds, gpus)]


def _work(
    rule: str, item: str, starts: list[Start], run: str = "", seed: int | None = None
) -> Work:
    jobs = list(dict.fromkeys(start.job for start in starts if start.job is not None))
    on_slurm = all(start.job is not None for start in starts)
    return Work(rule, run, seed, item, starts, jobs, on_slurm)


def _seed(folder: str) -> int:
    return int(folder.removeprefix("seed"))


def markdown(table: pd.DataFrame) -> str:
    """Hours and GPU-hours of each run, by rule and source, as a Markdown table."""
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
    parser = argparse.ArgumentParser(prog=program("evals.report.gpu_hours"), description=__doc__)
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
