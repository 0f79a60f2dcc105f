"""Views of a table for readers, in one of two shapes, and the note below it.

One shape has each encoder's gain over the control. The other has the rows of a paper's table, with
the published numbers beside those measured here.
"""

import math
from collections.abc import Iterable
from typing import Any

import pandas as pd

from evals.report import formats
from evals.report.formats import Cell, Header, View, number
from evals.report.published import file_of
from evals.report.table import Column, Table
from evals.report.tidy import CONTROLS, rounded
from ijepa.encoder_file import PIXELS, UNTRAINED

GAIN_OVER = {
    UNTRAINED: "the untrained network of the first run; the others' have other positions, "
    "[cls] and initial weights",
    PIXELS: "raw pixels",
}


def view(table: Table) -> View:
    """View of a table for readers: with gains over the control, or beside published numbers."""
    return _beside_published(table) if table.published else _with_gains(table)


def _with_gains(table: Table) -> View:
    rows = table.rows
    headers, columns = [Header("encoder")], [[Cell(_title(row)) for _, row in rows.iterrows()]]

    def add(title: str, cells: Iterable[Cell], kind: str = "number") -> None:
        headers.append(Header(title, kind))
        columns.append(list(cells))

    for column in table.columns:
        cells = (_measured(table, row, column) for _, row in rows.iterrows())
        add(column.heading, cells, "measured")
        if table.control is not None and column.metric == "top1":
            (control,) = rows.loc[rows["run"] == table.control, column.name]
            gains = (rows[column.name] - control).where(rows["run"] != table.control)
            add(f"{column.title}, gain", (_signed(gain) for gain in gains))
    add("images seen", (_cell(images, ",.0f") for images in rows["images_seen"]))
    add("minutes", (_cell(minutes, ".1f") for minutes in rows["train_minutes"]))
    if (rows["gpu_hours"] > 0).any():
        add("GPU-hours", (_cell(hours, ",.2f") for hours in rows["gpu_hours"]))
    if rows["external"].any():
        add("notes", (Cell(_external(row)) for _, row in rows.iterrows()), "text")
    return View(headers, [list(cells) for cells in zip(*columns, strict=True)])


def _beside_published(table: Table) -> View:
    rows = table.rows
    headers: list[Header] = []
    columns: list[list[Cell]] = []

    def add(title: str, cells: Iterable[Cell], kind: str = "text") -> None:
        headers.append(Header(title, kind))
        columns.append(list(cells))

    # The rows of an ablation differ only in their notes.
    published_rows = rows[rows["pretrain_data"] != ""]
    has_settings = bool(
        published_rows.duplicated(["method", "arch", "epochs", "pretrain_data"]).any()
    )
    titles = {"method": "method", "arch": "architecture"}
    titles |= {"note": "setting"} if has_settings else {}
    titles |= {"epochs": "epochs"}
    for name, title in (("pretrain_data", "pretraining data"), ("view_augmentations", "view aug.")):
        titles |= {name: title} if len(set(rows[name]) - {""}) > 1 else {}
    for name, title in titles.items():
        add(title, (Cell(text or "-") for text in rows[name]))
    for column in table.columns:
        add(
            f"{column.heading}, paper",
            (_cell(value, ".1f", "published") for value in rows[f"{column.name}_published"]),
            "published",
        )
        cells = (_measured(table, row, column) for _, row in rows.iterrows())
        add(f"{column.title}, measured here", cells, "measured")
        gaps = rows[f"{column.name}_difference"]
        add(f"{column.title}, difference", (_signed(gap, "-") for gap in gaps), "number")
    counts = rows[[f"{column.name}_n" for column in table.columns]]
    add("n", (_counts(line.dropna()) for _, line in counts.iterrows()), "number")
    if rows["gpu_hours_published"].any():
        costs = (
            Cell(text or "-", "published", float(text.lstrip("<") or "nan"))
            for text in rows["gpu_hours_published"]
        )
        add("GPU-hours, paper", costs, "published")
    add("GPU-hours, here", (_cell(hours, ",.1f") for hours in rows["gpu_hours"]), "number")
    notes = [_row_note(table, row, has_settings) for _, row in rows.iterrows()]
    add("notes", (Cell(text) for text in notes))
    return View(headers, [list(cells) for cells in zip(*columns, strict=True)])


def _row_note(table: Table, row: Any, has_settings: bool) -> str:
    titles = [column.title for column in table.columns if not math.isnan(row[column.name])]
    remarks = [] if has_settings or _shared_note(table) else [row["note"]]
    if not row["run"]:
        return "; ".join([*filter(None, remarks), "no run here"])
    if row["external"]:
        remarks.append(f"run {row['run']}, {_external(row)}")
    elif not titles and not any(row["run"] == run for run, _ in table.marked):
        remarks.append(f"run {row['run']}: not measured yet")
    else:
        remarks.append(f"run {row['run']}")
    epochs = row["epochs_here"]
    if not math.isnan(epochs) and row["epochs"] not in ("", f"{epochs:g}"):
        remarks.append(f"{epochs:g} epochs of its own data")
    return "; ".join(filter(None, remarks))


