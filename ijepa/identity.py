"""Identity of a run: a hash of the keys that decide what is learned, and of no others.

Which keys these are is said here alone: the folders of checkpoints, the names of jobs and the audit
of finished encoders ask this module. A run is plain data here, as YAML and JSON hold it.
"""

import copy
import hashlib
import json
from pathlib import Path
from typing import Any

from ijepa.errors import UserError
from ijepa.files import digest, read_json, write_json

MEMO = "start.json"
"""Name of the file in a run's folder of work that keeps the digest of its start."""
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


def learned(run: dict[str, Any]) -> dict[str, Any]:
    """Copy of a run that has only what decides what is learned.

    ``recipe.optim.accumulate`` is left out too: it divides batches and does not change them. So is
    the path of the weights that a run starts from: their content is hashed beside the identity.
    """
    learning = {key: value for key, value in _without_later(run).items() if key not in HOW_IT_RUNS}
    if start := learning.get("start"):
        del start["from"]
    ((learning.get("recipe") or {}).get("optim") or {}).pop("accumulate", None)
    return learning


def run_identity(run: dict[str, Any]) -> str:
    """Identity of a run, seed included: 12 hexadecimal digits."""
    values = json.dumps(learned(run), sort_keys=True)
    return hashlib.sha256(values.encode()).hexdigest()[:12]


def start_file(weights: str) -> Path:
    """File that a run starts from; raises UserError if there is none."""
    if not (path := Path(weights)).is_file():
        raise UserError(f"start.from: {weights} is no file: name a run, released weights or a path")
    return path


def start_digest(weights: str, memo: Path | None = None) -> str:
    """SHA-256 of the file that a run starts from; raises UserError if there is none.

    The JSON file ``memo`` keeps it, because a large file takes a minute to read: one with the same
    path, size and time is not read again.
    """
    path = start_file(weights)
    status = path.stat()
    facts = {"path": str(path.resolve()), "size": status.st_size, "mtime_ns": status.st_mtime_ns}
    if memo is not None and memo.exists():
        sha256 = (record := read_json(memo)).pop("sha256")
        if record == facts:
            return str(sha256)
    sha256 = digest(path)
    if memo is not None:
        write_json(memo, {**facts, "sha256": sha256})
    return sha256


def _without_later(run: dict[str, Any]) -> dict[str, Any]:
    """Copy of a run without the keys that earlier versions did not have, where they change nothing.

    They are exact pixels, ImageNet's statistics, no layer scale, and I-JEPA's keys for SIGReg in a
    recipe without it. An unfinished run of a version without these keys then goes on, and a
    finished one stays valid.
    """
    run = copy.deepcopy(run)
    if run.get("pixels") == "exact":
        del run["pixels"]
    vit, recipe = run.get("vit") or {}, run.get("recipe") or {}
    for name in ("mean", "std"):
        if vit.get(name, 0) is None:
            del vit[name]
    if recipe.get("layer_scale", 0) is None:
        del recipe["layer_scale"]
    if recipe.get("anticollapse") == "ema":
        for name in ("anticollapse", "sigreg", "sigreg_of"):
            recipe.pop(name, None)
    return run
