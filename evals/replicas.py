"""A network on every GPU of a job, which share the images of an evaluation.

One process queues work for all of them: it waits for none, so that all work at once. An image's
features don't depend on the copy that computes them. Where a network learns, the copies' gradients
are added to the first one's, and after each step its new weights go to the copies.
"""

import copy
from typing import TYPE_CHECKING, TypeVar

import torch
from torch import Tensor, nn

from ijepa.precision import choose_attention

if TYPE_CHECKING:
    from ijepa.vit import ViT

Network = TypeVar("Network", bound=nn.Module)


def gpus_beside(device: torch.device) -> list[torch.device]:
    """GPUs that this process sees besides ``device``; a CPU has none beside it."""
    if device.type != "cuda":
        return []
    return [torch.device("cuda", number) for number in range(1, torch.cuda.device_count())]


def replicas(network: "ViT", device: torch.device, setting: str = "auto") -> list["ViT"]:
    """A network on ``device``, the first GPU or a CPU, and its copies on all other GPUs.

    ``setting`` is the precision in which they will compute.
    """
    choose_attention(network, setting, device)
    network = network.to(device).eval()
    return [network, *copies(network, device)]


def copies(network: Network, device: torch.device) -> list[Network]:
    """Copies of a network on all GPUs besides ``device``."""
    return [copy.deepcopy(network).to(other) for other in gpus_beside(device)]


def sent(device: torch.device, *batch: Tensor) -> list[tuple[Tensor, ...]]:
    """Parts of a batch's tensors, on ``device`` and on each GPU beside it.

    All are sent before the first GPU begins, because a copy to another GPU waits for the work that
    is queued on this one.
    """
    devices = [device, *gpus_beside(device)]
    parts = zip(*(tensor.chunk(len(devices)) for tensor in batch), strict=True)
    return [
        tuple(tensor.to(other, non_blocking=True) for tensor in part)
        for part, other in zip(parts, devices, strict=False)
    ]


@torch.no_grad()
def add_gradients(network: nn.Module, copies: list[nn.Module]) -> None:
    """Add the gradients of the copies to the network's, and forget them."""
    for other in copies:
        for mine, theirs in zip(network.parameters(), other.parameters(), strict=True):
            if theirs.grad is not None:
                gradient = theirs.grad.to(mine.device, non_blocking=True)
                mine.grad = gradient if mine.grad is None else mine.grad.add_(gradient)
                theirs.grad = None


@torch.no_grad()
def copy_weights(network: nn.Module, copies: list[nn.Module]) -> None:
    """Give the copies the network's weights."""
    for other in copies:
        for mine, theirs in zip(network.parameters(), other.parameters(), strict=True):
            if mine.requires_grad:
                theirs.copy_(mine, non_blocking=True)
