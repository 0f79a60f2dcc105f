"""The contract of a method: one module of ``ijepa/methods/``, named as in a config.

A module has ``Config``, a frozen dataclass whose defaults are the published recipe; ``Method``;
``check``; and ``PRESETS``, the differences of other published recipes and of the toy twin ``tiny``:
``recipe: {preset: NAME}`` in a config. Methods with published checkpoints also have ``RELEASED``,
the names of their weights there; where needed ``COPIES``, beginnings of names under which the
release writes weights a second time, and ``UNUSED``, parameters that no network uses and that the
release's file lacks.
"""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple, Protocol, Self

import torch
from torch import Tensor, nn

from ijepa import collection
from ijepa.architecture import Variant, ViTConfig
from ijepa.data.loader import View
from ijepa.data.transforms import Crop
from ijepa.image_size import Size
from ijepa.masking import num_hidden
from ijepa.optim import Optim
from ijepa.randomness import generator
from ijepa.transfer import placed
from ijepa.vit import ViT

METHODS = "ijepa.methods"


class Tokens(NamedTuple):
    """Name of a tokenizer, and the largest vocabulary that its ids may have."""

    tokenizer: str
    vocabulary: int


@dataclass(frozen=True)
class Batch:
    """Images of one step on one device, and the keys of the step's randomness.

    These images are rows ``offset`` and following of the step's whole batch of ``total`` images,
    which several devices may share and one device may take in parts. Random numbers are drawn for
    the whole batch, so that they do not depend on how the batch is divided.
    """

    views: tuple[Tensor, ...]
    """Views of each image, in the order of the recipe's views; each [B, C, H, W]."""
    seed: int
    step: int
    progress: float = 0.0
    """Steps before this one / all steps."""
    offset: int = 0
    total: int = 0
    tokens_BN: Tensor | None = None
    """Discrete tokens of the first view's patches, if the recipe has some."""

    @property
    def images_BCHW(self) -> Tensor:
        """The first view."""
        return self.views[0]

    def generator(self, name: str, *key: int) -> torch.Generator:
        """Generator of this step's draws of one kind, the same on every device."""
        return generator(self.seed, name, self.step, *key)

    def rows(self, whole: Tensor) -> Tensor:
        """This device's rows of a tensor that was drawn for the whole batch, on the CPU."""
        return whole[self.offset : self.offset + len(self.images_BCHW)]

    def num_images(self) -> int:
        """Number of images in the whole batch."""
        return self.total or len(self.images_BCHW)

    def coins(self, depth: int) -> Tensor:
        """Uniform numbers for stochastic depth in every view, [V, B, L, 2]."""
        return self.uniform("drop_path", len(self.views), depth, 2).transpose(0, 1)

    def uniform(self, name: str, *shape: int) -> Tensor:
        """Uniform numbers in [0, 1) for each image of this device, [B, *shape]."""
        draws = torch.rand(self.num_images(), *shape, generator=self.generator(name))
        return placed(self.rows(draws), self.images_BCHW.device)


class Recipe(ABC):
    """Interface of every method's ``Config`` for the training loop."""

    optim: Optim
    """Batch size, length, learning rates."""

    @abstractmethod
    def views(self, image_size: Size) -> list[View]:
        """Augmented views that a step takes of each image."""

    def masks(
        self, num_images: int, grid: tuple[int, int], generator: torch.Generator
    ) -> dict[str, Tensor]:
        """Patches seen and patches predicted, by name, boolean [B, N], for a picture of masks."""
        return {}

    @property
    def variant(self) -> Variant:
        """Options of the encoder that are the method's own."""
        return Variant()

    @property
    def whole_batch(self) -> bool:
        """True if the loss is no mean over images, so that a batch cannot be taken in parts."""
        return False

    @property
    def tokens(self) -> Tokens | None:
        """Token cache that the loader reads, if any."""
        return None


class MaskedRecipe(Recipe):
    """Recipe with one view of each image, in which equally many patches are hidden."""

    crop: Crop
    mask_ratio: float

    @abstractmethod
    def hide(self, counts_B: Tensor, grid: tuple[int, int], generator: torch.Generator) -> Tensor:
        """Boolean [B, N], true for the ``counts_B[b]`` patches of image b that are hidden."""

    def views(self, image_size: Size) -> list[View]:
        """One view."""
        return [View(image_size, self.crop)]

    def hidden(self, batch: Batch, grid: tuple[int, int]) -> Tensor:
        """Hidden patches of this device's images, boolean [B, N] on the CPU (ijepa.vit.where)."""
        return batch.rows(self._draw(batch.num_images(), grid, batch.generator("masks")))

    def masks(
        self, num_images: int, grid: tuple[int, int], generator: torch.Generator
    ) -> dict[str, Tensor]:
        """Visible patches, under the name ``visible``."""
        return {"visible": ~self._draw(num_images, grid, generator)}

    def _draw(self, num_images: int, grid: tuple[int, int], generator: torch.Generator) -> Tensor:
        counts_B = torch.full((num_images,), num_hidden(self.mask_ratio, grid))
        return self.hide(counts_B, grid, generator)


class Method(nn.Module, ABC):
    """Networks of a method, as child modules, and the hooks that the training loop calls."""

    undecayed: ClassVar[tuple[str, ...]] = ()
    """Ends of the names of parameters without weight decay, beside biases and vectors."""
    averages: ClassVar[dict[str, str]] = {}
    """Networks that are moving averages, each with the network that it follows."""

    @property
    @abstractmethod
    def encoder(self) -> ViT:
        """Encoder that is evaluated."""

    @abstractmethod
    def forward(self, batch: Batch) -> dict[str, Tensor]:
        """Named scalars: ``loss``, which is minimised, and others for the log.

        Every scalar is a mean over images, so that the mean over devices is that of the batch; or
        it is computed from all devices' images, if the recipe says ``whole_batch``.
        """

    def train(self, mode: bool = True) -> Self:
        """Set the mode of the networks that learn; a teacher never drops paths."""
        super().train(mode)
        for network in self.children():
            if not any(parameter.requires_grad for parameter in network.parameters()):
                network.eval()
        return self

    def before_step(self, progress: float) -> None:
        """Hook between the backward pass and the update; ``progress`` is as in after_step."""

    def after_step(self, progress: float) -> None:
        """Hook after an update of the weights; ``progress`` is steps before it / all steps."""

    def scheduled(self, progress: float) -> dict[str, float]:
        """Values of this step that the method schedules itself; the log shows them."""
        return {}


def own_initial_weights(vit: ViTConfig, method: str) -> None:
    """Raise ValueError if a config asks for I-JEPA's choice of initial weights."""
    if vit.init != "official":
        raise ValueError(
            f"vit.init is {vit.init}: {method}'s initial weights are its own; leave it out"
        )


class Module(Protocol):
    """A module of ijepa/methods."""

    Config: type[Recipe]
    PRESETS: dict[str, dict[str, Any]]

    def check(self, config: Any, vit: ViTConfig) -> None:
        """Raise ValueError if recipe and encoder do not fit each other; builds no network."""

    def Method(self, config: Any, vit: ViTConfig) -> Method:
        """Networks at initialisation; draws from torch's global generator."""


def method_names() -> list[str]:
    """Names of all methods, sorted."""
    return collection.members(METHODS)


def load_method(name: str) -> Module:
    """Module of a method; raises UserError with the known names for any other."""
    module: Module = collection.load(METHODS, name, "method")
    return module
