"""Few-shot classification: which images are drawn, what chooses, and what the result says."""

import dataclasses
import math
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from sklearn.linear_model import LogisticRegression
from torch import Tensor, nn

from evals.balanced_draws import draw
from evals.protocol import configure
from evals.protocols import few_shot, low_shot
from evals.protocols.few_shot import Config, Linear
from evals.result import unpacked, wilson
from ijepa.errors import UserError
from ijepa.randomness import generator
from tests.test_evals import Made, arrays, clouds

LABELS = st.lists(st.integers(0, 4), min_size=1, max_size=60)


@given(labels=LABELS, seed=st.integers(0, 10**6), data=st.data())
def test_a_draw_has_so_many_different_images_of_each_class_and_grows_by_adding(
    labels: list[int], seed: int, data: st.DataObject
) -> None:
    y = torch.tensor(labels)
    counts = y.bincount(minlength=5)
    wanted = torch.tensor([data.draw(st.integers(0, int(count))) for count in counts])
    numbers = draw(y, wanted, generator(seed), "class")
    assert y[numbers].bincount(minlength=5).tolist() == wanted.tolist()
    assert numbers.tolist() == sorted(set(numbers.tolist()))
    assert numbers.tolist() == draw(y, wanted, generator(seed), "class").tolist()
    assert set(numbers.tolist()) <= set(draw(y, counts, generator(seed), "class").tolist())
    fewer = (wanted - 1).clamp_min(0)
    assert set(draw(y, fewer, generator(seed), "class").tolist()) <= set(numbers.tolist())
    with pytest.raises(UserError, match=r"class \d of class has \d+ training images, \d+ are"):
        draw(y, counts + 1, generator(seed), "class")


def test_each_image_of_a_class_is_drawn_equally_often() -> None:
    y = torch.tensor([0, 1, 0, 0, 1, 0, 1])
    times = torch.zeros(7)
    for seed in range(1000):
        times[draw(y, torch.tensor([1, 1]), generator(seed), "class")] += 1
    expected = 1000 / y.bincount()[y]
    # Four standard deviations of a binomial of 1000.
    assert ((times - expected).abs() < 4 * (expected * (1 - expected / 1000)).sqrt()).all()


def few(subject: Made, number: int = 0, **settings: Any) -> Tensor:
    return few_shot.drawn(Config(**settings), subject, subject.labels("train"), number)


def test_draws_differ_and_are_functions_of_the_seed() -> None:
    subject = clouds()
    assert few(subject, 0, per_class=5).tolist() == few(subject, 0, per_class=5).tolist()
    assert few(subject, 0, per_class=5).tolist() != few(subject, 1, per_class=5).tolist()
    assert few(subject, 0, per_class=5).tolist() != few(subject, 0, per_class=5, seed=1).tolist()
    assert few(subject).tolist() == list(range(600))


@pytest.mark.parametrize("settings", [{"per_class": 3}, {}])
def test_a_class_with_too_few_images_is_named_before_features_are_read(
    settings: dict[str, Any],
) -> None:
    subject = Made(y={"train": torch.tensor([0, 0, 0, 1, 1, 1]), "test": torch.tensor([0])})
    short = r"class 2 of class in made has 0 training images, [13] are asked for: make per_class"
    with pytest.raises(UserError, match=short):
        few_shot.evaluate(Config(**settings), subject)


@pytest.mark.parametrize("head", ["logistic", "linear"])
@pytest.mark.parametrize("per_class", [1, 10, None])
def test_a_head_separates_clear_classes_and_not_noise(head: Any, per_class: int | None) -> None:
    # The published rate is for thousands of features; these are eight.
    linear = Linear(lr=0.05)
    config = Config(head=head, per_class=per_class, layers=1, draws=3, linear=linear)
    assert few_shot.evaluate(config, clouds(noise=0.05)).value > 0.99
    assert few_shot.evaluate(config, clouds(noise=1e3)).value < 0.45


def test_the_value_is_the_mean_over_draws_and_the_result_has_each() -> None:
    result = few_shot.evaluate(Config(per_class=2, draws=4), clouds())
    values = [draw["value"] for draw in result.chosen["draws"]]
    assert len(set(values)) > 1
    assert result.value == pytest.approx(sum(values) / 4, abs=1e-5)
    assert result.chosen["std_over_draws"] == pytest.approx(np.std(values, ddof=1), abs=1e-4)
    assert result.chosen["training_images"] == 6
    assert result.interval[0] < result.value < result.interval[1]
    assert (result.correct, result.classes) == (None, None)


def test_of_all_images_there_is_one_draw_and_its_result_is_a_plain_one() -> None:
    config = Config(draws=10)
    assert config.draws == 1
    result = few_shot.evaluate(config, clouds())
    assert result.chosen["training_images"] == 600
    assert result.correct is not None
    right = round(result.value * 300)
    assert result.interval == wilson(right, 300)
    assert unpacked(result.correct, 300).sum() == right


