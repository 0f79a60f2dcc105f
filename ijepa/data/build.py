"""Writing of shards from raw files; whole shards that exist are kept (ijepa.data.shards)."""

import hashlib
import io
import logging
import tarfile
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Executor, Future, ProcessPoolExecutor
from contextlib import ExitStack
from dataclasses import asdict
from itertools import islice
from multiprocessing import get_context
from pathlib import Path
from typing import Any, NamedTuple

from PIL import Image, UnidentifiedImageError
from tqdm import tqdm

from ijepa.cores import usable_cores
from ijepa.data import register
from ijepa.data.addresses import unsigned
from ijepa.data.bands import NPY, RGB, SAVE, TIFF, is_deep, read_bands
from ijepa.data.register import Dataset, Resize
from ijepa.data.shards import ONLY_LABEL, Index, Shard, read_shard, scan
from ijepa.data.source import Entry, load_source
from ijepa.errors import UserError
from ijepa.files import digest, read_json, to_json, write_json, write_text, written_whole

ENDINGS = {
    "JPEG": "jpg", "MPO": "jpg", "PNG": "png", "WEBP": "webp", "GIF": "gif", "BMP": "bmp",
    "TIFF": "tif", "PPM": "ppm",
}  # fmt: skip
"""Ending in shards of each of Pillow's formats; MPO is a JPEG with more pictures behind it."""

log = logging.getLogger(__name__)

DECIDE_THE_BYTES = ("source", "splits", "labels", "shard_size", "resize", "checksums", "options")
"""Keys of a register's entry that decide what stands in the shards (workflow/rules/shards.smk)."""


class Job(NamedTuple):
    """Shard to write, and the images to put in it."""

    dataset: Dataset
    path: Path
    first: int
    entries: list[Entry]


def build_shards(name: str, raw: Path, out: Path, num_workers: int | None = None) -> None:
    """Write the shards that are missing or damaged, then the index.

    It uses all cores unless ``num_workers`` is given, and memory for a few shards' lists of images.
    The same raw files give the same bytes. An index with the same content is not touched, so that a
    mended shard does not make all later results look out of date. Corrupt images are left out and
    listed in ``corrupt.json``; above the register's ``max_corrupt`` share the build stops. If the
    register had other settings when the shards were made, all shards are written again.
    """
    dataset = register.load_dataset(name)
    out.mkdir(parents=True, exist_ok=True)
    _forget_other_settings(dataset, out)
    num_workers = num_workers or usable_cores()
    splits: dict[str, list[dict[str, Any]]] = {}
    largest = dict.fromkeys(dataset.labels, -1)
    corrupt: list[dict[str, str]] = []
    num_images = 0
    sizes = [size for size in dataset.splits.values() if size is not None]
    total = sum(sizes) if len(sizes) == len(dataset.splits) else None
    with ExitStack() as stack:
        pool: Executor | None = None
        if num_workers > 1:
            # Not forked: the caller may have started threads, torch's for example.
            pool = ProcessPoolExecutor(num_workers, get_context("forkserver"))
            stack.callback(pool.shutdown, cancel_futures=True)
        bar = stack.enter_context(
            tqdm(total=total, desc=f"shards of {name}", unit="image", mininterval=1)
        )
        for split, size in dataset.splits.items():
            splits[split] = []
            split_images = 0
            for job, shard in _all_done(_jobs(dataset, raw, out, split), pool, 2 * num_workers):
                split_images += len(job.entries)
                corrupt += [
                    {"split": split, "image": image, "fault": fault}
                    for image, fault in shard.corrupt
                ]
                for label, values in shard.labels.items():
                    largest[label] = max([largest[label], *values])
                splits[split].append(
                    {
                        "name": job.path.name,
                        "num_samples": len(shard.places),
                        "sha256": shard.sha256,
                        "places_sha256": digest(job.path.with_suffix(".json")),
                    }
                )
                bar.update(len(job.entries))
                if total is not None:
                    _tolerable(corrupt, total, dataset, out)
            num_images += split_images
            if split_images != (size or split_images) or not split_images:
                raise UserError(
                    f"{raw} has {split_images} images of {split}, {register.REGISTER.name} says "
                    f"{size or 'at least one'}: check the raw files, or correct the register"
                )
        _tolerable(corrupt, num_images, dataset, out)
    labels = {
        label: largest[label] + 1 if classes is None else classes
        for label, classes in dataset.labels.items()
    }
    pixels = (dataset.channels, dataset.bits)
    index = Index(name, dataset.licence, dataset.view, labels, splits, *pixels).plain()
    path = out / "index.json"
    if not path.exists() or path.read_bytes() != to_json(index).encode():
        write_text(path, to_json(index))


