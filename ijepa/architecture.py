"""Sizes and options that define a Vision Transformer; ijepa.vit builds it.

This module imports neither torch nor timm, because command lines and file layouts name networks
without building them.

Sources: sizes from Dosovitskiy et al., ICLR 2021, and Zhai et al., CVPR 2022. The I-JEPA paper
calls its largest model "ViT-G/16"; its dimensions are those of ViT-g.
"""

import math
from dataclasses import dataclass
from typing import Annotated, Literal

from pydantic import PlainValidator

from ijepa.image_size import Size, as_size, sides

Init = Literal["official", "rescaled"]

SIZES: dict[str, dict[str, int | float]] = {
    "tiny": {"dim": 192, "depth": 12, "num_heads": 3},
    "small": {"dim": 384, "depth": 12, "num_heads": 6},
    "base": {"dim": 768, "depth": 12, "num_heads": 12},
    "large": {"dim": 1024, "depth": 24, "num_heads": 16},
    "huge": {"dim": 1280, "depth": 32, "num_heads": 16},
    "giant": {"dim": 1408, "depth": 40, "num_heads": 16, "mlp_ratio": 48 / 11},
}


@dataclass(frozen=True)
class ViTConfig:
    """Shape and initial weights of an encoder; ``size`` in a config sets dim, depth and heads.

    ``image_size`` in pixels is the side of a square, or [height, width].

    ``patch_std`` is the standard deviation of the patch convolution's initial weights; None means
    the method's own. I-JEPA's is 0.02: position embeddings are then seven times as large as patch
    embeddings. Weeks of training correct that, but a run of minutes needs image content in its
    targets from the start (LOG.md, 2026-11-22).

    ``mean`` and ``std`` of each channel, in shares of the largest value, normalise every image that
    the encoder sees; None means ImageNet's, which every release uses for every data set.
    ``ijepa-bench data statistics`` computes those of a data set. Their number is that of the
    channels: other than three have no statistics but their own.
    """

    image_size: Annotated[Size, PlainValidator(as_size)] = 224
    patch_size: int = 16
    dim: int = 768
    depth: int = 12
    num_heads: int = 12
    mlp_ratio: float = 4.0
    init: Init = "official"
    patch_std: float | None = None
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None

    # Checked here, not by pydantic: sizes also come from weights, headers and options of a command.
    def __post_init__(self) -> None:
        for name in ("patch_std", "mlp_ratio"):
            value = getattr(self, name)
            if value is not None and not value > 0:
                raise ValueError(f"{name} is {value}: it must be above 0")
        if (self.mean is None) != (self.std is None):
            raise ValueError("mean and std belong together: give both, or neither")
        for name in ("mean", "std"):
            if (values := getattr(self, name)) is not None:
                object.__setattr__(self, name, tuple(values))  # JSON has lists, which have no hash
                if not values or not all(0 <= value <= 1 for value in values):
                    raise ValueError(
                        f"{name} is {list(values)}: give a number from 0 to 1 for each channel"
                    )
        if self.mean is not None and self.std is not None and len(self.mean) != len(self.std):
            raise ValueError(
                f"mean has {len(self.mean)} numbers, std {len(self.std)}: give one for each channel"
            )
        if self.std is not None and not all(self.std):
            raise ValueError(f"std is {list(self.std)}: each must be above 0")
        object.__setattr__(self, "image_size", as_size(self.image_size))
        for name in ("image_size", "patch_size", "dim", "depth", "num_heads"):
            value = getattr(self, name)
            if min(sides(value)) < 1:
                raise ValueError(f"{name} is {value}: it must be at least 1")
        if math.gcd(*sides(self.image_size)) % self.patch_size:
            raise ValueError(
                f"patch_size {self.patch_size} does not divide image_size {self.image_size}: "
                "choose a divisor"
            )
        if self.dim % self.num_heads:
            raise ValueError(
                f"num_heads {self.num_heads} does not divide dim {self.dim}: choose a divisor"
            )
        if self.dim % 4:
            raise ValueError(
                f"dim is {self.dim}: sine-cosine positions in two directions need a multiple of 4"
            )

    @property
    def channels(self) -> int:
        """Channels of the images, three unless mean and std have another number."""
        return 3 if self.mean is None else len(self.mean)

    @property
    def grid(self) -> tuple[int, int]:
        """Rows and columns of patches."""
        height, width = sides(self.image_size)
        return height // self.patch_size, width // self.patch_size

    @property
    def forward_flops(self) -> float:
        """FLOPs of a forward pass of one image, by the closed form of ijepa.cost.flops."""
        tokens = math.prod(self.grid)
        block = 2 * (4 + 2 * self.mlp_ratio) * tokens * self.dim**2 + 4 * tokens**2 * self.dim
        return 2 * tokens * self.channels * self.patch_size**2 * self.dim + self.depth * block

    @property
    def is_square(self) -> bool:
        """True if images are as wide as high."""
        return isinstance(self.image_size, int)

    @property
    def side(self) -> int:
        """Side of square images, for what refuses all others beforehand."""
        assert isinstance(self.image_size, int)
        return self.image_size


@dataclass(frozen=True)
class Variant:
    """Options in which the methods' encoders differ; the defaults are I-JEPA's.

    ``positions``: fixed sine-cosine with the column's or the row's half first; learned; or a bias
    on attention by relative position, shared by all blocks (BEiT's). ``blocks`` beit: queries and
    values have a bias, keys have none. ``layer_scale`` is the initial scale of the residual
    branches, None for no such parameter. ``drop_path`` is the rate in the last block; it rises
    linearly from 0 in the first. ``init`` normal: deviation 0.02 everywhere (I-JEPA); beit: the
    same normal cut at one deviation, which leaves 0.0108, with the output projections of block l
    divided by sqrt(2 l) (data2vec); xavier: uniform, also for the patch convolution (MAE);
    xavier_beit: uniform, but the patch convolution and [cls] as in beit (CAE); dino: as normal, but
    torch's own default for that convolution. ``antialias``: of learned positions that are resampled
    for smaller images, as timm does and DINO does not.
    """

    class_token: bool = False
    positions: Literal["sincos", "sincos_rows_first", "learned", "relative"] = "sincos"
    blocks: Literal["vit", "beit"] = "vit"
    layer_scale: float | None = None
    drop_path: float = 0.0
    init: Literal["normal", "beit", "xavier", "xavier_beit", "dino"] = "normal"
    antialias: bool = False

    def __post_init__(self) -> None:
        if not 0 <= self.drop_path < 1:
            raise ValueError(f"drop_path is {self.drop_path}: it must lie in [0, 1)")
        if self.layer_scale is not None and not self.layer_scale > 0:
            raise ValueError(f"layer_scale is {self.layer_scale}: it must be above 0, or null")
