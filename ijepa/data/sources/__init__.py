"""Raw formats: one module each, named by ``source`` in ``data/datasets.yaml``.

A module has ``fetch(dataset, raw)``, which brings the raw files and may be run again after an
interruption, and ``samples(dataset, raw, split)``, which yields (encoded image, its file ending,
label) in a fixed order.
"""

import importlib
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple, Protocol

from ijepa.data.register import Dataset


class Sample(NamedTuple):
    """One image as it will lie in a shard."""

    image: bytes
    ending: str
    label: int


class Source(Protocol):
    """A file of this folder."""

    def fetch(self, dataset: Dataset, raw: Path) -> None:
        """Bring the raw files into the folder ``raw`` and check them."""

    def samples(self, dataset: Dataset, raw: Path, split: str, first: int) -> Iterator[Sample]:
        """Images of a split in a fixed order, from number ``first`` on."""


def load(name: str) -> Source:
    """The module of a raw format."""
    module: Source = importlib.import_module(f"{__name__}.{name}")
    return module
