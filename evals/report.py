"""One self-contained page of tables and pictures: ``python -m evals.report --help``."""

import argparse
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined

from evals import figures, tables
from ijepa import config
from ijepa.data.loader import Images
from ijepa.errors import run_command
from ijepa.files import write_text


@dataclass(frozen=True)
class Picture:
    """One figure of the page."""

    title: str
    caption: str
    svg: str


def report(
    results: Path, chosen: list[Path], data: Path, specs: list[dict[str, Any]], out: Path
) -> None:
    """Write the page; it needs nothing but itself, neither a network nor other files.

    ``results`` is the folder, ``chosen`` are the results in it that tables and pictures show.
    """
    tidy = tables.read_results(chosen)
    shown = []
    for spec in specs:
        table = tables.tabulate(tidy, spec["evaluations"])
        view = tables.display(table, spec["evaluations"])
        shown.append(
            {
                "title": spec["title"],
                "columns": list(view.columns),
                "rows": view.to_numpy().tolist(),
                "note": tables.note(table),
            }
        )
    page = Environment(
        loader=PackageLoader("evals"), autoescape=True, undefined=StrictUndefined
    ).get_template("report.html")
    name = results.name
    text = page.render(
        name=name, results=results, tables=shown, figures=pictures(results, chosen, data)
    )
    write_text(out, text)


def pictures(results: Path, chosen: list[Path], data: Path) -> list[Picture]:
    """Loss curves, masks on images, and nearest neighbours of the first seed of every run."""
    seeds: dict[str, set[int]] = {}
    for path in chosen:
        seeds.setdefault(path.parts[-3], set()).add(int(path.parts[-2].removeprefix("seed")))
    first_seeds = {
        run: results / "runs" / run / f"seed{min(of_run)}"
        for run, of_run in sorted(seeds.items())
        if run != "pixels"
    }
    trained = {run: path for run, path in first_seeds.items() if run not in tables.CONTROLS}
    train, test = Images(data, "train"), Images(data, "test")
    found = [
        Picture(
            "Pretraining",
            "Loss of the method's own task (not comparable between methods), and two monitors that "
            "fall towards 0 and 1 when features collapse.",
            figures.loss_curves({run: path / "train.jsonl" for run, path in trained.items()}),
        )
    ]
    for run, path in trained.items():
        run_config = config.read(path / "run.yaml")
        if (masking := getattr(run_config.recipe, "masking", None)) is not None:
            found.append(
                Picture(
                    f"Masks of {run}",
                    "From top to bottom: the image; the context block less the targets, which is "
                    "all that the context encoder sees; the target blocks, whose features are "
                    "predicted.",
                    figures.masks(masking, run_config.vit, train),
                )
            )
    for run, path in first_seeds.items():
        features = results / "features" / run / f"{path.name}.safetensors"
        found.append(
            Picture(
                f"Nearest neighbours: {run}",
                "A test image (framed) and the training images with the nearest features.",
                figures.nearest_images(features, train, test),
            )
        )
    return found


def main() -> None:
    """Entry point of the command line."""
    parser = argparse.ArgumentParser(prog="python -m evals.report", description=__doc__)
    parser.add_argument("results", type=Path, help="results folder, for example results/mini")
    parser.add_argument("--data", type=Path, required=True, help="folder of shards")
    parser.add_argument("--tables", required=True, help="JSON list of {name, title, evaluations}")
    parser.add_argument("--out", type=Path, required=True, help="file for the page")
    parser.add_argument("--chosen", type=Path, nargs="+", required=True, help="evaluation JSON")
    options = parser.parse_args()
    report(options.results, options.chosen, options.data, json.loads(options.tables), options.out)


if __name__ == "__main__":
    run_command(main)
