"""A whole benchmark's config, checked before its first job.

``python -m evals.benchmark < config/mini.yaml`` says nothing, or what is wrong.
"""

import argparse
import re
import sys
from pathlib import Path
from typing import Any

from ijepa.errors import UserError, run_command


def parser() -> argparse.ArgumentParser:
    """Options of the command line: none but --help."""
    return argparse.ArgumentParser(prog="python -m evals.benchmark", description=__doc__)


if __name__ == "__main__":
    parser().parse_args()  # --help is answered before torch is there, which takes seconds

import yaml

from evals import configure, load, published
from evals.results import read_external
from ijepa.cost import run_of
from ijepa.data import register, tokens
from ijepa.layouts import LAYOUTS

TAKEN = {"tidy", "cost", "gpu_hours"}
"""What lies beside a config's tables."""


def check(benchmark: dict[str, Any]) -> None:
    """Raise UserError unless every run, evaluation and table of the config can be carried out."""
    runs, released = benchmark.get("runs", []), benchmark.get("released", [])
    for part, items in (
        ("runs and released", [*runs, *released]),
        ("evaluations", benchmark["evaluations"]),
        ("tables", benchmark["tables"]),
    ):
        names = [item["name"] for item in items]
        if doubled := sorted({name for name in names if names.count(name) > 1}):
            raise UserError(f"{part}: {', '.join(doubled)} is there twice: one name, one item")
    tokenizers = dict(benchmark.get("tokenizers", {}))
    for weights in released:
        where = f"released.{weights['name']}"
        if not re.fullmatch("[0-9a-fA-F]{64}", weights["sha256"]):
            raise UserError(
                f"{where}.sha256: {weights['sha256']!r} is no SHA-256: fetch the file once by "
                "hand, make sure that it is the right one, and write here what sha256sum says of it"
            )
        if (layout := weights.get("layout", "auto")) not in ("auto", *LAYOUTS):
            raise UserError(
                f"{where}.layout: {layout!r} is unknown: allowed are auto, {', '.join(LAYOUTS)}"
            )
    for run in runs:
        if "seed" in run:
            raise UserError(
                f"runs.{run['name']}.seed: a run has none of its own, or the rows of a table could "
                "not be compared: set seeds for the whole config"
            )
        parsed = run_of(benchmark, run)
        if (tokens_of := parsed.recipe.tokens) is not None:
            if "tokenizer" not in run.get("recipe", {}):
                raise UserError(
                    f"runs.{run['name']}.recipe.tokenizer: write the default, "
                    f"{tokens_of.tokenizer!r}, or another one: the workflow makes what is named"
                )
            tokenizers.setdefault(tokens_of.tokenizer, {})
    for name, settings in tokenizers.items():
        tokens.configure(name, settings, f"tokenizers.{name}")
    encoders = {item["name"] for item in [*runs, *released]} | {"pixels"}
    encoders |= {"random_init"} if runs else set()
    for item in benchmark["evaluations"]:
        _check_evaluation(item, benchmark["dataset"], encoders)
    for dataset, counts in benchmark.get("images", {}).items():
        for split, count in counts.items():
            have = register.load(dataset).splits.get(split, 0)
            if have is not None and count > have:
                raise UserError(
                    f"images.{dataset}.{split}: {count} cannot be had; {dataset} has {have}"
                )
    known = {
        item["name"]: item.get("dataset", benchmark["dataset"]) for item in benchmark["evaluations"]
    }
    external = _check_external(benchmark, {*known}, encoders)
    methods = {run["name"]: run["method"] for run in runs}
    for table in benchmark["tables"]:
        _check_table(table, known, encoders | external, methods)


def _check_table(
    table: dict[str, Any],
    evaluations: dict[str, str],
    encoders: set[str],
    methods: dict[str, str],
) -> None:
    """Raise UserError unless the table can be made, and like is put beside like.

    ``evaluations`` has the data set of each.
    """
    if table["name"] in TAKEN:
        raise UserError(f"tables: {table['name']} is another file's name: give it another")
    where = f"tables.{table['name']}"
    if missing := set(table["evaluations"]) - evaluations.keys():
        raise UserError(
            f"{where}: {', '.join(sorted(missing))} is not among evaluations "
            f"({', '.join(sorted(evaluations))})"
        )
    if missing := set(table.get("runs", [])) - encoders:
        raise UserError(
            f"{where}.runs: {', '.join(sorted(missing))} is not among the encoders "
            f"({', '.join(sorted(encoders))})"
        )
    filled = published.fill(table)
    if not filled:
        return
    rows = published.rows_of(table["published"])
    if not {*table["evaluations"]} & {*rows}:
        raise UserError(
            f"{where}.evaluations: {table['published']} has none of them: it has "
            f"{', '.join(str(name) for name in rows if name not in published.IDENTITY)}"
        )
    for evaluation in {*table["evaluations"]} & {*rows}:
        if (of_paper := published.dataset_of(evaluation)) != evaluations[evaluation]:
            raise UserError(
                f"{where}.evaluations: {evaluation} is on {evaluations[evaluation]}, the published "
                f"numbers are on {of_paper}: give it another name, or make a table without "
                "published"
            )
    for run, number in filled.items():
        method = rows["method"][number]
        if methods.get(run, method) != method:
            raise UserError(
                f"{where}.runs.{run}: it is a run of {methods[run]}, the row is of {method}: state "
                "another row, or {} for one that the paper does not have"
            )


def _check_external(
    benchmark: dict[str, Any], evaluations: set[str], encoders: set[str]
) -> set[str]:
    """The runs that were measured elsewhere; raises UserError where a table could not show them."""
    table = read_external([Path(path) for path in benchmark.get("external", [])])
    for _, row in table.iterrows():
        if row["evaluation"] not in evaluations:
            raise UserError(
                f"external: {row['source']}: evaluation {row['evaluation']!r} is not among "
                f"evaluations ({', '.join(sorted(evaluations))})"
            )
        if row["run"] in encoders or row["run"] == "random_init":
            raise UserError(
                f"external: {row['source']}: run {row['run']!r} is one of this config: give it "
                "another name"
            )
    return set(table["run"])


def _check_evaluation(item: dict[str, Any], dataset: str, encoders: set[str]) -> None:
    """Raise UserError unless the evaluation can be carried out."""
    where = f"evaluations.{item['name']}"
    name = item.get("evaluation", item["name"])
    allowed = load(name).USES
    if (uses := item.get("uses", "features")) not in allowed:
        raise UserError(f"{where}.uses: {uses} is impossible: {name} uses {' or '.join(allowed)}")
    if unknown := item.get("config_of", {}).keys() - encoders:
        raise UserError(
            f"{where}.config_of: {', '.join(sorted(unknown))} is not among the encoders "
            f"({', '.join(sorted(encoders))})"
        )
    for encoder, raw in {"": {}, **item.get("config_of", {})}.items():
        place = f"{where}.config_of.{encoder}" if encoder else f"{where}.config"
        configure(name, {**item.get("config", {}), **raw}, place)
    entry = register.load(item.get("dataset", dataset))
    if (label := item.get("label", "class")) not in entry.labels:
        known = ", ".join(entry.labels) or "none: its images have no labels"
        raise UserError(f"{where}.label: {entry.name} has no label {label!r}; it has {known}")
    if "test" not in entry.splits:
        raise UserError(f"{where}.dataset: {entry.name} has no test images")


def main() -> None:
    """Entry point of the command line."""
    parser().parse_args()
    check(yaml.safe_load(sys.stdin))


if __name__ == "__main__":
    run_command(main)
