"""MNIST's IDX files, for any data set that has these four: images and labels of each split.

LeCun, Cortes and Burges, "The MNIST Database of Handwritten Digits", describe the format: two zero
bytes, one byte for the type (8: unsigned bytes), one for the number of dimensions, each dimension
as a big-endian 32-bit integer, then the values. Images are grey.
"""

import gzip
import io
import math
import shutil
import struct
import subprocess
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import IO

import numpy as np
from PIL import Image

from ijepa.data.download import download
from ijepa.data.origins import bring, fault
from ijepa.data.register import Dataset
from ijepa.data.source import Entry, check_classes
from ijepa.errors import UserError
from ijepa.files import written_whole

FILES = {
    "train": ("train-images-idx3-ubyte", "train-labels-idx1-ubyte"),
    "test": ("t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte"),
}
FOLDERS = ("", "raw", "MNIST/raw", "FashionMNIST/raw")
"""Folders within ``raw`` that may hold the files; torchvision makes the last three."""
NAMES = [name for pair in FILES.values() for name in pair]


def missing(dataset: Dataset, raw: Path) -> list[str]:
    """IDX files that are missing both unpacked and as ``.gz``, unless there is an origin."""
    if dataset.origins:
        return []
    return [
        f"{raw / name}.gz (an IDX file, packed or not, from the data set's home page)"
        for name in NAMES
        if _elsewhere(raw, name) is None and not (raw / f"{name}.gz").exists()
    ]


def fetch(dataset: Dataset, raw: Path) -> None:
    """Bring the four IDX files, unpacked, into ``raw``; those that are right stay."""
    kinds = {
        "archive-folder": partial(_from_folder, dataset, raw),
        "debian": partial(_from_debian, dataset, raw),
    }
    for name in NAMES:
        path = _elsewhere(raw, name)
        if path is not None and path != raw / name and fault(dataset, raw / name):
            with written_whole(raw / name) as part:
                shutil.copyfile(path, part)
    origins = dataset.origins
    if any((raw / f"{name}.gz").exists() for name in NAMES):
        origins = [{"archive-folder": raw.absolute().as_uri()}, *origins]
    bring(dataset, raw, NAMES, origins, kinds)


def entries(dataset: Dataset, raw: Path, split: str) -> Iterator[Entry]:
    """Images of a split, in the order of its file."""
    images, labels = (raw / name for name in FILES[split])
    for path in (images, labels):
        if problem := fault(dataset, path):
            raise UserError(f"{path} {problem}: fetch it again (make shards)")
    if list(dataset.labels) != ["class"]:
        raise UserError(
            f"datasets.yaml: {dataset.name}: labels are {list(dataset.labels)}: IDX files have "
            "one, `class`"
        )
    (num_labels,), first_label = _header(labels, 1)
    (count, *sides), first = _header(images, 3)
    if sides != [dataset.image_size] * 2:
        raise UserError(
            f"{images} has images of {sides[0]} x {sides[1]} pixels, datasets.yaml says image_size "
            f"{dataset.image_size}: correct the entry"
        )
    if count != num_labels or not count:
        raise UserError(
            f"{images} has {count} images and {labels} has {num_labels} labels: bring both again"
        )
    classes = np.fromfile(labels, np.uint8, offset=first_label)
    check_classes(dataset, labels, "class", classes)
    size = math.prod(sides)
    for number, label in enumerate(classes.tolist()):
        name = f"{images.name} image {number}"
        yield Entry(images, first + number * size, size, name, {"class": label})


def encode(dataset: Dataset, content: bytes) -> bytes:
    """Grey image as PNG."""
    pixels = np.frombuffer(content, np.uint8).reshape(dataset.image_size, dataset.image_size)
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "png")
    return file.getvalue()


def _elsewhere(raw: Path, name: str) -> Path | None:
    """File in ``raw`` under its own name, with a dot in place of a hyphen, or in torchvision's."""
    names = (name, name.replace("-idx", ".idx"))
    paths = (raw / folder / other for folder in FOLDERS for other in names)
    return next((path for path in paths if path.is_file()), None)


def _header(path: Path, num_dimensions: int) -> tuple[list[int], int]:
    """Dimensions of an array and position of its first value; UserError for other dimensions."""
    start = 4 + 4 * num_dimensions
    with path.open("rb") as file:
        header = file.read(start)
    if len(header) < start or header[:4] != bytes([0, 0, 8, num_dimensions]):
        raise UserError(
            f"{path} begins with {header[:4].hex()}, not as an IDX file of bytes in "
            f"{num_dimensions} dimensions: bring the official file"
        )
    dimensions = list(struct.unpack(f">{num_dimensions}I", header[4:]))
    expected = start + math.prod(dimensions)
    if (size := path.stat().st_size) != expected:
        raise UserError(
            f"{path} has {size:,} bytes, its header tells of {expected:,}: bring it again"
        )
    return dimensions, start


def _from_folder(dataset: Dataset, raw: Path, address: str) -> None:
    """Fetch the missing files from ``.gz`` files below an address."""
    for name in NAMES:
        if fault(dataset, raw / name):
            packed = raw / f".{name}.gz"
            download(f"{address.rstrip('/')}/{name}.gz", packed)
            with packed.open("rb") as file:
                _unzip(file, raw / name)
            packed.unlink()


def _from_debian(dataset: Dataset, raw: Path, package: str) -> None:
    """Fetch the missing files from a Debian package, which is unpacked and not installed."""
    for tool in ("apt-get", "dpkg-deb"):
        if shutil.which(tool) is None:
            raise FileNotFoundError(f"{tool} is not installed: this machine is no Debian")
    # The name is fixed, so that the next start removes the folder that a killed one left.
    folder = raw / "debian"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    try:
        _run("apt-get", "download", package, folder=folder)
        (packed,) = folder.glob("*.deb")
        _run("dpkg-deb", "-x", packed.name, ".", folder=folder)
        for name in NAMES:
            if fault(dataset, raw / name):
                packed_file = next(folder.glob(f"usr/share/datasets/*/{name}.gz"), None)
                if packed_file is None:
                    raise FileNotFoundError(f"{packed.name} has no {name}.gz")
                with packed_file.open("rb") as file:
                    _unzip(file, raw / name)
    finally:
        shutil.rmtree(folder)


def _run(*command: str, folder: Path) -> None:
    subprocess.run(command, cwd=folder, check=True, stdout=subprocess.DEVNULL)


def _unzip(packed: IO[bytes], path: Path) -> None:
    with gzip.open(packed) as stream, written_whole(path) as part, part.open("wb") as file:
        shutil.copyfileobj(stream, file)
