"""Checkpoints of a run under way, and encoders: what a finished run hands to evaluation."""

import dataclasses
import json
import pickle
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import nn

from ijepa.config import RunConfig
from ijepa.errors import UserError
from ijepa.files import written_whole
from ijepa.provenance import here
from ijepa.vit import ViT, ViTConfig


def save(path: Path, method: nn.Module, optimizer: torch.optim.Optimizer, step: int) -> None:
    """Write the state after ``step`` updates, whole or not at all."""
    with written_whole(path) as part:
        state = {"step": step, "method": method.state_dict(), "optimizer": optimizer.state_dict()}
        torch.save(state, part)


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
    except (RuntimeError, OSError, pickle.UnpicklingError, EOFError, KeyError) as error:
        raise UserError(
            f"{path} is damaged ({str(error).splitlines()[0]}): restore it, "
            "or delete it to start this run from the beginning"
        ) from None


def save_encoder(path: Path, encoder: ViT, run: RunConfig, facts: dict[str, Any]) -> None:
    """Write an encoder as safetensors; its header holds the run's configuration and ``facts``."""
    about = {"run": dataclasses.asdict(run), "facts": {**facts, **here()}}
    weights = {name: value.contiguous().cpu() for name, value in encoder.state_dict().items()}
    with written_whole(path) as part:
        save_file(weights, part, metadata={"ijepa": json.dumps(about)})


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
