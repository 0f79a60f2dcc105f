"""Evaluations beside independent implementations, on features whose answer is known."""

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from scipy.optimize import minimize
from scipy.stats import binomtest
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import confusion_matrix
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from torch import Tensor

from evals.__main__ import main
from evals.features import extract
from evals.pooling import Pool
from evals.protocol import evaluation_names, load_evaluation
from evals.protocols import feature_statistics, knn, logistic_regression
from evals.result import Result, packed, top1, unpacked, wilson
from evals.run import evaluate
from evals.subject import Subject
from ijepa.architecture import ViTConfig
from ijepa.config import parse_run
from ijepa.errors import UserError
from ijepa.monitors import Monitored, measure
from ijepa.train import train
from ijepa.vit import ViT

STATISTICAL = ["knn", "logistic_regression"]
"""Classifications that need nothing but features."""


@dataclass(frozen=True)
class Made(Subject):
    """Features and labels from memory: two layers, of which the first is noise."""

    data: Path = Path("made")
    label: str = "class"
    x: dict[str, Tensor] = field(default_factory=dict)
    y: dict[str, Tensor] = field(default_factory=dict)
    classes: int = 3
    lists: dict[str, Tensor] = field(default_factory=dict)

    @property
    def num_classes(self) -> int:
        return self.classes

    def labels(self, split: str) -> Tensor:
        return self.y[split]

    def features(self, split: str, pool: Pool | None = None, layers: int = 1) -> Tensor:
        noise = torch.randn(self.x[split].shape, generator=torch.Generator().manual_seed(0))
        return torch.stack([noise, self.x[split]], 1).half()[:, -layers:]

    def subset(self, name: str) -> Tensor:
        return self.lists[name]


def clouds(
    train: int = 600, test: int = 300, noise: float = 2.0, scales: Tensor | float = 1.0
) -> Made:
    """Three clouds in eight dimensions around fixed centres."""
    x, y = {}, {}
    for seed, (split, count) in enumerate({"train": train, "test": test}.items()):
        random = np.random.default_rng(seed)
        centres = np.random.default_rng(7).normal(size=(3, 8))
        y[split] = torch.from_numpy(random.integers(0, 3, count))
        values = centres[y[split]] + noise * random.normal(size=(count, 8))
        x[split] = torch.from_numpy(values).float() * scales
    return Made(x=x, y=y)


UNEQUAL = 10.0 ** torch.linspace(-2, 3, 8)
"""Scales that make a head on features as they are fail; float16 holds them."""


def arrays(subject: Made, split: str) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """The last layer and the labels, as an independent implementation takes them."""
    return subject.features(split)[:, -1].double().numpy(), subject.labels(split).numpy()


@pytest.mark.parametrize("name", STATISTICAL)
def test_an_evaluation_separates_clear_classes_and_not_noise(name: str) -> None:
    module = load_evaluation(name)
    assert module.evaluate(module.Config(), clouds(noise=0.05)).value > 0.99
    assert module.evaluate(module.Config(), clouds(noise=1e3)).value < 0.45


@pytest.mark.parametrize("name", evaluation_names())
def test_every_evaluation_has_a_protocol_of_its_own(name: str) -> None:
    module = load_evaluation(name)
    assert module.Config() == module.Config()
    assert set(module.USES) <= {"features", "images", "both"}
    assert module.USES


def test_an_unknown_evaluation_is_refused() -> None:
    with pytest.raises(UserError, match=r"unknown evaluation 'knnn': known are .*knn, linear_pro"):
        load_evaluation("knnn")


