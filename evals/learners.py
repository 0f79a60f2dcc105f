"""Classifiers that learn: each with an optimiser of its own, and a copy on each GPU of the job.

Shape suffixes: B images, C channels, H rows of pixels, W columns of pixels, L blocks.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from evals import replicas
from evals.training_config import TrainingConfig
from ijepa.architecture import ViTConfig
from ijepa.optim import Optim, learning_rate, trained
from ijepa.precision import choose_attention, precision
from ijepa.update import update
from ijepa.vit import ViT


class Learner:
    """A network that learns by itself: loss, clipping and updates are its own.

    Each further GPU of the job has a copy of it, whose gradients are added to the network's.

    Args:
        network: The network; ``begin`` moves it to the device.
        groups: The optimizer's groups of parameters; ``lr_scale`` multiplies a group's rate.
        rate: Learning rate for 256 images.
    """

    optim: Optim
    optimizer: torch.optim.Optimizer
    copies: list[nn.Module]

    def __init__(self, network: nn.Module, groups: list[dict[str, Any]], rate: float) -> None:
        self.network, self.groups, self.rate = network, groups, rate

    def begin(self, config: TrainingConfig, batch_size: int, device: torch.device) -> None:
        """Prepare a training in batches of this size."""
        self.optim = config.optim(batch_size, self.rate)
        self.network.to(device).train()
        choose_attention(self.network, config.precision, device)
        self.copies = replicas.copies(self.network, device)
        self.optimizer = torch.optim.AdamW(
            self.groups, lr=self.optim.lr, betas=self.optim.betas, fused=True
        )

    def update(self, step: int, num_steps: int) -> None:
        """Update the weights by their gradients, at the rate of this step."""
        lr = learning_rate(self.optim, step, num_steps)
        for group in self.optimizer.param_groups:
            group["lr"] = lr * group.get("lr_scale", 1.0)
        replicas.add_gradients(self.network, self.copies)
        update(self.network, self.optimizer, self.optim)
        replicas.copy_weights(self.network, self.copies)

    def state(self) -> dict[str, Any]:
        """State for a checkpoint."""
        return {
            "weights": {name: weight.detach() for name, weight in trained(self.network)},
            "optimizer": self.optimizer.state_dict(),
        }

    @torch.no_grad()
    def restore(self, state: dict[str, Any]) -> None:
        """Take the weights and the optimizer's moments from a state."""
        for name, weight in trained(self.network):
            weight.copy_(state["weights"][name])
        self.optimizer.load_state_dict(state["optimizer"])
        replicas.copy_weights(self.network, self.copies)


@dataclass(frozen=True)
class Learners:
    """Networks that learn from the same batches.

    Args:
        vit: Size of the encoder, which gives that of the images.
        all: The networks. The encoder is part of the only one, or frozen.
        encoders: The frozen encoder, of which each GPU has a copy; its patches' features are
            computed once for all networks. If there is none, the network takes images, and the
            random numbers of stochastic depth.
    """

    vit: ViTConfig
    all: list[Learner]
    encoders: Sequence[ViT] = ()

    @torch.no_grad()
    def inputs(
        self, gpu: int, setting: str, images_BCHW: Tensor, coins_BL2: Tensor | None = None
    ) -> tuple[Tensor | None, ...]:
        """Arguments of the networks on one GPU; the encoder has the precision ``setting``."""
        if not self.encoders:
            return images_BCHW, coins_BL2
        encoder = self.encoders[gpu]
        with precision(setting, images_BCHW.device):
            return (encoder.patches(encoder(images_BCHW)),)

    def networks(self, gpu: int) -> list[nn.Module]:
        """The networks that lie on one GPU."""
        return [[learner.network, *learner.copies][gpu] for learner in self.all]
