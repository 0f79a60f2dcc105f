"""A CUDA device without a GPU, on which every wait of the host is an error.

Tensors of the device have a shape and no values (torch's FakeTensor). Tensors of the host are real,
because masks need their values. ``OnDevice`` raises Waited where a real device would make the host
wait: for a value (``item``, ``bool``), for a shape (``nonzero``, a boolean index), for a copy that
is not queued, or is queued from ordinary memory, and for a mix of devices.

Autograd asks for a real device, so that a backward pass runs on the CPU, within ``NoWaiting``.
"""

from typing import Any, TypeVar
from unittest.mock import Mock

import pytest
import torch
from torch import Tensor, nn
from torch._subclasses import FakeTensor, FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

Network = TypeVar("Network", bound=nn.Module)

CUDA = torch.device("cuda", 0)
FAKE = FakeTensorMode(allow_non_fake_inputs=True)
aten = torch.ops.aten
WAITING = {
    aten._local_scalar_dense.default,
    aten.nonzero.default,
    aten.masked_select.default,
    aten.is_nonzero.default,
    aten.equal.default,
    aten._unique2.default,
    aten.unique_consecutive.default,
    aten.repeat_interleave.Tensor,
    aten.bincount.default,
}


class Waited(Exception):
    """The host would wait for the device."""


class NoWaiting(TorchDispatchMode):
    """Mode in which no operation may need the value of a tensor, whatever its device."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        is_boolean_index = func is aten.index.Tensor and any(
            index is not None and index.dtype is torch.bool for index in args[1]
        )
        if func in WAITING or is_boolean_index:
            raise Waited(f"{func} needs values")
        return func(*args, **kwargs or {})


class OnDevice(NoWaiting):
    """Mode of the fake device."""

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        tensors = [x for x in tree_leaves((args, kwargs)) if isinstance(x, Tensor)]
        if func is aten._pin_memory.default:
            pinned = args[0].clone()
            pinned.is_pinned_here = True
            return pinned
        if func is aten._to_copy.default and kwargs.get("device") is not None:
            return self.copy(args[0], kwargs)
        wanted = kwargs.get("device")
        is_here = any(isinstance(x, FakeTensor) for x in tensors)
        if not is_here and (wanted is None or torch.device(wanted).type != "cuda"):
            return func(*args, **kwargs)
        if wrong := [tuple(x.shape) for x in tensors if x.device.type == "cpu" and x.ndim]:
            raise Waited(f"{func} mixes devices: tensors of shape {wrong} lie on the CPU")
        with FAKE:
            return super().__torch_dispatch__(func, types, args, kwargs)

    def copy(self, x: Tensor, kwargs: dict[str, Any]) -> Tensor:
        """Copy of a tensor on a device; raises Waited if the host waits for it."""
        device, dtype = torch.device(kwargs["device"]), kwargs.get("dtype") or x.dtype
        if x.device.type != device.type:
            if not kwargs.get("non_blocking"):
                raise Waited(f"a copy to {device} is not queued: shape {tuple(x.shape)}")
            if device.type == "cuda" and not hasattr(x, "is_pinned_here"):
                raise Waited(f"a copy to {device} is from ordinary memory: shape {tuple(x.shape)}")
        if device.type == "cpu":
            return torch.zeros(x.shape, dtype=dtype)
        with FAKE:
            return torch.empty(x.shape, dtype=dtype, device=CUDA)


@pytest.fixture
def cuda(monkeypatch: pytest.MonkeyPatch) -> torch.device:
    """The fake device; torch does not look for a driver, and events need none."""
    monkeypatch.setattr(torch.cuda, "_lazy_init", lambda: None)
    monkeypatch.setattr(torch.cuda, "Event", Mock)
    monkeypatch.setattr(torch.cuda, "current_stream", Mock())
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device=None: (9, 0))
    return CUDA


def on_device(network: Network) -> Network:
    """Move a network to the fake device."""
    for module in network.modules():
        stores: list[dict[str, Any]] = [module._parameters, module._buffers]
        for store in stores:
            for name, x in store.items():
                if x is not None:
                    with FAKE:
                        y = torch.empty(x.shape, dtype=x.dtype, device=CUDA)
                    is_parameter = isinstance(x, nn.Parameter)
                    store[name] = nn.Parameter(y, x.requires_grad) if is_parameter else y
    return network
