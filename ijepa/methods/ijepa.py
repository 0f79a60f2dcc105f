"""I-JEPA: predict the features of target blocks from the features of a context block.

Assran et al., "Self-Supervised Learning from Images with a Joint-Embedding Predictive
Architecture", CVPR 2023. https://arxiv.org/abs/2301.08243

Shape suffixes: B images, G images of a group, M target blocks, K context patches, T patches per
target block, N patches of the grid, D features, P predictor features.
"""

import copy
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ijepa import method
from ijepa.architecture import ViTConfig
from ijepa.data.loader import View
from ijepa.data.transforms import Crop
from ijepa.image_size import Size
from ijepa.masking import Masking, Masks, sampler
from ijepa.method import Batch
from ijepa.optim import Optim, follow
from ijepa.ranges import Count, Probability, Rising
from ijepa.sigreg import SIGReg
from ijepa.transfer import placed
from ijepa.vit import (
    LAYER_NORM_EPS,
    ViT,
    initialise,
    patchify,
    sincos_positions,
    some_rows,
    take,
)
from ijepa.vit import transformer_block as block

LOSSES: dict[str, Callable[..., Tensor]] = {
    "smooth_l1": F.smooth_l1_loss,
    "l2": F.mse_loss,
    "l1": F.l1_loss,
}


RELEASED = {
    "encoder.": "context_encoder.",
    "predictor.": "predictor.",
    "target_encoder.": "target_encoder.",
}


@dataclass(frozen=True)
class Config(method.Recipe):
    """Defaults are the released recipe for ViT-H/14 on ImageNet-1k (configs/in1k_vith14_ep300).

    The paper's text has an L2 loss and does not mention the LayerNorm of the targets; the release
    has smooth L1 on layer-normed targets. The predictor is 12 deep for ViT-L and H, 6 for ViT-B, 16
    for ViT-g; its heads are as many as the encoder's.
    """

    optim: Optim = field(default_factory=Optim)
    crop: Crop = field(default_factory=Crop)
    masking: Masking = field(default_factory=Masking)
    predictor_dim: Count = 384
    predictor_depth: Count = 12
    momentum: Rising[Probability] = (0.996, 1.0)
    loss: Literal["smooth_l1", "l2", "l1"] = "smooth_l1"
    targets: Literal["features", "block_features", "pixels"] = "features"
    """Targets of the prediction. ``features`` (the release's): the target encoder's features of the
    block, when it sees the whole image. ``block_features``: those of a target encoder that sees
    only the block (Table 11: masks at its input). ``pixels``: the block's pixels (Table 7). The
    paper gives no details of the last two: here all else stays, also the LayerNorm over a patch's
    values."""
    anticollapse: Literal["ema", "sigreg"] = "ema"
    """Means against a collapse. ``ema`` (I-JEPA's): the target encoder is a moving average of the
    context encoder, without gradients. ``sigreg`` (LeJEPA's, ijepa.sigreg): context and target
    encoder are one network, gradients flow through predictions and targets, and SIGReg acts on the
    features of the whole images; ``momentum`` is not used. All else stays, also the LayerNorm of
    the targets. Nobody has published this: LeJEPA's author asks for it (lejepa, issue 31)."""
    sigreg: SIGReg = field(default_factory=SIGReg)
    sigreg_of: Literal["pooled", "patches"] = "pooled"
    """Features that SIGReg acts on: an image's average (``pooled``), or the features of each patch
    of the grid (``patches``), which are a sample over images as a view's are in LeJEPA. Were all
    patches one sample, features of the position alone, equal in all images, would pass for it.
    Without a projector ``pooled`` may make the patches of an image alike: the last LayerNorm bounds
    a patch's features, and their average must have the variance 1 all the same."""

    def __post_init__(self) -> None:
        if self.whole_batch and self.targets != "features":
            raise ValueError(
                f"targets is {self.targets}: with anticollapse sigreg they must be features"
            )
        if not self.whole_batch and (self.sigreg, self.sigreg_of) != (SIGReg(), "pooled"):
            raise ValueError(
                "sigreg is set, but not used: say anticollapse: sigreg, or leave it out"
            )

    @property
    def whole_batch(self) -> bool:
        """True if SIGReg, which compares the images of a batch, is a part of the loss."""
        return self.anticollapse == "sigreg"

    def views(self, image_size: Size) -> list[View]:
        """One view."""
        return [View(image_size, self.crop)]

    def masks(
        self, num_images: int, grid: tuple[int, int], generator: torch.Generator
    ) -> dict[str, Tensor]:
        """Context block without the targets, and every target block, by name."""
        masks = sampler(self.masking, grid).sample(num_images, generator)
        rows = {"context": masks.context_GK}
        rows |= {f"target {m}": t for m, t in enumerate(masks.targets_GMT.unbind(1), start=1)}
        empty = torch.zeros(num_images, grid[0] * grid[1], dtype=torch.bool)
        return {name: empty.scatter(1, index, True) for name, index in rows.items()}


