"""Fine-tuning: the recipe's arithmetic, and a training that learns and can be killed."""

import math
import random
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from evals import supervised
from evals.protocol import Facts, check
from evals.protocols import attentive_probe, low_shot
from evals.protocols.finetune import PRESETS, Config, classifier, evaluate, fine_tune, groups
from evals.subject import Subject
from ijepa.architecture import Variant
from ijepa.config import parse_run
from ijepa.errors import UserError
from ijepa.optim import learning_rate
from ijepa.randomness import seeded
from ijepa.strict import strict
from ijepa.train import train as pretrain
from tests.coloured import Coloured, Killed

SMALL = Config(batch_size=8, epochs=3, warmup_epochs=1, base_lr=0.1, num_workers=0, drop_path=0.5)
"""All augmentations, 9 steps."""
PLAIN = replace(
    SMALL, auto_augment=None, random_erase=0, mixup=0, cutmix=0, drop_path=0, precision="float32"
)


def subject(work: Path, **changes: Any) -> Coloured:
    return Coloured(data=Path("colours"), label="colour", work=work, **changes)


def weights_after(config: Config, at: Coloured) -> dict[str, Tensor]:
    evaluate(config, at)
    return at.weights()


def assert_identical(ours: dict[str, Tensor], theirs: dict[str, Tensor]) -> None:
    assert ours.keys() == theirs.keys()
    assert [name for name in ours if not torch.equal(ours[name], theirs[name])] == []


@pytest.mark.parametrize("positions", ["sincos", "learned", "relative"])
def test_each_parameter_learns_at_the_rate_of_its_layer(tmp_path: Path, positions: Any) -> None:
    at = subject(tmp_path, variant=Variant(class_token=True, positions=positions))
    model = classifier(SMALL, at)
    settings = {
        id(parameter): (group["lr_scale"], group["weight_decay"])
        for group in groups(SMALL, model)
        for parameter in group["params"]
    }
    depth = 3
    for name, parameter in model.named_parameters():
        part = name.removeprefix("encoder.").split(".")
        layer = depth + 1
        if part[0] in ("patch_embed", "cls_token", "pos_embed"):
            layer = 0
        elif part[0] == "blocks":
            layer = int(part[1]) + 1
        decayed = parameter.ndim > 1 and part[0] not in ("cls_token", "pos_embed")
        scale, decay = settings.pop(id(parameter))
        assert scale == pytest.approx(0.75 ** (depth + 1 - layer)), name
        assert decay == (SMALL.weight_decay if decayed else 0), name
    assert not settings


def test_sine_cosine_positions_stay_fixed_where_a_config_says_so(tmp_path: Path) -> None:
    config = replace(SMALL, train_positions=False)
    model = classifier(config, subject(tmp_path))
    tuned = {id(parameter) for group in groups(config, model) for parameter in group["params"]}
    assert id(model.encoder.pos_embed) not in tuned


@pytest.mark.parametrize("pool", ["cls", "cls_patches"])
def test_a_head_sees_the_tokens_that_its_pool_names(tmp_path: Path, pool: Any) -> None:
    at = subject(tmp_path, variant=Variant(class_token=True))
    model = classifier(replace(SMALL, pool=pool), at).eval()
    images = torch.randn(2, 3, 16, 16)
    *_, last = model.encoder.outputs(images)
    pooled = {"cls": last[:, 0], "cls_patches": torch.cat([last[:, 0], last[:, 1:].mean(1)], 1)}
    torch.testing.assert_close(model(images), model.head(pooled[pool]))


def test_the_head_starts_from_the_encoder_that_was_given(tmp_path: Path) -> None:
    at = subject(tmp_path)
    model, pretrained = classifier(SMALL, at), at.network()
    for name, weight in pretrained.named_parameters():
        if not name.startswith("norm."):
            assert torch.equal(weight, model.encoder.get_parameter(name)), name
    images = torch.randn(2, 3, 16, 16)
    *_, last = pretrained.outputs(images)
    pooled = torch.nn.functional.layer_norm(last.mean(1), (16,), eps=1e-6)
    head: Any = model.head
    assert 0 < head.linear.weight.std() < 4e-5
    expected = pooled @ head.linear.weight.T
    torch.testing.assert_close(model.eval()(images), expected, atol=1e-8, rtol=1e-4)


def test_a_run_learns_what_tells_the_classes(tmp_path: Path) -> None:
    config = replace(PLAIN, epochs=10, weight_decay=0.0)
    result = evaluate(config, subject(tmp_path))
    losses = result.chosen["train_loss"]
    assert len(losses) == 10
    assert losses[-1] < 0.8 * losses[0]
    assert result.metric == "top1"
    assert result.n == 18
    assert result.value > 0.9


