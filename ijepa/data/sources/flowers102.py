"""Flowers-102 (Nilsback and Zisserman, 2008): images in an archive, classes in Matlab files.

``imagelabels.mat`` has the class of each image, from 1 on, ``setid.mat`` the numbers of each
split's images. ``ijepa.data.official`` says where they may lie.
"""

from collections.abc import Iterator
from pathlib import Path

import numpy as np

from ijepa.data import official
from ijepa.data.official import Official
from ijepa.data.register import Dataset
from ijepa.data.source import Entry
from ijepa.errors import UserError

PARTS = Official(
    ["102flowers.tgz", "imagelabels.mat", "setid.mat"],
    ["jpg", "imagelabels.mat", "setid.mat"],
)
SETS = {"train": "trnid", "test": "tstid"}
"""Variables of setid.mat; those of ``valid`` are used by no split."""


def missing(dataset: Dataset, raw: Path) -> list[str]:
    """Files that a person must bring."""
    return official.missing(dataset, raw, PARTS)


def fetch(dataset: Dataset, raw: Path) -> None:
    """Bring the three files, check them, unpack the images."""
    official.fetch(dataset, raw, PARTS)


def entries(dataset: Dataset, raw: Path, split: str) -> Iterator[Entry]:
    """Images in the order of the split in setid.mat."""
    home = official.unpacked_home(dataset, raw, PARTS)
    labels_path, sets_path = home / "imagelabels.mat", home / "setid.mat"
    (labels,) = official.matlab(labels_path, "labels")
    (numbers,) = official.matlab(sets_path, SETS[split])
    for number in np.atleast_1d(numbers).tolist():
        if not 1 <= number <= labels.size:
            raise UserError(
                f"{sets_path}: {SETS[split]} has image {number}, {labels_path.name} has "
                f"{labels.size}: bring both again"
            )
        name = f"image_{number:05d}.jpg"
        label = official.class_number(
            dataset, int(np.atleast_1d(labels)[number - 1]), f"{labels_path}: image {number}"
        )
        yield Entry(official.image(home / "jpg" / name, sets_path), 0, None, name, {"class": label})


def encode(dataset: Dataset, content: bytes) -> bytes:
    """Bytes unchanged: they are image files."""
    return content
