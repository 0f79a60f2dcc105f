"""Cost of pretraining, predicted (ijepa.cost), measured and published, and its accuracy."""

import math
from collections.abc import Iterable
from dataclasses import dataclass

import pandas as pd
from matplotlib.ticker import MaxNLocator

from evals.report import published
from evals.report.formats import Cell, Header, View, number
from evals.report.table import Column, Table
from evals.report.tidy import CONTROLS

NOTES = [
    "predicted hours are those of ijepa.cost: FLOPs at a fifth of the card's peak, or, without a "
    "card, at the speed of this machine's matrix product",
    "measured hours are of the run's own clock, on average over seeds, scaled to its images",
    "if the machine is not the one of the profile's predict_cost, their ratio compares two cards",
    "GPU-hours count every start of a job",
]


@dataclass(frozen=True)
class Point:
    """An accuracy (percent) and the cost of the pretraining behind it, in the table's ``unit``.

    ``cost`` is nan if it is not known. It is 0 for controls, although on a cluster their job has a
    cost. ``bound`` is true if the cost is an upper bound. ``half`` is half of the accuracy's
    interval, 0 if there is none.
    """

    run: str
    method: str
    size: str
    value: float
    cost: float
    half: float = 0.0
    bound: bool = False
    published: bool = False


def accuracy_of(table: Table) -> Column | None:
    """Column of the first accuracy of a table, which is shown against costs; None without one."""
    return next((column for column in table.columns if column.metric == "top1"), None)


def unit(table: Table) -> str:
    """Unit of a table's costs: GPU-hours, or minutes if its runs had no GPU."""
    on_gpus = bool(table.published) or bool((table.rows["gpu_hours"] > 0).any())
    return "GPU-hours" if on_gpus else "minutes"


def points(table: Table) -> list[Point]:
    """Published and measured points of the first accuracy of each row."""
    column, all_points = accuracy_of(table), []
    if column is None:
        return []
    name = column.name
    measured_in = "gpu_hours" if unit(table) == "GPU-hours" else "train_minutes"
    for _, row in table.rows.iterrows():
        method = row["method"] if table.published else row["run"]
        size = str(row["arch"]).removeprefix("ViT-") if table.published else ""
        if table.published and not math.isnan(value := row[f"{name}_published"]):
            published_cost = row["gpu_hours_published"]
            cost = float(published_cost.lstrip("<") or "nan")
            all_points.append(
                Point("", method, size, value, cost, 0, published_cost.startswith("<"), True)
            )
        if not math.isnan(value := row[name]):
            half = (row[f"{name}_high"] - row[f"{name}_low"]) / 2
            half = row[f"{name}_std"] if math.isnan(half) else half
            cost = 0.0 if row["run"] in CONTROLS else row[measured_in]
            all_points.append(Point(row["run"], method, size, value, cost, half))
    return all_points


def to_reach(table: Table) -> View | None:
    """Least cost, by method, of a row that reaches an accuracy; a dash if none does.

    Only rows whose cost is known are counted; None if there are none.
    """
    priced = [point for point in points(table) if point.cost > 0]
    if not priced:
        return None
    best = max(point.value for point in priced)
    ticks = MaxNLocator(5, steps=[1, 2, 5, 10]).tick_values(
        min(point.value for point in priced), best
    )
    accuracies = [float(tick) for tick in ticks if 0 <= tick <= best]
    rows = []
    for method in dict.fromkeys(point.method for point in priced):
        row = [Cell(method)]
        for accuracy in accuracies:
            reaching = [
                point for point in priced if point.method == method and point.value >= accuracy
            ]
            if not reaching:
                row.append(Cell("-", "number"))
                continue
            least = min(reaching, key=lambda point: point.cost)
            text = f"{'<' * least.bound}{least.cost:{',.0f' if least.cost >= 100 else '.3g'}}"
            text += f" ({least.size})" if least.size else ""
            row.append(Cell(text, "published" if least.published else "number", least.cost))
        rows.append(row)
    titles = (f"{accuracy:g} %" for accuracy in accuracies)
    return View([*_headers("method"), *_headers(*titles, kind="number")], rows)


def view(predicted: pd.DataFrame, tidy: pd.DataFrame) -> View:
    """Predicted and measured cost of each run of ``predicted``, the CSV of workflow.plan.cost.

    ``tidy`` are tidy results. A run that was not measured has dashes.
    """
    seeds = tidy.drop_duplicates(["run", "seed"])
    compared = bool(predicted["of_reference"].notna().any())
    rows = []
    for _, of_run in predicted.iterrows():
        measured = seeds[seeds["run"] == of_run["run"]]
        seconds = 60 * measured["train_minutes"]
        speed = (measured["images_seen"] / seconds / of_run["gpus"]).mean()
        hours = (seconds / 3600 * of_run["images"] / measured["images_seen"]).mean()
        numbers = [
            (of_run["gflop_per_image"], ",.3g"),
            (of_run["images"], ",.0f"),
            (speed, ",.0f"),
            (of_run["hours"], ",.3g"),
            (hours, ",.3g"),
            (of_run["hours"] / hours, ".2f"),
            (measured["gpu_hours"].mean(), ",.1f"),
            *([(of_run["of_reference"], ".2f")] if compared else []),
        ]
        published_cost = of_run["published"]
        machines = sorted({machine for machine in measured["machine"] if machine})
        rows.append(
            [
                *(Cell(of_run[name]) for name in ("run", "arch")),
                *(Cell(number(value, form), "number", value) for value, form in numbers),
                Cell("-" if pd.isna(published_cost) else published_cost, "published"),
                Cell("; ".join(machines) or "-"),
            ]
        )
    return View(
        [
            *_headers("run", "architecture"),
            *_headers("GFLOP / image", "images", "images/s per device", kind="number"),
            *_headers("hours, predicted", "hours, measured", "ratio", kind="number"),
            *_headers("GPU-hours", kind="number"),
            *_headers(*["predicted, of I-JEPA's ViT-H/14"] * compared, kind="number"),
            *_headers("GPU-hours, published", kind="published"),
            *_headers("machine"),
        ],
        rows,
    )


def of_papers() -> View:
    """Every training time that a paper or a repository states."""
    rows = [
        [
            *(Cell(row[key]) for key in ("method", "arch")),
            *(
                Cell(row[key] or "-", "published", float(row[key] or "nan"))
                for key in ("epochs", "hours", "gpu_hours")
            ),
            *(Cell(row[key]) for key in ("hardware", "source")),
        ]
        for row in published.costs().to_dict("records")
    ]
    return View(
        [
            *_headers("method", "architecture"),
            *_headers("epochs", "hours", "GPU-hours", kind="published"),
            *_headers("hardware", "source"),
        ],
        rows,
    )


def _headers(*titles: str, kind: str = "text") -> Iterable[Header]:
    return (Header(title, kind) for title in titles)
