"""Several GPUs share the images of a frozen encoder; here the CPU stands for each of three."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from evals import features, replicas
from evals.features import extract
from evals.protocols import attentive_probe, finetune
from evals.views import Encoded
from ijepa.config import parse_run
from ijepa.data.transforms import Crop
from ijepa.train import train
from ijepa.vit import ViT
from tests.coloured import Coloured
from tests.conftest import raw_run_of
from tests.test_linear_probe import CPU, OnImages


@pytest.fixture
def passes(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, int]]:
    """Number of the copy and of its images, for each forward pass; there are three copies."""
    monkeypatch.setattr(replicas, "gpus_beside", lambda device: [device] * 2)
    seen: list[tuple[int, int]] = []
    copies: list[ViT] = []
    outputs = ViT.outputs

    def noted(self: ViT, images_BCHW: torch.Tensor, *given: Any, **options: Any) -> Any:
        if not any(self is other for other in copies):
            copies.append(self)
        number = next(n for n, other in enumerate(copies) if other is self)
        seen.append((number, len(images_BCHW)))
        return outputs(self, images_BCHW, *given, **options)

    monkeypatch.setattr(ViT, "outputs", noted)
    return seen


def source(data: Path) -> Encoded:
    return Encoded(OnImages(data, "class"), 2, "patches", CPU, Crop(), seed=0, num_workers=0)


def test_a_batch_is_divided_and_its_features_come_back_in_order(
    data: Path, passes: list[tuple[int, int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    numbers = torch.tensor([7, 100, 3, 55, 9, 20, 31])
    ((shared_BLD, shared_y),) = source(data).training([numbers], 0)
    assert passes == [(0, 3), (1, 3), (2, 1)]
    monkeypatch.setattr(replicas, "gpus_beside", lambda device: [])
    ((alone_BLD, alone_y),) = source(data).training([numbers], 0)
    torch.testing.assert_close(shared_BLD, alone_BLD, rtol=0, atol=1e-5)
    assert shared_y.equal(alone_y)


def test_stored_features_are_the_same_whoever_made_them(
    data: Path,
    tmp_path: Path,
    passes: list[tuple[int, int]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(features, "CHUNK", 16)
    encoder = tmp_path / "encoder.safetensors"
    train(parse_run(raw_run_of("ijepa")), data, tmp_path / "work", encoder)
    passes.clear()
    extract(encoder, data, tmp_path / "shared" / "about.json")
    assert len({number for number, _ in passes}) == 3
    monkeypatch.setattr(replicas, "gpus_beside", lambda device: [])
    extract(encoder, data, tmp_path / "alone" / "about.json")
    for name in ("train.npy", "test.npy", "test.patches.npy"):
        shared, alone = (np.load(tmp_path / folder / name) for folder in ("shared", "alone"))
        np.testing.assert_array_equal(shared, alone)


def test_probes_on_shared_features_learn_what_they_learn_on_one_device(
    tmp_path: Path, passes: list[tuple[int, int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    config = attentive_probe.Config(
        epochs=2,
        batch_size=16,
        learning_rates=(0.05, 0.01),
        held_out=0.3,
        accumulate=2,
        num_workers=0,
        precision="float32",
    )
    shared, alone = (
        Coloured(Path("colours"), "colour", work=tmp_path / name) for name in ("shared", "alone")
    )
    ours = attentive_probe.evaluate(config, shared)
    of_a_step = [(0, 3), (1, 3), (2, 2)] * 2
    assert passes[:12] == of_a_step * 2
    assert passes[12:18] == of_a_step
    monkeypatch.setattr(replicas, "gpus_beside", lambda device: [])
    theirs = attentive_probe.evaluate(config, alone)
    assert ours.correct == theirs.correct
    assert ours.chosen["train_loss"] == pytest.approx(theirs.chosen["train_loss"], abs=2e-4)
    for number in range(2):
        torch.testing.assert_close(shared.weights(number), alone.weights(number), rtol=0, atol=1e-4)


def test_an_encoder_that_three_devices_fine_tune_learns_what_it_learns_in_three_parts_on_one(
    tmp_path: Path, passes: list[tuple[int, int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    config = finetune.Config(epochs=2, warmup_epochs=0, batch_size=12, base_lr=0.01, num_workers=0)
    shared, alone = (
        Coloured(Path("colours"), "colour", work=tmp_path / name) for name in ("shared", "alone")
    )
    ours = finetune.evaluate(config, shared)
    assert passes[:6] == [(0, 4), (1, 4), (2, 4)] * 2
    monkeypatch.setattr(replicas, "gpus_beside", lambda device: [])
    theirs = finetune.evaluate(replace(config, accumulate=3), alone)
    assert ours.chosen["train_loss"] == theirs.chosen["train_loss"]
    assert ours.correct == theirs.correct
    before = alone.network().state_dict()
    for name, weight in shared.weights().items():
        assert weight.equal(alone.weights()[name]), name
    assert not shared.weights()["encoder.blocks.0.mlp.fc1.weight"].equal(
        before["blocks.0.mlp.fc1.weight"]
    )


def test_a_cpu_has_no_gpus_beside_it() -> None:
    assert replicas.gpus_beside(CPU) == []
