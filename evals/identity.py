"""Identity of a result: the facts that decide it. If they change, it must be made again.

This module imports no torch: an audit compares thousands of results and runs no evaluation.
"""

import dataclasses
import json
from pathlib import Path
from typing import Any

from ijepa.errors import UserError
from ijepa.result_file import read_result

LATER = ("view_interpolation",)
"""Settings that earlier versions did not have; None changes nothing, and a result leaves it out."""


def protocol_of(config: Any) -> dict[str, Any]:
    """Plain data of a protocol, as a result's JSON has it."""
    plain: dict[str, Any] = json.loads(json.dumps(dataclasses.asdict(config)))
    return {k: value for k, value in plain.items() if value is not None or k not in LATER}


def identity_of(
    evaluation: str, config: Any, label: str, limit: dict[str, int], about: dict[str, Any]
) -> dict[str, Any]:
    """Facts that decide a result: evaluation, protocol, label, images, encoder, data."""
    return {
        "evaluation": evaluation,
        "protocol": protocol_of(config),
        "label": label,
        "images": limit,
        "encoder": about["encoder"],
        "data_version": about["data_version"],
    }


def identity_in(result: dict[str, Any]) -> dict[str, Any]:
    """Identity of a result, read from its JSON."""
    facts = {key: result.get(key) for key in ("evaluation", "protocol", "label", "images")}
    about = result.get("about", {})
    return facts | {key: about.get(key) for key in ("encoder", "data_version")}


def is_same(path: Path, wanted: dict[str, Any]) -> bool:
    """True if ``path`` exists, is undamaged and holds a result of this identity."""
    if not path.exists():
        return False
    try:
        return identity_in(read_result(path)) == wanted
    except UserError as error:
        print(f"{error}: made anew", flush=True)
        return False
