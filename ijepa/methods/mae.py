"""MAE: predict the pixels of hidden patches from the visible ones.

He et al., "Masked Autoencoders Are Scalable Vision Learners", CVPR 2022.
https://arxiv.org/abs/2111.06377

Shape suffixes: B images, N patches of the grid, K visible patches, D features, E decoder features,
V pixel values of a patch (row, column, channel).
"""

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ijepa import method
from ijepa.architecture import Variant, ViTConfig
from ijepa.data.transforms import MAE as CROP
from ijepa.data.transforms import Crop
from ijepa.masking import num_hidden, random_masks
from ijepa.method import Batch, own_initial_weights
from ijepa.optim import Optim
from ijepa.ranges import Count, Share
from ijepa.vit import (
    LAYER_NORM_EPS,
    ViT,
    patchify,
    sincos_positions,
    transformer_block,
    unpatchify,
    where,
    xavier,
)

RELEASED = {
    "decoder_": "decoder.",
    "mask_token": "decoder.mask_token",
    "": "visible_encoder.",
}


@dataclass(frozen=True)
class Config(method.MaskedRecipe):
    """Defaults are the published recipe: 1600 epochs in batches of 4096 images (paper, Table 8).

    The learning rate is 1.5e-4 for every 256 images. The decoder is the same for every encoder.
    The repository's README trains for 800 epochs; the headline numbers take 1600. The released
    models predict pixels normalised patch by patch. [cls] is kept through pretraining though the
    loss never sees it, and is decayed (the release decays everything but biases and vectors).
    """

    optim: Optim = field(
        default_factory=lambda: Optim(
            batch_size=4096,
            epochs=1600,
            warmup_epochs=40,
            lr=2.4e-3,
            start_lr=0.0,
            final_lr=0.0,
            weight_decay=(0.05, 0.05),
            betas=(0.9, 0.95),
            counted_from=0,
        )
    )
    crop: Crop = CROP
    mask_ratio: Share = 0.75
    normalise_pixels: bool = True
    decoder_dim: Count = 512
    decoder_depth: Count = 8
    decoder_heads: Count = 16

    def __post_init__(self) -> None:
        if self.decoder_dim % self.decoder_heads or self.decoder_dim % 4:
            raise ValueError(
                f"decoder_dim is {self.decoder_dim}: it must be a multiple of 4 and of "
                f"decoder_heads ({self.decoder_heads})"
            )

    @property
    def variant(self) -> Variant:
        """Variant with [cls] on fixed positions."""
        return Variant(class_token=True, init="xavier")

    def hide(self, counts_B: Tensor, grid: tuple[int, int], generator: torch.Generator) -> Tensor:
        """Patches hidden at random, boolean [B, N]."""
        return random_masks(counts_B, grid[0] * grid[1], generator)


PRESETS: dict[str, dict[str, Any]] = {
    "readme": {"optim": {"epochs": 800}},
    # No paper has a ViT-S. Here the decoder's width keeps its ratio to the encoder's.
    "small": {"optim": {"epochs": 800}, "decoder_dim": 256, "decoder_heads": 8},
    # Small images on a CPU.
    "tiny": {
        "optim": {"batch_size": 64, "epochs": 1.2, "warmup_epochs": 0.15, "lr": 1e-3},
        "decoder_dim": 64,
        "decoder_depth": 2,
        "decoder_heads": 2,
    },
}


def check(config: Config, vit: ViTConfig) -> None:
    """Raise ValueError if no patch would be visible, or none hidden, or vit.init is set."""
    num_hidden(config.mask_ratio, vit.grid)
    own_initial_weights(vit, "MAE")


