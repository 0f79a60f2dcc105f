"""Settings of classifiers that learn from augmented images: fine-tuning and attentive probes."""

from collections.abc import Callable
from dataclasses import dataclass

from PIL import Image

from ijepa.data.transforms import Crop
from ijepa.optim import Optim
from ijepa.ranges import (
    BelowOne,
    Count,
    NotNegative,
    NotNegativeInt,
    Positive,
    Precision,
    Probability,
)

CROP = Crop(scale=(0.08, 1.0), flip=0.5, interpolation="bicubic")
"""Timm's training crop, which MAE's fine-tuning and V-JEPA's probe use unchanged."""


@dataclass(frozen=True)
class TrainingConfig:
    """Settings of a training: AdamW, warm-up, half a cosine, augmented images, soft targets.

    Rates are for 256 images: a learning rate is rate * batch / 256. This holds, too, if a data set
    has fewer than ``batch_size`` images and all of them are one batch. ``min_lr`` is not scaled.
    ``auto_augment`` is timm's string for RandAugment or AutoAugment, null for neither.
    ``random_erase`` is a probability; erased pixels become normal noise. ``mixup`` and ``cutmix``
    are the parameters of their beta distributions, 0 for none; if both are used, a coin decides for
    each batch. ``clip`` bounds the norm of all gradients of a network. ``accumulate`` parts of the
    batch are computed one after the other, which does not change the result.
    """

    epochs: Count
    warmup_epochs: float
    batch_size: Count
    min_lr: NotNegative
    auto_augment: str | None
    random_erase: Probability
    clip: Positive | None
    label_smoothing: BelowOne = 0.0
    mixup: NotNegative = 0.0
    cutmix: NotNegative = 0.0
    crop: Crop = CROP
    accumulate: Count = 1
    seed: NotNegativeInt = 0
    num_workers: NotNegativeInt = 1
    precision: Precision = "auto"

    def __post_init__(self) -> None:
        self.optim(self.batch_size, rate=0.0)
        if self.mixes and self.batch_size % 2:
            raise ValueError(
                f"batch_size is {self.batch_size}: mixup and cutmix pair images, so that it must "
                "be even"
            )

    @property
    def mixes(self) -> bool:
        """True if images of a batch are mixed."""
        return self.mixup > 0 or self.cutmix > 0

    def optim(self, batch_size: int, rate: float) -> Optim:
        """Settings of the optimiser for batches of this size; raises ValueError if invalid.

        The groups of parameters have the weight decay.
        """
        return Optim(
            batch_size=batch_size,
            epochs=self.epochs,
            warmup_epochs=self.warmup_epochs,
            lr=rate * batch_size / 256,
            start_lr=0.0,
            final_lr=self.min_lr,
            counted_from=0,
            clip=self.clip,
            accumulate=self.accumulate,
        )

    def policy(self, size: int) -> Callable[[Image.Image], Image.Image] | None:
        """Augmentation named by ``auto_augment``, with timm's settings for ``size`` pixels."""
        if self.auto_augment is None:
            return None
        from evals import augmentation  # which imports timm

        return augmentation.named(self.auto_augment, self.crop.interpolation, size)

    def check_policy(self) -> None:
        """Raise ValueError for an ``auto_augment`` that timm does not know.

        Not done with the other checks: whoever only plans with the defaults need not import timm.
        """
        self.policy(224)
