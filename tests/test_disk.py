"""The plan says how much a run will keep on disk, before anything is trained."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from ijepa.config import parse_run
from ijepa.cost.disk import Disk, disk, in_words
from ijepa.method import method_names
from ijepa.train import train
from tests.conftest import Trained, raw_run_of
from workflow.plan.__main__ import show_benchmark, show_run
from workflow.plan.benchmark import read_benchmark
from workflow.plan.estimate import kept_bytes
from workflow.plan.grid import Grid


def size_of(tensors: Mapping[str, Tensor]) -> int:
    """Bytes of tensors."""
    return sum(value.numel() * value.element_size() for value in tensors.values())


@pytest.mark.parametrize("name", method_names())
def test_sizes_are_those_of_the_files(name: str, trained: Trained) -> None:
    predicted = disk(parse_run(raw_run_of(name)))
    assert predicted.encoder == size_of(load_file(trained(name)))
    assert predicted.whole == size_of(load_file(trained(name).with_name("whole.safetensors")))
    assert predicted.total == predicted.encoder + predicted.whole


def test_the_optimiser_and_every_kept_epoch_count(data: Path, tmp_path: Path) -> None:
    keep = {"whole": False, "optimiser": True, "epochs": [1], "every": 2}
    run = parse_run({**raw_run_of("mae"), "keep": keep})
    out = tmp_path / "encoder.safetensors"
    train(run, data, tmp_path / "work", out)
    predicted = disk(run)
    assert (predicted.whole, predicted.num_epochs) == (
        0,
        len(list((tmp_path / "epochs").iterdir())),
    )
    state = torch.load(out.with_name("optimiser.pt"), weights_only=True)
    moments = state["optimizer"]["state"].values()
    of_optimiser = size_of(state["method"]) + sum(
        size_of({key: value for key, value in of.items() if key != "step"}) for of in moments
    )
    assert predicted.optimiser == of_optimiser
    assert predicted.total == 3 * predicted.encoder + predicted.optimiser


def test_the_published_size_of_a_huge_network_is_told_in_seconds() -> None:
    """docs/weights.md: 5 GB of networks for I-JEPA's ViT-H/14, 2.5 GB of each encoder."""
    vit = {"size": "huge", "patch_size": 14}
    run = parse_run({"method": "ijepa", "dataset": "imagenet1k", "vit": vit}, checked=False)
    predicted = disk(run)
    assert predicted.encoder == pytest.approx(2.5e9, rel=0.05)
    assert predicted.whole == pytest.approx(5e9, rel=0.1)
    assert str(predicted).startswith("encoder 2.5")


def test_the_plan_says_what_is_kept_of_each_run_and_of_all(tiny: Path) -> None:
    config: dict[str, Any] = {
        "name": "sizes",
        "dataset": "tiny",
        "seeds": [0, 1],
        "runs": [{**raw_run_of("ijepa"), "name": "ijepa", "keep": {"epochs": [1]}}],
        "evaluations": [{"name": "knn"}],
        "tables": [{"name": "t", "title": "T", "evaluations": ["knn"]}],
    }
    benchmark = read_benchmark(config)
    own = disk(parse_run(benchmark.runs[0].config()))
    control = own._replace(num_epochs=0)
    assert kept_bytes(Grid(benchmark)) == 2 * (own.total + control.total)
    lines = list(show_benchmark(benchmark))
    assert f"  ijepa: {own}" in lines
    assert ", 1 epoch " in str(own)
    assert lines[-1] == f"  {in_words(2 * (own.total + control.total))} in all"
    assert f"# kept on disk, of each seed: {own}" in list(show_run(benchmark, "ijepa"))


def test_sizes_are_read_as_people_say_them() -> None:
    assert str(Disk(344_000_000, 5_100_000_000, 0, 2)) == (
        "encoder 344 MB, whole 5.1 GB, 2 epochs 688 MB"
    )
