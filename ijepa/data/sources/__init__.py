"""Raw formats: one module each, named by ``source`` in ``data/datasets.yaml``.

A source says where in the raw files each image lies. It reads no pixels: the shard builder reads
many places at once, on every core, from whatever the entries name.
"""

import importlib
import pkgutil
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple, Protocol

import numpy as np

from ijepa.data.register import Dataset
from ijepa.errors import UserError


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
    """A module of this folder."""

    def missing(self, dataset: Dataset, raw: Path) -> list[str]:
        """Paths that a person must bring, each with a word on where it comes from.

        Empty where everything is there, or where ``fetch`` can bring it. Quick: no checksums.
        """

    def fetch(self, dataset: Dataset, raw: Path) -> None:
        """Bring the raw files into the folder ``raw``, unpack what must be, check what was brought.

        May be run again after an interruption. Raises UserError that names what is missing.
        """

    def entries(self, dataset: Dataset, raw: Path, split: str) -> Iterator[Entry]:
        """Every image of a split in a fixed order, with memory that does not grow with them.

        Raises UserError where labels are missing, unknown or outside the classes.
        """

    def encode(self, dataset: Dataset, content: bytes) -> bytes:
        """A complete image file from an entry's bytes; most sources give them back unchanged."""


def names() -> list[str]:
    """Every module of this folder."""
    return sorted(module.name for module in pkgutil.iter_modules(__path__))


def load_source(name: str) -> Source:
    """The module of a raw format; raises UserError with the known names for any other."""
    if name not in names():
        raise UserError(f"unknown source {name!r}: known are {', '.join(names())}")
    module: Source = importlib.import_module(f"{__name__}.{name}")
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