STOP: dict[str, Any] = {
    "optim": {"epochs": 600, "warmup_epochs": 15, "lr": 8e-4, "final_lr": 1e-4},
    "crop": {"flip": 0.5, "grey": 0.2, "blur": 0.5},
    "masking": {"group_size": 64},
}

BASE: dict[str, Any] = {"optim": {"epochs": 600, "warmup_epochs": 15}, "predictor_depth": 6}

PRESETS: dict[str, dict[str, Any]] = {
    # The paper's text where it differs from the release; no preset can undo the targets' LayerNorm.
    "paper": {
        "optim": {"start_lr": 1e-4, "warmup_epochs": 15, "weight_decay_shape": "linear"},
        "loss": "l2",
    },
    "base": BASE,
    # No paper has a ViT-S: ViT-B's recipe. The release's predictor is 384 wide for every encoder.
    "small": BASE,
    "large": {"optim": {"epochs": 600, "warmup_epochs": 15}},
    "giant": {"predictor_depth": 16},
    # There is no released config of ViT-B/16 and L/16. The nearest public ones are of StoP
    # (amirbar/StoP, configs/pretrain/vit-b16 and vit-l16; several authors of I-JEPA are among its
    # own), which relies on an internal I-JEPA that also flipped, blurred and greyed.
    "stop_base": {**STOP, "predictor_depth": 6},
    "stop_large": STOP,
    # Small images on a CPU. The release's masks cannot be drawn on a grid of 8x8 (ijepa.masking).
    "tiny": {
        "optim": {
            "batch_size": 64,
            "epochs": 1.5,
            "warmup_epochs": 0.15,
            "lr": 5e-4,
            "start_lr": 5e-5,
        },
        "masking": {"mode": "fixed", "min_keep": 4, "group_size": 64},
        "predictor_dim": 64,
        "predictor_depth": 2,
        "momentum": (0.998, 1.0),
    },
}


def check(config: Config, vit: ViTConfig) -> None:
    """Raise ValueError if the masks do not fit the grid or the predictor's width its heads."""
    sampler(config.masking, vit.grid)
    if config.predictor_dim % vit.num_heads or config.predictor_dim % 4:
        raise ValueError(
            f"recipe.predictor_dim is {config.predictor_dim}: it must be a multiple of 4 and of "
            f"vit.num_heads ({vit.num_heads})"
        )


