"""Any ImageFolder: ``train/CLASS/**/*.jpg``; ``test``, ``val`` or ``validation`` of the same form.

The classes are the names of ``train``'s folders in their order, or those that the register lists.
If several of them are there, the first of these three is taken. ``options.folder`` is the folder in
which ``train`` lies, where that is not the folder of raw files itself. With ``origins`` of the
register, all of the form ``archive: ADDRESS``, the folders are fetched; each archive needs a
checksum.
"""

import contextlib
import logging
import os
from collections.abc import Iterator
from pathlib import Path

from ijepa.data.archives import unpack
from ijepa.data.download import download
from ijepa.data.register import Dataset
from ijepa.data.source import Entry
from ijepa.errors import UserError

log = logging.getLogger(__name__)

ENDINGS = {
    ".gif", ".jpg", ".jpeg", ".jpe", ".jfif", ".mpo", ".png", ".webp", ".bmp", ".tif", ".tiff",
    ".ppm", ".pgm", ".pbm", ".pnm",
}  # fmt: skip
ARRAYS = {".npy"}
"""Endings that are images only of data sets with other channels or bits than RGB's."""
OTHERS = {
    ".avif", ".heic", ".heif", ".jp2", ".j2k", ".jxl", ".tga", ".psd", ".dng", ".exr", ".dcm",
    ".svg", ".apng", ".dib", ".pcx", ".sgi", ".ras", ".dds", ".ico", ".jpx", ".jpf", ".pfm",
    ".hif", ".qoi", ".cr2", ".nef", ".arw",
}  # fmt: skip
"""Endings of images that shards do not take. Without a word they would be left out."""
PACKED = {".gz", ".bz2", ".xz", ".zst"}


def missing(dataset: Dataset, raw: Path) -> list[str]:
    """Folders that are not there and that no origin gives."""
    return [] if dataset.origins else _missing(dataset, raw)


def fetch(dataset: Dataset, raw: Path) -> None:
    """Bring the archives of the origins; raise UserError if a folder is then not there."""
    for origin in dataset.origins if _missing(dataset, raw) else []:
        address = origin.get("archive", "")
        archive = raw / address.rpartition("/")[2]
        checksum = dataset.checksums.get(archive.name)
        if checksum is None:
            raise UserError(
                f"datasets.yaml: {dataset.name}: origin {origin} needs the form archive: ADDRESS, "
                "and checksums that of the archive"
            )
        if not archive.exists():
            download(address, archive, checksum)
        unpack(archive, raw, checksum)
    if missing_folders := _missing(dataset, raw):
        raise UserError(f"bring {', '.join(missing_folders)}, then run again")


def entries(dataset: Dataset, raw: Path, split: str) -> Iterator[Entry]:
    """Images of a split, class by class, each class sorted by path."""
    if len(dataset.labels) != 1:
        raise UserError(
            f"datasets.yaml: {dataset.name}: labels are {list(dataset.labels)}: an image_folder "
            "has one (for images without labels take the source flat_folder)"
        )
    (label,) = dataset.labels
    raw = _root(dataset, raw)
    folder = _folder(raw, split)
    classes = _classes(dataset, raw, label)
    if unknown := sorted(set(_class_folders(folder)) - set(classes)):
        raise UserError(
            f"{folder / unknown[0]} is no class of {dataset.name}: it has {', '.join(classes)}"
        )
    if stray := _stray(folder, endings(dataset)):
        raise UserError(f"{stray} lies in no class's folder: move it into one, or away")
    total = 0
    # A test split may lack a class; training images may not.
    with left_out(folder) as odd:
        for number, name in enumerate(classes):
            earlier_total = total
            for path in images(folder / name, endings(dataset), odd):
                total += 1
                where = str(path.relative_to(raw))
                yield Entry(path, 0, None, where, {label: number})
            if split == "train" and total == earlier_total:
                raise UserError(f"{folder / name} has no image: bring some, or remove the class")
    if not total:
        raise UserError(f"{folder} has no image in any class's folder")


def encode(dataset: Dataset, content: bytes) -> bytes:
    """Image file, unchanged."""
    return content


