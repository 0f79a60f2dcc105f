"""The linear probe beside scikit-learn, on stored features and on images."""

import dataclasses
import json
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import StandardScaler
from torch import Tensor

from evals import views
from evals.pooling import Pool
from evals.protocol import Facts, check
from evals.protocols.linear_probe import Config, divide, evaluate
from evals.subject import Subject
from evals.views import Encoded, Stored, epoch_batches, pooled
from ijepa.architecture import Variant, ViTConfig
from ijepa.data.loader import Images
from ijepa.data.transforms import Crop, augment, normalise
from ijepa.errors import UserError
from ijepa.precision import precision
from ijepa.vit import ViT

CLASSES = 10
CPU = torch.device("cpu")
SHORT = Config(
    pool="patches",
    optimiser="sgd",
    milestones=(2,),
    epochs=3,
    batch_size=32,
    learning_rates=(0.5, 0.05),
    weight_decays=(0.0,),
)


@dataclass(frozen=True)
class InMemory(Subject):
    """A subject whose features and labels are given."""

    x: dict[str, Tensor] = field(default_factory=dict)
    y: dict[str, Tensor] = field(default_factory=dict)

    @property
    def num_classes(self) -> int:
        return CLASSES

    def features(self, split: str, pool: Pool | None = None, layers: int = 1) -> Tensor:
        return self.x[split][:, -layers:]

    def labels(self, split: str) -> Tensor:
        return self.y[split]


def clouds(
    train: int, test: int, layers: int = 1, noise: float = 2.2, work: Path | None = None
) -> InMemory:
    """Ten overlapping clouds in 32 dimensions of very different scales and offsets."""
    random = np.random.default_rng(0)
    centres = random.normal(size=(CLASSES, layers, 32))
    scale, offset = 10 ** random.uniform(-1.5, 1.5, 32), 3 * random.normal(size=32)
    x, y = {}, {}
    for split, count in (("train", train), ("test", test)):
        y[split] = torch.from_numpy(random.integers(0, CLASSES, count))
        cloud = centres[y[split]] + noise * random.normal(size=(count, layers, 32))
        x[split] = torch.from_numpy(cloud * scale + offset).half()
    return InMemory(Path("shards"), "class", features_of=Path("about.json"), work=work, x=x, y=y)


def test_the_probe_agrees_with_logistic_regression() -> None:
    subject = clouds(6000, 8000)
    config = dataclasses.replace(
        SHORT, epochs=30, milestones=(15, 25), batch_size=256, learning_rates=(0.1, 0.5)
    )
    ours = evaluate(config, subject)

    train, test = (subject.x[split][:, 0].float().numpy() for split in ("train", "test"))
    scaler = StandardScaler().fit(train)
    regression = LogisticRegression(max_iter=500).fit(scaler.transform(train), subject.y["train"])
    theirs = regression.score(scaler.transform(test), subject.y["test"])
    assert ours.value == pytest.approx(theirs, abs=0.005)
    assert ours.chosen["norm"] == "batch"
    assert ours.n == 8000


def test_the_chosen_head_does_not_depend_on_the_test_labels() -> None:
    subject = clouds(400, 200, layers=2)
    result = evaluate(SHORT, subject)
    wrong = {**subject.y, "test": (subject.y["test"] + 1) % CLASSES}
    other = evaluate(SHORT, dataclasses.replace(subject, y=wrong))
    same = ("features", "norm", "lr", "weight_decay", "held_out_top1")
    assert [result.chosen[key] for key in same] == [other.chosen[key] for key in same]
    assert other.value < 0.1 < result.value
    assert other.value == pytest.approx(other.chosen["test_top1"], abs=1e-4)
    assert other.value < other.chosen["best_on_test"]["test_top1"]

    heads = result.chosen["heads"]
    assert len(heads) == 8
    assert result.chosen["held_out_top1"] == max(head["held_out_top1"] for head in heads)
    assert result.chosen["best_on_test"]["test_top1"] == max(head["test_top1"] for head in heads)
    assert result.value == pytest.approx(result.chosen["test_top1"], abs=1e-4)


