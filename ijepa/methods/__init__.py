"""The methods: one module each, whose file name is the method's name in a config.

A module has ``Config``, a frozen dataclass whose defaults are the published recipe, and ``Method``.
"""

import importlib
import pkgutil
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any, Protocol

from torch import Tensor, nn

from ijepa.data.transforms import Crop
from ijepa.optim import Optim
from ijepa.vit import ViT, ViTConfig


@dataclass(frozen=True)
class Batch:
    """One step's images on one device, and the key to the step's randomness.

    ``offset`` is the place of the first image in the whole batch of all devices: what is drawn by
    place does not depend on how many devices share the batch.
    """

    images_BCHW: Tensor
    seed: int
    step: int
    offset: int = 0


class Recipe(Protocol):
    """What the loop needs of every method's ``Config``."""

    @property
    def optim(self) -> Optim:
        """Batch, length, rates."""

    @property
    def crop(self) -> Crop:
        """Augmentation of the training images."""


class Method(nn.Module, ABC):
    """What the loop needs of every method: its networks, whose children are its parts."""

    @property
    @abstractmethod
    def encoder(self) -> ViT:
        """The network that evaluation sees."""

    @abstractmethod
    def forward(self, batch: Batch) -> dict[str, Tensor]:
        """``loss``, to be minimised, and further named scalars for the log."""

    @abstractmethod
    def after_step(self, progress: float) -> None:
        """What follows an update of the weights; ``progress`` is steps before it / all steps."""

    @abstractmethod
    def scheduled(self, progress: float) -> dict[str, float]:
        """The method's own scheduled values, for the log."""


class Module(Protocol):
    """A file of this folder."""

    Config: type[Recipe]

    def check(self, config: Any, vit: ViTConfig) -> None:
        """Raise ValueError where recipe and encoder do not fit each other; costs nothing."""

    def Method(self, config: Any, vit: ViTConfig) -> Method:
        """The networks at initialisation; draws from torch's global generator."""


def names() -> list[str]:
    """Every method of this folder."""
    return sorted(module.name for module in pkgutil.iter_modules(__path__))


def load(name: str) -> Module:
    """The module of a method; raises ValueError with the known names for any other."""
    if name not in names():
        raise ValueError(f"unknown method {name!r}: known are {', '.join(names())}")
    module: Module = importlib.import_module(f"{__name__}.{name}")
    return module
