"""Linear heads by the dozen, trained together on one forward pass.

Heads that differ only in learning rate and weight decay are one stack: their parameters are tensors
with a leading head dimension, so that one matrix product serves them all. No head's gradient
depends on another's weights: one that diverges leaves the others as they would be without it.

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
"""The last layer's features, or those of all layers, concatenated from shallow to deep."""

Norm = Literal["none", "batch", "white"]
"""What features pass before the linear layer: nothing, BatchNorm, or a fixed whitening."""

MOMENTUM = 0.9
TRUST = 1e-3
"""LARS's eta: the share of a weight's norm that a step of rate 1 changes."""


@dataclass(frozen=True)
class Head:
    """What tells a head from the others: its input, what that passes first, its rates.

    ``lr`` is per 256 images.
    """

    features: Features
    norm: Norm
    lr: float
    weight_decay: float


class Whitening(nn.Module):
    """Features [B, D] turned and scaled so that they are uncorrelated and of variance 1.

    A linear layer after it can be what a linear layer without it can be; only the way there is
    shorter: where variances span orders of magnitude, SGD never gets to what the small ones tell.
    What varies by less than a millionth of the mean variance is a rounding error of float16.
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
    """Linear heads on the same features, after what ``norm`` says.

    The heads see the same batches, so they share the statistics of their BatchNorms; scale and
    shift are each head's own. Weights and biases start as nn.Linear's. ``white`` is mean and
    covariance of the features, where they are to be whitened.
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
    ) -> None:
        super().__init__()
        self.features, self.norm = features, norm
        bound = dim**-0.5
        weight_SCD = torch.empty(num_heads, num_classes, dim)
        bias_SC = torch.empty(num_heads, num_classes)
        for values in (weight_SCD, bias_SC):
            nn.init.uniform_(values, -bound, bound, generator=random)
        self.weight_SCD, self.bias_SC = nn.Parameter(weight_SCD), nn.Parameter(bias_SC)
        if white is not None:
            self.whitening = Whitening(*white)
        if norm == "batch":
            self.statistics = nn.BatchNorm1d(dim, affine=False)
            self.scale_SD = nn.Parameter(torch.ones(num_heads, dim))
            self.shift_SD = nn.Parameter(torch.zeros(num_heads, dim))

    def forward(self, x_BLD: Tensor) -> Tensor:
        """Logits, [S, C, B]: with few classes, softmax over the middle takes half the time."""
        x_BD = x_BLD[:, -1] if self.features == "last" else x_BLD.flatten(1)
        weight_SCD: Tensor = self.weight_SCD
        bias_SC: Tensor = self.bias_SC
        if self.norm == "white":
            x_BD = self.whitening(x_BD)
        if self.norm == "batch":
            # Folding in the statistics too would take large means from large sums, and lose digits.
            x_BD = self.statistics(x_BD)
            bias_SC = bias_SC + (weight_SCD @ self.shift_SD.unsqueeze(2)).squeeze(2)
            weight_SCD = weight_SCD * self.scale_SD.unsqueeze(1)
        logits = torch.addmm(bias_SC.view(-1, 1), weight_SCD.flatten(0, 1), x_BD.T)
        return logits.view(*bias_SC.shape, -1)


class Heads(nn.Module):
    """One head for every combination of features, norm, rate and weight decay.

    ``grid`` says which is which, in the order of every result. One layer makes no ``concat``.
    ``moments``, the mean [L D] and the covariance [L D, L D] of all layers' features, adds heads on
    whitened features.
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
    ) -> None:
        super().__init__()
        random = generator(seed, "heads")
        rates = list(product(learning_rates, weight_decays))
        inputs: dict[Features, int] = {"last": dim}
        if num_layers > 1:
            inputs["concat"] = num_layers * dim
        norms: tuple[Norm, ...] = ("none", "batch")
        stacks = [
            Stack(features, norm, width, num_classes, len(rates), random)
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
                )
                for features, width in inputs.items()
            ]
        self.grid = [
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
        """The mean cross-entropy of each head, [H]; their sum is to be minimised."""
        losses = []
        for stack in self.stacks:
            logits_SCB = stack(x_BLD)
            y_SB = y_B.expand(len(logits_SCB), -1)
            losses.append(F.cross_entropy(logits_SCB, y_SB, reduction="none").mean(1))
        return torch.cat(losses)

    def classify(self, x_BLD: Tensor) -> Tensor:
        """What each head takes each image for, [H, B] int64."""
        return torch.cat([stack(x_BLD).argmax(1) for stack in self.stacks])

    def finite(self) -> Tensor:
        """Which heads have not diverged, [H] bool: one update on an infinite loss leaves nan."""
        weights = [p for key, p in self.named_parameters() if key.endswith("weight_SCD")]
        return torch.cat([weight_SCD.isfinite().flatten(1).all(1) for weight_SCD in weights])


class Optimizer:
    """SGD with Nesterov momentum, or LARS (You et al., 2017), with each head's own rates.

    LARS is VISSL's: weight decay joins the gradient, which for parameters of more than one
    dimension is then scaled by eta |parameter| / |gradient|, or not at all where either norm is 0.
    Biases decay; a BatchNorm's scale and shift do not.
    """

    def __init__(self, heads: Heads, name: Literal["lars", "sgd"]) -> None:
        self.heads, self.name = heads, name
        self.momentum = {key: torch.zeros_like(p) for key, p in heads.named_parameters()}

    @torch.no_grad()
    def step(self, factor: float) -> None:
        """Update every head by its gradient, at ``factor`` times its rate."""
        for key, parameter in self.heads.named_parameters():
            # One number for each head, to be multiplied with its part of the parameter.
            each = (-1, *[1] * (parameter.ndim - 1))
            lr = (self.heads.lr_S * factor).view(each)
            gradient, parameter.grad = parameter.grad, None
            assert gradient is not None
            if not key.endswith(("scale_SD", "shift_SD")):
                gradient.addcmul_(self.heads.weight_decay_S.view(each), parameter)
            if self.name == "lars" and parameter.ndim > 2:
                norm, change = (t.flatten(1).norm(dim=1).view(each) for t in (parameter, gradient))
                gradient *= torch.where((norm > 0) & (change > 0), TRUST * norm / change, 1.0)
            momentum = self.momentum[key].mul_(MOMENTUM).add_(gradient)
            if self.name == "sgd":
                momentum = gradient.add_(momentum, alpha=MOMENTUM)
            parameter.addcmul_(lr, momentum, value=-1)
