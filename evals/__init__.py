"""Evaluations: an encoder in, numbers out.

One module each, whose file name is the evaluation's name in a config. A module has

- ``Config``, a frozen dataclass whose defaults are the protocol;
- ``PRESETS``, where there are several published protocols: names and what differs from defaults;
- ``USES``, what it can work on: stored ``features``, ``images`` (it runs the encoder), or ``both``;
- ``evaluate(config, subject)``, which gives a ``Result``.

Nothing is chosen by looking at the test split: it is read once, by what was chosen without it.
"""

import base64
import binascii
import importlib
import math
import pkgutil
from dataclasses import dataclass, field
from statistics import NormalDist
from typing import TYPE_CHECKING, Any, Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from ijepa.errors import UserError
from ijepa.strict import merged, strict

if TYPE_CHECKING:  # what makes tables runs no network, and torch takes seconds to import
    from torch import Tensor

    from evals.subject import Subject

NOT_EVALUATIONS = {
    "__main__", "audit", "benchmark", "compare", "costs", "features", "figures", "formats",
    "gallery", "gpu_hours", "group", "heads", "identity", "metrics", "noise", "provenance",
    "published", "reference", "report", "result_set", "results", "run", "shapes", "subject",
    "supervised", "tables", "tabulate", "views",
}  # fmt: skip

Uses = Literal["features", "images", "both"]


@dataclass(frozen=True)
class Result:
    """A metric's value over ``n`` test images with its 95 % interval, and what was chosen for it.

    ``chosen`` holds hyper-parameters that the protocol selected, and whatever else a reader needs
    to judge the number: plain data for JSON. ``correct`` says which test images, in their order,
    were classified rightly (see ``packed``): two results of the same images are compared image by
    image (``evals.compare``), which tells smaller differences from noise than their values do.
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


class Evaluation(Protocol):
    """A module of this folder."""

    Config: type[Any]
    USES: tuple[Uses, ...]

    def evaluate(self, config: Any, subject: "Subject") -> Result:
        """Measure the subject by the protocol of ``config``."""


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


def names() -> list[str]:
    """Every evaluation of this folder."""
    return sorted({m.name for m in pkgutil.iter_modules(__path__)} - NOT_EVALUATIONS)


def load(name: str) -> Evaluation:
    """The module of an evaluation; raises UserError with the known names for any other."""
    if name not in names():
        raise UserError(f"unknown evaluation {name!r}: known are {', '.join(names())}")
    module: Evaluation = importlib.import_module(f"{__name__}.{name}")
    return module


def configure(name: str, raw: dict[str, Any], where: str) -> Any:
    """The protocol of an evaluation: its defaults, or those of a ``preset``, and what differs.

    ``where`` is the start of the path by which an error names a key.
    """
    module = load(name)
    presets: dict[str, Any] = getattr(module, "PRESETS", {})
    raw = dict(raw)
    if (preset := raw.pop("preset", None)) is not None and preset not in presets:
        known = ", ".join(presets) or "none"
        raise UserError(f"{where}.preset: {preset!r} is unknown: allowed are {known}")
    return strict(module.Config, merged(presets.get(preset, {}), raw), where)
