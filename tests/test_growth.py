"""Memory of a start grows by at most 16 bytes an image, and orders of epochs are what they were."""

import csv
import resource
import shutil
import sys
import tracemalloc
from pathlib import Path

import pytest
import torch

from benchmarks import growth
from ijepa.data import loader
from ijepa.data.loader import Images, Steps
from ijepa.data.shards import read_index, read_shard, read_table
from ijepa.errors import UserError
from ijepa.files import ROOT
from ijepa.randomness import generator

SHARD = 1000


def started(folder: Path) -> list[list[tuple[int, int]]]:
    """First batches of a training, and what it must hold in memory for them."""
    images = Images(folder, "train")
    steps = iter(Steps(len(images), 100, 0, 10**6, seed=0))
    return [next(steps), next(steps)]


def test_the_start_of_a_training_takes_at_most_16_bytes_an_image(tmp_path: Path) -> None:
    """Tables, the order of an epoch, and what is in memory only for a moment, of Python's part."""
    peaks = []
    for shards in (10, 60):
        folder = tmp_path / str(shards)
        folder.mkdir()
        growth.write_data(folder, shards * SHARD, SHARD)
        started(folder)
        tracemalloc.start()
        started(folder)
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    order = torch.int32.itemsize  # torch's own memory is not traced
    assert (peaks[1] - peaks[0]) / (50 * SHARD) + order <= growth.LIMIT


def test_an_order_takes_4_bytes_an_image_and_ends_before_the_next_begins(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    orders: list[torch.Tensor] = []
    draw = torch.randperm

    def drawn(*args: int, **kwargs: object) -> torch.Tensor:
        assert all(sys.getrefcount(order) <= 3 for order in orders), "an older order is still held"
        orders.append(draw(*args, **kwargs))  # type: ignore[call-overload]
        return orders[-1]

    monkeypatch.setattr(torch, "randperm", drawn)
    assert len(list(Steps(1000, 10, 50, 250, seed=0))) == 200
    assert [order.dtype for order in orders] == [torch.int32] * 3


FIRST = {
    0: [6060, 4495, 2075, 8860, 253, 5, 9631, 8700],
    1: [2363, 8164, 4862, 3249, 2098, 9030, 8562, 9679],
}
"""First images of the first two epochs of 10,000 images with seed 7, recorded on 2026-11-30."""


def test_the_order_of_an_epoch_is_that_of_earlier_versions() -> None:
    """Runs that began with an order of int64 go on, bit by bit."""
    steps = list(Steps(10_000, 100, 0, 200, seed=7))
    for epoch, numbers in FIRST.items():
        keys = [key for step in steps[epoch * 100 : epoch * 100 + 100] for key in step]
        wide = torch.randperm(10_000, generator=generator(7, "order", epoch))
        assert keys == [(epoch, number) for number in wide.tolist()]
        assert keys[:8] == [(epoch, number) for number in numbers]


def test_a_table_has_the_numbers_of_every_shard(tmp_path: Path) -> None:
    growth.write_data(tmp_path, 3000, SHARD)
    table = read_table(tmp_path, read_index(tmp_path), "train")
    for number in (0, 999, 1000, 2999):
        shard, index = divmod(number, SHARD)
        content = read_shard(tmp_path / f"train-{shard:05d}.tar")
        assert table.position(number) == (shard, *content.places[index])
        assert table.labels["class"][number] == content.labels["class"][index]
    assert table.labels["class"].max() > 2**14
    for outside in (-1, 3000):
        with pytest.raises(IndexError):
            table.position(outside)


def test_a_shard_with_another_number_of_images_than_the_index_is_named(tmp_path: Path) -> None:
    growth.write_data(tmp_path, 300, 100)
    (tmp_path / "other").mkdir()
    growth.write_data(tmp_path / "other", 200, 200)
    shutil.copy(tmp_path / "other" / "train-00000.json", tmp_path / "new.json")
    (tmp_path / "new.json").replace(tmp_path / "train-00001.json")
    with pytest.raises(UserError, match=r"train-00001\.tar has 200 images, index\.json says 100"):
        Images(tmp_path, "train")


def test_more_shards_than_a_process_may_open_are_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """ImageNet-22k has 1,420 shards, and many a machine allows a process 1,024 open files."""
    monkeypatch.setattr(loader, "MAPPED", 8)
    growth.write_data(tmp_path, 300, 1)
    images = Images(tmp_path, "train")
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (256, limits[1]))
    try:
        sizes = {len(images.encoded(number)) for number in range(300)}
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)
    assert sizes == {images.table.position(0)[2]}


@pytest.mark.processes
def test_a_small_benchmark_writes_its_numbers_and_a_plot(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Numbers of so few images say nothing. Over 5 s: it starts five processes with torch."""
    sizes = ["--samples", "1000", "2000", "--shard-sizes", "100", "--shard-size", "500"]
    few = ["--ranks", "2", "--image-sizes", "32", "--pictures", "2", "--reads", "512"]
    monkeypatch.setattr(sys, "argv", ["growth", *sizes, *few, "--out", str(tmp_path)])
    growth.main()
    with (tmp_path / "growth.csv").open() as file:
        rows = list(csv.DictReader(file))
    subjects = [row["subject"] for row in rows]
    assert subjects == ["image size", "ranks", "shards", "samples", "samples"]
    assert all(float(row["images_per_s"]) > 0 for row in rows)
    assert (tmp_path / "growth.svg").read_text().endswith("</svg>\n")
    assert growth.table(growth.read_rows(tmp_path / "growth.csv")) in capsys.readouterr().out


def test_the_documentation_has_the_table_of_the_committed_results() -> None:
    table = growth.table(growth.read_rows(growth.RESULTS / "growth.csv"))
    assert table in (ROOT / "docs" / "costs.md").read_text()
