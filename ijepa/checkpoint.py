"""Checkpoints of an unfinished run, and the encoder that a finished run hands to evaluation."""

import dataclasses
import json
import pickle
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from ijepa.architecture import Variant, ViTConfig
from ijepa.config import RunConfig, as_plain
from ijepa.encoder_file import read_header
from ijepa.errors import UserError
from ijepa.files import digest, written_whole
from ijepa.provenance import here
from ijepa.vit import ViT

TORN = (RuntimeError, OSError, EOFError, KeyError, ValueError, pickle.UnpicklingError)
"""Errors that torch raises for a file that was cut off, or that holds something else."""


def save(path: Path, method: nn.Module, optimizer: torch.optim.Optimizer, step: int) -> None:
    """Write the state after ``step`` updates, whole or not at all."""
    write(path, state_of(method, optimizer, step))


def state_of(method: nn.Module, optimizer: torch.optim.Optimizer, step: int) -> dict[str, Any]:
    """State after ``step`` updates; its tensors are the run's own."""
    return {"step": step, "method": method.state_dict(), "optimizer": optimizer.state_dict()}


def write(path: Path, state: dict[str, Any]) -> None:
    """Write a state as a checkpoint, whole or not at all."""
    try:
        with written_whole(path) as part:
            torch.save(state, part)
    except RuntimeError as error:  # torch's writer gives no reason; usually the disk is full
        raise cannot_be_written(path, error) from None


def resume(path: Path, method: nn.Module, optimizer: torch.optim.Optimizer) -> int:
    """Load a checkpoint and return its number of updates; 0 if there is no checkpoint.

    A checkpoint that cannot be read is an error: a run never starts from the beginning by itself.
    """
    if not path.exists():
        return 0
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
        step, weights, moments = int(state["step"]), state["method"], state["optimizer"]
    except PermissionError:
        raise
    except TORN as error:
        raise UserError(
            f"{path} is damaged ({type(error).__name__} {str(error).partition(chr(10))[0]}): "
            "restore it, "
            "or delete it to start this run from the beginning"
        ) from None
    try:
        method.load_state_dict(weights)
        optimizer.load_state_dict(moments)
    except (RuntimeError, ValueError) as error:
        raise UserError(
            f"{path} was made by other code, or for another network "
            f"({str(error).partition(chr(10))[0]}): go on with the code that made it, "
            "or move it away to start this run from the beginning"
        ) from None
    return step


def save_encoder(path: Path, encoder: ViT, run: RunConfig, facts: dict[str, Any]) -> None:
    """Write an encoder as safetensors; its header holds the run's configuration and ``facts``."""
    about = {
        "run": as_plain(run),
        "variant": dataclasses.asdict(encoder.variant),
        "facts": {**facts, **here()},
    }
    weights = {name: value.contiguous().cpu() for name, value in encoder.state_dict().items()}
    save_tensors(path, weights, about)


def save_tensors(
    path: Path,
    tensors: dict[str, Tensor],
    about: dict[str, Any],
    replace: bool = True,
    key: str = "ijepa",
) -> None:
    """Write tensors as safetensors with a header under ``key``, whole or not at all.

    If ``replace`` is false, a file with other content at ``path`` is an error.
    """
    try:
        with written_whole(path) as part:
            save_file(tensors, part, metadata={key: json.dumps(about)})
            may_replace(path, part, replace)
    except SafetensorError as error:
        raise cannot_be_written(path, error) from None


def may_replace(path: Path, part: Path, replace: bool) -> None:
    """Raise UserError if ``path`` is a folder or, unless ``replace``, differs from ``part``."""
    if path.is_dir():
        raise UserError(f"{path} is a folder: name a file")
    if not replace and path.exists() and digest(path) != digest(part):
        raise UserError(f"{path} exists and is another file: move it away, or say --force")


def cannot_be_written(path: Path, error: Exception) -> UserError:
    """UserError for a file that a library failed to write."""
    reason = str(error).splitlines()[0]
    return UserError(
        f"{path} cannot be written ({reason}): if the disk is full, free some space, then run the "
        "same command again; what is finished is kept"
    )


def load_encoder(path: Path) -> tuple[ViT, dict[str, Any]]:
    """Encoder in evaluation mode, and its header: ``run``, ``variant`` and ``facts``."""
    about = read_header(path)
    with safe_open(path, framework="pt") as file:
        weights = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    encoder = ViT(ViTConfig(**about["run"]["vit"]), Variant(**about.get("variant", {})))
    try:
        encoder.load_state_dict(weights)
    except RuntimeError as error:
        raise UserError(f"{path} does not fit its own header: {error}") from None
    return encoder.eval(), about
