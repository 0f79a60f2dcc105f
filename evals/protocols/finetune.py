"""Fine-tuning of the whole encoder with a linear head on its pooled features, as in MAE.

Assran et al., CVPR 2023, section D and Table 15 (all labels), Tables 2, 13 and 14 (1 % of them);
He et al., "Masked Autoencoders Are Scalable Vision Learners", CVPR 2022, section A.1.

Shape suffixes: B images, C channels, H rows of pixels, W columns of pixels, T tokens, L blocks,
D features, K classes.
"""

from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from evals.learners import Learner, Learners
from evals.pooling import Pool, parts
from evals.protocol import Counts, Facts, Uses
from evals.result import Result, top1
from evals.subject import Subject
from evals.supervised import classify, train
from evals.training_config import TrainingConfig
from evals.views import pool_tokens
from ijepa.architecture import ViTConfig
from ijepa.randomness import seeded
from ijepa.ranges import BelowOne, Count, NotNegative, Positive, PositiveShare, Probability
from ijepa.vit import ViT, norm_layer

USES: tuple[Uses, ...] = ("images",)


@dataclass(frozen=True)
class Config(TrainingConfig):
    """Settings. Defaults: the paper's for ViT-H/16 at 448 pixels, all of ImageNet-1k (section D).

    The paper gives epochs, batch, rate, weight decay, layer decay, mixup, cutmix, drop path, and
    MAE's RandAugment. The settings that it does not give are MAE's: warm-up, ``min_lr``, label
    smoothing (if all labels are used), random erasing, the crop, no clipping. The paper's rates are
    taken as MAE's base rates, per 256 images. It does not say so for the 1 %; if those were
    absolute rates, they would be half as large. The evaluation view is resized to 512 pixels and
    cut to 448, as in the paper's linear probe; MAE's would be resized to 448.

    ``layer_decay`` is the rate of a layer divided by that of the layer above it. Drop path rises
    linearly from 0 in the first block to ``drop_path`` in the last. ``subset`` names an official
    list of training images, null for all of them.

    ``pool`` is the average of the patches for every encoder, as in MAE's code; ``cls`` and
    ``cls_patches`` need an encoder with [cls]. ``train_positions`` also trains positions that were
    fixed in pretraining (sine-cosine ones), as MAE's code does, whose network holds them as a
    parameter. I-JEPA's fine-tuning code was not released.
    """

    epochs: Count = 50
    warmup_epochs: float = 5
    batch_size: Count = 528
    base_lr: Positive = 1e-4
    min_lr: NotNegative = 1e-6
    weight_decay: NotNegative = 0.04
    auto_augment: str | None = "rand-m9-mstd0.5-inc1"
    random_erase: Probability = 0.25
    clip: Positive | None = None
    label_smoothing: BelowOne = 0.1
    mixup: NotNegative = 0.8
    cutmix: NotNegative = 1.0
    layer_decay: PositiveShare = 0.75
    drop_path: BelowOne = 0.25
    subset: str | None = None
    pool: Pool = "patches"
    train_positions: bool = True


LOW_SHOT: dict[str, Any] = {
    "batch_size": 512,
    "base_lr": 3e-5,
    "random_erase": 0.0,
    "mixup": 0.0,
    "cutmix": 0.0,
    "drop_path": 0.0,
}
"""Settings of Tables 13 and 14; weight decay differs by encoder."""

MAE: dict[str, Any] = {"batch_size": 1024, "base_lr": 1e-3, "weight_decay": 0.05}

PRESETS: dict[str, dict[str, Any]] = {
    "in1k_full": {},
    # MAE's own for each size (FINETUNE.md); with all else as above.
    "mae_base": {**MAE, "epochs": 100, "base_lr": 5e-4, "layer_decay": 0.65, "drop_path": 0.1},
    "mae_large": {**MAE, "drop_path": 0.2},
    "mae_huge": {**MAE, "drop_path": 0.3},
    "low_shot_l16": {**LOW_SHOT, "weight_decay": 0.05},
    "low_shot_h14": {**LOW_SHOT, "weight_decay": 0.4},
    "low_shot_h16_448": {**LOW_SHOT, "weight_decay": 0.4},
}


class Head(nn.Module):
    """MAE's head: LayerNorm of the pooled features, and a linear layer of small weights."""

    def __init__(self, dim: int, num_classes: int) -> None:
        super().__init__()
        self.norm: nn.Module = norm_layer(dim)
        self.linear = nn.Linear(dim, num_classes)
        nn.init.trunc_normal_(self.linear.weight, std=2e-5)
        nn.init.zeros_(self.linear.bias)

    def forward(self, pooled_BD: Tensor) -> Tensor:
        """Logits [B, K]."""
        logits_BK: Tensor = self.linear(self.norm(pooled_BD))
        return logits_BK


