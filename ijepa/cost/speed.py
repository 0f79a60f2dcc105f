"""Speed of pretraining on this machine, measured by training every run for a while.

The runs use the real loop on the real images, with all its work between two updates. As many run at
a time as this machine has cores for, because most runs of a config have others beside them. On a
GPU they run one after the other. Their results are deleted.
"""

import dataclasses
import io
import json
import math
import statistics
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from contextlib import redirect_stderr, suppress
from multiprocessing import get_context
from pathlib import Path

import torch
from tqdm import tqdm

from ijepa.config import RunConfig
from ijepa.cores import usable_cores
from ijepa.precision import is_bfloat16
from ijepa.train import Stopped, train

SECONDS = 20.0
"""Time for which each run is trained, without its start and the verification of its data."""
NUM_WARM = 5
"""First updates that are not counted, because they allocate memory."""


def matrix_product_speed(threads: int, seconds: float = 1.0, setting: str = "auto") -> float:
    """FLOP/s of a product of two 2048-square matrices on the CPU, in a setting's format.

    The time is the processor's, and the least of as many products as ``seconds`` hold: disturbances
    and other processes say nothing about the machine.
    """
    kind = torch.bfloat16 if is_bfloat16(setting, torch.device("cpu")) else torch.float32
    size, earlier_threads = 2048, torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        a, b = torch.rand(2, size, size).to(kind)
        a @ b
        times: list[float] = []
        until = time.perf_counter() + seconds
        while len(times) < 3 or time.perf_counter() < until:
            start = time.process_time()
            a @ b
            times.append((time.process_time() - start) / threads)
    finally:
        torch.set_num_threads(earlier_threads)
    return 2 * size**3 / min(times)


def images_per_second(
    runs: dict[str, RunConfig], shards: Path, threads: int, seconds: float = SECONDS
) -> dict[str, float]:
    """Images per second of each run, by name.

    ``shards`` has a folder for each data set; ``threads`` is the number for each run.
    """
    copies = max(1, usable_cores() // threads)
    if torch.cuda.is_available():
        copies = 1
    context = get_context("spawn")
    with ProcessPoolExecutor(copies, context, torch.set_num_threads, (threads,)) as pool:
        jobs = [pool.submit(_measure, run, shards / run.dataset, seconds) for run in runs.values()]
        bar = tqdm(jobs, desc="time runs", unit="run")
        return {name: job.result() for name, job in zip(runs, bar, strict=True)}


def _measure(run: RunConfig, data: Path, seconds: float) -> float:
    until = 0.0

    def long_enough() -> bool:
        nonlocal until
        until = until or time.monotonic() + seconds
        return time.monotonic() > until

    # The run's bar is hidden: bars of several processes would overwrite each other.
    with tempfile.TemporaryDirectory() as folder, redirect_stderr(io.StringIO()):
        work = Path(folder)
        run = dataclasses.replace(run, log_every=1)
        with suppress(Stopped):
            train(run, data, work, work / "encoder.safetensors", stopping=long_enough)
        (log,) = work.glob("*/train.jsonl")
        lines = log.read_text(encoding="utf-8").splitlines()
    step_seconds: list[float] = [json.loads(line)["seconds"] for line in lines]
    if not step_seconds:
        return math.inf  # a run without updates takes no time
    return run.recipe.optim.batch_size / statistics.mean(step_seconds[NUM_WARM:] or step_seconds)
