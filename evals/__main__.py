"""One evaluation of one encoder on one data set: ``python -m evals NAME --help``."""

import argparse
import dataclasses
import hashlib
import json
import time
from pathlib import Path
from typing import Any

import torch

from evals import configure, load, names
from evals.subject import Subject
from ijepa.data.shards import read_index, verify
from ijepa.errors import UserError, run_command
from ijepa.files import digest, write_json
from ijepa.provenance import here


def evaluate(name: str, raw: dict[str, Any], subject: Subject, out: Path) -> None:
    """Write one result: metric, n, 95 % interval, protocol, and its provenance.

    Of top-1 also ``correct``, which test images were classified rightly (``evals.packed``), and
    ``classes``, how many of each class were, or were taken for another (``evals.by_class``).
    """
    config = configure(name, raw, f"evaluations.{name}")
    about = subject.about()
    index = subject.index
    made_of = (about["dataset"], about["data_version"])
    if made_of != (index.dataset, index.version()):
        raise UserError(
            f"{subject.features_of} has features of {' '.join(made_of)}, but {subject.data} is "
            f"{index.dataset} {index.version()}: extract them anew"
        )
    if subject.encoder is not None and digest(subject.encoder)[:12] != about["encoder"]:
        raise UserError(
            f"{subject.features_of} has features of encoder {about['encoder']}, but "
            f"{subject.encoder} is another one: extract them anew"
        )
    protocol = dataclasses.asdict(config)
    identity = [
        name,
        protocol,
        subject.label,
        subject.limit,
        about["encoder"],
        about["data_version"],
    ]
    text = json.dumps(identity, sort_keys=True)
    subject = dataclasses.replace(subject, identity=hashlib.sha256(text.encode()).hexdigest()[:12])
    begun = time.perf_counter()
    result = load(name).evaluate(config, subject)
    seconds = time.perf_counter() - begun
    classes = index.labels[subject.label]
    names = {"names": classes} if isinstance(classes, list) else {}
    write_json(
        out,
        {
            "evaluation": name,
            "dataset": about["dataset"],
            "label": subject.label,
            "split": "test",
            "metric": result.metric,
            "value": result.value,
            "n": result.n,
            "interval": [round(end, 5) for end in result.interval],
            "protocol": protocol,
            "images": subject.limit,
            "chosen": result.chosen,
            "seconds": round(seconds, 2),
            # It uses one, however many it sees.
            "gpu_seconds": round(seconds * torch.cuda.is_available(), 2),
            **({} if result.correct is None else {"correct": result.correct}),
            **({} if result.classes is None else {"classes": names | result.classes}),
            "about": about,
            **here(),
        },
    )
    if subject.work is not None:
        (subject.work / "checkpoint.pt").unlink(missing_ok=True)


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