def test_of_equal_heads_the_first_is_chosen() -> None:
    chosen = evaluate(SHORT, clouds(400, 100, layers=2, noise=0.01)).chosen
    perfect = [head for head in chosen["heads"] if head["held_out_top1"] == 1]
    assert len(perfect) > 1
    assert {key: chosen[key] for key in perfect[0]} == perfect[0]


def test_no_head_is_trained_on_held_out_images(tmp_path: Path) -> None:
    ends = []
    for change in (False, True):
        subject = clouds(400, 10, work=tmp_path / str(change))
        if change:
            subject.x["train"][divide(SHORT, subject)[0]] = 0
        evaluate(SHORT, subject)
        state = subject.resume()
        assert state is not None
        ends.append(state["heads"])
    assert all(ends[0][key].equal(ends[1][key]) for key in ends[0])


def test_an_image_is_classified_by_itself() -> None:
    subject = clouds(400, 20)
    one_by_one = [
        evaluate(
            SHORT,
            dataclasses.replace(
                subject,
                x={**subject.x, "test": subject.x["test"][i : i + 1]},
                y={**subject.y, "test": subject.y["test"][i : i + 1]},
            ),
        ).value
        for i in range(3)
    ]
    subject.x["test"], subject.y["test"] = subject.x["test"][:3], subject.y["test"][:3]
    assert evaluate(SHORT, subject).value == pytest.approx(sum(one_by_one) / 3)


def test_held_out_images_are_a_small_part_of_all() -> None:
    subject = clouds(400, 10)
    held_out, training = divide(SHORT, subject)
    assert torch.cat([held_out, training]).sort().values.equal(torch.arange(400))
    assert len(held_out) == 40
    seen = torch.cat(epoch_batches(training, 32, SHORT.seed, epoch=1))
    assert len(seen.unique()) == len(seen) == 360 // 32 * 32
    assert not torch.isin(seen, held_out).any()
    assert len(divide(dataclasses.replace(SHORT, max_held_out=7), subject)[0]) == 7


def test_a_diverged_head_is_reported_and_not_chosen() -> None:
    config = dataclasses.replace(SHORT, learning_rates=(0.5, 1e38))
    chosen = evaluate(config, clouds(400, 100)).chosen
    assert [head["diverged"] for head in chosen["heads"]] == [False, True] * 2
    assert chosen["lr"] == 0.5
    json.dumps(chosen, allow_nan=False)


def test_heads_that_all_diverge_are_an_error() -> None:
    config = dataclasses.replace(SHORT, learning_rates=(1e38,))
    with pytest.raises(UserError, match=r"all 2 heads diverged by epoch 1: choose smaller"):
        evaluate(config, clouds(400, 100))


@dataclass(frozen=True)
class Killed(InMemory):
    """A subject that is interrupted after the second checkpoint."""

    def checkpoint(self, state: dict[str, Any]) -> None:
        super().checkpoint(state)
        if state["epoch"] == 2:
            raise KeyboardInterrupt


@pytest.mark.parametrize("optimiser", ["sgd", "lars"])
def test_a_killed_probe_ends_like_an_undisturbed_one(
    optimiser: Literal["lars", "sgd"], tmp_path: Path
) -> None:
    config = dataclasses.replace(SHORT, optimiser=optimiser)
    undisturbed = clouds(200, 100, layers=2, work=tmp_path / "undisturbed")
    expected = evaluate(config, undisturbed)
    resumed = dataclasses.replace(undisturbed, work=tmp_path / "resumed")
    with pytest.raises(KeyboardInterrupt):
        evaluate(config, Killed(**vars(resumed)))
    stopped = resumed.resume()
    assert stopped is not None
    assert stopped["epoch"] == 2
    assert evaluate(config, resumed) == expected
    ends = [subject.resume() for subject in (undisturbed, resumed)]
    for part in ("heads", "momentum"):
        first, second = (end[part] for end in ends if end is not None)
        assert all(first[key].equal(second[key]) for key in first)


def test_large_features_are_read_batch_by_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    held = evaluate(SHORT, clouds(400, 100, layers=2))
    monkeypatch.setattr(views, "HELD_BYTES", 0)
    assert evaluate(SHORT, clouds(400, 100, layers=2)) == held
    assert views.Stored(clouds(40, 10), 4, "patches", CPU).features["train"].dtype == torch.float16


