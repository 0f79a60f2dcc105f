"""Two or three sentences that open the report: who leads where, by how much, and what is noise.

In each evaluation the encoder of the highest accuracy, on average over seeds, is compared with the
second, and every encoder with the control. A difference is judged against the noise of the test
images (evals.report.noise) and, if both sides have several seeds, also against the spread over
seeds (Welch's test). It is significant if it is so in both, and the wider interval is shown. All
comparisons of a page share one error rate (Holm).

Shape suffixes: S seeds, N images.
"""

import dataclasses
import math
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from evals.report import costs, noise, table_view
from evals.report.formats import MARK, number
from evals.report.table import Column, Table
from evals.report.tidy import CONTROLS
from evals.result import unpacked
from ijepa.encoder_file import PIXELS
from ijepa.result_file import read_result

ALPHA = 0.05
NAMED = 3
"""Evaluations that a sentence names; more of them are counted."""
IN_NUMBERS = 2
"""Leading runs whose leads and costs are told in numbers; the others are named."""

Judged = tuple[float, float, float]
"""Both ends of an interval, in points, and the p-value of no difference."""


@dataclass(frozen=True)
class Difference:
    """Accuracy of ``run`` less that of ``other``, in points, with its 95 % interval.

    ``p`` is nan if the number of test images is not known; ``marked`` is true if one of the two
    numbers has a problem.
    """

    title: str
    run: str
    other: str
    points: float
    low: float
    high: float
    p: float
    marked: bool

    @property
    def significant(self) -> bool:
        """True for a gain beyond noise."""
        return self.points > 0 and self.p <= ALPHA

    def text(self, verb: str) -> str:
        """Evaluation, points, interval and the other run, for a list in a sentence."""
        interval = (
            "not judged: n is not known"
            if math.isnan(self.p)
            else f"{self.low:.1f}, {self.high:.1f}"
        )
        mark = f" {MARK}" if self.marked else ""
        return f"{self.title} ({verb}{self.points:.1f} points [{interval}] over {self.other}{mark})"


def opening_sentences(tables: Iterable[Table]) -> list[str]:
    """Sentences on all accuracies of the tables: leads, what is no gain, and how it was judged.

    The first two are each left out if there is nothing to tell. Before them stands what decoded
    pictures show, if there are some.
    """
    tables = list(tables)
    decoded = _decoded(tables)
    leads, gains, below_pixels = _differences(tables)
    pairs = [*leads, *gains]
    if not pairs:
        return decoded or ["There are no two accuracies to compare yet."]
    judged = [pair for pair in pairs if not math.isnan(pair.p)]
    corrected = dict(zip(map(id, judged), noise.holm([pair.p for pair in judged]), strict=True))
    leads, gains = (
        [dataclasses.replace(pair, p=corrected.get(id(pair), math.nan)) for pair in family]
        for family in (leads, gains)
    )
    sentences = [
        _leaders([lead for lead in leads if lead.significant], tables),
        _not_significant([lead for lead in leads if not lead.significant], gains, below_pixels),
        _noise(tables, len(judged)),
    ]
    return [*decoded, *(f"{text}." for text in sentences if text)]


def _decoded(tables: list[Table]) -> list[str]:
    """Sentence on decoded pictures, if there are some: how often they are told from others."""
    clauses = {}
    for table in tables:
        for column in table.columns:
            if column.metric != "identification":
                continue
            shares = [
                f"{row[column.name]:.2f} for {row['run']}{table_view.interval(row, column)}"
                for _, row in table.rows.iterrows()
                if row["run"] and not math.isnan(row[column.name])
            ]
            if shares:
                clauses[column.name] = f"{_named(column)} {_joined(shares)}"
    about = "Share of other images that are less like a decoded picture than its own"
    return [f"{about}: {'; '.join(clauses.values())}; chance is 0.50."] if clauses else []


