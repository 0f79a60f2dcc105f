"""Plots for tables and report, as self-contained SVG text.

Colours are Okabe and Ito's, which colour-blind readers can tell apart, and a violet for the seventh
method; line styles differ as well.
Plots have no background, and their text has the colour of the page's text: dark on a light page,
light on a dark one.
"""

import io
import math
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from textwrap import fill
from typing import Any, Literal, NamedTuple

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import LogLocator, MaxNLocator
from numpy.typing import NDArray

from evals.report import costs
from evals.report.costs import Point
from evals.report.table import Table
from evals.report.tidy import CONTROLS
from ijepa.log_reader import Records, read_log

COLOURS = ["#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#7F5AD6"]
GREY = "#7a7a7a"
STYLES = ["-", "--", "-.", ":", (0, (5, 1)), (0, (3, 1, 1, 1))]


def line(number: int) -> dict[str, Any]:
    """Colour and style of a curve; 42 curves differ."""
    return {
        "color": COLOURS[number % len(COLOURS)],
        "linestyle": STYLES[number % len(STYLES)],
    }


def loss_curves(logs: dict[str, Path], published: dict[str, Records]) -> str:
    """Loss, learning rate and the two collapse monitors against images seen.

    Published logs of runs of the same name are broad, pale lines behind.
    """
    panels = {
        "loss": "training loss",
        "lr": "learning rate",
        "feature_std": "feature standard deviation",
        "rankme": "RankMe",
    }
    with figure(9, 5.2) as (drawing, file):
        axes = list(drawing.subplots(2, 2, sharex=True).flat)
        for number, (run, path) in enumerate(logs.items()):
            for axis, name in zip(axes, panels, strict=True):
                if behind := _points(published.get(run, []), name):
                    pale = {**line(number), "linestyle": "-", "linewidth": 5, "alpha": 0.25}
                    axis.plot(*behind, **pale)
                if points := _points(read_log(path), name):
                    axis.plot(*points, **line(number), label=run, marker=".", markersize=3)
        if published:
            axes[0].plot([], [], color=GREY, linewidth=5, alpha=0.25, label="published")
        for axis, title in zip(axes, panels.values(), strict=True):
            axis.set_title(title)
            axis.grid(alpha=0.3)
            axis.set_ylim(bottom=0)
        for axis in axes[2:]:
            axis.set_xlabel("images seen")
            axis.xaxis.set_major_locator(MaxNLocator(4))
            axis.xaxis.set_major_formatter("{x:,.0f}")
        axes[0].legend()
    return file.getvalue()


def _points(records: Records, name: str) -> list[list[float]]:
    """Images seen and values of a log's key; empty if no line has it."""
    points = [(record["images"], record[name]) for record in records if name in record]
    return [list(values) for values in zip(*points, strict=True)]


class Panel(NamedTuple):
    """One evaluation against epochs: points of each run's curve, and the controls' values."""

    title: str
    unit: str
    curves: dict[str, list[tuple[float, float]]]
    controls: dict[str, float]


