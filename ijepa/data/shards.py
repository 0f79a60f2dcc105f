"""WebDataset shards and their index: ``python -m ijepa.data.shards fetch|build|verify``.

A split lies in ``SPLIT-00000.tar`` and so on. Beside each tar stands ``SPLIT-00000.json`` with its
SHA-256, its labels and where in the tar each image begins, so that any image is one read away; a
shard is finished when that file is there and right. ``index.json``, written last, sums them up.
"""

import argparse
import hashlib
import io
import json
import logging
import tarfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import webdataset
from PIL import Image
from tqdm import tqdm

from ijepa.data import register, sources
from ijepa.data.register import Dataset
from ijepa.data.sources import Sample
from ijepa.errors import UserError, run_command
from ijepa.files import digest, to_json, write_json, write_text, written_whole

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Shard:
    """One tar: its SHA-256, and for each image (first byte, number of bytes) and label."""

    sha256: str
    places: list[tuple[int, int]]
    labels: list[int]


@dataclass(frozen=True)
class Index:
    """What ``index.json`` says of a folder of shards."""

    dataset: str
    licence: str
    classes: list[str]
    splits: dict[str, list[dict[str, Any]]]

    def version(self) -> str:
        """A short name for exactly this data, from the checksums of all shards."""
        sums = [shard["sha256"] for shards in self.splits.values() for shard in shards]
        return hashlib.sha256("".join(sums).encode()).hexdigest()[:12]


def build(name: str, raw: Path, out: Path) -> None:
    """Write the shards that are missing or damaged, then the index.

    The same raw files give the same bytes. An index that would not change is not touched, so that a
    mended shard does not make all later results look out of date.
    """
    dataset = register.load(name)
    out.mkdir(parents=True, exist_ok=True)
    splits: dict[str, list[dict[str, Any]]] = {}
    with tqdm(total=sum(dataset.splits.values()), desc=f"shards of {name}", unit="image") as bar:
        for split, size in dataset.splits.items():
            splits[split] = []
            for number, first in enumerate(range(0, size, dataset.shard_size)):
                path = out / f"{split}-{number:05d}.tar"
                count = min(dataset.shard_size, size - first)
                shard = _finished(path)
                if shard is None:
                    shard = _write(path, dataset, raw, split, first, count)
                if len(shard.labels) != count:
                    raise UserError(
                        f"{path} has {len(shard.labels)} images, datasets.yaml says {count}: "
                        "delete it, and check the raw files"
                    )
                splits[split].append(
                    {
                        "name": path.name,
                        "num_samples": count,
                        "sha256": shard.sha256,
                        "places_sha256": digest(path.with_suffix(".json")),
                    }
                )
                bar.update(count)
    index = asdict(Index(name, dataset.licence, dataset.classes, splits))
    path = out / "index.json"
    if not path.exists() or path.read_bytes() != to_json(index).encode():
        write_text(path, to_json(index))


def read_index(folder: Path) -> Index:
    """The index of a folder of shards."""
    path = folder / "index.json"
    try:
        return Index(**json.loads(path.read_text(encoding="utf-8")))
    except FileNotFoundError:
        raise UserError(f"{path} is missing: make the shards first (make shards)") from None
    except (ValueError, TypeError) as error:
        raise UserError(
            f"{path} is damaged ({error}): delete it and make the shards again"
        ) from None


def read_shard(path: Path) -> Shard:
    """What stands beside a tar about its content; raises UserError if that is damaged."""
    try:
        content = json.loads(path.with_suffix(".json").read_text(encoding="utf-8"))
        return Shard(content["sha256"], [(a, b) for a, b in content["places"]], content["labels"])
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"{path.with_suffix('.json')} is damaged ({error}): make shards") from None


