"""The attentive probe: one query attends to all patch features of a frozen encoder.

Bardes et al., "Revisiting Feature Prediction for Learning Visual Representations from Video", TMLR
2024 (V-JEPA), and its released evaluation of images. https://arxiv.org/abs/2404.08471

Shape suffixes: B images, N patches, D features, K classes.
"""

from dataclasses import dataclass

import torch
from timm.layers.attention_pool import AttentionPoolLatent
from timm.optim._param_groups import param_groups_weight_decay
from torch import nn

from evals.protocol import Counts, Facts, Uses
from evals.result import Result, top1
from evals.subject import Subject
from evals.supervised import Classifier, TrainingConfig, classify, seeded, train
from ijepa.architecture import ViTConfig
from ijepa.ranges import Count, NotNegative, Positive, Probability
from ijepa.vit import initialise, norm_layer

USES: tuple[Uses, ...] = ("images",)


@dataclass(frozen=True)
class Config(TrainingConfig):
    """Settings. Defaults are V-JEPA's, whose learning rate is 1e-3 for its batch of 1024."""

    epochs: Count = 20
    warmup_epochs: float = 0
    batch_size: Count = 1024
    base_lr: Positive = 2.5e-4
    min_lr: NotNegative = 0.0
    weight_decay: NotNegative = 1e-3
    auto_augment: str | None = "original"
    random_erase: Probability = 0.25
    clip: Positive | None = 1.0


def check(config: Config, _: Facts) -> None:
    """Raise ValueError for an unknown augmentation."""
    config.check_policy()


def flops(config: Config, vit: ViTConfig, counts: Counts) -> float:
    """FLOPs of the frozen encoder on views of every epoch."""
    return vit.forward_flops * (config.epochs * counts.train + counts.test)


def evaluate(config: Config, subject: Subject) -> Result:
    """Train the probe on all training images; returns top-1 of the last epoch's weights."""
    model = classifier(config, subject)
    groups = param_groups_weight_decay(model, config.weight_decay)
    about = train(config, subject, None, model, groups, "attentive probe")
    y = subject.labels("test")
    predicted = classify(config, subject, model, "test", torch.arange(len(y)))
    return top1(predicted, y, subject.num_classes, about)


def classifier(config: Config, subject: Subject) -> Classifier:
    """Classifier of the frozen encoder and a fresh probe."""
    encoder = subject.network().requires_grad_(False)
    with seeded(config.seed, "probe"):
        return Classifier(
            encoder, probe(encoder.config.dim, encoder.config.num_heads, subject.num_classes)
        )


def probe(dim: int, num_heads: int, num_classes: int) -> nn.Sequential:
    """Cross-attention of one learned query, with an MLP, and a linear layer: [B, N, D] to [B, K].

    V-JEPA also adds the query to the output of the attention. The learned query is a constant, and
    the projection's bias can represent it.
    """
    attention = AttentionPoolLatent(dim, num_heads=num_heads, norm_layer=norm_layer)
    assert attention.mlp is not None
    initialise(attention, "official")
    nn.init.trunc_normal_(attention.latent, std=0.02)
    with torch.no_grad():
        # V-JEPA rescales the initial weights as those of the first block of a network.
        attention.proj.weight.div_(2**0.5)
        attention.mlp.fc2.weight.div_(2**0.5)
    return nn.Sequential(norm_layer(dim), attention, nn.Linear(dim, num_classes))
