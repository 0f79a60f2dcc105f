"""Keys of a run that say where it starts from and what it keeps. It imports no torch."""

from dataclasses import dataclass
from typing import Annotated, Literal

from pydantic import Field, PlainSerializer

from ijepa.ranges import Count


@dataclass(frozen=True)
class Keep:
    """Choice of what a finished run leaves beside its encoder.

    ``whole`` is everything that was learned, in ``whole.safetensors``: both towers, predictor or
    decoder, heads, centres. It has four bytes for each parameter: 5 GB for I-JEPA's ViT-H/14.
    ``optimiser`` adds ``optimiser.pt``, a checkpoint with the optimiser's state too: another eight
    bytes for each parameter that is trained. ``epochs`` and ``every`` keep the encoder as it is
    after those epochs, and after every so many, in ``epochs/EPOCH.safetensors``; those of
    ``epochs`` are evaluated like runs, as RUN@epochEPOCH.
    """

    whole: bool = True
    optimiser: bool = False
    epochs: Annotated[tuple[Count, ...], PlainSerializer(list)] = ()
    every: Count | None = None

    def due(self, epoch: int) -> bool:
        """True if the encoder is kept after so many epochs."""
        return epoch in self.epochs or (self.every is not None and epoch % self.every == 0)


@dataclass(frozen=True)
class Start:
    """Weights that a run starts from in place of random ones (ijepa.start).

    ``from`` names a run's whole.safetensors, an encoder, or a published file. ``parts``: all
    networks; the towers, each from its own; one encoder, the one that is evaluated, for every
    tower; or the student, which its moving averages then equal. ``interpolate_positions`` resamples
    the encoders' tables of positions if images have another size.
    """

    weights: Annotated[str, Field(alias="from")]
    parts: Literal["all", "towers", "student", "encoder"] = "all"
    interpolate_positions: bool = False
