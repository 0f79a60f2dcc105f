"""The papers' own numbers, and which run of a config fills which of their rows.

``results/published/paper_tables.csv`` has one line for each number of Assran et al. (CVPR 2023),
Tables 1 to 15; ``costs.csv`` beside it what is told of the cost. A table of a config that
has ``published: table1`` has its ``runs`` as a mapping: ``{method: mae, arch: ViT-H/14}`` is the
one row of that table with these values, and ``{}`` a row that the paper does not have.
"""

from functools import cache
from typing import Any

import pandas as pd

from evals.report.plan import Rows
from ijepa.errors import UserError
from ijepa.files import ROOT

FOLDER = ROOT / "results" / "published"
IDENTITY = ["method", "arch", "epochs", "pretrain_data", "view_augmentations", "note"]
"""What tells one row of a table from another, as text."""
DATASETS = {"in1k": "imagenet"} | {
    name: name for name in ("cifar100", "places205", "inat18", "clevr")
}
"""What the papers evaluated on, by the start of the evaluation's name."""


def published_numbers() -> pd.DataFrame:
    """Every published number: table, IDENTITY, evaluation, metric and value."""
    numbers = _read("paper_tables.csv")
    return numbers.assign(value=numbers["value"].astype(float))


@cache  # asked for each row of each table
def _read(name: str) -> pd.DataFrame:
    return pd.read_csv(FOLDER / name, dtype=str, keep_default_na=False)


def costs() -> pd.DataFrame:
    """Every published training time, as text: method, arch, epochs, hardware, hours, source."""
    return _read("costs.csv")


def dataset_of(evaluation: str) -> str:
    """The data set, by its name in the register, of a published evaluation; "" of another one."""
    return DATASETS.get(evaluation.partition("_")[0], "")


def gpu_hours(row: "pd.Series[Any]") -> str:
    """What is published of the GPU-hours of a row's pretraining, with "<" before a bound, or ""."""
    keys = ["method", "arch", "epochs"]
    known = costs()[(costs()[keys] == row[keys]).all(axis=1) & (costs()["gpu_hours"] != "")]
    if known.empty or row["pretrain_data"] != "in1k":  # the only one that costs are told of
        return ""
    cost = known.iloc[0]
    return ("<" if cost["source"].startswith("upper bound") else "") + str(cost["gpu_hours"])


def rows_of(table: str) -> pd.DataFrame:
    """The rows of a published table in its order: IDENTITY, and a column for each evaluation."""
    numbers = published_numbers()
    if table not in set(numbers["table"]):
        known = ", ".join(numbers["table"].unique())
        raise UserError(
            f"published: {table!r} is none of {FOLDER / 'paper_tables.csv'}: it has {known}"
        )
    numbers = numbers[numbers["table"] == table]
    of_row = {}
    for key, found in numbers.groupby(IDENTITY, sort=False):
        of_row[key] = found.set_index("evaluation")["value"].to_dict()
    evaluations = list(numbers["evaluation"].unique())
    return pd.DataFrame(
        [{**dict(zip(IDENTITY, key, strict=True)), **values} for key, values in of_row.items()],
        columns=[*IDENTITY, *evaluations],
    )


def fill(table: str, published: str | None, runs: Rows) -> dict[str, int]:
    """For each run of a config's table that fills a row, the row's number in ``rows_of``.

    Raises UserError unless each run states one row, and each row has one run at most.
    """
    where = f"tables.{table}"
    stated = runs if isinstance(runs, dict) else {}
    if published is None:
        if named := [run for run, row in stated.items() if row]:
            raise UserError(
                f"{where}.runs: {named[0]} fills a published row, but of no table: add published: "
                "TABLE, or make runs a list"
            )
        return {}
    if not isinstance(runs, dict) or not runs:
        raise UserError(
            f"{where}.runs: say for each run which row of {published} it fills, as in "
            "mae_vith14: {method: mae, arch: ViT-H/14}; {} is a row that the paper does not have"
        )
    try:
        rows = rows_of(published)
    except UserError as error:
        raise UserError(f"{where}.{error}") from None
    filled: dict[str, int] = {}
    for run, row in stated.items():
        if not row:
            continue
        if unknown := row.keys() - set(IDENTITY):
            raise UserError(
                f"{where}.runs.{run}: {', '.join(sorted(unknown))} is unknown: allowed are "
                f"{', '.join(IDENTITY)}"
            )
        same = pd.Series(True, index=rows.index)
        for key, value in row.items():
            same &= rows[key] == str(value)
        if same.sum() != 1:
            those = rows[same] if same.any() else rows
            listed = "; ".join(", ".join(filter(None, line)) for line in those[IDENTITY].to_numpy())
            raise UserError(
                f"{where}.runs.{run}: {row} is {'several rows' if same.any() else 'no row'} of "
                f"{published}: state one of: {listed}"
            )
        number = int(same.to_numpy().argmax())
        if other := [name for name, known in filled.items() if known == number]:
            raise UserError(
                f"{where}.runs.{run}: its row, {row}, is filled by {other[0]} already: one row, "
                "one run"
            )
        filled[run] = number
    return filled
