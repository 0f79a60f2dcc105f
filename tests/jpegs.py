"""Pictures as files in memory, in place of shards, and batches of their views."""

import io
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image

from ijepa.data.device_batches import device_batches
from ijepa.data.loader import Item, Steps, TrainingViews, View, training_batches
from ijepa.ranges import Pixels

CPU = torch.device("cpu")
PIXELS: tuple[Pixels, ...] = ("device", "exact")


def picture(width: int, height: int, mode: str = "RGB") -> Image.Image:
    """A smooth picture whose every part differs from every other."""
    y, x = np.mgrid[:height, :width]
    channels = [np.sin(x / 17) + np.cos(y / 23), np.sin((x + y) / 31), np.cos((x - 2 * y) / 41)]
    pixels = (np.stack(channels, 2) * 60 + 128).clip(0, 255).astype(np.uint8)
    return Image.fromarray(pixels).convert(mode)


def encoded(image: Image.Image, kind: str = "jpeg") -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **({"quality": 92} if kind == "jpeg" else {}))
    return file.getvalue()


class Files:
    """Image files in memory, in place of shards."""

    def __init__(self, *files: bytes) -> None:
        self.files = files

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, number: int) -> Image.Image:
        return Image.open(io.BytesIO(self.files[number])).convert("RGB")

    def encoded(self, number: int) -> bytes:
        """File of an image."""
        return self.files[number]

    def read_ahead(self, numbers: Sequence[int]) -> None:
        """Do nothing: all files are in memory."""


def numbers_read(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Numbers of the images that PIL decodes from now on, in their order."""
    numbers: list[int] = []
    read = Files.__getitem__

    def noted(self: Files, number: int) -> Image.Image:
        numbers.append(number)
        return read(self, number)

    monkeypatch.setattr(Files, "__getitem__", noted)
    return numbers


def batches(
    images: Any,
    kinds: list[View],
    pixels: Pixels = "device",
    batch_size: int = 4,
    workers: int = 0,
    tokens: NDArray[Any] | None = None,
) -> list[Item]:
    """Batches of one epoch, with the ``tokens`` of all images on a grid of 4 x 4, if given."""
    steps = Steps(len(images), batch_size, 0, len(images) // batch_size, 0)
    views = TrainingViews(images, kinds, 0, tokens, (4, 4), pixels)
    if pixels == "device":
        return list(device_batches(views, steps, workers, CPU))
    return list(training_batches(views, steps, workers))


def gap(files: Files, *kinds: View) -> int:
    """Largest difference between the bytes of views that the device and PIL make."""
    device, exact = (batches(files, list(kinds), pixels) for pixels in PIXELS)
    pairs = [zip(a.views, b.views, strict=True) for a, b in zip(device, exact, strict=True)]
    return max(int((a.int() - b.int()).abs().max()) for pair in pairs for a, b in pair)
