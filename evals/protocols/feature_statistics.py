"""RankMe of frozen features, and signs of collapse: the part of their space that they use.

Garrido et al., "RankMe: Assessing the Downstream Performance of Pretrained Self-Supervised
Representations by Their Rank", ICML 2023, https://arxiv.org/abs/2210.02885. Labels play no part.

Shape suffixes: N images, D features, R resamples.
"""

from dataclasses import dataclass
from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor
from torch.nn import functional as F

from evals.pooling import Pooled
from evals.protocol import Uses
from evals.protocols.logistic_regression import features
from evals.result import Result
from evals.subject import Subject
from ijepa.errors import UserError
from ijepa.randomness import generator
from ijepa.ranges import NotNegativeInt
from ijepa.rankme import rankme

USES: tuple[Uses, ...] = ("features",)

DEAD = 1e-6
"""A feature is dead if its standard deviation is below this share of the mean one."""


@dataclass(frozen=True)
class Config(Pooled):
    """Number of training ``images`` to draw, by default the paper's (section 3).

    ``resamples`` bootstrap samples of them give the interval.
    """

    images: Annotated[int, Field(ge=2)] = 25_600
    resamples: Annotated[int, Field(ge=40)] = 1000
    seed: NotNegativeInt = 0


def evaluate(config: Config, subject: Subject) -> Result:
    """RankMe of the features of training images; other statistics are in ``chosen``.

    ``n`` is the number of images. ``feature_std`` is a mean over features, ``norm`` a mean over
    images, ``dead_features`` a share of features, ``cosine`` a mean over all pairs of images.
    """
    count = len(subject.labels("train"))
    order = torch.randperm(count, generator=generator(config.seed, "feature_statistics"))
    x_ND = features(config, subject, "train", order[: config.images].sort().values)
    if len(x_ND) < 2 or not x_ND.any():
        raise UserError(
            f"{len(x_ND)} training images, with features that are {x_ND.unique().tolist()[:1]}: "
            "statistics need two images or more, and features that are not all 0"
        )
    n = len(x_ND)
    std_D = x_ND.std(0)
    value, interval = rank(x_ND, config)
    statistics = {
        "feature_std": std_D.mean().item(),
        "norm": x_ND.norm(dim=1).mean().item(),
        "dead_features": (std_D <= DEAD * std_D.mean()).float().mean().item(),
        "cosine": ((F.normalize(x_ND).sum(0).square().sum().item() - n) / (n * (n - 1))),
    }
    return Result("rankme", value, n, interval, statistics)


def rank(x_ND: Tensor, config: Config) -> tuple[float, tuple[float, float]]:
    """RankMe, and its 95 % interval by the percentiles of a bootstrap over images.

    A resample keeps the principal directions of all images; only the extent of its own images along
    each direction is computed anew. A third of the images are missing from a resample, so
    with directions of its own its rank would be too low: 600 images with 192 features have a RankMe
    of 95.1, fresh samples of the same size 95.2, resamples with their own directions 86.8 (mean),
    and resamples with the kept directions 95.1. Keeping them also takes one decomposition instead
    of hundreds: 1 s for 512 features.
    """
    u_NK, singular_K, _ = torch.linalg.svd(x_ND, full_matrices=False)
    random = generator(config.seed, "feature_statistics", "bootstrap")
    times_RN = torch.stack(
        [
            torch.randint(len(x_ND), (len(x_ND),), generator=random).bincount(minlength=len(x_ND))
            for _ in range(config.resamples)
        ]
    )
    resampled_RK = (times_RN.float() @ u_NK.square()).sqrt() * singular_K
    ends = torch.tensor([0.025, 0.975])
    low, high = rankme(resampled_RK).quantile(ends).tolist()
    return rankme(singular_K).item(), (low, high)
