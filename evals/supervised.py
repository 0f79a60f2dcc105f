"""Training of classifiers on augmented images, for fine-tuning and for attentive probes.

Shape suffixes: B images, C channels, H rows of pixels, W columns of pixels, L blocks, K classes,
H networks that learn from the same batches.
"""

import contextlib
import hashlib
import random
import time
from collections.abc import Callable, Iterator, Sequence
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

from evals import replicas
from evals.losses import Losses
from evals.subject import Subject, checked_labels
from ijepa.architecture import ViTConfig
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
from ijepa.transfer import first_device, placed
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
    config: TrainingConfig, subject: Subject, numbers: Tensor | None, learners: Learners, what: str
) -> list[dict[str, Any]]:
    """Train on training images; returns each network's batch size, rate and mean loss by epoch.

    The training goes on from the subject's checkpoint if that is of the same training, even a
    finished one. On a CPU, a training that was killed and went on ends bit-identical to an
    undisturbed one.

    A network whose loss is not finite does not change the others, and its losses are not finite
    from then on. Raises UserError once that is true of all.

    Args:
        config: The protocol.
        subject: The data, and the keeper of checkpoints.
        numbers: Numbers of the training images to use, None for all of them.
        learners: The networks; they are moved to the device.
        what: Name of the training, on the progress bar and in the identity of its checkpoint.
    """
    labels, _ = (checked_labels(subject, split) for split in ("train", "test"))
    numbers = torch.arange(len(labels)) if numbers is None else numbers
    batch_size = fitting_batch(config, subject, len(numbers))
    per_epoch = len(numbers) // batch_size
    num_steps = config.epochs * per_epoch

    device, vit = first_device(), learners.vit
    for learner in learners.all:
        learner.begin(config, batch_size, device)
    identity = hashlib.sha256(repr((what, config, numbers.tolist())).encode()).hexdigest()
    first, means_H = resume(subject, identity, learners.all)
    losses = Losses(means_H, per_epoch, what)

    views = LabelledViews(config, subject.images("train"), labels, numbers, vit.image_size)
    batches = loaded(views, Steps(len(numbers), batch_size, first, num_steps, config.seed))
    save_at = time.monotonic() + CHECKPOINT_SECONDS
    with tqdm(total=num_steps, initial=first, desc=what, unit="step", mininterval=2) as bar:
        for step, (images_BHWC, labels_B) in enumerate(batches, start=first):
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
            for part in zip(*(tensor.chunk(config.accumulate) for tensor in batch), strict=True):
                for gpu, (images, targets, coins) in enumerate(replicas.sent(device, *part)):
                    inputs = learners.inputs(gpu, config.precision, images, coins)
                    share = len(images) / batch_size
                    loss_H = descend(config, learners.networks(gpu), inputs, targets, share)
                    losses.add(step, share, loss_H.to(device, non_blocking=True))
            for learner in learners.all:
                learner.update(step, num_steps)

            bar.update()
            save = step + 1 == num_steps or time.monotonic() >= save_at
            if save or (step + 1) % LOSS_EVERY == 0:
                bar.set_postfix(loss=f"{losses.read():.4f}", refresh=False)
            if save:
                start = time.monotonic()
                checkpoint(subject, identity, learners.all, step + 1, means_H)
                duration = time.monotonic() - start
                save_at = start + duration + max(CHECKPOINT_SECONDS, duration / CHECKPOINT_SHARE)
    return [
        {
            "batch_size": batch_size,
            "lr": learner.optim.lr,
            "train_loss": [round(float(mean_H[number]), 4) for mean_H in means_H],
        }
        for number, learner in enumerate(learners.all)
    ]


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


def descend(
    config: TrainingConfig,
    networks: list[nn.Module],
    inputs: tuple[Tensor | None, ...],
    targets_BK: Tensor,
    share: float,
) -> Tensor:
    """Losses [H] of the networks; adds to each one's gradients, one after the other for memory.

    Losses are cross-entropies with soft targets, averaged over images.
    """

    def loss_of(network: nn.Module) -> dict[str, Tensor]:
        return {"loss": F.cross_entropy(network(*inputs).float(), targets_BK)}

    device = targets_BK.device
    losses = [
        gradients(partial(loss_of, network), share, config.precision, device)["loss"].detach()
        for network in networks
    ]
    return torch.stack(losses)


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
    subject: Subject, identity: str, learners: list[Learner], step: int, means_H: list[Tensor]
) -> None:
    """Write the state after ``step`` updates, without the weights of a frozen encoder."""
    subject.checkpoint(
        {
            "training": identity,
            "step": step,
            "networks": [learner.state() for learner in learners],
            "losses": means_H,
        }
    )


def resume(subject: Subject, identity: str, learners: list[Learner]) -> tuple[int, list[Tensor]]:
    """Restore the networks; returns the number of updates done and the epochs' losses.

    Without a checkpoint of this training these are 0 and none: an evaluation may train several
    classifiers one after the other, and the checkpoint of another one is ignored.
    """
    state = subject.resume()
    if state is None or state.get("training") != identity:
        return 0, []
    for learner, its_state in zip(learners, state["networks"], strict=True):
        learner.restore(its_state)
    return state["step"], state["losses"]


@torch.no_grad()
def classify(
    config: TrainingConfig, subject: Subject, learners: Learners, split: str, numbers: Tensor
) -> Tensor:
    """Classes, [H, B] int64, that the networks predict for the images ``numbers`` of a split."""
    device, vit = first_device(), learners.vit
    for learner in learners.all:
        for network in (learner.network, *learner.copies):
            network.eval()
    views = EvaluationViews(subject.images(split), vit.image_size, subject.index.view)
    batches = evaluation_batches(
        Subset(views, numbers.tolist()),
        -(-config.batch_size // config.accumulate),
        config.num_workers,
    )
    # The empty one is for no images.
    predictions = [torch.empty(len(learners.all), 0, dtype=torch.int64, device=device)]
    for images_BHWC in tqdm(batches, desc=f"classify {split}", unit="batch", mininterval=2):
        images_BCHW = normalise(placed(images_BHWC, device), vit.mean, vit.std)
        for gpu, (images,) in enumerate(replicas.sent(device, images_BCHW)):
            inputs = learners.inputs(gpu, config.precision, images)
            with precision(config.precision, device):
                classes = [network(*inputs).argmax(1) for network in learners.networks(gpu)]
            predictions.append(torch.stack(classes).to(device, non_blocking=True))
    return torch.cat(predictions, 1).cpu()