class Decoder(nn.Module):
    """ViT from visible features to the pixels of every patch."""

    def __init__(self, config: Config, vit: ViTConfig) -> None:
        super().__init__()
        dim = config.decoder_dim
        self.embed = nn.Linear(vit.dim, dim)
        self.mask_token = nn.Parameter(torch.zeros(1, 1, dim))
        positions = sincos_positions(dim, vit.grid)
        self.pos_embed = nn.Parameter(
            torch.cat([torch.zeros_like(positions[:, :1]), positions], 1), requires_grad=False
        )
        self.blocks = nn.ModuleList(
            transformer_block(dim, config.decoder_heads) for _ in range(config.decoder_depth)
        )
        self.norm = nn.LayerNorm(dim, eps=LAYER_NORM_EPS)
        self.pred = nn.Linear(dim, vit.patch_size**2 * vit.channels)
        xavier(self)
        nn.init.normal_(self.mask_token, std=0.02)

    def forward(self, features: Tensor, visible_BK: Tensor) -> Tensor:
        """Predicted pixel values of every patch, [B, N, V]; features [B, 1 + K, D] with [cls]."""
        x = self.embed(features)
        index = visible_BK.unsqueeze(-1).expand(-1, -1, x.shape[-1])
        tokens_BNE = self.mask_token.to(x.dtype).expand(len(x), self.pos_embed.shape[1] - 1, -1)
        x = torch.cat([x[:, :1], tokens_BNE.scatter(1, index, x[:, 1:])], 1) + self.pos_embed
        for block in self.blocks:
            x = block(x)
        predictions: Tensor = self.pred(self.norm(x))[:, 1:]
        return predictions


class Method(method.Method):
    """Encoder, which sees the visible patches only, and a decoder that evaluation does not use."""

    def __init__(self, config: Config, vit: ViTConfig) -> None:
        super().__init__()
        self.config, self.vit = config, vit
        self.visible_encoder = ViT(vit, config.variant)
        self.decoder = Decoder(config, vit)

    @property
    def encoder(self) -> ViT:
        """The only encoder."""
        return self.visible_encoder

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        """Mean squared error over the pixels of the hidden patches."""
        images, hidden_BN = batch.images_BCHW, self.config.hidden(batch, self.vit.grid)
        predictions = self.predict(images, where(~hidden_BN, images.device))
        return {"loss": self.loss(predictions, images, hidden_BN)}

    def predict(self, images_BCHW: Tensor, visible_BK: Tensor) -> Tensor:
        """Predicted pixel values of every patch, [B, N, V]."""
        predictions: Tensor = self.decoder(
            self.visible_encoder(images_BCHW, visible_BK), visible_BK
        )
        return predictions

    def reconstruct(self, images_BCHW: Tensor, visible_BK: Tensor) -> Tensor:
        """Images with the other patches predicted, [B, C, H, W].

        Predictions of normalised pixels are given the true patch's mean and deviation, as in the
        pictures of the paper, without which they have no colour.
        """
        patches_BNV = patchify(images_BCHW, self.vit.patch_size)
        predicted_BNV = self.predict(images_BCHW, visible_BK).float()
        if self.config.normalise_pixels:
            variance = patches_BNV.var(-1, keepdim=True) + 1e-6
            predicted_BNV = predicted_BNV * variance.sqrt() + patches_BNV.mean(-1, keepdim=True)
        index_BKV = visible_BK.unsqueeze(-1).expand(-1, -1, patches_BNV.shape[-1])
        filled_BNV = predicted_BNV.scatter(1, index_BKV, patches_BNV.gather(1, index_BKV))
        return unpatchify(filled_BNV, self.vit.grid, self.vit.patch_size)

    def loss(self, predictions_BNV: Tensor, images_BCHW: Tensor, hidden_BN: Tensor) -> Tensor:
        """Squared error, averaged over pixel values and then over the hidden patches of all images.

        Released models standardise each target patch, with the unbiased variance plus 1e-6.
        """
        targets_BNV = patchify(images_BCHW, self.vit.patch_size)
        if self.config.normalise_pixels:
            mean = targets_BNV.mean(-1, keepdim=True)
            targets_BNV = (targets_BNV - mean) / (targets_BNV.var(-1, keepdim=True) + 1e-6).sqrt()
        error_BN = F.mse_loss(predictions_BNV.float(), targets_BNV, reduction="none").mean(-1)
        return error_BN.gather(1, where(hidden_BN, error_BN.device)).mean()