def _shared_note(table: Table) -> str:
    """Note that the published table has on all its rows; "" if they differ."""
    notes = set(table.rows.loc[table.rows["pretrain_data"] != "", "note"])
    return str(*notes) if len(notes) == 1 else ""


def no_gain(table: Table) -> list[str]:
    """Encoders that are not above the control, each with the evaluations in which it is not."""
    if table.control is None:
        return []
    control = table.rows.set_index("run").loc[table.control]
    titles_of_run = {
        row["run"]: [
            column.title
            for column in table.columns
            if column.metric == "top1" and row[column.name] <= control[column.name]
        ]
        for _, row in table.rows.iterrows()
        if row["run"] not in CONTROLS
    }
    return [f"{run} ({', '.join(titles)})" for run, titles in titles_of_run.items() if titles]


BRIEF_MINUTES = 15
"""Pretraining, in minutes, below which the note warns of brief training."""


BRIEF = "minutes of training tell how fast a method begins, and nothing of how good it becomes"


def warnings(table: Table) -> list[str]:
    """Facts without which the table's numbers are read wrongly."""
    texts = []
    if encoders := no_gain(table):
        assert table.control is not None
        texts.append(f"NO GAIN over {CONTROLS[table.control]} in this time: {', '.join(encoders)}")
    return [*texts, BRIEF] if is_brief(table) else texts


def is_brief(table: Table) -> bool:
    """True if all of a table's encoders were trained for minutes."""
    return not table.published and 0 < float(table.rows["train_minutes"].max()) < BRIEF_MINUTES


def facts(table: Table) -> list[str]:
    """Provenance of the table's numbers, and what its columns mean."""
    commits = sorted({word for value in table.rows["commit"] for word in str(value).split()})
    texts = [*table.texts]
    if table.published:
        texts.append(
            f"paper: {table.published} of results/published/{file_of(table.published)}, as "
            "published; "
            "difference is measured here less paper"
        )
        texts += [f"of all rows: {shared}"] if (shared := _shared_note(table)) else []
    texts.append(
        "+- is the standard deviation over seeds, brackets the 95 % interval of a single seed"
    )
    if table.control is not None:
        texts.append(f"gain is over {GAIN_OVER[table.control]}")
    return [*texts, f"commit {', '.join(commits) or 'none'}"]


def note(table: Table) -> str:
    """Warnings and facts in one sentence, the warnings first."""
    return "; ".join([*warnings(table), *facts(table)]) + "."


def markdown(table: Table) -> str:
    """Table with its title, its note and its problems, as Markdown."""
    return formats.markdown(table.title, view(table), note(table), table.problems)


def _title(row: Any) -> str:
    run = str(row["run"])
    remark = CONTROLS.get(run) or (f"tokenizer: {row['tokenizer']}" if row["tokenizer"] else "")
    return f"{run} ({remark})" if remark else run


def _external(row: Any) -> str:
    return f"external: {row['external']}" if row["external"] else ""


def _cell(value: float, form: str, kind: str = "number") -> Cell:
    return Cell(number(value, form), kind, value)


def _counts(line: "pd.Series[float]") -> Cell:
    text = "; ".join(f"{n:,.0f}" for n in line)
    return Cell(text or "-", "number", line.max() if text else math.nan)


def _signed(value: float, missing: str = "") -> Cell:
    return Cell(missing if pd.isna(value) else f"{value:+.2f}", "number", value)


def _measured(table: Table, row: Any, column: Column) -> Cell:
    value, name = row[column.name], column.name
    if pd.isna(value):
        text = "-"
    elif not pd.isna(spread := row[f"{name}_std"]):
        text = f"{value:.2f} +- {spread:.2f}"
    else:
        text = f"{value:.2f}{interval(row, column)}"
    results = table.results
    if len(results):
        results = results[(results["run"] == row["run"]) & (results["evaluation"] == name)]
    details = tuple(_details(result) for _, result in results.iterrows())
    marked = (row["run"], name) in table.marked
    return Cell(text, "measured", value, marked, details)


def interval(row: Any, column: Column) -> str:
    """Interval of a single seed's number in brackets, after a space; "" if there is none."""
    low, high = (row[f"{column.name}_{end}"] for end in ("low", "high"))
    if pd.isna(low):
        return ""
    return f" [{rounded(low, column.metric)}, {rounded(high, column.metric)}]"


def _details(result: Any) -> dict[str, str]:
    """Provenance of one seed's number, for readers."""
    facts = {
        "run": result["run"],
        "seed": str(result["seed"]),
        "value": f"{result['value']:.2f}",
        "n": number(result["n"], ",.0f", ""),
        "data": f"{result['dataset']} {result['data_version']}".strip(),
        "encoder": result["encoder"],
        "commit": result["commit"],
        "machine": result["machine"],
        "GPU-hours": number(result["gpu_hours"], ",.2f", "unknown"),
        "file": result["source"],
    }
    return {key: value for key, value in facts.items() if value}
