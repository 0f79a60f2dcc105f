"""One evaluation of one encoder on one data set: ``python -m evals NAME --help``."""

import argparse
import json
from pathlib import Path

from evals import load, names
from ijepa.data.shards import read_index, verify
from ijepa.errors import UserError, run_command


def main() -> None:
    """Entry point of the command line."""
    parser = argparse.ArgumentParser(prog="python -m evals", description=__doc__)
    parser.add_argument("name", help=f"one of {', '.join(names())}")
    parser.add_argument("--data", type=Path, required=True, help="folder of shards")
    parser.add_argument("--label", default="class", help="which of its kinds of label")
    parser.add_argument("--features", type=Path, help="about.json of evals.features")
    parser.add_argument("--encoder", type=Path, help="encoder file, to run it on images")
    parser.add_argument("--config", default="{}", help="settings that differ, as JSON")
    parser.add_argument("--images", type=json.loads, default={}, help='{"train": 2000}: not all')
    parser.add_argument(
        "--work", type=Path, help="folder for what a killed evaluation goes on from"
    )
    parser.add_argument("--out", type=Path, required=True, help="file for the result")
    options = parser.parse_args()
    # Not at the top: torch takes seconds, and --help needs none of it.
    from evals.run import evaluate
    from evals.subject import Subject

    try:
        raw = json.loads(options.config)
    except json.JSONDecodeError as error:
        raise UserError(f"--config is not JSON: {error}") from None
    given = {"features": options.features, "images": options.encoder}
    allowed = load(options.name).USES
    if not any(given.values()):
        raise UserError("give --features, or --encoder, or both")
    for path in given.values():
        if path is not None and not path.exists():
            raise UserError(f"{path} does not exist: make it first, or give another")
    uses = "both" if all(given.values()) else next(name for name in given if given[name])
    if uses not in allowed and not (uses == "both" and set(allowed) & set(given)):
        raise UserError(
            f"{options.name} uses {' or '.join(allowed)}, it was given {uses}: give --features for "
            "features, --encoder for images"
        )
    index = read_index(options.data)
    if not isinstance(options.images, dict) or not all(
        isinstance(count, int) and count > 0 for count in options.images.values()
    ):
        raise UserError(f'--images {options.images!r}: give counts by split, as {{"train": 2000}}')
    if unknown := options.images.keys() - index.splits.keys():
        raise UserError(
            f"--images names {', '.join(sorted(unknown))}; {options.data} has the splits "
            f"{', '.join(index.splits)}"
        )
    if not isinstance(raw, dict):
        raise UserError(f"--config {raw!r}: give keys and values")
    verify(options.data)
    subject = Subject(
        options.data,
        options.label,
        options.encoder,
        options.features,
        options.work,
        limit=options.images,
    )
    evaluate(options.name, raw, subject, options.out)


if __name__ == "__main__":
    run_command(main)
