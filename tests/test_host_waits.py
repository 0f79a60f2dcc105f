"""The host queues work for a GPU and waits for none of it, but at log steps and before a save.

There is no GPU here: tests.fake_device raises Waited where the host would wait.
"""

import dataclasses
from itertools import cycle
from pathlib import Path
from typing import Any
from unittest.mock import Mock, patch

import numpy as np
import pytest
import torch
from torch import Tensor

from evals import replicas, supervised
from evals.features import _features
from evals.heads import Heads, Optimizer
from evals.labelled_views import mixed
from evals.learners import Learner, Learners
from evals.losses import Losses
from evals.protocols import attentive_probe, finetune
from evals.supervised import descend
from evals.views import Encoded, Stored
from ijepa.architecture import Variant, ViTConfig
from ijepa.config import parse_run
from ijepa.data import device_jpeg, resident
from ijepa.data.device_jpeg import Parts
from ijepa.data.transforms import Box, normalise
from ijepa.distributed import ALONE
from ijepa.log import Log
from ijepa.method import Batch
from ijepa.monitors import Monitored
from ijepa.optim import adamw
from ijepa.transfer import fetched, made_ahead, placed
from ijepa.update import update
from ijepa.vit import ViT
from tests.conftest import raw_run_of
from tests.fake_device import CUDA, NoWaiting, OnDevice, Waited, cuda, on_device
from tests.test_methods import METHODS, batch, make

__all__ = ["cuda"]
pytestmark = pytest.mark.usefixtures("tiny", "cuda")

VIT = ViTConfig(32, 8, dim=16, depth=2, num_heads=2)


def on_cuda(name: str) -> Batch:
    """A method's batch as the loop would place it."""
    images = batch(name, step=1, progress=0.5)
    views = tuple(placed(view, CUDA) for view in images.views)
    assert images.tokens_BN is not None
    return dataclasses.replace(images, views=views, tokens_BN=placed(images.tokens_BN, CUDA))


def with_gradients(network: torch.nn.Module) -> None:
    """Give each trained parameter a gradient on its device."""
    for parameter in network.parameters():
        if parameter.requires_grad:
            parameter.grad = torch.empty_like(parameter)


@pytest.mark.parametrize("name", METHODS)
def test_a_training_step_of_a_method_waits_for_nothing(name: str, tmp_path: Path) -> None:
    """Forward pass, scalars, clipping, update, averages, and the log at a step without a line."""
    run = dataclasses.replace(parse_run(raw_run_of(name)), log_every=10)
    method = on_device(make(name))
    optimizer = adamw(method, run.recipe.optim)
    with (
        Log(tmp_path / "log", run, 0, 100, Monitored(torch.empty(0), None), ALONE) as log,
        OnDevice(),
    ):
        scalars = method(on_cuda(name))
        assert {value.device for value in scalars.values()} == {CUDA}
        with_gradients(method)
        method.before_step(0.5)
        update(method, optimizer, run.recipe.optim)
        method.after_step(0.5)
        log.step(1, [scalars], method, stop=False)
        with pytest.raises(Waited):
            log.step(10, [scalars], method, stop=False)


@pytest.mark.parametrize("name", METHODS)
def test_the_backward_pass_of_a_method_needs_no_values(name: str) -> None:
    """Autograd's formulas are those of a GPU: a boolean index would need its values here too."""
    loss = make(name)(batch(name))["loss"]
    with NoWaiting():
        loss.backward()


def test_pixels_are_normalised_on_the_device() -> None:
    with OnDevice():
        images = normalise(placed(torch.zeros(2, 32, 32, 3, dtype=torch.uint8), CUDA))
    assert images.shape == (2, 3, 32, 32)


