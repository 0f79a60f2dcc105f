"""Places205: images of 256 x 256 pixels in one archive, and lists of them with their classes.

The images are read in place from ``imagesPlaces205_resize.tar``, or from the folder that the
``.tar.gz`` of that name unpacks to. A line of a list is ``a/abbey/gsun_0003.jpg 0``: an image and
its class. The official validation split is ``test``: the labels of the test images are secret.
"""

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path

from ijepa.data.archives import list_once, refuse_missing, tar_lookup, unpack, verify_once
from ijepa.data.register import Dataset
from ijepa.data.source import Entry
from ijepa.errors import UserError

TAR = "imagesPlaces205_resize.tar"
IMAGES = "data/vision/torralba/deeplearning/images256"
"""Folder in the archive from which the lists' names start."""
LISTS = "trainvalsplit_places205"
LIST_ARCHIVES = (f"{LISTS}.tar.gz", f"{LISTS}.zip")
LIST_FILES = {"train": "train_places205.csv", "test": "val_places205.csv"}
ORIGIN = "from places.csail.mit.edu"


def missing(dataset: Dataset, raw: Path) -> list[str]:
    """Archives that are neither there nor unpacked."""
    paths = []
    if not any(path.exists() for path in (raw / TAR, raw / f"{TAR}.gz", *_image_folders(raw))):
        paths.append(f"{raw / TAR}.gz (the images, {ORIGIN}; or the same as {TAR})")
    unpacked = all(any(p.exists() for p in _list_files(raw, split)) for split in LIST_FILES)
    if not unpacked and not any((raw / name).exists() for name in LIST_ARCHIVES):
        paths.append(f"{raw / LIST_ARCHIVES[0]} (lists of the images, {ORIGIN}; or as .zip)")
    return paths


def fetch(dataset: Dataset, raw: Path) -> None:
    """Check the archives with a checksum, list the files of a ``.tar``, unpack the others."""
    refuse_missing(missing(dataset, raw))
    names = [*LIST_ARCHIVES]
    if (raw / TAR).exists():
        list_once(raw / TAR)  # first: it refuses a folder that cannot be written
        if TAR in dataset.checksums:
            verify_once(raw / TAR, dataset.checksums[TAR])
    else:
        names.append(f"{TAR}.gz")
    for name in names:
        if (raw / name).exists():
            unpack(raw / name, raw, dataset.checksums.get(name))


def entries(dataset: Dataset, raw: Path, split: str) -> Iterator[Entry]:
    """Images in the order of the split's list."""
    path = _first(_list_files(raw, split))
    num_classes = dataset.num_classes("class")
    allowed = "" if num_classes is None else f" from 0 to {num_classes - 1}"
    with path.open(encoding="utf-8", errors="replace") as lines, _finder(raw) as find:
        for number, line in enumerate(lines, start=1):
            name, _, label = line.strip().rpartition(" ")
            if not label.isdecimal() or (num_classes is not None and int(label) >= num_classes):
                raise UserError(
                    f"{path}, line {number}: {label!r} is no class{allowed}: "
                    "bring the official list"
                )
            location = find(name)
            if location is None:
                raise UserError(
                    f"{path}, line {number}: the image {name!r} is not there: bring the official "
                    f"archive of images; if it was unpacked, delete {raw / f'.{TAR}.gz.unpacked'} "
                    "too; then fetch again"
                )
            yield Entry(*location, name, {"class": int(label)})


def encode(dataset: Dataset, content: bytes) -> bytes:
    """Bytes unchanged: they are image files."""
    return content


@contextlib.contextmanager
def _finder(raw: Path) -> Iterator[Callable[[str], tuple[Path, int, int | None] | None]]:
    """Yield a function from an image's name to its file, first byte and size, or to None."""
    if (raw / TAR).exists():
        with tar_lookup(raw / TAR) as lookup:

            def in_tar(name: str) -> tuple[Path, int, int | None] | None:
                extent = lookup(f"{IMAGES}/{name}")
                return None if extent is None else (raw / TAR, *extent)

            yield in_tar
    else:
        folder = _first(_image_folders(raw))

        def in_folder(name: str) -> tuple[Path, int, int | None] | None:
            return (folder / name, 0, None) if (folder / name).is_file() else None

        yield in_folder


def _image_folders(raw: Path) -> list[Path]:
    """Folders in which unpacked images may lie."""
    return [raw / IMAGES, raw / Path(IMAGES).name]


def _list_files(raw: Path, split: str) -> list[Path]:
    """Paths at which an unpacked list may lie."""
    return [raw / LISTS / LIST_FILES[split], raw / LIST_FILES[split]]


def _first(paths: list[Path]) -> Path:
    for path in paths:
        if path.exists():
            return path
    raise UserError(f"{' and '.join(map(str, paths))} are missing: fetch the raw files again")
