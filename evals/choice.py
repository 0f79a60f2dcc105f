"""The choice of one head among several: on held-out training images, or on the test images.

Shape suffixes: B images, H heads.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from evals.result import Result, top1
from evals.subject import Subject
from ijepa.errors import UserError
from ijepa.randomness import generator
from ijepa.ranges import Count, Share


@dataclass(frozen=True)
class Choice:
    """Settings of the choice.

    ``held_out`` is the share of the training images, ``max_held_out`` at most, on which the head is
    chosen. ``chosen_on: test`` trains on all training images and takes the head that does best on
    the test images, as the papers do; tables mark such numbers, unless there is one head and so no
    choice.
    """

    chosen_on: Literal["held_out", "test"] = "held_out"
    held_out: Share = 0.1
    max_held_out: Count = 10_000


def num_held_out(config: Choice, images: int) -> int:
    """Number of training images that are held out; with ``chosen_on: test`` none.

    Raises UserError if there are too few of them.
    """
    if config.chosen_on == "test":
        return 0
    count = min(int(config.held_out * images), config.max_held_out)
    if not count:
        raise UserError(
            f"held_out is {config.held_out}: of {images} training images that is none; raise it"
        )
    return count


def divide(count: int, images: int, seed: int) -> tuple[Tensor, Tensor]:
    """Numbers of ``count`` held-out images, and of all others, in order."""
    order = torch.randperm(images, generator=generator(seed, "held out"))
    return order[:count].sort().values, order[count:].sort().values


def choose(
    config: Choice,
    subject: Subject,
    held_out: Tensor,
    heads: list[dict[str, Any]],
    converged: list[bool],
    classify: Callable[[str, Tensor], Tensor],
    abouts: list[dict[str, Any]],
) -> Result:
    """Result of the head that is right most often, the first of equals.

    ``chosen`` of the result has the settings and accuracies of all heads.

    Args:
        config: The protocol.
        subject: The data.
        held_out: Numbers of the training images that are held out.
        heads: Settings of each head, for the result.
        converged: False for a head that diverged; it is not chosen.
        classify: Classes [H, B] that the heads predict for images of a split, given their numbers.
        abouts: Further facts of each head, for the result of the chosen one.
    """
    test_y, by_test = subject.labels("test"), config.chosen_on == "test"
    predicted_HB = classify("test", torch.arange(len(test_y)))
    held_HB = test_HB = predicted_HB == test_y
    if not by_test:
        held_HB = classify("train", held_out) == subject.labels("train")[held_out]
    rows = [
        {
            **head,
            "held_out_top1": None if by_test else round(held_HB[number].float().mean().item(), 4),
            "test_top1": round(test_HB[number].float().mean().item(), 4),
            "diverged": not converged[number],
        }
        for number, head in enumerate(heads)
    ]

    def best(correct_HB: Tensor) -> int:
        right = correct_HB.sum(1).tolist()
        return max((h for h in range(len(rows)) if converged[h]), key=lambda h: right[h])

    number = best(held_HB)
    facts = {
        **rows[number],
        **({"chosen_on": "test"} if by_test and len(rows) > 1 else {}),
        **abouts[number],
        "held_out_images": len(held_out),
        "best_on_test": {
            **rows[best(test_HB)],
            "chosen_on": "test: the papers' way, not this result's value",
        },
        "heads": rows,
    }
    return top1(predicted_HB[number], test_y, subject.num_classes, facts)
