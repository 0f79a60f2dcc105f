"""Batches of pooled features with their labels, for heads that are trained on a frozen encoder.

The features are either stored ones, or the encoder computes them from images, of which it then sees
other augmented views in every epoch.

Shape suffixes: B images, L layers, shallow to deep, N patches of the grid, D features, C channels,
H and W pixels.
"""

from collections import deque
from collections.abc import Iterable, Iterator
from itertools import cycle
from typing import TYPE_CHECKING, Protocol

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Subset

from evals.pooling import Pool, parts
from evals.replicas import replicas
from evals.subject import Subject, finite
from ijepa.data.loader import (
    EvaluationViews,
    TrainingViews,
    View,
    evaluation_batches,
    fitting,
    gather,
)
from ijepa.data.transforms import Crop, normalised
from ijepa.errors import UserError
from ijepa.precision import precision
from ijepa.randomness import generator
from ijepa.transfer import placed

if TYPE_CHECKING:
    from ijepa.vit import ViT

CHUNK = 128
"""Images of a forward pass, whatever the batch: 128 fit a processor's cache, a third faster on 2
cores than 500, and one of 16384 would fit no memory."""

HELD_BYTES = 2 * 10**9
"""Stored features smaller than this, as float32, are held in memory; others are read by batch."""


def inputs(network: "ViT", images_BHWC: Tensor) -> Tensor:
    """Images as a network takes them, [B, C, H, W], normalised, on its device."""
    return normalised(images_BHWC, network.config, network.patch_embed.proj.weight.device)


@torch.no_grad()
def pooled(network: "ViT", images_BCHW: Tensor, layers: int, pool: Pool) -> Tensor:
    """Pooled features after each of the last ``layers`` blocks, [B, L, D] float32.

    With ``cls_patches`` they are 2 D wide, [cls] first. The final LayerNorm is applied to each
    block's output before averaging (I-JEPA, section A.2, as VISSL does it). A network with fewer
    blocks gives the features of all of them. They may be infinite or no numbers: callers check.
    """
    with precision("auto", images_BCHW.device):
        outputs = network.outputs(images_BCHW)
        next(outputs)  # the embeddings
        last = deque(outputs, maxlen=layers)
        x_BLD = torch.stack([pool_tokens(network, network.norm(x).float(), pool) for x in last], 1)
    return x_BLD


@torch.no_grad()
def patch_features(network: "ViT", images_BCHW: Tensor) -> Tensor:
    """Features of every patch after the final LayerNorm, without [cls], [B, N, D] float32."""
    with precision("auto", images_BCHW.device):
        x_BND = network.patches(network(images_BCHW)).float()
    return finite(x_BND)


def pool_tokens(network: "ViT", tokens_BTD: Tensor, pool: Pool) -> Tensor:
    """Pooled features of one layer, [B, D], or [B, 2 D] with [cls] first."""
    features = {"cls": tokens_BTD[:, 0], "patches": network.patches(tokens_BTD).mean(1)}
    return torch.cat([features[part] for part in parts(pool)], 1)


