"""Classification from few images: which images count, which head, and what the result says."""

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch
from sklearn.linear_model import LogisticRegression
from torch import Tensor

from evals.protocol import Facts
from evals.protocols import low_shot
from evals.protocols.finetune import Config as FineTuning
from evals.protocols.low_shot import Config
from evals.subject import Subject
from ijepa.errors import UserError
from ijepa.strict import strict
from tests.test_evals import Made, arrays, clouds

ENCODER = Path("encoder.safetensors")


def few(subject: Made, **settings: Any) -> Tensor:
    """The images that count."""
    return low_shot.few(Config(**settings), subject, subject.labels("train"))


def fake_fine_tuning(
    monkeypatch: pytest.MonkeyPatch, held_out: float, test: float
) -> list[dict[str, Any]]:
    """Replace fine-tuning by one that is right on a share of the images; returns its calls."""
    calls = []

    def fine_tune(
        config: FineTuning,
        subject: Subject,
        numbers: Tensor,
        queries: dict[str, tuple[str, Tensor]],
    ) -> dict[str, Tensor]:
        calls.append({"config": config, "numbers": numbers, "queries": queries})
        predicted = {}
        for name, (split, which) in queries.items():
            share = {"held_out": held_out, "test": test}[name]
            wrong = torch.arange(len(which)) >= share * len(which)
            predicted[name] = (subject.labels(split)[which] + wrong) % subject.num_classes
        return predicted

    monkeypatch.setattr(low_shot, "fine_tune", fine_tune)
    return calls


def test_so_many_of_each_class_are_drawn_by_the_seed() -> None:
    subject = clouds()
    numbers = few(subject, per_class=4)
    assert subject.y["train"][numbers].bincount().tolist() == [4, 4, 4]
    assert numbers.tolist() == sorted(set(numbers.tolist()))
    assert numbers.tolist() == few(subject, per_class=4).tolist()
    assert numbers.tolist() != few(subject, per_class=4, seed=1).tolist()


def test_a_smaller_subset_is_part_of_a_larger_one() -> None:
    subject = clouds()
    assert set(few(subject, per_class=2).tolist()) < set(few(subject, share=0.1).tolist())


def test_a_share_is_that_of_each_class_and_at_least_one() -> None:
    y = torch.tensor([0] * 300 + [1] * 100 + [2] * 7)
    subject = Made(y={"train": y})
    assert y[few(subject, share=0.02)].bincount().tolist() == [6, 2, 1]


def test_an_official_list_counts_as_it_is() -> None:
    subject = dataclasses.replace(
        clouds(), lists={"1pct": torch.arange(20), "mine": torch.arange(9)}
    )
    assert few(subject).tolist() == list(range(20))
    assert few(subject, subset="mine").tolist() == list(range(9))


def test_a_class_missing_from_the_list_is_named() -> None:
    subject = clouds()
    without = (subject.y["train"] != 1).nonzero().flatten()
    with pytest.raises(UserError, match="the subset mine of made has no image of class 1 of class"):
        few(dataclasses.replace(subject, lists={"mine": without}), subset="mine")


def test_a_class_with_too_few_images_is_named() -> None:
    subject = Made(y={"train": torch.tensor([0, 0, 1, 1, 2])})
    with pytest.raises(UserError, match="class 2 of class has 1 training images, 2 are asked for"):
        few(subject, per_class=2)
    with pytest.raises(UserError, match="class 3 of class has 0 training images, 1 are asked for"):
        few(dataclasses.replace(subject, classes=4), share=0.5)


