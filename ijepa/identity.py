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
    "compile",
    "keep",
)
"""Keys that may change in the middle of a run: it goes on from its checkpoint."""


def run_identity(run: dict[str, Any]) -> str:
    """Identity of a run given as plain data, seed included: 12 hexadecimal digits.

    ``recipe.optim.accumulate`` is left out too: it divides batches and does not change them.
    """
    learned = {key: value for key, value in copy.deepcopy(run).items() if key not in HOW_IT_RUNS}
    ((learned.get("recipe") or {}).get("optim") or {}).pop("accumulate", None)
    text = json.dumps(learned, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:12]
