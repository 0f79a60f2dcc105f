"""Ready-made WebDataset shards, on this machine or at any address that webdataset opens.

``options.train`` and ``options.test`` are patterns with brace notation, such as
``imagenet-train-{0000..1023}.tar``. Paths are relative to the folder of raw files, and are read in
place; shards at an address (http, https, gs, pipe, ...) are fetched first, and not again if only
the address's signature is renewed. ``hf://datasets/USER/NAME/FILE`` is on the Hub; HF_TOKEN in the
environment opens a gated data set, and an interrupted shard goes on. A pattern that ends in ``/``
is a folder of shards ``0.tar``, ``1.tar`` and so on, whose number is in its ``nshards.txt``: such
are CLIP_benchmark's copies of data sets on the Hugging Face Hub.

An image's only label is in ``KEY.cls`` or, under the name ``options.json_label``, in ``KEY.json``;
one of several labels is in ``KEY.NAME.cls``.
"""

import hashlib
import json
from collections.abc import Callable, Iterator
from itertools import groupby
from pathlib import Path
from typing import IO
from urllib.parse import urlparse
from urllib.request import url2pathname

import webdataset
from tqdm import tqdm
from webdataset.shardlists import expand_urls
from webdataset.tariterators import base_plus_ext

from ijepa.data.addresses import HUB, on_the_hub, unsigned, without_secrets
from ijepa.data.archives import tar_entries, verify_once
from ijepa.data.download import download
from ijepa.data.register import Dataset
from ijepa.data.source import Entry
from ijepa.errors import REMEDIES, UserError
from ijepa.files import written_whole

ENDINGS = {"jpg", "jpeg", "png", "webp", "ppm", "pgm", "pbm", "pnm"}
BANDS = {"npy", "tif", "tiff"}
"""Endings of images only of data sets with other channels or bits than RGB's."""
OPTIONS = {"train", "test", "json_label"}
COUNT = "nshards.txt"

Members = dict[str, tuple[int, int]]
"""First byte and number of bytes in the tar, by ending."""


def missing(dataset: Dataset, raw: Path) -> list[str]:
    """Shards on this machine that are not there."""
    return [
        f"{path} (a shard of options.{split})"
        for split in dataset.splits
        for address, path in _listed(dataset, raw, split)
        if not _is_remote(address) and not path.exists()
    ]


def fetch(dataset: Dataset, raw: Path) -> None:
    """Download the shards that are elsewhere, one after the other, and check the checksums."""
    if missing_shards := missing(dataset, raw):
        raise UserError(f"bring {', '.join(missing_shards)}, or correct options, then run again")
    for split in dataset.splits:
        for address, path in _listed(dataset, raw, split)[:1]:
            if path.suffix == ".txt" and not path.exists():
                _download(address, path, lambda _: None)
        shards = _shards(dataset, raw, split)
        elsewhere = [(address, path) for address, path in shards if not path.exists()]
        with tqdm(unit="B", unit_scale=True, mininterval=1, disable=not elsewhere) as bar:
            for number, (address, path) in enumerate(elsewhere, 1):
                bar.set_description(f"download {split} shard {number} of {len(elsewhere)}")
                _download(address, path, bar.update)
        for address, path in shards:
            if checksum := unsigned(dataset.checksums).get(unsigned(address)):
                verify_once(path, checksum)


def entries(dataset: Dataset, raw: Path, split: str) -> Iterator[Entry]:
    """Images of a split, shard by shard, in the order of each tar."""
    empty, endings = True, ENDINGS if dataset.rgb else ENDINGS | BANDS
    for _, path in _shards(dataset, raw, split):
        if not path.exists():
            raise UserError(f"{path} is missing: fetch it (make shards)")
        with path.open("rb") as file:
            for key, members in _samples(path):
                where = f"{path}: sample {key!r}"
                pictures = [ending for ending in members if ending.split(".")[-1] in endings]
                if len(pictures) != 1:
                    raise UserError(
                        f"{where} has {len(pictures)} images among {', '.join(members)}: each "
                        f"sample needs one of {', '.join(sorted(endings))}"
                    )
                labels = {
                    label: _label(dataset, label, members, file, where) for label in dataset.labels
                }
                empty = False
                yield Entry(path, *members[pictures[0]], f"{path.name}: {key}", labels)
    if empty:
        raise UserError(f"the shards {unsigned(dataset.options[split])} of {split} have no sample")


def encode(dataset: Dataset, content: bytes) -> bytes:
    """Image file, unchanged."""
    return content


