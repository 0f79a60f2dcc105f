"""One table from tidy results: its rows, its numbers, and the problems of both.

A table has one row for every encoder, in the config's order, the two controls last, and for every
evaluation the mean over seeds, with the spread over seeds if there are several, otherwise the 95 %
interval of the one. A table that names a ``published`` table has that table's rows, each with the
published number, the number that a run of the config measured, and their difference
(``evals.report.published``). Results that must not be averaged or compared are not:
``Table.problems`` lists them, and their cells are marked.
"""

import math
from dataclasses import dataclass, field
from typing import Any

import pandas as pd

from evals.report import published
from evals.report.formats import number
from evals.report.plan import TableSpec
from evals.report.tidy import CONTROLS, UNITS, differences, external
from ijepa.encoder_file import PIXELS, UNTRAINED
from ijepa.errors import UserError

SEEDLESS = ["", "released"]
"""Methods of encoders without a seed of their own: controls, published weights."""


@dataclass(frozen=True)
class Column:
    """Column of a table: an evaluation's name in the config, metric ("" if unknown) and title."""

    name: str
    metric: str
    title: str

    @property
    def heading(self) -> str:
        """Title and unit."""
        return f"{self.title}, {UNITS[self.metric]}" if self.metric else self.title


@dataclass(frozen=True)
class Table:
    """One row per encoder: for each evaluation the mean, and the spread or the interval.

    Rows have the order of the published table, otherwise the config's with the controls last, or,
    if only results are known, that of their names.

    ``control`` is the encoder over which gains are shown, None if the table has no control.
    ``published`` is the table of the paper that it is compared with, None if there is none.
    ``problems`` are facts that a reader must know before believing the numbers; ``marked`` are the
    cells that have one.
    """

    title: str
    columns: list[Column]
    rows: pd.DataFrame
    control: str | None
    texts: list[str]
    published: str | None = None
    problems: list[str] = field(default_factory=list)
    marked: set[tuple[str, str]] = field(default_factory=set)
    results: pd.DataFrame = field(default_factory=pd.DataFrame)


def tabulate(results: pd.DataFrame, spec: TableSpec) -> Table:
    """Table of tidy results that ``spec`` describes.

    Results that were measured elsewhere are in every table that has their evaluation.
    """
    results = results[results["evaluation"].isin(spec.evaluations)]
    elsewhere = list(results.loc[external(results), "run"].unique())
    if spec.runs is not None:
        results = results[results["run"].isin([*spec.runs, *elsewhere])]
    columns = [_column(name, results, spec) for name in spec.evaluations]
    columns = [column for column in columns if column.metric or spec.encoders is not None]
    lines = _lines(results, spec, elsewhere)
    if not lines:
        raise UserError(f"table {spec.name}: there are no results: run the evaluations first")
    problems, marked = _same_protocol(results, columns, spec)
    rows = []
    for line in lines:
        of_run = results[results["run"] == line["run"]]
        row: dict[str, Any] = {**line, "seeds": of_run["seed"].nunique()}
        for column in columns:
            cell = of_run[of_run["evaluation"] == column.name]
            dataset = published.dataset_of(column.name) if spec.published is not None else ""
            numbers, faults = _summary(cell, column, dataset, _expected(cell, results, spec))
            row |= {f"{column.name}{key}": value for key, value in numbers.items()}
            problems += [f"{column.title} of {line['run']}: {fault}" for fault in faults]
            if (cell["chosen_on"] == "test").any():
                faults.append("a setting was chosen on the test images, as the papers do")
                problems.append(f"{column.title} of {line['run']}: {faults[-1]}")
            marked |= {(line["run"], column.name)} if faults else set()
            if spec.published is not None:
                row[f"{column.name}_difference"] = (
                    row[column.name] - row[f"{column.name}_published"]
                )
        rows.append({**row, **_origin(of_run)})
    problems += [*_twins(results), *_commits(results[~external(results)])]
    table = pd.DataFrame(rows)
    control = next((name for name in CONTROLS if name in set(table["run"])), None)
    return Table(
        spec.title,
        columns,
        table,
        control,
        _provenance(results, columns),
        spec.published,
        problems,
        marked,
        results,
    )


def _column(name: str, results: pd.DataFrame, spec: TableSpec) -> Column:
    metrics = results.loc[results["evaluation"] == name, "metric"]
    metric = (
        str(metrics.mode()[0]) if len(metrics) else "top1" if spec.published is not None else ""
    )
    return Column(name, metric, spec.titles.get(name, name.replace("_", " ")))


