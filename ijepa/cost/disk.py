"""Sizes of the files that a finished run keeps, from its networks on torch's meta device."""

import dataclasses
from functools import cache
from typing import NamedTuple

from torch import Tensor

from ijepa.config import RunConfig
from ijepa.cost.flops import on_meta
from ijepa.keep_and_start import Keep
from ijepa.optim import Optim


class Disk(NamedTuple):
    """Bytes of one seed's encoder, and of what ``keep`` adds: networks, optimiser, epochs."""

    encoder: int
    whole: int = 0
    optimiser: int = 0
    num_epochs: int = 0

    @property
    def total(self) -> int:
        """All bytes together."""
        return self.encoder * (1 + self.num_epochs) + self.whole + self.optimiser

    def __str__(self) -> str:
        parts = {
            "encoder": self.encoder,
            "whole": self.whole,
            "optimiser": self.optimiser,
            f"{self.num_epochs} epoch{'s' * (self.num_epochs > 1)}": self.num_epochs * self.encoder,
        }
        return ", ".join(f"{name} {in_words(size)}" for name, size in parts.items() if size)


def in_words(size: int) -> str:
    """Bytes as MB or GB."""
    return f"{size / 1e6:.3g} MB" if size < 1e9 else f"{size / 1e9:.3g} GB"


def disk(run: RunConfig) -> Disk:
    """Sizes of a run's files, headers of some kB left out.

    ``optimiser.pt`` holds the networks too, and two moments of each parameter that is trained.
    """
    recipe = dataclasses.replace(run.recipe, optim=Optim())  # type: ignore[type-var]
    encoder, networks, trained = _bytes(RunConfig(run.method, run.dataset, run.vit, recipe))
    keep = run.keep
    return Disk(
        encoder,
        networks * keep.whole,
        (networks + 2 * trained) * keep.optimiser,
        num_epochs(keep, run.recipe.optim.epochs),
    )


def num_epochs(keep: Keep, epochs: float) -> int:
    """Number of epochs of a run whose encoders are kept."""
    return sum(keep.due(epoch) for epoch in range(1, int(epochs) + 1))


@cache
def _bytes(run: RunConfig) -> tuple[int, int, int]:
    """Bytes of the encoder, of all networks, and of the parameters that are trained."""
    method = on_meta(run)
    trained = [parameter for parameter in method.parameters() if parameter.requires_grad]
    states = (method.encoder.state_dict().values(), method.state_dict().values(), trained)
    encoder, networks, learned = (sum(map(_size, tensors)) for tensors in states)
    return encoder, networks, learned


def _size(tensor: Tensor) -> int:
    return tensor.numel() * tensor.element_size()