def test_mistakes_are_named_before_any_training() -> None:
    subject = clouds(400, 100)
    with pytest.raises(UserError, match=r"batch_size is 361, but only 360 training images"):
        evaluate(dataclasses.replace(SHORT, batch_size=361), subject)
    with pytest.raises(UserError, match=r"held_out is 0.001: of 400 training images that is none"):
        evaluate(dataclasses.replace(SHORT, held_out=0.001), subject)
    with pytest.raises(
        UserError, match=r"test image 1 of .* has class 10, but there are 10 classes"
    ):
        evaluate(
            SHORT, dataclasses.replace(subject, y={**subject.y, "test": torch.tensor([3, 10])})
        )
    large = clouds(5000, 100)
    large.x["train"][4321, 0, 5] = torch.nan
    with pytest.raises(UserError, match=r"features of train image 4321 are not finite"):
        evaluate(SHORT, large)


def test_without_held_out_images_heads_see_all_training_images_and_the_result_says_so() -> None:
    subject = clouds(400, 100)
    config = dataclasses.replace(SHORT, chosen_on="test")
    held_out, numbers = divide(config, subject)
    assert (len(held_out), len(numbers)) == (0, 400)
    result = evaluate(config, subject)
    assert result.chosen["chosen_on"] == "test"
    assert result.value == max(head["test_top1"] for head in result.chosen["heads"])
    single = dataclasses.replace(
        config, learning_rates=(0.1,), weight_decays=(0.0,), norms=("none",)
    )
    assert "chosen_on" not in evaluate(single, clouds(400, 100)).chosen


@dataclass(frozen=True)
class OnImages(Subject):
    """A subject whose encoder is not in a file."""

    def network(self) -> ViT:
        torch.manual_seed(0)
        return ViT(ViTConfig(32, 4, dim=32, depth=2, num_heads=2, patch_std=0.1))


def test_pooled_features_are_those_of_the_last_blocks_after_the_norm() -> None:
    network = ViT(ViTConfig(16, 4, dim=8, depth=3, num_heads=2), Variant(class_token=True)).eval()
    norm: Any = network.norm
    outputs: list[Tensor] = []
    for block in network.blocks.children():
        block.register_forward_hook(lambda _module, _given, out: outputs.append(out))
    images_BCHW = torch.randn(5, 3, 16, 16)
    with precision("auto", CPU), torch.no_grad():
        network(images_BCHW)
        expected = torch.stack([norm(out)[:, 1:].float().mean(1) for out in outputs], 1)
        classes = torch.stack([norm(out)[:, 0].float() for out in outputs], 1)
    assert pooled(network, images_BCHW, 2, "patches").equal(expected[:, 1:])
    assert pooled(network, images_BCHW, 4, "patches").equal(expected)
    assert pooled(network, images_BCHW, 4, "cls").equal(classes)
    both = torch.cat([classes, expected], 2)
    assert pooled(network, images_BCHW, 4, "cls_patches").equal(both)


@pytest.mark.parametrize("split", ["train", "test"])
def test_features_of_a_damaged_encoder_are_refused_at_the_end_of_an_epoch(
    data: Path, split: str
) -> None:
    """Not batch by batch, for which the host would wait for a GPU."""
    source = Encoded(OnImages(data, "class"), 2, "patches", CPU, Crop(), seed=0, num_workers=0)
    norm: Any = source.network.norm
    norm.weight.data[0] = torch.nan
    numbers = torch.arange(4)
    batches: Iterable[Any] = source.evaluation("test", numbers)
    if split == "train":
        batches = source.training([numbers], 0)
    with pytest.raises(UserError, match="encoder's features are not finite"):
        list(batches)