def _lines(results: pd.DataFrame, spec: TableSpec, elsewhere: list[str]) -> list[dict[str, Any]]:
    """Rows of the table, measured or not: the run, and the published facts and numbers."""
    measured_runs = [str(run) for run in results["run"].unique()]
    if spec.published is None:
        others = sorted(run for run in measured_runs if run not in CONTROLS)
        encoders = list(dict.fromkeys([*(spec.encoders or []), *others]))
        names = [*(encoders if spec.runs is None else spec.runs), *elsewhere]
        if spec.runs is None:
            names += [run for run in CONTROLS if run in measured_runs]
        runs_to_show = {*measured_runs, *(spec.encoders or [])}
        return [{"run": run} for run in dict.fromkeys(names) if run in runs_to_show]
    run_of_row = {
        row: run for run, row in published.fill(spec.name, spec.published, spec.runs).items()
    }
    lines = []
    rows = published.rows_of(spec.published)
    for index, (_, row) in enumerate(rows.iterrows()):
        lines.append(
            {
                **{key: row[key] for key in published.IDENTITY},
                "run": run_of_row.get(index, ""),
                "gpu_hours_published": published.gpu_hours(row),
                **{f"{name}_published": row.get(name, math.nan) for name in spec.evaluations},
            }
        )
    for run in dict.fromkeys([*(spec.runs or ()), *elsewhere]):
        if run not in run_of_row.values():
            of_run = results[results["run"] == run]
            method, arch = (next(iter(of_run[key]), "") for key in ("method", "arch"))
            lines.append(
                {
                    **dict.fromkeys(published.IDENTITY, ""),
                    **{"method": method or run, "arch": arch, "run": run},
                    "epochs": number(next(iter(of_run["epochs"]), math.nan), "g", ""),
                    "gpu_hours_published": "",
                    **{f"{name}_published": math.nan for name in spec.evaluations},
                }
            )
    return lines


def _expected(cell: pd.DataFrame, results: pd.DataFrame, spec: TableSpec) -> set[int]:
    """Seeds that a run should have in an evaluation; none if it has no result there yet."""
    trained = results[~results["method"].isin(SEEDLESS) | (results["run"] == UNTRAINED)]
    if cell.empty or cell["run"].iloc[0] not in set(trained["run"]):
        return set()
    if external(cell).iloc[0]:  # any number of seeds is right
        return set()
    return set(trained["seed"] if spec.seeds is None else spec.seeds)


def _summary(
    cell: pd.DataFrame, column: Column, dataset: str, expected: set[int]
) -> tuple[dict[str, float], list[str]]:
    """Numbers of a cell, by suffix, and its faults; with faults the numbers may be missing.

    ``dataset`` is the data set of the paper's numbers, "" if any data set is right.
    """
    numbers: dict[str, float] = dict.fromkeys(["", "_low", "_high", "_std", "_n"], math.nan)
    if cell.empty:
        return numbers, []
    faults = []
    for seed, of_seed in cell.groupby("seed"):
        values = of_seed["value"]
        if len(of_seed) > 1:
            listed = ", ".join(f"{value:.2f}" for value in values)
            faults.append(f"{len(of_seed)} results of seed {seed} ({listed})")
        for value in values:
            if not math.isfinite(value):
                faults.append(f"seed {seed} is {value}, not a number")
            elif column.metric == "top1" and not 0 <= value <= 100:
                faults.append(f"seed {seed} is {value:g} %, not between 0 and 100")
    for name, plural in (
        ("protocol", "protocols"),
        ("data_version", "versions of the data"),
        ("metric", "metrics"),
    ):
        if cell[name].nunique() > 1:
            faults.append(f"its seeds are of different {plural}")
    if cell["metric"].iloc[0] != column.metric:
        faults.append(f"it is {cell['metric'].iloc[0]}, the others are {column.metric}")
    if others := {name for name in cell["dataset"] if name} - {dataset} if dataset else set():
        faults.append(f"it is on {', '.join(sorted(others))}, the paper's is on {dataset}")
    if not faults:  # otherwise there is no number to show
        several = len(cell) > 1
        numbers = {
            "": cell["value"].mean(),
            "_low": math.nan if several else cell["low"].mean(),
            "_high": math.nan if several else cell["high"].mean(),
            "_std": cell["value"].std() if several else math.nan,
            "_n": cell["n"].max(),
        }
    if missing := sorted(expected - set(cell["seed"])):
        faults.append(f"seed {', '.join(map(str, missing))} is missing")
    return numbers, faults


