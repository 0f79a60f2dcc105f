"""Training of a classifier on augmented images, for fine-tuning and for the attentive probe.

Shape suffixes: B images, C channels, H rows of pixels, W columns of pixels, N patches, L blocks,
D features, K classes.
"""

import contextlib
import hashlib
import random
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, Dataset, Subset
from tqdm import tqdm

from evals.losses import Losses
from evals.subject import Subject, checked_labels
from ijepa.data.loader import (
    EvaluationViews,
    Images,
    Steps,
    evaluation_batches,
    fitting,
    stack,
)
from ijepa.data.transforms import (
    Crop,
    augment,
    normalise,
    to_array,
)
from ijepa.errors import UserError
from ijepa.image_size import Size, sides
from ijepa.optim import Optim, learning_rate, trained
from ijepa.precision import choose_attention, precision
from ijepa.randomness import generator
from ijepa.ranges import (
    BelowOne,
    Count,
    NotNegative,
    NotNegativeInt,
    Positive,
    Precision,
    Probability,
)
from ijepa.transfer import placed
from ijepa.update import gradients, update
from ijepa.vit import ViT

CHECKPOINT_SECONDS, CHECKPOINT_SHARE = 20.0, 0.05
"""Least seconds between two checkpoints, and largest share of the time that they may take.

A period in epochs would not do: an epoch is one step for some trainings and hours for others, and a
checkpoint has a megabyte or eight gigabytes.
"""

LOSS_EVERY = 10
"""Steps after which losses are read: the host waits for the device then."""

CROP = Crop(scale=(0.08, 1.0), flip=0.5, interpolation="bicubic")
"""Timm's training crop, which MAE's fine-tuning and V-JEPA's probe use unchanged."""