@pytest.mark.parametrize(
    ("queries", "stored"), [(1024, 32_768), (7, 30)], ids=["at once", "in chunks"]
)
def test_knn_agrees_with_a_loop_over_all_pairs(
    queries: int, stored: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(knn, "QUERY_CHUNK", queries)
    monkeypatch.setattr(knn, "TRAIN_CHUNK", stored)
    subject = clouds(200, 50)
    result = knn.evaluate(knn.Config(num_neighbours=7, temperature=0.2), subject)
    right = 0
    for x, y in zip(*arrays(subject, "test"), strict=True):
        pairs = [
            (float(x @ t / np.linalg.norm(x) / np.linalg.norm(t)), int(c))
            for t, c in zip(*arrays(subject, "train"), strict=True)
        ]
        votes = np.zeros(3)
        for similarity, c in sorted(pairs, reverse=True)[:7]:
            votes[c] += np.exp(similarity / 0.2)
        right += int(votes.argmax()) == y
    assert result.value == right / 50


def test_neighbours_are_found_in_mapped_float16_as_in_float32(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    random = torch.Generator().manual_seed(0)
    stored = torch.randn(100, 6, generator=random).half()
    np.save(tmp_path / "train.npy", stored.numpy())
    mapped = torch.from_numpy(np.load(tmp_path / "train.npy", mmap_mode="c"))
    monkeypatch.setattr(knn, "QUERY_CHUNK", 4)
    monkeypatch.setattr(knn, "TRAIN_CHUNK", 13)
    chunks = knn.neighbours(mapped, stored[:10].float(), 3)
    similarities, indices = (torch.cat(parts) for parts in zip(*chunks, strict=True))
    unit = torch.nn.functional.normalize(stored.float(), dim=1)
    expected = (unit[:10] @ unit.T).topk(3)
    torch.testing.assert_close(similarities, expected.values)
    assert indices.tolist() == expected.indices.tolist()
    assert indices[:, 0].tolist() == list(range(10))


def test_fewer_known_images_than_neighbours_all_vote() -> None:
    [(similarities, indices)] = knn.neighbours(torch.eye(3), torch.eye(3), 20)
    assert similarities.shape == (3, 3)
    assert indices.sort().values.tolist() == [[0, 1, 2]] * 3


def test_logistic_regression_agrees_with_a_direct_minimisation() -> None:
    subject = clouds(1000, 1000, scales=UNEQUAL)
    config = logistic_regression.Config(penalties=(1e-2,), tolerance=1e-6, max_iterations=1000)
    ours = logistic_regression.evaluate(config, subject).value

    x, y = arrays(subject, "train")
    test_x, test_y = arrays(subject, "test")
    mean, std = x.mean(0), x.std(0)
    x, test_x = (x - mean) / std, (test_x - mean) / std

    def loss(flat: NDArray[np.float64]) -> float:
        head = flat.reshape(9, 3)
        logits = x @ head[:8] + head[8]
        chosen = logits[np.arange(len(y)), y]
        return float(
            np.mean(np.logaddexp.reduce(logits, 1) - chosen) + 0.005 * np.square(head[:8]).sum()
        )

    head = minimize(loss, np.zeros(27), options={"maxiter": 500}).x.reshape(9, 3)
    theirs = np.mean((test_x @ head[:8] + head[8]).argmax(1) == test_y)
    assert abs(ours - theirs) <= 0.005


def test_logistic_regression_agrees_with_plain_scikit_learn() -> None:
    subject = clouds(500, 1000, scales=UNEQUAL)
    result = logistic_regression.evaluate(logistic_regression.Config(), subject)
    weight = 1 / (result.chosen["penalty"] * 500)
    plain = make_pipeline(StandardScaler(), LogisticRegression(C=weight, max_iter=1000))
    theirs = plain.fit(*arrays(subject, "train")).score(*arrays(subject, "test"))
    assert abs(result.value - theirs) <= 0.005
    assert result.chosen["converged"]


@pytest.mark.parametrize("classes", [2, 3])
def test_logistic_regression_on_a_gpu_finds_the_same_optimum(
    classes: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The CPU stands for the GPU; as a GPU's, its tensors don't become NumPy's by themselves."""
    subject, config = clouds(500, 1000, scales=UNEQUAL), logistic_regression.Config(tolerance=1e-5)
    x, y = subject.x["train"], subject.y["train"].clamp_max(classes - 1)
    ours = logistic_regression.fit(config, x, y)
    expected = ours.predict(subject.x["test"])

    def refused(tensor: Tensor, dtype: Any = None) -> Any:
        raise TypeError("can't convert a GPU's tensor to numpy")

    gpu = torch.device("cuda")
    arrays_of = logistic_regression.arrays_of
    monkeypatch.setattr(logistic_regression, "arrays_of", lambda _: arrays_of(gpu))
    monkeypatch.setattr(Tensor, "__array__", refused)
    monkeypatch.setenv("SCIPY_ARRAY_API", "0")
    theirs = logistic_regression.fit(config, x, y)
    assert isinstance(theirs.model.coef_, Tensor)
    assert theirs.chosen["held_out_top1"] == ours.chosen["held_out_top1"]
    assert theirs.chosen["penalty"] == ours.chosen["penalty"]
    torch.testing.assert_close(
        theirs.model.coef_, torch.tensor(ours.model.coef_.tolist()), rtol=0, atol=1e-2
    )
    assert (theirs.predict(subject.x["test"]) == expected).double().mean() > 0.995


def test_the_penalty_with_the_best_held_out_accuracy_is_chosen() -> None:
    config = logistic_regression.Config(penalties=(1e3, 1e-3))
    chosen = logistic_regression.evaluate(config, clouds(noise=0.5)).chosen
    assert chosen["penalty"] == 1e-3
    assert chosen["held_out_top1"]["1000.0"] < chosen["held_out_top1"]["0.001"]


def test_the_penalty_is_chosen_without_the_test_images() -> None:
    subject = clouds()
    wrong = Made(x=subject.x, y={**subject.y, "test": (subject.y["test"] + 1) % 3})
    config = logistic_regression.Config()
    chosen = [logistic_regression.evaluate(config, s).chosen for s in (subject, wrong)]
    assert chosen[0] == chosen[1]


def test_the_prediction_of_a_test_image_does_not_depend_on_the_others() -> None:
    subject = clouds(scales=UNEQUAL)
    head = logistic_regression.fit(
        logistic_regression.Config(), subject.x["train"], subject.y["train"]
    )
    together = head.predict(subject.x["test"])
    assert together.tolist() == [int(head.predict(x[None])) for x in subject.x["test"]]


def test_a_class_too_rare_for_the_selection_is_learnt_all_the_same() -> None:
    x = torch.eye(4)[torch.arange(400) % 3]
    x[0] = torch.tensor([0.0, 0, 0, 50])
    y = torch.arange(400) % 3
    y[0] = 3
    config = logistic_regression.Config(selection_images=30)
    assert logistic_regression.fit(config, x, y).predict(x).tolist() == y.tolist()


def test_a_fifth_of_each_class_is_held_out_and_one_of_a_few() -> None:
    y = torch.tensor([0] * 11 + [1] * 2 + [2])
    assert y[logistic_regression.a_fifth(y)].tolist() == [0, 0, 1]


def test_one_class_is_not_enough() -> None:
    subject = Made(x={"train": torch.eye(4)}, y={"train": torch.ones(4, dtype=torch.int64)})
    with pytest.raises(UserError, match=r"all 4 training images are of class \[1\]"):
        logistic_regression.fit(
            logistic_regression.Config(), subject.x["train"], subject.y["train"]
        )


def test_a_fit_that_memory_cannot_hold_is_refused_first(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(logistic_regression, "usable_memory", lambda: 10_000)
    with pytest.raises(UserError, match="use linear_probe"):
        logistic_regression.evaluate(logistic_regression.Config(), clouds())


@pytest.mark.parametrize("name", STATISTICAL)
def test_a_label_beyond_the_classes_is_named(name: str) -> None:
    subject, module = clouds(), load_evaluation(name)
    subject.y["train"][5] = 3
    with pytest.raises(UserError, match="train image 5 of made has class 3, but there are 3"):
        module.evaluate(module.Config(), subject)


@pytest.mark.parametrize("name", [*STATISTICAL, "feature_statistics"])
def test_features_that_are_no_numbers_are_refused(name: str) -> None:
    subject, module = clouds(), load_evaluation(name)
    subject.x["train"][5, 3] = torch.nan
    with pytest.raises(UserError, match="not finite numbers"):
        module.evaluate(module.Config(), subject)


def test_the_number_of_neighbours_is_chosen_on_training_images_by_all_others() -> None:
    """With 30 images in three clouds, 29 neighbours vote for the largest class."""
    subject = clouds(30, 30, noise=0.5)
    result = knn.evaluate(knn.Config(candidates=(29, 5), temperature=10), subject)
    x = torch.nn.functional.normalize(subject.x["train"].half().float())
    similarity = (x @ x.T).fill_diagonal_(-torch.inf)
    for k in (29, 5):
        nearest = similarity.topk(k)
        votes = torch.zeros(30, 3).scatter_add_(
            1, subject.y["train"][nearest.indices], (nearest.values / 10).exp()
        )
        share = (votes.argmax(1) == subject.y["train"]).float().mean().item()
        assert result.chosen["held_out_top1"][str(k)] == pytest.approx(share, abs=1e-4)
    assert result.chosen["num_neighbours"] == 5
    five = knn.Config(num_neighbours=5, temperature=10)
    assert knn.evaluate(five, subject).correct == result.correct
    best = knn.evaluate(knn.Config(candidates=(29, 5), chosen_on="test", temperature=10), subject)
    assert best.chosen["chosen_on"] == "test"
    assert best.value == pytest.approx(max(best.chosen["test_top1"].values()), abs=1e-4)


def statistics_of(x: Tensor, **settings: Any) -> Result:
    subject = Made(x={"train": x}, y={"train": torch.zeros(len(x), dtype=torch.int64)})
    return feature_statistics.evaluate(feature_statistics.Config(**settings), subject)


def test_rankme_counts_equal_directions() -> None:
    x = torch.zeros(90, 12)
    x[torch.arange(90), torch.arange(90) % 3] = 1.0
    result = statistics_of(x)
    assert result.metric == "rankme"
    assert result.n == 90
    assert result.value == pytest.approx(3, abs=0.01)
    assert result.chosen["dead_features"] == 9 / 12
    assert result.chosen["norm"] == 1


def test_the_interval_of_rankme_is_as_wide_as_other_samples_say() -> None:
    def sample(seed: int) -> Tensor:
        random = torch.Generator().manual_seed(seed)
        lengths = 1 + 0.5 * torch.randn(400, 1, generator=random)
        spread = torch.arange(1, 33) ** -0.5
        return (1 + torch.randn(400, 32, generator=random) * spread) * lengths

    result = statistics_of(sample(0), resamples=400)
    low, high = result.interval
    others = [statistics_of(sample(seed), resamples=40) for seed in range(1, 41)]
    values = torch.tensor([other.value for other in others])
    assert low < result.value < high
    assert (high - low) / 3.92 == pytest.approx(values.std().item(), rel=0.4)


def test_rankme_is_that_of_the_training_log() -> None:
    config = ViTConfig(image_size=16, patch_size=4, dim=24, depth=1, num_heads=2)
    torch.manual_seed(0)
    encoder = ViT(config)
    images = torch.randn(50, 3, 16, 16)
    with torch.no_grad():
        pooled = encoder.patches(encoder(images)).mean(1)
    logged = measure(encoder, Monitored(images, None), "float32")
    result = statistics_of(pooled)
    assert result.value == pytest.approx(logged["rankme"], rel=0.002)
    assert result.chosen["feature_std"] == pytest.approx(logged["feature_std"], rel=0.002)


def test_mean_cosine_is_that_of_all_pairs() -> None:
    x = clouds(train=40, noise=0.5).x["train"].half().float()
    unit = torch.nn.functional.normalize(x)
    pairs = [float(unit[i] @ unit[j]) for i in range(40) for j in range(40) if i != j]
    assert statistics_of(x).chosen["cosine"] == pytest.approx(np.mean(pairs), abs=1e-4)


def test_statistics_are_of_as_many_images_as_asked_for() -> None:
    x = clouds(train=100).x["train"]
    assert statistics_of(x, images=30).n == 30
    assert statistics_of(x, images=30) == statistics_of(x, images=30)
    assert statistics_of(x, images=30).value != statistics_of(x, images=30, seed=1).value


def test_features_that_are_all_zero_are_refused() -> None:
    with pytest.raises(UserError, match="features that are not all 0"):
        statistics_of(torch.zeros(10, 4))


@pytest.mark.parametrize(("right", "n"), [(0, 5), (5, 5), (3, 7), (4225, 10_000)])
def test_the_interval_is_that_of_scipy(right: int, n: int) -> None:
    expected = binomtest(right, n).proportion_ci(method="wilson")
    assert wilson(right, n) == pytest.approx((expected.low, expected.high), abs=1e-9)


@pytest.mark.parametrize("n", [1, 7, 8, 9, 50_000])
def test_which_images_were_right_is_kept_in_a_bit_each(n: int) -> None:
    correct = torch.rand(n, generator=torch.Generator().manual_seed(n)) < 0.7
    assert unpacked(packed(correct), n).tolist() == correct.tolist()
    assert len(packed(correct)) <= n / 6 + 4
    y = torch.zeros(n, dtype=torch.int64)
    assert top1((~correct).long(), y, 2, {}).correct == packed(correct)


@pytest.mark.parametrize("classes", [3, 100, 101])
def test_the_confusion_matrix_agrees_with_scikit_learn(classes: int) -> None:
    """No image has the last class, neither as its label nor as its prediction."""
    random = torch.Generator().manual_seed(0)
    y, predicted = (torch.randint(classes - 1, (500,), generator=random) for _ in range(2))
    result = top1(predicted, y, classes, {})
    counts, expected = result.classes, confusion_matrix(y, predicted, labels=range(classes))
    assert counts is not None
    assert numbers(counts["images"]) == expected.sum(1).tolist()
    assert numbers(counts["right"]) == expected.diagonal().tolist()
    assert sum(numbers(counts["right"])) == round(500 * result.value)
    assert ("confusion" in counts) == (classes <= 100)
    if "confusion" in counts:
        assert [numbers(row) for row in counts["confusion"]] == expected.tolist()


def numbers(text: str) -> list[int]:
    return [int(word) for word in text.split()]


@pytest.mark.parametrize("name", STATISTICAL)
def test_a_result_tells_of_each_test_image_in_order(name: str) -> None:
    """Another label for the first image turns the first bit and no other."""
    subject, module = clouds(noise=0.05), load_evaluation(name)
    right = module.evaluate(module.Config(), subject)
    subject.y["test"][0] = (subject.y["test"][0] + 1) % 3
    wrong = module.evaluate(module.Config(), subject)
    bits = [unpacked(str(result.correct), 300) for result in (right, wrong)]
    assert (bits[0] != bits[1]).nonzero()[0].tolist() == [0]


def test_a_result_says_what_where_and_by_whom(
    raw_run: dict[str, Any], data: Path, tmp_path: Path
) -> None:
    encoder, features = tmp_path / "encoder.safetensors", tmp_path / "features" / "about.json"
    train(parse_run(raw_run), data, tmp_path / "work", encoder)
    extract(encoder, data, features)
    subject = Subject(data, "class", features_of=features)
    evaluate("knn", {"num_neighbours": 5}, subject, tmp_path / "knn.json")
    result = json.loads((tmp_path / "knn.json").read_text())
    assert result["n"] == 32
    assert result["interval"][0] <= result["value"] <= result["interval"][1]
    assert result["protocol"].items() >= {"num_neighbours": 5, "pool": "patches"}.items()
    assert unpacked(result["correct"], 32).mean() == result["value"]
    assert len(result["classes"]["confusion"]) == len(result["classes"]["names"])
    assert {"commit", "machine", "torch", "chosen", "seconds"} <= set(result)
    assert result["about"]["facts"]["images_seen"] == 256
    assert len(result["about"]["data_version"]) == 12


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (["knn", "--features", "none.json"], "none.json does not exist: make it first"),
        (["knn", "--encoder", "{encoder}"], "knn uses features, it was given images"),
        (["finetune", "--features", "{features}"], "finetune uses images, it was given features"),
        (["knn", "--features", "{features}", "--images", "[1]"], r"--images '\[1\]': give counts"),
        (["knn", "--features", "{features}", "--images", "test=-1"], "give counts by split"),
        (["knn", "--features", "{features}", "--images", "tests=5"], "images.tests: unknown split"),
        (["knn", "--features", "{features}", "--config", "{list}"], "must hold keys and values"),
    ],
)
def test_wrong_options_of_the_command_are_one_clear_error(
    given: list[str], message: str, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    paths = {"features": tmp_path / "about.json", "encoder": tmp_path / "encoder.safetensors"}
    for path in paths.values():
        path.touch()
    (tmp_path / "list.yaml").write_text("[]")
    paths["list"] = tmp_path / "list.yaml"
    arguments = [argument.format(**paths) for argument in given]
    out = ["--data", str(data), "--out", str(tmp_path / "out.json")]
    monkeypatch.setattr("sys.argv", ["evals", *arguments, *out])
    with pytest.raises(UserError, match=message):
        main()
