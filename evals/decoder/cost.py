"""Cost of a decoder, counted on no GPU: ``python -m evals.decoder.cost --help``."""

import argparse
from typing import Any, NamedTuple

from evals.decoder.settings import PRESETS, Config
from evals.protocol import configure
from ijepa.architecture import SIZES
from ijepa.errors import program, run_command
from ijepa.strict import strict

ABOUT = """FLOPs and parameters of each preset of the decoder, counted by torch on the meta device.

An image's step is the U-Net's forward and backward pass (three forward passes) and one forward pass
of the frozen encoder on all patches, which is more than the context. The predictor is not counted.
The total is that of all steps, and of the samples of the test images.
"""
HOUR = 312e12 * 0.4 * 3600
"""FLOPs of an hour of an A100 at 40 % of its bfloat16 peak."""


class Cost(NamedTuple):
    """Parameters of the U-Net, and FLOPs: its forward pass, one image's step, all samples, all."""

    parameters: int
    forward: float
    image: float
    sampling: float
    total: float


def cost(config: Config, vit: Any) -> Cost:
    """Cost of a decoder of an encoder with this ``ViTConfig``."""
    # Not at the top: torch and diffusers take seconds to import, and --help does not need them.
    import torch
    from torch.utils.flop_counter import FlopCounterMode

    from evals.decoder.model import Network
    from ijepa.vit import ViT

    def flops(network: Any, *inputs: Any) -> float:
        with torch.no_grad(), FlopCounterMode(display=False) as counter:
            network(*inputs)
        return float(counter.get_total_flops())

    with torch.device("meta"):
        network, encoder = Network(config, vit.dim + 4), ViT(vit)
        noisy = torch.zeros(1, 3, config.size, config.size)
        forward = flops(network, noisy, torch.zeros(1), torch.zeros(1, vit.dim + 4))
        frozen = flops(encoder, torch.zeros(1, 3, vit.image_size, vit.image_size))
    parameters = sum(x.numel() for x in network.parameters())
    image = 3 * forward + frozen
    sampling = forward * config.sampling_steps * config.samples * config.images
    total = image * config.batch_size * config.steps + sampling
    return Cost(parameters, forward, image, sampling, total)


def main() -> None:
    """Entry point of the command line."""
    parser = argparse.ArgumentParser(prog=program("evals.decoder.cost"), description=ABOUT)
    parser.parse_args()
    from ijepa.architecture import ViTConfig

    encoders = {
        "tiny": ViTConfig(image_size=32, patch_size=4, dim=128, depth=3, num_heads=2),
        "cifar": strict(ViTConfig, {"image_size": 32, "patch_size": 4, **SIZES["small"]}, "vit"),
        "paper": strict(ViTConfig, {"image_size": 224, "patch_size": 14, **SIZES["huge"]}, "vit"),
    }
    for name in PRESETS:
        counted = cost(configure("decoder", {"preset": name}, "decoder"), encoders[name])
        print(
            f"{name:6} {counted.parameters / 1e6:7.1f} M parameters, "
            f"{counted.forward / 1e9:8.2f} GFLOP forward, {counted.image / 1e9:8.2f} an image, "
            f"{counted.total / 1e15:10.3f} PFLOP, {counted.total / HOUR:8.1f} A100-hours at 40 %"
        )


if __name__ == "__main__":
    run_command(main)
