"""Checkpoints of a run under way, and encoders: what a finished run hands to evaluation."""

import dataclasses
import json
import pickle
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from ijepa.config import RunConfig
from ijepa.errors import UserError
from ijepa.files import written_whole
from ijepa.provenance import here
from ijepa.vit import ViT, ViTConfig

TORN = (RuntimeError, OSError, EOFError, KeyError, ValueError, pickle.UnpicklingError)
"""What torch raises for a file that was cut off, or that holds something else."""


def save(path: Path, method: nn.Module, optimizer: torch.optim.Optimizer, step: int) -> None:
    """Write the state after ``step`` updates, whole or not at all."""
    state = {"step": step, "method": method.state_dict(), "optimizer": optimizer.state_dict()}
    try:
        with written_whole(path) as part:
            torch.save(state, part)
    except RuntimeError as error:  # torch's writer does not say why; the disk is full, as a rule
        raise cannot_be_written(path, error) from None


def resume(path: Path, method: nn.Module, optimizer: torch.optim.Optimizer) -> int:
    """The number of updates done, after their state was loaded; 0 where there is no checkpoint.

    A checkpoint that cannot be read is an error: a run never starts again by itself.
    """
    if not path.exists():
        return 0
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
        method.load_state_dict(state["method"])
        optimizer.load_state_dict(state["optimizer"])
        return int(state["step"])
    except TORN as error:
        raise UserError(
            f"{path} is damaged ({type(error).__name__} {str(error).partition(chr(10))[0]}): "
            "restore it, "
            "or delete it to start this run from the beginning"
        ) from None


def save_encoder(path: Path, encoder: ViT, run: RunConfig, facts: dict[str, Any]) -> None:
    """Write an encoder as safetensors; its header holds the run's configuration and ``facts``."""
    about = {"run": dataclasses.asdict(run), "facts": {**facts, **here()}}
    weights = {name: value.contiguous().cpu() for name, value in encoder.state_dict().items()}
    save_tensors(path, weights, about)


def save_tensors(path: Path, tensors: dict[str, Tensor], about: dict[str, Any]) -> None:
    """Write tensors as safetensors with a header, whole or not at all."""
    try:
        with written_whole(path) as part:
            save_file(tensors, part, metadata={"ijepa": json.dumps(about)})
    except SafetensorError as error:
        raise cannot_be_written(path, error) from None


def cannot_be_written(path: Path, error: Exception) -> UserError:
    """The error for a file that a library failed to write."""
    reason = str(error).splitlines()[0]
    return UserError(
        f"{path} cannot be written ({reason}): if the disk is full, free some space, then run the "
        "same command again; what is finished is kept"
    )


def load_encoder(path: Path) -> tuple[ViT, dict[str, Any]]:
    """An encoder in evaluation mode, and its header: ``run`` and ``facts``."""
    try:
        with safe_open(path, framework="pt") as file:
            about = json.loads(file.metadata()["ijepa"])
            weights = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except FileNotFoundError:
        raise UserError(f"{path} does not exist: pretrain it first") from None
    except (SafetensorError, KeyError, TypeError) as error:
        raise UserError(
            f"{path} is not an encoder of this project ({error}): pretrain it again"
        ) from None
    encoder = ViT(ViTConfig(**about["run"]["vit"]))
    try:
        encoder.load_state_dict(weights)
    except RuntimeError as error:
        raise UserError(f"{path} does not fit its own header: {error}") from None
    return encoder.eval(), about
