"""WebDataset shards and their index: format, reading, verification (ijepa.data.build writes).

A split lies in ``SPLIT-00000.tar`` and so on. Beside each tar stands ``SPLIT-00000.json`` with its
SHA-256, its labels and where in the tar each image begins, so that any image is one read away; a
shard is finished when that file is there and right. ``index.json``, written last, sums them up.

Images keep the order of the raw files, which makes building as fast as copying. Our loader reads
them in random order; whoever streams the tars with another reader must shuffle.
"""

import hashlib
import json
import os
import tarfile
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ijepa.errors import UserError
from ijepa.files import digest, read_json, write_json

ONLY_LABEL = "class"
"""The label that stands in ``KEY.cls``; one of several called NAME stands in ``KEY.NAME.cls``."""


@dataclass(frozen=True)
class Shard:
    """One tar: its SHA-256; for each image (first byte, number of bytes) and each kind of label.

    ``subsets`` are the places in this shard, from 0, of the images of official lists. ``corrupt``
    are (name, fault) of images that were left out.
    """

    sha256: str
    places: list[tuple[int, int]]
    labels: dict[str, list[int]]
    subsets: dict[str, list[int]] = field(default_factory=dict)
    corrupt: list[tuple[str, str]] = field(default_factory=list)


@dataclass(frozen=True)
class Index:
    """What ``index.json`` says of a folder of shards.

    ``labels`` gives the classes of each kind of label, or their number where they have no names.
    """

    dataset: str
    licence: str
    view: str
    labels: dict[str, list[str] | int]
    splits: dict[str, list[dict[str, Any]]]

    def version(self) -> str:
        """A short name for exactly this data, from the checksums of all shards."""
        sums = [shard["sha256"] for shards in self.splits.values() for shard in shards]
        return hashlib.sha256("".join(sums).encode()).hexdigest()[:12]


def read_index(folder: Path) -> Index:
    """The index of a folder of shards."""
    path = folder / "index.json"
    try:
        return Index(**json.loads(path.read_text(encoding="utf-8")))
    except FileNotFoundError:
        raise UserError(f"{path} is missing: make the shards first (make shards)") from None
    except (ValueError, TypeError) as error:
        raise UserError(
            f"{path} is damaged, or of an earlier version ({error}): delete it and make the shards "
            "again"
        ) from None


def read_shard(path: Path) -> Shard:
    """What stands beside a tar about its content; raises UserError if that is damaged."""
    try:
        content = json.loads(path.with_suffix(".json").read_text(encoding="utf-8"))
        pairs = {name: [(a, b) for a, b in content[name]] for name in ("places", "corrupt")}
        return Shard(**{**content, **pairs})
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"{path.with_suffix('.json')} is damaged ({error}): make shards") from None


def verify(folder: Path, splits: list[str] | None = None) -> Index:
    """The index, after every shard of the splits was compared with it, byte for byte.

    What was compared once and has kept its size and time since is not read again: ImageNet takes
    minutes. Raises UserError that names each missing or damaged shard.
    """
    index = read_index(folder)
    for split in splits or []:
        if split not in index.splits:
            raise UserError(f"{folder} has no split {split!r}: it has {', '.join(index.splits)}")
    memory = folder / ".verified.json"
    known = read_json(memory) if memory.exists() else {}
    expected = {
        name: sha256
        for split in splits or index.splits
        for shard in index.splits[split]
        for name, sha256 in (
            (shard["name"], shard["sha256"]),
            (Path(shard["name"]).with_suffix(".json").name, shard["places_sha256"]),
        )
    }

    def compare(name: str) -> tuple[str | None, list[Any]]:
        path = folder / name
        if not path.exists():
            return f"{path} is missing", []
        state = [expected[name], path.stat().st_size, path.stat().st_mtime_ns]
        if known.get(name) == state or digest(path) == expected[name]:
            return None, state
        return f"{path} is damaged: its SHA-256 is not that of index.json", []

    with ThreadPoolExecutor() as pool:
        found = dict(zip(expected, pool.map(compare, expected), strict=True))
    if faults := [fault for fault, _ in found.values() if fault]:
        raise UserError(
            f"{'; '.join(faults)}. To mend: make shards, or python -m ijepa.data build "
            f"{index.dataset} --raw RAW --out {folder} (only these are written again)"
        )
    states = {name: state for name, (_, state) in found.items()}
    if os.access(folder, os.W_OK) and not states.items() <= known.items():
        write_json(memory, known | states)
    return index


def scan(path: Path) -> tuple[str, list[tuple[int, int]], dict[str, list[int]]]:
    """A tar's SHA-256, places and labels, from the tar itself."""
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
