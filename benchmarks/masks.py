"""Time to sample masks: ``python -m benchmarks.masks``; 5 ms for 128 images on 16x16 is the limit.

2026-11-22, one core of an AMD EPYC, torch 2.15: 2.8 ms.
"""

import time

import torch

from ijepa.masking import Masking, MultiBlock

REPEATS = 50


def main() -> None:
    torch.set_num_threads(1)
    for grid, config in (
        ((16, 16), Masking()),
        ((14, 14), Masking()),
        ((8, 8), Masking(mode="fixed", min_keep=3)),
    ):
        sampler, generator = MultiBlock(config, grid), torch.Generator().manual_seed(0)
        begun = time.perf_counter()
        for _ in range(REPEATS):
            sampler.sample(128, generator)
        print(f"{grid} {config.mode}: {(time.perf_counter() - begun) / REPEATS * 1000:.2f} ms")


if __name__ == "__main__":
    main()
