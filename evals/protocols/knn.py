"""Weighted k-nearest-neighbour classification on frozen features.

Wu et al., "Unsupervised Feature Learning via Non-Parametric Instance Discrimination", CVPR 2018,
https://arxiv.org/abs/1805.01978, with the settings of DINO (Caron et al., ICCV 2021; eval_knn).
DINO tries 10, 20, 100 and 200 neighbours and prints the best on the test images; 20 are best in its
paper. Here the preset ``dino`` chooses their number on training images, each of which is classified
by all others.

Shape suffixes: N training images, M of them in a chunk, Q query images, B of them in a chunk, K
neighbours, D features, C classes.
"""

from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor
from torch.nn import functional as F
from tqdm import tqdm

from evals.pooling import Pooled
from evals.protocol import Uses
from evals.result import Result, top1
from evals.subject import Subject, checked_labels, finite
from ijepa.randomness import generator
from ijepa.ranges import Count, Positive
from ijepa.transfer import first_device, placed

USES: tuple[Uses, ...] = ("features",)

QUERY_CHUNK, TRAIN_CHUNK = 1024, 32_768
"""Query and training images compared at a time: 128 MiB of similarities for any data set."""


@dataclass(frozen=True)
class Config(Pooled):
    """Settings. Defaults are DINO's.

    With ``candidates``, ``num_neighbours`` is chosen among them on up to ``selection_images``
    training images, or, with ``chosen_on: test``, on the test images, as DINO does; tables mark
    such numbers.
    """

    num_neighbours: Count = 20
    candidates: tuple[Count, ...] = ()
    temperature: Positive = 0.07
    chosen_on: Literal["held_out", "test"] = "held_out"
    selection_images: Count = 10_000

    @property
    def choices(self) -> tuple[int, ...]:
        """Numbers of neighbours to choose from."""
        return self.candidates or (self.num_neighbours,)


PRESETS: dict[str, dict[str, Any]] = {"dino": {"candidates": (10, 20, 100, 200)}}


def evaluate(config: Config, subject: Subject) -> Result:
    """Top-1 of a vote of the nearest training images, by exp(cosine similarity / temperature)."""
    train_y, query_y = (checked_labels(subject, split) for split in ("train", "test"))
    train_ND, query_QD = (
        subject.features(split, config.pool, config.layers).flatten(1)
        for split in ("train", "test")
    )
    choices, chosen = config.choices, {"num_neighbours": config.choices[0]}
    if len(choices) > 1 and config.chosen_on != "test":
        order = torch.randperm(len(train_y), generator=generator("knn", "selection"))
        selection = order[: config.selection_images].sort().values
        nearest = neighbours(train_ND, train_ND[selection], max(choices) + 1, own=selection)
        votes = classes(config, nearest, train_y, subject.num_classes)
        chosen = choice({k: y_Q == train_y[selection] for k, y_Q in votes.items()}, "held_out")
        choices = (chosen["num_neighbours"],)
    nearest = neighbours(train_ND, query_QD, max(choices))
    votes = classes(config, nearest, train_y, subject.num_classes, choices)
    if len(choices) > 1:
        chosen = choice({k: y_Q == query_y for k, y_Q in votes.items()}, "test")
    return top1(votes[chosen["num_neighbours"]], query_y, subject.num_classes, chosen)


def choice(correct: dict[int, Tensor], chosen_on: str) -> dict[str, Any]:
    """Number of neighbours that is right most often, the first of equals, and all their top-1."""
    shares = {k: right.float().mean().item() for k, right in correct.items()}
    return {
        "num_neighbours": max(shares, key=lambda k: shares[k]),
        "chosen_on": chosen_on,
        f"{chosen_on}_top1": {str(k): round(share, 4) for k, share in shares.items()},
    }


def classes(
    config: Config,
    nearest: list[tuple[Tensor, Tensor]],
    train_y: Tensor,
    num_classes: int,
    choices: tuple[int, ...] | None = None,
) -> dict[int, Tensor]:
    """Class that the nearest images vote for, [Q] int64, by the number of neighbours that vote."""
    predicted: dict[int, list[Tensor]] = {k: [] for k in choices or config.choices}
    for similarity_BK, index_BK in nearest:
        weight_BK = (similarity_BK / config.temperature).exp()
        for k, parts in predicted.items():
            votes_BC = weight_BK.new_zeros(len(weight_BK), num_classes)
            votes_BC.scatter_add_(1, train_y[index_BK[:, :k]], weight_BK[:, :k])
            parts.append(votes_BC.argmax(1))
    return {k: torch.cat(parts) for k, parts in predicted.items()}


def neighbours(
    train_ND: Tensor, query_QD: Tensor, k: int, own: Tensor | None = None
) -> list[tuple[Tensor, Tensor]]:
    """Cosine similarities and indices [B, K] of the ``k`` nearest training images, by chunk of Q.

    The training features may be memory-mapped, in any floating-point format. They are read once, in
    order, and only one chunk is held as float32 at a time. If there are fewer than ``k``, all of
    them are neighbours. ``own`` [Q] are the numbers of the queries among the training images, which
    are then no neighbours of themselves.
    """
    device = first_device()
    queries = unit(query_QD.to(device)).split(QUERY_CHUNK)
    similarities = [chunk.new_empty(len(chunk), 0) for chunk in queries]
    indices = [chunk.new_empty(len(chunk), 0, dtype=torch.int64) for chunk in queries]
    starts = range(0, len(train_ND), TRAIN_CHUNK)
    for start in tqdm(starts, desc="neighbours", unit="chunk", mininterval=2, delay=2):
        train_MD = unit(train_ND[start : start + TRAIN_CHUNK].to(device))
        for number, query_BD in enumerate(queries):
            similarity_BM = query_BD @ train_MD.T
            if own is not None:
                own_B = own[number * QUERY_CHUNK : number * QUERY_CHUNK + len(query_BD)] - start
                here = ((own_B >= 0) & (own_B < len(train_MD))).nonzero().flatten()
                similarity_BM[placed(here, device), placed(own_B[here], device)] = -torch.inf
            # Keep the nearest of this chunk's nearest and of the nearest so far.
            top = similarity_BM.topk(min(k, len(train_MD)), dim=1)
            values = torch.cat([similarities[number], top.values], 1)
            positions = torch.cat([indices[number], top.indices + start], 1)
            best = values.topk(min(k, values.shape[1]), dim=1)
            similarities[number] = best.values
            indices[number] = positions.gather(1, best.indices)
    return [(s.cpu(), i.cpu()) for s, i in zip(similarities, indices, strict=True)]


def unit(x_ND: Tensor) -> Tensor:
    """Rows scaled to length 1, float32; raises UserError if a feature is not finite."""
    return F.normalize(finite(x_ND.float()), dim=1)
