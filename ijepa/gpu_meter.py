"""Meter of a training's GPU: memory, speed, share of the card's peak, energy."""

from collections.abc import Callable

import torch

from ijepa.config import RunConfig
from ijepa.cost.cards import GPUS, named
from ijepa.cost.flops import size
from ijepa.distributed import World
from ijepa.precision import is_bfloat16


class Meter:
    """Meter of this process's GPU; without a GPU it reads nothing.

    FLOPs are those of ijepa.cost, for which a step is counted on no device, in seconds. The share
    of the peak is left out for a card that ijepa.cost.cards does not have, energy without NVML
    (pip install nvidia-ml-py).
    """

    def __init__(self, run: RunConfig, world: World) -> None:
        self.is_on = torch.cuda.is_available() and world.rank == 0
        if not self.is_on:
            return
        optim = run.recipe.optim
        images = optim.batch_size // (world.size * optim.accumulate)
        half = is_bfloat16(run.precision, torch.device("cuda"))
        self.flops = size(run, images, half).flops / world.size
        card = named(torch.cuda.get_device_name())
        self.peak = None if card is None else 1e12 * GPUS[card].peak(run.precision)
        self.energy = energy()
        self.joules = self.energy() if self.energy else 0.0

    def read(self, images_per_s: float) -> dict[str, float]:
        """Facts of one card for a line of the log.

        ``gpu_gb`` is the most memory that tensors took since the start, ``joules`` the board's
        energy since the last line.
        """
        if not self.is_on:
            return {}
        speed = images_per_s * self.flops
        facts = {
            "gpu_gb": round(torch.cuda.max_memory_allocated() / 1e9, 3),
            "tflop_per_s": round(speed / 1e12, 3),
        }
        if self.peak:
            facts["share_of_peak"] = round(speed / self.peak, 4)
        if self.energy:
            joules = self.energy()
            facts["joules"], self.joules = round(joules - self.joules, 1), joules
        return facts


def energy() -> Callable[[], float] | None:
    """Reader of the joules that the board took since its driver was loaded; None without NVML."""
    try:
        import pynvml
    except ImportError:
        return None
    try:
        pynvml.nvmlInit()
        # By its UUID: CUDA numbers only the cards that this process sees, NVML all.
        board = pynvml.nvmlDeviceGetHandleByUUID(f"GPU-{torch.cuda.get_device_properties().uuid}")
        pynvml.nvmlDeviceGetTotalEnergyConsumption(board)
    except pynvml.NVMLError as error:
        print(f"the log has no energy: this board does not tell it ({error})", flush=True)
        return None
    return lambda: pynvml.nvmlDeviceGetTotalEnergyConsumption(board) / 1000
