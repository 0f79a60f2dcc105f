"""How fast pretraining is on this machine: every run is trained for a while, and then forgotten.

It is the real loop on the real images, with all that it does between two updates, in as many
processes at a time as this machine's cores hold: beside others, as most runs of a config are. On a
GPU they come one after the other.
"""

import dataclasses
import io
import json
import math
import os
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
from ijepa.precision import fast_bfloat16
from ijepa.train import Stopped, train

SECONDS = 20.0
"""For which each run is trained, reading the data through and starting not counted."""
NUM_WARM = 5
"""Updates that are not counted: the first ones allocate."""


def matrix_product_speed(threads: int, seconds: float = 1.0) -> float:
    """FLOP/s of a product of two 2048-square matrices on the CPU, in the format of ``auto``.

    By the processor's time and the best of as many products as ``seconds`` hold: what disturbs one
    of them, or shares the machine for a moment, is no property of the machine.
    """
    kind = torch.bfloat16 if fast_bfloat16(torch.device("cpu")) else torch.float32
    size, before = 2048, torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        a, b = torch.rand(2, size, size).to(kind)
        a @ b
        taken: list[float] = []
        until = time.perf_counter() + seconds
        while len(taken) < 3 or time.perf_counter() < until:
            begun = time.process_time()
            a @ b
            taken.append((time.process_time() - begun) / threads)
    finally:
        torch.set_num_threads(before)
    return 2 * size**3 / min(taken)


def images_per_second(
    runs: dict[str, RunConfig], shards: Path, threads: int, seconds: float = SECONDS
) -> dict[str, float]:
    """Of each run by name; ``shards`` has a folder for each data set, ``threads`` are a run's."""
    copies = max(1, len(os.sched_getaffinity(0)) // threads)
    if torch.cuda.is_available():
        copies = 1
    context = get_context("spawn")
    with ProcessPoolExecutor(copies, context, torch.set_num_threads, (threads,)) as pool:
        found = [pool.submit(_measure, run, shards / run.dataset, seconds) for run in runs.values()]
        bar = tqdm(found, desc="time runs", unit="run")
        return {name: one.result() for name, one in zip(runs, bar, strict=True)}


def _measure(run: RunConfig, data: Path, seconds: float) -> float:
    until = 0.0

    def long_enough() -> bool:
        nonlocal until
        until = until or time.monotonic() + seconds
        return time.monotonic() > until

    # Its bar would be torn by those of the others.
    with tempfile.TemporaryDirectory() as folder, redirect_stderr(io.StringIO()):
        work = Path(folder)
        run = dataclasses.replace(run, log_every=1)
        with suppress(Stopped):
            train(run, data, work, work / "encoder.safetensors", stopping=long_enough)
        (log,) = work.glob("*/train.jsonl")
        lines = log.read_text(encoding="utf-8").splitlines()
    told: list[float] = [json.loads(line)["seconds"] for line in lines]
    if not told:
        return math.inf  # its images are none: they take no time
    return run.recipe.optim.batch_size / statistics.mean(told[NUM_WARM:] or told)
