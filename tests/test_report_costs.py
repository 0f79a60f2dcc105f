"""Costs in the report: predicted, measured and published, and the least to reach an accuracy."""

import math

import pandas as pd
import pytest

from evals.report import (
    costs,
    published,
)
from evals.report.table import tabulate
from tests.tidy_results import PAIR, SPEC, entry, of_paper, tidy

pytestmark = pytest.mark.usefixtures("real_register")


def test_cost_is_told_as_predicted_measured_and_published() -> None:
    """Two seeds of half the predicted images, in 30 minutes on average, on two cards."""
    shared = {"machine": "2 x A100", "images_seen": 36e5, "gpu_hours": 1.0}
    measured = tidy(
        entry("a", 0, "knn", 50, train_minutes=40, **shared),
        entry("a", 0, "linear_probe", 50, train_minutes=40, **shared),
        entry("a", 1, "knn", 50, train_minutes=20, **shared),
    )
    predicted = {
        "arch": "ViT-H/14", "gpus": 2, "gflop_per_image": 700.0, "images": 72e5, "hours": 0.5,
    }  # fmt: skip
    frame = pd.DataFrame(
        [
            {"run": "a", **predicted, "of_reference": 1.0, "published": "1,152 A100-80GB"},
            {"run": "b", **predicted, "of_reference": 2.3, "published": math.nan},
        ]
    )
    shown = costs.view(frame, measured)
    rows = [
        dict(zip([h.text for h in shown.headers], [c.text for c in row], strict=True))
        for row in shown.rows
    ]
    speed = (36e5 / 2400 / 2 + 36e5 / 1200 / 2) / 2
    assert rows[0] == {
        "run": "a",
        "architecture": "ViT-H/14",
        "GFLOP / image": "700",
        "images": "7,200,000",
        "images/s per device": f"{speed:,.0f}",
        "hours, predicted": "0.5",
        "hours, measured": "1",
        "ratio": "0.50",
        "GPU-hours": "1.0",
        "predicted, of I-JEPA's ViT-H/14": "1.00",
        "GPU-hours, published": "1,152 A100-80GB",
        "machine": "2 x A100",
    }
    unmeasured = ("images/s per device", "hours, measured", "ratio", "GPU-hours", "machine")
    assert {rows[1][name] for name in (*unmeasured, "GPU-hours, published")} == {"-"}
    frame["of_reference"] = math.nan  # a config without that network
    headers = [header.text for header in costs.view(frame, measured).headers]
    assert headers == [name for name in rows[0] if "I-JEPA" not in name]
    assert len(costs.of_papers().rows) == len(published.costs())


def test_the_least_cost_to_reach_an_accuracy_is_of_the_cheapest_row_that_is_so_good() -> None:
    made = [
        ("a", 50.0, 4.0), ("b", 71.0, 90.0), ("c", 62.0, 9.0), ("random_init", 99.0, 0.0),
    ]  # fmt: skip
    frame = tidy(*(entry(run, 0, "knn", value, gpu_hours=cost) for run, value, cost in made))
    reach = costs.to_reach(tabulate(frame, SPEC))
    assert reach is not None
    titles = [header.text for header in reach.headers]
    assert titles == ["method", "50 %", "55 %", "60 %", "65 %", "70 %"]
    rows = {row[0].text: [cell.text for cell in row[1:]] for row in reach.rows}
    assert rows == {
        "a": ["4", "-", "-", "-", "-"],
        "b": ["90"] * 5,
        "c": ["9", "9", "9", "-", "-"],
    }


def test_of_the_paper_s_rows_the_cheapest_that_is_known_reaches_an_accuracy() -> None:
    """A bound stays a bound; measured rows take part."""
    frame = tidy(entry("mae_vith14", 0, "in1k_linear", 76.0, gpu_hours=9000))
    reach = costs.to_reach(of_paper("table1", frame))
    assert reach is not None
    cells = {
        (row[0].text, h.text): c
        for row in reach.rows
        for h, c in zip(reach.headers, row, strict=True)
    }
    assert cells["ijepa", "76 %"].text == "<1,152 (H/14)"
    assert cells["ijepa", "76 %"].kind == "published"
    assert cells["mae", "76 %"].text == "9,000 (H/14)"
    assert cells["mae", "76 %"].kind == "number"


def test_nothing_is_reached_where_no_cost_is_known() -> None:
    assert costs.to_reach(tabulate(tidy(*PAIR), SPEC)) is None
