"""Augmentation of training images by name, as timm's training and MAE's fine-tuning have it.

timm takes seconds to import: evals.training_config imports this module when it augments.
"""

from collections.abc import Callable
from typing import Any

from PIL import Image, ImageOps
from timm.data.auto_augment import NAME_TO_OP, auto_augment_transform, rand_augment_transform

from ijepa.data.transforms import INTERPOLATIONS, MEAN

Policy = Callable[[Image.Image], Image.Image]


def posterize(image: Image.Image, bits: int, **_: Any) -> Image.Image:
    """Image with ``bits`` bits per channel; 0 bits make it black, which Pillow 13 refuses to draw.

    RandAugment of magnitude 9 with deviation 0.5 asks for 0 bits now and then.
    """
    if bits == 0:
        return Image.new(image.mode, image.size)
    return image if bits >= 8 else ImageOps.posterize(image, bits)


for _name in ("Posterize", "PosterizeIncreasing", "PosterizeOriginal"):
    NAME_TO_OP[_name] = posterize


def named(name: str, interpolation: str, size: int) -> Policy:
    """RandAugment or AutoAugment by timm's string for it, with timm's settings for ``size`` pixels.

    Raises ValueError for a string that timm does not know.
    """
    settings: dict[str, Any] = {
        "translate_const": int(size * 0.45),
        "img_mean": tuple(round(255 * mean) for mean in MEAN),
        "interpolation": INTERPOLATIONS[interpolation],
    }
    make: Any = rand_augment_transform if name.startswith("rand") else auto_augment_transform
    try:
        policy: Policy = make(name, settings)
    except (AssertionError, ValueError):
        raise ValueError(
            f"auto_augment is {name!r}, which timm does not know: allowed are "
            "such as rand-m9-mstd0.5-inc1 and original, or null"
        ) from None
    return policy
