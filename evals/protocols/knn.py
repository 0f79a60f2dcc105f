"""Weighted k-nearest-neighbour classification on frozen features.

Wu et al., "Unsupervised Feature Learning via Non-Parametric Instance Discrimination", CVPR 2018,
https://arxiv.org/abs/1805.01978, with the settings of DINO (Caron et al., ICCV 2021).

Shape suffixes: N training images, Q query images, B of them in a chunk, K neighbours or images of a
chunk, D features, C classes.
"""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F
from tqdm import tqdm

from evals.protocol import Uses
from evals.result import Result, top1
from evals.subject import Subject, checked_labels, finite
from ijepa.ranges import Count, Positive

USES: tuple[Uses, ...] = ("features",)

ASKED, KNOWN = 1024, 32_768
"""Query and training images compared at a time: 128 MiB of similarities for any data set."""


@dataclass(frozen=True)
class Config:
    """Settings. Defaults are DINO's."""

    num_neighbours: Count = 20
    temperature: Positive = 0.07


def evaluate(config: Config, subject: Subject) -> Result:
    """Top-1 of a vote of the nearest training images, by exp(cosine similarity / temperature)."""
    train_y, query_y = (checked_labels(subject, split) for split in ("train", "test"))
    train_ND, query_QD = (subject.features(split)[:, -1] for split in ("train", "test"))
    predictions = []
    for similarity_BK, index_BK in neighbours(train_ND, query_QD, config.num_neighbours):
        weight_BK = (similarity_BK / config.temperature).exp()
        votes_BC = weight_BK.new_zeros(len(weight_BK), subject.num_classes)
        predictions.append(votes_BC.scatter_add_(1, train_y[index_BK], weight_BK).argmax(1))
    return top1(torch.cat(predictions), query_y, subject.num_classes, {})


def neighbours(train_ND: Tensor, query_QD: Tensor, k: int) -> list[tuple[Tensor, Tensor]]:
    """Cosine similarities and indices [B, K] of the ``k`` nearest training images, by chunk of Q.

    The training features may be memory-mapped, in any floating-point format. They are read once, in
    order, and only one chunk is held as float32 at a time. If there are fewer than ``k``, all of
    them are neighbours.
    """
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    queries = unit(query_QD.to(device)).split(ASKED)
    similarities = [chunk.new_empty(len(chunk), 0) for chunk in queries]
    indices = [chunk.new_empty(len(chunk), 0, dtype=torch.int64) for chunk in queries]
    starts = range(0, len(train_ND), KNOWN)
    for start in tqdm(starts, desc="neighbours", unit="chunk", mininterval=2, delay=2):
        train_KD = unit(train_ND[start : start + KNOWN].to(device))
        for number, query_BD in enumerate(queries):
            # Keep the nearest of this chunk's nearest and of the nearest so far.
            top = (query_BD @ train_KD.T).topk(min(k, len(train_KD)), dim=1)
            values = torch.cat([similarities[number], top.values], 1)
            positions = torch.cat([indices[number], top.indices + start], 1)
            best = values.topk(min(k, values.shape[1]), dim=1)
            similarities[number] = best.values
            indices[number] = positions.gather(1, best.indices)
    return [(s.cpu(), i.cpu()) for s, i in zip(similarities, indices, strict=True)]


def unit(x_ND: Tensor) -> Tensor:
    """Rows scaled to length 1, float32; raises UserError if a feature is not finite."""
    return F.normalize(finite(x_ND.float()), dim=1)