def test_the_logistic_head_agrees_with_plain_scikit_learn_on_each_draw() -> None:
    subject = clouds(2000, 1000, noise=1.0)
    config = Config(per_class=10, draws=2, layers=1)
    result = few_shot.evaluate(config, subject)
    x, y = arrays(subject, "train")
    test_x, test_y = arrays(subject, "test")
    for number, record in enumerate(result.chosen["draws"]):
        numbers = few(subject, number, per_class=10).numpy()
        mean, std = x[numbers].mean(0), x[numbers].std(0, ddof=1)
        plain = LogisticRegression(C=1 / (record["penalty"] * 30), max_iter=1000)
        plain.fit((x[numbers] - mean) / std, y[numbers])
        assert abs(record["value"] - plain.score((test_x - mean) / std, test_y)) <= 0.005


def test_images_outside_the_draw_choose_the_penalty_and_test_images_do_not() -> None:
    subject = clouds(noise=1.0)
    config = Config(per_class=5, draws=1, layers=1)
    record = few_shot.evaluate(config, subject).chosen["draws"][0]
    numbers = few(subject, per_class=5)
    held_out = low_shot.outside(numbers, 600, 0)
    assert not set(held_out.tolist()) & set(numbers.tolist())
    assert record["held_out_images_outside"] == len(held_out) == 585
    best = max(record["held_out_top1"].values())
    assert record["held_out_top1"][str(record["penalty"])] == best
    shuffled = {**subject.y, "test": subject.y["test"].roll(1)}
    other = few_shot.evaluate(config, dataclasses.replace(subject, y=shuffled))
    assert other.chosen["draws"][0]["penalty"] == record["penalty"]
    assert other.chosen["draws"][0]["held_out_top1"] == record["held_out_top1"]


def test_where_nothing_is_outside_a_part_of_each_class_of_the_draw_chooses() -> None:
    record = few_shot.evaluate(Config(), clouds()).chosen["draws"][0]
    assert record["held_out_images_outside"] == 0
    assert len(record["held_out_top1"]) == 7


def test_the_linear_head_agrees_with_plain_torch() -> None:
    """Full batches, so that no order matters: the same optimiser by torch's own schedule."""
    x = torch.from_numpy(np.random.default_rng(0).normal(size=(30, 8))).float()
    y = torch.arange(30) % 3
    predict = few_shot.train(Linear(lr=0.05, epochs=20, batch_size=30), x, y, 3, (0, 0))
    head = few_shot.new_head(8, 3, generator("few_shot", 0, 0, "head"))
    assert isinstance(head, nn.Sequential)
    assert [type(part) for part in head] == [nn.LayerNorm, nn.Linear]
    optimizer = torch.optim.AdamW(head.parameters(), 0.05, weight_decay=1e-6)
    rates = [0.01, *(1e-3 + 0.999 * (1 + math.cos(math.pi * e / 19)) / 2 for e in range(19))]
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda epoch: [*rates, 0.0][epoch])
    for _ in range(20):
        nn.functional.cross_entropy(head(x), y).backward()
        optimizer.step()
        optimizer.zero_grad()
        schedule.step()
    assert predict(x).tolist() == head(x).argmax(1).tolist()


def test_the_interval_covers_the_true_mean_as_often_as_it_says() -> None:
    """Accuracies that vary by draw and by image; the true mean is known."""
    random = np.random.default_rng(0)
    covered = 0
    for _ in range(300):
        logits = random.normal(0, 0.3, (10, 1)) + random.normal(0, 2.0, (1, 400))
        correct = random.random((10, 400)) < 1 / (1 + np.exp(-logits))
        low, high = few_shot.averaged(torch.from_numpy(correct), {}).interval
        covered += low < 0.5 < high  # by symmetry the mean over draws and images is a half
    assert 0.93 <= covered / 300 <= 1.0


def test_a_few_images_that_are_all_right_leave_doubt() -> None:
    """Wilson's interval of 18 right images begins at 0.82."""
    result = few_shot.averaged(torch.ones(10, 18, dtype=torch.bool), {})
    assert result.value == 1.0
    assert 0.75 < result.interval[0] < 0.85
    assert result.interval[1] == 1.0


def test_presets_are_lejepas_protocol() -> None:
    for name, per_class, draws in (("1", 1, 10), ("10", 10, 10), ("all", None, 1)):
        config = configure("few_shot", {"preset": f"lejepa_{name}"}, "evaluations.x")
        assert (config.head, config.per_class, config.draws) == ("linear", per_class, draws)
        assert (config.layers, config.pool, config.linear.weight_decay) == (2, None, 1e-6)
    assert few_shot.factor(0, 100) == pytest.approx(0.01)
    assert few_shot.factor(1, 100) == 1.0
    assert few_shot.factor(100, 100) == pytest.approx(1e-3)


@pytest.mark.parametrize(
    ("raw", "message"),
    [
        ({"per_class": 0}, "per_class is 0"),
        ({"draws": 0}, "draws is 0"),
        ({"head": "svm"}, "head"),
        ({"logistic": {"layers": 4}}, "give pool and layers beside it"),
    ],
)
def test_bad_settings_are_refused(raw: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        configure("few_shot", raw, "evaluations.few_shot")
