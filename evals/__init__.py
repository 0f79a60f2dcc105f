"""Evaluations: an encoder in, numbers out.

One module each, whose file name is the evaluation's name in a config. A module has ``Config``, a
frozen dataclass whose defaults are the protocol, and ``evaluate(config, train, test)``, which gives
the metric's value and what was chosen on the way.
"""

import importlib
import json
import pkgutil
from pathlib import Path
from typing import Any, NamedTuple, Protocol

from safetensors import safe_open
from torch import Tensor

from ijepa.errors import UserError

NOT_EVALUATIONS = {"__main__", "benchmark", "features", "figures", "report", "tables"}


class Features(NamedTuple):
    """Features of one split, [images, D] float32, and its labels, [images] int64."""

    x: Tensor
    y: Tensor


class Result(NamedTuple):
    """Correctness of each test image, [images] bool, and what the protocol chose."""

    correct: Tensor
    chosen: dict[str, Any]


class Evaluation(Protocol):
    """A module of this folder."""

    Config: type[Any]

    def evaluate(self, config: Any, train: Features, test: Features) -> Result:
        """Which test images are classified rightly; nothing is chosen by looking at ``test``."""


def read_features(path: Path, split: str) -> Features:
    """The features of one split."""
    with safe_open(path, framework="pt") as file:
        return Features(file.get_tensor(f"{split}.x"), file.get_tensor(f"{split}.y"))


def read_about(path: Path) -> dict[str, Any]:
    """What the features are of, and by whom."""
    with safe_open(path, framework="pt") as file:
        about: dict[str, Any] = json.loads(file.metadata()["ijepa"])
        return about


def names() -> list[str]:
    """Every evaluation of this folder."""
    return sorted({m.name for m in pkgutil.iter_modules(__path__)} - NOT_EVALUATIONS)


def load(name: str) -> Evaluation:
    """The module of an evaluation; raises UserError with the known names for any other."""
    if name not in names():
        raise UserError(f"unknown evaluation {name!r}: known are {', '.join(names())}")
    module: Evaluation = importlib.import_module(f"{__name__}.{name}")
    return module
