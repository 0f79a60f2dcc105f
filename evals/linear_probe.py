"""Multinomial logistic regression on frozen, standardised features.

The paper trains its linear heads with SGD or LARS over augmented views (section A.2); on features
that are extracted once, the convex problem is solved outright (scikit-learn, L-BFGS) instead, after
a BatchNorm-like standardisation by the training images' statistics. The penalty is chosen on a part
of the training images, then the head is fitted again on all of them. The test images decide
nothing.
"""

from dataclasses import dataclass

import torch
from sklearn.linear_model import LogisticRegression
from torch import Tensor

from evals import Features, Result
from ijepa.randomness import generator


@dataclass(frozen=True)
class Config:
    """``penalties`` weigh half the squared norm of the weights against the mean loss."""

    penalties: tuple[float, ...] = (1e-2, 1e-3, 1e-4)
    held_out: float = 0.1
    max_iterations: int = 100

    def __post_init__(self) -> None:
        if not 0 < self.held_out < 1:
            raise ValueError(f"held_out is {self.held_out}: it must lie between 0 and 1")
        if not self.penalties or min(self.penalties) <= 0:
            raise ValueError(f"penalties is {list(self.penalties)}: give one or more, all above 0")


def evaluate(config: Config, train: Features, test: Features) -> Result:
    """Fit the head and classify the test images."""
    mean, std = train.x.mean(0), train.x.std(0).clamp_min(1e-6)
    train, test = (Features((part.x - mean) / std, part.y) for part in (train, test))
    order = torch.randperm(len(train.y), generator=generator("linear_probe", "held out"))
    num_held = max(1, int(config.held_out * len(order)))
    held, kept = (
        Features(train.x[part], train.y[part]) for part in (order[:num_held], order[num_held:])
    )

    # From strong to weak, each fit starts from the last: the path takes a fraction of the steps.
    head = LogisticRegression(max_iter=config.max_iterations, warm_start=True)
    accuracy = {}
    for penalty in sorted(config.penalties, reverse=True):
        fit(head, kept, penalty)
        accuracy[penalty] = correct(head, held).float().mean().item()
    best = max(accuracy, key=lambda penalty: accuracy[penalty])
    fit(head, train, best)
    return Result(
        correct(head, test),
        {"penalty": best, "held_out_top1": {str(p): round(a, 4) for p, a in accuracy.items()}},
    )


def fit(head: LogisticRegression, part: Features, penalty: float) -> None:
    """Fit the head; scikit-learn's C weighs the summed loss against half the squared norm."""
    head.set_params(C=1 / (penalty * len(part.y))).fit(part.x.numpy(), part.y.numpy())


def correct(head: LogisticRegression, part: Features) -> Tensor:
    """Which images of a part the head classifies rightly, [images] bool."""
    return torch.from_numpy(head.predict(part.x.numpy())) == part.y