def _forget_other_settings(dataset: Dataset, out: Path) -> None:
    """Delete the shards if, by ``settings.json``, other settings of the register made them."""
    decisive = {*DECIDE_THE_BYTES, *(() if dataset.rgb else ("channels", "bits"))}
    settings = unsigned(dataset.model_dump(mode="json", include=decisive))
    path = out / "settings.json"
    former = read_json(path) if path.exists() else None
    if former is not None and unsigned(former) != settings:
        log.warning("%s was made by other settings of the register: making it anew", out)
        for old in [out / "index.json", *out.glob("*-[0-9]*.tar"), *out.glob("*-[0-9]*.json")]:
            old.unlink(missing_ok=True)
    if former != settings or not (out / "index.json").exists():
        write_json(path, settings)


def _tolerable(corrupt: list[dict[str, str]], total: int, dataset: Dataset, out: Path) -> None:
    """Write the report of corrupt images; raise UserError if there are too many."""
    report = out / "corrupt.json"
    if not corrupt:
        report.unlink(missing_ok=True)
        return
    write_json(report, {"images": total, "corrupt": len(corrupt), "list": corrupt})
    if len(corrupt) > dataset.max_corrupt * total:
        first = corrupt[0]
        raise UserError(
            f"{len(corrupt)} of {total} images of {dataset.name} are corrupt or of no use here, "
            f"the first of them {first['split']} image {first['image']} ({first['fault']}); all "
            f"are listed in {report}: mend the raw files, or raise max_corrupt "
            f"({dataset.max_corrupt:g}) in {register.REGISTER.name}, then run again"
        )


def _jobs(dataset: Dataset, raw: Path, out: Path, split: str) -> Iterator[Job]:
    entries = load_source(dataset.source).entries(dataset, raw, split)
    number = 0
    while chunk := list(islice(entries, dataset.shard_size)):
        for entry in chunk:
            _check_labels(dataset, entry)
        path = out / f"{split}-{number:05d}.tar"
        yield Job(dataset, path, number * dataset.shard_size, chunk)
        number += 1


def _check_labels(dataset: Dataset, entry: Entry) -> None:
    """Raise UserError for an image without one of the data set's labels, or outside its classes."""
    if entry.labels.keys() != set(dataset.labels):
        raise UserError(
            f"{entry.name} has labels {', '.join(entry.labels) or 'none'}, "
            f"{register.REGISTER.name} has {', '.join(dataset.labels) or 'none'} for "
            f"{dataset.name}: correct `labels`, or the source {dataset.source}"
        )
    for label, number in entry.labels.items():
        num_classes = dataset.num_classes(label)
        if not 0 <= number < (num_classes or number + 1):
            raise UserError(
                f"{entry.name} has {label} {number}, {register.REGISTER.name} has {num_classes} "
                f"classes from 0 on for {dataset.name}: correct the labels or the classes"
            )


def _all_done(
    jobs: Iterator[Job], pool: Executor | None, ahead: int
) -> Iterator[tuple[Job, Shard]]:
    """Every job with its shard, in order; at most ``ahead`` jobs are in the pool at a time."""
    if pool is None:
        yield from ((job, _make(job)) for job in jobs)
        return
    pending: deque[tuple[Job, Future[Shard]]] = deque()
    for job in jobs:
        pending.append((job, pool.submit(_make, job)))
        if len(pending) >= ahead:
            done, future = pending.popleft()
            yield done, future.result()
    for job, future in pending:
        yield job, future.result()


def _make(job: Job) -> Shard:
    """Shard of a job: the existing one if it is whole, or a new one."""
    shard = _finished(job.path)
    if shard is not None:
        count = len(shard.places) + len(shard.corrupt)
        if count != len(job.entries):
            raise UserError(
                f"{job.path} has {count} images, the raw files give "
                f"{len(job.entries)}: delete {job.path.parent}, or choose another folder"
            )
        return shard
    return _write(job)


def _finished(path: Path) -> Shard | None:
    """Shard at ``path`` if it exists and is whole, else None."""
    if not path.exists() or not path.with_suffix(".json").exists():
        return None
    try:
        shard = read_shard(path)
        is_whole = (shard.sha256, shard.places, shard.labels) == scan(path)
    except (ValueError, tarfile.TarError):  # a UserError is a ValueError
        is_whole = False
    if not is_whole:
        log.warning("%s is damaged: writing it again", path)
        return None
    return shard


