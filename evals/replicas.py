"""A frozen encoder on every GPU of a job, which share the images.

One process queues work for all of them: it waits for none, so that all work at once. The images of
a forward pass go to the copies in turn. An image's features don't depend on the copy.

Shape suffixes: B images, C channels, H and W pixels, N patches, D features.
"""

import copy
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ijepa.precision import choose_attention

if TYPE_CHECKING:
    from ijepa.vit import ViT


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
    copies = [copy.deepcopy(network).to(other).eval() for other in gpus_beside(device)]
    return [network.to(device).eval(), *copies]


def patches(networks: list["ViT"], images_BCHW: Tensor) -> Tensor:
    """Features of the patches of images, [B, N, D], on the images' device, the first network's.

    Each network takes a part of the images. All parts are sent before the first network begins,
    because a copy to another GPU waits for the work that is queued on this one.
    """
    device = images_BCHW.device
    parts = images_BCHW.chunk(len(networks))
    sent = [
        (network, part.to(network.patch_embed.proj.weight.device, non_blocking=True))
        for network, part in zip(networks, parts, strict=False)
    ]
    features = [network.patches(network(part)) for network, part in sent]
    return torch.cat([x_BND.to(device, non_blocking=True) for x_BND in features])
