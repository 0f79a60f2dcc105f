"""Vision Transformer of all methods: timm's blocks, with the options in which the papers differ.

Shape suffixes: B images, C channels, H rows of pixels, W columns of pixels, N patches of the grid
(row-major), K patches kept, P 1 for a [cls] token and 0 for none, L blocks, D features.

Source: Assran et al., CVPR 2023, section A.1.
"""

from collections.abc import Iterator
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from ijepa.architecture import Init, Variant, ViTConfig
from ijepa.transfer import placed

LAYER_NORM_EPS = 1e-6
DROP_PATHS = ("drop_path1", "drop_path2")
norm_layer: Any = partial(nn.LayerNorm, eps=LAYER_NORM_EPS)


class Hidden(NamedTuple):
    """Patches whose embedding a learned token replaces: boolean [B, N], and the token [1, 1, D]."""

    hidden_BN: Tensor
    token: Tensor


class ViT(nn.Module):
    """Encoder from images to one feature vector per patch, after that of [cls] if it has one.

    Its parts and their names are those of timm's VisionTransformer.
    """

    def __init__(self, config: ViTConfig, variant: Variant = Variant()) -> None:
        # Not at the top: timm takes seconds to import; who only reads a recipe builds no network.
        from timm.models.beit import RelativePositionBias
        from timm.models.vision_transformer import Block, VisionTransformer

        super().__init__()
        timm = VisionTransformer(
            img_size=config.image_size,
            patch_size=config.patch_size,
            in_chans=config.channels,
            embed_dim=config.dim,
            depth=config.depth,
            num_heads=config.num_heads,
            mlp_ratio=config.mlp_ratio,
            num_classes=0,
            class_token=variant.class_token,
            global_pool="",
            fc_norm=False,
            pos_embed="none" if variant.positions == "relative" else "learn",
            init_values=variant.layer_scale,
            drop_path_rate=variant.drop_path,
            norm_layer=norm_layer,
            block_fn=beit_block if variant.blocks == "beit" else Block,  # type: ignore[arg-type]
            weight_init="skip",
        )
        self.config, self.variant = config, variant
        self.cls_token, self.pos_embed = timm.cls_token, timm.pos_embed
        self.patch_embed, self.blocks, self.norm = timm.patch_embed, timm.blocks, timm.norm
        self.num_prefix_tokens: int = timm.num_prefix_tokens
        self.patch_embed.strict_img_size = False  # local crops are smaller
        self.activation_checkpointing = False
        if variant.positions.startswith("sincos"):
            positions = sincos_positions(
                config.dim, config.grid, rows_first=variant.positions == "sincos_rows_first"
            )
            if variant.class_token:
                positions = torch.cat([torch.zeros_like(positions[:, :1]), positions], 1)
            self.pos_embed = nn.Parameter(positions, requires_grad=False)
        if variant.positions == "relative":
            self.rel_pos_bias = RelativePositionBias(config.grid, config.num_heads)
        self._initialise()
        if variant.drop_path:
            for block in self.blocks:
                for name in DROP_PATHS:
                    rate = getattr(getattr(block, name), "drop_prob", 0.0)
                    setattr(block, name, DropPath(rate))

    def _initialise(self) -> None:
        projection, init = self.patch_embed.proj, self.variant.init
        default = {name: p.detach().clone() for name, p in projection.named_parameters()}
        is_beit, std = init.endswith("beit"), self.config.patch_std
        initialise(self, "rescaled" if init == "beit" else self.config.init, cut=is_beit)
        if std is not None:
            nn.init.trunc_normal_(projection.weight, std=std)
        if init.startswith("xavier"):
            xavier(self)
        if init in ("xavier", "dino"):  # these releases leave torch's own bias
            with torch.no_grad():
                projection.bias.copy_(default["bias"])
                if std is None:
                    projection.weight.copy_(default["weight"])
            if init == "xavier" and std is None:
                nn.init.xavier_uniform_(projection.weight.view(len(projection.weight), -1))
        if self.cls_token is not None:
            normal(self.cls_token, cut=is_beit)
        if self.pos_embed is not None and self.variant.positions == "learned":
            nn.init.trunc_normal_(self.pos_embed, std=0.02)

    def forward(
        self,
        images_BCHW: Tensor,
        keep_BK: Tensor | None = None,
        hidden: Hidden | None = None,
        coins_BL2: Tensor | None = None,
    ) -> Tensor:
        """Features after the final LayerNorm, [B, P + N, D]; of ``keep_BK`` alone if given.

        Patches that are not kept are dropped before the first block: they influence nothing.
        ``coins_BL2`` are uniform numbers for stochastic depth, needed in training mode if the
        variant has it.
        """
        *_, last = self.outputs(images_BCHW, keep_BK, hidden, coins_BL2)
        features: Tensor = self.norm(last)
        return features

    def of_cls(self, images_BCHW: Tensor, coins_BL2: Tensor | None = None) -> Tensor:
        """Features of [cls] after the final LayerNorm, [B, D], for less than those of all rows."""
        *_, last = self.outputs(images_BCHW, coins_BL2=coins_BL2, rows=slice(0, 1))
        features: Tensor = self.norm(last)[:, 0]
        return features

    def outputs(
        self,
        images_BCHW: Tensor,
        keep_BK: Tensor | None = None,
        hidden: Hidden | None = None,
        coins_BL2: Tensor | None = None,
        rows: slice | None = None,
    ) -> Iterator[Tensor]:
        """Embeddings and then the output of every block, [B, P + N, D], one after the other.

        Of the last block only ``rows``, if given.
        """
        x = self.embed(images_BCHW, keep_BK, hidden)
        yield x
        shared = {}
        if self.variant.positions == "relative":
            assert keep_BK is None, "the bias is that of the whole grid"
            assert rows is None, "BEiT's block takes the bias"
            shared = {"shared_rel_pos_bias": self.rel_pos_bias()}
        drops = self.training and self.variant.drop_path > 0

        def run(layer: int, x: Tensor) -> Tensor:
            # Set here, so that a block that is recomputed gets the same coins again.
            for number, name in enumerate(DROP_PATHS if drops else ()):
                assert coins_BL2 is not None
                getattr(self.blocks[layer], name).coins_B = coins_BL2[:, layer, number]
            block, is_last = self.blocks[layer], layer == len(self.blocks) - 1
            out: Tensor = (
                block(x, **shared) if not (is_last and rows) else some_rows(block, x, rows)
            )
            return out

        for layer in range(len(self.blocks)):
            if self.activation_checkpointing and torch.is_grad_enabled():
                x = checkpoint(run, layer, x, use_reentrant=False)
            else:
                x = run(layer, x)
            yield x

    def embed(
        self, images_BCHW: Tensor, keep_BK: Tensor | None = None, hidden: Hidden | None = None
    ) -> Tensor:
        """Input of the first block, [B, P + N, D] or [B, P + K, D]."""
        x: Tensor = self.patch_embed(images_BCHW)
        if hidden is not None:
            x = torch.where(hidden.hidden_BN.unsqueeze(-1), hidden.token, x)
        prefix = self.num_prefix_tokens
        positions = self.positions(images_BCHW)
        if positions is not None:
            x = x + positions[:, prefix:]
        if keep_BK is not None:
            x = take(x, keep_BK)
        if self.cls_token is not None:
            token = self.cls_token if positions is None else self.cls_token + positions[:, :1]
            x = torch.cat([token.expand(len(x), -1, -1), x], 1)
        return x

    def positions(self, images_BCHW: Tensor) -> Tensor | None:
        """Position of each token, resampled if the images are not of ``config.image_size``.

        DINO's release adds 0.1 to the new grid's sides against rounding, which moves the sampling
        points by a hundredth of a patch; this code does not.
        """
        if self.pos_embed is None:
            return None
        rows, columns = (side // self.config.patch_size for side in images_BCHW.shape[2:])
        if (rows, columns) == self.config.grid:
            return self.pos_embed
        from timm.layers.pos_embed import resample_abs_pos_embed

        resampled: Tensor = resample_abs_pos_embed(
            self.pos_embed,
            [rows, columns],
            list(self.config.grid),
            num_prefix_tokens=self.num_prefix_tokens,
            antialias=self.variant.antialias,
        )
        return resampled

    def patches(self, features: Tensor) -> Tensor:
        """Features of the patches alone, [B, N, D]."""
        return features[:, self.num_prefix_tokens :]


class DropPath(nn.Module):
    """Stochastic depth (Huang et al., ECCV 2016) that draws no random numbers itself.

    The caller sets ``coins_B``, one uniform number for each image. A branch is then dropped for the
    same images however many devices share the batch, and also when it is recomputed.
    """

    def __init__(self, rate: float) -> None:
        super().__init__()
        self.rate = rate
        self.coins_B: Tensor

    def forward(self, x: Tensor) -> Tensor:
        """Branch scaled up for the images that keep it, and zero for the others."""
        if not self.training or not self.rate:
            return x
        scale_B = (self.coins_B >= self.rate).to(x.dtype) / (1 - self.rate)
        return x * scale_B.view(-1, 1, 1)


def transformer_block(dim: int, num_heads: int, mlp_ratio: float = 4.0) -> nn.Module:
    """Timm's pre-norm block with every method's settings, for predictors and decoders."""
    from timm.models.vision_transformer import Block

    return Block(dim, num_heads, mlp_ratio, qkv_bias=True, norm_layer=norm_layer)


def some_rows(block: Any, x_BND: Tensor, rows: slice) -> Tensor:
    """Rows of the output of timm's pre-norm block, [B, R, D], where nothing reads the others.

    They attend to all rows, but the MLP, two thirds of a block's FLOPs, sees each row alone: that
    of the other rows is left out.
    """
    x_BND = x_BND + block.drop_path1(block.ls1(block.attn(block.norm1(x_BND))))
    x_BRD = x_BND[:, rows]
    out: Tensor = x_BRD + block.drop_path2(block.ls2(block.mlp(block.norm2(x_BRD))))
    return out


def beit_block(
    dim: int,
    num_heads: int,
    mlp_ratio: float = 4.0,
    init_values: float | None = None,
    drop_path: float = 0.0,
    **_: Any,
) -> nn.Module:
    """Timm's block of BEiT: layer scale, and no bias for the keys.

    It takes all arguments that timm's VisionTransformer passes to a block. Those without a
    counterpart have their defaults and are ignored.
    """
    from timm.models.beit import Block

    return Block(
        dim,
        num_heads,
        qkv_bias=True,
        mlp_ratio=mlp_ratio,
        drop_path=drop_path,
        init_values=init_values,
        norm_layer=norm_layer,
    )


def take(x_BND: Tensor, index_BK: Tensor) -> Tensor:
    """Rows of ``x_BND`` with the indices ``index_BK``, [B, K, D]."""
    return x_BND.gather(1, index_BK.unsqueeze(-1).expand(-1, -1, x_BND.shape[-1]))


def patchify(images_BCHW: Tensor, size: int) -> Tensor:
    """Values of every patch of ``size`` x ``size``, [B, N, size * size * C], channels last."""
    x: Tensor = images_BCHW.unflatten(3, (-1, size)).unflatten(2, (-1, size))  # B C row p column p
    return x.permute(0, 2, 4, 3, 5, 1).flatten(3).flatten(1, 2)


def unpatchify(patches_BNV: Tensor, grid: tuple[int, int], size: int) -> Tensor:
    """Images [B, C, H, W] of their patches' values: the inverse of ``patchify``."""
    x: Tensor = patches_BNV.unflatten(2, (size, size, -1)).unflatten(1, grid)  # B row column p p C
    return x.permute(0, 5, 1, 3, 2, 4).flatten(4).flatten(2, 3)


def where(chosen_BN: Tensor, device: torch.device) -> Tensor:
    """Ascending indices of the chosen patches, [B, K] on a device.

    Every image must have equally many. The choice lies on the CPU: their number is a shape, for
    which a GPU would have to be waited for.
    """
    counts = chosen_BN.sum(1)
    assert (counts == counts[0]).all()
    index_BK: Tensor = chosen_BN.nonzero()[:, 1].view(len(chosen_BN), -1)
    return placed(index_BK, device)


def sincos_positions(dim: int, grid: tuple[int, int], rows_first: bool = False) -> Tensor:
    """Fixed positions, [1, N, dim].

    The first half of the features encodes the column, the second the row; CAE has the row first.
    Each is [sines | cosines] of the integer coordinate times 10000^(-k / (dim / 4)), computed in
    float64 as the release does.
    """
    frequency = 10000.0 ** (-torch.arange(dim // 4, dtype=torch.float64) / (dim // 4))
    row, column = torch.meshgrid(
        *(torch.arange(side, dtype=torch.float64) for side in grid), indexing="ij"
    )
    order = (row, column) if rows_first else (column, row)
    angles = (coordinate.flatten().outer(frequency) for coordinate in order)
    table = torch.cat([wave for angle in angles for wave in (angle.sin(), angle.cos())], dim=1)
    return table.float().unsqueeze(0)


def normal(weights: Tensor, cut: bool = False) -> None:
    """Set normal weights of deviation 0.02, ``cut`` at one deviation, as BEiT and its heirs do.

    The bounds of the others are at +-2, a hundred deviations away. The cut leaves a deviation of
    0.54 * 0.02 = 0.0108.
    """
    bound = 0.02 if cut else 2.0
    nn.init.trunc_normal_(weights, std=0.02, a=-bound, b=bound)


@torch.no_grad()
def initialise(module: nn.Module, init: Init, cut: bool = False) -> None:
    """Set normal weights of deviation 0.02 and zero biases in every Linear and patch convolution.

    ``rescaled`` also divides the two output projections of block l (from 1) by sqrt(2 l). I-JEPA's
    release means to do so and undoes it in a second pass, so its published numbers are
    ``official``. data2vec's release does it. ``cut``: see ``normal``.
    """
    for part in module.modules():
        if isinstance(part, nn.Linear | nn.Conv2d):
            normal(part.weight, cut)
            if part.bias is not None:
                nn.init.zeros_(part.bias)
    if init == "rescaled":
        for blocks in module.children():
            if isinstance(blocks, nn.Sequential | nn.ModuleList):
                for layer, part in enumerate(blocks, start=1):
                    for name in ("attn.proj.weight", "mlp.fc2.weight"):
                        part.get_parameter(name).div_((2 * layer) ** 0.5)


def xavier(module: nn.Module) -> None:
    """Set uniform weights after Glorot and Bengio, and zero biases, in every Linear (MAE, CAE)."""
    for part in module.modules():
        if isinstance(part, nn.Linear):
            nn.init.xavier_uniform_(part.weight)
            if part.bias is not None:
                nn.init.zeros_(part.bias)