def _write(job: Job) -> Shard:
    source = load_source(job.dataset.source)
    shard = Shard("", [], {label: [] for label in job.dataset.labels})
    with written_whole(job.path) as part, part.open("wb") as file:
        tar = _Tar(file)
        for number, (entry, raw) in enumerate(_contents(job.entries), start=job.first):
            image = source.encode(job.dataset, raw)
            ending, fault = inspect(image, job.dataset.channels, job.dataset.bits)
            if fault is not None:
                shard.corrupt.append((entry.name, fault))
                continue
            if job.dataset.resize is not None:
                try:
                    image, ending = shrunk(image, job.dataset.resize), "jpg"
                except (OSError, SyntaxError, ValueError) as error:
                    shard.corrupt.append((entry.name, str(error) or type(error).__name__))
                    continue
            for label, value in entry.labels.items():
                kind = "cls" if label == ONLY_LABEL else f"{label}.cls"
                tar.add(f"{number:08d}.{kind}", str(value).encode())
                shard.labels[label].append(value)
            for subset in entry.subsets:
                shard.subsets.setdefault(subset, []).append(len(shard.places))
            shard.places.append((tar.add(f"{number:08d}.{ending}", image), len(image)))
        shard = Shard(tar.close(), shard.places, shard.labels, shard.subsets, shard.corrupt)
    write_json(job.path.with_suffix(".json"), asdict(shard))
    return shard


class _Tar:
    """Uncompressed tar that is hashed while it is written; its bytes equal webdataset's.

    webdataset's own writer copies each file several times, and has half the speed of ``tar``.
    """

    def __init__(self, file: Any) -> None:
        self.file, self.hash, self.offset = file, hashlib.sha256(), 0

    def add(self, name: str, content: bytes) -> int:
        """Append a file and return the position of its first byte."""
        info = tarfile.TarInfo(name)
        # Time, owner and mode are fixed, so that the same images give the same bytes.
        info.size, info.mode, info.uname, info.gname = len(content), 0o444, "bigdata", "bigdata"
        self._put(info.tobuf(tarfile.USTAR_FORMAT))
        position = self.offset
        self._put(content)
        self._put(bytes(-len(content) % tarfile.BLOCKSIZE))
        return position

    def close(self) -> str:
        """Append the end marks and return the SHA-256 of everything."""
        end = self.offset + 2 * tarfile.BLOCKSIZE
        self._put(bytes(end + -end % tarfile.RECORDSIZE - self.offset))
        return self.hash.hexdigest()

    def _put(self, content: bytes) -> None:
        self.file.write(content)
        self.hash.update(content)
        self.offset += len(content)


def _contents(entries: list[Entry]) -> Iterator[tuple[Entry, bytes]]:
    """Every entry with its bytes; a file stays open as long as entries follow each other in it."""
    with ExitStack() as opened:
        path, file = None, None
        for entry in entries:
            if entry.file != path:
                opened.close()
                path, file = entry.file, opened.enter_context(entry.file.open("rb"))
            assert file is not None
            file.seek(entry.offset)
            content = file.read(-1 if entry.size is None else entry.size)
            if entry.size is not None and len(content) < entry.size:
                raise UserError(f"{entry.file} ends within {entry.name}: bring the file again")
            yield entry, content


def inspect(content: bytes, channels: int = 3, bits: int = 8) -> tuple[str, str | None]:
    """File ending for an image's bytes, and their fault, if any.

    A fault is reported now rather than after hours of training. A JPEG with its end mark is taken
    for whole, since decoding all of ImageNet here would take hours; a PNG's checksums are checked;
    all other formats are decoded. Other channels or bits than RGB's must be the image's own.
    """
    try:
        if (channels, bits) != RGB and content.startswith(NPY):
            read_bands(content, channels, bits)
            return "npy", None
        with Image.open(io.BytesIO(content)) as image:
            ending = ENDINGS.get(image.format or "", "")
            if not ending:
                return "", f"{image.format} is no format for shards: convert it, to PNG for example"
            if (channels, bits) != RGB:
                read_bands(content, channels, bits)
                return ending, None
            if is_deep(image, content):
                return "", (
                    f"it has more than 8 bits a pixel (mode {image.mode}), of which the user must "
                    "choose a range: convert it to 8 bits, or state channels and bits in the entry"
                )
            if ending == "png":
                image.verify()
            elif ending != "jpg" or content[-2:] != b"\xff\xd9":
                image.load()
    except UnidentifiedImageError:  # its text has an address in memory, which changes
        if (channels, bits) != RGB and content.startswith(TIFF):
            return "", f"a TIFF that Pillow does not read: {SAVE}"
        return "", "no image, one without its head, or of a format that Pillow lacks (HEIC?)"
    except (OSError, EOFError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        return "", str(error) or type(error).__name__
    return ending, None


def shrunk(content: bytes, resize: Resize) -> bytes:
    """JPEG of an image with its short side resized; a smaller image keeps its size."""
    with Image.open(io.BytesIO(content)) as image:
        picture = image.convert("RGB")
    scale = min(1.0, resize.short_side / min(picture.size))
    size = (round(picture.width * scale), round(picture.height * scale))
    file = io.BytesIO()
    picture.resize(size, Image.Resampling.BICUBIC).save(file, "jpeg", quality=resize.quality)
    return file.getvalue()


def missing(name: str, raw: Path) -> list[str]:
    """Files that a person must bring before a data set's shards can be made, a line for each."""
    dataset = register.load_dataset(name)
    return [f"{name}: {file}" for file in load_source(dataset.source).missing(dataset, raw)]
