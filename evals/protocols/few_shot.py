"""Classification from a few images of each class, or from all, averaged over several draws.

Balestriero and LeCun, "LeJEPA", arXiv:2511.08544, compare I-JEPA and LeJEPA so, with 1, 10 and all
images of each class of eight data sets. There are two heads on frozen features:

- ``logistic``, this project's: logistic regression, solved to its optimum (logistic_regression).
  Training images outside the draw, up to 5,000, choose its penalty. Where none are left, a fifth of
  each class of the draw does. The test images choose nothing.
- ``linear``, that of LeJEPA's README: LayerNorm and a linear layer, by AdamW. There is one head and
  no choice. The README gives the layers, the optimiser, its weight decay and the shape of the
  schedule. Rate, epochs and batch are ours: at the rate of its pretraining, 5e-4, a head of one
  image a class, with one update an epoch, hardly leaves its random initial weights.

Both read the last two layers, one after the other: [cls], or the patches' average of encoders
without it (README). Features are those of whole images, without augmentation.

Shape suffixes: N images, R draws, C classes, D features.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from statistics import NormalDist
from typing import Any, Literal

import torch
from scipy.special import stdtrit
from torch import Tensor, nn
from torch.nn import functional as F
from tqdm import tqdm

from evals.balanced_draws import draw
from evals.pooling import Pooled
from evals.protocol import Facts, Uses
from evals.protocols.logistic_regression import Config as LogisticRegression
from evals.protocols.logistic_regression import check_memory, features, fit
from evals.protocols.low_shot import outside
from evals.result import Result, top1
from evals.subject import Subject, checked_labels
from ijepa.optim import cosine
from ijepa.randomness import generator
from ijepa.ranges import Count, NotNegative, NotNegativeInt, Positive
from ijepa.transfer import first_device

USES: tuple[Uses, ...] = ("features",)

CHUNK = 4096
"""Test images that a linear head classifies at a time."""


@dataclass(frozen=True)
class Linear:
    """Settings of the head ``linear``.

    The rate rises from a hundredth of ``lr`` over the first epoch, then falls to a thousandth along
    a cosine (README). An epoch's last batch may be smaller.
    """

    lr: Positive = 5e-3
    weight_decay: NotNegative = 1e-6
    epochs: Count = 100
    batch_size: Count = 256


@dataclass(frozen=True)
class Config(Pooled):
    """Settings.

    Args:
        layers: Number of last layers whose features are concatenated; 2, also where it is written
            out, takes all of a network with one.
        per_class: Number of images of each class; all images if it is left out.
        draws: Number of draws of these images. Of all images there is one.
        seed: Seed of the draws, and of a linear head's initial weights and batches.
        head: ``logistic`` or ``linear``.
        logistic: Its settings, of which ``pool`` and ``layers`` are this config's.
        linear: Its settings.
    """

    layers: Count = 2
    per_class: Count | None = None
    draws: Count = 10
    seed: NotNegativeInt = 0
    head: Literal["logistic", "linear"] = "logistic"
    logistic: LogisticRegression = field(
        default_factory=lambda: LogisticRegression(
            penalties=(1.0, 0.1, 1e-2, 1e-3, 1e-4, 1e-5, 1e-6)
        )
    )
    linear: Linear = field(default_factory=Linear)

    def __post_init__(self) -> None:
        if (self.logistic.pool, self.logistic.layers) != (None, 1):
            raise ValueError("logistic.pool and logistic.layers: give pool and layers beside it")
        if self.per_class is None:
            object.__setattr__(self, "draws", 1)


PRESETS: dict[str, dict[str, Any]] = {
    f"lejepa_{name}": {"head": "linear", "per_class": per_class}
    for name, per_class in (("1", 1), ("10", 10), ("all", None))
}

Predict = Callable[[Tensor], Tensor]
"""Class numbers, [N] int64, from features [N, D]."""


def check(config: Config, facts: Facts) -> None:
    """Raise ValueError for classes that are too small."""
    facts.check_per_class(config.per_class)


def evaluate(config: Config, subject: Subject) -> Result:
    """Mean top-1 over the draws, with each draw's value and choices in ``chosen``."""
    y, test_y = (checked_labels(subject, split) for split in ("train", "test"))
    draws = [drawn(config, subject, y, number) for number in range(config.draws)]
    x_ND, test_ND = (features(config, subject, split) for split in ("train", "test"))
    predictions, records = [], []
    for number, numbers in enumerate(tqdm(draws, desc="draws", mininterval=2, delay=2)):
        if config.head == "linear":
            key = (config.seed, number)
            linear = train(config.linear, x_ND[numbers], y[numbers], subject.num_classes, key)
            predict, choices = linear, dict[str, Any]()
        else:
            predict, choices = choose(config, subject, x_ND, y, numbers)
        predictions.append(predict(test_ND))
        value = (predictions[-1] == test_y).double().mean().item()
        records.append({"value": round(value, 5), **choices})
    chosen = {"training_images": len(draws[0]), "draws": records}
    if len(draws) == 1:
        return top1(predictions[0], test_y, subject.num_classes, chosen)
    return averaged(torch.stack(predictions) == test_y, chosen)