def test_only_the_given_images_are_learned_and_each_answer_is_an_image_asked_for(
    tmp_path: Path,
) -> None:
    labels = subject(tmp_path).labels("train")
    two = (labels != 2).nonzero().flatten()
    queries = {
        "unseen": ("train", (labels == 2).nonzero().flatten()),
        "seen": ("train", two[:5]),
        "new": ("test", torch.tensor([0, 3, 1, 4, 2])),
        "none": ("test", torch.tensor([], dtype=torch.int64)),
    }
    config = replace(PLAIN, epochs=20, weight_decay=0.0, label_smoothing=0.0)
    answers = fine_tune(config, subject(tmp_path), two, queries)
    right = {
        name: (answers[name] == subject(tmp_path).labels(split)[which]).tolist()
        for name, (split, which) in queries.items()
    }
    assert right == {
        "unseen": [False] * 8,
        "seen": [True] * 5,
        "new": [True] * 4 + [False],
        "none": [],
    }


@pytest.mark.parametrize("steps", [1, 4, 9])
def test_a_killed_training_ends_bit_identical(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, steps: int
) -> None:
    whole = weights_after(SMALL, subject(tmp_path / "whole"))
    monkeypatch.setattr(supervised, "CHECKPOINT_SECONDS", 0)
    monkeypatch.setattr(supervised, "CHECKPOINT_SHARE", math.inf)
    with pytest.raises(Killed):
        evaluate(SMALL, subject(tmp_path / "killed", lives=steps))
    second = subject(tmp_path / "killed")
    result = evaluate(SMALL, second)
    assert second.checkpoints == list(range(steps + 1, 10))
    assert_identical(second.weights(), whole)
    assert result == evaluate(SMALL, subject(tmp_path / "whole"))


def test_a_checkpoint_of_another_training_is_not_used(tmp_path: Path) -> None:
    fresh = weights_after(PLAIN, subject(tmp_path / "fresh"))
    fine_tune(PLAIN, subject(tmp_path / "used"), torch.arange(16), {})
    assert_identical(weights_after(PLAIN, subject(tmp_path / "used")), fresh)


def test_workers_and_global_generators_change_nothing(tmp_path: Path) -> None:
    alone = weights_after(SMALL, subject(tmp_path / "alone"))
    random.seed(1)
    np.random.seed(1)
    torch.manual_seed(1)
    before = random.getstate(), str(np.random.get_state())
    helped = weights_after(replace(SMALL, num_workers=2), subject(tmp_path / "helped"))
    assert_identical(helped, alone)
    after = random.getstate(), str(np.random.get_state())
    assert after == before


@pytest.mark.parametrize(
    "change",
    [
        {"auto_augment": None},
        {"random_erase": 0.0},
        {"mixup": 0.0},
        {"cutmix": 0.0},
        {"drop_path": 0.0},
        {"label_smoothing": 0.0},
        {"clip": 0.01},
        {"layer_decay": 1.0},
        {"seed": 1},
    ],
)
def test_every_setting_has_its_effect(tmp_path: Path, change: dict[str, Any]) -> None:
    config = replace(SMALL, epochs=1, warmup_epochs=0, random_erase=1.0)
    ours, theirs = (
        weights_after(c, subject(tmp_path / str(n)))
        for n, c in enumerate((config, replace(config, **change)))
    )
    assert not torch.equal(ours["head.linear.weight"], theirs["head.linear.weight"])


def test_a_batch_in_parts_teaches_what_the_whole_one_does(tmp_path: Path) -> None:
    config = replace(SMALL, base_lr=1e-2, weight_decay=0.0, precision="float32")
    whole = weights_after(config, subject(tmp_path / "whole"))
    parts = weights_after(replace(config, accumulate=3), subject(tmp_path / "parts"))
    first = dict(classifier(config, subject(tmp_path)).named_parameters())
    for name in whole:
        moved = (whole[name] - first[name]).norm()
        assert (whole[name] - parts[name]).norm() < 0.02 * moved, name


def test_fewer_images_than_a_batch_are_one_batch_at_its_rate(tmp_path: Path) -> None:
    chosen = evaluate(replace(PLAIN, batch_size=512, epochs=1), subject(tmp_path)).chosen
    assert chosen["batch_size"] == 24
    assert chosen["lr"] == pytest.approx(0.1 * 24 / 256)


def test_the_first_rate_is_zero_and_warm_up_leads_to_the_base_rate() -> None:
    optim = Config().optim(528, Config().base_lr)
    rates = [learning_rate(optim, step, 500) for step in (0, 50, 499)]
    assert rates[:2] == [0, pytest.approx(1e-4 * 528 / 256)]
    assert rates[2] == pytest.approx(1e-6, rel=0.01)


