"""Decoder: pictures of an encoder's or predictor's output, and how much of the block they have.

Assran et al., CVPR 2023, section 7 and Figures 6 to 8; the decoder is RCDM's (evals.decoder).
Beside the result lie the picture (.png), the decoder (.safetensors), which the command ``decode``
takes, and the log of its training (.jsonl).
"""

from evals.decoder.settings import PRESETS, Config
from evals.protocol import Uses
from evals.result import Result
from evals.subject import Subject
from ijepa.architecture import ViTConfig

__all__ = ["PRESETS", "USES", "Config", "evaluate", "flops"]

USES: tuple[Uses, ...] = ("images",)


def evaluate(config: Config, subject: Subject) -> Result:
    """Train the decoder, draw, and compare decoded blocks with true ones (evals.decoder)."""
    # Not at the top: diffusers takes seconds to import, and a check of a config does not need it.
    from evals.decoder.evaluation import evaluate

    return evaluate(config, subject)


def flops(config: Config, vit: ViTConfig) -> float:
    """FLOPs of the decoder of an encoder of this size: its training and its samples."""
    from evals.decoder.cost import cost

    return cost(config, vit).total
