"""WebDataset shards and their index: format, reading, verification (ijepa.data.build writes).

A split lies in ``SPLIT-00000.tar`` and so on. Beside each tar is ``SPLIT-00000.json`` with its
SHA-256, its labels and the place of each image in the tar, so that any image takes one read. A
shard is finished when that file is there and right. ``index.json``, written last, lists all shards.
The tars may lie at an address (ijepa.data.remote).

Images keep the order of the raw files, which makes building as fast as copying. Our loader reads
them in random order; a reader that streams the tars must shuffle them.
"""

import hashlib
import json
import os
import tarfile
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ijepa.data.bands import RGB
from ijepa.data.remote import CONNECTIONS, Remote, remote_of
from ijepa.errors import UserError
from ijepa.files import digest, read_json, write_json

ONLY_LABEL = "class"
"""Name of an only label, which is in ``KEY.cls``; one of several labels is in ``KEY.NAME.cls``."""


@dataclass(frozen=True)
class Shard:
    """One tar: its SHA-256; for each image (first byte, number of bytes) and each kind of label.

    ``subsets`` gives for each official list the numbers of its images in this shard, from 0.
    ``corrupt`` gives (name, fault) of the images that were left out.
    """

    sha256: str
    places: list[tuple[int, int]]
    labels: dict[str, list[int]]
    subsets: dict[str, list[int]] = field(default_factory=dict)
    corrupt: list[tuple[str, str]] = field(default_factory=list)


@dataclass(frozen=True)
class Index:
    """Content of ``index.json``, the description of a folder of shards.

    ``labels`` gives the classes of each kind of label, or their number if they have no names.
    ``channels`` and ``bits`` are the register's; they are left out of the file if they are those
    that every earlier version read, 3 and 8.
    """

    dataset: str
    licence: str
    view: str
    labels: dict[str, list[str] | int]
    splits: dict[str, list[dict[str, Any]]]
    channels: int = 3
    bits: int = 8

    @property
    def rgb(self) -> bool:
        """True if images are read as three channels of 8 bits."""
        return (self.channels, self.bits) == RGB

    def plain(self) -> dict[str, Any]:
        """Content of the file."""
        content = asdict(self)
        return {k: v for k, v in content.items() if k not in ("channels", "bits") or not self.rgb}

    def version(self) -> str:
        """Short hash of exactly this data, from the checksums of all shards."""
        sums = [shard["sha256"] for shards in self.splits.values() for shard in shards]
        sums += [] if self.rgb else [f"{self.channels} channels of {self.bits} bits"]
        return hashlib.sha256("".join(sums).encode()).hexdigest()[:12]


def read_index(folder: Path) -> Index:
    """Index of a folder of shards."""
    path = folder / "index.json"
    try:
        return parse_index(path.read_bytes())
    except FileNotFoundError:
        raise UserError(
            f"{path} is missing: make the shards first (make shards DATASET={folder.name})"
        ) from None
    except (ValueError, TypeError) as error:
        raise UserError(
            f"{path} is damaged, or of an earlier version ({error}): delete it and make the shards "
            "again"
        ) from None


def parse_index(content: bytes) -> Index:
    """Index from its file's bytes; raises ValueError or TypeError if they are something else."""
    return Index(**json.loads(content))


def read_shard(path: Path) -> Shard:
    """Description of a tar from the JSON file beside it; raises UserError if that is damaged."""
    try:
        content = json.loads(path.with_suffix(".json").read_text(encoding="utf-8"))
        pairs = {name: [(a, b) for a, b in content[name]] for name in ("places", "corrupt")}
        return Shard(**{**content, **pairs})
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"{path.with_suffix('.json')} is damaged ({error}): make shards") from None


