"""Entries of the register, and small raw files for them."""

import io
from typing import Any

from PIL import Image

from ijepa.data.register import Dataset
from ijepa.data.source import Entry


def dataset(source: str, **entry: Any) -> Dataset:
    """An entry of the register."""
    fixed = {"name": "tiny", "title": "Tiny", "citation": "none", "licence": "none"}
    splits = {"train": None, "test": None}
    return Dataset.model_validate(
        {**fixed, "source": source, "image_size": 32, "splits": splits, **entry}
    )


def content(entry: Entry) -> bytes:
    """The bytes at an entry's place."""
    whole = entry.file.read_bytes()
    return whole if entry.size is None else whole[entry.offset : entry.offset + entry.size]


def picture(colour: int = 0, size: tuple[int, int] = (4, 4), ending: str = "png") -> bytes:
    file = io.BytesIO()
    Image.new("RGB", size, (colour, 0, 0)).save(file, {"jpg": "jpeg"}.get(ending, ending))
    return file.getvalue()
