"""Small data sets of ``pixels: device``: decoded once, they lie on the device as bytes.

The views of a batch are two matrix products for each image, along its rows and then along its
columns, with the weights of PIL's filters, rounded to bytes after each as PIL's. PIL computes in
whole numbers: of CIFAR-10's views no byte differs if bilinear, and 6 in 100,000 if bicubic.
"""

from collections.abc import Sequence
from typing import Protocol

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from ijepa.data.bands import Picture
from ijepa.data.device_jpeg import Parts, as_bytes
from ijepa.image_size import Size, sides
from ijepa.transfer import placed

LARGEST = 2 * 10**9
"""Bytes of the largest data set that lies on the device: 650,000 images of 32 pixels."""
CHUNK = 256
"""Images that are read at a time, from an address."""


class Pictures(Protocol):
    """Images of a split by number."""

    def __len__(self) -> int: ...
    def __getitem__(self, number: int) -> Picture: ...
    def read_ahead(self, numbers: Sequence[int]) -> None:
        """Read images that lie at an address."""


def resident(images: Pictures, device: torch.device) -> Tensor | None:
    """Images of a split on a device, bytes [N, C, H, W]; None if they are too many or differ.

    The first one's size decides whether they are too many.
    """
    width, height = images[0].size
    if 3 * height * width * len(images) > LARGEST:
        return None
    images_NHWC = np.empty((len(images), height, width, 3), np.uint8)
    with tqdm(total=len(images), desc="images to the device", unit="image", mininterval=2) as bar:
        for first in range(0, len(images), CHUNK):
            numbers = range(first, min(first + CHUNK, len(images)))
            images.read_ahead(numbers)
            for number in numbers:
                image = images[number]
                if image.size != (width, height):
                    return None
                images_NHWC[number] = np.asarray(image)
                bar.update()
    return torch.from_numpy(images_NHWC).permute(0, 3, 1, 2).to(device)


def cut(images_NCHW: Tensor, parts: Parts, size: Size, mode: str) -> Tensor:
    """Views [B, H, W, C] as bytes: parts of images that lie on the device."""
    rows_BR = placed(parts.rows_BR, images_NCHW.device)
    numbers_B, _, left_B, top_B, width_B, height_B, flip_B = rows_BR.T
    images_BCHW = images_NCHW.index_select(0, numbers_B).float()
    rows, columns = sides(size)
    down_BRH = _weights(top_B, height_B, rows, images_BCHW.shape[2], mode)
    across_BKW = _weights(left_B, width_B, columns, images_BCHW.shape[3], mode)
    across_BKW = torch.where(flip_B.view(-1, 1, 1) > 0, across_BKW.flip(1), across_BKW)
    narrowed_BCHK = as_bytes(images_BCHW @ across_BKW.mT.unsqueeze(1))
    views_BCRK = as_bytes(down_BRH.unsqueeze(1) @ narrowed_BCHK)
    return views_BCRK.to(torch.uint8).permute(0, 2, 3, 1)


def _weights(first_B: Tensor, length_B: Tensor, size: int, extent: int, mode: str) -> Tensor:
    """Weights [B, size, extent] of an image's pixels in those of its part, as PIL resizes.

    A part that is larger than the view has a filter that is as much wider.
    """
    pixels = torch.arange(extent, device=first_B.device) + 0.5
    first_B11, length_B11 = first_B.view(-1, 1, 1), length_B.view(-1, 1, 1)
    scale_B11 = length_B11 / size
    centres_B1S = (torch.arange(size, device=first_B.device) + 0.5) * scale_B11 + first_B11
    distances_BSE = (pixels - centres_B1S.mT).abs() / scale_B11.clamp(min=1)
    weights_BSE = FILTERS[mode](distances_BSE)
    weights_BSE *= (pixels > first_B11) & (pixels < first_B11 + length_B11)
    return weights_BSE / weights_BSE.sum(2, keepdim=True)


def _triangle(x: Tensor) -> Tensor:
    return (1 - x).clamp(min=0)


def _cubic(x: Tensor) -> Tensor:
    """Keys' filter with a = -1/2, PIL's and torchvision's."""
    near = (1.5 * x - 2.5) * x * x + 1
    far = ((-0.5 * x + 2.5) * x - 4) * x + 2
    return torch.where(x < 1, near, torch.where(x < 2, far, 0.0))


FILTERS = {"bilinear": _triangle, "bicubic": _cubic}
