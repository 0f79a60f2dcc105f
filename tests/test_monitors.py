"""Monitors tell a collapse and whether features tell classes apart, and change nothing."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from ijepa import log, monitors
from ijepa.architecture import ViTConfig
from ijepa.config import parse_run
from ijepa.data.loader import Images
from ijepa.monitors import linear, monitored, neighbours, told_apart, warning
from ijepa.train import train
from tests.conftest import Trained, raw_run_of


def lines(path: Path) -> list[dict[str, Any]]:
    """Records of a log."""
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_a_log_has_what_tells_how_a_training_goes(trained: Trained) -> None:
    records = lines(trained("ijepa").with_name("train.jsonl"))
    assert all(record["grad_norm"] > 0 for record in records)
    watched = [record for record in records if "rankme" in record]
    assert len(watched) == 4
    assert all(0 <= record["linear_top1"] <= 1 for record in watched), watched
    assert all(0 <= record["knn_top1"] <= 1 for record in watched)


def test_monitors_do_not_change_what_is_learned(
    data: Path, tmp_path: Path, trained: Trained, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(log, "measure", lambda *_: {"feature_std": 1.0, "rankme": 9.0})
    out = tmp_path / "encoder.safetensors"
    train(parse_run(raw_run_of("mae")), data, tmp_path / "work", out)
    assert all(v.equal(load_file(out)[k]) for k, v in load_file(trained("mae")).items())


def test_monitored_images_are_spread_over_data_in_the_order_of_its_classes(data: Path) -> None:
    images = Images(data, "train")
    images.labels["class"].sort()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(monitors, "NUM_MONITORED", 32)
        watched = monitored(images, ViTConfig(image_size=32, patch_size=4))
    assert watched.images_BCHW.shape == (32, 3, 32, 32)
    assert watched.classes_B is not None
    assert len(watched.classes_B.unique()) == len(set(images.labels["class"].tolist()))


def test_images_without_classes_have_the_other_monitors(data: Path) -> None:
    images = Images(data, "train")
    assert monitored(images, ViTConfig(image_size=32, patch_size=4), label="none").classes_B is None


def clouds(distance: float) -> tuple[torch.Tensor, torch.Tensor]:
    """Features of two classes at a distance, and the classes."""
    torch.manual_seed(0)
    classes = torch.arange(400) // 4 % 2
    return torch.randn(400, 8) + distance * classes.unsqueeze(1) * torch.eye(8)[0], classes


@pytest.mark.parametrize(("distance", "low", "high"), [(0, 0.35, 0.65), (8, 0.97, 1.0)])
def test_classes_are_told_apart_as_far_as_their_features_lie(
    distance: float, low: float, high: float
) -> None:
    scores = told_apart(*clouds(distance))
    assert all(low <= score <= high for score in scores.values()), scores


def test_the_linear_head_is_a_ridge_regression() -> None:
    """Its solution is where the gradient of the penalised squared error vanishes."""
    features, classes = clouds(2)
    targets = torch.nn.functional.one_hot(classes).double()
    x = ((features - features.mean(0)) / (features.std(0) + 1e-6)).double().requires_grad_(False)
    head = torch.zeros(8, 2, dtype=torch.float64, requires_grad=True)
    scores = linear(features, targets.float(), features).double() - targets.mean(0)
    solution = torch.linalg.lstsq(x, scores).solution
    loss = ((x @ head - (targets - targets.mean(0))) ** 2).sum()
    loss = loss + monitors.RIDGE * len(x) * (head**2).sum()
    with torch.no_grad():
        head.copy_(solution)
    loss = ((x @ head - (targets - targets.mean(0))) ** 2).sum()
    loss = loss + monitors.RIDGE * len(x) * (head**2).sum()
    (gradient,) = torch.autograd.grad(loss, head)
    assert gradient.abs().max() < 1e-3 * len(x)


def test_the_nearest_images_vote() -> None:
    known = torch.eye(3).repeat_interleave(30, 0)
    targets = torch.nn.functional.one_hot(torch.arange(3).repeat_interleave(30)).float()
    assert neighbours(known, targets, torch.eye(3)).argmax(1).tolist() == [0, 1, 2]


def test_a_collapse_is_said_once_in_words(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A target encoder that does not move and a loss of nothing: made to collapse by weights."""
    raw = raw_run_of("mae")
    run = parse_run(raw)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(log, "measure", lambda *_: {"feature_std": 1e-4, "rankme": 1.0})
        train(run, data, tmp_path / "work", tmp_path / "encoder.safetensors")
    output = capsys.readouterr()
    said = (output.out + output.err).count("warning: the features collapse (RankMe 1.0")
    assert said == 1
    assert "usual causes are a learning rate too high" in output.out + output.err
    assert not warning({"feature_std": 0.4, "rankme": 9.0})
