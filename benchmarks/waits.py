"""One update of every method on a GPU, where each wait of the host is an error.

``python -m benchmarks.waits``. Without a GPU, tests/test_host_waits.py asks a fake device.
"""

import torch

from ijepa.config import parse_run
from ijepa.cost.flops import batch_of_noise
from ijepa.method import load_method, method_names
from ijepa.optim import adamw
from ijepa.update import gradients, update

VIT = {"image_size": 32, "patch_size": 4, "dim": 128, "depth": 4, "num_heads": 2}


def main() -> None:
    """Entry point of the command line."""
    device = torch.device("cuda")
    for name in method_names():
        recipe = {"preset": "tiny"}
        raw = {"method": name, "dataset": "cifar10", "vit": VIT, "recipe": recipe}
        run = parse_run(raw, checked=False)
        method = load_method(name).Method(run.recipe, run.vit).to(device)
        optimizer = adamw(method, run.recipe.optim)
        for step in range(3):
            batch = batch_of_noise(run, run.recipe.optim.batch_size, step, device)
            # The first update allocates memory, for which a wait is allowed.
            torch.cuda.set_sync_debug_mode("error" if step else "default")
            gradients(lambda: method(batch), 1.0, "auto", device)  # noqa: B023
            method.before_step(0.5)
            update(method, optimizer, run.recipe.optim)
            method.after_step(0.5)
            torch.cuda.set_sync_debug_mode("default")
        print(f"{name}: an update waits for nothing", flush=True)


if __name__ == "__main__":
    main()
