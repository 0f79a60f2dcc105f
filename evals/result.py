"""The result of an evaluation: a number, its interval, and which test images were right."""

import base64
import binascii
import math
from dataclasses import dataclass, field
from statistics import NormalDist
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:  # tables need results and no torch, which takes seconds to import
    from torch import Tensor


@dataclass(frozen=True)
class Result:
    """A metric's value over ``n`` test images with its 95 % interval, and what was chosen for it.

    ``chosen`` holds hyper-parameters that the protocol selected, and whatever else a reader needs
    to judge the number: plain data for JSON. ``correct`` says which test images, in their order,
    were classified rightly (see ``packed``): two results of the same images are compared image by
    image (evals.report.compare), which tells smaller differences from noise than their values do.
    ``classes`` counts the same by class (see ``by_class``). Both are None where the metric is no
    share of images.
    """

    metric: str
    value: float
    n: int
    interval: tuple[float, float]
    chosen: dict[str, Any] = field(default_factory=dict)
    correct: str | None = None
    classes: dict[str, Any] | None = None


def top1(predicted: "Tensor", y: "Tensor", num_classes: int, chosen: dict[str, Any]) -> Result:
    """The share of test images that are classified rightly, from class numbers [images] int64."""
    correct = predicted == y
    right, n = int(correct.sum()), len(correct)
    classes = by_class(predicted, y, num_classes)
    return Result("top1", right / n, n, wilson(right, n), chosen, packed(correct), classes)


MAX_CONFUSED = 100
"""Of more classes the confusion matrix is not kept: it grows with their square."""


def by_class(predicted: "Tensor", y: "Tensor", num_classes: int) -> dict[str, Any]:
    """How many ``images`` each class has and how many are ``right``; of few classes ``confusion``.

    All are counts as text, separated by spaces, one line of JSON each. ``confusion`` has a text for
    each true class, with the count of each predicted one.
    """
    told: dict[str, Any] = {
        name: counts(classes.bincount(minlength=num_classes))
        for name, classes in (("images", y), ("right", y[predicted == y]))
    }
    if num_classes <= MAX_CONFUSED:
        pairs = (y * num_classes + predicted).bincount(minlength=num_classes**2)
        told["confusion"] = [counts(row) for row in pairs.view(num_classes, num_classes)]
    return told


def counts(numbers: "Tensor") -> str:
    """Counts as text."""
    return " ".join(map(str, numbers.tolist()))


def packed(correct: "Tensor") -> str:
    """A bit an image, first image first, as base64: ImageNet's 50,000 test images take 8 kB."""
    return base64.b64encode(np.packbits(correct.cpu().numpy()).tobytes()).decode("ascii")


def unpacked(text: str, n: int) -> NDArray[np.bool_]:
    """What was ``packed``, [n] bool; raises ValueError where that is not ``n`` images."""
    try:
        packed_bytes = base64.b64decode(text, validate=True)
    except binascii.Error as error:
        raise ValueError(f"is not base64: {error}") from None
    if len(packed_bytes) != (n + 7) // 8:
        raise ValueError(f"has {len(packed_bytes)} bytes, {n} images take {(n + 7) // 8}")
    return np.unpackbits(np.frombuffer(packed_bytes, np.uint8), count=n).astype(bool)


def wilson(right: int, n: int) -> tuple[float, float]:
    """The 95 % interval of a proportion (Wilson, 1927); scipy.stats takes seconds to import."""
    z = NormalDist().inv_cdf(0.975)
    middle = (right + z * z / 2) / (n + z * z)
    half = z / (n + z * z) * math.sqrt(right * (n - right) / n + z * z / 4)
    return middle - half, middle + half
