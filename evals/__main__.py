"""Run one evaluation of one encoder on one data set: ``python -m evals NAME --help``."""

import argparse
from pathlib import Path

from evals.protocol import evaluation_names, load_evaluation
from ijepa.data.shards import check_limit, verify
from ijepa.errors import UserError, program, run_command
from ijepa.files import read_yaml


def main() -> None:
    """Entry point of the command line."""
    parser = argparse.ArgumentParser(prog=program("evals"), description=__doc__)
    parser.add_argument("name", help=f"one of {', '.join(evaluation_names())}")
    parser.add_argument("--data", type=Path, required=True, help="folder of shards")
    parser.add_argument("--label", default="class", help="kind of label, if it has several")
    parser.add_argument("--features", type=Path, help="about.json that evals.features wrote")
    parser.add_argument("--encoder", type=Path, help="encoder file, to run it on the images")
    parser.add_argument(
        "--config", type=Path, help="YAML file of settings that differ from the defaults"
    )
    parser.add_argument(
        "--images",
        nargs="*",
        default=[],
        metavar="SPLIT=NUMBER",
        help="use only the first images of a split, for example train=2000",
    )
    parser.add_argument(
        "--work", type=Path, help="folder for the checkpoint of an interrupted evaluation"
    )
    parser.add_argument("--out", type=Path, required=True, help="file for the result")
    options = parser.parse_args()
    # Not at the top: torch takes seconds to import, and --help does not need it.
    from evals.features import split_counts
    from evals.run import evaluate
    from evals.subject import Subject

    raw = {} if options.config is None else read_yaml(options.config)
    inputs = {"features": options.features, "images": options.encoder}
    allowed = load_evaluation(options.name).USES
    if not any(inputs.values()):
        raise UserError("give --features, or --encoder, or both")
    for path in inputs.values():
        if path is not None and not path.exists():
            raise UserError(f"{path} does not exist: make it first, or give another")
    uses = "both" if all(inputs.values()) else next(name for name in inputs if inputs[name])
    if uses not in allowed and not (uses == "both" and set(allowed) & set(inputs)):
        raise UserError(
            f"{options.name} uses {' or '.join(allowed)}, it was given {uses}: give --features for "
            "features, --encoder for images"
        )
    images = split_counts(options.images)
    check_limit(images, options.data)
    if not isinstance(raw, dict):
        raise UserError(f"{options.config} must hold keys and values")
    verify(options.data)
    subject = Subject(
        options.data,
        options.label,
        options.encoder,
        options.features,
        options.work,
        limit=images,
    )
    evaluate(options.name, raw, subject, options.out)


if __name__ == "__main__":
    run_command(main)
