"""Figures of a table: their marks and shapes, and what a page needs to show them."""

import math
from collections.abc import Callable
from typing import Any

import pytest

from evals.report import (
    figures,
    published,
)
from evals.report.table import Table, tabulate
from tests.tidy_results import SPEC, entry, of_paper, tidy

pytestmark = pytest.mark.usefixtures("real_register")


def marks_of(monkeypatch: pytest.MonkeyPatch, table: Table) -> list[tuple[Any, Any]]:
    """Marks that a figure of accuracies places: (cost or place, point)."""
    placed: list[tuple[Any, Any]] = []
    monkeypatch.setattr(figures, "_mark", lambda axis, x, point, look: placed.append((x, point)))
    figures.accuracy(table)
    return placed


def test_the_figure_has_a_mark_for_each_published_and_measured_row(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    frame = tidy(entry("mae_vith14", 0, "in1k_linear", 76.0, gpu_hours=9000))
    placed = marks_of(monkeypatch, of_paper("table1", frame))
    measured = [(x, point) for x, point in placed if not point.published]
    assert [(x, point.method, point.size, point.value) for x, point in measured] == [
        (9000, "mae", "H/14", 76.0)
    ]
    hollow = [point.value for _, point in placed if point.published]
    assert sorted(hollow) == sorted(published.rows_of("table1")["in1k_linear"])
    # Only one row has a published cost; no other row gets one.
    assert [x for x, point in placed if point.published and point.bound] == [1152]
    assert {x for x, point in placed if point.published and not point.bound} == {0, 1, 2}


def test_a_control_is_a_line_also_where_its_job_cost_something(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    frame = tidy(
        entry("a", 0, "knn", 50, gpu_hours=2), entry("random_init", 0, "knn", 40, gpu_hours=0.01)
    )
    placed = marks_of(monkeypatch, tabulate(frame, SPEC))
    assert [(x, point.run) for x, point in placed] == [(2, "a")]


COUNTED = {
    "names": ["three", "four"],
    "images": "4 0",
    "right": "3 0",
    "confusion": ["3 1", "0 0"],
}


def test_matrices_are_of_each_true_class_in_percent_and_nothing_of_an_empty_one(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    drawn: list[tuple[list[Any], list[str], list[str]]] = []
    monkeypatch.setattr(
        figures,
        "_cells",
        lambda axis, percent, columns, rows: drawn.append((percent.tolist(), columns, rows)),
    )
    figures.confusions({"a": COUNTED})
    figures.accuracy_by_class({"a": COUNTED, "b": COUNTED})
    nan = pytest.approx(math.nan, nan_ok=True)
    assert drawn == [
        ([[75, 25], [nan, nan]], ["three", "four"], ["three", "four"]),
        ([[75, nan], [75, nan]], ["three", "four"], ["a", "b"]),
    ]


@pytest.mark.parametrize(
    "draw",
    [
        lambda: figures.confusions({"a": COUNTED}),
        lambda: figures.accuracy_by_class({"a": COUNTED}),
        lambda: figures.accuracy_by_class({"a": {"images": "5 " * 300, "right": "2 " * 300}}),
        lambda: figures.accuracy(of_paper("table1", tidy())),
    ],
    ids=["confusions", "cells", "curves", "accuracy"],
)
def test_a_figure_is_of_shapes_and_takes_the_page_s_colours(draw: Callable[[], str]) -> None:
    text = draw()
    assert "<image" not in text
    assert "currentColor" in text
    assert figures.INK not in text
    assert "prefers-color-scheme: dark" in text


def test_a_name_with_dollars_is_no_formula() -> None:
    rows = [entry("a", 0, "knn", 50, method="cost $x_{$"), entry("b", 0, "knn", 51)]
    assert figures.accuracy(tabulate(tidy(*rows), SPEC)).startswith("<svg")


def test_the_figure_draws_the_same_bytes_twice_and_needs_nothing_else() -> None:
    table = of_paper("table1", tidy())
    text = figures.accuracy(table)
    assert text == figures.accuracy(table)
    assert text.startswith("<svg")
    assert text != figures.accuracy(table, "linear")


def test_curves_of_many_runs_differ_in_colour_or_style() -> None:
    looks = [tuple(figures.line(number).values()) for number in range(42)]
    assert len(set(looks)) == 42
