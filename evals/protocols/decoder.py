"""Decoder: pictures of an encoder's or predictor's output, and how much of the block they have.

Assran et al., CVPR 2023, section 7 and Figures 6 to 8; the decoder is RCDM's (evals.decoder).
Beside the result lie the picture (.png), the decoder (.safetensors), which the command ``decode``
takes, and the log of its training (.jsonl).
"""

from evals.decoder.settings import PRESETS, Config
from evals.protocol import Counts, Facts, Uses
from evals.result import Result
from evals.subject import Subject
from ijepa.architecture import ViTConfig
from ijepa.data.bands import RGB

__all__ = ["PRESETS", "USES", "Config", "check", "evaluate", "flops"]

USES: tuple[Uses, ...] = ("images",)


def evaluate(config: Config, subject: Subject) -> Result:
    """Train the decoder, draw, and compare decoded blocks with true ones (evals.decoder)."""
    # Not at the top: diffusers takes seconds to import, and a check of a config does not need it.
    from evals.decoder.evaluation import evaluate

    return evaluate(config, subject)


def check(config: Config, facts: Facts) -> None:
    """Raise ValueError for images that the decoder does not draw."""
    if facts.pixels != RGB:
        channels, bits = facts.pixels
        raise ValueError(
            f"condition is {config.condition}: the decoder draws three channels of 8 bits, the "
            f"data set has {channels} of {bits}: leave the evaluation out"
        )
    if not facts.square:
        raise ValueError(
            f"condition is {config.condition}: the decoder draws square images, those of the "
            "encoder are not: leave the evaluation out"
        )


def flops(config: Config, vit: ViTConfig, _: Counts) -> float:
    """FLOPs of the decoder of an encoder of this size: its training and its samples."""
    from evals.decoder.cost import cost

    return cost(config, vit).total
