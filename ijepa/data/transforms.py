"""Augmentations: functions of an image and of its own random draws.

Colours are changed by PIL, which gives the same bytes as torchvision's functions on PIL images, in
about the same time. On tensors of 32 or 224 pixels torchvision's functions mostly take twice as
long or longer.

Shape suffixes: B images, C channels, H rows and W columns (of pixels or of tokens), R rows and
K columns of patches.
"""

import math
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, Literal, NamedTuple, overload

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageEnhance, ImageFilter, ImageOps
from torch import Tensor

from ijepa.architecture import ViTConfig
from ijepa.data.bands import COLOURS, Bands, Picture
from ijepa.data.fast_jpeg import Jpeg
from ijepa.image_size import Size, sides
from ijepa.ranges import Positive, PositiveShare, Probability, Rising
from ijepa.transfer import placed

MEAN = (0.485, 0.456, 0.406)
STD = (0.229, 0.224, 0.225)
"""ImageNet's statistics: the release uses them for every data set."""

INTERPOLATIONS = {
    "bilinear": Image.Resampling.BILINEAR,
    "bicubic": Image.Resampling.BICUBIC,
}


@dataclass(frozen=True)
class Crop:
    """One kind of augmented view: torchvision's random resized crop, then flip and colours.

    Defaults are I-JEPA's: the release crops 0.3 to 1.0 of the area, resizes bilinearly, and neither
    flips nor changes colours. (Its ViT-B and L numbers may come from earlier code that did flip.)

    ``jitter`` holds the strengths of brightness, contrast, saturation and hue, as in torchvision's
    ColorJitter: a factor within 1 +- strength, or a share of the circle of hues within +- strength,
    in random order. ``whole`` means all of the image, squashed, in place of a crop. ``flip``,
    ``jitter_probability``, ``grey``, ``blur`` and ``solarise`` are probabilities.
    """

    whole: bool = False
    scale: Rising[PositiveShare] = (0.3, 1.0)
    aspect: Rising[Positive] = (3 / 4, 4 / 3)
    flip: Probability = 0.0
    interpolation: Literal["bilinear", "bicubic"] = "bilinear"
    jitter: tuple[float, float, float, float] = (0.0, 0.0, 0.0, 0.0)
    jitter_probability: Probability = 1.0
    grey: Probability = 0.0
    blur: Probability = 0.0
    solarise: Probability = 0.0

    def __post_init__(self) -> None:
        limits = (1, 1, 1, 0.5)
        if not all(0 <= s <= limit for s, limit in zip(self.jitter, limits, strict=True)):
            raise ValueError(
                f"jitter is {list(self.jitter)}: brightness, contrast and saturation must lie "
                "within [0, 1], hue within [0, 0.5]"
            )

    @cached_property
    def changes_colours(self) -> bool:
        """True if views may differ from their image in colour; every image asks."""
        return any(np.any(getattr(self, name)) for name in COLOURS)


IJEPA = Crop()
"""Assran et al., CVPR 2023: facebookresearch/ijepa, configs/in1k_vith14_ep300."""

MAE = Crop(scale=(0.2, 1.0), flip=0.5, interpolation="bicubic")
"""He et al., CVPR 2022: facebookresearch/mae, main_pretrain."""

CAE = Crop(scale=(0.08, 1.0), flip=0.5, interpolation="bicubic")
"""Chen et al., arXiv 2202.03026: the pretraining scripts of Atten4Vis/CAE."""

DATA2VEC = replace(CAE, jitter=(0.4, 0.4, 0.4, 0.0))
"""Baevski et al., ICML 2022: facebookresearch/data2vec_vision, beit/datasets.

The release changes colours before it crops, so that its contrast refers to the whole image's mean;
here it refers to the crop's mean.
"""

DINO_GLOBAL_1 = Crop(
    scale=(0.25, 1.0),
    flip=0.5,
    interpolation="bicubic",
    jitter=(0.4, 0.4, 0.2, 0.1),
    jitter_probability=0.8,
    grey=0.2,
    blur=1.0,
)
DINO_GLOBAL_2 = replace(DINO_GLOBAL_1, blur=0.1, solarise=0.2)
DINO_LOCAL = replace(DINO_GLOBAL_1, scale=(0.05, 0.25), blur=0.5)
"""Caron et al., ICCV 2021: facebookresearch/dino, with the scales of the released models.

Colours are main_dino's; the scales of the models' args.txt are as quoted by the README of DyT. The
script's defaults crop 0.4 to 1 and 0.05 to 0.4 of the area instead.
"""

