"""The attentive probe: what it computes, and a training that leaves the encoder as it is."""

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn import functional as F

from evals import supervised
from evals.protocols.attentive_probe import Config, classifier, evaluate, probe
from ijepa.architecture import Variant
from ijepa.optim import learning_rate
from tests.coloured import Coloured, Killed

SMALL = Config(batch_size=8, epochs=3, base_lr=0.1, num_workers=0, random_erase=0.5)


def subject(work: Path, **changes: Any) -> Coloured:
    return Coloured(data=Path("colours"), label="colour", work=work, **changes)


def test_the_defaults_are_the_published_rate_and_batch() -> None:
    optim = Config().optim(1024)
    assert (optim.lr, optim.batch_size, optim.epochs, optim.clip) == (1e-3, 1024, 20, 1.0)
    rates = [learning_rate(optim, step, 100) for step in (0, 50, 99)]
    assert rates[0] == 1e-3
    assert rates[1] == pytest.approx(5e-4)
    assert rates[2] < 1e-6


def test_the_query_averages_values_by_its_similarity_to_normed_keys() -> None:
    torch.manual_seed(0)
    module: Any = probe(8, 2, 3)
    _, attention, linear = module
    x_BND = torch.randn(2, 5, 8) * 3 + 1
    logits = []
    for x_ND in F.layer_norm(x_BND, (8,), eps=1e-6):
        heads = []
        for head in (slice(0, 4), slice(4, 8)):
            query = attention.q(attention.latent[0, 0])[head]
            keys, values = (part[:, head] for part in attention.kv(x_ND).chunk(2, dim=1))
            heads.append(((keys @ query) / 4**0.5).softmax(0) @ values)
        pooled = attention.proj(torch.cat(heads))
        pooled = pooled + attention.mlp(attention.norm(pooled))
        logits.append(linear(pooled))
    torch.testing.assert_close(module(x_BND), torch.stack(logits))


def test_the_probe_starts_from_rescaled_small_weights() -> None:
    torch.manual_seed(0)
    _, attention, _ = probe(256, 4, 3)
    deviations = {
        name: weight.std().item()
        for name, weight in attention.named_parameters()
        if (name.endswith("weight") and weight.ndim > 1) or name == "latent"
    }
    rescaled = {"proj.weight", "mlp.fc2.weight"}
    assert deviations.keys() > rescaled
    for name, deviation in deviations.items():
        expected = 0.02 / 2**0.5 if name in rescaled else 0.02
        assert deviation == pytest.approx(expected, rel=0.15), name


def test_a_frozen_encoder_stays_what_it_was(tmp_path: Path) -> None:
    # Stochastic depth would show whether it is in evaluation mode.
    at = subject(tmp_path, variant=Variant(drop_path=0.9))
    model = classifier(SMALL, at)
    before = {name: weight.clone() for name, weight in model.encoder.state_dict().items()}
    images, coins = torch.randn(2, 3, 16, 16), torch.zeros(2, 3, 2)
    features = model.train().encoder(images, coins_BL2=coins)
    groups: list[dict[str, Any]] = [{"params": list(model.head.parameters())}]
    supervised.train(SMALL, at, None, model, groups, "probe")
    after = model.encoder.state_dict()
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert all(parameter.grad is None for parameter in model.encoder.parameters())
    model.cpu().train()
    assert torch.equal(model.encoder(images, coins_BL2=coins), features)
    assert torch.equal(features, at.network()(images))
    assert not any(name.startswith("encoder") for name in at.weights())


def test_a_probe_learns_what_tells_the_classes(tmp_path: Path) -> None:
    config = replace(SMALL, auto_augment=None, random_erase=0, epochs=40)
    result = evaluate(config, subject(tmp_path))
    losses = result.chosen["train_loss"]
    assert losses[-1] < 0.8 * losses[0]
    assert (result.metric, result.n) == ("top1", 18)
    assert result.value > 0.9


def test_a_killed_probe_ends_bit_identical(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = subject(tmp_path / "whole")
    undisturbed = evaluate(SMALL, whole)
    monkeypatch.setattr(supervised, "CHECKPOINT_SECONDS", 0)
    monkeypatch.setattr(supervised, "CHECKPOINT_SHARE", math.inf)
    with pytest.raises(Killed):
        evaluate(SMALL, subject(tmp_path / "killed", lives=4))
    second = subject(tmp_path / "killed")
    assert evaluate(SMALL, second) == undisturbed
    assert second.checkpoints == [5, 6, 7, 8, 9]
    ours, theirs = second.weights(), whole.weights()
    assert [name for name in theirs if not torch.equal(ours[name], theirs[name])] == []


def test_augmentation_matters_and_the_number_of_workers_does_not(tmp_path: Path) -> None:
    changes: list[dict[str, Any]] = [
        {},
        {"auto_augment": None},
        {"random_erase": 0.0},
        {"num_workers": 2},
    ]
    losses = [
        evaluate(replace(SMALL, **change), subject(tmp_path / str(n))).chosen["train_loss"]
        for n, change in enumerate(changes)
    ]
    assert losses[1] != losses[0]
    assert losses[2] != losses[0]
    assert losses[3] == losses[0]
