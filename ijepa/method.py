"""The contract of a method: one module of ``ijepa/methods/``, named as in a config.

A module has ``Config``, a frozen dataclass whose defaults are the published recipe, ``Method``,
``check``, ``RELEASED``, its weights' names in the published checkpoints, and ``PRESETS``, what
other published recipes change: ``recipe: {preset: NAME}`` in a config.
"""

import importlib
import pkgutil
from abc import ABC, abstractmethod
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, Protocol, Self

import torch
from torch import Tensor, nn

from ijepa.architecture import ViTConfig
from ijepa.data.loader import View
from ijepa.data.transforms import Crop
from ijepa.masking import num_hidden
from ijepa.optim import Optim
from ijepa.randomness import generator
from ijepa.vit import ViT

METHODS = Path(__file__).with_name("methods")


class Tokens(NamedTuple):
    """A tokenizer's name, and how many words its ids may stand for."""

    tokenizer: str
    vocabulary: int


@dataclass(frozen=True)
class Batch:
    """One step's images on one device, and the key to the step's randomness.

    These images are rows ``offset`` and following of the step's whole batch of ``total`` images,
    which several devices may share and one device may take in parts. What is drawn is drawn for
    the whole batch, so that it does not depend on how the batch is divided.
    """

    views: tuple[Tensor, ...]
    """The views of each image, in the order of the recipe's; each [B, C, H, W]."""
    seed: int
    step: int
    progress: float = 0.0
    """Steps before this one / all steps."""
    offset: int = 0
    total: int = 0
    tokens_BN: Tensor | None = None
    """Discrete tokens of the first view's patches, where the recipe has some."""

    @property
    def images_BCHW(self) -> Tensor:
        """The first view."""
        return self.views[0]

    def generator(self, name: str, *key: int) -> torch.Generator:
        """The generator of this step's draws of one kind, the same on every device."""
        return generator(self.seed, name, self.step, *key)

    def rows(self, whole: Tensor) -> Tensor:
        """This device's rows of something drawn for the whole batch."""
        images = self.images_BCHW
        return whole[self.offset : self.offset + len(images)].to(images.device)

    def num_images(self) -> int:
        """How many images the whole batch has."""
        return self.total or len(self.images_BCHW)

    def uniform(self, name: str, *shape: int) -> Tensor:
        """Uniform numbers in [0, 1) for each image of this device, [B, *shape]."""
        return self.rows(torch.rand(self.num_images(), *shape, generator=self.generator(name)))


class Recipe(ABC):
    """What the loop needs of every method's ``Config``."""

    optim: Optim
    """Batch, length, rates."""

    @abstractmethod
    def views(self, image_size: int) -> list[View]:
        """The augmented views that a step takes of each image."""

    def masks(
        self, num_images: int, grid: tuple[int, int], generator: torch.Generator
    ) -> dict[str, Tensor]:
        """For a picture: what is seen of images and what is predicted, by name, boolean [B, N]."""
        return {}

    @property
    def tokens(self) -> Tokens | None:
        """Which token cache the loader reads, if any."""
        return None


class MaskedRecipe(Recipe):
    """A recipe that hides equally many patches of every image in its one view."""

    crop: Crop
    mask_ratio: float

    @abstractmethod
    def hide(self, counts_B: Tensor, grid: tuple[int, int], generator: torch.Generator) -> Tensor:
        """Boolean [B, N], true for the ``counts_B[b]`` patches of image b that are hidden."""

    def views(self, image_size: int) -> list[View]:
        """One view."""
        return [View(image_size, self.crop)]

    def hidden(self, batch: Batch, grid: tuple[int, int]) -> Tensor:
        """Which patches of this device's images are hidden, boolean [B, N]."""
        return batch.rows(self._draw(batch.num_images(), grid, batch.generator("masks")))

    def masks(
        self, num_images: int, grid: tuple[int, int], generator: torch.Generator
    ) -> dict[str, Tensor]:
        """What is left visible."""
        return {"visible": ~self._draw(num_images, grid, generator)}

    def _draw(self, num_images: int, grid: tuple[int, int], generator: torch.Generator) -> Tensor:
        counts_B = torch.full((num_images,), num_hidden(self.mask_ratio, grid))
        return self.hide(counts_B, grid, generator)


class Method(nn.Module, ABC):
    """What the loop needs of every method: its networks, whose children are its parts."""

    @property
    @abstractmethod
    def encoder(self) -> ViT:
        """The network that evaluation sees."""

    @abstractmethod
    def forward(self, batch: Batch) -> dict[str, Tensor]:
        """``loss``, to be minimised, and further named scalars for the log.

        Every scalar is a mean over images, so that the mean over devices is that of the batch.
        """

    def train(self, mode: bool = True) -> Self:
        """Set the mode of the networks that learn; a teacher never drops paths."""
        super().train(mode)
        for network in self.children():
            if not any(parameter.requires_grad for parameter in network.parameters()):
                network.eval()
        return self

    def before_step(self, progress: float) -> None:
        """What precedes an update, between backward and it; ``progress`` is as in after_step."""

    def after_step(self, progress: float) -> None:
        """What follows an update of the weights; ``progress`` is steps before it / all steps."""

    def scheduled(self, progress: float) -> dict[str, float]:
        """The method's own scheduled values, for the log."""
        return {}


class Module(Protocol):
    """A module of ijepa/methods."""

    Config: type[Recipe]
    RELEASED: dict[str, str]
    PRESETS: dict[str, dict[str, Any]]

    def check(self, config: Any, vit: ViTConfig) -> None:
        """Raise ValueError where recipe and encoder do not fit each other; costs nothing."""

    def Method(self, config: Any, vit: ViTConfig) -> Method:
        """The networks at initialisation; draws from torch's global generator."""


def method_names() -> list[str]:
    """Names of all methods, sorted."""
    return sorted(module.name for module in pkgutil.iter_modules([str(METHODS)]))


def load_method(name: str) -> Module:
    """The module of a method; raises ValueError with the known names for any other."""
    if name not in method_names():
        raise ValueError(f"unknown method {name!r}: known are {', '.join(method_names())}")
    module: Module = importlib.import_module(f"ijepa.methods.{name}")
    return module
