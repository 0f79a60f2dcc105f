"""Batches from shards: any image takes one read, and the order is a function of the seed.

Shape suffixes: B images, C channels, H rows of pixels, W columns of pixels.
"""

import atexit
import io
import mmap
import multiprocessing
import shutil
import signal
import sys
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch.utils.data import DataLoader, Dataset, Sampler

from ijepa.data.bands import RGB, Picture, read_bands
from ijepa.data.device_jpeg import Deferred, Part, Parts
from ijepa.data.fast_jpeg import Jpeg
from ijepa.data.remote import CONNECTIONS, remote_of
from ijepa.data.shards import read_index, read_table
from ijepa.data.transforms import (
    INTERPOLATIONS,
    WHOLE_VIEWS,
    Box,
    Crop,
    augment,
    crop_tokens,
    sample_box,
    to_array,
)
from ijepa.errors import UserError
from ijepa.image_size import Size, sides
from ijepa.randomness import generator
from ijepa.ranges import Pixels

SHARED = Path("/dev/shm")
AHEAD = 2
"""Batches that torch has each worker make ahead (prefetch_factor)."""

MAPPED = 256
"""Tars of a split that a process has mapped at a time. Each is an open file, and 1,024 is a common
limit; a process may read two splits, and pictures others."""


class Images:
    """Images of one split by number, straight from the tars.

    ``labels`` gives for each kind of label the class of every image, ``subsets`` for each official
    list the numbers of its images. Only these and the images' places in the tars are held in
    memory (ijepa.data.shards.Table); the bytes are mapped, so that all processes of a machine
    share them. A mirror's missing tars are read from its address (ijepa.data.remote).
    """

    def __init__(self, folder: Path, split: str) -> None:
        index = read_index(folder)
        self.pixels = (index.channels, index.bits)
        self.paths = [folder / shard["name"] for shard in index.splits[split]]
        self.table = read_table(folder, index, split)
        self.labels, self.subsets = self.table.labels, self.table.subsets
        self.remote = remote_of(folder)
        self._maps: dict[int, mmap.mmap] = {}
        self._ahead: dict[int, bytes] = {}

    def __len__(self) -> int:
        return int(self.table.ends[-1])

    def __getitem__(self, number: int) -> Picture:
        """Image ``number`` in RGB, or in the data set's own channels.

        Raises UserError that names it if it cannot be decoded.
        """
        content = self.encoded(number)
        try:
            if self.pixels != RGB:
                return read_bands(content, *self.pixels)
            return Image.open(io.BytesIO(content)).convert("RGB")
        except (OSError, EOFError, SyntaxError, ValueError) as error:
            shard, _, _ = self.table.position(number)
            tar, remedy = str(self.paths[shard]), "mend the raw file and make the shard again"
            if self.remote is not None and not self._is_here(shard):
                tar = f"{self.remote.address}/{self.paths[shard].name}"
                remedy = "the file there must have the SHA-256 that the mirror's index.json gives"
            raise UserError(
                f"image {number} in {tar} cannot be decoded ({error}): {remedy}"
            ) from None

    def encoded(self, number: int) -> bytes:
        """File of image ``number``, as it is in the shard."""
        if number in self._ahead:
            return self._ahead.pop(number)
        shard, first, size = self.table.position(number)
        if self._is_here(shard):
            return self._mapped(shard)[first : first + size]
        return self._from_address(number)

    def read_ahead(self, numbers: Sequence[int]) -> None:
        """Read images that lie at an address, several at a time, for later calls of ``encoded``."""
        self._ahead = {}
        if self.remote is None:
            return
        away = [n for n in numbers if not self._is_here(self.table.position(n)[0])]
        with ThreadPoolExecutor(CONNECTIONS) as pool:
            self._ahead = dict(zip(away, pool.map(self._from_address, away), strict=True))

    def _from_address(self, number: int) -> bytes:
        assert self.remote is not None
        shard, first, size = self.table.position(number)
        return self.remote.read(self.paths[shard].name, first, size)

    def _is_here(self, shard: int) -> bool:
        """True if a tar is read from the folder; in a mirror, one being copied is too short."""
        if self.remote is None or shard in self._maps:
            return True
        try:
            return bool(self.paths[shard].stat().st_size >= self.table.tar_end(shard))
        except FileNotFoundError:
            return False

    def _mapped(self, shard: int) -> mmap.mmap:
        if shard not in self._maps:
            if len(self._maps) >= MAPPED:
                del self._maps[next(iter(self._maps))]
            with self.paths[shard].open("rb") as file:
                self._maps[shard] = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        return self._maps[shard]

    def __getstate__(self) -> dict[str, object]:
        return {**self.__dict__, "_maps": {}, "_ahead": {}}


