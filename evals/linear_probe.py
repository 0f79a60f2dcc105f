"""Multinomial logistic regression on frozen, standardised features.

The paper trains its linear heads with SGD or LARS over augmented views (section A.2); on features
that are extracted once, the convex problem is solved outright (scikit-learn, L-BFGS) instead, after
a BatchNorm-like standardisation by the training images' statistics. The penalty is chosen on a part
of the training images, then the head is fitted again on all of them. The test images decide
nothing.
"""

import warnings
from dataclasses import dataclass

import torch
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression
from torch import Tensor

from evals import Features, Result
from ijepa.randomness import generator


@dataclass(frozen=True)
class Config:
    """``penalties`` weigh half the squared norm of the weights against the mean loss.

    One of them is chosen on ``selection_images`` of the training images, four fifths to fit and one
    to compare. ``tolerance`` bounds the largest element of the gradient at the end.
    """

    penalties: tuple[float, ...] = (1e-2, 1e-3, 1e-4)
    selection_images: int = 20_000
    max_iterations: int = 100
    tolerance: float = 1e-3

    def __post_init__(self) -> None:
        if self.selection_images < 10:
            raise ValueError(f"selection_images is {self.selection_images}: it must be at least 10")
        if self.max_iterations < 1 or not self.tolerance > 0:
            raise ValueError(
                f"max_iterations is {self.max_iterations} and tolerance {self.tolerance}: "
                "they must be at least 1 and above 0"
            )
        if not self.penalties or min(self.penalties) <= 0:
            raise ValueError(f"penalties is {list(self.penalties)}: give one or more, all above 0")


def evaluate(config: Config, train: Features, test: Features) -> Result:
    """Fit the head and classify the test images."""
    mean, std = train.x.mean(0), train.x.std(0).clamp_min(1e-6)
    train, test = (Features((part.x - mean) / std, part.y) for part in (train, test))
    order = torch.randperm(len(train.y), generator=generator("linear_probe", "selection"))
    order = order[: config.selection_images]
    held, kept = (
        Features(train.x[part], train.y[part])
        for part in (order[: len(order) // 5], order[len(order) // 5 :])
    )

    # From strong to weak, each fit starts from the last: the path takes a fraction of the steps.
    head = LogisticRegression(max_iter=config.max_iterations, tol=config.tolerance, warm_start=True)
    accuracy = {}
    for penalty in sorted(config.penalties, reverse=True):
        fit(head, kept, penalty)
        accuracy[penalty] = correct(head, held).float().mean().item()
    best = max(accuracy, key=lambda penalty: accuracy[penalty])
    fit(head, train, best)
    chosen = {
        "penalty": best,
        "held_out_top1": {str(penalty): round(top1, 4) for penalty, top1 in accuracy.items()},
        "iterations": int(head.n_iter_.max()),
        "converged": bool(head.n_iter_.max() < config.max_iterations),
    }
    return Result(correct(head, test), chosen)


def fit(head: LogisticRegression, part: Features, penalty: float) -> None:
    """Fit the head; scikit-learn's C weighs the summed loss against half the squared norm."""
    with warnings.catch_warnings():
        # Whether the last fit converged stands in the result.
        warnings.simplefilter("ignore", ConvergenceWarning)
        head.set_params(C=1 / (penalty * len(part.y))).fit(part.x.numpy(), part.y.numpy())


def correct(head: LogisticRegression, part: Features) -> Tensor:
    """Which images of a part the head classifies rightly, [images] bool."""
    return torch.from_numpy(head.predict(part.x.numpy())) == part.y
