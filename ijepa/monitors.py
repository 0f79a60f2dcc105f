"""Monitors of a training: whether features collapse, and whether they tell classes apart.

They look at images of the training split, never at the test split, draw no random numbers and leave
the weights alone: what is learned is the same with and without them.

Shape suffixes: B images, C channels, H rows of pixels, W columns of pixels, D features, K classes.
"""

import math
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from ijepa.architecture import ViTConfig
from ijepa.data.loader import EvaluationViews, Images, evaluation_batches
from ijepa.data.transforms import normalise
from ijepa.precision import precision
from ijepa.rankme import rankme
from ijepa.vit import ViT

NUM_MONITORED = 512
"""Images whose features are watched."""
AT_ONCE = 64
"""Images in one pass: all at once would take 20 GB of a ViT-H at 448 pixels, beside training."""
HELD_OUT = 4
"""One of so many watched images is held out, and the others classify it."""
NEIGHBOURS, TEMPERATURE = 20, 0.07
"""Settings of k-NN, those of DINO (Caron et al., ICCV 2021)."""
RIDGE = 0.1
"""Weight of the linear head's penalty, by image."""
RANK, DEVIATION = 2.0, 0.02
"""RankMe and deviation of features below which they have collapsed."""
CAUSES = (
    "usual causes are a learning rate too high, a moving average that follows too fast, or targets "
    "without normalisation (docs/troubleshooting.md)"
)


class Monitored(NamedTuple):
    """Images in the evaluation view [B, C, H, W], and their class numbers [B] if there are any."""

    images_BCHW: Tensor
    classes_B: Tensor | None

    def to(self, device: torch.device) -> "Monitored":
        """Copy on a device."""
        return Monitored(self.images_BCHW.to(device), self.classes_B)


def monitored(images: Images, vit: ViTConfig, label: str = "class") -> Monitored:
    """Training images, spread evenly over all, which may lie in the order of their classes."""
    count = min(NUM_MONITORED, len(images))
    numbers = [i * len(images) // count for i in range(count)]
    views = torch.utils.data.Subset(EvaluationViews(images, vit.image_size), numbers)
    pixels = normalise(next(iter(evaluation_batches(views, count, 0))), vit.mean, vit.std)
    classes = images.labels.get(label)
    return Monitored(pixels, None if classes is None else torch.from_numpy(classes[numbers]).long())


@torch.no_grad()
def measure(encoder: ViT, watched: Monitored, setting: str) -> dict[str, float]:
    """Numbers that show how a training goes, from features averaged over patches.

    ``feature_std`` is the standard deviation over images, averaged over features; for ``rankme``
    see ijepa.rankme. ``knn_top1`` and ``linear_top1`` are shares of the held-out images that the
    others classify.
    """
    mode = encoder.training
    encoder.eval()
    with precision(setting, watched.images_BCHW.device):
        parts = watched.images_BCHW.split(AT_ONCE)
        pooled_BD = torch.cat([encoder.patches(encoder(part)).float().mean(1) for part in parts])
    encoder.train(mode)
    names = ["feature_std", "rankme"]
    if not pooled_BD.isfinite().all():  # the check of the next step's loss reports it
        return dict.fromkeys(names, math.nan)
    values = [pooled_BD.std(0).mean().item(), rankme(torch.linalg.svdvals(pooled_BD)).item()]
    numbers = dict(zip(names, values, strict=True))
    if watched.classes_B is not None and len(pooled_BD) > HELD_OUT:
        numbers |= told_apart(pooled_BD.cpu(), watched.classes_B)
    return numbers


def told_apart(pooled_BD: Tensor, classes_B: Tensor) -> dict[str, float]:
    """Top-1 of k-NN and of a linear head on the images that are held out."""
    held_out = torch.arange(len(pooled_BD)) % HELD_OUT == HELD_OUT - 1
    targets_BK = F.one_hot(classes_B).float()
    targets, classes = targets_BK[~held_out], classes_B[held_out]
    scores = {
        "knn_top1": neighbours(pooled_BD[~held_out], targets, pooled_BD[held_out]),
        "linear_top1": linear(pooled_BD[~held_out], targets, pooled_BD[held_out]),
    }
    return {name: (s.argmax(1) == classes).float().mean().item() for name, s in scores.items()}


def neighbours(known_BD: Tensor, targets_BK: Tensor, asked_BD: Tensor) -> Tensor:
    """Votes [B, K] of the nearest known images, by exp(cosine similarity / temperature)."""
    similarity = F.normalize(asked_BD, dim=1) @ F.normalize(known_BD, dim=1).T
    nearest = similarity.topk(min(NEIGHBOURS, len(known_BD)), dim=1)
    weights = (nearest.values / TEMPERATURE).exp()
    return (weights.unsqueeze(-1) * targets_BK[nearest.indices]).sum(1)


def linear(known_BD: Tensor, targets_BK: Tensor, asked_BD: Tensor) -> Tensor:
    """Scores [B, K] of a ridge regression on standardised features: a head in closed form."""
    mean, std = known_BD.mean(0), known_BD.std(0) + 1e-6
    x = ((known_BD - mean) / std).double()
    gram = x.T @ x + RIDGE * len(x) * torch.eye(x.shape[1], dtype=torch.float64)
    head = torch.linalg.solve(gram, x.T @ (targets_BK - targets_BK.mean(0)).double())
    scores_BK: Tensor = ((asked_BD - mean) / std).double() @ head + targets_BK.mean(0)
    return scores_BK


def warning(numbers: dict[str, float]) -> str:
    """Sentence on a collapse that the numbers show; empty if they show none."""
    if numbers["rankme"] < RANK or numbers["feature_std"] < DEVIATION:
        return (
            f"warning: the features collapse (RankMe {numbers['rankme']:.1f}, deviation over "
            f"images {numbers['feature_std']:.3f}): {CAUSES}"
        )
    return ""