def _listed(dataset: Dataset, raw: Path, split: str) -> list[tuple[str, Path]]:
    """Address and file of every shard, or of ``nshards.txt`` as long as that is not there."""
    pattern = _pattern(dataset, split)
    if pattern.endswith("/"):
        address = f"{pattern}{COUNT}"
        path = _file(raw, split, 0, address)
        if not path.exists():
            return [(address, path)]
        text = path.read_text(encoding="utf-8", errors="replace").strip()
        if not text.isdecimal() or int(text) < 1:
            raise UserError(f"{path} says {text!r}, no number of shards: bring it again")
        pattern += f"{{0..{int(text) - 1}}}.tar"
    return [
        (address, _file(raw, split, number, address))
        for number, address in enumerate(expand_urls(pattern))
    ]


def _shards(dataset: Dataset, raw: Path, split: str) -> list[tuple[str, Path]]:
    """Address and file of every shard; raises UserError if their number is not known."""
    shards = _listed(dataset, raw, split)
    if shards and shards[0][1].suffix == ".txt":
        raise UserError(f"{shards[0][1]} is missing: fetch it (make shards)")
    return shards


def _pattern(dataset: Dataset, split: str) -> str:
    pattern: str | None = dataset.options.get(split)
    texts = all(isinstance(value, str) for value in dataset.options.values())
    if pattern is None or not texts or set(dataset.options) - OPTIONS:
        raise UserError(
            f"datasets.yaml: {dataset.name}: options are {unsigned(dataset.options)}: give a "
            f"pattern of the shards of {split} as text; known are {', '.join(sorted(OPTIONS))}"
        )
    return pattern


def _is_remote(address: str) -> bool:
    return urlparse(address).scheme not in ("", "file")


def _file(raw: Path, split: str, number: int, address: str) -> Path:
    """Path of a shard, downloaded or not; shards of different addresses have different paths."""
    if _is_remote(address):
        mark = hashlib.sha256(unsigned(address).encode()).hexdigest()[:8]
        return raw / f"{split}-{number:05d}-{mark}{'.txt' if address.endswith(COUNT) else '.tar'}"
    url = urlparse(address)
    return Path(url2pathname(url.path)) if url.scheme else raw / address


def _download(address: str, path: Path, count: Callable[[int], object]) -> None:
    if address.startswith(HUB):
        url, headers = on_the_hub(address)
        download(url, path, headers=headers)
        count(path.stat().st_size)
        return
    with written_whole(path) as part, part.open("wb") as file:
        try:
            # A command that fails says so when its stream is closed.
            with webdataset.gopen(address) as stream:
                while block := stream.read(1 << 20):
                    file.write(block)
                    count(len(block))
        except (OSError, ValueError) as error:
            if isinstance(error, OSError) and error.errno in REMEDIES:
                raise
            fault = without_secrets(str(error))  # it may repeat the address
            raise UserError(
                f"{unsigned(address)} could not be fetched ({fault}): check the address (its "
                "signature may be out of date: renew it in datasets.yaml) and the network, "
                "then run again; the shards that are there are kept"
            ) from None


def _samples(path: Path) -> Iterator[tuple[str, Members]]:
    """Key and members of each sample: members with one key that follow each other."""
    seen = set()
    files = ((*base_plus_ext(name), extent) for name, *extent in tar_entries(path))
    for key, group in groupby((file for file in files if file[0]), key=lambda file: file[0]):
        members: Members = {}
        for _, ending, (offset, size) in group:
            if ending.lower() in members:
                raise UserError(f"{path}: sample {key!r} has two members {ending}")
            members[ending.lower()] = (offset, size)
        if key in seen:
            raise UserError(
                f"{path}: key {key!r} comes back after others: the members of a sample must "
                "follow each other, so sort the tar by name"
            )
        seen.add(key)
        yield key, members


def _label(dataset: Dataset, label: str, members: Members, file: IO[bytes], where: str) -> int:
    """Number of a sample's class."""
    endings = [f"{label}.cls", *(["cls", "json"] if len(dataset.labels) == 1 else [])]
    ending = next((ending for ending in endings if ending in members), None)
    if ending is None:
        raise UserError(
            f"{where} has no {' or '.join(endings)} for the label {label!r} among "
            f"{', '.join(members)}: correct `labels`, or bring other shards"
        )
    offset, size = members[ending]
    file.seek(offset)
    content = file.read(size)
    name = dataset.options.get("json_label", "label")
    try:
        number = json.loads(content)[name] if ending == "json" else int(content)
    except (ValueError, TypeError, KeyError):
        detail = f" under the name {name!r} (options.json_label)" if ending == "json" else ""
        raise UserError(f"{where}: {ending} has no number of a class{detail}") from None
    num_classes = dataset.num_classes(label)
    if type(number) is not int or not 0 <= number < (num_classes or number + 1):
        raise UserError(
            f"{where} has {label} {number!r}; datasets.yaml has {num_classes} classes from 0 on"
        )
    return number