def _differences(tables: list[Table]) -> tuple[list[Difference], list[Difference], list[str]]:
    """Leads over the second, gains over the control, and titles where raw pixels are ahead."""
    leads: list[Difference] = []
    gains: list[Difference] = []
    below_pixels: list[str] = []
    seen: set[str] = set()
    for table in tables:
        for column in table.columns:
            if column.metric != "top1" or column.name in seen:
                continue
            seen.add(column.name)
            # A number with a fault that forbids it is missing from the rows.
            values = table.rows[table.rows["run"] != ""].set_index("run")[column.name].dropna()
            encoders = values.drop([run for run in CONTROLS if run in values])
            encoders = encoders.sort_values(ascending=False, kind="stable")
            if len(encoders) > 1:
                leads.append(_difference(table, column, encoders.index[0], encoders.index[1]))
            if table.control is not None and table.control in values:
                gains += [_difference(table, column, run, table.control) for run in encoders.index]
            if len(encoders) and values.get(PIXELS, -math.inf) > encoders.iloc[0]:
                below_pixels.append(_named(column))
    return leads, gains, below_pixels


def _difference(table: Table, column: Column, run: str, other: str) -> Difference:
    results = table.results[table.results["evaluation"] == column.name].sort_values("seed")
    a, b = (results[results["run"] == name] for name in (run, other))
    low, high, p = _beyond_images(a, b)
    spreads = a["value"].std(), b["value"].std()
    if not math.isnan(p) and all(spread >= 0 for spread in spreads) and any(spreads):
        of_seeds = _beyond_seeds(a, b)
        p = max(p, of_seeds[2])
        if of_seeds[1] - of_seeds[0] > high - low:
            low, high, _ = of_seeds
    marked = bool({(run, column.name), (other, column.name)} & table.marked)
    points = a["value"].mean() - b["value"].mean()
    return Difference(_named(column), run, other, points, low, high, p, marked)


def _beyond_images(a: pd.DataFrame, b: pd.DataFrame) -> Judged:
    """Interval and p-value against the noise of the test images: image by image if possible."""
    n = min(a["n"].min(), b["n"].min())
    if math.isnan(n) or a["n"].isna().any() or b["n"].isna().any():
        return math.nan, math.nan, math.nan
    right = [_right(rows) for rows in (a, b)]
    same = all(
        a[key].tolist() == b[key].tolist() for key in ("seed", "n", "dataset", "data_version")
    )
    if same and right[0] is not None and right[1] is not None:
        low, high, p = noise.paired(right[0] - right[1], len(a), ALPHA)
    else:
        shares = (float(rows["value"].mean()) / 100 for rows in (b, a))
        low, high, p = noise.unpaired(next(shares), next(shares), int(n), ALPHA)
    return 100 * low, 100 * high, p


def _right(rows: pd.DataFrame) -> NDArray[np.int64] | None:
    """Number of seeds that classify each test image correctly; None if that is not recorded."""
    if rows["source"].str.endswith(".csv").any() or rows["n"].nunique() > 1:
        return None
    results = [read_result(Path(path)) for path in rows["source"]]
    if not all("correct" in result for result in results):
        return None
    right_SN = np.stack([unpacked(result["correct"], result["n"]) for result in results])
    right_N: NDArray[np.int64] = right_SN.sum(0, np.int64)
    return right_N


def _beyond_seeds(a: pd.DataFrame, b: pd.DataFrame) -> Judged:
    """Interval and p-value against the spread over seeds (Welch, 1947)."""
    from scipy import stats  # not at the top: it takes seconds to import

    test = stats.ttest_ind(a["value"], b["value"], equal_var=False)
    low, high = test.confidence_interval(1 - ALPHA)
    return float(low), float(high), float(test.pvalue)


