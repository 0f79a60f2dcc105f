"""data2vec for images: predict a teacher's averaged top-layer features at hidden patches.

Baevski et al., "data2vec: A General Framework for Self-supervised Learning in Speech, Vision and
Language", ICML 2022. https://arxiv.org/abs/2202.03555

Shape suffixes: B images, N patches of the grid, H hidden patches of all images, D features.
"""

import copy
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ijepa import method
from ijepa.architecture import Variant, ViTConfig
from ijepa.data.transforms import DATA2VEC as CROP
from ijepa.data.transforms import Crop
from ijepa.masking import BlockWise, num_hidden
from ijepa.method import Batch, own_initial_weights
from ijepa.optim import Optim, follow
from ijepa.ranges import BelowOne, Count, Positive, Probability, Share
from ijepa.transfer import placed
from ijepa.vit import Hidden, ViT, normal, take, where

RELEASED = {
    f"{tower}.{released}": f"{tower}.{ours}"
    for tower in ("student", "teacher")
    for released, ours in {"mask_token": "mask_token", "lm_head.": "head.", "": "encoder."}.items()
}


@dataclass(frozen=True)
class Config(method.MaskedRecipe):
    """Defaults are the paper's recipe for ViT-B (800 epochs in batches of 2048 images).

    Paper and repository disagree. The repository's ViT-B command warms up over 10 epochs, drops
    paths at 0.25 and attention at 0.05 (preset ``repository``, which has no attention dropout).
    ViT-L is trained twice for 800 epochs in batches of 8192 (4096 in the repository) with a
    learning rate of 1e-3, 80 epochs of warm-up, momentum 0.9998 and then 0.9999, layer scale 1e-5,
    and in the repository's command attention dropout of 0.15, which is missing here, too. Preset
    ``large`` is the first of the two stages. The second is a run that starts from the student of
    the first, to which the teacher is set (the release's ``--seed_model`` loads the student), with
    40 epochs of warm-up: ``start: {from: RUN, parts: student}``, as config/paper.yaml has it.

    Initial weights are the release's (BEiT's): normal, cut at one deviation, and rescaled by depth.
    [cls] is not decayed, as in the release.

    The targets are the outputs of whole blocks, as in the code; the paper's text speaks of the
    outputs of their feed-forward parts. In the release BEiT's masks hide 120 of 196 patches or
    fewer; here every image has exactly ``mask_ratio`` of its patches hidden.
    """

    optim: Optim = field(
        default_factory=lambda: Optim(
            batch_size=2048,
            epochs=800,
            warmup_epochs=40,
            lr=2e-3,
            start_lr=0.0,
            final_lr=1e-5,
            weight_decay=(0.05, 0.05),
            counted_from=0,
            clip=3.0,
        )
    )
    crop: Crop = CROP
    mask_ratio: Share = 120 / 196
    masking: BlockWise = field(default_factory=BlockWise)
    top_layers: Count = 6
    beta: Positive = 2.0
    """Parameter of the smooth L1 loss: the error at which it becomes linear."""
    momentum: Probability = 0.9998
    layer_scale: Positive = 1e-4
    drop_path: BelowOne = 0.2

    @property
    def variant(self) -> Variant:
        """Variant of BEiT: relative positions only."""
        return Variant(
            class_token=True,
            positions="relative",
            blocks="beit",
            layer_scale=self.layer_scale,
            drop_path=self.drop_path,
            init="beit",
        )

    def hide(self, counts_B: Tensor, grid: tuple[int, int], generator: torch.Generator) -> Tensor:
        """Patches hidden in BEiT's blocks, boolean [B, N]."""
        return self.masking.hide(counts_B, grid, generator)


PRESETS: dict[str, dict[str, Any]] = {
    "repository": {"optim": {"warmup_epochs": 10}, "drop_path": 0.25},
    # No paper has a ViT-S: ViT-B's recipe, with half of its stochastic depth.
    "small": {"drop_path": 0.1},
    # The first of the two stages of 800 epochs.
    "large": {
        "optim": {"batch_size": 8192, "lr": 1e-3, "warmup_epochs": 80},
        "layer_scale": 1e-5,
    },
    # Small images on a CPU.
    "tiny": {
        "optim": {"batch_size": 64, "epochs": 1.0, "warmup_epochs": 0.15, "lr": 5e-4},
        "crop": {"jitter_probability": 0.0},
        "masking": {"min_patches": 4},
        "top_layers": 3,
        "momentum": 0.999,
        "layer_scale": 1.0,
        "drop_path": 0.0,
    },
}