class View(NamedTuple):
    """One augmented view of an image: its size in pixels and how it is cut."""

    size: Size
    crop: Crop


class Item(NamedTuple):
    """Views of an image, [H, W, C] each, and the first view's tokens; or those of a batch.

    A view that the device makes is a Part; views of a batch with any are Parts.
    """

    views: list[Any]
    tokens: Any = None


@dataclass(frozen=True)
class TrainingViews(Dataset[Item]):
    """Augmented images; an item's key is (epoch, image number) and decides its augmentation.

    If ``tokens`` has the token ids of all whole images, [image, row, column], an item also has
    those of its first view, on a grid of ``grid``. Of ``fast`` pixels (ijepa.data.fast_jpeg) and
    ``device`` ones (ijepa.data.device_batches), images that are no JPEGs in grey or colour are
    exact, unless all lie on the device already: ``resident`` is then their width and height.
    """

    images: Images
    views: list[View]
    seed: int
    tokens: NDArray[Any] | None = None
    grid: tuple[int, int] = (0, 0)
    pixels: Pixels = "exact"
    resident: tuple[int, int] | None = None

    def __getitem__(self, key: tuple[int, int]) -> Item:
        random = np.random.default_rng((self.seed, *key))
        image = self._image(key[1])
        views = [_view_of(image, view, random) for view in self.views]
        tokens = None
        if self.tokens is not None:
            ids = np.asarray(self.tokens[key[1]])
            tokens = crop_tokens(ids, image.size, views[0][1], self.grid).astype(np.int64).ravel()
        return Item([view for view, _ in views], tokens)

    def __getitems__(self, keys: list[tuple[int, int]]) -> list[Item]:
        """Items of a batch, as torch's loader asks for them."""
        if self.resident is None:
            self.images.read_ahead([number for _, number in keys])
        return [self[key] for key in keys]

    def _image(self, number: int) -> Picture | Jpeg | Deferred:
        """Image that is decoded, or a JPEG whose views are decoded as they need, or later."""
        if self.resident is not None:
            return Deferred(number, self.resident)
        if self.pixels == "exact":
            return self.images[number]
        content = self.images.encoded(number)
        try:
            if self.pixels == "device":
                return Deferred.of(number, content)
            return Jpeg(content, lambda: self.images[number])
        except ValueError:
            return self.images[number]


def _view_of(
    image: Picture | Jpeg | Deferred, view: View, random: np.random.Generator
) -> tuple[NDArray[Any] | Part, Box]:
    """Augmented view of an image and the part that it shows; of a deferred one the part alone."""
    if isinstance(image, Deferred):
        rows, columns = sides(view.size)
        box = sample_box(*image.size, view.crop, random, columns / rows)
        return Part(image, box), box
    picture, box = augment(image, view.size, view.crop, random)
    return to_array(picture), box


@dataclass(frozen=True)
class EvaluationViews(Dataset[NDArray[Any]]):
    """Images in order, in the evaluation view."""

    images: Images
    size: Size
    view: str = "centre"
    interpolation: str = "bicubic"

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, number: int) -> NDArray[Any]:
        make = WHOLE_VIEWS[self.view]
        return to_array(make(self.images[number], self.size, INTERPOLATIONS[self.interpolation]))

    def __getitems__(self, numbers: list[int]) -> list[NDArray[Any]]:
        """Items of a batch, as torch's loader asks for them."""
        self.images.read_ahead(numbers)
        return [self[number] for number in numbers]


