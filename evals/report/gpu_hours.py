"""What each run, evaluation and other job cost: ``python -m evals.report.gpu_hours --help``.

One tidy table, a row for each of a config's jobs and each source that tells of it: ``log``, the
time that jobs noted themselves (``ijepa/cluster/note_job.sh``; without a cluster, processes) times
their GPUs; and ``slurm``, the time that the cluster's accounting has for the same jobs, every start
of a requeued one included (``sacct -D -X``), where it knows them all.

Of jobs all tries count, failed ones too; without a cluster those that made a result. Not counted is
what was trained with other settings: it is another run. Rows without a run are of what runs share.
"""

import argparse
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from ijepa.cluster import slurm
from ijepa.cluster.slurm import Start
from ijepa.errors import run_command
from ijepa.files import read_json, write_text

COLUMNS = ["rule", "run", "seed", "item", "source", "jobs", "starts", "hours", "gpu_hours"]
SECONDS_TO_START = 600
"""How much later than Slurm says a job may begin: a node wakes up, or its clock is not right."""
LEAST_SECONDS = 2
"""What ended earlier may be nothing to accounting, which counts whole seconds."""


@dataclass(frozen=True)
class Work:
    """All that was started to make one thing; ``on_slurm`` if all of it was jobs of Slurm."""

    rule: str
    run: str
    seed: int | None
    item: str
    starts: list[Start]
    jobs: list[str]
    on_slurm: bool

    def accounted(self, known: dict[str, list[Start]]) -> list[Start] | None:
        """What accounting has of all its jobs, or None.

        Numbers are given again, and another cluster's mean nothing here: of what a job has noted
        itself, one start at least must have begun when accounting says so, if it has any.
        """
        if not self.on_slurm or not all(job in known for job in self.jobs):
            return None
        for job in self.jobs:
            noted = [start for start in self.starts if start.job == job]
            seen = any(
                abs(one.begun - start.begun) < SECONDS_TO_START
                for one in known[job]
                for start in noted
            )
            at_once = not known[job] and all(start.seconds < LEAST_SECONDS for start in noted)
            if noted and not (seen or at_once):
                return None
        return [start for job in self.jobs for start in known[job]]

    def row(self, source: str, starts: list[Start]) -> dict[str, Any]:
        """By COLUMNS."""
        hours = sum(start.seconds for start in starts) / 3600
        gpu_hours = sum(start.seconds * start.gpus for start in starts) / 3600
        told = [self.rule, self.run, self.seed, self.item, source, " ".join(self.jobs)]
        return dict(zip(COLUMNS, [*told, len(starts), hours, gpu_hours], strict=True))


def tabulate(results: Path, notes: Path) -> pd.DataFrame:
    """The rows of all jobs of a config, by COLUMNS; hours are of the whole job.

    ``results`` is the folder of its results, ``notes`` that of what its jobs noted.
    """
    noted = _noted(notes)
    grouped = [_group(path, noted) for path in sorted(results.glob("features/*/*/*/about.json"))]
    jobs = {job for work in grouped for job in work.jobs}
    evaluations = sorted(results.glob("evaluations/*/*/*.json"))
    works = [
        *(_pretraining(path) for path in sorted(results.glob("runs/*/seed*/job.json"))),
        *grouped,
        *(work for path in evaluations if (work := _evaluation(path, noted, jobs)).starts),
        # What no result names: shards, tokens, and what the config does not ask for any more.
        *(_work(*place, starts) for place, starts in sorted(noted.items())),
    ]
    known = slurm.starts({job for work in works if work.on_slurm for job in work.jobs})
    rows = []
    for work in works:
        rows.append(work.row("log", work.starts))
        # A cluster without gres/gpu in its AccountingStorageTRES counts no GPUs.
        of_slurm, on_gpus = work.accounted(known), any(start.gpus for start in work.starts)
        if of_slurm is not None and (not on_gpus or any(start.gpus for start in of_slurm)):
            rows.append(work.row("slurm", of_slurm))
    return pd.DataFrame(rows, columns=COLUMNS).astype({"seed": "Int64"})


def _noted(notes: Path) -> dict[tuple[str, str], list[Start]]:
    """The starts that jobs have noted, by rule and by the wildcards of what it was to make."""
    noted: dict[tuple[str, str], list[Start]] = {}
    for path in notes.glob("rule_*/**/*.json"):
        rule, _, wildcards = str(path.parent.relative_to(notes)).partition("/")
        start = _start(read_json(path))
        noted.setdefault((rule.removeprefix("rule_"), wildcards), []).append(start)
    return {place: sorted(starts, key=lambda start: start.begun) for place, starts in noted.items()}


def _start(told: dict[str, Any]) -> Start:
    return Start(told["job"], told["begun"], told["ended"] - told["begun"], told["gpus"])


def _pretraining(path: Path) -> Work:
    told = read_json(path)
    submitted = [job["number"] for job in told["jobs"]]
    return Work(
        "pretrain",
        path.parts[-3],
        _seed(path.parts[-2]),
        told["name"],
        [_start(attempt) for attempt in told["attempts"]],
        # A launcher that was killed as it submitted has noted no job; the job itself has.
        list(dict.fromkeys([*submitted, *(attempt["job"] for attempt in told["attempts"])])),
        all(job["cluster"] == "slurm" for job in told["jobs"]),
    )


def _group(path: Path, noted: dict[tuple[str, str], list[Start]]) -> Work:
    """Features and the evaluations that one job made of them."""
    told = read_json(path)
    made, (run, seed, dataset) = told["features"], path.parts[-4:-1]
    seconds, gpus = told["feature_seconds"], 0 if "core" in made["machine"] else 1
    place = ("evaluate_features", f"{run}_{_seed(seed)}_{dataset}")
    starts = _with_own(noted.pop(place, []), made.get("job"), seconds, gpus)
    return _work("evaluate_features", dataset, starts, run, _seed(seed))


def _evaluation(path: Path, noted: dict[tuple[str, str], list[Start]], groups: set[str]) -> Work:
    """An evaluation; of one that a group's job made the time is the group's."""
    told = read_json(path)
    run, seed, name = *path.parts[-3:-1], path.stem
    starts = noted.pop(("evaluate", f"{run}_{_seed(seed)}_{name}"), [])
    if told.get("job") not in groups:
        gpus = int(told["gpu_seconds"] > 0)
        starts = _with_own(starts, told.get("job"), told["seconds"], gpus)
    return _work("evaluate", name, starts, run, _seed(seed))


def _with_own(starts: list[Start], job: str | None, seconds: float, gpus: int) -> list[Start]:
    """Also what the process that made a result says of itself, where its job noted nothing.

    That is a part of its job's time, or of an allocation's in which much else was done.
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
    parser = argparse.ArgumentParser(prog="python -m evals.report.gpu_hours", description=__doc__)
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
