"""In which number format a network computes on which device."""

import contextlib
from collections.abc import Iterator

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel


@contextlib.contextmanager
def precision(setting: str, device: torch.device) -> Iterator[None]:
    """bfloat16 autocast where asked for, or where ``auto`` finds hardware that computes in it."""
    if setting == "auto":
        setting = "bfloat16" if fast_bfloat16(device) else "float32"
    with contextlib.ExitStack() as stack:
        if device.type == "cpu" and setting == "bfloat16":
            # On a CPU the flash kernel's backward pass in bfloat16 takes 3 to 6 times as long as
            # plain products (benchmarks/attention.py).
            stack.enter_context(sdpa_kernel(SDPBackend.MATH))
            torch.backends.cuda.allow_fp16_bf16_reduction_math_sdp(True)
        stack.enter_context(
            torch.autocast(device.type, torch.bfloat16, enabled=setting == "bfloat16")
        )
        yield


def fast_bfloat16(device: torch.device) -> bool:
    """Whether the device multiplies in bfloat16 rather than emulating it."""
    if device.type == "cuda":
        return torch.cuda.get_device_capability(device) >= (8, 0)
    capabilities = torch.cpu.get_capabilities()
    return bool(capabilities.get("avx512_bf16") or capabilities.get("amx_bf16"))
