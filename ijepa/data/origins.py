"""Origins of raw files, tried one after the other until all files are there."""

import logging
import pickle
import subprocess
import tarfile
import zlib
from collections.abc import Callable, Iterable, Mapping
from http.client import HTTPException
from pathlib import Path

from ijepa.data.register import Dataset
from ijepa.errors import REMEDIES, UserError
from ijepa.files import digest

FAILURES = (
    OSError,
    EOFError,
    HTTPException,
    zlib.error,
    tarfile.TarError,
    pickle.UnpicklingError,
    subprocess.CalledProcessError,
    UserError,
)
"""Errors of an origin: a connection that breaks off, at whatever layer, or wrong bytes."""

log = logging.getLogger(__name__)


def bring(
    dataset: Dataset,
    raw: Path,
    names: list[str],
    origins: Iterable[Mapping[str, str]],
    kinds: Mapping[str, Callable[[str], None]],
) -> None:
    """Fetch files from one origin after the other, until all are in ``raw`` with their checksums.

    ``kinds`` maps each kind of origin to the function that is called with its address. If files are
    missing or have other checksums after the last origin, raises UserError that tells how each
    origin failed.
    """
    raw.mkdir(parents=True, exist_ok=True)
    failures = []
    for origin in origins:
        if not _faults(dataset, raw, names):
            return
        ((kind, address),) = origin.items()
        if kind not in kinds:
            raise UserError(
                f"datasets.yaml: {dataset.name}: origin {kind!r} is unknown to the source "
                f"{dataset.source}: known are {', '.join(kinds)}"
            )
        log.info("fetching %s from %s", dataset.title, address)
        try:
            kinds[kind](address)
        except FAILURES as error:
            if isinstance(error, OSError) and error.errno in REMEDIES:
                raise  # a full or unwritable disk is no fault of the origin
            failures.append(f"{address}: {error}")
            log.warning("%s failed: %s", address, error)
    if faults := _faults(dataset, raw, names):
        failures += [f"{name} {fault}" for name, fault in faults.items()]
        raise UserError(
            f"{raw}: {', '.join(faults)} could not be had with the checksums of datasets.yaml "
            f"({'; '.join(failures)}). Put the official files there by hand, or run again "
            "with a network"
        )


def fault(dataset: Dataset, path: Path) -> str | None:
    """Fault of a raw file in words (missing, or its checksum), or None.

    Raises UserError for a folder, which nothing that is fetched can replace.
    """
    if path.is_dir():
        raise UserError(f"{path} is a folder where a file is needed: move it away")
    if not path.exists():
        return "is missing"
    expected = dataset.checksums.get(path.name)
    if expected is None:
        return None
    algorithm = expected.partition(":")[0]
    actual = f"{algorithm}:{digest(path, algorithm)}"
    return None if actual == expected else f"has {actual}, expected {expected}"


def _faults(dataset: Dataset, raw: Path, names: list[str]) -> dict[str, str]:
    faults = {name: fault(dataset, raw / name) for name in names}
    return {name: text for name, text in faults.items() if text}