def epoch_curves(panels: list[Panel]) -> str:
    """Values of kept epochs against the epoch, a panel for each evaluation."""
    columns = min(3, len(panels))
    rows = -(-len(panels) // columns)
    runs = list(dict.fromkeys(run for panel in panels for run in panel.curves))
    with figure(2.2 + 3 * columns, 0.6 + 2.6 * rows, "kept epochs") as (drawing, file):
        axes = drawing.subplots(rows, columns, squeeze=False)
        for axis in axes.flat[len(panels) :]:
            axis.remove()
        keys: dict[str, Any] = {}
        for panel, axis in zip(panels, axes.flat, strict=False):
            for run, points in panel.curves.items():
                x, y = zip(*points, strict=True)
                look = line(runs.index(run))
                (keys[run],) = axis.plot(x, y, **look, label=run, marker="o", markersize=4)
            for (control, value), style in zip(panel.controls.items(), (":", "--"), strict=False):
                keys[control] = axis.axhline(value, color=GREY, linestyle=style, label=control)
            axis.set(xlabel="epochs", ylabel=panel.unit)
            axis.set_title(_plain(panel.title))
            axis.xaxis.set_major_locator(MaxNLocator(5))
            axis.grid(alpha=0.3)
        drawing.legend(handles=list(keys.values()), loc="outside right upper")
    return file.getvalue()


MARKS = ["o", "s", "^", "D", "v", "P", "X", "*", "<", ">"]


def accuracy(table: Table, scale: Literal["log", "linear"] = "log") -> str:
    """Plot of the first accuracy of a table against the cost of pretraining, a mark for each row.

    Marks of accuracies measured here are filled, marks of published ones are hollow. The cost is
    GPU-hours, or minutes of runs without a GPU. Accuracies without a known cost are in a strip
    beside the axis. Controls, which cost nothing, are lines.
    """
    column = costs.accuracy_of(table)
    points, unit = costs.points(table), costs.unit(table)
    priced = [point for point in points if point.cost > 0]
    controls = [point for point in points if point.run in CONTROLS]
    unpriced = [point for point in points if point not in [*priced, *controls]]
    unpriced.sort(key=lambda point: point.value)  # so that neighbours are in different columns
    methods = dict.fromkeys(point.method for point in points if point not in controls)
    looks = {
        method: (MARKS[number % len(MARKS)], COLOURS[number % len(COLOURS)])
        for number, method in enumerate(methods)
    }
    with figure(8, 4.6, f"accuracy {table.title} {scale}") as (drawing, file):
        # A strip for points without a known cost: the whole width if no point has one.
        ratios = [4.0, 2.2] if priced and unpriced else [1.0]
        axes = list(
            drawing.subplots(1, len(ratios), sharey=True, width_ratios=ratios, squeeze=False)[0]
        )
        for point in priced:
            _mark(axes[0], point.cost, point, looks[point.method])
        for control, style in zip(controls, (":", "--"), strict=False):
            axes[0].axhline(control.value, color=GREY, linestyle=style, label=control.run)
        for number, point in enumerate(unpriced):
            _mark(axes[-1], number % 3, point, looks[point.method])
        if priced:
            axes[0].set_xscale(scale)
            axes[0].set_xlabel(f"pretraining, {unit}")
            axes[0].margins(x=0.18)
            if scale == "log":
                axes[0].xaxis.set_major_locator(_log_ticks([point.cost for point in priced]))
                axes[0].xaxis.set_major_formatter("{x:g}")
                axes[0].xaxis.set_minor_formatter("")
        if unpriced:
            axes[-1].set(xticks=[], xlim=(-0.4, 3.5), xlabel=f"{unit} not known")
        axes[0].set_ylabel(fill(column.heading, 50) if column else "no accuracies")
        for axis in axes:
            axis.grid(alpha=0.3)
        keys = [
            Line2D([], [], marker=mark, color=colour, linestyle="", label=_plain(method))
            for method, (mark, colour) in looks.items()
        ]
        kinds = {point.published for point in [*priced, *unpriced]}
        for kind, label, face in ((False, "measured here", GREY), (True, "published", "none")):
            if kind in kinds:
                key = Line2D([], [], color=GREY, marker="o", markerfacecolor=face, label=label)
                key.set_linestyle("")
                keys.append(key)
        keys += [*axes[0].get_legend_handles_labels()[0]]
        drawing.legend(handles=keys, loc="outside right upper")
    return file.getvalue()


def _log_ticks(values: list[float]) -> LogLocator:
    """Ticks of a logarithmic axis: the more numbers between powers of ten, the fewer of these."""
    decades = math.log10(max(values) / min(values))
    if not decades:  # the axis is then some decades wide
        return LogLocator(subs=(1,))
    if decades < 0.7:
        return LogLocator(subs=(1, 1.5, 2, 3, 4, 5, 6, 8))
    return LogLocator(subs=(1, 2, 5) if decades < 2 else (1,))


def _plain(text: str) -> str:
    """Text from outside, escaped so that Matplotlib reads no formula in it."""
    return text.replace("$", r"\$")


def _mark(axis: Axes, x: float, point: Point, look: tuple[str, str]) -> None:
    mark, colour = look
    face = "none" if point.published else colour
    half = None if math.isnan(point.half) or not point.half else point.half
    axis.errorbar(
        x, point.value, half, marker=mark, color=colour, markerfacecolor=face, markersize=8,
        markeredgewidth=1.6, linewidth=1, zorder=3,
    )  # fmt: skip
    # A published upper bound: the arrow points to the side of the true cost.
    text = f"$\\leftarrow$ {_plain(point.size)}" if point.bound else _plain(point.size)
    side, offset = ("left", 7) if point.published else ("right", -7)
    axis.annotate(
        text, (x, point.value), (offset, -3), textcoords="offset points", fontsize=8, ha=side
    )


def accuracy_by_class(counts: dict[str, dict[str, Any]]) -> str:
    """Plot of each class's accuracy by run: a cell each, or sorted curves if classes are many.

    ``counts`` has the counts of ``evals.result.by_class`` for each run, with the classes' names if
    they are known.
    """
    share = {
        run: 100 * _shares(run_counts["right"], run_counts["images"])
        for run, run_counts in counts.items()
    }
    names = next(iter(counts.values())).get("names", [])
    if 0 < len(names) <= MAX_CELLS:
        with figure(1.6 + 0.75 * len(names), 0.9 + 0.33 * len(counts)) as (drawing, file):
            axis = drawing.subplots()
            _cells(axis, np.stack(list(share.values())), names, list(share))
        return file.getvalue()
    with figure(8, 4) as (drawing, file):
        axis = drawing.subplots()
        for number, (run, of_class) in enumerate(share.items()):
            axis.plot(np.sort(of_class)[::-1], **line(number), label=run)
        axis.set(xlabel="classes, each run's best first", ylabel="top-1 %", ylim=(0, 100))
        axis.grid(alpha=0.3)
        drawing.legend(loc="outside right upper")
    return file.getvalue()


def confusions(counts: dict[str, dict[str, Any]]) -> str:
    """Confusion matrices, a panel for each run, in percent of the images of each true class."""
    columns = min(4, len(counts))
    rows = -(-len(counts) // columns)
    with figure(0.8 + 2.3 * columns, 0.6 + 2.4 * rows) as (drawing, file):
        axes = drawing.subplots(rows, columns, squeeze=False)
        for axis in axes.flat[len(counts) :]:
            axis.remove()
        for number, (run, run_counts) in enumerate(counts.items()):
            axis = axes.flat[number]
            matrix = np.array([row.split() for row in run_counts["confusion"]], float)
            shares = 100 * matrix / np.where(matrix.sum(1), matrix.sum(1), np.nan)[:, None]
            names = run_counts.get("names", [str(number) for number in range(len(matrix))])
            below = number + columns >= len(counts)
            _cells(axis, shares, names if below else [], names if number % columns == 0 else [])
            axis.set_title(run, fontsize=9)
        drawing.supylabel("true", fontsize=9)
        drawing.supxlabel("predicted", fontsize=9)
    return file.getvalue()


MAX_CELLS = 20
"""Largest number of classes that have room for a number each."""


def _shares(part: str, whole: str) -> NDArray[np.float64]:
    """Ratios of two counts by class; NaN for a class of no images."""
    total = np.array(whole.split(), float)
    return np.array(part.split(), float) / np.where(total, total, np.nan)


def _cells(axis: Axes, percent: NDArray[np.float64], columns: list[str], rows: list[str]) -> None:
    """Draw a matrix of percentages with its numbers, as shapes and not as an image."""
    axis.pcolormesh(percent, cmap="cividis", vmin=0, vmax=100)
    axis.invert_yaxis()
    for spine in axis.spines.values():
        spine.set_visible(False)
    axis.tick_params(length=0, labelsize=7)
    size = 8 if len(percent) != percent.shape[1] else 6.5
    if percent.shape[1] <= MAX_CELLS:
        for (y, x), value in np.ndenumerate(percent):
            if not math.isnan(value):
                ink = "black" if value > 55 else "white"
                axis.text(
                    x + 0.5, y + 0.5, f"{value:.0f}", color=ink, ha="center", va="center", size=size
                )
    axis.set_xticks(np.arange(len(columns)) + 0.5, columns, rotation=40, ha="right")
    axis.set_yticks(np.arange(len(rows)) + 0.5, rows)


INK = "#010203"
"""Placeholder of the text colour until the file is written; nothing else has this colour."""
STYLE: Any = {
    "svg.fonttype": "path",
    "image.composite_image": False,  # images of a board keep their own pixels
    "legend.frameon": False,
    **dict.fromkeys(["figure.facecolor", "axes.facecolor", "savefig.facecolor"], "none"),
    **dict.fromkeys(
        ["text.color", "axes.edgecolor", "axes.labelcolor", "xtick.color", "ytick.color"], INK
    ),
}
ADAPTS = """<style>
svg { color-scheme: light dark; color: #1b1f24 }
@media (prefers-color-scheme: dark) { svg { color: #e6e8ea } }
@media print { svg { color: #000 } }
</style>"""


@contextmanager
def figure(
    width: float,
    height: float,
    salt: str = "ijepa-bench",
    layout: Literal["constrained", "compressed"] = "constrained",
) -> Iterator[tuple[Figure, io.StringIO]]:
    """Figure of a size in inches, and a text file that holds it as SVG after the block.

    Figures of the same page, shown or hidden, need different ``salt``, from which the names of
    their parts are made. The ``layout`` of axes whose shape is fixed is compressed: the other one
    cuts off what stands beside them.
    """
    file = io.StringIO()
    # A fixed salt and no date: the same data draw the same bytes.
    with mpl.rc_context({**STYLE, "svg.hashsalt": salt}):
        drawing = Figure(figsize=(width, height), layout=layout)
        yield drawing, file
        drawing.savefig(file, format="svg", metadata={"Date": None})
    text = file.getvalue()
    file.seek(0)
    file.truncate()
    start = text.index("<svg")
    inside = text.index(">", start) + 1
    file.write(text[start:inside] + ADAPTS + text[inside:].replace(INK, "currentColor"))