def _leaders(leads: list[Difference], tables: list[Table]) -> str:
    """Clauses on the runs with significant leads, the one with most of them first."""
    by_run: dict[str, list[Difference]] = {}
    for lead in leads:
        by_run.setdefault(lead.run, []).append(lead)
    ordered = sorted(by_run.items(), key=lambda item: -len(item[1]))
    clauses = [
        f"{run} leads in {_listed([lead.text('by ') for lead in of_run])}"
        f"{_cost(run, [lead.other for lead in of_run], tables)}"
        for run, of_run in ordered[:IN_NUMBERS]
    ]
    if others := ordered[IN_NUMBERS:]:
        texts = [f"{run} in {lead.title}" for run, of_run in others for lead in of_run]
        clauses.append(f"ahead elsewhere: {_listed(texts)}")
    return "; ".join(clauses)


def _not_significant(leads: list[Difference], gains: list[Difference], below: list[str]) -> str:
    """Clauses on leads within noise, on encoders not above the control, and on raw pixels."""
    clauses = []
    if leads:
        texts = [lead.text(f"{lead.run} by ") for lead in leads]
        subject = "are the leads" if len(leads) > 1 else "is the lead"
        clauses.append(f"not significant {subject} in {_listed(texts)}")
    clauses += _without_gain(gains)
    if below:
        clauses.append(f"raw pixels score higher than every encoder in {_listed(below)}")
    text = "; ".join(clauses)
    return text[:1].upper() + text[1:]


def _without_gain(gains: list[Difference]) -> list[str]:
    """Clause on the encoders that are not significantly above the control."""
    if not gains:
        return []
    control = f"{gains[0].other} ({CONTROLS[gains[0].other]})"
    texts = []
    for run in dict.fromkeys(gain.run for gain in gains):
        of_run = [gain for gain in gains if gain.run == run]
        missing = [gain.title for gain in of_run if not gain.significant]
        if len(missing) > 1:
            texts.append(f"{run} in {len(missing)} of {len(of_run)} evaluations")
        elif missing:
            texts.append(f"{run} in {missing[0]}")
    if not texts:
        return [f"every encoder is significantly above {control} in every evaluation"]
    return [f"not significantly above {control} is {_joined(texts)}"]


def _cost(run: str, others: list[str], tables: list[Table]) -> str:
    """Cost of a run's pretraining, and of the runs that it is compared with, where known."""
    table = next(table for table in tables if run in set(table.rows["run"]))
    unit = costs.unit(table)
    column = "gpu_hours" if unit == "GPU-hours" else "train_minutes"
    spent = {row["run"]: row[column] for other in tables for _, row in other.rows.iterrows()}
    form = ",.1f" if unit == "GPU-hours" else ".1f"
    if math.isnan(spent[run]):
        return ", at a cost of pretraining that is not known here"
    compared = ", ".join(
        f"{other} {number(spent[other], form)}"
        for other in dict.fromkeys(others)
        if not math.isnan(spent[other])
    )
    compared = f" ({compared})" if compared else ""
    return f", at {number(spent[run], form)} {unit} of pretraining{compared}"


def _noise(tables: list[Table], count: int) -> str:
    seeds = max(int(table.rows["seeds"].max()) for table in tables)
    noises = (
        "the noise of the test images and the spread over seeds"
        if seeds > 1
        else "the noise of the test images alone: with one seed, nothing is known of the noise of "
        "pretraining again"
    )
    brief = f"; {table_view.BRIEF}" if all(map(table_view.is_brief, tables)) else ""
    return (
        f"Brackets are 95 % intervals of differences, and {count} comparisons share an error rate "
        f"of {100 * ALPHA:g} % (Holm), against {noises}{brief}"
    )


def _named(column: Column) -> str:
    """Title of an evaluation, in quotes if a comma in it would divide it in a list."""
    return f"\u201c{column.title}\u201d" if "," in column.title else column.title


def _listed(texts: list[str]) -> str:
    """List in words: the first few, and how many more."""
    more = len(texts) - NAMED
    rest = [f"{more} more evaluation{'s' * (more > 1)}"] if more > 0 else []
    return _joined([*texts[:NAMED], *rest])


def _joined(texts: list[str]) -> str:
    return " and ".join([", ".join(texts[:-1]), texts[-1]] if len(texts) > 1 else texts)
