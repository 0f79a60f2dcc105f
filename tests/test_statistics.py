"""Mean and deviation of a data set's own channels: computed, named in a config, used everywhere."""

import sys
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from evals.features import extract
from evals.subject import stored
from ijepa import checkpoint, train
from ijepa.architecture import Variant, ViTConfig
from ijepa.config import parse_run
from ijepa.data import __main__ as command
from ijepa.data.loader import EvaluationViews, Images, Item
from ijepa.data.statistics import statistics
from ijepa.data.transforms import MEAN, STD, normalise
from ijepa.distributed import World
from ijepa.errors import UserError, run_command
from ijepa.identity import run_identity
from ijepa.released import folder
from tests.conftest import raw_run_of
from tests.released_files import VIT, network

OWN: dict[str, Any] = {"mean": (0.25, 0.5, 0.75), "std": (0.1, 0.2, 0.3)}


def test_statistics_are_those_of_the_training_images(
    data: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    images = Images(data, "train")
    pixels = np.stack([np.asarray(images[n]) for n in range(len(images))]).reshape(-1, 3) / 255
    mean, std = statistics(data, 32, num_workers=0)
    np.testing.assert_allclose(mean, pixels.mean(0), atol=1e-4)
    np.testing.assert_allclose(std, pixels.std(0), atol=1e-4)
    words = ["data", "statistics", "--out", str(data), "--image-size", "32"]
    monkeypatch.setattr(sys, "argv", words)
    monkeypatch.setattr("ijepa.data.statistics.usable_cores", lambda: 0)
    with pytest.raises(SystemExit) as ended:
        run_command(command.main)
    assert ended.value.code == 0
    assert f"vit: {{mean: {list(mean)}, std: {list(std)}}}" in capsys.readouterr().out


def test_imagenets_statistics_stay_the_default_and_name_the_same_run() -> None:
    images = torch.arange(2 * 4 * 4 * 3, dtype=torch.uint8).view(2, 4, 4, 3)
    assert torch.equal(normalise(images), normalise(images, MEAN, STD))
    raw = raw_run_of("ijepa")
    plain = parse_run(raw)
    explicit = parse_run({**raw, "vit": {**raw["vit"], "mean": None, "std": None}})
    own = parse_run({**raw, "vit": {**raw["vit"], **OWN}})
    assert explicit.identity() == plain.identity() != own.identity()
    # A run's file of a version without these keys names the same run.
    fields = asdict(plain)
    assert fields["vit"].pop("mean") is fields["vit"].pop("std") is None
    assert run_identity(fields) == run_identity(asdict(plain))


@pytest.mark.parametrize(
    ("values", "says"),
    [
        ({"mean": [0.5, 0.5, 0.5]}, "mean and std belong together"),
        (
            {**OWN, "mean": [0.5, 0.5, 128]},
            r"mean is \[0.5, 0.5, 128.0\]: give a number from 0 to 1",
        ),
        ({**OWN, "std": [0.1, 0.1, 0]}, r"std is \[0.1, 0.1, 0.0\]: each must be above 0"),
    ],
)
def test_statistics_that_cannot_be_are_refused(values: dict[str, Any], says: str) -> None:
    raw = raw_run_of("ijepa")
    with pytest.raises(UserError, match=says):
        parse_run({**raw, "vit": {**raw["vit"], **values}})


def test_pretraining_normalises_by_the_encoders_own_statistics() -> None:
    raw = raw_run_of("ijepa")
    run = parse_run({**raw, "vit": {**raw["vit"], **OWN}})
    view = torch.randint(0, 256, (4, 32, 32, 3), dtype=torch.uint8)
    (batch,) = train.parts(Item([view]), run, 0, 0.0, World(), torch.device("cpu"))
    expected = (view.permute(0, 3, 1, 2) / 255 - column(OWN["mean"])) / column(OWN["std"])
    torch.testing.assert_close(batch.views[0], expected)


def column(values: tuple[float, ...]) -> torch.Tensor:
    return torch.tensor(values).view(1, 3, 1, 1)


def test_evaluation_and_other_packages_normalise_as_the_encoder_was_trained(
    data: Path, tmp_path: Path
) -> None:
    vit = replace(VIT, **OWN)
    encoder = network(Variant(), vit)
    run = {"method": "released", "seed": None, "vit": asdict(vit)}
    about = {"run": run, "variant": asdict(Variant()), "facts": {}}
    checkpoint.save_tensors(tmp_path / "encoder", encoder.state_dict(), about)
    assert checkpoint.load_encoder(tmp_path / "encoder")[0].config == vit
    extract(tmp_path / "encoder", data, tmp_path / "features" / "about.json")
    features = stored(tmp_path / "features" / "about.json", "test")
    view = torch.from_numpy(EvaluationViews(Images(data, "test"), 32)[0].copy())
    with torch.no_grad():
        expected = encoder(normalise(view.unsqueeze(0), **OWN)).mean(1)
    torch.testing.assert_close(
        torch.from_numpy(features[:1, -1].astype(np.float32)), expected, rtol=5e-3, atol=5e-3
    )
    assert folder.preprocessor(vit)["image_mean"] == OWN["mean"]
    assert folder.timm_config(vit, Variant())["pretrained_cfg"]["std"] == OWN["std"]
    assert folder.preprocessor(ViTConfig())["image_mean"] == MEAN
