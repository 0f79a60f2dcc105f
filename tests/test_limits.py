"""The first so many images of a data set that lies in the order of its classes are refused."""

import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from PIL import Image

from ijepa.data import __main__ as data_command
from ijepa.data import register
from ijepa.errors import UserError
from workflow.plan.benchmark import read_benchmark
from workflow.plan.check import check


@pytest.fixture
def config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """A config of the data set ``pets``: three classes of four training images each."""
    for split, count in (("train", 4), ("test", 1)):
        for pet in ("cat", "dog", "fox"):
            folder = tmp_path / "raw" / split / pet
            folder.mkdir(parents=True)
            for number in range(count):
                Image.new("RGB", (8, 8), (number, 0, 0)).save(folder / f"{number}.png")
    words = dict.fromkeys(("title", "citation", "licence"), "any")
    splits = {"train": None, "test": None}
    entry = {"source": "image_folder", **words, "image_size": 8, "labels": {"class": None}}
    (tmp_path / "datasets.yaml").write_text(yaml.safe_dump({"pets": entry | {"splits": splits}}))
    monkeypatch.setattr(register, "REGISTER", tmp_path / "datasets.yaml")
    monkeypatch.chdir(tmp_path)
    return {
        **{"name": "a", "dataset": "pets", "seeds": [0]},
        "runs": [{"name": "r", "method": "ijepa", "recipe": {"optim": {"batch_size": 4}}}],
        "evaluations": [{"name": "knn"}],
        "tables": [{"name": "t", "title": "T", "evaluations": ["knn"]}],
        "images": {"pets": {"train": 8}},
    }


def build(config: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """Make the shards as the workflow does, whose pretraining waits for them."""
    Path("config.yaml").write_text(yaml.safe_dump(config))
    options = ["--raw", "raw", "--out", "data/shards/pets", "--num-workers", "1"]
    command = ["data", "build", "pets", *options, "--images-of", "config.yaml"]
    monkeypatch.setattr(sys, "argv", command)
    data_command.main()


def test_they_are_refused_when_the_shards_are_made_and_before_the_first_job(
    config: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    check(read_benchmark(config))  # nobody knows the images yet
    in_order = r"images\.train: the first 8 images .* have 2 of 3 classes of class: .* leave"
    with pytest.raises(UserError, match=in_order):
        build(config, monkeypatch)
    with pytest.raises(UserError, match=in_order):
        check(read_benchmark(config))


def test_images_of_all_classes_are_taken(
    config: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    config["images"]["pets"]["train"] = 12
    build(config, monkeypatch)
    check(read_benchmark(config))