def test_presets_are_the_papers_rows() -> None:
    configs = {name: strict(Config, preset, name) for name, preset in PRESETS.items()}
    assert {name: (c.weight_decay, c.batch_size, c.base_lr) for name, c in configs.items()} == {
        "in1k_full": (0.04, 528, 1e-4),
        "mae_base": (0.05, 1024, 5e-4),
        "mae_large": (0.05, 1024, 1e-3),
        "mae_huge": (0.05, 1024, 1e-3),
        "low_shot_l16": (0.05, 512, 3e-5),
        "low_shot_h14": (0.4, 512, 3e-5),
        "low_shot_h16_448": (0.4, 512, 3e-5),
    }
    by_mae = [configs[f"mae_{size}"] for size in ("base", "large", "huge")]
    assert [c.drop_path for c in by_mae] == [0.1, 0.2, 0.3]
    assert [c.layer_decay for c in by_mae] == [0.65, 0.75, 0.75]
    assert [c.epochs for c in by_mae] == [100, 50, 50]
    all_labels = ("in1k_full", "mae_base", "mae_large", "mae_huge")
    for name, c in configs.items():
        mixing = (c.mixup, c.cutmix, c.random_erase)
        assert mixing == ((0.8, 1.0, 0.25) if name in all_labels else (0, 0, 0)), name


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"epochs": 0}, "epochs is 0: it must be at least 1"),
        ({"base_lr": 0}, "base_lr is 0: it must be above 0"),
        ({"min_lr": -1}, "min_lr is -1: it must be at least 0"),
        ({"warmup_epochs": 51}, r"warmup_epochs is 51\.0: it must lie between 0 and epochs"),
        ({"random_erase": 2}, "random_erase is 2: it must be at most 1"),
        ({"label_smoothing": 1}, "label_smoothing is 1: it must be below 1"),
        ({"batch_size": 7}, "batch_size is 7: mixup and cutmix pair images"),
        ({"layer_decay": 0}, "layer_decay is 0: it must be above 0"),
        ({"drop_path": 1}, "drop_path is 1: it must be below 1"),
        ({"num_workers": -1}, "num_workers is -1: it must be at least 0"),
    ],
)
def test_a_bad_setting_is_refused(change: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        strict(Config, change, "config")


@pytest.mark.parametrize("policy", ["rnd", "rand-q1"])
def test_an_augmentation_that_timm_does_not_know_is_refused(policy: str) -> None:
    message = f"auto_augment is '{policy}', which timm does not know"
    for name, config in (
        ("finetune", Config(auto_augment=policy)),
        ("attentive_probe", attentive_probe.Config(auto_augment=policy)),
        ("low_shot", low_shot.Config(finetune=Config(auto_augment=policy))),
    ):
        with pytest.raises(UserError, match=f"^evaluations.x.config.*{message}"):
            check(name, config, Facts(uses="both"), "evaluations.x.config")
    check("low_shot", low_shot.Config(), Facts(uses="features"), "not fine-tuned")


def test_images_that_cannot_be_trained_on_are_refused_before_training(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(UserError, match=r"colours: 1 training images are too few .* pair them"):
        fine_tune(SMALL, subject(tmp_path), torch.tensor([3]), {})
    monkeypatch.setattr(Coloured, "num_classes", 2)
    with pytest.raises(UserError, match="train image 2 of colours has colour 2, but there are 2"):
        fine_tune(SMALL, subject(tmp_path), None, {})


def test_a_training_that_diverges_stops(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"the loss of fine-tune is nan at step [1-9]"):
        evaluate(replace(PLAIN, base_lr=1e30), subject(tmp_path))


def test_a_real_encoder_and_shards_give_a_result(
    raw_run: dict[str, Any], data: Path, tmp_path: Path
) -> None:
    raw_run["recipe"]["optim"] = {"batch_size": 32, "epochs": 0, "warmup_epochs": 0}
    encoder = tmp_path / "encoder.safetensors"
    pretrain(parse_run(raw_run), data, tmp_path / "work", encoder)
    at = Subject(data, "class", encoder, work=tmp_path, limit={"train": 40, "test": 20})
    config = replace(SMALL, batch_size=16, epochs=1)
    result = evaluate(config, at)
    assert result.n == 20
    assert len(result.chosen["train_loss"]) == 1
    every = torch.arange(20)
    answers = fine_tune(config, at, None, {"test": ("test", every)})
    right = answers["test"] == at.labels("test")
    assert right.float().mean().item() == pytest.approx(result.value)


def test_rand_augment_may_take_all_bits_of_an_image() -> None:
    """Pillow 13 refuses to keep 0 bits, which timm asks for at a magnitude of 10."""
    policy = Config(auto_augment="rand-m10-n8-inc1").policy(8)
    assert policy is not None
    for seed in range(30):
        with seeded(seed):
            assert policy(Image.new("RGB", (8, 8), (90, 60, 30))).size == (8, 8)