@dataclass(frozen=True)
class Table:
    """Places, labels and official lists of all images of a split, in as few bytes as they need.

    An image takes 8 bytes, and one or two for each kind of label: every process has its own table.

    Args:
        ends: Number of images up to the end of each shard.
        places: Each image's first block in its tar, and its number of bytes, [images, 2] uint32.
            Files in a tar begin at a block of 512 bytes.
        labels: Class of every image by kind of label, in the smallest signed integers.
        subsets: Numbers of the images of each official list, likewise.
    """

    ends: NDArray[np.int64]
    places: NDArray[np.uint32]
    labels: dict[str, NDArray[Any]]
    subsets: dict[str, NDArray[Any]]

    def position(self, number: int) -> tuple[int, int, int]:
        """Number of an image's shard, its first byte in the tar and its number of bytes."""
        if number < 0:
            raise IndexError(number)
        block, size = self.places[number].tolist()
        return int(self.ends.searchsorted(number, side="right")), block * tarfile.BLOCKSIZE, size

    def tar_end(self, shard: int) -> int:
        """First byte after the last image of a tar that has images."""
        block, size = self.places[self.ends[shard] - 1].tolist()
        return int(block * tarfile.BLOCKSIZE + size)


def read_table(folder: Path, index: Index, split: str) -> Table:
    """Table of a split, from one shard's file at a time: parsed, an image takes 190 bytes.

    Raises UserError if a shard has another number of images than ``index.json`` says.
    """
    shards = index.splits[split]
    ends = np.cumsum([shard["num_samples"] for shard in shards], dtype=np.int64)
    count = int(ends[-1])
    labels = {name: np.empty(count, _smallest(classes)) for name, classes in index.labels.items()}
    places = np.empty((count, 2), np.uint32)
    lists: dict[str, list[NDArray[Any]]] = {}
    for entry, end in zip(shards, ends.tolist(), strict=True):
        shard = read_shard(folder / entry["name"])
        start = end - len(shard.places)
        if len(shard.places) != entry["num_samples"]:
            raise UserError(
                f"{folder / entry['name']} has {len(shard.places)} images, index.json says "
                f"{entry['num_samples']}: make shards"
            )
        places[start:end] = np.array(shard.places).reshape(-1, 2) // (tarfile.BLOCKSIZE, 1)
        for name in labels:
            labels[name][start:end] = shard.labels[name]
        for name, numbers in shard.subsets.items():
            of_split = start + np.array(numbers, np.int64)
            lists.setdefault(name, []).append(of_split.astype(_smallest(count)))
    subsets = {name: np.concatenate(lists[name]) for name in sorted(lists)}
    return Table(ends, places, labels, subsets)


def _smallest(classes: list[str] | int) -> np.dtype[Any]:
    """Smallest signed type of the numbers below a count, or of the numbers of named classes."""
    return np.min_scalar_type(-(classes if isinstance(classes, int) else len(classes)))


