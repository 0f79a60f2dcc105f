"""Dozens of linear heads, trained together on the same batches of features.

Heads that differ only in learning rate and weight decay are one stack: their parameters are tensors
with a leading head dimension, so that one matrix product serves them all. No head's gradient
depends on another's weights, so a head that diverges does not change the others.

Shape suffixes: B images, L layers, D features, C classes, S heads of a stack, H heads of all
stacks.
"""

from dataclasses import dataclass
from itertools import product
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ijepa.randomness import generator

Features = Literal["last", "concat"]
"""Input of a head: the last layer's features, or those of all layers, from shallow to deep."""

Norm = Literal["none", "batch", "plain_batch", "white"]
"""Layer before the linear layer: none, BatchNorm, BatchNorm without scale and shift (MAE's, with an
epsilon of 1e-6), or a fixed whitening."""

MOMENTUM = 0.9
TRUST = 1e-3
"""LARS's eta: the share of a weight's norm that a step of rate 1 changes."""


@dataclass(frozen=True)
class Head:
    """Settings of one head: its input, the normalisation of the input, its rates.

    ``lr`` is per 256 images.
    """

    features: Features
    norm: Norm
    lr: float
    weight_decay: float


class Whitening(nn.Module):
    """Features [B, D] turned and scaled so that they are uncorrelated and of variance 1.

    A linear layer after whitening can represent the same classifiers as one without it, but SGD
    reaches the optimum sooner: if variances span orders of magnitude, SGD never uses the features
    of small variance. A variance below FLOOR, a millionth of the mean one, is a rounding error of
    float16.
    """

    FLOOR = 1e-6

    def __init__(self, mean_D: Tensor, covariance_DD: Tensor) -> None:
        super().__init__()
        variance_D, axes_DD = torch.linalg.eigh(covariance_DD.double())
        scale_D = (variance_D.clamp_min(0) + self.FLOOR * variance_D.mean()).rsqrt()
        self.mean_D: Tensor
        self.matrix_DD: Tensor
        self.register_buffer("mean_D", mean_D.float(), persistent=False)
        self.register_buffer("matrix_DD", (axes_DD * scale_D).float(), persistent=False)

    def forward(self, x_BD: Tensor) -> Tensor:
        """Whitened features [B, D]."""
        return (x_BD - self.mean_D) @ self.matrix_DD


class Stack(nn.Module):
    """Linear heads on the same features, normalised by ``norm``.

    The heads see the same batches, so they share the statistics of their BatchNorms; scale and
    shift are each head's own. Weights and biases start as nn.Linear's; with ``init_std`` weights
    start normal, of this deviation, and biases at zero. ``white`` is mean and covariance of the
    features, if they are to be whitened.
    """

    def __init__(
        self,
        features: Features,
        norm: Norm,
        dim: int,
        num_classes: int,
        num_heads: int,
        random: torch.Generator,
        white: tuple[Tensor, Tensor] | None = None,
        init_std: float | None = None,
    ) -> None:
        super().__init__()
        self.features, self.norm = features, norm
        bound = dim**-0.5
        weight_SCD = torch.empty(num_heads, num_classes, dim)
        bias_SC = torch.empty(num_heads, num_classes)
        if init_std is None:
            for values in (weight_SCD, bias_SC):
                nn.init.uniform_(values, -bound, bound, generator=random)
        else:
            nn.init.normal_(weight_SCD, std=init_std, generator=random)
            nn.init.zeros_(bias_SC)
        self.weight_SCD, self.bias_SC = nn.Parameter(weight_SCD), nn.Parameter(bias_SC)
        if white is not None:
            self.whitening = Whitening(*white)
        if norm in ("batch", "plain_batch"):
            eps = 1e-5 if norm == "batch" else 1e-6
            self.statistics = nn.BatchNorm1d(dim, eps=eps, affine=False)
        if norm == "batch":
            self.scale_SD = nn.Parameter(torch.ones(num_heads, dim))
            self.shift_SD = nn.Parameter(torch.zeros(num_heads, dim))

    def forward(self, x_BLD: Tensor) -> Tensor:
        """Logits [S, C, B]; with few classes, a softmax over C is twice as fast in this order."""
        x_BD = x_BLD[:, -1] if self.features == "last" else x_BLD.flatten(1)
        weight_SCD: Tensor = self.weight_SCD
        bias_SC: Tensor = self.bias_SC
        if self.norm == "white":
            x_BD = self.whitening(x_BD)
        if self.norm in ("batch", "plain_batch"):
            x_BD = self.statistics(x_BD)
        if self.norm == "batch":
            # Scale and shift are folded into weight and bias. The statistics are not: subtracting
            # large means from large sums would lose digits.
            bias_SC = bias_SC + (weight_SCD @ self.shift_SD.unsqueeze(2)).squeeze(2)
            weight_SCD = weight_SCD * self.scale_SD.unsqueeze(1)
        logits = torch.addmm(bias_SC.view(-1, 1), weight_SCD.flatten(0, 1), x_BD.T)
        return logits.view(*bias_SC.shape, -1)