def epoch_batches(numbers: Tensor, batch_size: int, seed: int, epoch: int) -> list[Tensor]:
    """Image numbers of each batch of an epoch, which has its own order of ``numbers``.

    The remainder that does not fill a batch is left out, as in pretraining.
    """
    order = torch.randperm(len(numbers), generator=generator(seed, "order", epoch))
    return list(numbers[order[: len(order) // batch_size * batch_size]].split(batch_size))


class Source(Protocol):
    """Source of features [B, L, D] float32 and labels [B], on the device given to it."""

    num_layers: int
    dim: int

    def training(self, batches: list[Tensor], epoch: int) -> Iterator[tuple[Tensor, Tensor]]:
        """Features and labels of each batch; a batch is given as numbers of training images."""

    def evaluation(self, split: str, numbers: Tensor) -> Iterator[Tensor]:
        """Features of these images of a split, in order, some at a time."""


class Stored:
    """Features that were extracted once: every epoch sees the same, those of the whole image.

    Raises UserError at once if one of them is not finite.
    """

    def __init__(self, subject: Subject, layers: int, pool: Pool, device: torch.device) -> None:
        self.features, self.labels, self.device = {}, {}, device
        for split in ("train", "test"):
            x_NLD = subject.features(split, pool, layers)
            for first, chunk in enumerate(x_NLD.split(4096)):
                if len(bad := (~chunk.isfinite()).flatten(1).any(1).nonzero()):
                    raise UserError(
                        f"the features of {split} image {first * 4096 + int(bad[0])} are not "
                        "finite: its encoder is damaged or diverged"
                    )
            if x_NLD.numel() * 4 < HELD_BYTES:
                x_NLD = x_NLD.to(device, torch.float32)
            self.features[split], self.labels[split] = x_NLD, subject.labels(split).to(device)
        _, self.num_layers, self.dim = self.features["train"].shape

    def moments(self, numbers: Tensor) -> tuple[Tensor, Tensor]:
        """Mean [L D] and covariance [L D, L D] of the features of some training images, float64."""
        width = self.num_layers * self.dim
        total = torch.zeros(width, dtype=torch.float64, device=self.device)
        products = torch.zeros(width, width, dtype=torch.float64, device=self.device)
        middle = next(self._batches("train", [numbers[:1024]]))[0].flatten(1).mean(0)
        for x_BLD, _ in self._batches("train", numbers.split(4096)):
            # Centred products in float32, summed over batches in float64, lose no digits.
            x_BD = x_BLD.flatten(1) - middle
            total += x_BD.sum(0, dtype=torch.float64)
            products += x_BD.T @ x_BD
        mean = total / len(numbers)
        return mean + middle, products / len(numbers) - mean.outer(mean)

    def training(self, batches: list[Tensor], epoch: int) -> Iterator[tuple[Tensor, Tensor]]:
        """Features and labels of each batch, the same in every epoch."""
        return self._batches("train", batches)

    def evaluation(self, split: str, numbers: Tensor) -> Iterator[Tensor]:
        """Features of these images of a split, in order, some at a time."""
        return (x_BLD for x_BLD, _ in self._batches(split, numbers.split(1024)))

    def _batches(self, split: str, batches: Iterable[Tensor]) -> Iterator[tuple[Tensor, Tensor]]:
        features, labels = self.features[split], self.labels[split]
        for numbers in batches:
            x_BLD = features[placed(numbers, features.device)]
            yield placed(x_BLD, self.device).float(), labels[placed(numbers, self.device)]


class Encoded:
    """Features that the frozen encoder computes: training images are augmented, others are not.

    The view of a training image is a function of (seed, epoch, its number). All GPUs that the
    process sees have a copy of the encoder; their features come to ``device``, the first one.

    Both iterators raise UserError at their end if a feature was not finite. To ask after every
    batch would make the host wait for the device.
    """

    def __init__(
        self,
        subject: Subject,
        layers: int,
        pool: Pool,
        device: torch.device,
        crop: Crop,
        seed: int,
        num_workers: int,
        interpolation: str | None = None,
    ) -> None:
        self.subject, self.device, self.num_workers = subject, device, num_workers
        self.networks = replicas(subject.network(), device)
        self.turns = cycle(self.networks)
        self.network = self.networks[0]
        self.num_layers = min(layers, len(self.network.blocks))
        self.pool, self.interpolation = pool, interpolation or crop.interpolation
        self.dim = self.network.config.dim * len(parts(pool))
        self.size = self.network.config.image_size
        self.views = TrainingViews(subject.images("train"), [View(self.size, crop)], seed)
        self.are_finite = torch.ones((), dtype=torch.bool, device=device)

    def training(self, batches: list[Tensor], epoch: int) -> Iterator[tuple[Tensor, Tensor]]:
        """Features and labels of each batch, from the epoch's augmented views."""
        keys = [
            [(epoch, number) for number in chunk.tolist()]
            for numbers in batches
            for chunk in self._chunks(numbers)
        ]
        items = iter(
            DataLoader(
                self.views,
                batch_sampler=keys,
                num_workers=fitting(self.views, keys[0] if keys else [], self.num_workers),
                collate_fn=gather,
                pin_memory=self.device.type == "cuda",
            )
        )
        labels = self.subject.labels("train")
        for numbers in batches:
            parts = [self._encode(next(items).views[0]) for _ in self._chunks(numbers)]
            yield torch.cat(parts), placed(labels[numbers], self.device)
        self._check()

    def evaluation(self, split: str, numbers: Tensor) -> Iterator[Tensor]:
        """Features of the data set's evaluation views: centre crops or whole images."""
        views = EvaluationViews(
            self.subject.images(split), self.size, self.subject.index.view, self.interpolation
        )
        images = evaluation_batches(
            Subset(views, numbers.tolist()), CHUNK, num_workers=self.num_workers
        )
        yield from map(self._encode, images)
        self._check()

    def _chunks(self, numbers: Tensor) -> tuple[Tensor, ...]:
        """A batch in parts for one forward pass each, so small that every GPU has one."""
        chunks: tuple[Tensor, ...] = numbers.split(
            min(CHUNK, -(-len(numbers) // len(self.networks)))
        )
        return chunks

    def _encode(self, images_BHWC: Tensor) -> Tensor:
        network = next(self.turns)
        x_BLD = pooled(network, inputs(network, images_BHWC), self.num_layers, self.pool)
        x_BLD = x_BLD.to(self.device, non_blocking=True)
        self.are_finite &= x_BLD.isfinite().all()
        return x_BLD

    def _check(self) -> None:
        if not self.are_finite:
            raise UserError(
                "the encoder's features are not finite: its weights are damaged or diverged"
            )