def verify(folder: Path, splits: list[str] | None = None) -> Index:
    """Compare every shard of the splits with the index, byte for byte, and return the index.

    A file that was compared before and has kept its size and modification time is not read again,
    because ImageNet takes minutes. Tars of a mirror that lie at its address are not read: the index
    there must be of the same version, and each tar as long as its places need. Raises UserError
    that names each missing or damaged shard.
    """
    index = read_index(folder)
    for split in splits or []:
        if split not in index.splits:
            raise UserError(f"{folder} has no split {split!r}: it has {', '.join(index.splits)}")
    remote = remote_of(folder)
    record = folder / ".verified.json"
    verified = read_json(record) if record.exists() else {}
    expected = {
        name: sha256
        for split in splits or index.splits
        for shard in index.splits[split]
        for name, sha256 in (
            (shard["name"], shard["sha256"]),
            (Path(shard["name"]).with_suffix(".json").name, shard["places_sha256"]),
        )
    }
    tars = [name for name in expected if remote and name.endswith(".tar")]
    away = {name for name in tars if not (folder / name).exists()}
    local = [name for name in expected if name not in away]

    def compare(name: str) -> tuple[str | None, list[Any]]:
        path = folder / name
        if not path.exists():
            return f"{path} is missing", []
        state = [expected[name], path.stat().st_size, path.stat().st_mtime_ns]
        if verified.get(name) == state or digest(path) == expected[name]:
            return None, state
        return f"{path} is damaged: its SHA-256 is not that of index.json", []

    with ThreadPoolExecutor() as pool:
        results = dict(zip(local, pool.map(compare, local), strict=True))
    if faults := [fault for fault, _ in results.values() if fault]:
        command = f"build {index.dataset} --raw RAW"
        mend = "make shards, or"
        if remote:
            command, mend = f"mirror {remote.address}", "delete them, then"
        mend += f" python -m ijepa.data {command} --out {folder}"
        raise UserError(f"{'; '.join(faults)}. To mend: {mend} (only these are written again)")
    if remote and away:
        _compare_with_address(remote, folder, index, sorted(away))
    states = {name: state for name, (_, state) in results.items()}
    if os.access(folder, os.W_OK) and not states.items() <= verified.items():
        write_json(record, verified | states)
    return index


def _compare_with_address(remote: Remote, folder: Path, index: Index, tars: list[str]) -> None:
    """Raise UserError unless an address has a mirror's version and each tar as long as it must be.

    To compare a tar's SHA-256, all of it would have to be read.
    """
    content = remote.read("index.json")
    try:
        version = parse_index(content).version()
    except (ValueError, TypeError, KeyError, AttributeError):
        version = "unknown"
    if version != index.version():
        raise UserError(
            f"{remote.address} has version {version}, {folder} mirrors version {index.version()}: "
            "mirror it anew, to another folder"
        )
    with ThreadPoolExecutor(CONNECTIONS) as pool:
        sizes = dict(zip(tars, pool.map(remote.size, tars), strict=True))
    for name in tars:
        end = sum(max(read_shard(folder / name).places, default=(0, 0)))
        if sizes[name] < end:
            raise UserError(
                f"{remote.address}/{name} has {sizes[name]:,} bytes, its images end at {end:,}: "
                f"bring the whole tar there, or to {folder}"
            )


def check_limit(limit: dict[str, int], folder: Path) -> None:
    """Raise UserError unless every split has as many images as ``limit`` says, of all classes.

    The first images of a split that lies in the order of its classes have only some of them.
    """
    index = read_index(folder)
    for split, count in limit.items():
        if split not in index.splits:
            raise UserError(f"images.{split}: unknown split; there are {', '.join(index.splits)}")
        table = read_table(folder, index, split)
        if count > (available := int(table.ends[-1])):
            raise UserError(
                f"images.{split}: {count} asked for, but {folder} has {available}: ask for fewer"
            )
        for label in index.labels:
            numbers = table.labels[label]
            some, all_classes = len(np.unique(numbers[:count])), len(np.unique(numbers))
            in_order = (np.diff(numbers[:count]) >= 0).all()
            if some < all_classes <= count and in_order:
                raise UserError(
                    f"images.{split}: the first {count} images of {folder} have {some} of "
                    f"{all_classes} classes of {label}: they lie in the order of their classes; "
                    f"leave images.{split} out"
                )


def scan(path: Path) -> tuple[str, list[tuple[int, int]], dict[str, list[int]]]:
    """SHA-256, places and labels of a tar, from the tar itself."""
    places, labels = [], dict[str, list[int]]()
    with tarfile.open(path) as tar:
        for member in tar:
            _, _, kind = member.name.partition(".")
            if kind.endswith("cls"):
                content = tar.extractfile(member)
                assert content is not None
                label = kind.removesuffix("cls").removesuffix(".") or ONLY_LABEL
                labels.setdefault(label, []).append(int(content.read()))
            else:
                places.append((member.offset_data, member.size))
    return digest(path), places, labels
