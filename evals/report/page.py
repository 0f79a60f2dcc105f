"""Report: one self-contained page of tables and pictures."""

import base64
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import pandas as pd
from itables import options

from evals.about import read_about
from evals.described import read_described
from evals.patches import PATCHES_FILE
from evals.report import costs, figures, gallery, table_view, tables
from evals.report.figures import Panel
from evals.report.formats import environment
from evals.report.opening_sentences import opening_sentences
from evals.report.plan import ReportPlan
from evals.report.table import Table
from evals.report.tidy import CONTROLS, UNITS, external
from ijepa.data.loader import Images
from ijepa.data.shards import read_index
from ijepa.encoder_file import PIXELS
from ijepa.files import read_json, write_text
from ijepa.image_size import as_size
from ijepa.log_reader import REFERENCE, published_logs, published_of
from ijepa.result_file import read_result

TARGETS = " (the context block less the targets); the target blocks, whose features are predicted"
"""End of the caption of I-JEPA's masks."""


@dataclass(frozen=True)
class Picture:
    """One figure of the page; ``html`` is its SVG, or an image that has its data in itself."""

    name: str
    title: str
    caption: str
    html: str


def report(
    results: Path,
    chosen: list[Path],
    data: Path,
    plan: ReportPlan,
    out: Path,
    gpu_hours: Path | None = None,
    predicted: Path | None = None,
    drawn: Sequence[Path] = (),
) -> None:
    """Write the page, and the figures that it draws as files NAME.svg in ``figures`` beside it.

    The page is self-contained: it needs neither a network nor other files.

    ``results`` is the folder of results, ``chosen`` are the results in it that tables and pictures
    show, and ``plan`` describes the tables. ``gpu_hours`` is the CSV of evals.report.gpu_hours,
    ``predicted`` the CSV of workflow.plan.cost. ``drawn`` are PNG files to show besides those that
    evaluations have left.
    """
    tidy = tables.tidy_results(plan, chosen, gpu_hours)
    tables_by_name = tables.tables_of(plan, tidy)
    drawings = [
        *pictures_of_classes(plan, chosen),
        *pictures_of_epochs(plan, tidy[~external(tidy)]),
        *pictures(plan, results, tidy[~external(tidy)], data),
    ]
    (out.parent / "figures").mkdir(parents=True, exist_ok=True)  # also if there is no figure
    for picture in drawings:
        write_text(out.parent / "figures" / f"{picture.name}.svg", picture.html)
    added = [embedded(path, f"drawn_{number}") for number, path in enumerate(drawn)]
    text = (
        environment()
        .get_template("report.html")
        .render(
            name=results.name,
            results=results,
            answer=opening_sentences(tables_by_name.values()),
            tables=[
                _section(name, table, is_first=number == 0)
                for number, (name, table) in enumerate(tables_by_name.items())
            ],
            costs=[]
            if predicted is None
            else _costs(pd.read_csv(predicted, dtype={"run": str}), tidy),
            scales=SCALES,
            published=any(table.published for table in tables_by_name.values()),
            problems=[
                f"{table.title}: {problem}"
                for table in tables_by_name.values()
                for problem in table.problems
            ],
            datatables=base64.b64encode(Path(options.dt_bundle).read_bytes()).decode(),
            figures=[*drawings, *pictures_left(plan, chosen), *added],
        )
    )
    write_text(out, text)


SCALES: dict[Literal["log", "linear"], str] = {"log": "logarithmic", "linear": "linear axis"}
LONG_TABLE = 12
"""Rows above which a table is folded, unless it is the first."""


def _section(name: str, table: Table, is_first: bool) -> dict[str, Any]:
    """A table's part of the page: its rows, its notes, and its accuracy against cost."""
    has_points, view = bool(costs.points(table)), table_view.view(table)
    return {
        "name": name,
        "title": table.title,
        "view": view,
        "folded": len(view.rows) > LONG_TABLE and not is_first,
        "warnings": table_view.warnings(table),
        "facts": table_view.facts(table),
        "plots": {scale: figures.accuracy(table, scale) for scale in SCALES if has_points},
        "unit": costs.unit(table),
        "reach": costs.to_reach(table) if has_points else None,
    }


