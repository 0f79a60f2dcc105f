"""Images per second of a config's training step, beside its FLOPs and this machine's limit.

``python -m benchmarks.train_step config/mini.yaml``. The limit is a large matrix product in the
same number format; a step loses time to narrow layers, LayerNorm, GELU, softmax and copies.
"""

import argparse
import time
from pathlib import Path
from typing import Any

import torch
import yaml
from torch.utils.flop_counter import FlopCounterMode

from ijepa.config import parse_run
from ijepa.method import Batch, load_method
from ijepa.precision import fast_bfloat16, precision
from ijepa.provenance import here

REPEATS = 20


def measure(raw: dict[str, Any], device: torch.device) -> dict[str, Any]:
    """Throughput of forward and backward passes over random images; no loader, no optimiser."""
    run = parse_run(raw)
    torch.manual_seed(0)
    method = load_method(run.method).Method(run.recipe, run.vit).to(device)
    batch_size = run.recipe.optim.batch_size
    views = tuple(
        torch.randn(batch_size, 3, view.size, view.size, device=device)
        for view in run.recipe.views(run.vit.image_size)
    )
    N = run.vit.grid[0] * run.vit.grid[1]
    tokens = torch.zeros(batch_size, N, dtype=torch.long, device=device)

    def step(number: int) -> None:
        with precision(run.precision, device):
            loss = method(Batch(views, 0, number, tokens_BN=tokens))["loss"]
        loss.backward()
        loss.item()

    step(0)
    begun = time.perf_counter()
    for number in range(REPEATS):
        step(number)
    seconds = (time.perf_counter() - begun) / REPEATS
    with FlopCounterMode(display=False) as counter:
        for number in range(REPEATS):
            step(number)
    flops = counter.get_total_flops() / REPEATS
    return {
        "images_per_s": round(batch_size / seconds),
        "gflop_per_image": round(flops / batch_size / 1e9, 3),
        "gflop_per_s": round(flops / seconds / 1e9),
        "limit_gflop_per_s": round(limit(device) / 1e9),
    }


def limit(device: torch.device) -> float:
    """FLOP/s of a large matrix product."""
    dtype = torch.bfloat16 if fast_bfloat16(device) else torch.float32
    a, b = (torch.randn(4096, 4096, dtype=dtype, device=device) for _ in range(2))
    (a @ b).sum().item()
    begun = time.perf_counter()
    (a @ b).sum().item()
    return 2 * 4096**3 / (time.perf_counter() - begun)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("config", type=Path)
    benchmark = yaml.safe_load(parser.parse_args().config.read_text())
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    for run in benchmark["runs"]:
        raw = {"dataset": benchmark["dataset"], "vit": benchmark["vit"], **run}
        print(raw.pop("name"), measure(raw, device))
    print({key: here()[key] for key in ("commit", "machine", "torch")})


if __name__ == "__main__":
    main()
