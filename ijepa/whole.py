"""All networks of a run in one file: both towers, predictor or decoder, heads, centres.

The tensors have the names of the method's release, so the file can be taken in like the release's
own (``python -m ijepa.released.weights import``) and, for MAE and DINO, by timm. A method without
published weights has its own names.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file

from ijepa.checkpoint import save_tensors
from ijepa.config import RunConfig, as_plain, parse_run
from ijepa.errors import UserError
from ijepa.method import Method, load_method
from ijepa.provenance import here

HEADER = "ijepa_whole"
"""Key of the file's header."""


def save_whole(path: Path, method: Method, run: RunConfig, facts: dict[str, Any]) -> None:
    """Write everything that was learned; the header holds the run's configuration and ``facts``."""
    tensors = {
        published_name(name, run.method): value.detach().cpu().clone().contiguous()
        for name, value in method.state_dict().items()
    }
    about = {"run": as_plain(run), "facts": {**facts, **here()}}
    save_tensors(path, tensors, about, key=HEADER)


def load_whole(path: Path) -> tuple[Method, dict[str, Any]]:
    """All networks of a run in evaluation mode, and the header: ``run`` and ``facts``."""
    about = read_about(path)
    if not about:
        raise UserError(
            f"{path} is no file of all networks of a run: name a run's whole.safetensors "
            "(keep.whole in its config)"
        )
    run = parse_run(about["run"], str(path), checked=False)
    method = load_method(run.method).Method(run.recipe, run.vit)
    weights = {own_name(name, run.method): value for name, value in load_file(path).items()}
    try:
        method.load_state_dict(weights)
    except RuntimeError as error:
        raise UserError(f"{path} does not fit its own header: {error}") from None
    return method.eval(), about


def read_about(path: Path) -> dict[str, Any]:
    """Header of a file of all networks; empty for any other file."""
    try:
        with safe_open(path, framework="numpy") as file:
            about: dict[str, Any] = json.loads((file.metadata() or {}).get(HEADER, "{}"))
            return about
    except (SafetensorError, OSError, json.JSONDecodeError):
        return {}


def published_name(name: str, method: str) -> str:
    """Name in a method's release of one of our parameters; its own if the release has none."""
    return _renamed(name, {ours: theirs for theirs, ours in _released(method).items()})


def own_name(name: str, method: str) -> str:
    """Our name of a tensor that a method's release calls ``name``."""
    return _renamed(name, _released(method))


def _released(method: str) -> Mapping[str, str]:
    names: Mapping[str, str] = getattr(load_method(method), "RELEASED", {})
    return names


def _renamed(name: str, names: Mapping[str, str]) -> str:
    """Name whose longest beginning among ``names`` is replaced."""
    fitting = [(old, new) for old, new in names.items() if name.startswith(old)]
    old, new = max(fitting, key=lambda pair: len(pair[0]), default=("", ""))
    return new + name.removeprefix(old)
