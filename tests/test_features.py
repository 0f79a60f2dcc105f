"""Features of an encoder: those of a forward pass, extracted once, kept whole or refused."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from evals import features
from evals.features import extract
from evals.pooling import Pool
from evals.run import evaluate
from evals.subject import Subject
from ijepa.checkpoint import load_encoder
from ijepa.config import parse_run
from ijepa.data.loader import EvaluationViews, Images
from ijepa.data.transforms import normalise
from ijepa.errors import UserError
from ijepa.train import train
from tests.conftest import raw_run_of


@pytest.mark.parametrize("name", ["mae", "ijepa"])
def test_stored_features_are_those_of_a_forward_pass_by_hand(
    name: str, data: Path, tmp_path: Path
) -> None:
    """[cls] is the pool of an encoder that has one, and the patches' average of one without it."""
    encoder = tmp_path / "encoder.safetensors"
    train(parse_run(raw_run_of(name)), data, tmp_path / "work", encoder)
    about = tmp_path / "features" / "about.json"
    extract(encoder, data, about)
    subject = Subject(data, "class", features_of=about)
    network = load_encoder(encoder)[0]
    views = EvaluationViews(Images(data, "test"), 32)
    images = normalise(torch.from_numpy(np.stack([views[n] for n in range(8)])))
    with torch.no_grad():
        tokens = network.norm(list(network.outputs(images))[-1])
        first = list(network.outputs(images))[1]
    average = network.patches(tokens).mean(1)
    close: Any = {"rtol": 0, "atol": 2e-2}

    def read(pool: Pool | None = None, layers: int = 1) -> Tensor:
        return subject.features("test", pool, layers)[:8].float()

    torch.testing.assert_close(read("patches")[:, 0], average, **close)
    if name == "ijepa":
        torch.testing.assert_close(read()[:, 0], average, **close)
        with pytest.raises(UserError, match=r"evaluations.knn.pool is cls.*no \[cls\]"):
            evaluate("knn", {"pool": "cls"}, subject, tmp_path / "knn.json")
        return
    torch.testing.assert_close(read()[:, 0], tokens[:, 0], **close)
    both = torch.cat([tokens[:, 0], average], 1)
    torch.testing.assert_close(read("cls_patches")[:, 0], both, **close)
    depth = network.config.depth
    torch.testing.assert_close(read("cls", 9)[:, 0], network.norm(first)[:, 0], **close)
    assert read("cls", 9).shape[1] == depth
    out = tmp_path / "knn.json"
    evaluate("knn", {"num_neighbours": 5}, subject, out)
    assert json.loads(out.read_text())["protocol"]["pool"] == "cls"


def test_features_stand_in_the_order_of_their_labels(data: Path, tmp_path: Path) -> None:
    extract(None, data, tmp_path / "about.json")
    subject = Subject(data, "class", features_of=tmp_path / "about.json")
    for split in ("train", "test"):
        images, x_NLD = Images(data, split), subject.features(split)
        assert x_NLD.shape == (len(images), 1, 3 * 32 * 32)
        assert subject.labels(split).tolist() == images.labels["class"].tolist()
        last = np.asarray(images[len(images) - 1]).reshape(-1) / 255
        np.testing.assert_allclose(x_NLD[-1, 0].float(), last, atol=5e-4)
    assert subject.about()["encoder"] == "pixels"


def test_an_interrupted_extraction_goes_on_where_it_was(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It reads only the images that were left, and ends with the same bytes."""
    extract(None, data, tmp_path / "whole" / "about.json")
    monkeypatch.setattr(features, "CHUNK", 16)
    monkeypatch.setattr(features, "SECONDS_BETWEEN_NOTES", 0)
    real, sizes = features._features, list[int]()

    def counted(*args: Any) -> Tensor:
        sizes.append(len(args[1]))
        return real(*args)

    def dying(*args: Any) -> Tensor:
        if len(sizes) == 3:
            raise KeyboardInterrupt
        return counted(*args)

    monkeypatch.setattr(features, "_features", dying)
    with pytest.raises(KeyboardInterrupt):
        extract(None, data, tmp_path / "part" / "about.json")
    assert not (tmp_path / "part" / "about.json").exists()
    monkeypatch.setattr(features, "_features", counted)
    extract(None, data, tmp_path / "part" / "about.json")
    assert sum(sizes) == 128 + 32
    for split in ("train", "test"):
        ends = [(tmp_path / end / f"{split}.npy").read_bytes() for end in ("whole", "part")]
        assert ends[0] == ends[1]


def test_features_of_another_encoder_or_data_set_are_refused(
    raw_run: dict[str, Any], data: Path, tmp_path: Path
) -> None:
    for seed in (0, 1):
        raw_run |= {"seed": seed}
        raw_run["recipe"]["optim"] |= {"epochs": 0, "warmup_epochs": 0}
        train(
            parse_run(raw_run),
            data,
            tmp_path / "work",
            tmp_path / str(seed) / "encoder.safetensors",
        )
    about = tmp_path / "features" / "about.json"
    extract(tmp_path / "0" / "encoder.safetensors", data, about, {"train": 40, "test": 20})
    other = tmp_path / "1" / "encoder.safetensors"
    subject = Subject(data, "class", encoder=other, features_of=about)
    with pytest.raises(UserError, match=r"has features of encoder \w+, but .* is another one"):
        evaluate("low_shot", {"per_class": 1}, subject, tmp_path / "out.json")
    record = json.loads(about.read_text())
    about.write_text(json.dumps(record | {"data_version": "0" * 12}))
    with pytest.raises(UserError, match=r"has features of tiny 000000000000, but .* is tiny"):
        evaluate("knn", {}, Subject(data, "class", features_of=about), tmp_path / "out.json")


def test_features_of_fewer_images_than_asked_for_are_refused(data: Path, tmp_path: Path) -> None:
    extract(None, data, tmp_path / "about.json", {"train": 20})
    some = Subject(data, "class", features_of=tmp_path / "about.json", limit={"train": 20})
    assert len(some.features("train")) == 20
    with pytest.raises(UserError, match="features of 20 train images, 128 are asked for"):
        Subject(data, "class", features_of=tmp_path / "about.json").features("train")


@pytest.mark.parametrize("size", [5, 200])
def test_features_whose_file_is_damaged_are_refused(size: int, data: Path, tmp_path: Path) -> None:
    extract(None, data, tmp_path / "about.json")
    file = tmp_path / "train.npy"
    file.write_bytes(file.read_bytes()[:size])
    with pytest.raises(UserError, match=r"train.npy is damaged .* extract the features again"):
        Subject(data, "class", features_of=tmp_path / "about.json").features("train")


def test_an_encoder_that_is_none_is_refused(data: Path, tmp_path: Path) -> None:
    (tmp_path / "encoder.safetensors").write_bytes(b"nothing")
    with pytest.raises(UserError, match="is not an encoder of this project"):
        extract(tmp_path / "encoder.safetensors", data, tmp_path / "out" / "about.json")
    assert not (tmp_path / "out" / "about.json").exists()
