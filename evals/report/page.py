"""Report: one self-contained page of tables and pictures."""

import base64
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
from itables import options

from evals.about import read_about
from evals.patches import PATCHES_FILE
from evals.report import costs, figures, gallery, shapes, tables
from evals.report.formats import environment
from evals.report.plan import ReportPlan
from evals.report.results import CONTROLS, external
from evals.result import read_result
from ijepa.data.loader import Images
from ijepa.data.shards import read_index
from ijepa.files import read_json, write_text

TARGETS = " (the context block less the targets); the target blocks, whose features are predicted"
"""End of the caption of I-JEPA's masks."""


@dataclass(frozen=True)
class Picture:
    """One figure of the page, which is also the file NAME.svg in ``figures/`` beside the page."""

    name: str
    title: str
    caption: str
    svg: str


def report(
    results: Path,
    chosen: list[Path],
    data: Path,
    plan: ReportPlan,
    out: Path,
    gpu_hours: Path | None = None,
    predicted: Path | None = None,
) -> None:
    """Write the page, and its figures beside it as files.

    The page is self-contained: it needs neither a network nor other files.

    ``results`` is the folder of results, ``chosen`` are the results in it that tables and pictures
    show, and ``plan`` describes the tables. ``gpu_hours`` is the CSV of evals.report.gpu_hours,
    ``predicted`` the CSV of workflow.plan.cost.
    """
    tidy = tables.tidy_results(plan, chosen, gpu_hours)
    tables_by_name = tables.tables_of(plan, tidy)
    shown_tables = [
        {
            "name": name,
            "title": table.title,
            "view": shapes.view(table),
            "note": shapes.note(table),
        }
        for name, table in tables_by_name.items()
    ]
    if predicted is not None:
        cost = pd.read_csv(predicted)
        shown_tables += [
            {
                "name": "cost",
                "title": "Cost of pretraining",
                "view": costs.view(cost, tidy),
                "note": costs.NOTE,
            },
            {
                "name": "published_cost",
                "title": "Published costs of pretraining",
                "view": costs.of_papers(),
                "note": "As published; GPU-hours are those of the hardware in the row.",
            },
        ]
    all_pictures = [
        *pictures_of_classes(plan, chosen),
        *pictures(results, tidy[~external(tidy)], data),
    ]
    for picture in all_pictures:
        write_text(out.parent / "figures" / f"{picture.name}.svg", picture.svg)
    library = Path(options.dt_bundle).read_bytes()
    text = (
        environment()
        .get_template("report.html")
        .render(
            name=results.name,
            results=results,
            tables=shown_tables,
            published=any(table.published for table in tables_by_name.values()),
            problems=[
                f"{table.title}: {problem}"
                for table in tables_by_name.values()
                for problem in table.problems
            ],
            accuracies=[
                {
                    "name": name,
                    "title": table.title,
                    "unit": costs.unit(table),
                    "log": figures.accuracy(table, "log"),
                    "linear": figures.accuracy(table, "linear"),
                    "reach": costs.to_reach(table),
                }
                for name, table in tables_by_name.items()
                if costs.points(table)
            ],
            datatables=base64.b64encode(library).decode(),
            figures=all_pictures,
        )
    )
    write_text(out, text)


def pictures_of_classes(plan: ReportPlan, chosen: list[Path]) -> list[Picture]:
    """Accuracy by class, or confusions, of the first evaluation of each kind of label.

    Classes have an accuracy each. Counts, distances and other labels with an order have a confusion
    matrix, because the order shows which mistakes are small. The first seed of every run is shown.
    """
    results = sorted(
        ((path.parts[-3] in CONTROLS, path, read_result(path)) for path in chosen),
        key=lambda entry: entry[:2],
    )
    pictures_by_kind: dict[tuple[str, str], Picture] = {}
    for evaluation in plan.evaluations:
        counts: dict[str, dict[str, Any]] = {}
        for _, path, result in results:
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


def pictures(results: Path, tidy: pd.DataFrame, data: Path) -> list[Picture]:
    """Loss curves, masks on images, and nearest neighbours, of the first seed of every run."""
    first_seeds = tidy[tidy["run"] != "pixels"].groupby("run")["seed"].min()
    # Published weights have no log, and their masks are not known.
    trained = {
        run: results / "runs" / run / f"seed{first_seeds[run]}"
        for run in sorted(set(tidy[~tidy["method"].isin(["", "released"])]["run"]))
    }
    train = Images(data, "train")
    all_pictures = []
    if trained:
        all_pictures.append(
            Picture(
                "pretraining",
                "Pretraining",
                "Loss of the method's own task (not comparable between methods), and two monitors "
                "that fall towards 0 and 1 when features collapse.",
                figures.loss_curves({run: path / "train.jsonl" for run, path in trained.items()}),
            )
        )
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
            size = read_about(features)["image_size"]
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
