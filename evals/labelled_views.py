"""Augmented images with their labels, for classifiers that learn from them.

Shape suffixes: B images, C channels, H rows of pixels, W columns of pixels, K classes.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from evals.training_config import TrainingConfig
from ijepa.data.loader import Images, Steps, fitting, stack
from ijepa.data.transforms import augment, to_array
from ijepa.image_size import Size, sides
from ijepa.randomness import seeded


@dataclass(frozen=True)
class LabelledViews(Dataset[tuple[NDArray[Any], int]]):
    """Augmented images and their labels; an item's key is (epoch, position in ``numbers``).

    The augmentation depends only on the seed, the epoch and the image's number.
    """

    config: TrainingConfig
    images: Images
    labels: Tensor
    numbers: Tensor
    size: Size

    @cached_property
    def policy(self) -> Callable[[Image.Image], Image.Image] | None:
        """RandAugment or AutoAugment; None for neither."""
        return self.config.policy(min(sides(self.size)))

    def __getitem__(self, key: tuple[int, int]) -> tuple[NDArray[Any], int]:
        epoch, position = key
        number = int(self.numbers[position])
        draws = np.random.default_rng((self.config.seed, epoch, number))
        view, _ = augment(self.images[number], self.size, self.config.crop, draws)
        if self.policy is not None:
            assert isinstance(view, Image.Image), "refused by evals.protocol.check"
            with seeded(self.config.seed, "augment", epoch, number):
                view = self.policy(view)
        return to_array(view), int(self.labels[number])

    def __getitems__(self, keys: list[tuple[int, int]]) -> list[tuple[NDArray[Any], int]]:
        """Items of a batch, as torch's loader asks for them."""
        self.images.read_ahead(self.numbers[[position for _, position in keys]].tolist())
        return [self[key] for key in keys]


def collate(items: list[tuple[NDArray[Any], int]]) -> tuple[Tensor, Tensor]:
    """Batch of items: bytes [B, H, W, C] and labels [B]."""
    views, labels = zip(*items, strict=True)
    return stack(list(views)), torch.tensor(labels)


def loaded(views: LabelledViews, steps: Steps) -> DataLoader[Any]:
    """Batches of views and labels, a step each."""
    return DataLoader(
        views,
        batch_sampler=steps,
        num_workers=fitting(views, next(iter(steps), []), views.config.num_workers),
        collate_fn=collate,
        pin_memory=torch.cuda.is_available(),
    )


def mixed(
    config: TrainingConfig, images_BCHW: Tensor, labels_B: Tensor, num_classes: int, step: int
) -> tuple[Tensor, Tensor]:
    """Erased and mixed images of a batch, and soft targets [B, K], as functions of (seed, step)."""
    from timm.data.mixup import Mixup, mixup_target
    from timm.data.random_erasing import RandomErasing

    smoothing, device = config.label_smoothing, str(images_BCHW.device)
    with seeded(config.seed, "mixed", step):
        if config.random_erase:
            erase: Any = RandomErasing(config.random_erase, mode="pixel", device=device)  # type: ignore[no-untyped-call]
            images_BCHW = erase(images_BCHW)
        if config.mixes:
            mix: Any = Mixup(  # type: ignore[no-untyped-call]
                config.mixup, config.cutmix, label_smoothing=smoothing, num_classes=num_classes
            )
            images_BCHW, targets_BK = mix(images_BCHW, labels_B)
        else:
            targets_BK = mixup_target(labels_B, num_classes, smoothing=smoothing)  # type: ignore[no-untyped-call]
    return images_BCHW, targets_BK
