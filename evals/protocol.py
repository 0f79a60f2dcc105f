"""The contract of an evaluation: one module of ``evals/protocols/``, named as in a config.

A module has

- ``Config``, a frozen dataclass whose defaults are the protocol;
- ``PRESETS``, where there are several published protocols: names and what differs from defaults;
- ``USES``, what it can work on: stored ``features``, ``images`` (it runs the encoder), or ``both``;
- ``evaluate(config, subject)``, which gives a ``Result``.

Nothing is chosen by looking at the test split: it is read once, by what was chosen without it.
"""

import importlib
import pkgutil
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol

from evals.result import Result
from ijepa.errors import UserError
from ijepa.strict import merged, strict

if TYPE_CHECKING:
    from evals.subject import Subject

PROTOCOLS = Path(__file__).with_name("protocols")

Uses = Literal["features", "images", "both"]


class Evaluation(Protocol):
    """A module of evals/protocols."""

    Config: type[Any]
    USES: tuple[Uses, ...]

    def evaluate(self, config: Any, subject: "Subject") -> Result:
        """Measure the subject by the protocol of ``config``."""


def evaluation_names() -> list[str]:
    """Names of all evaluations, sorted."""
    return sorted(module.name for module in pkgutil.iter_modules([str(PROTOCOLS)]))


def load_evaluation(name: str) -> Evaluation:
    """The module of an evaluation; raises UserError with the known names for any other."""
    if name not in evaluation_names():
        raise UserError(f"unknown evaluation {name!r}: known are {', '.join(evaluation_names())}")
    module: Evaluation = importlib.import_module(f"evals.protocols.{name}")
    return module


def configure(name: str, raw: dict[str, Any], where: str) -> Any:
    """The protocol of an evaluation: its defaults, or those of a ``preset``, and what differs.

    ``where`` is the start of the path by which an error names a key.
    """
    module = load_evaluation(name)
    presets: dict[str, Any] = getattr(module, "PRESETS", {})
    raw = dict(raw)
    if (preset := raw.pop("preset", None)) is not None and preset not in presets:
        known = ", ".join(presets) or "none"
        raise UserError(f"{where}.preset: {preset!r} is unknown: allowed are {known}")
    return strict(module.Config, merged(presets.get(preset, {}), raw), where)
