"""Evaluations beside independent implementations, on features whose answer is known."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from scipy.optimize import minimize
from scipy.stats import binomtest

import evals
from evals import Features, knn, linear_probe, read_about, read_features
from evals.__main__ import evaluate, wilson
from evals.features import extract
from ijepa.config import parse
from ijepa.data.loader import Images
from ijepa.errors import UserError
from ijepa.train import train


def blobs(count: int, seed: int, noise: float = 2.0) -> Features:
    """Three overlapping clouds in eight dimensions, of very different scales, classes shuffled."""
    random = np.random.default_rng(seed)
    centres = np.random.default_rng(7).normal(size=(3, 8))
    y = random.integers(0, 3, count)
    x = (centres[y] + noise * random.normal(size=(count, 8))) * 10.0 ** np.arange(-3, 5)
    return Features(torch.from_numpy(x).float(), torch.from_numpy(y))


@pytest.mark.parametrize("name", evals.names())
def test_every_evaluation_separates_clear_classes_and_not_noise(name: str) -> None:
    module = evals.load(name)
    train_part, test_part = (blobs(600, seed, noise=0.05) for seed in (0, 1))
    clear = module.evaluate(module.Config(), unit(train_part), unit(test_part))
    assert clear.correct.float().mean() > 0.99
    noise = [unit(blobs(600, seed, noise=1e4)) for seed in (0, 1)]
    assert module.evaluate(module.Config(), *noise).correct.float().mean() < 0.45


def unit(part: Features) -> Features:
    return Features(part.x / 10.0 ** torch.arange(-3, 5), part.y)


def test_an_unknown_evaluation_is_refused() -> None:
    with pytest.raises(UserError, match=r"unknown evaluation 'knnn': known are knn, linear_probe"):
        evals.load("knnn")


def test_knn_agrees_with_a_loop_over_all_pairs() -> None:
    train_part, test_part = blobs(200, 0), blobs(50, 1)
    config = knn.Config(num_neighbours=7, temperature=0.2)
    result = knn.evaluate(config, train_part, test_part)
    expected = []
    for x, y in zip(test_part.x.double().numpy(), test_part.y.tolist(), strict=True):
        pairs = [
            (float(x @ t / np.linalg.norm(x) / np.linalg.norm(t)), int(c))
            for t, c in zip(train_part.x.double().numpy(), train_part.y, strict=True)
        ]
        votes = np.zeros(3)
        for similarity, c in sorted(pairs, reverse=True)[:7]:
            votes[c] += np.exp(similarity / 0.2)
        expected.append(int(votes.argmax()) == y)
    assert result.correct.tolist() == expected


def test_the_linear_probe_agrees_with_a_direct_minimisation() -> None:
    train_part, test_part = blobs(1000, 0), blobs(1000, 1)
    config = linear_probe.Config(penalties=(1e-2,), tolerance=1e-6, max_iterations=1000)
    ours = linear_probe.evaluate(config, train_part, test_part).correct.double().mean()

    x, y = train_part.x.double().numpy(), train_part.y.numpy()
    mean, std = x.mean(0), x.std(0)
    x, test_x = (x - mean) / std, (test_part.x.double().numpy() - mean) / std

    def loss(flat: np.ndarray) -> float:
        head = flat.reshape(9, 3)
        logits = x @ head[:8] + head[8]
        chosen = logits[np.arange(len(y)), y]
        return float(
            np.mean(np.logaddexp.reduce(logits, 1) - chosen) + 0.005 * np.square(head[:8]).sum()
        )

    head = minimize(loss, np.zeros(27), options={"maxiter": 500}).x.reshape(9, 3)
    theirs = np.mean((test_x @ head[:8] + head[8]).argmax(1) == test_part.y.numpy())
    assert abs(float(ours) - theirs) <= 0.005


def test_the_probe_chooses_its_penalty_without_the_test_images() -> None:
    train_part, test_part = blobs(500, 0), blobs(100, 1)
    wrong = Features(test_part.x, (test_part.y + 1) % 3)
    config = linear_probe.Config()
    chosen = [linear_probe.evaluate(config, train_part, part).chosen for part in (test_part, wrong)]
    assert chosen[0] == chosen[1]


@pytest.mark.parametrize(("right", "n"), [(0, 5), (5, 5), (3, 7), (4225, 10_000)])
def test_the_interval_is_that_of_scipy(right: int, n: int) -> None:
    expected = binomtest(right, n).proportion_ci(method="wilson")
    assert wilson(right, n) == pytest.approx((expected.low, expected.high), abs=1e-9)


def test_a_result_says_what_where_and_by_whom(
    raw_run: dict[str, Any], data: Path, tmp_path: Path
) -> None:
    encoder, features = tmp_path / "encoder.safetensors", tmp_path / "features.safetensors"
    train(parse(raw_run), data, tmp_path / "work", encoder)
    extract(encoder, data, 32, features)
    evaluate("knn", {"num_neighbours": 5}, features, tmp_path / "knn.json")
    result = json.loads((tmp_path / "knn.json").read_text())
    assert result["n"] == 32
    assert result["interval"][0] <= result["value"] <= result["interval"][1]
    assert result["protocol"] == {"num_neighbours": 5, "temperature": 0.07}
    assert {"commit", "machine", "torch", "chosen", "seconds"} <= set(result)
    assert result["about"]["facts"]["images_seen"] == 256
    assert len(result["about"]["data_version"]) == 12


def test_features_stand_in_the_order_of_their_labels(data: Path, tmp_path: Path) -> None:
    extract(None, data, 32, tmp_path / "pixels.safetensors")
    for split in ("train", "test"):
        images, features = (
            Images(data, split),
            read_features(tmp_path / "pixels.safetensors", split),
        )
        assert features.y.tolist() == images.labels.tolist()
        last = np.asarray(images[len(images) - 1]).reshape(-1) / 255
        np.testing.assert_allclose(features.x[-1], last, atol=1e-6)
    assert read_about(tmp_path / "pixels.safetensors")["encoder"] == "pixels"


def test_an_encoder_that_is_none_is_refused(data: Path, tmp_path: Path) -> None:
    (tmp_path / "encoder.safetensors").write_bytes(b"nothing")
    with pytest.raises(UserError, match="is not an encoder of this project"):
        extract(tmp_path / "encoder.safetensors", data, 32, tmp_path / "out")
    assert not (tmp_path / "out").exists()
