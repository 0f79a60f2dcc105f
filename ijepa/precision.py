"""Number format in which a network computes on a device: float32, TF32 or bfloat16."""

import contextlib
from collections.abc import Iterator
from typing import Any

import torch
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel


@contextlib.contextmanager
def precision(setting: str, device: torch.device) -> Iterator[None]:
    """Autocast to bfloat16 if asked for, or if ``auto`` finds hardware that computes in it."""
    enabled = is_bfloat16(setting, device)
    with kernels(setting, device), torch.autocast(device.type, torch.bfloat16, enabled=enabled):
        yield


@contextlib.contextmanager
def kernels(setting: str, device: torch.device) -> Iterator[None]:
    """Select the kernels of ``precision``, also for a backward pass.

    On a CPU the flash kernel's backward pass in bfloat16 takes 3 to 6 times as long as plain
    products (benchmarks/attention.py); see also ``choose_attention``. On a GPU, torch by default
    rounds float32 to TF32 in convolutions and not in other products: here it does so in both or in
    none.
    """
    if device.type == "cuda":
        torch.set_float32_matmul_precision("high" if setting == "tf32" else "highest")
        torch.backends.cudnn.allow_tf32 = setting == "tf32"
        yield
    elif is_bfloat16(setting, device):
        torch.backends.cuda.allow_fp16_bf16_reduction_math_sdp(True)
        with sdpa_kernel(SDPBackend.MATH):
            yield
    else:
        yield


def choose_attention(network: nn.Module, setting: str, device: torch.device) -> None:
    """Let timm's attention compute plain products itself where ``kernels`` asks for them.

    Torch's own plain products also look for rows that are masked as a whole, which no method here
    has: without that search a step of config/mini.yaml takes 7 % less time.
    """
    plain = device.type == "cpu" and is_bfloat16(setting, device)
    for module in network.modules():
        if hasattr(module, "fused_attn"):
            module.fused_attn = not plain  # type: ignore[assignment]


def without_autocast(device: torch.device) -> contextlib.AbstractContextManager[Any]:
    """Context without autocast, for sums that bfloat16 would round; the meta device has none."""
    if device.type == "meta":
        return contextlib.nullcontext()
    return torch.autocast(device.type, enabled=False)


def is_bfloat16(setting: str, device: torch.device) -> bool:
    """True if a setting means bfloat16 on a device."""
    return setting == "bfloat16" or (setting == "auto" and fast_bfloat16(device))


def fast_bfloat16(device: torch.device) -> bool:
    """True if the device multiplies in bfloat16 rather than emulating it."""
    if device.type == "cuda":
        return torch.cuda.get_device_capability(device) >= (8, 0)
    capabilities = torch.cpu.get_capabilities()
    return bool(capabilities.get("avx512_bf16") or capabilities.get("amx_bf16"))
