"""Time of attention, both passes, by kernel and format: ``python -m benchmarks.attention``.

These times are why ijepa.precision asks for plain products on a CPU. 2026-11-22, 2 cores of an AMD
EPYC with avx512_bf16, torch 2.15, milliseconds for 1024 sequences of 30, 3 heads of 32: bfloat16
flash 140, plain 51; float32 flash 44, plain 68.
"""

import time

import torch
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

SHAPES = [(1024, 3, 30, 32), (256, 2, 20, 64), (256, 2, 64, 64)]
REPEATS = 3


def milliseconds(shape: tuple[int, int, int, int], dtype: torch.dtype, kernel: SDPBackend) -> float:
    """Mean time of a forward and backward pass over [sequences, heads, length, features]."""
    q, k, v = (torch.randn(shape, dtype=dtype, requires_grad=True) for _ in range(3))
    begun = 0.0
    for repeat in range(REPEATS + 1):
        if repeat == 1:  # the first one warms up
            begun = time.perf_counter()
        with sdpa_kernel(kernel):
            F.scaled_dot_product_attention(q, k, v).sum().backward()
    return (time.perf_counter() - begun) / REPEATS * 1000


def main() -> None:
    torch.backends.cuda.allow_fp16_bf16_reduction_math_sdp(True)
    for shape in SHAPES:
        for dtype in (torch.bfloat16, torch.float32):
            times = {
                kernel.name: f"{milliseconds(shape, dtype, kernel):.0f} ms"
                for kernel in (SDPBackend.FLASH_ATTENTION, SDPBackend.MATH)
            }
            print(shape, dtype, times)


if __name__ == "__main__":
    main()
