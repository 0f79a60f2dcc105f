"""CAE: predict the features of hidden patches from visible ones, and from these their tokens.

Chen et al., "Context Autoencoder for Self-Supervised Representation Learning", IJCV 2023.
https://arxiv.org/abs/2202.03026

Written from the paper; the authors' code has no licence and was not used.

Shape suffixes: B images, N patches of the grid, V visible patches, H hidden patches, D features.
"""

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ijepa import method
from ijepa.architecture import Variant, ViTConfig
from ijepa.data.transforms import CAE as CROP
from ijepa.data.transforms import Crop
from ijepa.masking import BlockWise, num_hidden
from ijepa.method import Batch, Tokens, own_initial_weights
from ijepa.optim import Optim
from ijepa.ranges import BelowOne, Count, NotNegative, Positive, Share
from ijepa.vit import (
    LAYER_NORM_EPS,
    DropPath,
    ViT,
    beit_block,
    norm_layer,
    normal,
    take,
    where,
    xavier,
)

RELEASED = {
    "encoder.": "visible_encoder.",
    "regresser.regressor_blocks.": "regressor.blocks.",
    "regresser.": "regressor.",
    "mask_token": "regressor.mask_token",
    "decoder.decoder_blocks.": "decoder.blocks.",
    "decoder.": "decoder.",
}
COPIES = {"alignment_encoder.": "encoder.", "teacher.": "encoder."}


@dataclass(frozen=True)
class Config(method.MaskedRecipe):
    """Defaults are the published recipe for ViT-B: 1600 epochs in batches of 2048 images.

    Warm-up takes 10, 20 or 40 epochs for 300, 800 or 1600. ViT-L has a layer scale of 1e-5. The
    token targets are ids of DALL-E's dVAE (8192 words). ``tokenizer`` names the tokenizer whose
    token cache the loader reads; the results table names it too. The release tokenises each crop.
    Here the cache holds the tokens of whole images, and is cropped with the image: an
    approximation. With a tokenizer other than ``dalle`` this is a changed method.

    The release's 1600-epoch ViT-L script loses its decoder flags to a missing line continuation.
    That decoder also has 12 heads for every encoder, as the release never reads its number; here
    it has the encoder's.

    Paths are dropped in the encoder, also when it computes the targets of the alignment, and, at
    rates that rise from 0 to the same value, in regressor and decoder. Initial weights are the
    release's: Xavier's, but for the patch convolution, [cls] and the mask token.
    """

    optim: Optim = field(
        default_factory=lambda: Optim(
            batch_size=2048,
            epochs=1600,
            warmup_epochs=40,
            lr=1.5e-3,
            start_lr=0.0,
            final_lr=1e-5,
            weight_decay=(0.05, 0.05),
            counted_from=0,
            clip=3.0,
        )
    )
    crop: Crop = CROP
    mask_ratio: Share = 0.5
    masking: BlockWise = field(default_factory=BlockWise)
    tokenizer: str = "dalle"
    vocabulary: Count = 8192
    regressor_depth: Count = 4
    decoder_depth: Count = 4
    alignment_weight: NotNegative = 2.0
    layer_scale: Positive = 0.1
    drop_path: BelowOne = 0.1

    @property
    def variant(self) -> Variant:
        """Variant with BEiT's blocks on fixed positions, the row's half first."""
        return Variant(
            class_token=True,
            positions="sincos_rows_first",
            blocks="beit",
            layer_scale=self.layer_scale,
            drop_path=self.drop_path,
            init="xavier_beit",
        )

    def hide(self, counts_B: Tensor, grid: tuple[int, int], generator: torch.Generator) -> Tensor:
        """Patches hidden in BEiT's blocks, boolean [B, N]."""
        return self.masking.hide(counts_B, grid, generator)

    @property
    def tokens(self) -> Tokens:
        """Tokenizer and vocabulary of the decoder's targets."""
        return Tokens(self.tokenizer, self.vocabulary)


PRESETS: dict[str, dict[str, Any]] = {
    "epochs300": {"optim": {"epochs": 300, "warmup_epochs": 10}},
    "epochs800": {"optim": {"epochs": 800, "warmup_epochs": 20}},
    "large": {"layer_scale": 1e-5},
    # This project's: ViT-B's recipe for 300 epochs.
    "small": {"optim": {"epochs": 300, "warmup_epochs": 10}},
    # Small images on a CPU, with the tokenizer that is trained here.
    "tiny": {
        "optim": {"batch_size": 64, "epochs": 0.7, "warmup_epochs": 0.15, "lr": 1e-3},
        "tokenizer": "small",
        "vocabulary": 512,
        "masking": {"min_patches": 4},
        "regressor_depth": 1,
        "decoder_depth": 1,
        "drop_path": 0.0,
    },
}


