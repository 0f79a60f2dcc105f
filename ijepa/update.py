"""One update of a network: gradients of each part of a batch, then clipping and the step."""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from ijepa.optim import Optim, clip
from ijepa.precision import kernels, precision


def gradients(
    loss_of: Callable[[], dict[str, Tensor]], share: float, setting: str, device: torch.device
) -> dict[str, Tensor]:
    """Add the gradients of ``share`` times a loss, and return what ``loss_of`` returned.

    ``loss_of`` is called in the run's precision; its result has ``loss``.
    """
    with precision(setting, device):
        scalars = loss_of()
    with kernels(setting, device):
        (scalars["loss"] * share).backward()
    return scalars


def gradient_norm(network: nn.Module) -> Tensor:
    """Norm of all gradients together, before they are clipped."""
    return nn.utils.get_total_norm([p.grad for p in network.parameters() if p.grad is not None])


def update(network: nn.Module, optimizer: torch.optim.Optimizer, optim: Optim) -> None:
    """Clip the gradients, move the weights, and forget the gradients."""
    clip(network, optim)
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
