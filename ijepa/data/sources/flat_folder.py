"""Any folder of images without labels, at any depth.

All are training images except those in the folder ``options.test``, if it is given.
"""

from collections.abc import Iterator
from pathlib import Path

from ijepa.data.register import Dataset
from ijepa.data.source import Entry
from ijepa.data.sources.image_folder import endings, images, left_out
from ijepa.errors import UserError


def missing(dataset: Dataset, raw: Path) -> list[str]:
    """Folders that are not there."""
    test = _test_folder(dataset, raw)
    return [f"{path} (images)" for path in (raw, test) if path is not None and not path.is_dir()]


def fetch(dataset: Dataset, raw: Path) -> None:
    """Raise UserError if a folder is not there: it is the user's own."""
    if missing_folders := missing(dataset, raw):
        raise UserError(f"bring {', '.join(missing_folders)}, then run again")


def entries(dataset: Dataset, raw: Path, split: str) -> Iterator[Entry]:
    """Images of a split, sorted by path within each folder."""
    if dataset.labels:
        raise UserError(
            f"datasets.yaml: {dataset.name}: labels are {list(dataset.labels)}: a flat_folder has "
            "none (take the source image_folder for folders that are classes)"
        )
    test = _test_folder(dataset, raw)
    if split == "test" and test is None:
        raise UserError(f"datasets.yaml: {dataset.name}: name the folder in options.test")
    folder = test if split == "test" and test is not None else raw
    empty = True
    with left_out(folder) as odd:
        for path in images(folder, endings(dataset), odd):
            if split == "test" or test is None or not path.is_relative_to(test):
                empty = False
                yield Entry(path, 0, None, str(path.relative_to(raw)), {})
    if empty:
        raise UserError(f"{folder} has no image for {split}: bring some")


def encode(dataset: Dataset, content: bytes) -> bytes:
    """Image file, unchanged."""
    return content


def _test_folder(dataset: Dataset, raw: Path) -> Path | None:
    if unknown := set(dataset.options) - {"test"}:
        raise UserError(
            f"datasets.yaml: {dataset.name}: options {', '.join(sorted(unknown))} are unknown to "
            "flat_folder: known is test"
        )
    if "test" not in dataset.options:
        return None
    test = dataset.options["test"]
    inside = isinstance(test, str) and ".." not in (path := Path(test)).parts
    if not inside or path.is_absolute() or not path.parts:
        raise UserError(
            f"datasets.yaml: {dataset.name}: options.test is {test!r}: name a folder within the "
            "raw files"
        )
    return raw / path
