"""ImageNet-22k: one tar a class, read in place.

The release of fall 2011 has 21,841 classes, that of winter 2021 has 19,167. Classes are numbered in
the order of the tars' names, which are their WordNet IDs. All images are for training.
"""

import re
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

from tqdm import tqdm

from ijepa.data.archives import refuse_missing, tar_entries, verify_end
from ijepa.data.register import Dataset
from ijepa.data.source import Entry
from ijepa.errors import UserError


def missing(dataset: Dataset, raw: Path) -> list[str]:
    """Files that a person must bring: the tars of the classes, unless one is there."""
    if _tars(raw):
        return []
    return [
        f"{raw / 'n*.tar'} (one tar a class: fall11_whole.tar or winter21_whole.tar.gz from "
        f"image-net.org, after registration, unpacked so that the tars lie directly in {raw})"
    ]


def fetch(dataset: Dataset, raw: Path) -> None:
    """Check that every tar was downloaded to its end."""
    refuse_missing(missing(dataset, raw))
    for tar in tqdm(_tars(raw), desc="checking tars", unit="file"):
        verify_end(tar)


def entries(dataset: Dataset, raw: Path, split: str) -> Iterator[Entry]:
    """Images by class, then by name."""
    tars = _tars(raw)
    expected = dataset.num_classes("class")
    if expected is not None and len(tars) != expected:
        raise UserError(
            f"{raw} has {len(tars)} tars named after classes, {dataset.name} has {expected} "
            "classes: bring them all"
        )
    for label, tar in enumerate(tars):
        for name, offset, size in sorted(tar_entries(tar)):
            yield Entry(tar, offset, size, PurePosixPath(name).name, {"class": label})


def encode(dataset: Dataset, content: bytes) -> bytes:
    """Bytes unchanged: they are image files."""
    return content


def _tars(raw: Path) -> list[Path]:
    return sorted(path for path in raw.glob("n*.tar") if re.fullmatch(r"n\d{8}", path.stem))
