"""A frozen encoder on every GPU of a job, which share the images.

One process queues work for all of them: it waits for none, so that all work at once. The images of
a forward pass go to the copies in turn. An image's features don't depend on the copy.
"""

import copy
from typing import TYPE_CHECKING

import torch

from ijepa.precision import choose_attention

if TYPE_CHECKING:
    from ijepa.vit import ViT


def gpus_beside(device: torch.device) -> list[torch.device]:
    """GPUs that this process sees besides ``device``; a CPU has none beside it."""
    if device.type != "cuda":
        return []
    return [torch.device("cuda", number) for number in range(1, torch.cuda.device_count())]


def replicas(network: "ViT", device: torch.device) -> list["ViT"]:
    """A network on ``device``, the first GPU or a CPU, and its copies on all other GPUs."""
    choose_attention(network, "auto", device)
    copies = [copy.deepcopy(network).to(other).eval() for other in gpus_beside(device)]
    return [network.to(device).eval(), *copies]
