"""Official archives of a data set, or what torchvision has unpacked from them.

What the archives hold may lie in the folder of raw files, or in a folder directly in it
(torchvision's root, or its folder of the data set). The folder of raw files may also be the topmost
folder of the archive itself.
"""

import os
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from scipy.io import loadmat
from scipy.io.matlab import MatReadError

from ijepa.data.archives import refuse_missing, unpack, verify_once
from ijepa.data.download import download
from ijepa.data.origins import bring
from ijepa.data.register import Dataset
from ijepa.errors import UserError

PACKED = (".tar.gz", ".tgz", ".zip")
DAMAGED = (ValueError, TypeError, KeyError, OSError, NotImplementedError, MatReadError)
"""Errors of scipy for a file that is damaged, or that is no Matlab file."""


class Official(NamedTuple):
    """Names of a data set's official files, and the paths that must be there after unpacking.

    The register's entry may have checksums of the files, and origins ``archive: ADDRESS``.
    """

    files: list[str]
    needs: list[str]

    @property
    def archives(self) -> list[str]:
        """Names of the files that are unpacked."""
        return [name for name in self.files if name.endswith(PACKED)]

    def home(self, raw: Path) -> Path | None:
        """Folder in which everything needed lies; None if there is no such folder."""
        return next((home for home in _homes(raw) if not self.lacking(home)), None)

    def lacking(self, home: Path) -> list[Path]:
        """Paths that are needed and are not in a folder."""
        return [home / name for name in self.needs if not (home / name).exists()]

    def partial_home(self, raw: Path) -> Path | None:
        """Folder in which a needed file lies; folders are not asked, as many sets have images/."""
        homes = _homes(raw)
        return next((h for h in homes if any((h / need).is_file() for need in self.needs)), None)

    def absent(self, raw: Path) -> list[str]:
        """Official files that are not in the folder of raw files."""
        return [name for name in self.files if not (raw / name).exists()]


def missing(dataset: Dataset, raw: Path, parts: Official) -> list[str]:
    """Paths that a person must bring: parts of a folder, or files without an origin."""
    absent = parts.absent(raw)
    if parts.home(raw) is not None or not absent:
        return []
    home = parts.partial_home(raw)
    if home is not None and set(parts.archives) <= set(absent):
        names = ", ".join(parts.files)
        return [f"{path} (it is part of {names})" for path in parts.lacking(home)]
    if dataset.origins:
        return []
    return [f"{raw / name} (of {dataset.title}: see docs/data.md)" for name in absent]


def fetch(dataset: Dataset, raw: Path, parts: Official) -> None:
    """Bring, check and unpack the official files, unless what they hold is there without them.

    A folder without archives, or that cannot be written, is taken as it is, and nothing is written.
    """
    refuse_missing(missing(dataset, raw, parts))
    is_there, absent = parts.home(raw) is not None, parts.absent(raw)
    if is_there and (set(parts.archives) <= set(absent) or not os.access(raw, os.W_OK)):
        return
    if absent and not is_there:
        bring(dataset, raw, absent, dataset.origins, {"archive": partial(_download, dataset, raw)})
    for path in (raw / name for name in parts.files):
        checksum = dataset.checksums.get(path.name)
        if path.name.endswith(PACKED) and path.exists():
            if not is_there:  # what an earlier call unpacked may have been removed
                (raw / f".{path.name}.unpacked").unlink(missing_ok=True)
            unpack(path, raw, checksum)
        elif path.exists() and checksum:
            verify_once(path, checksum)
    unpacked_home(dataset, raw, parts)


def unpacked_home(dataset: Dataset, raw: Path, parts: Official) -> Path:
    """Folder in which everything needed lies; raises UserError that names what is not there."""
    home = parts.home(raw)
    if home is None:
        lacking = parts.lacking(parts.partial_home(raw) or raw)
        raise UserError(
            f"{dataset.title}: {', '.join(map(str, lacking))} is missing: bring "
            f"{', '.join(parts.files)} to {raw}, or say in `raw` of the config where they lie"
        )
    return home


def image(path: Path, source: Path) -> Path:
    """Path of an image; raises UserError if ``source`` lists it and it is not there."""
    if not path.is_file():
        raise UserError(
            f"{path} is missing, {source.name} names it: bring the official archive of images, and "
            "fetch again"
        )
    return path


def class_number(dataset: Dataset, number: int, where: str) -> int:
    """Number of a class from 0 on, from one that counts from 1; raises UserError outside them."""
    num_classes = dataset.num_classes("class")
    if not 1 <= number <= (num_classes or number):
        raise UserError(
            f"{where} has class {number}, datasets.yaml has {num_classes} classes, from 1 on in "
            "this file: bring the official file, or correct `labels`"
        )
    return number - 1


def matlab(path: Path, *names: str) -> list[Any]:
    """Variables of a Matlab file; raises UserError if it is damaged or has no such variable."""
    try:
        content = loadmat(path, squeeze_me=True)
        return [content[name] for name in names]
    except DAMAGED as error:
        raise UserError(
            f"{path} is damaged, or has no {' and '.join(names)} ({error!r}): bring the official "
            "file"
        ) from None


def _homes(raw: Path) -> list[Path]:
    inner = sorted(p for p in raw.iterdir() if p.is_dir()) if raw.is_dir() else []
    return [raw, *inner, raw.absolute().parent]


def _download(dataset: Dataset, raw: Path, address: str) -> None:
    path = raw / address.rpartition("/")[2]
    if not path.exists():
        download(address, path, dataset.checksums.get(path.name))
