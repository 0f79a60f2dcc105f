"""Contract of an evaluation: one module of ``evals/protocols/``, named as in a config.

A module has

- ``Config``, a frozen dataclass whose defaults are the protocol;
- ``PRESETS``, if there are several published protocols: by name, the settings that differ from the
  defaults;
- ``USES``, its possible inputs: stored ``features``, ``images`` (it runs the encoder), or ``both``;
- ``evaluate(config, subject)``, which returns a ``Result``.

A result's value depends on no choice that looked at the test split: all choices are made first,
then the test split is read once.
"""

from typing import TYPE_CHECKING, Any, Literal, Protocol

from evals.result import Result
from ijepa import collection
from ijepa.errors import UserError
from ijepa.strict import merged, strict

if TYPE_CHECKING:
    from evals.subject import Subject

PROTOCOLS = "evals.protocols"

Uses = Literal["features", "images", "both"]


class Evaluation(Protocol):
    """A module of evals/protocols."""

    Config: type[Any]
    USES: tuple[Uses, ...]

    def evaluate(self, config: Any, subject: "Subject") -> Result:
        """Measure the subject by the protocol of ``config``."""


def evaluation_names() -> list[str]:
    """Names of all evaluations, sorted."""
    return collection.members(PROTOCOLS)


def load_evaluation(name: str) -> Evaluation:
    """Module of an evaluation; raises UserError with all names for an unknown one."""
    module: Evaluation = collection.load(PROTOCOLS, name, "evaluation")
    return module


def configure(name: str, raw: dict[str, Any], where: str) -> Any:
    """Protocol of an evaluation: its defaults, or those of a ``preset``, changed by ``raw``.

    ``where`` is the start of the path by which an error names a key.
    """
    module = load_evaluation(name)
    presets: dict[str, Any] = getattr(module, "PRESETS", {})
    raw = dict(raw)
    if (preset := raw.pop("preset", None)) is not None and preset not in presets:
        names = ", ".join(presets) or "none"
        raise UserError(f"{where}.preset: {preset!r} is unknown: allowed are {names}")
    also = ("preset",) if presets else ()
    return strict(module.Config, merged(presets.get(preset, {}), raw), where, also)