@dataclass(frozen=True)
class TrainingConfig:
    """Settings of a training: AdamW, warm-up, half a cosine, augmented images, soft targets.

    ``base_lr`` is for 256 images: the learning rate is base_lr * batch / 256. This holds, too, if a
    data set has fewer than ``batch_size`` images and all of them are one batch. ``min_lr`` is not
    scaled. ``auto_augment`` is timm's string for RandAugment or AutoAugment, null for neither.
    ``random_erase`` is a probability; erased pixels become normal noise. ``mixup`` and ``cutmix``
    are the parameters of their beta distributions, 0 for none; if both are used, a coin decides for
    each batch. ``clip`` bounds the norm of all gradients. ``accumulate`` parts of the batch are
    computed one after the other, which does not change the result.
    """

    epochs: Count
    warmup_epochs: float
    batch_size: Count
    base_lr: Positive
    min_lr: NotNegative
    weight_decay: NotNegative
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
        self.optim(self.batch_size)
        if self.mixes and self.batch_size % 2:
            raise ValueError(
                f"batch_size is {self.batch_size}: mixup and cutmix pair images, so that it must "
                "be even"
            )

    @property
    def mixes(self) -> bool:
        """True if images of a batch are mixed."""
        return self.mixup > 0 or self.cutmix > 0

    def optim(self, batch_size: int) -> Optim:
        """Settings of the optimiser for batches of this size; raises ValueError if invalid."""
        return Optim(
            batch_size=batch_size,
            epochs=self.epochs,
            warmup_epochs=self.warmup_epochs,
            lr=self.base_lr * batch_size / 256,
            start_lr=0.0,
            final_lr=self.min_lr,
            weight_decay=(self.weight_decay, self.weight_decay),
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


class Classifier(nn.Module):
    """An encoder and a head on the features of its patches; the encoder may be frozen."""

    def __init__(self, encoder: ViT, head: nn.Module) -> None:
        super().__init__()
        self.encoder, self.head = encoder, head

    def forward(self, images_BCHW: Tensor, coins_BL2: Tensor | None = None) -> Tensor:
        """Logits [B, K]; ``coins_BL2`` are the uniform random numbers of stochastic depth."""
        tokens_BTD = self.encoder(images_BCHW, coins_BL2=coins_BL2)
        logits_BK: Tensor = self.head(self.features(tokens_BTD))
        return logits_BK

    def features(self, tokens_BTD: Tensor) -> Tensor:
        """Input of the head: the features of the patches, [B, N, D]."""
        return self.encoder.patches(tokens_BTD)

    def train(self, mode: bool = True) -> "Classifier":
        """Set training mode, except for a frozen encoder, which stays in evaluation mode."""
        super().train(mode)
        self.encoder.train(mode and any(p.requires_grad for p in self.encoder.parameters()))
        return self

    def group_matcher(self, coarse: bool = False) -> dict[str, str]:
        """Name patterns of the embedding and the blocks, for timm's layer-wise decay.

        All other parameters count as the last layer, relative positions among them, as in BEiT's
        fine-tuning.
        """
        return {
            "stem": r"^encoder\.(?:cls_token|pos_embed|patch_embed)",
            "blocks": r"^encoder\.blocks\.(\d+)",
        }


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


@contextlib.contextmanager
def seeded(*key: int | str) -> Iterator[None]:
    """Seed the generators that timm draws from by ``key``; restore their state afterwards."""
    seed = generator(*key).initial_seed()
    python, numpy = random.getstate(), np.random.get_state()
    # A loader's worker must not touch the GPU; CUDA is not initialised there.
    gpus = range(torch.cuda.device_count()) if torch.cuda.is_initialized() else ()
    with torch.random.fork_rng(devices=gpus):
        random.seed(seed)
        np.random.seed(seed % 2**32)
        torch.manual_seed(seed)
        try:
            yield
        finally:
            random.setstate(python)
            np.random.set_state(numpy)


def train(
    config: TrainingConfig,
    subject: Subject,
    numbers: Tensor | None,
    model: Classifier,
    groups: list[dict[str, Any]],
    what: str,
) -> dict[str, Any]:
    """Train ``model`` on training images; returns batch size, rate and mean loss of each epoch.

    The training goes on from the subject's checkpoint if that is of the same training, even a
    finished one. On a CPU, a training that was killed and went on ends bit-identical to an
    undisturbed one.

    Args:
        config: The protocol.
        subject: The data, and the keeper of checkpoints.
        numbers: Numbers of the training images to use, None for all of them.
        model: The classifier; it is moved to the device.
        groups: The optimizer's groups of parameters; ``lr_scale`` multiplies a group's rate.
        what: Name of the training, on the progress bar and in the identity of its checkpoint.
    """
    labels, _ = (checked_labels(subject, split) for split in ("train", "test"))
    numbers = torch.arange(len(labels)) if numbers is None else numbers
    batch_size = fitting_batch(config, subject, len(numbers))
    per_epoch = len(numbers) // batch_size
    num_steps = config.epochs * per_epoch
    optim = config.optim(batch_size)

    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    model.to(device).train()
    choose_attention(model, config.precision, device)
    optimizer = torch.optim.AdamW(groups, lr=optim.lr, betas=optim.betas, fused=True)
    identity = hashlib.sha256(repr((what, config, numbers.tolist())).encode()).hexdigest()
    first, means = resume(subject, identity, model, optimizer)
    losses = Losses(means, per_epoch, what)

    vit = model.encoder.config
    views = LabelledViews(config, subject.images("train"), labels, numbers, vit.image_size)
    batches = loaded(views, Steps(len(numbers), batch_size, first, num_steps, config.seed))
    save_at = time.monotonic() + CHECKPOINT_SECONDS
    with tqdm(total=num_steps, initial=first, desc=what, unit="step", mininterval=2) as bar:
        for step, (images_BHWC, labels_B) in enumerate(batches, start=first):
            lr = learning_rate(optim, step, num_steps)
            for group in optimizer.param_groups:
                group["lr"] = lr * group.get("lr_scale", 1.0)
            images_BCHW, targets_BK = mixed(
                config,
                normalise(placed(images_BHWC, device), vit.mean, vit.std),
                placed(labels_B, device),
                subject.num_classes,
                step,
            )
            # Drawn for the whole batch, so that the result does not depend on accumulation.
            draws = generator(config.seed, "drop_path", step)
            coins_BL2 = placed(torch.rand(batch_size, vit.depth, 2, generator=draws), device)

            batch = (images_BCHW, targets_BK, coins_BL2)
            for images, targets, coins in zip(
                *(tensor.chunk(config.accumulate) for tensor in batch), strict=True
            ):
                loss_of = partial(cross_entropy, model, images, targets, coins)
                share = len(images) / batch_size
                losses.add(step, share, gradients(loss_of, share, config.precision, device))
            update(model, optimizer, optim)

            bar.update()
            save = step + 1 == num_steps or time.monotonic() >= save_at
            if save or (step + 1) % LOSS_EVERY == 0:
                bar.set_postfix(loss=f"{losses.read():.4f}", refresh=False)
            if save:
                start = time.monotonic()
                checkpoint(subject, identity, model, optimizer, step + 1, means)
                duration = time.monotonic() - start
                save_at = start + duration + max(CHECKPOINT_SECONDS, duration / CHECKPOINT_SHARE)
    return {
        "batch_size": batch_size,
        "lr": optim.lr,
        "train_loss": [round(loss, 4) for loss in means],
    }


def loaded(views: LabelledViews, steps: Steps) -> DataLoader[Any]:
    """Batches of views and labels, a step each."""
    return DataLoader(
        views,
        batch_sampler=steps,
        num_workers=fitting(views, next(iter(steps), []), views.config.num_workers),
        collate_fn=collate,
        pin_memory=torch.cuda.is_available(),
    )


def fitting_batch(config: TrainingConfig, subject: Subject, images: int) -> int:
    """Images of a batch, no more than there are; raises UserError if there are too few for one."""
    batch_size = min(config.batch_size, images)
    batch_size -= batch_size % 2 if config.mixes else 0
    if not batch_size:
        raise UserError(
            f"{subject.data}: {images} training images are too few to train on"
            + (" with mixup or cutmix, which pair them" if config.mixes else "")
        )
    return batch_size


def cross_entropy(
    model: Classifier, images_BCHW: Tensor, targets_BK: Tensor, coins_BL2: Tensor
) -> dict[str, Tensor]:
    """Cross-entropy with soft targets, averaged over images."""
    logits_BK = model(images_BCHW, coins_BL2)
    return {"loss": F.cross_entropy(logits_BK.float(), targets_BK)}


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


def checkpoint(
    subject: Subject,
    identity: str,
    model: Classifier,
    optimizer: torch.optim.Optimizer,
    step: int,
    losses: list[float],
) -> None:
    """Write the state after ``step`` updates, without the weights of a frozen encoder."""
    subject.checkpoint(
        {
            "training": identity,
            "step": step,
            "weights": {name: weight.detach() for name, weight in trained(model)},
            "optimizer": optimizer.state_dict(),
            "losses": losses,
        }
    )


@torch.no_grad()
def resume(
    subject: Subject, identity: str, model: Classifier, optimizer: torch.optim.Optimizer
) -> tuple[int, list[float]]:
    """Restore model and optimizer; returns the number of updates done and the epochs' losses.

    Without a checkpoint of this training these are 0 and none: an evaluation may train several
    classifiers one after the other, and the checkpoint of another one is ignored.
    """
    state = subject.resume()
    if state is None or state.get("training") != identity:
        return 0, []
    for name, weight in trained(model):
        weight.copy_(state["weights"][name])
    optimizer.load_state_dict(state["optimizer"])
    return state["step"], state["losses"]


@torch.no_grad()
def classify(
    config: TrainingConfig, subject: Subject, model: Classifier, split: str, numbers: Tensor
) -> Tensor:
    """Class numbers, int64, that the model predicts for the images ``numbers`` of a split."""
    device = next(model.parameters()).device
    model.eval()
    views = EvaluationViews(
        subject.images(split), model.encoder.config.image_size, subject.index.view
    )
    batches = evaluation_batches(
        Subset(views, numbers.tolist()),
        -(-config.batch_size // config.accumulate),
        config.num_workers,
    )
    vit = model.encoder.config
    # The empty one is for no images.
    predictions = [torch.empty(0, dtype=torch.int64, device=device)]
    for images_BHWC in tqdm(batches, desc=f"classify {split}", unit="batch", mininterval=2):
        with precision(config.precision, device):
            logits = model(normalise(placed(images_BHWC, device), vit.mean, vit.std))
        predictions.append(logits.argmax(1))
    return torch.cat(predictions).cpu()
