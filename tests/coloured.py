"""A subject in memory: small images whose colour tells the class, and an untrained encoder."""

from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from evals.subject import Subject
from ijepa.architecture import Variant, ViTConfig
from ijepa.data.loader import Images
from ijepa.randomness import generator
from ijepa.vit import ViT

CLASSES = 3
COUNTS = {"train": 24, "test": 18}


class Pictures(list[Image.Image]):
    """Images in memory, in place of shards."""

    def read_ahead(self, numbers: list[int]) -> None:
        """Do nothing: all are here."""


class Killed(BaseException):
    """Interruption that ends a process in the middle of its work."""


@dataclass(frozen=True)
class Coloured(Subject):
    """A subject whose process dies after ``lives`` checkpoints."""

    lives: int = 10**9
    variant: Variant = field(default_factory=Variant)
    checkpoints: list[int] = field(default_factory=list)

    @property
    def index(self) -> Any:
        return SimpleNamespace(view="centre")

    @property
    def num_classes(self) -> int:
        return CLASSES

    def labels(self, split: str) -> Tensor:
        return torch.arange(COUNTS[split]) % CLASSES

    def images(self, split: str) -> Images:
        random = np.random.default_rng(len(split))
        pixels = random.integers(0, 120, (COUNTS[split], 16, 16, 3), dtype=np.uint8)
        pixels[np.arange(len(pixels)), :, :, self.labels(split).numpy()] += 120
        return cast(Images, Pictures(Image.fromarray(image) for image in pixels))

    def network(self) -> ViT:
        with torch.random.fork_rng():
            torch.manual_seed(generator("coloured").initial_seed())
            vit = ViTConfig(image_size=16, patch_size=4, dim=16, depth=3, num_heads=2)
            return ViT(vit, self.variant).eval()

    def checkpoint(self, state: dict[str, Any]) -> None:
        super().checkpoint(state)
        self.checkpoints.append(state["step"])
        if len(self.checkpoints) == self.lives:
            raise Killed

    def weights(self, number: int = 0) -> dict[str, Tensor]:
        """Weights of a network in the last checkpoint."""
        state = self.resume()
        assert state is not None
        return cast(dict[str, Tensor], state["networks"][number]["weights"])