def check(config: Config, vit: ViTConfig) -> None:
    """Raise ValueError if the masks do not fit the grid, blocks are too few, or vit.init is set."""
    num_hidden(config.mask_ratio, vit.grid)
    own_initial_weights(vit, "data2vec")
    if not 1 <= config.top_layers <= vit.depth:
        raise ValueError(
            f"recipe.top_layers is {config.top_layers}: it must lie between 1 and vit.depth "
            f"({vit.depth})"
        )


class Network(nn.Module):
    """Encoder, the token that stands for hidden patches, and the head on its features."""

    def __init__(self, config: Config, vit: ViTConfig) -> None:
        super().__init__()
        self.encoder = ViT(vit, config.variant)
        self.mask_token = nn.Parameter(torch.zeros(1, 1, vit.dim))
        self.head = nn.Linear(vit.dim, vit.dim)
        for weights in (self.mask_token, self.head.weight):
            normal(weights, cut=True)
        nn.init.zeros_(self.head.bias)


class Method(method.Method):
    """Student, which learns, and teacher: a copy of all of it that follows as a moving average."""

    undecayed = ("cls_token",)
    averages: ClassVar = {"teacher": "student"}

    def __init__(self, config: Config, vit: ViTConfig) -> None:
        super().__init__()
        self.config, self.vit = config, vit
        self.student = Network(config, vit)
        self.teacher = copy.deepcopy(self.student).requires_grad_(False).eval()

    @property
    def encoder(self) -> ViT:
        """Encoder of the student, which the release fine-tunes."""
        return self.student.encoder

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        """Smooth L1 between prediction and teacher's features, over hidden patches."""
        images, hidden_BN = batch.images_BCHW, self.config.hidden(batch, self.vit.grid)
        coins_BL2 = batch.uniform("drop_path", self.vit.depth, 2)
        predictions_HD = self.predict(images, hidden_BN, coins_BL2)
        targets_BHD = take(self.targets(images), where(hidden_BN, images.device))
        return {"loss": self.loss(predictions_HD, targets_BHD.flatten(0, 1))}

    def predict(
        self, images_BCHW: Tensor, hidden_BN: Tensor, coins_BL2: Tensor | None = None
    ) -> Tensor:
        """Predicted features at the hidden patches, image after image, [H, D]."""
        student, device = self.student, images_BCHW.device
        hidden = Hidden(placed(hidden_BN, device), student.mask_token)
        features = student.encoder(images_BCHW, hidden=hidden, coins_BL2=coins_BL2)
        features_BHD = take(student.encoder.patches(features), where(hidden_BN, device))
        predictions: Tensor = student.head(features_BHD.flatten(0, 1))
        return predictions

    @torch.no_grad()
    def targets(self, images_BCHW: Tensor) -> Tensor:
        """Teacher's features of every patch of the whole image, [B, N, D].

        The outputs of the top blocks are each normalised over features, averaged, and normalised
        once more; no LayerNorm here has weights.
        """
        encoder = self.teacher.encoder
        shape = (self.vit.dim,)
        _, *outputs = encoder.outputs(images_BCHW)
        total = torch.zeros((), device=images_BCHW.device)
        for output in outputs[-self.config.top_layers :]:
            total = total + F.layer_norm(encoder.patches(output).float(), shape)
        return F.layer_norm(total / self.config.top_layers, shape)

    def loss(self, predictions_HD: Tensor, targets_HD: Tensor) -> Tensor:
        """Smooth L1 loss, averaged over all elements."""
        return F.smooth_l1_loss(predictions_HD.float(), targets_HD, beta=self.config.beta)

    def after_step(self, progress: float) -> None:
        """Move the teacher towards the student."""
        follow(self.teacher, self.student, self.config.momentum)

    def scheduled(self, progress: float) -> dict[str, float]:
        """Momentum, which is constant."""
        return {"momentum": self.config.momentum}
