"""What pretraining cost: predicted by ijepa.cost, measured, and published."""

from collections.abc import Iterable

import pandas as pd

from evals import published
from evals.formats import Cell, Header, View, number

NOTE = (
    "Predicted hours are those of ijepa.cost: of FLOPs at a fifth of the card's peak, or without a "
    "card of a few timed steps on this machine; measured ones are of the run's own clock, on "
    "average over seeds, scaled to its images. GPU-hours are of every start of a job."
)


def view(predicted: pd.DataFrame, tidy: pd.DataFrame) -> View:
    """A row for each run that ``predicted``, the CSV of ijepa.cost, has: its cost both ways.

    ``tidy`` are results. What was not measured is a dash.
    """
    seeds = tidy.drop_duplicates(["run", "seed"])
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
        ]
        told = of_run["published"]
        machines = sorted({machine for machine in measured["machine"] if machine})
        rows.append(
            [
                *(Cell(of_run[name]) for name in ("run", "arch")),
                *(Cell(number(value, form), "number", value) for value, form in numbers),
                Cell("-" if pd.isna(told) else told, "published"),
                Cell("; ".join(machines) or "-"),
            ]
        )
    return View(
        [
            *_headers("run", "architecture"),
            *_headers("GFLOP / image", "images", "images/s per device", kind="number"),
            *_headers("hours, predicted", "hours, measured", "ratio", kind="number"),
            *_headers("GPU-hours", kind="number"),
            *_headers("GPU-hours, published", kind="published"),
            *_headers("machine"),
        ],
        rows,
    )


def of_papers() -> View:
    """Every training time that a paper or a repository tells."""
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