def _costs(predicted: pd.DataFrame, tidy: pd.DataFrame) -> list[dict[str, Any]]:
    """Tables of costs, which have neither warnings nor a figure; what papers state is folded."""
    parts = [
        ("cost", "Cost of pretraining", costs.view(predicted, tidy), costs.NOTES),
        (
            "published_cost",
            "Published costs of pretraining",
            costs.of_papers(),
            ["as published; GPU-hours are those of the hardware in the row"],
        ),
    ]
    return [
        {
            "name": name,
            "title": title,
            "view": view,
            "facts": facts,
            "folded": name == "published_cost" or len(view.rows) > LONG_TABLE,
            "warnings": [],
            "plots": {},
            "reach": None,
        }
        for name, title, view, facts in parts
    ]


def _position(plan: ReportPlan, run: str) -> tuple[int, str]:
    """Sorting key of a run: the config's order, then names that it does not have, then controls."""
    order = list(plan.tables[0].encoders or [])
    if run in CONTROLS:
        return len(order) + 1 + list(CONTROLS).index(run), run
    return order.index(run) if run in order else len(order), run


def _whole_runs(plan: ReportPlan, chosen: list[Path]) -> list[Path]:
    """Results of runs, not of their kept epochs: runs in the plan's order, seeds ascending."""

    def key(path: Path) -> tuple[Any, ...]:
        return _position(plan, path.parts[-3]), int(path.parts[-2].removeprefix("seed"))

    return sorted((path for path in chosen if "@" not in path.parts[-3]), key=key)


def pictures_of_classes(plan: ReportPlan, chosen: list[Path]) -> list[Picture]:
    """Accuracy by class, or confusions, of the first evaluation of each kind of label.

    Classes have an accuracy each. Counts, distances and other labels with an order have a confusion
    matrix, because the order shows which mistakes are small. The first seed of every run is shown.
    """
    results = [(path, read_result(path)) for path in _whole_runs(plan, chosen)]
    pictures_by_kind: dict[tuple[str, str], Picture] = {}
    for evaluation in plan.evaluations:
        counts: dict[str, dict[str, Any]] = {}
        for path, result in results:
            if path.stem == evaluation and "classes" in result:
                counts.setdefault(path.parts[-3], result["classes"])
                kind = (result["dataset"], result["label"])
        if not counts or kind in pictures_by_kind:
            continue
        title = plan.title(evaluation)
        if kind[1] == "class" or not all("confusion" in entry for entry in counts.values()):
            pictures_by_kind[kind] = Picture(
                f"classes_{evaluation}",
                f"Accuracy by class: {title}",
                f"Percentage of the test images of each class in {kind[0]} that are classified "
                "correctly.",
                figures.accuracy_by_class(counts),
            )
        else:
            pictures_by_kind[kind] = Picture(
                f"confusion_{evaluation}",
                f"Confusion matrix: {title}",
                f"Predictions, in percent of the test images of each true {kind[1]} in {kind[0]}; "
                "correct ones are on the diagonal.",
                figures.confusions(counts),
            )
    return list(pictures_by_kind.values())


def pictures_of_epochs(plan: ReportPlan, tidy: pd.DataFrame) -> list[Picture]:
    """Every evaluation against epochs, if runs keep encoders of some; else nothing."""
    if not (panels := panels_of_epochs(plan, tidy)):
        return []
    return [
        Picture(
            "epochs",
            "Kept epochs",
            "Each evaluation of the encoders that runs kept on their way, against the epoch; the "
            "last point is the finished run's. Values are means over seeds. Horizontal lines are "
            "the controls.",
            figures.epoch_curves(panels),
        )
    ]


def panels_of_epochs(plan: ReportPlan, tidy: pd.DataFrame) -> list[Panel]:
    """Curves of all runs that keep epochs, a panel for each evaluation that their encoders have."""
    tidy = tidy.assign(base=tidy["run"].str.replace("@.*", "", regex=True))
    bases = set(tidy[tidy["run"].str.contains("@")]["base"])
    panels = []
    for evaluation in plan.evaluations:
        rows = tidy[tidy["evaluation"] == evaluation]
        on_curves = rows[rows["base"].isin(bases)]
        if not on_curves["run"].str.contains("@").any():
            continue
        means = on_curves.groupby(["base", "epochs"])["value"].mean()
        runs = sorted(set(on_curves["base"]), key=lambda run: _position(plan, run))
        controls = rows[rows["run"].isin(CONTROLS)].groupby("run")["value"].mean()
        panels.append(
            Panel(
                plan.title(evaluation),
                UNITS[str(on_curves["metric"].iloc[0])],
                {run: list(means[run].items()) for run in runs},
                {run: controls[run] for run in CONTROLS if run in controls.index},
            )
        )
    return panels


