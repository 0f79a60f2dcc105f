"""Header and digest of an encoder file, read without its weights.

This module is apart from checkpoint.py, so that a job that runs no network imports none.
"""

import json
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

from ijepa.errors import UserError
from ijepa.files import digest

EPOCHS = "epochs"
"""Folder, beside a run's encoder, of the encoders that it kept on its way."""
PIXELS = "pixels"
"""Name of the control without an encoder, in place of a run's name, a file or a digest."""
UNTRAINED = "random_init"
"""Name of the other control: the first run's network as it was initialised."""
PIXELS_SIZE = 32
"""Side of the images of the control ``pixels``: that of CIFAR's. A probe fits its features."""


def read_header(path: Path) -> dict[str, Any]:
    """Header of an encoder of this project: ``run``, ``variant`` and ``facts``."""
    try:
        with safe_open(path, framework="numpy") as file:
            header: dict[str, Any] = json.loads(file.metadata()["ijepa"])
            return header
    except FileNotFoundError:
        if path.parent.name == EPOCHS:
            raise UserError(
                f"{path} does not exist: keep.epochs asked for this epoch only after it was over, "
                "or after the run had ended: leave it out, or delete the run's folders in work/ "
                "and results/ to train it again"
            ) from None
        raise UserError(f"{path} does not exist: pretrain it first") from None
    except (SafetensorError, KeyError, TypeError) as error:
        raise UserError(
            f"{path} is not an encoder of this project ({error}): pretrain it again, or take in a "
            "published file with ijepa-bench weights import"
        ) from None


def encoder_digest(path: Path | None) -> str:
    """Short SHA-256 by which results name an encoder; ``pixels`` if there is none."""
    return PIXELS if path is None else digest(path)[:12]