@pytest.mark.parametrize(
    ("raw", "message"),
    [
        ({"per_class": 2, "share": 0.1}, "per_class 2 and share 0.1 are given: give one of them"),
        ({"per_class": 0}, "per_class is 0"),
        ({"share": 1.5}, "share is 1.5"),
        ({"finetune": {"subset": "1pct"}}, "give subset beside finetune"),
        ({"finetune": {"epoch": 9}}, r"finetune\.epoch: unknown key \(did you mean epochs"),
    ],
)
def test_a_bad_size_is_refused(raw: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        strict(Config, raw, "evaluations.low_shot")


def test_defaults_are_the_papers() -> None:
    config = strict(Config, {}, "evaluations.low_shot")
    assert config.subset == "1pct"
    tuning = config.finetune
    assert tuning is not None
    assert (tuning.epochs, tuning.batch_size, tuning.base_lr) == (50, 512, 3e-5)
    assert (tuning.layer_decay, tuning.label_smoothing) == (0.75, 0.1)
    assert tuning.auto_augment == "rand-m9-mstd0.5-inc1"
    assert not any([tuning.mixup, tuning.cutmix, tuning.random_erase, tuning.drop_path])
    assert tuning.weight_decay == 0.4
    l16 = strict(Config, low_shot.PRESETS["low_shot_l16"], "evaluations.low_shot")
    assert l16 == dataclasses.replace(
        config, finetune=dataclasses.replace(tuning, weight_decay=0.05)
    )


def test_the_head_agrees_with_plain_scikit_learn_on_the_subset() -> None:
    subject = clouds(2000, 1000, noise=1.0)
    result = low_shot.evaluate(Config(per_class=10), subject)
    numbers = few(subject, per_class=10).numpy()
    x, y = arrays(subject, "train")
    mean, std = x[numbers].mean(0), x[numbers].std(0, ddof=1)
    plain = LogisticRegression(C=1 / (result.chosen["logistic"]["penalty"] * 30), max_iter=1000)
    plain.fit((x[numbers] - mean) / std, y[numbers])
    test_x, test_y = arrays(subject, "test")
    assert abs(result.value - plain.score((test_x - mean) / std, test_y)) <= 0.005
    assert result.chosen["training_images"] == 30


def test_one_image_of_each_class_is_enough() -> None:
    result = low_shot.evaluate(Config(per_class=1), clouds(noise=0.05))
    assert result.value > 0.99
    assert result.chosen["logistic"]["held_out_top1"] == {}
    assert result.chosen["logistic"]["penalty"] == 1.0


def test_features_alone_get_a_linear_head_alone() -> None:
    result = low_shot.evaluate(Config(per_class=5), clouds())
    assert result.chosen["head"] == result.chosen["best_on_test"] == "logistic"
    assert list(result.chosen["heads"]) == ["logistic"]


def test_fine_tuning_is_left_out_where_the_config_says_null(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """DINO's and iBOT's numbers in the paper's Table 2 are those of a linear head."""
    calls = fake_fine_tuning(monkeypatch, 1.0, 1.0)
    config = strict(Config, {"per_class": 5, "finetune": None}, "evaluations.low_shot")
    subject = dataclasses.replace(clouds(), encoder=ENCODER)
    assert list(low_shot.evaluate(config, subject).chosen["heads"]) == ["logistic"]
    assert not calls
    low_shot.check(config, Facts("both", class_token=False))


@pytest.mark.parametrize(
    ("held_out", "test", "head", "best_on_test"),
    [(1.0, 0.0, "finetune", "logistic"), (0.0, 1.0, "logistic", "finetune")],
)
def test_images_outside_the_subset_decide_and_the_test_images_do_not(
    held_out: float, test: float, head: str, best_on_test: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake_fine_tuning(monkeypatch, held_out, test)
    subject = dataclasses.replace(clouds(), encoder=ENCODER)
    result = low_shot.evaluate(Config(per_class=5), subject)
    assert result.chosen["head"] == head
    assert result.chosen["best_on_test"] == best_on_test
    heads = result.chosen["heads"]
    assert heads["finetune"]["value"] == test
    assert heads["finetune"]["held_out_top1"] == held_out
    assert result.value == heads[head]["value"]
    assert list(result.interval) == pytest.approx(heads[head]["interval"], abs=1e-5)


def test_both_heads_learn_from_the_subset_and_are_asked_about_the_same_images(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(low_shot, "HELD_OUT", 100)
    calls = fake_fine_tuning(monkeypatch, 1.0, 1.0)
    subject = dataclasses.replace(clouds(), encoder=ENCODER)
    low_shot.evaluate(Config(per_class=5), subject)
    [call] = calls
    numbers, queries = call["numbers"], call["queries"]
    assert numbers.tolist() == few(subject, per_class=5).tolist()
    split, held_out = queries["held_out"]
    assert split == "train"
    assert len(set(held_out.tolist())) == 100
    assert not set(held_out.tolist()) & set(numbers.tolist())
    assert queries["test"][0] == "test"
    assert queries["test"][1].tolist() == list(range(300))


def test_fine_tuning_counts_where_nothing_is_outside_the_subset(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    fake_fine_tuning(monkeypatch, 0.0, 0.0)
    subject = dataclasses.replace(clouds(), encoder=ENCODER)
    result = low_shot.evaluate(Config(share=1.0), subject)
    assert result.chosen["head"] == "finetune"
    assert result.chosen["held_out_images"] == 0
    assert result.chosen["heads"]["finetune"]["held_out_top1"] is None


def test_the_result_is_a_function_of_the_seed() -> None:
    first, second, other = (
        low_shot.evaluate(Config(per_class=5, seed=seed), clouds()) for seed in (0, 0, 1)
    )
    assert first == second
    assert first.chosen != other.chosen