@pytest.mark.parametrize(("gpus", "counts"), [(1, [2, 3, 3]), (2, [3, 3, 3])])
@pytest.mark.parametrize("class_token", [False, True])
def test_features_are_fetched_after_the_next_batch_of_every_gpu_is_queued(
    class_token: bool, gpus: int, counts: list[int]
) -> None:
    network = on_device(ViT(VIT, Variant(class_token=class_token)).eval())
    queued = []

    def encoded() -> Any:
        for number in range(3):
            queued.append(number)
            yield _features(network, torch.zeros(4, 32, 32, 3, dtype=torch.uint8))

    with OnDevice():
        arrived = [(len(queued), x_BLD) for x_BLD in fetched(encoded(), gpus)]
    assert [count for count, _ in arrived] == counts
    assert all(x_BLD.device.type == "cpu" for _, x_BLD in arrived)


def test_what_is_fetched_keeps_its_order_and_its_values() -> None:
    tensors = [torch.tensor([number]) for number in range(5)]
    assert [int(x) for x in fetched(tensors)] == [0, 1, 2, 3, 4]
    assert not list(fetched([]))


def test_a_step_of_linear_heads_waits_for_nothing() -> None:
    heads = on_device(Heads((0.1, 0.01), (0.0,), 2, 16, 10, seed=0))
    optimizer = Optimizer(heads, "lars")
    source = object.__new__(Stored)
    source.device = CUDA
    with OnDevice():
        held = torch.empty(40, 2, 16, device=CUDA)
        source.labels = {"train": torch.empty(40, dtype=torch.long, device=CUDA)}
        for features in (held, torch.zeros(40, 2, 16, dtype=torch.float16)):
            source.features = {"train": features}
            for x_BLD, y_B in source.training([torch.arange(8)], 0):
                assert heads.loss(x_BLD, y_B).shape == (8,)
                with_gradients(heads)
                optimizer.step(1.0)
        heads.classify(x_BLD)


def test_the_encoder_of_a_probe_on_images_waits_for_nothing() -> None:
    source = object.__new__(Encoded)
    source.device, source.num_layers, source.pool = CUDA, 2, "patches"
    source.turns = cycle([on_device(ViT(VIT).eval())])
    with OnDevice():
        source.are_finite = torch.ones((), dtype=torch.bool, device=CUDA)
        source._encode(torch.zeros(4, 32, 32, 3, dtype=torch.uint8))
        with pytest.raises(Waited):
            source._check()


def tuned(config: Any) -> Learners:
    model = finetune.Classifier(
        ViT(VIT, Variant(drop_path=0.1)), finetune.Head(16, 10), pool="patches"
    )
    groups = finetune.groups(config, model)
    return Learners(VIT, [Learner(on_device(model), groups, config.base_lr)])


def probes(config: Any) -> Learners:
    encoders = [on_device(ViT(VIT).eval()) for _ in range(2)]
    heads = [on_device(attentive_probe.probe(16, 2, 10)) for _ in config.heads]
    learners = [Learner(head, [{"params": list(head.parameters())}], 1e-3) for head in heads]
    return Learners(VIT, learners, encoders)


