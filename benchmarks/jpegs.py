"""JPEGs as ImageNet has them, from scikit-learn's two photographs: about 110 kB for 500 x 375."""

import io

import numpy as np
from PIL import Image
from sklearn.datasets import load_sample_images

QUALITY, DISTINCT = 95, 64


class Jpegs:
    """Files in memory, in place of shards: parts of photographs, with a camera's noise.

    After DISTINCT images they come again.

    Args:
        count: Number of images.
        width: Pixels; the height is three quarters of it.
    """

    def __init__(self, count: int, width: int) -> None:
        random = np.random.default_rng(0)
        photographs = load_sample_images().images
        files = []
        for number in range(min(count, DISTINCT)):
            photograph = Image.fromarray(photographs[number % len(photographs)])
            w = int(random.integers(photograph.width // 2, photograph.width - 80))
            left = int(random.integers(photograph.width - w + 1))
            top = int(random.integers(photograph.height - w * 3 // 4 + 1))
            part = photograph.crop((left, top, left + w, top + w * 3 // 4))
            pixels = np.asarray(part.resize((width, width * 3 // 4)), np.float32)
            pixels = (pixels + random.normal(0, 3, pixels.shape)).clip(0, 255)
            file = io.BytesIO()
            Image.fromarray(pixels.astype(np.uint8)).save(file, "jpeg", quality=QUALITY)
            files.append(file.getvalue())
        self.files = [files[number % len(files)] for number in range(count)]

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, number: int) -> Image.Image:
        return Image.open(io.BytesIO(self.encoded(number))).convert("RGB")

    def encoded(self, number: int) -> bytes:
        """File of an image."""
        return self.files[number]

    def read_ahead(self, numbers: list[int]) -> None:
        """Do nothing: all files are in memory."""