class Predictor(nn.Module):
    """Narrow ViT from context features and a target's positions to its features, or its pixels.

    Each target block has a pass of its own: mask tokens of different blocks never see each other.
    """

    def __init__(self, config: Config, vit: ViTConfig) -> None:
        super().__init__()
        dim = config.predictor_dim
        self.predictor_embed = nn.Linear(vit.dim, dim)
        self.mask_token = nn.Parameter(torch.zeros(1, 1, dim))
        positions = sincos_positions(dim, vit.grid)
        self.predictor_pos_embed = nn.Parameter(positions, requires_grad=False)
        self.predictor_blocks = nn.ModuleList(
            block(dim, vit.num_heads) for _ in range(config.predictor_depth)
        )
        self.predictor_norm = nn.LayerNorm(dim, eps=LAYER_NORM_EPS)
        values = vit.patch_size**2 * vit.channels
        self.predictor_proj = nn.Linear(dim, values if config.targets == "pixels" else vit.dim)
        initialise(self, vit.init)
        nn.init.trunc_normal_(self.mask_token, std=0.02)

    def forward(self, context_GKD: Tensor, masks: Masks) -> Tensor:
        """Predictions for every target patch, [G, M, T, D] (V pixel values in place of D)."""
        M, T = masks.targets_GMT.shape[1:]
        positions_GNP = self.predictor_pos_embed.expand(len(context_GKD), -1, -1)
        context_GKP = self.predictor_embed(context_GKD) + take(positions_GNP, masks.context_GK)
        queries_GQP = self.mask_token + take(positions_GNP, masks.targets_GMT.flatten(1))
        x = torch.cat(
            [context_GKP.repeat_interleave(M, 0), queries_GQP.unflatten(1, (M, T)).flatten(0, 1)], 1
        )
        *blocks, last = self.predictor_blocks
        for layer in blocks:
            x = layer(x)
        # Nothing reads the context's rows after the last block.
        x = some_rows(last, x, slice(-T, None))
        predictions_XTD: Tensor = self.predictor_proj(self.predictor_norm(x))
        return predictions_XTD.view(-1, M, T, predictions_XTD.shape[-1])


def normed(x: Tensor) -> Tensor:
    """Float32 ``x``, layer-normed over the last dimension without weights."""
    return F.layer_norm(x.float(), x.shape[-1:])