def test_training_features_are_those_of_each_images_own_view(
    data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(views, "CHUNK", 3)
    subject, crop = OnImages(data, "class"), Crop(scale=(0.2, 1.0), flip=0.5)
    source = Encoded(subject, 4, "patches", CPU, crop, seed=5, num_workers=0)
    numbers = torch.tensor([7, 100, 3, 55, 9])
    images = Images(data, "train")
    seen = []
    for epoch in (0, 1):
        ((x_BLD, y_B),) = source.training([numbers], epoch)
        pixels = [
            augment(images[n], 32, crop, np.random.default_rng((5, epoch, n)))[0]
            for n in numbers.tolist()
        ]
        images_BHWC = torch.from_numpy(np.stack([np.asarray(view) for view in pixels]))
        expected = pooled(source.network, normalise(images_BHWC), 2, "patches")
        torch.testing.assert_close(x_BLD, expected, rtol=0, atol=1e-2)
        assert y_B.equal(subject.labels("train")[numbers])
        seen.append(x_BLD)
    assert x_BLD.shape == (5, source.num_layers, source.dim) == (5, 2, 32)
    assert (seen[0] - seen[1]).abs().max() > 0.1


def test_a_probe_on_images_learns_and_goes_on_where_it_was_killed(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(views, "CHUNK", 8)
    config = dataclasses.replace(
        SHORT, epochs=6, milestones=(5,), learning_rates=(1.0,), num_workers=0
    )
    expected = evaluate(config, OnImages(data, "class", limit={"test": 20}))
    assert expected.value > 0.3
    assert (expected.n, expected.chosen["layers"]) == (20, 2)

    resumed = OnImages(data, "class", limit={"test": 20}, work=tmp_path)
    training = Encoded.training

    def killed(self: Encoded, batches: list[Tensor], epoch: int) -> Any:
        if epoch == 3:
            raise KeyboardInterrupt
        return training(self, batches, epoch)

    with monkeypatch.context() as patch:
        patch.setattr(Encoded, "training", killed)
        with pytest.raises(KeyboardInterrupt):
            evaluate(config, resumed)
    assert evaluate(config, resumed) == expected


def ill_conditioned(train: int, test: int) -> InMemory:
    """Clouds that differ along the smallest 8 of 24 variances, down to a millionth of the first."""
    random = np.random.default_rng(1)
    turned, _ = np.linalg.qr(random.normal(size=(24, 24)))
    scale, centres = np.geomspace(30, 0.03, 24), random.normal(size=(CLASSES, 8))
    x, y = {}, {}
    for split, count in (("train", train), ("test", test)):
        y[split] = torch.from_numpy(random.integers(0, CLASSES, count))
        cloud = random.normal(size=(count, 24))
        cloud[:, -8:] += centres[y[split]]
        x[split] = torch.from_numpy((cloud * scale) @ turned + 2).float()[:, None]
    return InMemory(Path("shards"), "class", features_of=Path("about.json"), x=x, y=y)


def test_heads_on_whitened_features_find_what_scikit_learn_finds_after_convergence() -> None:
    """Over 5 s: thirty epochs of 6,000 images twice, because fewer do not converge."""
    subject = ill_conditioned(6000, 4000)
    config = dataclasses.replace(
        SHORT, schedule="cosine", milestones=(), epochs=30, batch_size=128, learning_rates=(0.5,)
    )
    plain = evaluate(config, subject)
    ours = evaluate(dataclasses.replace(config, whiten=True), subject)

    train, test = (subject.x[split][:, 0].double().numpy() for split in ("train", "test"))
    regression = LogisticRegression(solver="newton-cholesky", C=1e6)
    theirs = regression.fit(train, subject.y["train"]).score(test, subject.y["test"])
    assert ours.chosen["norm"] == "white"
    assert ours.value == pytest.approx(theirs, abs=0.01)
    assert plain.value < theirs - 0.05


def test_the_moments_of_stored_features_are_those_of_numpy() -> None:
    subject = clouds(5000, 10, layers=2)
    numbers = torch.arange(1, 5000, 3)
    mean, covariance = Stored(subject, 2, "patches", CPU).moments(numbers)
    x = subject.x["train"][numbers].flatten(1).double().numpy()
    np.testing.assert_allclose(mean.numpy(), x.mean(0), rtol=1e-6)
    np.testing.assert_allclose(covariance.numpy(), np.cov(x.T, bias=True), rtol=1e-3, atol=1e-5)


def test_images_are_not_whitened() -> None:
    config = dataclasses.replace(SHORT, whiten=True)
    with pytest.raises(UserError, match=r"^here\.whiten is true, but there are no stored features"):
        check("linear_probe", config, Facts("images"), "here")