class Classifier(nn.Module):
    """An encoder, and a head that sees one vector for each image."""

    def __init__(self, encoder: ViT, head: nn.Module, pool: Pool) -> None:
        super().__init__()
        self.encoder, self.head, self.pool = encoder, head, pool

    def forward(self, images_BCHW: Tensor, coins_BL2: Tensor | None = None) -> Tensor:
        """Logits [B, K]; ``coins_BL2`` are the uniform random numbers of stochastic depth."""
        tokens_BTD = self.encoder(images_BCHW, coins_BL2=coins_BL2)
        logits_BK: Tensor = self.head(pool_tokens(self.encoder, tokens_BTD, self.pool))
        return logits_BK

    def group_matcher(self, coarse: bool = False) -> dict[str, str]:
        """Name patterns of the embedding and the blocks, for timm's layer-wise decay.

        All other parameters count as the last layer, relative positions among them, as in BEiT's
        fine-tuning.
        """
        return {
            "stem": r"^encoder\.(?:cls_token|pos_embed|patch_embed)",
            "blocks": r"^encoder\.blocks\.(\d+)",
        }


def check(config: Config, facts: Facts) -> None:
    """Raise ValueError for an unknown augmentation or list of images."""
    config.check_policy()
    facts.check_subset(config.subset)


def flops(config: Config, vit: ViTConfig, counts: Counts) -> float:
    """FLOPs of forward and backward passes, which are three forward ones, and of the test."""
    return vit.forward_flops * (3 * config.epochs * counts.train + counts.test)


def evaluate(config: Config, subject: Subject) -> Result:
    """Fine-tune on the training images; returns top-1 of the last epoch, without a choice."""
    numbers = None if config.subset is None else subject.subset(config.subset)
    learners, about = tuned(config, subject, numbers)
    y = subject.labels("test")
    (predicted,) = classify(config, subject, learners, "test", torch.arange(len(y)))
    return top1(predicted, y, subject.num_classes, about)


def fine_tune(
    config: Config, subject: Subject, numbers: Tensor | None, queries: dict[str, tuple[str, Tensor]]
) -> dict[str, Tensor]:
    """Class numbers [images] that a fine-tuned encoder predicts, by name of the query.

    Args:
        config: The protocol.
        subject: Encoder and data; a training that was killed goes on from its checkpoint. Give each
            of several trainings its own ``work``: a folder keeps only the last one's checkpoint.
        numbers: Numbers of the images to train on, None for all.
        queries: By name, a split and the numbers of its images to classify.
    """
    learners, _ = tuned(config, subject, numbers)
    return {
        name: classify(config, subject, learners, split, indices)[0]
        for name, (split, indices) in queries.items()
    }


def tuned(
    config: Config, subject: Subject, numbers: Tensor | None
) -> tuple[Learners, dict[str, Any]]:
    """Fine-tuned classifier, and the facts that ``train`` returns on its training."""
    model = classifier(config, subject)
    learner = Learner(model, groups(config, model), config.base_lr)
    learners = Learners(model.encoder.config, [learner])
    (about,) = train(config, subject, numbers, learners, "fine-tune")
    return learners, about


def classifier(config: Config, subject: Subject) -> Classifier:
    """Classifier of the encoder, with stochastic depth and no final norm, and a fresh head."""
    pretrained = subject.network()
    encoder = ViT(pretrained.config, replace(pretrained.variant, drop_path=config.drop_path))
    encoder.load_state_dict(pretrained.state_dict())
    encoder.norm = nn.Identity()
    if encoder.pos_embed is not None:
        learned = encoder.variant.positions == "learned"
        encoder.pos_embed.requires_grad_(learned or config.train_positions)
    dim = encoder.config.dim * len(parts(config.pool))
    with seeded(config.seed, "head"):
        return Classifier(encoder, Head(dim, subject.num_classes), config.pool)


def groups(config: Config, model: Classifier) -> list[dict[str, Any]]:
    """Parameter groups of the optimizer, with the rates and weight decay of their layers.

    Layer i of depth + 2 learns at layer_decay ** (depth + 1 - i) of the rate.
    The patch embedding, [cls] and positions are layer 0, block i is layer i + 1, the head is layer
    depth + 1. One-dimensional parameters, [cls] and positions have no weight decay.
    """
    from timm.optim._param_groups import param_groups_layer_decay

    parameter_groups: list[dict[str, Any]] = param_groups_layer_decay(
        model,
        config.weight_decay,
        no_weight_decay_list=["encoder.cls_token", "encoder.pos_embed"],
        layer_decay=config.layer_decay,
    )
    return parameter_groups