class Method(method.Method):
    """Context encoder and predictor, which learn, and the target encoder, a moving average.

    With ``anticollapse: sigreg`` the context encoder is the target encoder too.
    """

    averages: ClassVar = {"target_encoder": "context_encoder"}

    def __init__(self, config: Config, vit: ViTConfig) -> None:
        super().__init__()
        self.config, self.vit = config, vit
        self.masking = sampler(config.masking, vit.grid)
        self.context_encoder = ViT(vit, config.variant)
        self.predictor = Predictor(config, vit)
        if config.anticollapse == "ema":
            self.target_encoder = copy.deepcopy(self.context_encoder).requires_grad_(False)

    @property
    def encoder(self) -> ViT:
        """The target encoder: the paper evaluates this one."""
        return self.context_encoder if self.config.whole_batch else self.target_encoder

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        """Loss between predictions and targets, averaged over images; with SIGReg, if configured.

        Targets that do not depend on the masks are computed once for all groups.
        """
        images = batch.images_BCHW
        if self.config.anticollapse == "sigreg":
            features_BND = self.context_encoder(images).float()
            scalars = self.prediction(batch, normed(features_BND))
            return scalars | self.regularised(scalars["loss"], features_BND, batch)
        blocks = self.config.targets == "block_features"
        return self.prediction(batch, None if blocks else self.targets(images))

    def prediction(self, batch: Batch, whole_BND: Tensor | None) -> dict[str, Tensor]:
        """Prediction loss, averaged over images; ``whole_BND`` None: targets of lone blocks.

        The mean numbers of context patches and of patches per target are returned too; both depend
        on the group's size. A group's masks are drawn for all its images, on whatever device these
        are.
        """
        images = batch.images_BCHW
        B, size = len(images), self.config.masking.group_size
        first, last = batch.offset, batch.offset + B
        total, context, target = torch.zeros((), device=images.device), 0, 0
        for group in range(first // size, -(-last // size)):
            start, end = group * size, min((group + 1) * size, batch.num_images())
            whole = self.masking.sample(end - start, batch.generator("masks", group))
            low, high = max(start, first), min(end, last)
            here = slice(low - first, high - first)
            rows = (m[low - start : high - start] for m in whole)
            masks = Masks(*(placed(m, images.device) for m in rows))
            predictions = self.predict(images[here], masks)
            targets_GQD = (
                self.block_targets(images[here], masks)
                if whole_BND is None
                else take(whole_BND[here], masks.targets_GMT.flatten(1))
            )
            total = total + (high - low) * self.loss(predictions.flatten(1, 2), targets_GQD)
            context += (high - low) * masks.context_GK.shape[1]
            target += (high - low) * masks.targets_GMT.shape[2]
        return {
            "loss": total / B,
            "context_patches": torch.full_like(total, context / B),
            "target_patches": torch.full_like(total, target / B),
        }

    def regularised(
        self, prediction: Tensor, features_BND: Tensor, batch: Batch
    ) -> dict[str, Tensor]:
        """Prediction loss, SIGReg of the features, and their weighed sum, as LeJEPA's.

        Suffix V: the samples of SIGReg, one, or one for each patch of the grid.
        """
        pooled = self.config.sigreg_of == "pooled"
        samples_BVD = features_BND.mean(1, keepdim=True) if pooled else features_BND
        sigreg, samples_VBD = self.config.sigreg, samples_BVD.transpose(0, 1)
        directions_DS = sigreg.directions(self.vit.dim, batch.generator("directions"))
        statistics_V = sigreg.statistics(samples_VBD, placed(directions_DS, samples_VBD.device))
        return {
            "loss": sigreg.weighed(prediction, statistics_V),
            "loss_prediction": prediction,
            "loss_sigreg": statistics_V.mean(),
        }

    @torch.no_grad()
    def targets(self, images_BCHW: Tensor) -> Tensor:
        """Layer-normed target-encoder features, or pixels, of every patch, [B, N, D].

        The target encoder sees the whole image; masks apply to its output (paper, Table 11). The
        LayerNorm has no weights and its epsilon is torch's 1e-5, not the encoder's.
        """
        pixels = self.config.targets == "pixels"
        return normed(
            patchify(images_BCHW, self.vit.patch_size)
            if pixels
            else self.target_encoder(images_BCHW)
        )

    @torch.no_grad()
    def block_targets(self, images_GCHW: Tensor, masks: Masks) -> Tensor:
        """Targets by a target encoder that sees one block at a time, [G, M * T, D]."""
        M = masks.targets_GMT.shape[1]
        blocks = self.target_encoder(
            images_GCHW.repeat_interleave(M, 0), masks.targets_GMT.flatten(0, 1)
        )
        targets_GQD: Tensor = normed(blocks).unflatten(0, (-1, M)).flatten(1, 2)
        return targets_GQD

    def predict(self, images_GCHW: Tensor, masks: Masks) -> Tensor:
        """Predictions for every target patch, [G, M, T, D]."""
        predictions: Tensor = self.predictor(
            self.context_encoder(images_GCHW, masks.context_GK), masks
        )
        return predictions

    def loss(self, predictions: Tensor, targets: Tensor) -> Tensor:
        """Configured loss, averaged over all elements."""
        return LOSSES[self.config.loss](predictions.float(), targets)

    def after_step(self, progress: float) -> None:
        """Move the target encoder towards the context encoder, if it is another one."""
        if self.config.anticollapse == "ema":
            momentum = self.scheduled(progress)["momentum"]
            follow(self.target_encoder, self.context_encoder, momentum)

    def scheduled(self, progress: float) -> dict[str, float]:
        """Momentum of the target encoder, linear from the first value to the second."""
        if self.config.anticollapse != "ema":
            return {}
        start, end = self.config.momentum
        return {"momentum": start + progress * (end - start)}
