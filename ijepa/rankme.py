"""Effective rank of features, which falls when a representation collapses."""

import torch
from torch import Tensor


def rankme(singular_values: Tensor) -> Tensor:
    """Exponential of the entropy of singular values [..., D]: 1 for one direction, at most D.

    Garrido et al., "RankMe: Assessing the Downstream Performance of Pretrained Self-Supervised
    Representations by Their Rank", ICML 2023, https://arxiv.org/abs/2210.02885, equations 1 and 2.
    """
    p = singular_values / singular_values.sum(-1, keepdim=True) + 1e-7
    return torch.exp(-(p * p.log()).sum(-1))
