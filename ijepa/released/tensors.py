"""Tensors of torch and safetensors files that others wrote, however their trainings wrap them."""

import _codecs
import argparse
import json
import re
import struct
import zipfile
from collections.abc import Iterator
from datetime import date, datetime, timedelta, timezone
from pathlib import Path, PurePosixPath, PureWindowsPath
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from ijepa.checkpoint import TORN
from ijepa.errors import UserError

GARBLED = (*TORN, AssertionError, AttributeError, IndexError, TypeError, struct.error)
"""Errors that torch raises for a file in which bytes were changed, those of TORN included."""


def _list(values: Any = (), maxlen: int | None = None) -> list[Any]:
    """Stands for a deque, which torch's reader does not fill."""
    return list(values)


def _dict(factory: Any = None) -> dict[Any, Any]:
    """Stands for a defaultdict, which torch's reader does not fill."""
    return {}


PATHS = [
    (pure, f"{module}.{kind}{name}")
    for pure, name in ((PurePosixPath, "PosixPath"), (PureWindowsPath, "WindowsPath"))
    for module in ("pathlib", "pathlib._local")  # the latter is Python 3.13's
    for kind in ("", "Pure")
]
SCALAR, ARRAY = np.float64(0).__reduce__()[0], np.zeros(0).__reduce__()[0]
VALUES: list[Any] = [
    argparse.Namespace, SimpleNamespace, date, datetime, timedelta, timezone, *PATHS,
    (_list, "collections.deque"), (_dict, "collections.defaultdict"), dict, float, int, list,
    np.ndarray, np.dtype, SCALAR, ARRAY, _codecs.encode,
    (SCALAR, "numpy.core.multiarray.scalar"), (ARRAY, "numpy.core.multiarray._reconstruct"),
    *{type(np.dtype(code)) for code in "?SUbhilqBHILQefdgmM"},
]  # fmt: skip
"""Types that only hold values, which trainings save beside their weights: arguments, metrics.

Not among them are numpy's objects and records: from their bytes a file can make pointers, and a
reader of those runs into any memory.
"""
WRAPPERS = re.compile(
    r"\b(_orig_mod|_fsdp_wrapped_module|_checkpoint_wrapped_module|_forward_module|"
    r"base_model\.model)\."
)
"""Parts of names that others put before a module's own: torch.compile, FSDP, activation
checkpoints, Lightning around DeepSpeed, PEFT."""


def read_tensors(path: Path) -> dict[str, Tensor]:
    """Every tensor of a torch or safetensors file, named by its path through the dictionaries.

    No code in a file is ever run. Raises UserError if the file holds code, or is of another kind.
    """
    if not path.is_file():
        raise UserError(f"{path} is {'a folder' if path.exists() else 'missing'}: name a file")
    if not path.stat().st_size:
        raise UserError(f"{path} is empty: get it again")
    if ours(path):
        raise UserError(f"{path} is a file of this project already: use it as it is")
    try:
        if is_safetensors(path):
            with safe_open(path, framework="pt") as file:
                content = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        else:
            with torch.serialization.safe_globals(VALUES):
                content = torch.load(
                    path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path)
                )
    except (SafetensorError, *GARBLED) as error:
        if code := re.search(r"GLOBAL (\S+)", str(error)):
            raise UserError(
                f"{path} holds code ({code[1]}), which is not run: get a file of tensors only"
            ) from None
        if kind := re.search(r"but got <class '([\w.]+)'", str(error)):
            raise UserError(
                f"{path} holds {kind[1]} among its values, which is not read for safety: get a "
                "file of tensors only"
            ) from None
        # torch's first line may advise the user to run the code: leave it out.
        reason = str(error).split("WeightsUnpickler error: ")[-1].strip().partition("\n")[0]
        raise UserError(
            f"{path} is damaged, or is no file of torch or safetensors ({reason}): get it again"
        ) from None
    tensors = dict(flattened(content))
    for name, value in tensors.items():
        if value.is_meta or value.layout != torch.strided:
            what = "a tensor without values (meta)" if value.is_meta else "no dense tensor"
            raise UserError(f"{path}: {name} is {what}: get a file of dense weights")
    return tensors


def is_safetensors(path: Path) -> bool:
    """True if a file begins as safetensors do, whatever its name: its header's length, then {."""
    with path.open("rb") as file:
        head = file.read(9)
    return head[8:] == b"{" and int.from_bytes(head[:8], "little") <= path.stat().st_size


def flattened(value: Any, name: str = "") -> Iterator[tuple[str, Tensor]]:
    """Tensors in nested dictionaries and lists, with their paths without WRAPPERS."""
    if isinstance(value, Tensor):
        yield WRAPPERS.sub("", name), value
    elif isinstance(value, dict | list | tuple):
        for key, item in value.items() if isinstance(value, dict) else enumerate(value):
            yield from flattened(item, f"{name}.{key}" if name else str(key))


def ours(path: Path) -> dict[str, Any]:
    """Header of an encoder of this project; empty for any other file."""
    try:
        with safe_open(path, framework="pt") as file:
            about: dict[str, Any] = json.loads((file.metadata() or {}).get("ijepa", "{}"))
            return about if "run" in about else {}
    except (SafetensorError, OSError, json.JSONDecodeError):
        return {}
