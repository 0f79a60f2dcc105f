"""One table from tidy results: which rows, which numbers, and what is wrong with them.

A table has one row for every encoder, the two controls last, and for every evaluation the mean over
seeds, with the spread over seeds where there are several and else the 95 % interval of the one. A
table that names a ``published`` one has the rows of that one, each with the number that is
published, the one that a run of the config measured, and their difference
(``evals.report.published``). What must not be averaged or compared is not: ``Table.problems``
lists it, and its cells are marked.
"""

import math
from dataclasses import dataclass, field
from typing import Any

import pandas as pd

from evals.report import published
from evals.report.formats import number
from evals.report.plan import TableSpec
from evals.report.results import CONTROLS, UNITS, differences, external
from ijepa.errors import UserError

SEEDLESS = ["", "released"]
"""The methods of what has no seed of its own: controls, published weights."""


@dataclass(frozen=True)
class Column:
    """One evaluation of a table: its name in the config, its metric ("" if unknown), its title."""

    name: str
    metric: str
    title: str

    @property
    def heading(self) -> str:
        """Title and unit."""
        return f"{self.title}, {UNITS[self.metric]}" if self.metric else self.title


@dataclass(frozen=True)
class Table:
    """One row an encoder: per evaluation mean, and spread or interval.

    Rows stand as the config or the published table names them, or by name with the controls last.

    ``control`` is the encoder over which gains are told, None where the table has no control;
    ``published`` the table of the paper beside which it stands, None where there is none.
    ``problems`` is what a reader must know before believing it; ``marked`` the cells that have one.
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
    """The table of tidy results that ``spec`` asks for.

    What was measured elsewhere is in every table that has its evaluation.
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
            found = of_run[of_run["evaluation"] == column.name]
            dataset = published.dataset_of(column.name) if spec.published is not None else ""
            numbers, faults = _summary(found, column, dataset, _expected(found, results, spec))
            row |= {f"{column.name}{key}": value for key, value in numbers.items()}
            problems += [f"{column.title} of {line['run']}: {fault}" for fault in faults]
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
    """Which rows there are, whether measured or not: run, and what is published of it."""
    measured = [str(run) for run in results["run"].unique()]
    if spec.published is None:
        known = {*measured, *(spec.encoders or [])} - {*CONTROLS}
        named = [*(sorted(known) if spec.runs is None else spec.runs), *elsewhere]
        if spec.runs is None:
            named += [run for run in CONTROLS if run in measured]
        shown = {*measured, *(spec.encoders or [])}
        return [{"run": run} for run in dict.fromkeys(named) if run in shown]
    filled = {row: run for run, row in published.fill(spec.name, spec.published, spec.runs).items()}
    lines = []
    rows = published.rows_of(spec.published)
    for place, (_, row) in enumerate(rows.iterrows()):
        lines.append(
            {
                **{key: row[key] for key in published.IDENTITY},
                "run": filled.get(place, ""),
                "gpu_hours_published": published.gpu_hours(row),
                **{f"{name}_published": row.get(name, math.nan) for name in spec.evaluations},
            }
        )
    for run in dict.fromkeys([*(spec.runs or ()), *elsewhere]):
        if run not in filled.values():
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


def _expected(found: pd.DataFrame, results: pd.DataFrame, spec: TableSpec) -> set[int]:
    """The seeds that a run should have in an evaluation: none for what was not begun."""
    trained = results[~results["method"].isin(SEEDLESS) | (results["run"] == "random_init")]
    if found.empty or found["run"].iloc[0] not in set(trained["run"]):
        return set()
    if external(found).iloc[0]:  # has the seeds that it has
        return set()
    return set(trained["seed"] if spec.seeds is None else spec.seeds)