IBOT_GLOBAL_1 = replace(DINO_GLOBAL_1, scale=(0.32, 1.0))
IBOT_GLOBAL_2 = replace(DINO_GLOBAL_2, scale=(0.32, 1.0))
IBOT_LOCAL = replace(DINO_LOCAL, scale=(0.05, 0.32))
"""Zhou et al., ICLR 2022, appendix B: a scale of 0.32 by default for ViT-S and B.

The command of bytedance/ibot for ViT-S has 0.25, its script's defaults are 0.14 to 1 and 0.05 to
0.4.
"""

LEJEPA_GLOBAL = Crop(
    scale=(0.3, 1.0),
    flip=0.5,
    jitter=(0.4, 0.4, 0.2, 0.1),
    jitter_probability=0.8,
    grey=0.2,
    blur=0.5,
    solarise=0.2,
)
LEJEPA_LOCAL = replace(LEJEPA_GLOBAL, scale=(0.05, 0.3))
"""Balestriero and LeCun, arXiv 2511.08544: every view has the same colours.

Neither the interpolation nor the order of the changes is stated: bilinear, and DINO's order.
"""


class Box(NamedTuple):
    """Part of an image that a view shows, in pixels; ``flip`` is true if the view is mirrored."""

    left: int
    top: int
    width: int
    height: int
    flip: bool


def sample_box(
    width: int, height: int, crop: Crop, random: np.random.Generator, shape: float = 1.0
) -> Box:
    """Random part of an image, or all of it (the rule of torchvision's RandomResizedCrop).

    Up to ten crops are drawn until one fits inside the image; if none does, the part is the largest
    central crop of an allowed aspect ratio. ``shape`` is the view's width by its height: the crop's
    aspect ratios are relative to it, so that they are what views are stretched by.
    """
    if crop.whole:
        return Box(0, 0, width, height, random.random() < crop.flip)
    narrow, wide = (aspect * shape for aspect in crop.aspect)
    low, high = math.log(narrow), math.log(wide)
    for _ in range(10):
        area = width * height * random.uniform(*crop.scale)
        aspect = math.exp(random.uniform(low, high))
        w, h = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
        if 0 < w <= width and 0 < h <= height:
            left, top = (int(random.integers(room + 1)) for room in (width - w, height - h))
            break
    else:
        w = min(width, round(height * wide))
        h = min(height, round(width / narrow))
        left, top = (width - w) // 2, (height - h) // 2
    return Box(left, top, w, h, random.random() < crop.flip)


@overload
def augment(
    image: Image.Image, size: Size, crop: Crop, random: np.random.Generator
) -> tuple[Image.Image, Box]: ...
@overload
def augment(
    image: Bands, size: Size, crop: Crop, random: np.random.Generator
) -> tuple[Bands, Box]: ...
@overload
def augment(
    image: Picture | Jpeg, size: Size, crop: Crop, random: np.random.Generator
) -> tuple[Picture | NDArray[np.uint8], Box]: ...
def augment(
    image: Picture | Jpeg, size: Size, crop: Crop, random: np.random.Generator
) -> tuple[Picture | NDArray[np.uint8], Box]:
    """View of ``size`` pixels of an image, and the part of the image that it shows.

    All randomness comes from ``random``. Box and flip are always drawn, changes of colour only if
    ``crop`` has them. A Jpeg's view without changes of colour is its bytes [H, W, 3]: Pillow would
    copy them twice.

    The order of the operations is DINO's: crop, flip, jitter, grey, blur, solarise.
    """

    def happens(probability: float) -> bool:
        return probability > 0 and random.random() < probability

    rows, columns = sides(size)
    box = sample_box(*image.size, crop, random, columns / rows)
    left, top, width, height, flip = box
    part = (left, top, left + width, top + height)
    view: Picture
    if isinstance(image, Jpeg):
        pixels = image.view(part, size, crop.interpolation)
        pixels = pixels[:, ::-1] if flip else pixels
        if not crop.changes_colours:
            return pixels, box
        view = Image.fromarray(pixels)
    else:
        view = image.crop(part).resize((columns, rows), INTERPOLATIONS[crop.interpolation])
        view = view.transpose(Image.Transpose.FLIP_LEFT_RIGHT) if flip else view
    if isinstance(view, Bands):
        assert not crop.changes_colours, "refused by the config"
        return view, box
    if any(crop.jitter) and happens(crop.jitter_probability):
        view = _jitter(view, crop.jitter, random)
    if happens(crop.grey):
        view = view.convert("L").convert("RGB")
    if happens(crop.blur):
        view = view.filter(ImageFilter.GaussianBlur(random.uniform(0.1, 2.0)))
    if happens(crop.solarise):
        view = ImageOps.solarize(view, threshold=128)
    return view, box


def _jitter(
    image: Image.Image, strengths: tuple[float, ...], random: np.random.Generator
) -> Image.Image:
    enhancers = (ImageEnhance.Brightness, ImageEnhance.Contrast, ImageEnhance.Color)
    for i in random.permutation(4):
        # 0 is skipped: a hue turned by 0 would still be rounded on the way to HSV and back.
        if strengths[i] > 0:
            change = random.uniform(-strengths[i], strengths[i])
            image = enhancers[i](image).enhance(1 + change) if i < 3 else turn_hue(image, change)
    return image


