"""AdamW with the release's parameter groups, and the schedules of learning rate and weight decay.

Source: Assran et al., CVPR 2023, A.1, and the released configs. Paper and code differ on both
schedules; ``Optim`` says where.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import torch
from torch import nn


@dataclass(frozen=True)
class Optim:
    """Defaults are the released ImageNet-1k recipe of I-JEPA (batch of 2048 images, 300 epochs).

    The paper starts at a learning rate of 1e-4, warms up over 15 epochs and raises the weight decay
    linearly; the code starts at 2e-4, warms up over 40 and raises it along a cosine. There is no
    gradient clipping in either.
    """

    batch_size: int = 2048
    epochs: float = 300
    warmup_epochs: float = 40
    lr: float = 1e-3
    start_lr: float = 2e-4
    final_lr: float = 1e-6
    weight_decay: tuple[float, float] = (0.04, 0.4)
    weight_decay_shape: Literal["cosine", "linear"] = "cosine"
    betas: tuple[float, float] = (0.9, 0.999)

    def __post_init__(self) -> None:
        if self.batch_size < 1:
            raise ValueError(f"batch_size is {self.batch_size}: it must be at least 1")
        if not 0 <= self.epochs < math.inf:
            raise ValueError(f"epochs is {self.epochs}: it must be finite, and 0 means no training")
        if not all(0 <= beta < 1 for beta in self.betas):
            raise ValueError(f"betas is {list(self.betas)}: each must lie in [0, 1)")
        if not all(0 <= decay < math.inf for decay in self.weight_decay):
            raise ValueError(f"weight_decay is {list(self.weight_decay)}: none may be below 0")
        if not 0 <= self.warmup_epochs <= self.epochs:
            raise ValueError(
                f"warmup_epochs is {self.warmup_epochs}: it must lie between 0 and epochs "
                f"({self.epochs})"
            )
        for name in ("lr", "start_lr", "final_lr"):
            if not 0 <= getattr(self, name) < math.inf:
                raise ValueError(
                    f"{name} is {getattr(self, name)}: it must be finite and not below 0"
                )


def learning_rate(optim: Optim, step: int, num_steps: int) -> float:
    """Rate of update ``step`` (from 0): linear warm-up, then half a cosine down to ``final_lr``.

    The release counts updates from 1, so the last one runs at ``final_lr`` and the first above
    ``start_lr``.
    """
    warmup = int(optim.warmup_epochs * num_steps / optim.epochs)
    if step + 1 < warmup:
        return optim.start_lr + (step + 1) / warmup * (optim.lr - optim.start_lr)
    progress = (step + 1 - warmup) / max(1, num_steps - warmup)
    return _cosine(optim.lr, optim.final_lr, progress)


def weight_decay(optim: Optim, step: int, num_steps: int) -> float:
    """Weight decay of update ``step`` (from 0), from the first to the second value."""
    start, end = optim.weight_decay
    progress = (step + 1) / num_steps
    if optim.weight_decay_shape == "linear":
        return start + progress * (end - start)
    return _cosine(start, end, progress)


def _cosine(start: float, end: float, progress: float) -> float:
    return end + (start - end) * 0.5 * (1 + math.cos(math.pi * progress))


def adamw(method: nn.Module, optim: Optim) -> torch.optim.AdamW:
    """AdamW whose groups are, network by network, first the decayed and then the other parameters.

    Not decayed are biases and everything one-dimensional; the mask token, of three dimensions, is.
    """
    groups = [
        {
            "params": [p for name, p in trained(net) if is_decayed(name, p) == decayed],
            "decayed": decayed,
        }
        for decayed in (True, False)
        for net in method.children()
    ]
    return torch.optim.AdamW([g for g in groups if g["params"]], lr=optim.lr, betas=optim.betas)


def trained(net: nn.Module) -> Iterator[tuple[str, nn.Parameter]]:
    """Names and parameters that receive gradients."""
    return ((name, p) for name, p in net.named_parameters() if p.requires_grad)


def is_decayed(name: str, parameter: nn.Parameter) -> bool:
    """Whether weight decay applies, by the release's rule."""
    return parameter.ndim > 1 and "bias" not in name


def schedule(optimizer: torch.optim.Optimizer, lr: float, decay: float) -> None:
    """Set the rates of the coming update."""
    for group in optimizer.param_groups:
        group["lr"] = lr
        group["weight_decay"] = decay if group["decayed"] else 0.0
