"""A recorded step: its weights put into our networks, its numbers beside ours.

The error is the norm of the difference over the norm of the recorded value.
"""

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from ijepa.architecture import ViTConfig
from ijepa.method import Method
from ijepa.released.convert import CONSTANTS, translate

LIMIT = 1e-4
LOSS_LIMIT = 1e-5

Recorded = dict[str, NDArray[Any]]


class Error(NamedTuple):
    """One line of the comparison."""

    name: str
    value: float
    limit: float


def relative(ours: Any, recorded: Any) -> float:
    """Norm of the difference over norm of the recorded value."""
    ours, recorded = (np.asarray(torch.as_tensor(v).detach(), np.float64) for v in (ours, recorded))
    if ours.shape != recorded.shape:
        return float("inf")
    difference, norm = np.linalg.norm(ours - recorded), np.linalg.norm(recorded)
    return float(difference / norm if norm else difference)


def shape(file: Recorded, meta: dict[str, Any], prefix: str) -> ViTConfig:
    """The encoder's shape, the width of its feed-forward parts from their recorded biases."""
    hidden = file.get(f"{prefix}blocks.0.mlp.fc1.bias")
    return ViTConfig(
        image_size=meta["img"],
        patch_size=meta["patch"],
        dim=meta["dim"],
        depth=meta["depth"],
        num_heads=meta["heads"],
        mlp_ratio=4.0 if hidden is None else hidden.size / meta["dim"],
    )


def rename(weights: dict[str, torch.Tensor], names: dict[str, str]) -> dict[str, torch.Tensor]:
    """Weights under our names, in which the first matching prefix of ``names`` is replaced.

    Constants that a release stores and we compute are left out. Raises ValueError for a name
    that no prefix matches.
    """
    renamed = {}
    for name, value in weights.items():
        if name.endswith(CONSTANTS):
            continue
        ours = translate(name, names)
        if ours is None:
            raise ValueError(f"unknown weight {name}: known are {', '.join(names)}")
        renamed[ours] = value
    return renamed


def load(
    method: Method, file: Recorded, names: dict[str, str], strict: bool = True
) -> Iterator[Error]:
    """Put the recorded weights in; fixed positions are compared with our own first."""
    recorded = {key.replace("/", "."): torch.from_numpy(v) for key, v in entries(file, "before/")}
    weights = rename(recorded, names)
    for name, value in weights.items():
        if "pos_embed" in name and not method.get_parameter(name).requires_grad:
            yield Error(f"before/{name}", relative(method.get_parameter(name), value), LIMIT)
    missing, unexpected = method.load_state_dict(weights, strict=False)
    centres = {name for name, _ in method.named_buffers()}
    missing = [name for name in missing if name not in centres]
    if unexpected or (strict and missing):
        raise SystemExit(f"error: unknown weights {unexpected}, missing weights {missing}")


def gradients(
    method: Method, file: Recorded, names: dict[str, str], cancelled: tuple[str, ...] = ()
) -> Iterator[Error]:
    """Recorded gradients beside ours.

    A shift of all keys alike cancels in the softmax. So the recorded gradients of CAE's ``norm1_k``
    biases are rounding errors, and no relative error of them can be small. Two gradients that are
    both below float32's resolution of all gradients count as equal.

    BatchNorm cancels the bias of the layer before it too (``cancelled``). Its rounding errors are
    those of the layer's weight, so there the bound is LIMIT times the weight's gradient.
    """
    recorded = [np.linalg.norm(value) for _, value in entries(file, "grad/")]
    resolution = float(np.finfo(np.float32).eps) * float(np.linalg.norm(recorded))
    errors = parameters(method, file, names, "grad/", lambda parameter: parameter.grad)
    for error in errors:
        zero, ours = resolution, error.value * float(np.linalg.norm(file[error.name]))
        if error.name in cancelled:
            weight = file[f"{error.name.removesuffix('bias')}weight"]
            zero = LIMIT * float(np.linalg.norm(weight))
        is_zero = max(ours, float(np.linalg.norm(file[error.name]))) < zero
        yield error._replace(value=0.0) if is_zero else error


def parameters(
    method: Method,
    file: Recorded,
    names: dict[str, str],
    prefix: str,
    value: Callable[[nn.Parameter], Any],
) -> Iterator[Error]:
    """A recorded value of each parameter beside ours."""
    for key, recorded in entries(file, prefix):
        ((name, _),) = rename({key.replace("/", "."): torch.empty(0)}, names).items()
        ours = value(method.get_parameter(name))
        yield Error(prefix + key, float("inf") if ours is None else relative(ours, recorded), LIMIT)


def compare(ours: dict[str, Any], file: Recorded, limit: float = LIMIT) -> Iterator[Error]:
    """Named values beside those recorded under the same names."""
    return (Error(name, relative(value, file[name]), limit) for name, value in ours.items())


def entries(file: Recorded, prefix: str) -> list[tuple[str, NDArray[Any]]]:
    """The entries whose names begin with a prefix, which is cut off."""
    return [(k.removeprefix(prefix), value) for k, value in file.items() if k.startswith(prefix)]
