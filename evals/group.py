"""Every evaluation that uses an encoder's stored features of a data set, in one process.

``python -m evals.group ENCODER --data SHARDS --evaluations JSON ...`` extracts the features once
and runs the evaluations on them, one after the other. torch is imported once, timm only where
features are missing.
"""

import argparse
import json
from pathlib import Path

from ijepa.encoder_file import PIXELS
from ijepa.errors import UserError, run_command
from ijepa.strict import strict


def main() -> None:
    """Entry point of the command line."""
    parser = argparse.ArgumentParser(prog="python -m evals.group", description=__doc__)
    parser.add_argument("encoder", help="encoder file, or the word pixels")
    parser.add_argument("--data", type=Path, required=True, help="folder of shards")
    parser.add_argument("--image-size", type=int, default=32, help="for pixels only")
    parser.add_argument("--features", type=Path, required=True, help="about.json of the features")
    parser.add_argument("--results", type=Path, required=True, help="folder for NAME.json")
    parser.add_argument("--work", type=Path, required=True, help="folder for interrupted ones")
    parser.add_argument("--images", type=json.loads, default={}, help='{"train": 2000}: not all')
    parser.add_argument(
        "--evaluations",
        required=True,
        help='JSON: [{"name": "knn", "evaluation": "knn", "label": "class", "config": {}}, ...]',
    )
    parser.add_argument("--done", type=Path, required=True, help="file that says: all are there")
    options = parser.parse_args()
    # Not at the top: torch takes seconds, and --help needs none of it.
    from evals.features import check_limit
    from evals.run import Item, evaluate_group, write_done

    try:
        raw = json.loads(options.evaluations)
    except json.JSONDecodeError as error:
        raise UserError(f"--evaluations is not JSON: {error}") from None
    items = [strict(Item, item, f"evaluations.{number}") for number, item in enumerate(raw)]
    check_limit(options.images, options.data)
    evaluate_group(
        items,
        None if options.encoder == PIXELS else Path(options.encoder),
        options.data,
        options.features,
        options.results,
        options.work,
        options.images,
        options.image_size,
    )
    write_done(options.done, items)


if __name__ == "__main__":
    run_command(main)
