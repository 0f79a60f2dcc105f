"""Attentive probes: a query attends to all patch features of a frozen encoder.

Bardes et al., "Revisiting Feature Prediction for Learning Visual Representations from Video", TMLR
2024 (V-JEPA), and its released evaluation of images. https://arxiv.org/abs/2404.08471

Several learning rates and weight decays train a head each, on the same features, which are computed
once. A head learns as it would alone.

Shape suffixes: B images, N patches, D features, K classes.
"""

import math
from dataclasses import dataclass
from functools import partial
from itertools import product
from typing import Annotated

import torch
from pydantic import Field
from timm.layers.attention_pool import AttentionPoolLatent
from timm.optim._param_groups import param_groups_weight_decay
from torch import nn

from evals import choice, replicas
from evals.choice import Choice, choose
from evals.learners import Learner, Learners
from evals.protocol import Counts, Facts, Uses
from evals.result import Result, top1
from evals.subject import Subject
from evals.supervised import classify, train
from evals.training_config import TrainingConfig
from ijepa.architecture import ViTConfig
from ijepa.randomness import seeded
from ijepa.ranges import Count, NotNegative, Positive, Probability
from ijepa.transfer import first_device
from ijepa.vit import initialise, norm_layer

USES: tuple[Uses, ...] = ("images",)


@dataclass(frozen=True)
class Config(Choice, TrainingConfig):
    """Settings. Defaults are V-JEPA's, whose learning rate is 1e-3 for its batch of 1024.

    ``learning_rates``, per 256 images, and ``weight_decays`` have a head for each pair. All heads
    start from the same weights. A single head is trained on all training images.
    """

    epochs: Count = 20
    warmup_epochs: float = 0
    batch_size: Count = 1024
    learning_rates: Annotated[tuple[Positive, ...], Field(min_length=1)] = (2.5e-4,)
    weight_decays: Annotated[tuple[NotNegative, ...], Field(min_length=1)] = (1e-3,)
    min_lr: NotNegative = 0.0
    auto_augment: str | None = "original"
    random_erase: Probability = 0.25
    clip: Positive | None = 1.0

    @property
    def heads(self) -> list[tuple[float, float]]:
        """Rate, per 256 images, and weight decay of each head."""
        return list(product(self.learning_rates, self.weight_decays))


def check(config: Config, facts: Facts) -> None:
    """Raise ValueError for an unknown augmentation, and for too few images to hold out."""
    config.check_policy()
    if facts.images is not None:
        num_held_out(config, facts.images)


def num_held_out(config: Config, images: int) -> int:
    """Number of training images that are held out: none for a single head."""
    return 0 if len(config.heads) == 1 else choice.num_held_out(config, images)


def flops(config: Config, vit: ViTConfig, counts: Counts) -> float:
    """FLOPs of the frozen encoder on views of every epoch, and of the heads.

    Nearly all of a head's are its keys and values, whose backward pass is two forward ones.
    """
    heads = len(config.heads) * 4 * math.prod(vit.grid) * vit.dim**2
    seen = config.epochs * counts.train
    return (vit.forward_flops + 3 * heads) * seen + (vit.forward_flops + heads) * counts.test


def evaluate(config: Config, subject: Subject) -> Result:
    """Train every head, choose one on held-out training images; returns its top-1.

    All weights are the last epoch's. ``chosen`` has all heads with their accuracies. A single head
    is trained on all training images.
    """
    images = len(subject.labels("train"))
    held_out, numbers = choice.divide(num_held_out(config, images), images, config.seed)
    learners = fresh(config, subject)
    many = len(config.heads) > 1
    what = f"{len(config.heads)} attentive probes" if many else "attentive probe"
    abouts = train(config, subject, numbers, learners, what)
    predicted = partial(classify, config, subject, learners)
    if not many:
        y = subject.labels("test")
        (predicted_B,) = predicted("test", torch.arange(len(y)))
        return top1(predicted_B, y, subject.num_classes, abouts[0])
    heads = [{"learning_rate": rate, "weight_decay": decay} for rate, decay in config.heads]
    converged = [all(map(math.isfinite, about["train_loss"])) for about in abouts]
    return choose(config, subject, held_out, heads, converged, predicted, abouts)


def fresh(config: Config, subject: Subject) -> Learners:
    """Untrained probes on the frozen encoder, of which each GPU has a copy."""
    network = subject.network().requires_grad_(False)
    vit = network.config
    encoders = replicas.replicas(network, first_device(), config.precision)
    heads = []
    for rate, decay in config.heads:
        with seeded(config.seed, "probe"):
            head = probe(vit.dim, vit.num_heads, subject.num_classes)
        heads.append(Learner(head, param_groups_weight_decay(head, decay), rate))
    return Learners(vit, heads, encoders)


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
