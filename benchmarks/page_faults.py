"""Page faults of a training step: ``python -m benchmarks.page_faults METHOD [--given-back]``.

One step after another of a method's ``tiny`` recipe on config/mini.yaml's network, one thread,
images of noise. Without ``--given-back`` the process keeps freed memory (ijepa.allocator).
"""

import argparse
import resource
import statistics
import time
from functools import partial

import torch

from ijepa.allocator import keep_freed_memory
from ijepa.config import parse_run
from ijepa.cost.flops import batch_of_noise
from ijepa.method import load_method, method_names
from ijepa.optim import adamw
from ijepa.precision import choose_attention
from ijepa.update import gradients, update

VIT = {"image_size": 32, "patch_size": 4, "dim": 128, "depth": 3, "num_heads": 2, "patch_std": 0.1}
WARM_UP, STEPS = 200, 40
"""The heap grows for the first 160 steps, as lengths vary."""


def main() -> None:
    """Entry point of the command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.page_faults", description=__doc__)
    parser.add_argument("method", choices=method_names())
    parser.add_argument("--given-back", action="store_true", help="give freed memory back at once")
    options = parser.parse_args()
    if not options.given_back:
        keep_freed_memory()
    torch.set_num_threads(1)
    cpu = torch.device("cpu")
    raw = {"method": options.method, "dataset": "cifar10", "vit": VIT, "recipe": {"preset": "tiny"}}
    run = parse_run(raw)
    method = load_method(run.method).Method(run.recipe, run.vit)
    choose_attention(method, run.precision, cpu)
    optimizer = adamw(method, run.recipe.optim)
    batch_size = run.recipe.optim.batch_size
    seconds = []
    for step in range(WARM_UP + STEPS):
        if step == WARM_UP:
            before = resource.getrusage(resource.RUSAGE_SELF)
        batch = batch_of_noise(run, batch_size, step, cpu)
        begun = time.perf_counter()
        gradients(partial(method, batch), 1.0, run.precision, cpu)
        update(method, optimizer, run.recipe.optim)
        method.after_step(step / (WARM_UP + STEPS))
        seconds.append(time.perf_counter() - begun)
    after = resource.getrusage(resource.RUSAGE_SELF)
    median = statistics.median(seconds[WARM_UP:])
    kernel, user = after.ru_stime - before.ru_stime, after.ru_utime - before.ru_utime
    print(
        f"{run.method}: {batch_size / median:.0f} images/s, "
        f"{(after.ru_minflt - before.ru_minflt) / STEPS:.0f} page faults a step, "
        f"{kernel:.1f} of {kernel + user:.1f} s in the kernel, "
        f"{after.ru_maxrss / 1e6:.2f} GB"
    )


if __name__ == "__main__":
    main()
