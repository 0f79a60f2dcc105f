"""One self-contained page of tables and pictures: ``python -m evals.report --help``."""

import argparse
import base64
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ijepa.errors import run_command


def parser() -> argparse.ArgumentParser:
    """Options of the command line."""
    options = argparse.ArgumentParser(prog="python -m evals.report", description=__doc__)
    options.add_argument("results", type=Path, help="results folder, for example results/mini")
    options.add_argument("--data", type=Path, required=True, help="folder of shards")
    options.add_argument("--config", required=True, help="the config: a file, or its text as JSON")
    options.add_argument("--gpu-hours", type=Path, help="CSV of evals.gpu_hours")
    options.add_argument("--predicted", type=Path, help="CSV of ijepa.cost")
    options.add_argument("--out", type=Path, required=True, help="file for the page")
    options.add_argument("--chosen", type=Path, nargs="*", required=True, help="evaluation JSON")
    return options


if __name__ == "__main__":
    parser().parse_args()  # --help is answered before torch is there, which takes seconds

import pandas as pd
from itables import options

from evals import costs, figures, gallery, shapes, tables
from evals.formats import environment
from evals.results import CONTROLS, external
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
    of: dict[str, Any],
    out: Path,
    gpu_hours: Path | None = None,
    predicted: Path | None = None,
) -> None:
    """Write the page, and its figures beside it as files.

    The page needs nothing but itself, neither a network nor other files.

    ``results`` is the folder, ``chosen`` are the results in it that tables and pictures show, and
    ``of`` is their config. ``gpu_hours`` and ``predicted`` are CSV of evals.gpu_hours and
    ijepa.cost.
    """
    tidy = tables.read(of, chosen, gpu_hours)
    made = tables.tables_of(of, tidy)
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
        *pictures_of_classes(of, chosen),
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


def pictures_of_classes(of: dict[str, Any], chosen: list[Path]) -> list[Picture]:
    """Of each kind of label what the first evaluation tells: accuracy by class, or confusion.

    Classes are told one by one; counts, distances and other kinds of label, whose order says which
    mistakes are small ones, by what they are taken for. It is the first seed of every run.
    """
    results = sorted(
        ((path.parts[-3] in CONTROLS, path, read_json(path)) for path in chosen),
        key=lambda one: one[:2],
    )
    found: dict[tuple[str, str], Picture] = {}
    for item in of["evaluations"]:
        told: dict[str, dict[str, Any]] = {}
        for _, path, result in results:
            if path.stem == item["name"] and "classes" in result:
                told.setdefault(path.parts[-3], result["classes"])
                kind = (result["dataset"], result["label"])
        if not told or kind in found:
            continue
        title = item.get("title", item["name"])
        if kind[1] == "class" or not all("confusion" in one for one in told.values()):
            found[kind] = Picture(
                f"classes_{item['name']}",
                f"Accuracy by class: {title}",
                f"Of the test images of each class in {kind[0]} the percentage that is right.",
                figures.accuracy_by_class(told),
            )
        else:
            found[kind] = Picture(
                f"confusion_{item['name']}",
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
        run_config = config.read(path / "run.yaml")
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


def main() -> None:
    """Entry point of the command line."""
    given = parser().parse_args()
    report(
        given.results,
        given.chosen,
        given.data,
        tables.read_config(given.config),
        given.out,
        given.gpu_hours,
        given.predicted,
    )


if __name__ == "__main__":
    run_command(main)
