"""Run one evaluation, or all that use the same stored features; each writes one JSON file."""

import dataclasses
import hashlib
import json
import time
import traceback
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from evals.features import extract
from evals.identity import identity_of, is_same, protocol_of
from evals.pooling import kinds, resolved
from evals.protocol import Facts, Uses, check, configure, load_evaluation
from evals.subject import Subject, checked_labels
from ijepa.allocator import keep_freed_memory
from ijepa.architecture import ViTConfig
from ijepa.encoder_file import encoder_digest, read_header
from ijepa.errors import UserError
from ijepa.files import write_json, write_text
from ijepa.provenance import here
from ijepa.result_file import FORMAT


@dataclass(frozen=True)
class Item:
    """One evaluation of a group: file name of its result, module, kind of label, settings."""

    name: str
    evaluation: str
    label: str = "class"
    config: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Plan:
    """Evaluations of a group, and the number of images to use by split, where not all are."""

    evaluations: list[Item]
    images: dict[str, int] = field(default_factory=dict)


def evaluate(name: str, raw: dict[str, Any], subject: Subject, out: Path) -> None:
    """Write one result: metric, n, 95 % interval, protocol, and its provenance.

    A top-1 result also has ``correct``, a bit for each test image, and ``classes``, the counts of
    right and confused images by class (``evals.result``).
    """
    keep_freed_memory()
    about = subject.about()
    where = f"evaluations.{name}"
    config = resolved(configure(name, raw, where), about, where)
    index = subject.index
    source = (about["dataset"], about["data_version"])
    if source != (index.dataset, index.version()):
        raise UserError(
            f"{subject.features_of} has features of {' '.join(source)}, but {subject.data} is "
            f"{index.dataset} {index.version()}: extract them anew"
        )
    if subject.encoder is not None and encoder_digest(subject.encoder) != about["encoder"]:
        raise UserError(
            f"{subject.features_of} has features of encoder {about['encoder']}, but "
            f"{subject.encoder} is another one: extract them anew"
        )
    check(name, config, facts_of(subject, about), where)
    identity = identity_of(name, config, subject.label, subject.limit, about)
    text = json.dumps(identity, sort_keys=True)
    identity_hash = hashlib.sha256(text.encode()).hexdigest()[:12]
    subject = dataclasses.replace(subject, identity=identity_hash, out=out)
    start = time.perf_counter()
    result = load_evaluation(name).evaluate(config, subject)
    seconds = time.perf_counter() - start
    classes = index.labels[subject.label]
    names = {"names": classes} if isinstance(classes, list) else {}
    write_json(
        out,
        {
            "format": FORMAT,
            "evaluation": name,
            "dataset": about["dataset"],
            "label": subject.label,
            "split": "test",
            "metric": result.metric,
            "value": result.value,
            "n": result.n,
            "interval": [round(end, 5) for end in result.interval],
            "protocol": protocol_of(config),
            "images": subject.limit,
            "chosen": result.chosen,
            "seconds": round(seconds, 2),
            # It holds all GPUs that it sees, whether it uses them or not.
            "gpu_seconds": round(seconds * torch.cuda.device_count(), 2),
            **({} if result.correct is None else {"correct": result.correct}),
            **({} if result.classes is None else {"classes": names | result.classes}),
            "about": about,
            **here(),
        },
    )
    if subject.work is not None:
        (subject.work / "checkpoint.pt").unlink(missing_ok=True)


def facts_of(subject: Subject, header: dict[str, Any]) -> Facts:
    """Facts of a subject; ``header`` is that of its encoder, or the provenance of its features."""
    labels = checked_labels(subject, "train")
    uses: Uses = "features" if subject.encoder is None else "images"
    vit = ViTConfig(**header["run"]["vit"]) if "run" in header else None
    return Facts(
        uses="both" if subject.features_of and subject.encoder else uses,
        depth=vit.depth if vit else None,
        class_token="cls" in kinds(header),
        channels=vit.channels if vit else None,
        square=vit.is_square if vit else True,
        pixels=(subject.index.channels, subject.index.bits),
        images=len(labels),
        rarest=int(labels.bincount(minlength=subject.num_classes).min()),
        subsets=tuple(subject.images("train").subsets),
    )


def evaluate_group(
    items: list[Item],
    encoder: Path | None,
    data: Path,
    features: Path,
    results: Path,
    work: Path,
    limit: dict[str, int],
) -> None:
    """Extract an encoder's features of a data set once, then write the result of every item.

    ``features`` is about.json of the features, ``results`` the folder of ``NAME.json``, ``work`` a
    folder in which each evaluation keeps its checkpoint while it runs. An existing result of the
    same evaluation, settings, encoder and data is kept. If an evaluation fails, the others still
    run; UserError then names those that failed.
    """
    header = {} if encoder is None else read_header(encoder)
    configs = {}
    facts = {
        label: facts_of(Subject(data, label, None, features, limit=limit), header)
        for label in {item.label for item in items}
    }
    for item in items:  # before extraction: a wrong setting must not be told after hours of it
        where = f"evaluations.{item.name}"
        raw = configure(item.evaluation, item.config, where)
        configs[item.name] = config = resolved(raw, header, where)
        check(item.evaluation, config, facts[item.label], where)
    extract(encoder, data, features, limit)
    failures = []
    for item in items:
        out = results / f"{item.name}.json"
        subject = Subject(data, item.label, None, features, work / item.name, limit=limit)
        config = configs[item.name]
        identity = identity_of(item.evaluation, config, item.label, limit, subject.about())
        if is_same(out, identity):
            print(f"{item.name}: there already", flush=True)
            continue
        try:
            evaluate(item.evaluation, item.config, subject, out)
        except Exception as error:  # any error is reported at the end, after the others
            if not isinstance(error, UserError):
                traceback.print_exc()
            failures.append(f"{item.name}: {type(error).__name__ if not str(error) else error}")
        else:
            print(f"{item.name}: {out}", flush=True)
    if failures:
        raise UserError(
            f"{len(failures)} of {len(items)} evaluations failed, the others are kept: "
            + "; ".join(" ".join(text.split()) for text in failures)
        )


def write_done(path: Path, items: list[Item]) -> None:
    """Write the completion marker of a group: the names of its results, a line each."""
    write_text(path, "".join(f"{item.name}\n" for item in items))
