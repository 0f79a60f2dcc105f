"""Identity of a run: a hash of the keys that decide what is learned, and of no others."""

import copy
import hashlib
import json
from pathlib import Path
from typing import Any

from ijepa.errors import UserError
from ijepa.files import digest

HOW_IT_RUNS = (
    "num_workers",
    "log_every",
    "monitor_every",
    "checkpoint_every",
    "activation_checkpointing",
    "compile",
    "keep",
)
"""Keys that may change in the middle of a run: it goes on from its checkpoint."""


def run_identity(run: dict[str, Any]) -> str:
    """Identity of a run given as plain data, seed included: 12 hexadecimal digits.

    ``recipe.optim.accumulate`` is left out too: it divides batches and does not change them. So is
    the path of the weights that a run starts from: their content is hashed beside the identity.
    """
    learned = {key: value for key, value in copy.deepcopy(run).items() if key not in HOW_IT_RUNS}
    if start := learned.get("start"):
        del start["from"]
    ((learned.get("recipe") or {}).get("optim") or {}).pop("accumulate", None)
    leave_out_later(learned)
    text = json.dumps(learned, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def start_digest(weights: str) -> str:
    """SHA-256 of the file that a run starts from; raises UserError if there is none."""
    if not Path(weights).is_file():
        raise UserError(f"start.from: {weights} is no file: name a run, released weights or a path")
    return digest(Path(weights))


def leave_out_later(run: dict[str, Any]) -> None:
    """Remove keys that earlier versions did not have, where they change nothing.

    They are exact pixels, ImageNet's statistics, and I-JEPA's keys for SIGReg in a recipe without
    it. An unfinished run of a version without these keys then goes on.
    """
    if run.get("pixels") == "exact":
        del run["pixels"]
    vit, recipe = run.get("vit") or {}, run.get("recipe") or {}
    for name in ("mean", "std"):
        if vit.get(name, 0) is None:
            del vit[name]
    if recipe.get("anticollapse") == "ema":
        for name in ("anticollapse", "sigreg", "sigreg_of"):
            recipe.pop(name, None)
