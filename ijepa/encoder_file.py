"""An encoder's file as its readers know it without loading its weights: header and digest.

It stands apart from checkpoint.py so that a job that runs no network does not import one.
"""

import json
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

from ijepa.errors import UserError
from ijepa.files import digest

PIXELS = "pixels"
"""Stands for the encoder of the control that has none."""


def read_header(path: Path) -> dict[str, Any]:
    """Header of an encoder of this project: ``run``, ``variant`` and ``facts``."""
    try:
        with safe_open(path, framework="numpy") as file:
            header: dict[str, Any] = json.loads(file.metadata()["ijepa"])
            return header
    except FileNotFoundError:
        raise UserError(f"{path} does not exist: pretrain it first") from None
    except (SafetensorError, KeyError, TypeError) as error:
        raise UserError(
            f"{path} is not an encoder of this project ({error}): pretrain it again, or take in a "
            "published file with python -m ijepa.checkpoint import"
        ) from None


def encoder_digest(path: Path | None) -> str:
    """Short SHA-256 by which results name an encoder; ``pixels`` where there is none."""
    return PIXELS if path is None else digest(path)[:12]