def turn_hue(image: Image.Image, turn: float) -> Image.Image:
    """Image with its hues shifted by a share ``turn`` of the circle of hues."""
    identity = list(range(256))
    shift = int(turn * 255) % 256
    shifted = identity[shift:] + identity[:shift]
    return image.convert("HSV").point(shifted + identity + identity).convert("RGB")


def crop_tokens(
    tokens_HW: NDArray[np.integer[Any]],
    image_size: tuple[int, int],
    box: Box,
    grid: tuple[int, int],
) -> NDArray[np.integer[Any]]:
    """Tokens [R, K] of a view's patches, from the tokens of its whole image.

    Each patch has the token nearest to its centre, after the flip. This approximates the tokens of
    the view itself: those would see the view's own pixels, resized and mirrored, and would be finer
    than the whole image's wherever the view enlarges it.

    Args:
        tokens_HW: The tokens of the whole image, whatever its aspect ratio.
        image_size: Width and height of the image in pixels.
        box: The part of the image that the view shows.
        grid: R rows and K columns of patches in the view.
    """

    def nearest(first: int, extent: int, patches: int, whole: int, tokens: int) -> NDArray[np.int_]:
        # In whole numbers, to avoid rounding: first + (i + 1/2) * extent / patches, times
        # 2 * patches.
        centres = 2 * patches * first + (2 * np.arange(patches) + 1) * extent
        return centres * tokens // (2 * patches * whole)

    rows_R = nearest(box.top, box.height, grid[0], image_size[1], tokens_HW.shape[0])
    columns_K = nearest(box.left, box.width, grid[1], image_size[0], tokens_HW.shape[1])
    return tokens_HW[np.ix_(rows_R, columns_K[::-1] if box.flip else columns_K)]


def centre_crop(
    image: Picture, size: Size, interpolation: Image.Resampling = Image.Resampling.BICUBIC
) -> Picture:
    """Evaluation view: short side resized to 8/7 of ``size``, then the central square.

    224 pixels are cut from 256, as in the paper's protocols. An image whose short side is ``size``
    already is only cut: enlarging a 32-pixel photograph to cut 32 pixels from it would lose its
    border. For a view that is no square, the image is resized until it just covers 8/7 of both
    sides.
    """
    rows, columns = sides(size)
    if min(image.height - rows, image.width - columns) != 0:
        scale = max(short_side(rows) / image.height, short_side(columns) / image.width)
        image = image.resize(
            (round(image.width * scale), round(image.height * scale)), interpolation
        )
    left, top = (image.width - columns) // 2, (image.height - rows) // 2
    return image.crop((left, top, left + columns, top + rows))


def short_side(size: int) -> int:
    """Short side in pixels from which the evaluation view of ``size`` pixels is cut."""
    return round(size * 8 / 7)


def squash(
    image: Picture, size: Size, interpolation: Image.Resampling = Image.Resampling.BICUBIC
) -> Picture:
    """Whole image in the view's shape: CLEVR's nearest object may lie outside the centre."""
    rows, columns = sides(size)
    return image.resize((columns, rows), interpolation)


WHOLE_VIEWS = {"centre": centre_crop, "squash": squash}
"""Evaluation views by name: each makes a whole image the view that an encoder is evaluated on."""


def to_array(image: Picture | NDArray[Any]) -> NDArray[Any]:
    """Bytes [H, W, C] of an image, a quarter of the size of floats, which the device makes.

    Channels of 16 bits are floats already, from 0 to 255.
    """
    return np.ascontiguousarray(image)


def normalise(
    images_BHWC: Tensor,
    mean: tuple[float, ...] | None = None,
    std: tuple[float, ...] | None = None,
) -> Tensor:
    """Floats [B, C, H, W] from bytes, normalised by each channel's statistics, or ImageNet's."""
    # Channels are set apart as bytes, in half the time that floats take. A copy in any case: what
    # is floats already would else be changed in place.
    images_BCHW = images_BHWC.permute(0, 3, 1, 2).contiguous().to(torch.float32, copy=True)
    device = images_BCHW.device
    shift, scale = (
        placed(torch.tensor(s), device).view(1, -1, 1, 1) * 255 for s in (mean or MEAN, std or STD)
    )
    return images_BCHW.sub_(shift).div_(scale)


def normalised(images_BHWC: Tensor, vit: ViTConfig, device: torch.device) -> Tensor:
    """Images as a network of this size takes them: floats [B, C, H, W] on its device."""
    return normalise(placed(images_BHWC, device), vit.mean, vit.std)
