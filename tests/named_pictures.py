"""Pictures that no other name has, and what a source makes of them."""

import hashlib
import io
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from PIL import Image

from ijepa.data.register import Dataset
from ijepa.data.source import Entry, load_source
from tests.raw_files import content


def picture(name: str) -> bytes:
    """A small JPEG that no other name has."""
    file = io.BytesIO()
    colour = tuple(hashlib.md5(name.encode()).digest()[:3])
    Image.new("RGB", (4, 4), colour).save(file, "jpeg")
    return file.getvalue() + name.encode()


def pictures(names: Iterable[str], folder: str = "") -> dict[str, bytes]:
    return {f"{folder}{name}": picture(name) for name in names}


def write(folder: Path, files: dict[str, bytes]) -> None:
    for name, data in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(data)


def make(source: str, num_classes: int | None, **more: Any) -> Dataset:
    entry = {
        "name": source,
        "source": source,
        "title": source,
        "citation": "none",
        "licence": "none",
        "image_size": 224,
        "labels": {"class": num_classes},
        "splits": {"train": None, "test": None},
    }
    return Dataset.model_validate({**entry, **more})


def fetched(dataset: Dataset, raw: Path, split: str) -> list[Entry]:
    source = load_source(dataset.source)
    assert source.missing(dataset, raw) == []
    source.fetch(dataset, raw)
    return list(source.entries(dataset, raw, split))


def summary(entries: list[Entry], dataset: Dataset) -> list[tuple[str, int]]:
    """Names and classes, after each place was found to hold the image of that name."""
    encode = load_source(dataset.source).encode
    for entry in entries:
        assert encode(dataset, content(entry)) == picture(entry.name)
    return [(entry.name, entry.labels["class"]) for entry in entries]
