"""Augmentations: functions of an image and of its own random draws."""

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

MEAN = (0.485, 0.456, 0.406)
STD = (0.229, 0.224, 0.225)
"""ImageNet's statistics: the release uses them for every data set."""


@dataclass(frozen=True)
class Crop:
    """Random resized crop, with torchvision's rule; defaults are I-JEPA's.

    The release crops 0.3 to 1.0 of the area, resizes bilinearly, and neither flips nor changes
    colours. (Its ViT-B and L numbers may come from an earlier code that did flip.)
    """

    scale: tuple[float, float] = (0.3, 1.0)
    aspect: tuple[float, float] = (3 / 4, 4 / 3)
    flip: float = 0.0

    def __post_init__(self) -> None:
        if not 0 < self.scale[0] <= self.scale[1] <= 1:
            raise ValueError(f"scale is {list(self.scale)}: it must rise within (0, 1]")
        if not 0 < self.aspect[0] <= self.aspect[1]:
            raise ValueError(f"aspect is {list(self.aspect)}: it must rise from above 0")
        if not 0 <= self.flip <= 1:
            raise ValueError(f"flip is {self.flip}: it is a probability")


def random_resized_crop(
    image: Image.Image, size: int, crop: Crop, random: np.random.Generator
) -> Image.Image:
    """A square of ``size`` pixels, cut from the image at random (torchvision's RandomResizedCrop).

    Ten tries at a crop that fits inside the image, then the largest central crop of an allowed
    aspect ratio.
    """
    width, height = image.size
    low, high = (math.log(a) for a in crop.aspect)
    for _ in range(10):
        area = width * height * random.uniform(*crop.scale)
        aspect = math.exp(random.uniform(low, high))
        w, h = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
        if 0 < w <= width and 0 < h <= height:
            left, top = (int(random.integers(room + 1)) for room in (width - w, height - h))
            break
    else:
        w = min(width, round(height * crop.aspect[1]))
        h = min(height, round(width / crop.aspect[0]))
        left, top = (width - w) // 2, (height - h) // 2
    image = image.crop((left, top, left + w, top + h)).resize(
        (size, size), Image.Resampling.BILINEAR
    )
    if random.random() < crop.flip:
        image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    return image


def centre_crop(image: Image.Image, size: int) -> Image.Image:
    """The evaluation view: short side resized to 8/7 of ``size``, bicubic, then the central square.

    224 pixels are cut from 256, as in the paper's protocols. An image whose short side is ``size``
    already is only cut: enlarging a 32-pixel photograph to cut 32 pixels from it would lose its
    rim.
    """
    if min(image.size) != size:
        scale = round(size * 8 / 7) / min(image.size)
        image = image.resize(
            (round(image.width * scale), round(image.height * scale)), Image.Resampling.BICUBIC
        )
    left, top = (image.width - size) // 2, (image.height - size) // 2
    return image.crop((left, top, left + size, top + size))


def to_array(image: Image.Image) -> NDArray[np.uint8]:
    """Bytes [H, W, 3]; they become floats on the device, four times fewer to move."""
    return np.asarray(image)


def normalise(images_BHWC: Tensor) -> Tensor:
    """Floats [B, 3, H, W], normalised by ImageNet's statistics, from bytes."""
    images_BCHW = images_BHWC.permute(0, 3, 1, 2).float().contiguous()
    mean, std = (images_BCHW.new_tensor(s).view(1, 3, 1, 1) * 255 for s in (MEAN, STD))
    return images_BCHW.sub_(mean).div_(std)
