"""Peaks, memory and power of the cards for which costs are predicted."""

from typing import NamedTuple


class Gpu(NamedTuple):
    """Peaks of a card (dense matrix products, TFLOP/s), its memory (GB) and board limit (W)."""

    half: float
    single: float
    memory: float
    watts: float
    bfloat16: bool = True


# The vendor's data sheets, SXM boards: "NVIDIA V100" (2020), "NVIDIA A100" (2021), "NVIDIA H100"
# (2023), "NVIDIA H200" (2024). ``half`` is bfloat16, half of the value "with sparsity"; on V100 it
# is float16, which the releases used, while ijepa.precision computes there in float32.
GPUS = {
    "v100-16gb": Gpu(125, 15.7, 16, 300, bfloat16=False),
    "v100-32gb": Gpu(125, 15.7, 32, 300, bfloat16=False),
    "a100-40gb": Gpu(312, 19.5, 40, 400),
    "a100-80gb": Gpu(312, 19.5, 80, 400),
    "h100": Gpu(989, 67, 80, 700),
    "h200": Gpu(989, 67, 141, 700),
}
CPU_UTILISATION = 0.43
"""Share of a matrix product's speed that the steps of config/mini.yaml reach beside a loader on a
CPU (LOG.md, 2026-11-29)."""
UTILISATION = 0.2
"""Share of a card's peak that pretraining reaches (see ijepa.cost)."""