@dataclass(frozen=True)
class Steps(Sampler[list[tuple[int, int]]]):
    """Sampler of the keys of each step's batch, from step ``first`` on.

    Each epoch is a permutation of all images that depends on (seed, epoch) alone; the remainder
    that does not fill a batch is left out, as in the release. This process takes one of
    ``num_parts`` equal parts of each batch.
    """

    num_images: int
    batch_size: int
    first: int
    last: int
    seed: int
    part: int = 0
    num_parts: int = 1

    def __len__(self) -> int:
        return self.last - self.first

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        per_epoch = self.num_images // self.batch_size
        for epoch in range(self.first // per_epoch, -(-self.last // per_epoch)):
            # In a generator of its own, which frees an order before the next one is drawn.
            yield from self._epoch(epoch, per_epoch)

    def _epoch(self, epoch: int, per_epoch: int) -> Iterator[list[tuple[int, int]]]:
        # The same order in any type: torch draws it by one algorithm.
        kind = torch.int32 if self.num_images < 2**31 else torch.int64
        random = generator(self.seed, "order", epoch)
        order = torch.randperm(self.num_images, generator=random, dtype=kind)
        for step in range(
            max(self.first, epoch * per_epoch), min(self.last, (epoch + 1) * per_epoch)
        ):
            size = self.batch_size // self.num_parts
            start = step % per_epoch * self.batch_size + self.part * size
            yield [(epoch, int(i)) for i in order[start : start + size]]


def training_batches(views: TrainingViews, steps: Steps, num_workers: int) -> DataLoader[Any]:
    """One Item for each step, whose views are bytes [B, H, W, C] and whose tokens are [B, N].

    Of ``device`` pixels, whoever reads them makes the views (ijepa.data.device_batches).
    """
    # Any image has the size of all; to ask the sampler for one would draw an order twice.
    keys = [(0, 0)] * (steps.batch_size // steps.num_parts) if len(steps) else []
    return DataLoader(
        views,
        batch_sampler=steps,
        num_workers=fitting(views, keys, num_workers, steps.num_parts),
        collate_fn=gather,
        pin_memory=_gpu(),
        worker_init_fn=undisturbed,
    )


def evaluation_batches(
    views: Dataset[NDArray[np.uint8]], batch_size: int, num_workers: int
) -> DataLoader[Any]:
    """Batches of bytes [B, H, W, C] of all images in order; the last may be smaller."""
    first = range(min(batch_size, len(views)))  # type: ignore[arg-type]
    return DataLoader(
        views,
        batch_size,
        num_workers=fitting(views, first, num_workers),
        collate_fn=stack,
        pin_memory=_gpu(),
    )


def fitting(views: Dataset[Any], keys: Sequence[Any], num_workers: int, processes: int = 1) -> int:
    """Number of workers whose batches, each as large as that of ``keys``, fit into /dev/shm.

    Workers hand them over there. Without room they don't end, and the reader waits for ever.
    """
    if not num_workers or not keys or not SHARED.is_dir():
        return num_workers
    size = len(keys) * _bytes(views[keys[0]]) * AHEAD * processes
    free = shutil.disk_usage(SHARED).free
    if size * num_workers <= free:
        return num_workers
    print(
        f"warning: {SHARED} has {free / 1e6:.1f} MB free, batches of {num_workers} loader "
        f"processes take {size * num_workers / 1e6:.1f}: {free // size} are started, which is "
        "slower (give it more, as by docker run --shm-size=8g)",
        file=sys.stderr,
    )
    return int(free // size)


def _bytes(item: Any) -> int:
    """Size of an item's arrays and files."""
    if isinstance(item, bytes):
        return len(item)
    if isinstance(item, list | tuple):
        return sum(map(_bytes, item))
    return getattr(item, "nbytes", 8)


def undisturbed(_worker: int) -> None:
    """Let a loader's worker ignore the signals that are meant for its parent process.

    Slurm sends its signals to every process of a job. If they ended the workers, the parent could
    not finish its step and save its state. A worker whose parent is gone ends by itself.
    """
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR2):
        signal.signal(number, signal.SIG_IGN)


@atexit.register
def _end_workers() -> None:
    """Kill workers that are left when this process ends.

    After an error that nobody caught, Python would end them by SIGTERM, which they ignore, and wait
    for them for ever.
    """
    workers = [process for process in multiprocessing.active_children() if process.daemon]
    if workers:
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)  # torch would report each as another error
    for worker in workers:
        worker.kill()


def gather(items: list[Item]) -> Item:
    """Batch of items: tensors whose first dimension is the batch."""
    views, tokens = zip(*items, strict=True)
    together = [_together(list(pictures)) for pictures in zip(*views, strict=True)]
    return Item(together, None if tokens[0] is None else stack(list(tokens)))


def _together(pictures: list[Any]) -> torch.Tensor | Parts:
    if any(isinstance(picture, Part) for picture in pictures):
        return Parts.of(pictures)
    return stack(pictures)


def stack(arrays: list[NDArray[Any]]) -> torch.Tensor:
    """Tensor of arrays that have one shape."""
    return torch.from_numpy(np.stack(arrays))


def _gpu() -> bool:
    return torch.cuda.is_available()
