"""Stanford Cars (Krause et al., 2013): a folder of images and a Matlab file of classes a split.

The layout is that of ``cars_train.tgz``, ``cars_test.tgz``, ``car_devkit.tgz`` and
``cars_test_annos_withlabels.mat``, which is torchvision's too. ``ijepa.data.official`` says where
they may lie.
"""

from collections.abc import Iterator
from pathlib import Path

import numpy as np

from ijepa.data import official
from ijepa.data.official import Official
from ijepa.data.register import Dataset
from ijepa.data.source import Entry
from ijepa.errors import UserError

FILES = {
    "train": ("cars_train", "devkit/cars_train_annos.mat"),
    "test": ("cars_test", "cars_test_annos_withlabels.mat"),
}
"""Folder of the images and file of their classes, by split."""
PARTS = Official(
    ["cars_train.tgz", "cars_test.tgz", "car_devkit.tgz", "cars_test_annos_withlabels.mat"],
    [name for pair in FILES.values() for name in pair],
)


def missing(dataset: Dataset, raw: Path) -> list[str]:
    """Files that a person must bring."""
    return official.missing(dataset, raw, PARTS)


def fetch(dataset: Dataset, raw: Path) -> None:
    """Check the files and unpack them."""
    official.fetch(dataset, raw, PARTS)


def entries(dataset: Dataset, raw: Path, split: str) -> Iterator[Entry]:
    """Images in the order of the split's annotations."""
    home = official.unpacked_home(dataset, raw, PARTS)
    folder, path = (home / name for name in FILES[split])
    (annotations,) = official.matlab(path, "annotations")
    if not {"fname", "class"} <= set(annotations.dtype.names or ()):
        raise UserError(
            f"{path}: its annotations have no class, as those of cars_test_annos.mat: bring "
            f"{path.name} as it is told in docs/data.md"
        )
    for annotation in np.atleast_1d(annotations):
        name = str(annotation["fname"])
        label = official.class_number(dataset, int(annotation["class"]), f"{path}: {name}")
        yield Entry(official.image(folder / name, path), 0, None, name, {"class": label})


def encode(dataset: Dataset, content: bytes) -> bytes:
    """Bytes unchanged: they are image files."""
    return content
