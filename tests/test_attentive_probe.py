"""Attentive probes: what they compute, and trainings that leave encoder and each other alone."""

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode

from evals import choice, supervised
from evals.protocol import Counts, Facts, check
from evals.protocols.attentive_probe import Config, evaluate, flops, fresh, probe
from ijepa.architecture import Variant, ViTConfig
from ijepa.errors import UserError
from ijepa.optim import learning_rate
from ijepa.strict import strict
from ijepa.vit import ViT
from tests.coloured import Coloured, Killed, Pictures

SMALL = Config(batch_size=8, epochs=3, learning_rates=(0.1,), num_workers=0, random_erase=0.5)
SWEEP = replace(SMALL, learning_rates=(0.1, 0.02), weight_decays=(0.0, 0.5), held_out=0.3)


RATES = ((0.1,), (0.1, 0.2))


def assert_identical(ours: dict[str, Tensor], theirs: dict[str, Tensor]) -> None:
    assert ours.keys() == theirs.keys()
    assert [name for name in ours if not torch.equal(ours[name], theirs[name])] == []


def subject(work: Path, **changes: Any) -> Coloured:
    return Coloured(data=Path("colours"), label="colour", work=work, **changes)


def test_the_defaults_are_the_published_rate_and_batch() -> None:
    optim = Config().optim(1024, *Config().learning_rates)
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
    config = replace(SMALL, precision="float32")
    learners: Any = fresh(config, at)
    (encoder,) = learners.encoders
    before = {name: weight.clone() for name, weight in encoder.state_dict().items()}
    images = torch.randn(2, 3, 16, 16)
    (features,) = learners.inputs(0, "float32", images, torch.zeros(2, 3, 2))
    supervised.train(config, at, None, learners, "probe")
    after = encoder.state_dict()
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert all(parameter.grad is None for parameter in encoder.parameters())
    assert torch.equal(features, at.network()(images))
    assert learners.inputs(0, "float32", images)[0].equal(features)


def test_a_probe_learns_what_tells_the_classes(tmp_path: Path) -> None:
    config = replace(SMALL, auto_augment=None, random_erase=0, epochs=40)
    result = evaluate(config, subject(tmp_path))
    losses = result.chosen["train_loss"]
    assert losses[-1] < 0.8 * losses[0]
    assert (result.metric, result.n) == ("top1", 18)
    assert result.value > 0.9


