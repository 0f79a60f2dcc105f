"""Published numbers, and the assignment of a config's runs to the rows of published tables.

In ``results/published``, ``paper_tables.csv`` has one line for each number of Assran et al. (CVPR
2023), Tables 1 to 15. ``lejepa_few_shot.csv`` has the few-shot table of LeJEPA's README
(Balestriero and LeCun, arXiv:2511.08544). ``costs.csv`` has the published costs.

If a table of a config has ``published: table1``, its ``runs`` are a mapping: ``{method: mae, arch:
ViT-H/14}`` is the one row of that table with these values, and ``{}`` a row that the paper does not
have.
"""

from functools import cache
from typing import Any

import pandas as pd

from evals.report.plan import Rows
from ijepa.cost.published import published_costs
from ijepa.errors import UserError
from ijepa.files import ROOT

FOLDER = ROOT / "results" / "published"
IDENTITY = ["method", "arch", "epochs", "pretrain_data", "view_augmentations", "note"]
"""Columns that identify a row of a table, as text."""
TABLES = ("paper_tables.csv", "lejepa_few_shot.csv")
DATASETS = {"in1k": "imagenet"} | {
    name: name
    for name in (
        *("cifar100", "places205", "inat18", "clevr"),
        *("dtd", "aircraft", "cars", "cifar10", "flowers102", "food101", "pets"),
    )
}
"""Data sets of the papers' evaluations, by the start of the evaluation's name."""


def published_numbers() -> pd.DataFrame:
    """Every published number: table, IDENTITY, evaluation, metric and value."""
    numbers = pd.concat([_read(name) for name in TABLES], ignore_index=True)
    return numbers.assign(value=numbers["value"].astype(float))


@cache  # read for each row of each table
def _read(name: str) -> pd.DataFrame:
    return pd.read_csv(FOLDER / name, dtype=str, keep_default_na=False)


def costs() -> pd.DataFrame:
    """Every published training time, as text: with hardware, GPU-hours and source."""
    return pd.DataFrame(published_costs())


def file_of(table: str) -> str:
    """Name of the file in ``results/published`` that has a published table."""
    return next(name for name in TABLES if table in set(_read(name)["table"]))


def dataset_of(evaluation: str) -> str:
    """Data set of a published evaluation, its name in the register; "" if it is not published."""
    return DATASETS.get(evaluation.partition("_")[0], "")


def gpu_hours(row: "pd.Series[Any]") -> str:
    """Published GPU-hours of a row's pretraining, with "<" before an upper bound; "" if unknown."""
    keys = ["method", "arch", "epochs"]
    costs_of_row = costs()[(costs()[keys] == row[keys]).all(axis=1) & (costs()["gpu_hours"] != "")]
    # The published costs are of pretraining on ImageNet-1k only.
    if costs_of_row.empty or row["pretrain_data"] != "in1k":
        return ""
    cost = costs_of_row.iloc[0]
    return ("<" if cost["source"].startswith("upper bound") else "") + str(cost["gpu_hours"])


def rows_of(table: str) -> pd.DataFrame:
    """Rows of a published table, in its order: IDENTITY, and a column for each evaluation."""
    numbers = published_numbers()
    if table not in set(numbers["table"]):
        names = ", ".join(numbers["table"].unique())
        raise UserError(f"published: {table!r} is no table of {FOLDER}: it has {names}")
    numbers = numbers[numbers["table"] == table]
    of_row = {}
    for key, group in numbers.groupby(IDENTITY, sort=False):
        of_row[key] = group.set_index("evaluation")["value"].to_dict()
    evaluations = list(numbers["evaluation"].unique())
    return pd.DataFrame(
        [{**dict(zip(IDENTITY, key, strict=True)), **values} for key, values in of_row.items()],
        columns=[*IDENTITY, *evaluations],
    )


def fill(table: str, published: str | None, runs: Rows) -> dict[str, int]:
    """Row number in ``rows_of``, for each run of a config's table that fills a published row.

    Raises UserError unless each run states one row, and each row has one run at most.
    """
    prefix = f"tables.{table}"
    row_of_run = runs if isinstance(runs, dict) else {}
    if published is None:
        if runs_with_row := [run for run, row in row_of_run.items() if row]:
            raise UserError(
                f"{prefix}.runs: {runs_with_row[0]} fills a published row, but of no table: add "
                "published: TABLE, or make runs a list"
            )
        return {}
    if not isinstance(runs, dict) or not runs:
        raise UserError(
            f"{prefix}.runs: say for each run which row of {published} it fills, as in "
            "mae_vith14: {method: mae, arch: ViT-H/14}; {} is a row that the paper does not have"
        )
    try:
        rows = rows_of(published)
    except UserError as error:
        raise UserError(f"{prefix}.{error}") from None
    row_numbers: dict[str, int] = {}
    for run, row in row_of_run.items():
        if not row:
            continue
        if unknown := row.keys() - set(IDENTITY):
            raise UserError(
                f"{prefix}.runs.{run}: {', '.join(sorted(unknown))} is unknown: allowed are "
                f"{', '.join(IDENTITY)}"
            )
        matches = pd.Series(True, index=rows.index)
        for key, value in row.items():
            matches &= rows[key] == str(value)
        if matches.sum() != 1:
            candidates = rows[matches] if matches.any() else rows
            listed = "; ".join(
                ", ".join(filter(None, line)) for line in candidates[IDENTITY].to_numpy()
            )
            raise UserError(
                f"{prefix}.runs.{run}: {row} is {'several rows' if matches.any() else 'no row'} of "
                f"{published}: state one of: {listed}"
            )
        number = int(matches.to_numpy().argmax())
        if others := [name for name, row_number in row_numbers.items() if row_number == number]:
            raise UserError(
                f"{prefix}.runs.{run}: its row, {row}, is filled by {others[0]} already: one row, "
                "one run"
            )
        row_numbers[run] = number
    return row_numbers