def drawn(config: Config, subject: Subject, y_N: Tensor, number: int) -> Tensor:
    """Numbers of the training images of a draw, in order.

    Raises UserError for a class without images, or with fewer than are asked for.
    """
    per_class = config.per_class or 1
    wanted_C = torch.full((subject.num_classes,), per_class)
    random = generator("few_shot", config.seed, number)
    numbers = draw(y_N, wanted_C, random, f"{subject.label} in {subject.data}")
    return numbers if config.per_class else torch.arange(len(y_N))


def choose(
    config: Config, subject: Subject, x_ND: Tensor, y_N: Tensor, numbers: Tensor
) -> tuple[Predict, dict[str, Any]]:
    """Logistic head of a draw, whose penalty training images outside the draw choose."""
    held_out = outside(numbers, len(y_N), config.seed)
    check_memory(x_ND.shape[1], y_N[numbers], subject.num_classes)
    pair = (x_ND[held_out], y_N[held_out]) if len(held_out) else None
    head = fit(config.logistic, x_ND[numbers], y_N[numbers], pair)
    return head.predict, {**head.chosen, "held_out_images_outside": len(held_out)}


def train(
    config: Linear, x_ND: Tensor, y_N: Tensor, num_classes: int, key: tuple[int, int]
) -> Predict:
    """Linear head of a draw, trained on all its images; ``key`` gives weights and batches."""
    device = first_device()
    head = new_head(x_ND.shape[1], num_classes, generator("few_shot", *key, "head")).to(device)
    optimizer = torch.optim.AdamW(head.parameters(), config.lr, weight_decay=config.weight_decay)
    x_ND, y_N = x_ND.to(device), y_N.to(device)
    steps = math.ceil(len(y_N) / config.batch_size)
    for epoch in range(config.epochs):
        order = torch.randperm(len(y_N), generator=generator("few_shot", *key, "order", epoch))
        for step, batch in enumerate(order.to(device).split(config.batch_size)):
            for group in optimizer.param_groups:
                group["lr"] = config.lr * factor(epoch + step / steps, config.epochs)
            F.cross_entropy(head(x_ND[batch]), y_N[batch]).backward()
            optimizer.step()
            optimizer.zero_grad()

    @torch.no_grad()
    def predict(test_ND: Tensor) -> Tensor:
        return torch.cat([head(x.to(device)).argmax(1).cpu() for x in test_ND.split(CHUNK)])

    return predict


def new_head(dim: int, num_classes: int, random: torch.Generator) -> nn.Module:
    """LayerNorm and a linear layer, with nn.Linear's own distribution of weights."""
    linear = nn.Linear(dim, num_classes)
    for parameter in linear.parameters():
        nn.init.uniform_(parameter, -(dim**-0.5), dim**-0.5, generator=random)
    return nn.Sequential(nn.LayerNorm(dim), linear)


def factor(epoch: float, epochs: int) -> float:
    """Factor of the rate at a part of an epoch, counted from 0."""
    if epoch < 1:
        return 0.01 + 0.99 * epoch
    return cosine(1.0, 1e-3, (epoch - 1) / max(epochs - 1, 1))


def averaged(correct_RN: Tensor, chosen: dict[str, Any]) -> Result:
    """Mean top-1 of several draws on the same test images, with its 95 % interval.

    Both the draws and the test images are samples. The interval adds the variance of the mean over
    draws (Student's t) to that over test images (normal), as in a two-way random-effects model;
    what both share is counted twice, so that it is rather too wide than too narrow. Two right and
    two wrong images are added (Agresti and Coull, 1998): few images, all right, vary too little.
    There are no bits of single images: an image has as many answers as there are draws.
    """
    draws, n = correct_RN.shape
    value_R, share_N = correct_RN.double().mean(1), correct_RN.double().mean(0)
    share_N = torch.cat([share_N, torch.tensor([0.0, 0.0, 1.0, 1.0], dtype=torch.float64)])
    value = int(correct_RN.sum()) / (draws * n)
    of_draws = stdtrit(draws - 1, 0.975) ** 2 * value_R.var().item() / draws
    of_images = NormalDist().inv_cdf(0.975) ** 2 * share_N.var(correction=0).item() / len(share_N)
    middle, half = share_N.mean().item(), math.sqrt(of_draws + of_images)
    low, high = min(value, max(middle - half, 0.0)), max(value, min(middle + half, 1.0))
    chosen = {**chosen, "std_over_draws": round(value_R.std().item(), 5)}
    return Result("top1", value, n, (low, high), chosen)
