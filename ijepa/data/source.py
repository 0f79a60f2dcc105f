"""The contract of a raw format: one module of ``ijepa/data/sources/``, a ``source`` of data sets.

A source lists where in the raw files each image lies. It reads no pixels: the shard builder reads
the bytes that the entries name, many entries at once, on every core.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple, Protocol

import numpy as np

from ijepa import collection
from ijepa.data.register import Dataset
from ijepa.errors import UserError

SOURCES = "ijepa.data.sources"


class Entry(NamedTuple):
    """One image: ``size`` bytes of ``file`` from ``offset`` on, or the whole file if size is None.

    ``name`` is the data set's own name of it, for reports of corrupt images. ``subsets`` are the
    official lists that it stands in, such as ImageNet's 1 %.
    """

    file: Path
    offset: int
    size: int | None
    name: str
    labels: dict[str, int]
    subsets: tuple[str, ...] = ()


class Source(Protocol):
    """A module of ijepa/data/sources.

    One with official lists of images also has ``subsets(dataset, raw)``, the names of its lists.
    """

    def missing(self, dataset: Dataset, raw: Path) -> list[str]:
        """Paths that a person must bring, each with a note on its origin.

        It is empty if everything is there, or if ``fetch`` can bring it. It is quick: no checksums.
        """

    def fetch(self, dataset: Dataset, raw: Path) -> None:
        """Bring the raw files into the folder ``raw``, unpack archives, and check the files.

        May be run again after an interruption. Raises UserError that names the missing files.
        """

    def entries(self, dataset: Dataset, raw: Path, split: str) -> Iterator[Entry]:
        """Images of a split in a fixed order; the memory used does not grow with their number.

        Raises UserError if labels are missing, unknown or outside the classes.
        """

    def encode(self, dataset: Dataset, content: bytes) -> bytes:
        """Complete image file from an entry's bytes; most sources return these unchanged."""


def load_source(name: str) -> Source:
    """Module of a raw format; raises UserError with the known names for any other."""
    module: Source = collection.load(SOURCES, name, "source")
    return module


def check_classes(dataset: Dataset, path: Path, label: str, numbers: np.ndarray) -> None:
    """Raise UserError if a file has labels outside the classes of the register."""
    num_classes = dataset.num_classes(label)
    if num_classes is not None and (outside := np.flatnonzero(numbers >= num_classes)).size:
        first = outside[0]
        raise UserError(
            f"{path}: image {first} has {label} {numbers[first]}, datasets.yaml has {num_classes} "
            "classes from 0 on: bring the official file, or correct the classes"
        )