def check(config: Config, vit: ViTConfig) -> None:
    """Raise ValueError if the masks do not fit the grid, or if vit.init is set."""
    num_hidden(config.mask_ratio, vit.grid)
    own_initial_weights(vit, "CAE")


def rising(drop_path: float, depth: int) -> list[float]:
    """Rates of stochastic depth, from 0 in the first block to ``drop_path`` in the last."""
    return [drop_path * layer / max(1, depth - 1) for layer in range(depth)]


class CrossAttention(nn.Module):
    """Attention from queries to other keys and values; keys have no bias."""

    def __init__(self, dim: int, num_heads: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.q, self.k, self.v = (nn.Linear(dim, dim, bias=False) for _ in range(3))
        self.q_bias, self.v_bias = (nn.Parameter(torch.zeros(dim)) for _ in range(2))
        self.proj = nn.Linear(dim, dim)

    def forward(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """Attended values, of the queries' shape."""
        q = F.linear(q, self.q.weight, self.q_bias)
        v = F.linear(v, self.v.weight, self.v_bias)
        heads = (x.unflatten(-1, (self.num_heads, -1)).transpose(1, 2) for x in (q, self.k(k), v))
        x = F.scaled_dot_product_attention(*heads)
        out: Tensor = self.proj(x.transpose(1, 2).flatten(2))
        return out


class RegressorBlock(nn.Module):
    """Block whose queries attend to visible features and to themselves.

    Positions are added to queries and keys only, and before their normalisation. The feed-forward
    part's residual branch starts from the output of its LayerNorm, unlike in every other block
    here.
    """

    def __init__(self, vit: ViTConfig, layer_scale: float, drop_path: float) -> None:
        super().__init__()
        dim = vit.dim
        self.norm1_q, self.norm1_k, self.norm1_v, self.norm2_cross = (
            norm_layer(dim) for _ in range(4)
        )
        self.cross_attn = CrossAttention(dim, vit.num_heads)
        self.mlp_cross = beit_block(dim, vit.num_heads, vit.mlp_ratio).get_submodule("mlp")
        self.gamma_1_cross, self.gamma_2_cross = (
            nn.Parameter(torch.full((dim,), layer_scale)) for _ in range(2)
        )
        self.drop_path1, self.drop_path2 = (DropPath(drop_path) for _ in range(2))

    def forward(self, q: Tensor, kv: Tensor, q_pos: Tensor, k_pos: Tensor) -> Tensor:
        """Queries after this block."""
        attended = self.cross_attn(
            self.norm1_q(q + q_pos), self.norm1_k(kv + k_pos), self.norm1_v(kv)
        )
        x = self.norm2_cross(q + self.drop_path1(self.gamma_1_cross * attended))
        out: Tensor = x + self.drop_path2(self.gamma_2_cross * self.mlp_cross(x))
        return out


class Regressor(nn.Module):
    """Network from visible features and hidden positions to hidden features (latent regressor)."""

    def __init__(self, config: Config, vit: ViTConfig) -> None:
        super().__init__()
        self.mask_token = nn.Parameter(torch.zeros(1, 1, vit.dim))
        self.blocks = nn.ModuleList(
            RegressorBlock(vit, config.layer_scale, rate)
            for rate in rising(config.drop_path, config.regressor_depth)
        )
        self.norm = nn.LayerNorm(vit.dim, eps=LAYER_NORM_EPS)
        xavier(self)
        normal(self.mask_token, cut=True)

    def forward(self, visible_BVD: Tensor, visible_pos: Tensor, hidden_pos: Tensor) -> Tensor:
        """Features of the hidden patches, [B, H, D]."""
        x = self.mask_token.expand_as(hidden_pos)
        key_pos = torch.cat([visible_pos, hidden_pos], 1)
        for block in self.blocks:
            x = block(x, torch.cat([visible_BVD, x], 1), hidden_pos, key_pos)
        features: Tensor = self.norm(x)
        return features


class Decoder(nn.Module):
    """Network from the hidden patches' features to a score for each word of the vocabulary."""

    def __init__(self, config: Config, vit: ViTConfig) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(
            beit_block(vit.dim, vit.num_heads, vit.mlp_ratio, init_values=config.layer_scale)
            for _ in range(config.decoder_depth)
        )
        for block, rate in zip(
            self.blocks, rising(config.drop_path, config.decoder_depth), strict=True
        ):
            block.drop_path1, block.drop_path2 = DropPath(rate), DropPath(rate)
        self.norm = nn.LayerNorm(vit.dim, eps=LAYER_NORM_EPS)
        self.head = nn.Linear(vit.dim, config.vocabulary)
        xavier(self)

    def forward(self, features_BHD: Tensor, hidden_pos: Tensor) -> Tensor:
        """Scores, [B, H, vocabulary]."""
        x = features_BHD + hidden_pos
        for block in self.blocks:
            x = block(x)
        scores: Tensor = self.head(self.norm(x))
        return scores


class Method(method.Method):
    """Encoder (which also computes the alignment targets), regressor and decoder."""

    def __init__(self, config: Config, vit: ViTConfig) -> None:
        super().__init__()
        self.config, self.vit = config, vit
        self.visible_encoder = ViT(vit, config.variant)
        self.regressor = Regressor(config, vit)
        self.decoder = Decoder(config, vit)

    @property
    def encoder(self) -> ViT:
        """The only encoder."""
        return self.visible_encoder

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        """Cross-entropy of the hidden patches' tokens, and the alignment of their features."""
        images, hidden_BN = batch.images_BCHW, self.config.hidden(batch, self.vit.grid)
        coins = batch.uniform("drop_path", 2, self.vit.depth, 2).unbind(1)
        for name, part in (("regressor", self.regressor), ("decoder", self.decoder)):
            coins_BL2 = batch.uniform(f"drop_path of the {name}", len(part.blocks), 2)
            for layer, block in enumerate(part.blocks):
                for number, branch in enumerate((block.drop_path1, block.drop_path2)):
                    assert isinstance(branch, DropPath)
                    branch.coins_B = coins_BL2[:, layer, number]
        features_BHD, scores = self.predict(images, hidden_BN, coins[0])
        targets_BHD = self.targets(images, hidden_BN, coins[1])
        assert batch.tokens_BN is not None
        tokens_BH = batch.tokens_BN.gather(1, where(hidden_BN, images.device))
        return self.losses(features_BHD, targets_BHD, scores, tokens_BH.flatten())

    def predict(
        self, images_BCHW: Tensor, hidden_BN: Tensor, coins_BL2: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Regressed features [B, H, D] and token scores [B, H, vocabulary] of hidden patches."""
        encoder, device = self.visible_encoder, images_BCHW.device
        visible_BV, hidden_BH = where(~hidden_BN, device), where(hidden_BN, device)
        visible_BVD = encoder.patches(encoder(images_BCHW, visible_BV, coins_BL2=coins_BL2))
        visible_pos, hidden_pos = self.positions(visible_BV), self.positions(hidden_BH)
        features_BHD = self.regressor(visible_BVD, visible_pos, hidden_pos)
        return features_BHD, self.decoder(features_BHD, hidden_pos)

    @torch.no_grad()
    def targets(
        self, images_BCHW: Tensor, hidden_BN: Tensor, coins_BL2: Tensor | None = None
    ) -> Tensor:
        """Features of the hidden patches by the same encoder, which sees only these, [B, H, D]."""
        encoder = self.visible_encoder
        hidden_BH = where(hidden_BN, images_BCHW.device)
        features = encoder(images_BCHW, hidden_BH, coins_BL2=coins_BL2)
        return encoder.patches(features).float()

    def positions(self, index_BK: Tensor) -> Tensor:
        """Encoder's positions of the chosen patches, [B, K, D]."""
        table = self.visible_encoder.pos_embed
        assert table is not None
        table_BND = self.visible_encoder.patches(table)
        return take(table_BND.expand(len(index_BK), -1, -1), index_BK)

    def losses(
        self, features_BHD: Tensor, targets_BHD: Tensor, scores: Tensor, tokens: Tensor
    ) -> dict[str, Tensor]:
        """Both losses and their weighted sum; ``tokens`` are the hidden patches', flattened."""
        loss_tokens = F.cross_entropy(scores.float().flatten(0, 1), tokens)
        loss_alignment = F.mse_loss(features_BHD.float(), targets_BHD)
        return {
            "loss": loss_tokens + self.config.alignment_weight * loss_alignment,
            "loss_tokens": loss_tokens,
            "loss_alignment": loss_alignment,
        }