def _summary(
    found: pd.DataFrame, column: Column, dataset: str, expected: set[int]
) -> tuple[dict[str, float], list[str]]:
    """A cell's numbers by suffix, and what is wrong with it: then it may have none.

    ``dataset`` is the one that the paper has the numbers of, "" where any will do.
    """
    told: dict[str, float] = dict.fromkeys(["", "_low", "_high", "_std", "_n"], math.nan)
    if found.empty:
        return told, []
    faults = []
    for seed, of_seed in found.groupby("seed"):
        values = of_seed["value"]
        if len(of_seed) > 1:
            listed = ", ".join(f"{value:.2f}" for value in values)
            faults.append(f"{len(of_seed)} results of seed {seed} ({listed})")
        for value in values:
            if not math.isfinite(value):
                faults.append(f"seed {seed} is {value}, not a number")
            elif column.metric == "top1" and not 0 <= value <= 100:
                faults.append(f"seed {seed} is {value:g} %, not between 0 and 100")
    for name, what in (
        ("protocol", "protocols"),
        ("data_version", "versions of the data"),
        ("metric", "metrics"),
    ):
        if found[name].nunique() > 1:
            faults.append(f"its seeds are of different {what}")
    if found["metric"].iloc[0] != column.metric:
        faults.append(f"it is {found['metric'].iloc[0]}, the others are {column.metric}")
    if others := {name for name in found["dataset"] if name} - {dataset} if dataset else set():
        faults.append(f"it is on {', '.join(sorted(others))}, the paper's is on {dataset}")
    if not faults:  # else there is no number to be had
        several = len(found) > 1
        told = {
            "": found["value"].mean(),
            "_low": math.nan if several else found["low"].mean(),
            "_high": math.nan if several else found["high"].mean(),
            "_std": found["value"].std() if several else math.nan,
            "_n": found["n"].max(),
        }
    if missing := sorted(expected - set(found["seed"])):
        faults.append(f"seed {', '.join(map(str, missing))} is missing")
    return told, faults


def _same_protocol(
    results: pd.DataFrame, columns: list[Column], spec: TableSpec
) -> tuple[list[str], set[tuple[str, str]]]:
    """What differs within a column but should not, and the cells that differ from most."""
    problems, marked = [], set()
    for column in columns:
        found = results[results["evaluation"] == column.name]
        for name, what in (
            ("protocol", "protocols"),
            ("data_version", "versions of the data"),
            ("dataset", "data sets"),
        ):
            known = found[found[name] != ""]
            if name == "protocol":  # another one by the config's own word
                known = known[~known["run"].isin(spec.differs.get(column.name, []))]
            counts = known[name].value_counts(sort=True)
            if len(counts) < 2:
                continue
            alike = known["run"].map(known.groupby("run")[name].nunique()) == 1
            seeds = known["run"] + " seed " + known["seed"].astype(str)
            named = known.assign(run=known["run"].where(alike, seeds))
            one_of = {
                ", ".join(sorted(of_value["run"].unique())): str(value)
                for value, of_value in named.groupby(name)
            }
            told = (
                differences(one_of)
                if name == "protocol"
                else "; ".join(f"{value} of {runs}" for runs, value in one_of.items())
            )
            problems.append(f"{column.title}: different {what} in one column ({told})")
            odd = known[known[name] != counts.index[0]]
            marked |= {(run, column.name) for run in odd["run"]}
    return problems, marked


def _twins(results: pd.DataFrame) -> list[str]:
    """Encoders that stand there under several names or seeds."""
    networks = results[~results["encoder"].isin(["", "pixels"])]
    problems = []
    for encoder, found in networks.groupby("encoder"):
        names = sorted({f"{run} seed {seed}" for run, seed in found[["run", "seed"]].to_numpy()})
        if len(names) > 1:
            problems.append(f"{', '.join(names)}: the same encoder, {encoder}")
    return problems


def _commits(results: pd.DataFrame) -> list[str]:
    """Whether one code made all results, and whether others can get it."""
    runs: dict[str, set[str]] = {}
    for run, told in results[["run", "commit"]].to_numpy():
        for commit in str(told).split():
            runs.setdefault(commit, set()).add(run)
    problems = []
    if len(runs) > 1:
        listed = "; ".join(f"{name}: {', '.join(sorted(runs[name]))}" for name in sorted(runs))
        problems.append(f"mixed commits: not all rows were made by the same code ({listed})")
    if lost := sorted(commit for commit in runs if commit.endswith("+")):
        problems.append(
            f'uncommitted code: "+" marks a commit that it differed from ({", ".join(lost)})'
        )
    return problems


def _origin(of_run: pd.DataFrame) -> dict[str, Any]:
    """What a row's numbers come from."""
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


def _provenance(results: pd.DataFrame, columns: list[Column]) -> list[str]:
    """What the numbers rest on."""
    if results.empty:
        return ["nothing was measured yet"]
    texts = []
    for dataset, found in results.groupby("dataset"):
        names = [column.title for column in columns if column.name in set(found["evaluation"])]
        counts = " or ".join(f"{n:,.0f}" for n in sorted(found["n"].dropna().unique()))
        versions = ", ".join(sorted(version for version in found["data_version"].unique()))
        told = (
            f"{counts or 'unknown'} images of {str(dataset) or 'unknown data'} {versions}".strip()
        )
        texts.append(f"{', '.join(names)}: n = {told}")
    machines = sorted({machine for machine in results["machine"] if machine})
    return [
        *texts,
        f"{results['seed'].nunique()} seed(s)",
        f"machine {', '.join(machines) or 'unknown'}",
    ]
