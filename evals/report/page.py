"""The report: one self-contained page of tables and pictures."""

import base64
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
from itables import options

from evals.report import costs, figures, gallery, shapes, tables
from evals.report.formats import environment
from evals.report.plan import ReportPlan
from evals.report.results import CONTROLS, external
from ijepa import config
from ijepa.data.loader import Images
from ijepa.data.shards import read_index
from ijepa.files import read_json, write_text
from ijepa.randomness import generator


@dataclass(frozen=True)
class Picture:
    """One figure of the page, and the file of that name in ``figures/`` beside the page."""

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

    The page needs nothing but itself, neither a network nor other files.

    ``results`` is the folder, ``chosen`` are the results in it that tables and pictures show, and
    ``plan`` asks for the tables. ``gpu_hours`` and ``predicted`` are CSV of evals.report.gpu_hours
    and workflow.plan.cost.
    """
    tidy = tables.tidy_results(plan, chosen, gpu_hours)
    made = tables.tables_of(plan, tidy)
    shown = [
        {
            "name": name,
            "title": table.title,
            "view": shapes.view(table),
            "note": shapes.note(table),
        }
        for name, table in made.items()
    ]
    if predicted is not None:
        cost = pd.read_csv(predicted)
        shown += [
            {
                "name": "cost",
                "title": "What pretraining cost",
                "view": costs.view(cost, tidy),
                "note": costs.NOTE,
            },
            {
                "name": "published_cost",
                "title": "What others say that pretraining cost them",
                "view": costs.of_papers(),
                "note": "As published; one GPU-hour is of the hardware in its row.",
            },
        ]
    drawn = [
        *pictures_of_classes(plan, chosen),
        *pictures(results, tidy[~external(tidy)], data),
    ]
    for picture in drawn:
        write_text(out.parent / "figures" / f"{picture.name}.svg", picture.svg)
    library = Path(options.dt_bundle).read_bytes()
    text = (
        environment()
        .get_template("report.html")
        .render(
            name=results.name,
            results=results,
            tables=shown,
            published=any(table.published for table in made.values()),
            problems=[
                f"{table.title}: {problem}" for table in made.values() for problem in table.problems
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
                for name, table in made.items()
                if costs.points(table)
            ],
            datatables=base64.b64encode(library).decode(),
            figures=drawn,
        )
    )
    write_text(out, text)


def pictures_of_classes(plan: ReportPlan, chosen: list[Path]) -> list[Picture]:
    """Accuracy by class, or confusions, of the first evaluation of each kind of label.

    Classes have an accuracy each. Counts, distances and other labels with an order have a confusion
    matrix, as their order shows which mistakes are small. The first seed of every run is shown.
    """
    results = sorted(
        ((path.parts[-3] in CONTROLS, path, read_json(path)) for path in chosen),
        key=lambda one: one[:2],
    )
    found: dict[tuple[str, str], Picture] = {}
    for evaluation in plan.evaluations:
        told: dict[str, dict[str, Any]] = {}
        for _, path, result in results:
            if path.stem == evaluation and "classes" in result:
                told.setdefault(path.parts[-3], result["classes"])
                kind = (result["dataset"], result["label"])
        if not told or kind in found:
            continue
        title = plan.title(evaluation)
        if kind[1] == "class" or not all("confusion" in one for one in told.values()):
            found[kind] = Picture(
                f"classes_{evaluation}",
                f"Accuracy by class: {title}",
                f"Of the test images of each class in {kind[0]} the percentage that is right.",
                figures.accuracy_by_class(told),
            )
        else:
            found[kind] = Picture(
                f"confusion_{evaluation}",
                f"What is taken for what: {title}",
                f"Of the test images of each {kind[1]} in {kind[0]} the percentage that is taken "
                "for each; what is right stands on the diagonal.",
                figures.confusions(told),
            )
    return list(found.values())


def pictures(results: Path, tidy: pd.DataFrame, data: Path) -> list[Picture]:
    """Loss curves, masks on images, and nearest neighbours of the first seed of every run."""
    first_seeds = tidy[tidy["run"] != "pixels"].groupby("run")["seed"].min()
    # Published weights have no log, and nothing of ours was masked to make them.
    trained = {
        run: results / "runs" / run / f"seed{first_seeds[run]}"
        for run in sorted(set(tidy[~tidy["method"].isin(["", "released"])]["run"]))
    }
    train = Images(data, "train")
    found = []
    if trained:
        found.append(
            Picture(
                "pretraining",
                "Pretraining",
                "Loss of the method's own task (not comparable between methods), and two monitors "
                "that fall towards 0 and 1 when features collapse.",
                figures.loss_curves({run: path / "train.jsonl" for run, path in trained.items()}),
            )
        )
    for run, path in trained.items():
        run_config = config.read_run(path / "run.yaml")
        grid = run_config.vit.grid
        if rows := run_config.recipe.masks(6, grid, generator("picture of masks")):
            found.append(
                Picture(
                    f"masks_{run}",
                    f"Masks of {run}",
                    "From top to bottom: the image; what the network that learns sees of it "
                    "(I-JEPA: the context block less the targets); and, for I-JEPA, the target "
                    "blocks, whose features are predicted.",
                    gallery.masks(rows, run_config.vit, train),
                )
            )
    dataset = read_index(data).dataset
    for run, seed in first_seeds.items():
        features = results / "features" / str(run) / f"seed{seed}" / dataset / "about.json"
        if features.exists():  # not where every evaluation runs the encoder itself
            found.append(
                Picture(
                    f"neighbours_{run}",
                    f"Nearest neighbours: {run}",
                    "A test image (framed) and the training images with the nearest features.",
                    gallery.nearest_images(features, train, Images(data, "test")),
                )
            )
    return found
