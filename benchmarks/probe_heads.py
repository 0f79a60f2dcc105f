"""Time of a linear probe on images with 16 heads, over its time with one head.

``python -m benchmarks.probe_heads``: random images go through a random encoder, ViT-S/16 at 224
pixels by default, and its features train the heads; nothing is read or augmented. The limit is 1.3
times the time of one head. For the encoder of ``config/mini.yaml``: ``--image-size 32
--patch-size 4 --dim 128 --depth 4 --num-heads 2 --classes 10``.

2026-11-22, 2 cores of an AMD EPYC, torch 2.15: 1.03 for mini's encoder, 1.05 for ViT-S/16.
"""

import argparse
import statistics
import time

import torch

from evals.heads import Heads, Optimizer
from evals.views import CHUNK, pooled
from ijepa.architecture import ViTConfig
from ijepa.provenance import here
from ijepa.vit import ViT

LAYERS = 4


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    parser.add_argument("--image-size", type=int, default=224, help="pixels")
    parser.add_argument("--patch-size", type=int, default=16, help="pixels")
    parser.add_argument("--dim", type=int, default=384)
    parser.add_argument("--depth", type=int, default=12, help="blocks")
    parser.add_argument("--num-heads", type=int, default=6, help="of the encoder's attention")
    parser.add_argument("--classes", type=int, default=1000)
    parser.add_argument("--batch-size", type=int, default=256, help="images")
    parser.add_argument("--repeats", type=int, default=5)
    options = parser.parse_args()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    shape = (options.image_size, options.patch_size, options.dim, options.depth, options.num_heads)
    network = ViT(ViTConfig(*shape)).to(device).eval()
    images_BCHW = torch.randn(
        options.batch_size, 3, options.image_size, options.image_size, device=device
    )
    y_B = torch.randint(options.classes, (options.batch_size,), device=device)

    def seconds(heads: Heads, optimizer: Optimizer, layers: int) -> float:
        begun = time.perf_counter()
        parts = [pooled(network, part, layers, "patches") for part in images_BCHW.split(CHUNK)]
        x_BLD = torch.cat(parts)
        heads.loss(x_BLD, y_B).sum().backward()
        optimizer.step(1.0)
        heads.finite().all().item()  # waits for the device
        return time.perf_counter() - begun

    sizes = (options.dim, options.classes, 0)
    many = Heads((0.1, 0.01), (5e-4, 0.0), LAYERS, *sizes).to(device)
    single = Heads((0.1,), (0.0,), 1, *sizes).to(device)
    single.stacks = single.stacks[:1]
    runs = [(single, Optimizer(single, "sgd"), 1), (many, Optimizer(many, "sgd"), LAYERS)]
    for run in runs:
        seconds(*run)
    # In turn, so that other work of the machine slows both alike.
    alone, together = zip(
        *[[seconds(*r) for r in runs] for _ in range(options.repeats)], strict=True
    )
    print(
        f"1 head {statistics.median(alone):.3f} s a batch, {len(many.settings)} heads "
        f"{statistics.median(together):.3f} s: "
        f"{statistics.median(together) / statistics.median(alone):.2f} times"
    )
    print({key: here()[key] for key in ("commit", "machine", "torch")})


if __name__ == "__main__":
    main()
