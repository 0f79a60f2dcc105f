"""Pictures as files in memory, in place of shards."""

import io

import numpy as np
from PIL import Image


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

    def read_ahead(self, numbers: list[int]) -> None:
        """Do nothing: all files are in memory."""
