"""A whole benchmark's config, checked before its first job.

``python -m evals.benchmark < config/mini.yaml`` says nothing, or what is wrong.
"""

import argparse
import re
import sys
from typing import Any

import yaml

from evals import load
from ijepa import config
from ijepa.data import register, tokens
from ijepa.errors import UserError, run_command
from ijepa.released import LAYOUTS
from ijepa.strict import strict


def check(benchmark: dict[str, Any]) -> None:
    """Raise UserError unless every run, evaluation and table of the config can be carried out."""
    runs, released = benchmark.get("runs", []), benchmark.get("released", [])
    shared = {key: benchmark[key] for key in ("dataset", "vit") if key in benchmark}
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
        if own := sorted({"dataset", "seed"} & run.keys()):
            raise UserError(
                f"runs.{run['name']}.{own[0]}: a run has none of its own, or the rows of a table "
                "could not be compared: set it for the whole config"
            )
        raw = {key: value for key, value in {**shared, **run}.items() if key != "name"}
        parsed = config.parse(raw, f"runs.{run['name']}")
        if (tokens_of := parsed.recipe.tokens) is not None:
            if "tokenizer" not in run.get("recipe", {}):
                raise UserError(
                    f"runs.{run['name']}.recipe.tokenizer: write the default, "
                    f"{tokens_of.tokenizer!r}, or another one: the workflow makes what is named"
                )
            tokenizers.setdefault(tokens_of.tokenizer, {})
    for split, count in benchmark.get("images", {}).items():
        splits = register.load(benchmark["dataset"]).splits
        if not 1 <= count <= splits.get(split, 0):
            raise UserError(
                f"images.{split}: {count} cannot be had; {benchmark['dataset']} has "
                + ", ".join(f"{number} of {name}" for name, number in splits.items())
            )
    for name, settings in tokenizers.items():
        tokens.configure(name, settings, f"tokenizers.{name}")
    for evaluation in benchmark["evaluations"]:
        where = f"evaluations.{evaluation['name']}"
        strict(load(evaluation["name"]).Config, evaluation.get("config", {}), where)
    known = {evaluation["name"] for evaluation in benchmark["evaluations"]}
    for table in benchmark["tables"]:
        if missing := set(table["evaluations"]) - known:
            raise UserError(
                f"tables.{table['name']}: {', '.join(sorted(missing))} is not among evaluations "
                f"({', '.join(sorted(known))})"
            )


def main() -> None:
    """Entry point of the command line."""
    argparse.ArgumentParser(prog="python -m evals.benchmark", description=__doc__).parse_args()
    check(yaml.safe_load(sys.stdin))


if __name__ == "__main__":
    run_command(main)