def _same_protocol(
    results: pd.DataFrame, columns: list[Column], spec: TableSpec
) -> tuple[list[str], set[tuple[str, str]]]:
    """Problems of columns that mix protocols or data, and the cells that differ from most."""
    problems, marked = [], set()
    for column in columns:
        column_results = results[results["evaluation"] == column.name]
        for name, plural in (
            ("protocol", "protocols"),
            ("data_version", "versions of the data"),
            ("dataset", "data sets"),
        ):
            rows = column_results[column_results[name] != ""]
            if name == "protocol":  # the config itself asks for another one there
                rows = rows[~rows["run"].isin(spec.differs.get(column.name, []))]
            counts = rows[name].value_counts(sort=True)
            if len(counts) < 2:
                continue
            is_consistent = rows["run"].map(rows.groupby("run")[name].nunique()) == 1
            seeds = rows["run"] + " seed " + rows["seed"].astype(str)
            labelled = rows.assign(run=rows["run"].where(is_consistent, seeds))
            value_of_runs = {
                ", ".join(sorted(of_value["run"].unique())): str(value)
                for value, of_value in labelled.groupby(name)
            }
            text = (
                differences(value_of_runs)
                if name == "protocol"
                else "; ".join(f"{value} of {runs}" for runs, value in value_of_runs.items())
            )
            problems.append(f"{column.title}: different {plural} in one column ({text})")
            odd_results = rows[rows[name] != counts.index[0]]
            marked |= {(run, column.name) for run in odd_results["run"]}
    return problems, marked


def _twins(results: pd.DataFrame) -> list[str]:
    """Problems of encoders that appear under several names or seeds."""
    networks = results[~results["encoder"].isin(["", PIXELS])]
    problems = []
    for encoder, group in networks.groupby("encoder"):
        names = sorted({f"{run} seed {seed}" for run, seed in group[["run", "seed"]].to_numpy()})
        if len(names) > 1:
            problems.append(f"{', '.join(names)}: the same encoder, {encoder}")
    return problems


def _commits(results: pd.DataFrame) -> list[str]:
    """Problems of commits: results of different code, or of code that was not committed."""
    runs: dict[str, set[str]] = {}
    for run, commits in results[["run", "commit"]].to_numpy():
        for commit in str(commits).split():
            runs.setdefault(commit, set()).add(run)
    problems = []
    if len(runs) > 1:
        listed = "; ".join(f"{name}: {', '.join(sorted(runs[name]))}" for name in sorted(runs))
        problems.append(f"mixed commits: not all rows were made by the same code ({listed})")
    if uncommitted := sorted(commit for commit in runs if commit.endswith("+")):
        problems.append(
            f'uncommitted code: "+" marks a commit that it differed from ({", ".join(uncommitted)})'
        )
    return problems


def _origin(of_run: pd.DataFrame) -> dict[str, Any]:
    """Provenance and cost of a row's numbers."""
    seeds = of_run.groupby("seed")
    return {
        "images_seen": of_run["images_seen"].max(),
        "tokenizer": next(iter(of_run["tokenizer"]), ""),
        "train_minutes": seeds["train_minutes"].first().mean(),
        "gpu_hours": seeds["gpu_hours"].first().mean(),
        "epochs_here": of_run["epochs"].max(),
        "external": " ".join(sorted(set(of_run.loc[external(of_run), "source"]))),
        **{
            name: " ".join(sorted({value for value in of_run[name] if value}))
            for name in ("data_version", "commit", "machine")
        },
    }


POOLS = {
    "cls": "[cls]",
    "patches": "the average of the patches",
    "cls_patches": "[cls] and the average of the patches",
}


def _pools(results: pd.DataFrame, columns: list[Column]) -> list[str]:
    """Texts on the pooled tokens of each row, one for all columns where they are the same."""
    titles: dict[str, list[str]] = {}
    for column in columns:
        of_column = results[(results["evaluation"] == column.name) & (results["pool"] != "")]
        parts = [
            f"{POOLS.get(str(pool), pool)} ({', '.join(sorted(rows['run'].unique()))})"
            for pool, rows in of_column.groupby("pool")
        ]
        if parts:
            titles.setdefault("; ".join(parts), []).append(column.title)
    return [f"{', '.join(names)}: features are {text}" for text, names in titles.items()]


def _provenance(results: pd.DataFrame, columns: list[Column]) -> list[str]:
    """Texts on the provenance of the table's numbers: images, data, seeds, machines."""
    if results.empty:
        return ["nothing was measured yet"]
    texts = []
    for dataset, group in results.groupby("dataset"):
        names = [column.title for column in columns if column.name in set(group["evaluation"])]
        counts = " or ".join(f"{n:,.0f}" for n in sorted(group["n"].dropna().unique()))
        versions = ", ".join(sorted(version for version in group["data_version"].unique()))
        text = (
            f"{counts or 'unknown'} images of {str(dataset) or 'unknown data'} {versions}".strip()
        )
        texts.append(f"{', '.join(names)}: n = {text}")
    machines = sorted({machine for machine in results["machine"] if machine})
    return [
        *texts,
        *_pools(results, columns),
        f"{results['seed'].nunique()} seed(s)",
        f"machine {', '.join(machines) or 'unknown'}",
    ]