def picture_of_losses(results: Path, trained: dict[str, Path]) -> Picture:
    """Logs of runs, given by their folders, over those that git has of the same config."""
    logs = {run: path / "train.jsonl" for run, path in trained.items()}
    in_git = published_logs(results)
    published = {
        run: records
        for run, path in trained.items()
        if (records := published_of(f"{run}/{path.name}", in_git))
    }
    return Picture(
        "pretraining",
        "Pretraining",
        "Loss of the method's own task (not comparable between methods), and two monitors "
        "that fall towards 0 and 1 when features collapse."
        + f" Pale lines are the published runs of this config ({REFERENCE / results.name})."
        * bool(published),
        figures.loss_curves(logs, published),
    )


def pictures(plan: ReportPlan, results: Path, tidy: pd.DataFrame, data: Path) -> list[Picture]:
    """Loss curves, masks, patch features and neighbours, of the first seed of every run."""
    tidy = tidy[~tidy["run"].str.contains("@")]  # of a run's epochs only the last
    first_seeds = tidy[tidy["run"] != PIXELS].groupby("run")["seed"].min()
    first_seeds = first_seeds.loc[sorted(first_seeds.index, key=lambda run: _position(plan, run))]
    # Published weights have no log, and their masks are not known.
    trained = {
        run: results / "runs" / run / f"seed{first_seeds[run]}"
        for run in first_seeds.index
        if run in set(tidy[~tidy["method"].isin(["", "released"])]["run"])
    }
    train = Images(data, "train")
    all_pictures = []
    if trained:
        all_pictures.append(picture_of_losses(results, trained))
    for run, path in trained.items():
        file = path / "masks.json"
        if file.exists() and (shown := read_json(file))["masks"]:
            all_pictures.append(
                Picture(
                    f"masks_{run}",
                    f"Masks of {run}",
                    "From top to bottom: the image; the patches that the trained network sees"
                    + TARGETS * (len(shown["masks"]) > 1)
                    + ".",
                    gallery.masks(shown, train),
                )
            )
    index, test = read_index(data), Images(data, "test")
    for run, seed in first_seeds.items():
        features = results / "features" / str(run) / f"seed{seed}" / index.dataset / "about.json"
        patch_file = features.with_name(PATCHES_FILE)
        if patch_file.exists():
            size = as_size(read_about(features)["image_size"])
            all_pictures.append(
                Picture(
                    f"patches_{run}",
                    f"Patch features of {run}",
                    "From top to bottom: test images; the first three principal components of "
                    "their patches' features as red, green and blue, with one basis for all "
                    "images; the cosine similarity of the patch framed in orange to every patch. "
                    "Framed in blue is the nearest patch of each image.",
                    gallery.patch_features(patch_file, index.view, size, test),
                )
            )
        if features.exists():  # there are none if every evaluation runs the encoder itself
            all_pictures.append(
                Picture(
                    f"neighbours_{run}",
                    f"Nearest neighbours: {run}",
                    "A test image (framed) and the training images with the nearest features.",
                    gallery.nearest_images(features, train, test),
                )
            )
    return all_pictures


def pictures_left(plan: ReportPlan, chosen: list[Path]) -> list[Picture]:
    """Pictures that evaluations have left beside their results, of the first seed of every run."""
    files: dict[tuple[str, str], Path] = {}
    whole = _whole_runs(plan, chosen)
    for evaluation in plan.evaluations:
        for path in whole:
            if path.stem == evaluation and (file := path.with_suffix(".png")).exists():
                files.setdefault((evaluation, path.parts[-3]), file)
    return [
        embedded(file, f"left_{evaluation}_{run}", f"{plan.title(evaluation)}: {run}")
        for (evaluation, run), file in files.items()
    ]


def embedded(path: Path, name: str, title: str = "") -> Picture:
    """Picture of a PNG file, which browsers decode late; its caption is in the file."""
    about = read_described(path)
    data = base64.b64encode(path.read_bytes()).decode()
    return Picture(
        name,
        title or f"{about.title}: {path.parent.name}",
        about.description,
        f'<img alt="" width="{about.width}" height="{about.height}" '
        f'decoding="async" src="data:image/png;base64,{data}">',
    )
