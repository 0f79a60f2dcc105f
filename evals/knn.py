"""Weighted k-nearest-neighbour classification on frozen features.

Wu et al., "Unsupervised Feature Learning via Non-Parametric Instance Discrimination", CVPR 2018,
https://arxiv.org/abs/1805.01978, with the settings of DINO (Caron et al., ICCV 2021).

Shape suffixes: B test images, K neighbours, C classes.
"""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from evals import Features, Result

CHUNK = 1024
"""Test images compared at a time: the similarities to 1.28 million images then take 5 GB."""


@dataclass(frozen=True)
class Config:
    """Defaults are DINO's."""

    num_neighbours: int = 20
    temperature: float = 0.07

    def __post_init__(self) -> None:
        if self.num_neighbours < 1:
            raise ValueError(f"num_neighbours is {self.num_neighbours}: it must be at least 1")
        if not self.temperature > 0:
            raise ValueError(f"temperature is {self.temperature}: it must be above 0")


def evaluate(config: Config, train: Features, test: Features) -> Result:
    """Let the nearest training images vote, each by exp(cosine similarity / temperature)."""
    num_classes = int(train.y.max()) + 1
    predictions = []
    for similarity_BK, index_BK in neighbours(train.x, test.x, config.num_neighbours):
        weight_BK = (similarity_BK / config.temperature).exp()
        votes_BC = weight_BK.new_zeros(len(weight_BK), num_classes)
        predictions.append(votes_BC.scatter_add_(1, train.y[index_BK], weight_BK).argmax(1))
    return Result(torch.cat(predictions) == test.y, {})


def neighbours(train_x: Tensor, test_x: Tensor, k: int) -> list[tuple[Tensor, Tensor]]:
    """Cosine similarities and indices of the ``k`` nearest training images, chunk by chunk."""
    train_unit = F.normalize(train_x, dim=1)
    nearest = []
    for chunk in F.normalize(test_x, dim=1).split(CHUNK):
        top = (chunk @ train_unit.T).topk(min(k, len(train_x)), dim=1)
        nearest.append((top.values, top.indices))
    return nearest
