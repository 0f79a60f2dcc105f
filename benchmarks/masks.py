"""Time to sample masks: ``python -m benchmarks.masks``; 5 ms for 128 images on 16x16 is the limit.

2026-11-22, one core of an AMD EPYC (busy, so the shortest of 50), torch 2.15, on 16x16: multi_block
1.1 ms (fixed 1.6), rasterised 0.04, block 0.2, random 1.6, block_wise 3.0, random_masks 1.2.
"""

import time
from collections.abc import Callable

import torch

from ijepa.masking import Masking, block_wise, random_masks, sampler

REPEATS = 50
IMAGES = 128


def report(name: str, sample: Callable[[], object]) -> None:
    """Print the shortest and the mean time of a call in milliseconds."""
    sample()
    times = []
    for _ in range(REPEATS):
        begun = time.perf_counter()
        sample()
        times.append((time.perf_counter() - begun) * 1000)
    print(f"{name}: min {min(times):.2f} ms, mean {sum(times) / REPEATS:.2f} ms")


def main() -> None:
    torch.set_num_threads(1)
    generator = torch.Generator().manual_seed(0)
    for grid, config in (
        ((16, 16), Masking()),
        ((14, 14), Masking()),
        ((8, 8), Masking(mode="fixed", min_keep=3)),
        ((16, 16), Masking(mode="fixed")),
        ((16, 16), Masking(strategy="rasterised")),
        ((16, 16), Masking(strategy="block")),
        ((16, 16), Masking(strategy="random")),
    ):
        masks = sampler(config, grid)
        report(
            f"{grid} {config.strategy} {config.mode}",
            lambda masks=masks: masks.sample(IMAGES, generator),  # type: ignore[misc]
        )
    counts_B = torch.randint(128, 155, (IMAGES,), generator=generator)  # 50 to 60 %
    report("(16, 16) block_wise", lambda: block_wise(counts_B, (16, 16), generator))
    report("(16, 16) random_masks", lambda: random_masks(counts_B, 256, generator))


if __name__ == "__main__":
    main()