class Heads(nn.Module):
    """One head for every combination of features, norm of ``norms``, rate and weight decay.

    ``settings`` lists the heads in the order of every result. A single layer makes no ``concat``
    heads. ``moments``, the mean [L D] and the covariance [L D, L D] of all layers' features, adds
    heads on whitened features.
    """

    def __init__(
        self,
        learning_rates: tuple[float, ...],
        weight_decays: tuple[float, ...],
        num_layers: int,
        dim: int,
        num_classes: int,
        seed: int,
        moments: tuple[Tensor, Tensor] | None = None,
        norms: tuple[Norm, ...] = ("none", "batch"),
        init_std: float | None = None,
    ) -> None:
        super().__init__()
        random = generator(seed, "heads")
        rates = list(product(learning_rates, weight_decays))
        inputs: dict[Features, int] = {"last": dim}
        if num_layers > 1:
            inputs["concat"] = num_layers * dim
        stacks = [
            Stack(features, norm, width, num_classes, len(rates), random, init_std=init_std)
            for features, width in inputs.items()
            for norm in norms
        ]
        if moments is not None:
            mean, covariance = moments
            stacks += [
                Stack(
                    features,
                    "white",
                    width,
                    num_classes,
                    len(rates),
                    random,
                    (mean[-width:], covariance[-width:, -width:]),
                    init_std,
                )
                for features, width in inputs.items()
            ]
        self.settings = [
            Head(stack.features, stack.norm, lr, weight_decay)
            for stack in stacks
            for lr, weight_decay in rates
        ]
        self.stacks = nn.ModuleList(stacks)
        self.lr_S: Tensor
        self.weight_decay_S: Tensor
        for name, values in zip(("lr_S", "weight_decay_S"), zip(*rates, strict=True), strict=True):
            self.register_buffer(name, torch.tensor(values), persistent=False)

    def loss(self, x_BLD: Tensor, y_B: Tensor) -> Tensor:
        """Mean cross-entropy of each head, [H]; minimise their sum."""
        losses = []
        for stack in self.stacks:
            logits_SCB = stack(x_BLD)
            y_SB = y_B.expand(len(logits_SCB), -1)
            losses.append(F.cross_entropy(logits_SCB, y_SB, reduction="none").mean(1))
        return torch.cat(losses)

    def classify(self, x_BLD: Tensor) -> Tensor:
        """Class that each head predicts for each image, [H, B] int64."""
        return torch.cat([stack(x_BLD).argmax(1) for stack in self.stacks])

    def finite(self) -> Tensor:
        """True for heads that have not diverged, [H]: one update on an infinite loss leaves nan."""
        weights = [p for key, p in self.named_parameters() if key.endswith("weight_SCD")]
        return torch.cat([weight_SCD.isfinite().flatten(1).all(1) for weight_SCD in weights])


class Optimizer:
    """SGD, with Nesterov momentum or without, or LARS (You et al., 2017), at each head's own rates.

    LARS is VISSL's: weight decay is added to the gradient. For parameters of more than one
    dimension the sum is then scaled by eta |parameter| / |gradient|, unless either norm is 0.
    Biases decay; a BatchNorm's scale and shift do not.
    """

    def __init__(self, heads: Heads, name: Literal["lars", "sgd", "plain_sgd"]) -> None:
        self.heads, self.name = heads, name
        self.momentum = {key: torch.zeros_like(p) for key, p in heads.named_parameters()}

    @torch.no_grad()
    def step(self, factor: float) -> None:
        """Update every head by its gradient, at ``factor`` times its rate."""
        for key, parameter in self.heads.named_parameters():
            # Shape of one number per head, to be broadcast over the head's part of the parameter.
            shape = (-1, *[1] * (parameter.ndim - 1))
            lr = (self.heads.lr_S * factor).view(shape)
            gradient, parameter.grad = parameter.grad, None
            assert gradient is not None
            if not key.endswith(("scale_SD", "shift_SD")):
                gradient.addcmul_(self.heads.weight_decay_S.view(shape), parameter)
            if self.name == "lars" and parameter.ndim > 2:
                weight_norm, gradient_norm = (
                    t.flatten(1).norm(dim=1).view(shape) for t in (parameter, gradient)
                )
                gradient *= torch.where(
                    (weight_norm > 0) & (gradient_norm > 0),
                    TRUST * weight_norm / gradient_norm,
                    1.0,
                )
            momentum = self.momentum[key].mul_(MOMENTUM).add_(gradient)
            if self.name == "sgd":
                momentum = gradient.add_(momentum, alpha=MOMENTUM)
            parameter.addcmul_(lr, momentum, value=-1)
