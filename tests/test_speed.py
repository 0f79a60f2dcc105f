"""The speed of a run is that of its own training loop."""

import json
import tempfile
from pathlib import Path

import pytest

from ijepa import config
from ijepa.cost import speed
from tests.conftest import raw_run_of


def test_a_speed_is_the_images_of_a_step_by_its_seconds_once_warm(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The speed comes from the log of a run that is trained and deleted; here it ends by itself."""
    folder = tmp_path / "kept"
    monkeypatch.setattr(tempfile, "TemporaryDirectory", lambda: Kept(folder))
    run = config.parse_run(raw_run_of("ijepa"))
    measured = speed._measure(run, data, seconds=60)
    (log,) = folder.glob("*/train.jsonl")
    seconds = [json.loads(line)["seconds"] for line in log.read_text().splitlines()]
    assert len(seconds) == 8
    assert measured == pytest.approx(32 * 3 / sum(seconds[5:]))


def test_a_run_of_no_epochs_takes_no_time(data: Path) -> None:
    untrained = raw_run_of("mae")
    untrained["recipe"]["optim"] |= {"epochs": 0, "warmup_epochs": 0}
    assert speed._measure(config.parse_run(untrained), data, seconds=1) == float("inf")


class Kept:
    """A temporary folder that stays."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __enter__(self) -> str:
        self.folder.mkdir()
        return str(self.folder)

    def __exit__(self, *_: object) -> None:
        """Nothing."""


@pytest.mark.processes
def test_every_run_is_measured_for_a_while(data: Path, tmp_path: Path) -> None:
    """Each run is measured in a process of its own, even one that would take days.

    Over 5 s: these processes import torch.
    """
    (tmp_path / "tiny").symlink_to(data)
    endless = raw_run_of("mae")
    endless["recipe"]["optim"]["epochs"] = 10_000
    runs = {"ijepa": raw_run_of("ijepa"), "endless": endless}
    speeds = speed.images_per_second(
        {name: config.parse_run(run) for name, run in runs.items()}, tmp_path, 1, seconds=0.2
    )
    assert list(speeds) == ["ijepa", "endless"]
    assert all(value > 0 for value in speeds.values())