@pytest.mark.parametrize(
    ("make_learners", "config"),
    [
        (tuned, finetune.Config()),
        (probes, attentive_probe.Config()),
        (probes, attentive_probe.Config(learning_rates=(1e-3, 1e-4))),
    ],
)
def test_a_step_of_a_classifier_waits_only_where_losses_are_read(
    make_learners: Any, config: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(supervised, "gradients", lambda loss_of, *_: loss_of())
    monkeypatch.setattr(torch.nn.Module, "to", lambda network, _: network)  # they are there
    monkeypatch.setattr(replicas, "gpus_beside", lambda device: [device])
    learners = make_learners(config)
    losses = Losses([], 1, "a training")
    with OnDevice():
        for learner in learners.all:
            learner.begin(config, 8, CUDA)
            for network in (learner.network, *learner.copies):
                with_gradients(network)
        images = normalise(placed(torch.zeros(8, 32, 32, 3, dtype=torch.uint8), CUDA))
        images, targets = mixed(config, images, placed(torch.arange(8), CUDA), 10, step=0)
        coins = placed(torch.rand(8, 2, 2), CUDA)
        for gpu, part in enumerate(replicas.sent(CUDA, images, targets, coins)):
            inputs = learners.inputs(gpu, "float32", part[0], part[2])
            losses.add(0, 0.5, descend(config, learners.networks(gpu), inputs, part[1], 0.5))
        for learner in learners.all:
            learner.update(0, 10)
        with pytest.raises(Waited):
            losses.read()


def test_a_loss_that_is_read_late_is_told_with_its_step() -> None:
    means: list[Tensor] = []
    losses = Losses(means, 2, "a training")
    for step, loss in enumerate((1.0, 3.0, 5.0)):
        for share in (0.25, 0.75):
            losses.add(step, share, torch.tensor([loss, 2 * loss]))
    assert losses.read() == 5
    assert [mean.tolist() for mean in means] == [[2.0, 4.0], [2.5, 5.0]]
    losses.add(3, 1.0, torch.tensor([torch.inf, 5.0]))
    assert losses.read() == 5
    assert means[1].tolist() == [torch.inf, 7.5]
    losses.add(4, 1.0, torch.tensor([torch.inf, torch.nan]))
    with pytest.raises(ValueError, match="the loss of a training is inf at step 4"):
        losses.read()


WAITS: dict[str, Any] = {
    "a value": lambda x: x.sum().item(),
    "a decision": lambda x: bool(x.any()),
    "a shape": lambda x: x.nonzero(),
    "a boolean index": lambda x: x[x > 0],
    "a copy to the host": lambda x: x.cpu(),
    "a copy from the host": lambda x: torch.zeros(3).to(x.device),
    "a copy from ordinary memory": lambda x: torch.zeros(3).to(x.device, non_blocking=True),
    "a list from the host": lambda x: x.new_tensor([1.0, 2.0]),
    "a mix of devices": lambda x: x + torch.zeros(3),
    "an index on the host": lambda x: x[torch.tensor([0, 2])],
}


@pytest.mark.parametrize("wait", WAITS)
def test_the_fake_device_finds(wait: str) -> None:
    with OnDevice():
        x = torch.empty(3, device=CUDA)
        with pytest.raises((Waited, RuntimeError)):  # torch itself refuses the list
            WAITS[wait](x)


def test_views_are_cut_on_the_device_without_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    """Parts of images that it has decoded, beside a ready view, and of images that lie there."""

    def images(files: list[Tensor], device: torch.device) -> list[Tensor]:
        return [torch.empty(3, 60, 80, dtype=torch.uint8, device=device) for _ in files]

    monkeypatch.setattr(device_jpeg, "_decode", images)
    image = device_jpeg.Deferred(0, (80, 60))
    parts = [device_jpeg.Part(image, Box(5, 6, 50, 40, flip)) for flip in (False, True)]
    made = np.zeros((32, 32, 3), np.uint8)
    some_ready, none_ready = Parts.of([*parts, made]), Parts.of([*parts, parts[0]])
    with OnDevice():
        lying = torch.empty(9, 3, 60, 80, dtype=torch.uint8, device=CUDA)
        for views in (
            device_jpeg.decoded(some_ready, 32, "bicubic", CUDA, Mock()),
            resident.cut(lying, none_ready, 32, "bicubic"),
        ):
            assert views.shape == (3, 32, 32, 3)
            assert views.dtype == torch.uint8
            assert views.device == CUDA


def test_a_gpu_waits_for_what_was_made_ahead_and_the_host_does_not() -> None:
    """The trainer's queue waits for the mark, and keeps the memory until its own work is done."""
    own, event = Mock(), Mock()
    tensors: list[Any] = [Mock(), Mock()]
    with (
        patch("torch.cuda.Stream"),
        patch("torch.cuda.set_stream"),
        patch("torch.cuda.current_stream", return_value=own),
        patch("torch.cuda.Event", return_value=event),
    ):
        made = list(made_ahead(lambda _: tensors, ["images"], CUDA))
    assert made == [("images", tensors)]
    own.wait_event.assert_called_once_with(event)
    event.synchronize.assert_not_called()
    for x in tensors:
        x.record_stream.assert_called_once_with(own)
