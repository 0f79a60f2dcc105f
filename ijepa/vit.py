"""The Vision Transformer of I-JEPA: timm's blocks, no [cls] token, fixed sine-cosine positions.

Shape suffixes: B images, C channels, H rows of pixels, W columns of pixels, N patches of the grid
(row-major), K patches kept, D features.

Sources: Assran et al., CVPR 2023, section A.1; sizes from Dosovitskiy et al., ICLR 2021, and Zhai
et al., CVPR 2022. The paper calls its largest model "ViT-G/16"; its dimensions are those of ViT-g.
"""

from dataclasses import dataclass
from functools import partial
from typing import Literal

import torch
from timm.models.vision_transformer import Block, VisionTransformer
from torch import Tensor, nn

Init = Literal["official", "rescaled"]

SIZES: dict[str, dict[str, int | float]] = {
    "tiny": {"dim": 192, "depth": 12, "num_heads": 3},
    "small": {"dim": 384, "depth": 12, "num_heads": 6},
    "base": {"dim": 768, "depth": 12, "num_heads": 12},
    "large": {"dim": 1024, "depth": 24, "num_heads": 16},
    "huge": {"dim": 1280, "depth": 32, "num_heads": 16},
    "giant": {"dim": 1408, "depth": 40, "num_heads": 16, "mlp_ratio": 48 / 11},
}

LAYER_NORM_EPS = 1e-6


@dataclass(frozen=True)
class ViTConfig:
    """Shape and initial weights of an encoder; ``size: huge`` in a config sets dim, depth, heads.

    ``patch_std`` is the deviation of the patch convolution's weights: 0.02 in the release, where
    positions are then seven times as large as what a patch shows, and training has weeks to mend
    it. A run of minutes needs content in its targets from the start (LOG.md, 2026-11-22).
    """

    image_size: int = 224
    patch_size: int = 16
    dim: int = 768
    depth: int = 12
    num_heads: int = 12
    mlp_ratio: float = 4.0
    init: Init = "official"
    patch_std: float = 0.02

    def __post_init__(self) -> None:
        for name in ("patch_std", "mlp_ratio"):
            if not getattr(self, name) > 0:
                raise ValueError(f"{name} is {getattr(self, name)}: it must be above 0")
        for name in ("image_size", "patch_size", "dim", "depth", "num_heads"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}: it must be at least 1")
        if self.image_size % self.patch_size:
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
    def grid(self) -> tuple[int, int]:
        """Rows and columns of patches."""
        return (self.image_size // self.patch_size,) * 2


class ViT(VisionTransformer):
    """An encoder from images to one feature vector per patch."""

    def __init__(self, config: ViTConfig) -> None:
        super().__init__(
            img_size=config.image_size,
            patch_size=config.patch_size,
            embed_dim=config.dim,
            depth=config.depth,
            num_heads=config.num_heads,
            mlp_ratio=config.mlp_ratio,
            num_classes=0,
            class_token=False,
            global_pool="",
            fc_norm=False,
            pos_embed="learn",
            norm_layer=partial(nn.LayerNorm, eps=LAYER_NORM_EPS),
            weight_init="skip",
        )
        positions = sincos_positions(config.dim, config.grid)
        self.pos_embed = nn.Parameter(positions, requires_grad=False)
        initialise(self, config.init)
        nn.init.trunc_normal_(self.patch_embed.proj.weight, std=config.patch_std)

    def forward(  # type: ignore[override]
        self, images_BCHW: Tensor, keep_BK: Tensor | None = None
    ) -> Tensor:
        """Features after the final LayerNorm, [B, N, D]; of the patches in ``keep_BK`` if given.

        Patches that are not kept are dropped before the first block: they influence nothing.
        """
        x = self.patch_embed(images_BCHW) + self.pos_embed
        if keep_BK is not None:
            x = take(x, keep_BK)
        features: Tensor = self.norm(self.blocks(x))
        return features


def transformer_block(dim: int, num_heads: int, mlp_ratio: float = 4.0) -> Block:
    """Timm's pre-norm block with I-JEPA's settings, for predictors and decoders."""
    return Block(
        dim,
        num_heads,
        mlp_ratio,
        qkv_bias=True,
        norm_layer=partial(nn.LayerNorm, eps=LAYER_NORM_EPS),  # type: ignore[arg-type]
    )


def take(x_BND: Tensor, index_BK: Tensor) -> Tensor:
    """The rows of ``x_BND`` named by ``index_BK``, [B, K, D]."""
    return x_BND.gather(1, index_BK.unsqueeze(-1).expand(-1, -1, x_BND.shape[-1]))


def sincos_positions(dim: int, grid: tuple[int, int]) -> Tensor:
    """Fixed positions, [1, N, dim].

    The first half of the features encodes the column, the second the row. Each is [sines | cosines]
    of the integer coordinate times 10000^(-k / (dim / 4)), computed in float64 as the release does.
    """
    frequency = 10000.0 ** (-torch.arange(dim // 4, dtype=torch.float64) / (dim // 4))
    row, column = torch.meshgrid(
        *(torch.arange(side, dtype=torch.float64) for side in grid), indexing="ij"
    )
    angles = (coordinate.flatten().outer(frequency) for coordinate in (column, row))
    table = torch.cat([wave for angle in angles for wave in (angle.sin(), angle.cos())], dim=1)
    return table.float().unsqueeze(0)


@torch.no_grad()
def initialise(module: nn.Module, init: Init) -> None:
    """Normal weights of deviation 0.02 and zero biases for every Linear and patch convolution.

    ``rescaled`` also divides the two output projections of block l (from 1) by sqrt(2 l). The
    release means to do so and undoes it in a second pass, so its published numbers are
    ``official``. Its truncation bounds are at +-2, a hundred deviations away; so are these.
    """
    for part in module.modules():
        if isinstance(part, nn.Linear | nn.Conv2d):
            nn.init.trunc_normal_(part.weight, std=0.02)
            if part.bias is not None:
                nn.init.zeros_(part.bias)
    if init == "rescaled":
        for blocks in module.children():
            if isinstance(blocks, nn.Sequential | nn.ModuleList):
                for layer, part in enumerate(blocks, start=1):
                    assert isinstance(part, Block)
                    for name in ("attn.proj.weight", "mlp.fc2.weight"):
                        part.get_parameter(name).div_((2 * layer) ** 0.5)