def verify(folder: Path, splits: list[str] | None = None) -> Index:
    """The index, after every shard of the splits was compared with it, byte for byte.

    Raises UserError that names each missing or damaged shard.
    """
    index = read_index(folder)
    for split in splits or []:
        if split not in index.splits:
            raise UserError(f"{folder} has no split {split!r}: it has {', '.join(index.splits)}")
    shards = [s for split in splits or index.splits for s in index.splits[split]]
    with ThreadPoolExecutor() as pool:
        faults = [fault for fault in pool.map(lambda s: _fault(folder, s), shards) if fault]
    if faults:
        raise UserError(
            f"{'; '.join(faults)}. To mend: make shards, or python -m ijepa.data.shards build "
            f"{index.dataset} --raw RAW --out {folder} (only these are written again)"
        )
    return index


def _fault(folder: Path, shard: dict[str, Any]) -> str | None:
    path = folder / shard["name"]
    if not path.exists() or not path.with_suffix(".json").exists():
        return f"{path} is missing"
    for file, sha256 in ((path, "sha256"), (path.with_suffix(".json"), "places_sha256")):
        if digest(file) != shard[sha256]:
            return f"{file} is damaged: its SHA-256 is not that of index.json"
    return None


def _finished(path: Path) -> Shard | None:
    """The shard if it is there and whole."""
    if not path.exists() or not path.with_suffix(".json").exists():
        return None
    try:
        shard = read_shard(path)
    except UserError:
        shard = None
    if shard is None or digest(path) != shard.sha256 or shard != scan(path):
        log.warning("%s is damaged: writing it again", path)
        return None
    return shard


def scan(path: Path) -> Shard:
    """What a tar holds, from the tar itself."""
    places, labels = [], []
    with tarfile.open(path) as tar:
        for member in tar:
            if member.name.endswith(".cls"):
                content = tar.extractfile(member)
                assert content is not None
                labels.append(int(content.read()))
            else:
                places.append((member.offset_data, member.size))
    return Shard(digest(path), places, labels)


def _write(path: Path, dataset: Dataset, raw: Path, split: str, first: int, count: int) -> Shard:
    source = sources.load(dataset.source)
    samples: Iterator[Sample] = islice(source.samples(dataset, raw, split, first), count)
    with written_whole(path) as part:
        with (
            part.open("wb") as file,
            # A fixed time and owner, or the same images would give other bytes.
            webdataset.TarWriter(file, encoder=False, mtime=0) as writer,
        ):
            for number, sample in enumerate(samples, start=first):
                decodable(sample, f"{split} image {number} of {raw}")
                label = str(sample.label).encode()
                writer.write(
                    {"__key__": f"{number:08d}", "cls": label, sample.ending: sample.image}
                )
        shard = scan(part)
    write_json(path.with_suffix(".json"), asdict(shard))
    return shard


def decodable(sample: Sample, name: str) -> None:
    """Raise UserError if an image is corrupt: better now than after hours of training."""
    try:
        with Image.open(io.BytesIO(sample.image)) as image:
            image.load()
    except (OSError, SyntaxError) as error:
        raise UserError(f"{name} is corrupt ({error}): mend the raw file, then run again") from None


def main() -> None:
    """Entry point of the command line."""
    parser = argparse.ArgumentParser(prog="python -m ijepa.data.shards", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    for command, text in (
        ("fetch", "download the raw files and check them"),
        ("build", "write the shards that are missing or damaged"),
        ("verify", "compare every shard with the index"),
    ):
        sub = commands.add_parser(command, help=text, description=text)
        if command != "verify":
            sub.add_argument("dataset", help="a name in data/datasets.yaml")
            sub.add_argument("--raw", type=Path, required=True, help="folder of the raw files")
        if command != "fetch":
            sub.add_argument("--out", type=Path, required=True, help="folder of the shards")
    options = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    if options.command == "fetch":
        dataset = register.load(options.dataset)
        sources.load(dataset.source).fetch(dataset, options.raw)
    elif options.command == "build":
        build(options.dataset, options.raw, options.out)
    else:
        verify(options.out)


if __name__ == "__main__":
    run_command(main)