@pytest.mark.parametrize("config", [SMALL, SWEEP])
def test_a_killed_probe_ends_bit_identical(
    config: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = subject(tmp_path / "whole")
    undisturbed = evaluate(config, whole)
    monkeypatch.setattr(supervised, "CHECKPOINT_SECONDS", 0)
    monkeypatch.setattr(supervised, "CHECKPOINT_SHARE", math.inf)
    with pytest.raises(Killed):
        evaluate(config, subject(tmp_path / "killed", lives=4))
    second = subject(tmp_path / "killed")
    assert evaluate(config, second) == undisturbed
    assert second.checkpoints == list(range(5, 10 if config is SMALL else 7))
    for number in range(len(config.heads)):
        assert_identical(second.weights(number), whole.weights(number))


def test_a_head_learns_beside_others_what_it_learns_alone(tmp_path: Path) -> None:
    changes: dict[str, Any] = {"min_lr": 1e-3, "clip": 0.3, "accumulate": 2, "mixup": 0.5}
    config = replace(SWEEP, **changes, chosen_on="test")
    beside = subject(tmp_path / "beside")
    evaluate(config, beside)
    for number, (rate, decay) in enumerate(config.heads):
        at = subject(tmp_path / str(number))
        evaluate(replace(config, learning_rates=(rate,), weight_decays=(decay,)), at)
        assert_identical(beside.weights(number), at.weights())
    first, *others = (beside.weights(number) for number in range(4))
    assert not any(first["2.weight"].equal(other["2.weight"]) for other in others)


def test_the_encoder_sees_an_image_once_for_all_heads(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = []
    forward = ViT.forward

    def counted(self: ViT, images_BCHW: torch.Tensor) -> torch.Tensor:
        seen.append(len(images_BCHW))
        assert not torch.is_grad_enabled()
        return forward(self, images_BCHW)

    monkeypatch.setattr(ViT, "forward", counted)
    evaluate(SWEEP, subject(tmp_path))
    training, held_out, test = 3 * 2 * 8, 7, 18
    assert sum(seen) == training + held_out + test


def test_the_head_is_chosen_on_held_out_images_that_no_head_has_seen(tmp_path: Path) -> None:
    class Blackened(Coloured):
        def images(self, split: str) -> Any:
            pictures: Any = super().images(split)
            held_out, _ = choice.divide(7, 24, SWEEP.seed)
            if split == "train":
                return Pictures(
                    picture.point(lambda value: 0) if number in held_out else picture
                    for number, picture in enumerate(pictures)
                )
            return pictures

    config = replace(SWEEP, auto_augment=None, random_erase=0, epochs=30)
    whole = subject(tmp_path / "whole")
    chosen = evaluate(config, whole).chosen
    assert chosen["held_out_images"] == 7
    heads = chosen["heads"]
    assert [(head["learning_rate"], head["weight_decay"]) for head in heads] == SWEEP.heads
    assert chosen["held_out_top1"] == max(head["held_out_top1"] for head in heads)
    assert chosen["lr"] == pytest.approx(chosen["learning_rate"] * 8 / 256)
    assert len(chosen["train_loss"]) == 30
    black = Blackened(data=Path("colours"), label="colour", work=tmp_path / "black")
    others = evaluate(config, black).chosen["heads"]
    ours, theirs = (
        [[head[key] for head in of] for key in ("held_out_top1", "test_top1")]
        for of in (heads, others)
    )
    assert ours[0] != theirs[0]
    assert ours[1] == theirs[1]
    for number in range(4):
        assert_identical(black.weights(number), whole.weights(number))


def test_a_single_head_sees_all_images_and_there_is_no_choice(tmp_path: Path) -> None:
    changes: list[dict[str, Any]] = [{}, {"held_out": 0.5}, {"chosen_on": "test"}]
    results = [
        evaluate(replace(SMALL, **change), subject(tmp_path / str(number)))
        for number, change in enumerate(changes)
    ]
    assert results[0] == results[1] == results[2]
    assert set(results[0].chosen) == {"batch_size", "lr", "train_loss"}


def test_a_head_that_diverges_is_told_and_ends_no_other(tmp_path: Path) -> None:
    config = replace(SWEEP, learning_rates=(1e30, 0.1), weight_decays=(0.0,), epochs=8)
    chosen = evaluate(config, subject(tmp_path / "one")).chosen
    assert [head["diverged"] for head in chosen["heads"]] == [True, False]
    assert chosen["learning_rate"] == chosen["best_on_test"]["learning_rate"] == 0.1
    assert all(map(math.isfinite, chosen["train_loss"]))
    config = replace(config, learning_rates=(1e30, 1e31))
    with pytest.raises(UserError, match=r"the loss of 2 attentive probes is nan at step [1-9]"):
        evaluate(config, subject(tmp_path / "all"))


def test_too_few_images_to_hold_out_are_refused_only_where_a_head_is_chosen() -> None:
    facts = Facts(uses="images", images=24)
    few: dict[str, Any] = {"held_out": 0.01, "auto_augment": None}
    check("attentive_probe", replace(SMALL, **few), facts, "one")
    with pytest.raises(UserError, match=r"^two\.held_out is 0\.01: of 24 training images"):
        check("attentive_probe", replace(SWEEP, **few), facts, "two")
    with pytest.raises(UserError, match="learning_rates"):
        strict(Config, {"learning_rates": []}, "config")


def test_the_cost_counts_each_heads_products() -> None:
    vit = ViTConfig(224, 16, dim=64, depth=2, num_heads=2)
    heads = [flops(replace(SMALL, learning_rates=rates), vit, Counts(0, 1, 3)) for rates in RATES]
    module = probe(64, 2, 3)
    with FlopCounterMode(display=False) as counter:
        module(torch.randn(1, 196, 64))
    assert heads[1] - heads[0] == pytest.approx(counter.get_total_flops(), rel=0.05)
    heads = [flops(replace(SMALL, learning_rates=rates), vit, Counts(1, 0, 3)) for rates in RATES]
    with FlopCounterMode(display=False) as counter:
        module(torch.randn(1, 196, 64)).sum().backward()
    assert heads[1] - heads[0] == pytest.approx(3 * counter.get_total_flops(), rel=0.05)


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
