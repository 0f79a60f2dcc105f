"""The identity of a run: a hash of what decides what is learned, and of nothing else."""

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
)
"""Keys of a run that may change in the middle: the run goes on from its checkpoint."""


def run_identity(run: dict[str, Any]) -> str:
    """Identity of a run given as plain data, seed included: 12 hexadecimal digits.

    ``recipe.optim.accumulate`` is no part of it either: batches are divided, not changed.
    """
    learned = {key: value for key, value in copy.deepcopy(run).items() if key not in HOW_IT_RUNS}
    ((learned.get("recipe") or {}).get("optim") or {}).pop("accumulate", None)
    text = json.dumps(learned, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:12]
