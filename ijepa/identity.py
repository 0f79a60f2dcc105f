"""Identity of a run: a hash of the keys that decide what is learned, and of no others."""

import copy
import hashlib
import json
from typing import Any

HOW_IT_RUNS = (
    "num_workers",
    "log_every",
    "monitor_every",
    "checkpoint_every",
    "activation_checkpointing",
    "keep",
)
"""Keys that may change in the middle of a run: it goes on from its checkpoint."""


def run_identity(run: dict[str, Any]) -> str:
    """Identity of a run given as plain data, seed included: 12 hexadecimal digits.

    ``recipe.optim.accumulate`` is left out too: it divides batches and does not change them. So are
    keys of I-JEPA that are not used.
    """
    learned = {key: value for key, value in copy.deepcopy(run).items() if key not in HOW_IT_RUNS}
    recipe = learned.get("recipe") or {}
    (recipe.get("optim") or {}).pop("accumulate", None)
    leave_out_later(recipe)
    text = json.dumps(learned, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def leave_out_later(recipe: dict[str, Any]) -> None:
    """Remove I-JEPA's keys for SIGReg from a recipe that does not use it.

    An unfinished run of a version without these keys then goes on.
    """
    if recipe.get("anticollapse") == "ema":
        for key in ("anticollapse", "sigreg", "sigreg_of"):
            recipe.pop(key, None)
