"""Contract of an evaluation: one module of ``evals/protocols/``, named as in a config.

A module has

- ``Config``, a frozen dataclass whose defaults are the protocol;
- ``PRESETS``, if there are several published protocols: by name, the settings that differ from the
  defaults;
- ``USES``, its possible inputs: stored ``features``, ``images`` (it runs the encoder), or ``both``;
- ``evaluate(config, subject)``, which returns a ``Result``;
- ``check(config, facts)``, if some settings are impossible for some encoders or data sets. It
  raises ValueError that begins with the key. It is called with what is known before the first job,
  and again before an evaluation begins.
- ``flops(config, vit, counts)``, if it runs the encoder on images more than once: FLOPs of all of
  it, by which the time of a config is estimated.
- ``features_read(config, dim, layers)``, if it trains heads on stored features for epochs: features
  of an image that they read, over all heads and epochs. Their time is estimated by it.

Unless ``chosen_on: test`` asks for the papers' way, a result's value depends on no choice that
looked at the test split: all choices are made first, then the test split is read once.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, Protocol

from evals.pooling import NUM_LAYERS, Pooled
from evals.result import Result
from ijepa import collection
from ijepa.architecture import ViTConfig
from ijepa.data.bands import COLOURS, RGB, check_colours
from ijepa.errors import UserError
from ijepa.strict import merged, strict

if TYPE_CHECKING:
    from evals.subject import Subject

PROTOCOLS = "evals.protocols"

Uses = Literal["features", "images", "both"]


@dataclass(frozen=True)
class Facts:
    """Facts of a subject by which an evaluation may be impossible; None is not known yet.

    Args:
        uses: Inputs of the evaluation.
        depth: Number of the encoder's blocks; None also for raw pixels.
        class_token: True if the encoder has [cls].
        channels: Channels of the encoder's images; None also for raw pixels.
        square: False if the encoder's images are wider than high, or higher than wide.
        pixels: Channels of the data set's images, and bits of each.
        images: Number of training images.
        rarest: Training images that the rarest class has at most.
        subsets: Names of the official lists of training images.
    """

    uses: Uses
    depth: int | None = None
    class_token: bool | None = None
    channels: int | None = None
    square: bool = True
    pixels: tuple[int, int] = RGB
    images: int | None = None
    rarest: int | None = None
    subsets: tuple[str, ...] | None = None

    def check_subset(self, name: str | None, key: str = "subset") -> None:
        """Raise ValueError if there is no official list of this name."""
        if name is not None and self.subsets is not None and name not in self.subsets:
            raise ValueError(
                f"{key} is {name!r}, but the data set has {', '.join(self.subsets) or 'no lists'}: "
                "name one of them, or put the official list beside the raw files"
            )

    def check_per_class(self, per_class: int | None) -> None:
        """Raise ValueError if some class has fewer images than are asked for of each."""
        if self.rarest is not None and (per_class or 0) > self.rarest:
            raise ValueError(
                f"per_class is {per_class}, but a class has {self.rarest} training images at most: "
                "make it smaller, or use more images"
            )


class Counts(NamedTuple):
    """Images of both splits, and classes, by which the time of an evaluation is estimated."""

    train: int
    test: int
    classes: int


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


def check(name: str, config: Any, facts: Facts, where: str) -> None:
    """Raise UserError if a protocol cannot be carried out on a subject with these facts.

    ``where`` is the start of the path by which an error names a key.
    """
    module = load_evaluation(name)
    if facts.channels not in (None, facts.pixels[0]):
        raise UserError(
            f"{where}: the encoder is for images of {facts.channels} channels, the data set has "
            f"{facts.pixels[0]}: leave it out, or choose another data set"
        )
    try:
        if facts.pixels != RGB and facts.uses != "features":
            check_colours(config, (*COLOURS, "auto_augment"))
        if isinstance(config, Pooled):
            _check_layers(config, facts, "images" in module.USES)
        getattr(module, "check", lambda *_: None)(config, facts)
    except ValueError as error:
        raise UserError(f"{where}.{error}") from None


def flops(name: str, config: Any, vit: ViTConfig, counts: Counts) -> float:
    """FLOPs of an evaluation that runs the encoder; by default it sees every image once."""
    hook = getattr(load_evaluation(name), "flops", None)
    if hook is None:
        return vit.forward_flops * (counts.train + counts.test)
    return float(hook(config, vit, counts))


def _check_layers(config: Pooled, facts: Facts, may_use_images: bool) -> None:
    """Raise ValueError for more layers than can be had, unless their number is the default."""
    layers, default = config.layers, type(config).layers
    if facts.uses != "images" and layers > NUM_LAYERS:
        remedy = ", or set uses: images" if may_use_images else ""
        raise ValueError(
            f"layers is {layers}, but features of the last {NUM_LAYERS} layers are stored: ask for "
            f"{NUM_LAYERS} at most{remedy}"
        )
    if layers > (facts.depth or layers) and layers != default:
        raise ValueError(
            f"layers is {layers}, but the encoder has {facts.depth}: ask for {facts.depth} at most"
        )
