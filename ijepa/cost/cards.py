"""Peaks, memory and power of the cards for which costs are predicted."""

import re
from typing import NamedTuple


class Gpu(NamedTuple):
    """Peaks of a card (dense matrix products, TFLOP/s), its memory (GB) and board limit (W)."""

    half: float
    single: float
    memory: float
    watts: float
    bfloat16: bool = True
    tf32: float | None = None

    def peak(self, precision: str) -> float:
        """Peak in the format that a run's precision means on this card."""
        if precision == "tf32":
            return self.tf32 or self.single
        return self.half if self.bfloat16 and precision != "float32" else self.single


# The vendor's data sheets, SXM boards: "NVIDIA V100" (2020), "NVIDIA A100" (2021), "NVIDIA H100"
# (2023), "NVIDIA H200" (2024). TF32 and ``half``, which is bfloat16, are half of the values "with
# sparsity". On V100 ``half`` is float16, which the releases used, while ijepa.precision computes
# there in float32.
GPUS = {
    "v100-16gb": Gpu(125, 15.7, 16, 300, bfloat16=False),
    "v100-32gb": Gpu(125, 15.7, 32, 300, bfloat16=False),
    "a100-40gb": Gpu(312, 19.5, 40, 400, tf32=156),
    "a100-80gb": Gpu(312, 19.5, 80, 400, tf32=156),
    "h100": Gpu(989, 67, 80, 700, tf32=494),
    "h200": Gpu(989, 67, 141, 700, tf32=494),
}


def named(card: str) -> str | None:
    """Key of a card in GPUS, given its name in torch, such as "NVIDIA A100-SXM4-80GB"."""
    words = re.findall("[a-z0-9]+", card.lower())
    names = (
        name
        for name in GPUS
        if all(any(word.startswith(part) for word in words) for part in name.split("-"))
    )
    return next(names, None)


CPU_UTILISATION = 0.43
"""Share of a matrix product's speed that the steps of config/mini.yaml reach beside a loader on a
CPU (LOG.md, 2026-11-29)."""
UTILISATION = 0.2
"""Share of a card's peak that pretraining reaches (see ijepa.cost)."""