def endings(dataset: Dataset) -> set[str]:
    """Endings of the files that are images of a data set."""
    return ENDINGS if dataset.rgb else ENDINGS | ARRAYS


@contextlib.contextmanager
def left_out(folder: Path) -> Iterator[list[Path]]:
    """Yield a list for files that may be images by other names, and warn of those in it."""
    odd: list[Path] = []
    try:
        yield odd
    finally:
        if odd:
            log.warning(
                "%s: %s files without an ending, or compressed, are left out, such as %s: if they "
                "are images, name them as such, or unpack them",
                *(folder, len(odd), odd[0]),
            )


def images(
    folder: Path,
    taken: set[str] = ENDINGS,
    odd: list[Path] | None = None,
    above: tuple[Path, ...] = (),
) -> Iterator[Path]:
    """Images in a folder and in those below it, sorted in each, without hidden ones.

    ``taken`` are the endings of their files, ``above`` the resolved folders that led here. Files
    that may be images by other names are added to ``odd``.
    """
    if not folder.is_dir():
        return
    above = (*above, folder.resolve())
    with os.scandir(folder) as content:
        items = sorted((item for item in content if item.name[0] not in ".@"), key=lambda i: i.name)
    for item in items:
        path = Path(item.path)
        if path.is_dir():  # Path's: False for a link that leads nowhere, or to itself
            if item.is_symlink() and any(p.is_relative_to(path.resolve()) for p in above):
                raise UserError(f"{path} is a link to a folder that it lies in: remove it")
            yield from images(path, taken, odd, above)
        elif item.is_symlink() and not path.exists():
            raise UserError(f"{path} is a link to nothing: bring what it names, or remove it")
        elif path.suffix.lower() in (OTHERS | ARRAYS) - taken:
            raise UserError(
                f"{path}: {path.suffix} is no format for shards: convert it, to PNG for example, "
                "or remove it"
            )
        elif path.suffix.lower() in taken:
            if not path.is_file():
                raise UserError(f"{path} is no file: bring the image again, or remove it")
            yield path
        elif odd is not None and (not path.suffix or _is_packed(path, taken)):
            odd.append(path)


def _is_packed(path: Path, taken: set[str]) -> bool:
    return path.suffix.lower() in PACKED and Path(path.stem).suffix.lower() in taken


def _missing(dataset: Dataset, raw: Path) -> list[str]:
    return [
        f"{folder} (a folder of images for each class)"
        for folder in (_folder(_root(dataset, raw), split) for split in dataset.splits)
        if not folder.is_dir()
    ]


def _root(dataset: Dataset, raw: Path) -> Path:
    """Folder in which the splits' folders lie."""
    if unknown := sorted(set(dataset.options) - {"folder"}):
        raise UserError(
            f"datasets.yaml: {dataset.name}: options.{unknown[0]} is unknown: allowed is folder"
        )
    return raw / str(dataset.options.get("folder", ""))


def _folder(raw: Path, split: str) -> Path:
    folders = [raw / name for name in ("test", "val", "validation")]
    if split != "test":
        return raw / split
    return next((folder for folder in folders if folder.is_dir()), raw / "val")


def _class_folders(folder: Path) -> list[str]:
    if not folder.is_dir():
        raise UserError(f"{folder} is missing: bring a folder of images for each class")
    paths = [path for path in folder.iterdir() if not path.name.startswith(".")]
    for path in paths:
        if path.is_symlink() and not path.exists():
            raise UserError(f"{path} is a link to nothing: bring the folder again, or remove it")
    return sorted(path.name for path in paths if path.is_dir())


def _stray(folder: Path, taken: set[str]) -> Path | None:
    """Image that has no class, or None."""
    files = (path for path in folder.iterdir() if path.is_file())
    return next((path for path in files if path.suffix.lower() in taken), None)


def _classes(dataset: Dataset, raw: Path, label: str) -> list[str]:
    expected = dataset.labels[label]
    if isinstance(expected, list):
        return expected
    classes = _class_folders(_folder(raw, "train"))
    if expected is not None and len(classes) != expected:
        raise UserError(
            f"{raw / 'train'} has {len(classes)} folders, datasets.yaml says {expected} classes: "
            "correct one of them"
        )
    return classes
