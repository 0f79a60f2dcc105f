"""AdamW with the releases' parameter groups, schedules, clipping, and the moving average.

Source: Assran et al., CVPR 2023, A.1, and the released configs. Paper and code differ on both
schedules; ``Optim`` says where. The other methods' recipes are in ``ijepa/methods``.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import torch
from torch import nn

from ijepa.ranges import BelowOne, Count, NotNegative, Positive


@dataclass(frozen=True)
class Optim:
    """Defaults are the released ImageNet-1k recipe of I-JEPA (batch of 2048 images, 300 epochs).

    The paper starts at a learning rate of 1e-4, warms up over 15 epochs and raises the weight decay
    linearly; the code starts at 2e-4, warms up over 40 and raises it along a cosine. There is no
    gradient clipping in either.

    ``lr`` is the rate for ``batch_size`` images, not for 256. ``counted_from``: I-JEPA's release
    counts updates from 1, so that its first one runs above ``start_lr`` and its last at
    ``final_lr``; the others count from 0. ``clip`` bounds the norm of all gradients together or, as
    in DINO and iBOT, of each parameter's gradient. ``accumulate`` is the number of parts of the
    batch that are computed one after the other; it does not change what is learned.
    """

    batch_size: Count = 2048
    epochs: NotNegative = 300
    warmup_epochs: float = 40
    lr: NotNegative = 1e-3
    start_lr: NotNegative = 2e-4
    final_lr: NotNegative = 1e-6
    weight_decay: tuple[NotNegative, NotNegative] = (0.04, 0.4)
    weight_decay_shape: Literal["cosine", "linear"] = "cosine"
    betas: tuple[BelowOne, BelowOne] = (0.9, 0.999)
    counted_from: Literal[0, 1] = 1
    clip: Positive | None = None
    clip_of: Literal["all", "each"] = "all"
    accumulate: Count = 1

    def __post_init__(self) -> None:
        if not 0 <= self.warmup_epochs <= self.epochs:
            raise ValueError(
                f"warmup_epochs is {self.warmup_epochs}: it must lie between 0 and epochs "
                f"({self.epochs})"
            )

    def num_steps(self, num_images: int) -> int:
        """Number of updates in all; an epoch's last images that fill no batch are left out."""
        return int(self.epochs * (num_images // self.batch_size))


def learning_rate(optim: Optim, step: int, num_steps: int) -> float:
    """Rate of update ``step`` (from 0): linear warm-up, then half a cosine down to ``final_lr``."""
    warmup = int(optim.warmup_epochs * num_steps / optim.epochs)
    update = step + optim.counted_from
    if update < warmup:
        return optim.start_lr + update / warmup * (optim.lr - optim.start_lr)
    return cosine(optim.lr, optim.final_lr, (update - warmup) / max(1, num_steps - warmup))


def weight_decay(optim: Optim, step: int, num_steps: int) -> float:
    """Weight decay of update ``step`` (from 0), from the first to the second value."""
    start, end = optim.weight_decay
    progress = (step + optim.counted_from) / num_steps
    if optim.weight_decay_shape == "linear":
        return start + progress * (end - start)
    return cosine(start, end, progress)


def cosine(start: float, end: float, progress: float) -> float:
    """Half a cosine from ``start`` at progress 0 to ``end`` at 1."""
    return end + (start - end) * 0.5 * (1 + math.cos(math.pi * progress))


def adamw(method: nn.Module, optim: Optim) -> torch.optim.AdamW:
    """AdamW with two groups a network: first the groups of decayed parameters, then the others.

    Biases and one-dimensional parameters are not decayed; the mask token, of three dimensions, is.
    """
    groups = [
        {
            "params": [p for name, p in trained(net) if is_decayed(name, p, method) == decayed],
            "decayed": decayed,
        }
        for decayed in (True, False)
        for net in method.children()
    ]
    groups = [group for group in groups if group["params"]]
    return torch.optim.AdamW(groups, lr=optim.lr, betas=optim.betas, fused=True)


def trained(net: nn.Module) -> Iterator[tuple[str, nn.Parameter]]:
    """Names and parameters that receive gradients."""
    return ((name, p) for name, p in net.named_parameters() if p.requires_grad)


def is_decayed(name: str, parameter: nn.Parameter, method: nn.Module) -> bool:
    """True if weight decay applies: to no bias and to nothing one-dimensional, as in all releases.

    A method may exempt others (``undecayed``). BEiT's table of relative positions is called a bias
    table but is decayed: it is no bias.
    """
    exempt = ("bias", *getattr(method, "undecayed", ()))
    return parameter.ndim > 1 and not name.endswith(exempt)


def schedule(optimizer: torch.optim.Optimizer, lr: float, decay: float) -> None:
    """Set learning rate and weight decay of the next update."""
    for group in optimizer.param_groups:
        group["lr"] = lr
        group["weight_decay"] = decay if group["decayed"] else 0.0


def clip(method: nn.Module, optim: Optim) -> None:
    """Scale down the gradients whose norm is above the bound."""
    if optim.clip is None:
        return
    parameters = [p for _, p in trained(method) if p.grad is not None]
    for group in [parameters] if optim.clip_of == "all" else [[p] for p in parameters]:
        nn.utils.clip_grad_norm_(group, optim.clip)


@torch.no_grad()
def follow(average: nn.Module, source: nn.Module, momentum: float) -> None:
    """Move the weights of an average towards its source's: m * average + (1 - m) * source."""
    torch._foreach_lerp_(
        list(average.parameters()), [p.detach() for p in source.parameters()], 1.0 - momentum
    )
