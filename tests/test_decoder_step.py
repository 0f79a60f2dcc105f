"""One step of the decoder: on a GPU, in parts, with a context as in pretraining; its cost."""

import dataclasses
from typing import Any

import pytest
import torch

from evals.decoder.cost import cost
from evals.decoder.model import Decoder
from evals.decoder.settings import PRESETS, Condition
from evals.decoder.source import Source
from evals.protocol import Counts, configure
from evals.protocols import decoder as protocol
from ijepa.architecture import ViTConfig
from ijepa.data.transforms import normalise
from ijepa.errors import UserError
from ijepa.method import Batch
from ijepa.optim import Optim, adamw
from ijepa.randomness import generator
from ijepa.transfer import placed
from ijepa.update import update
from tests.conftest import Trained
from tests.fake_device import CUDA, OnDevice, cuda, on_device
from tests.test_decoder import tiny_config
from tests.test_host_waits import with_gradients
from workflow.plan.benchmark import read_benchmark
from workflow.plan.estimate import SECONDS, job_seconds
from workflow.plan.grid import Grid

__all__ = ["cuda"]

IMAGES = torch.zeros(16, 32, 32, 3, dtype=torch.uint8)


@pytest.mark.parametrize("prediction_type", ["epsilon", "v_prediction"])
@pytest.mark.parametrize("condition", ["prediction", "image"])
def test_a_step_of_the_decoder_waits_for_nothing(
    condition: Condition, prediction_type: str, trained: Trained, cuda: torch.device
) -> None:
    source = Source(trained("ijepa"), condition)
    config = tiny_config(condition=condition, prediction_type=prediction_type)
    decoder = on_device(Decoder(config, source.dim, source))
    optim = Optim(batch_size=16)
    optimizer = adamw(decoder, optim)
    source.device = cuda
    on_device(source.method)
    with OnDevice():
        images = normalise(placed(IMAGES, cuda))
        loss = decoder(Batch((images,), seed=0, step=1))["loss"]
        assert loss.device == CUDA
        with_gradients(decoder)
        update(decoder, optimizer, optim)
        decoder.after_step(0.5)


def test_the_parts_of_a_batch_have_the_loss_of_the_whole(trained: Trained) -> None:
    source = Source(trained("ijepa"), "prediction")
    torch.manual_seed(0)
    decoder = Decoder(tiny_config(), source.dim, source)
    images = torch.randn(16, 3, 32, 32)
    batch = Batch((images,), seed=0, step=1)
    halves = [
        dataclasses.replace(batch, views=(images[first : first + 8],), offset=first, total=16)
        for first in (0, 8)
    ]
    with torch.no_grad():
        whole, *parts = (decoder(part)["loss"] for part in (batch, *halves))
    torch.testing.assert_close(sum(parts) / 2, whole)
    with pytest.raises(UserError, match=r"accumulate is 3: batch_size \(16\) must be a multiple"):
        tiny_config(accumulate=3)


def test_a_batch_of_the_papers_preset_fits_one_gpu_in_parts() -> None:
    """RCDM had 8 images of 128 pixels on a GPU of 32 GB."""
    paper = configure("decoder", {"preset": "paper"}, "decoder")
    assert paper.batch_size == 256
    assert paper.batch_size // paper.accumulate <= 20


@pytest.mark.parametrize("seed", range(3))
def test_one_image_has_as_little_context_as_an_image_of_pretraining(
    seed: int, trained: Trained
) -> None:
    """A group is cut to its smallest context: a lone image would have more, of another kind."""
    source = Source(trained("ijepa"), "prediction")
    group = source.method.config.masking.group_size
    assert group > 1
    one, many = (source.draw(count, generator(seed, "draw")) for count in (1, group))
    assert torch.equal(one.context_BK, many.context_BK[:1])
    assert one.blocks == many.blocks[:1]


def test_the_cost_counts_training_and_samples() -> None:
    vit = ViTConfig(image_size=32, patch_size=4, dim=32, depth=2, num_heads=2)
    counted, twice = (cost(tiny_config(steps=steps), vit) for steps in (6, 12))
    assert counted.sampling == counted.forward * 2 * 2 * 8  # steps of sampling, samples, images
    assert counted.total == counted.image * 16 * 6 + counted.sampling
    assert twice.total - counted.total == counted.image * 16 * 6
    assert protocol.flops(tiny_config(), vit, Counts(1, 1, 1)) == counted.total


@pytest.mark.usefixtures("real_register")
def test_an_estimate_of_a_configs_time_has_the_decoders_own_cost() -> None:
    vit: dict[str, Any] = {"image_size": 32, "patch_size": 4, "dim": 32, "depth": 2, "num_heads": 2}
    raw: dict[str, Any] = {
        "name": "drawn",
        "dataset": "cifar10",
        "vit": vit,
        "seeds": [0],
        "runs": [{"name": "ijepa", "method": "ijepa", "recipe": {"preset": "tiny"}}],
        "evaluations": [
            {
                "name": "seen",
                "evaluation": "decoder",
                "uses": "images",
                "config": {"preset": "tiny"},
            }
        ],
        "tables": [{"name": "seen", "title": "Seen", "evaluations": ["seen"], "runs": ["ijepa"]}],
    }
    grid = Grid(read_benchmark(raw))
    splits = {"cifar10": {"train": 50000, "test": 10000}}
    seconds = job_seconds(grid, {"ijepa": 1.0}, {"ijepa": ViTConfig(**vit)}, splits, 78e9)
    spent = cost(tiny_config(**PRESETS["tiny"]), ViTConfig(**vit)).total / (0.43 * 78e9)
    assert seconds["evaluate", "ijepa", "0", "seen"] == pytest.approx(SECONDS["start"] + spent)
