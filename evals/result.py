"""Result of an evaluation: a number, its interval, and the test images that were right."""

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
    """A metric's value over ``n`` test images, with its 95 % interval and the choices behind it.

    ``chosen`` holds hyper-parameters that the protocol selected, and whatever else a reader needs
    to judge the number: plain data for JSON. ``correct`` has a bit for each test image, in their
    order, which is 1 if the image was classified correctly (see ``packed``). With it two results on
    the same images are compared image by image (evals.report.compare), which finds smaller
    differences than a comparison of their values. ``classes`` has counts by class (see
    ``by_class``). Both are None if the metric is not a share of images.
    """

    metric: str
    value: float
    n: int
    interval: tuple[float, float]
    chosen: dict[str, Any] = field(default_factory=dict)
    correct: str | None = None
    classes: dict[str, Any] | None = None


def top1(predicted: "Tensor", y: "Tensor", num_classes: int, chosen: dict[str, Any]) -> Result:
    """Share of test images that are classified correctly, from class numbers [images] int64."""
    correct = predicted == y
    right, n = int(correct.sum()), len(correct)
    classes = by_class(predicted, y, num_classes)
    return Result("top1", right / n, n, wilson(right, n), chosen, packed(correct), classes)


MAX_CONFUSED = 100
"""Largest number of classes with a confusion matrix, which grows with their square."""


def by_class(predicted: "Tensor", y: "Tensor", num_classes: int) -> dict[str, Any]:
    """Counts by class: its ``images``, those ``right``, and for few classes the ``confusion``.

    All are counts as text, separated by spaces, so that each takes one line of JSON. ``confusion``
    is a list with a text for each true class: the counts of the predicted classes.
    """
    texts: dict[str, Any] = {
        name: counts(classes.bincount(minlength=num_classes))
        for name, classes in (("images", y), ("right", y[predicted == y]))
    }
    if num_classes <= MAX_CONFUSED:
        pairs = (y * num_classes + predicted).bincount(minlength=num_classes**2)
        texts["confusion"] = [counts(row) for row in pairs.view(num_classes, num_classes)]
    return texts


def counts(numbers: "Tensor") -> str:
    """Counts as text, separated by spaces."""
    return " ".join(map(str, numbers.tolist()))


def packed(correct: "Tensor") -> str:
    """One bit per image, in order, as base64: ImageNet's 50,000 test images take 8 kB."""
    return base64.b64encode(np.packbits(correct.cpu().numpy()).tobytes()).decode("ascii")


def unpacked(text: str, n: int) -> NDArray[np.bool_]:
    """Inverse of ``packed``, [n] bool; raises ValueError if ``text`` does not hold ``n`` images."""
    try:
        packed_bytes = base64.b64decode(text, validate=True)
    except binascii.Error as error:
        raise ValueError(f"is not base64: {error}") from None
    if len(packed_bytes) != (n + 7) // 8:
        raise ValueError(f"has {len(packed_bytes)} bytes, {n} images take {(n + 7) // 8}")
    return np.unpackbits(np.frombuffer(packed_bytes, np.uint8), count=n).astype(bool)


def wilson(right: int, n: int) -> tuple[float, float]:
    """95 % interval of a proportion (Wilson, 1927); scipy.stats takes seconds to import."""
    z = NormalDist().inv_cdf(0.975)
    middle = (right + z * z / 2) / (n + z * z)
    half = z / (n + z * z) * math.sqrt(right * (n - right) / n + z * z / 4)
    return middle - half, middle + half
