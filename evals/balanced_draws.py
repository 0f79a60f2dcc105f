"""Class-balanced draws of labelled images.

Shape suffixes: N images, C classes.
"""

import torch
from torch import Tensor

from ijepa.errors import UserError


def draw(y_N: Tensor, wanted_C: Tensor, random: torch.Generator, label: str) -> Tensor:
    """Numbers, in order, of ``wanted_C`` images of each class, all of a class equally likely.

    A draw is part of every larger one of the same generator. Raises UserError that names the first
    class with fewer images; ``label`` is the kind of label.
    """
    count_C = y_N.bincount(minlength=len(wanted_C))
    if len(short := (count_C < wanted_C).nonzero().flatten()):
        c = int(short[0])
        raise UserError(
            f"class {c} of {label} has {count_C[c]} training images, {wanted_C[c]} are asked for: "
            "make per_class smaller, or leave more training images"
        )
    order = torch.randperm(len(y_N), generator=random)
    return order[index_in_class(y_N[order]) < wanted_C[y_N[order]]].sort().values


def index_in_class(y_N: Tensor) -> Tensor:
    """Number of images of the same class before each image, [N] int64."""
    order = y_N.argsort(stable=True)
    ends = y_N.bincount().cumsum(0)
    index_N = torch.empty_like(order)
    index_N[order] = torch.arange(len(y_N)) - (ends - y_N.bincount())[y_N[order]]
    return index_N
