"""Two processes, joined by gloo, are one run: the same draws, the same means, the same weights."""

import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from ijepa import distributed, train
from ijepa.config import parse_run
from ijepa.data.loader import Images, Steps, TrainingViews, View, training_batches
from ijepa.data.transforms import Crop
from ijepa.errors import UserError
from ijepa.inputs import check_batches
from tests.conftest import raw_run_of
from tests.several_runs import sgd
from tests.test_methods import METHODS, batch, distance, make, part
from tests.test_train import log_of, run, state, wait_for_checkpoint, weights

pytestmark = pytest.mark.usefixtures("tiny")

ROOT = Path(__file__).parents[1]
TWO = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]


SIGREG = {"anticollapse": "sigreg"}


def environment() -> dict[str, str]:
    """Two processes on two cores, one thread each."""
    return {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}


def write(raw: dict[str, Any], folder: Path) -> Path:
    folder.mkdir()
    (folder / "run.yaml").write_text(yaml.safe_dump(raw))
    return folder


def command(data: Path, folder: Path) -> list[str]:
    """Command that a user types for two processes."""
    files = [str(folder / "run.yaml"), "--data", str(data), "--work", str(folder / "work")]
    out = str(folder / "out" / "encoder.safetensors")
    return [*TWO, "-m", "ijepa.train", *files, "--out", out]


def test_two_processes_with_half_the_batch_each_train_what_one_process_does(
    tokenised: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Loss and weights of every method agree, after 4 steps of plain gradient descent.

    SIGReg and BatchNorm are of both processes' images: half of them have another loss.

    Over 5 s: the default tier's one start of torchrun, whose processes import torch.
    """
    settings: dict[str, dict[str, str]] = {name: {} for name in METHODS}
    settings |= {f"ijepa {name}": {**SIGREG, "sigreg_of": name} for name in ("pooled", "patches")}
    runs = {name: raw_run_of(name.split()[0], **recipe) for name, recipe in settings.items()}
    for raw in runs.values():
        raw["recipe"]["optim"]["epochs"] = 1
    folders = [write(raw, tmp_path / name) for name, raw in runs.items()]
    driver = [*TWO, str(ROOT / "tests" / "several_runs.py"), str(tokenised), *map(str, folders)]
    done = subprocess.run(driver, env=environment(), capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    monkeypatch.setattr(train, "adamw", sgd)
    for name, raw in runs.items():
        shared = tmp_path / name / "out" / "encoder.safetensors"
        alone = run(raw, tokenised, tmp_path / f"{name} alone")
        assert distance(weights(shared), weights(alone)) < 1e-5, name
        for ours, theirs in zip(log_of(shared), log_of(alone), strict=True):
            assert ours == pytest.approx(theirs, rel=1e-5), name


@pytest.mark.processes
def test_two_processes_that_are_killed_end_like_two_undisturbed_ones(
    tokenised: Path, tmp_path: Path
) -> None:
    """Two processes and their loader workers get kill -9; then the same command runs again.

    Over 5 s: torchrun and its processes start Python three times.
    """
    raw = raw_run_of("ibot")
    raw |= {"num_workers": 1}
    raw["recipe"]["optim"]["epochs"] = 4
    whole, cut = (write(raw, tmp_path / name) for name in ("whole", "cut"))
    quiet: dict[str, Any] = {"env": environment(), "stderr": subprocess.DEVNULL}
    subprocess.run(command(tokenised, whole), check=True, **quiet)
    process = subprocess.Popen(command(tokenised, cut), start_new_session=True, **quiet)
    log = state(raw, tokenised, cut) / "train.jsonl"
    wait_for_checkpoint(log, 5)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    kill_stray_workers(cut)
    out = cut / "out" / "encoder.safetensors"
    assert not out.exists(), "the run ended before it could be killed"
    subprocess.run(command(tokenised, cut), check=True, **quiet)
    expected = weights(whole / "out" / "encoder.safetensors")
    assert all(expected[key].equal(value) for key, value in weights(out).items())


def kill_stray_workers(folder: Path) -> None:
    """Kill torchrun's workers too: they have sessions of their own."""
    subprocess.run(["pkill", "-9", "-f", str(folder)], check=False)


def test_a_batch_that_the_processes_cannot_share_equally_is_refused(data: Path) -> None:
    raw = raw_run_of("mae")
    raw["recipe"]["optim"]["batch_size"] = 31
    message = r"batch_size is 31: it must be a multiple of 2 \(2 processes"
    with pytest.raises(UserError, match=message):
        check_batches(parse_run(raw), Images(data, "train"), data, distributed.World(size=2))


@pytest.fixture
def first_of_two(monkeypatch: pytest.MonkeyPatch) -> Iterator[int]:
    """Make this process the first of two, on a port where another program listens: the port."""
    with socket.create_server(("", 0)) as program:
        port = int(program.getsockname()[1])
        world = dict(zip(distributed.VARIABLES, ("0", "2", "0"), strict=True))
        for name, value in {**world, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}.items():
            monkeypatch.setenv(name, value)
        yield port


def test_a_port_that_another_program_uses_is_named(first_of_two: int) -> None:
    """No process was lost: a job that waits for the cause would wait in vain."""
    expected = rf"port {first_of_two} of .* is in use by another program: run the same again"
    with pytest.raises(UserError, match=expected), distributed.joined():
        pass


@pytest.mark.usefixtures("first_of_two")
def test_a_process_that_does_not_come_is_still_a_loss(monkeypatch: pytest.MonkeyPatch) -> None:
    def wait_in_vain(*_given: Any, **_named: Any) -> None:
        raise torch.distributed.DistNetworkError("client socket has timed out")

    monkeypatch.setattr(torch.distributed, "init_process_group", wait_in_vain)
    with pytest.raises(RuntimeError, match="timed out") as loss, distributed.joined():
        pass
    assert distributed.lost_another(loss.value)


def test_groups_of_masks_do_not_depend_on_the_division_of_the_batch() -> None:
    """Four images a device, groups of 16: each device draws the whole group and takes its rows."""
    method = make("ijepa")
    whole = batch("ijepa", num_images=16)
    assert method.config.masking.group_size == 16  # type: ignore[union-attr]
    parts = [method(part(whole, first, first + 4)) for first in range(0, 16, 4)]
    lengths = {float(scalars["context_patches"]) for scalars in parts}
    assert lengths == {float(method(whole)["context_patches"])}
    mean = torch.stack([scalars["loss"] for scalars in parts]).mean()
    torch.testing.assert_close(mean, method(whole)["loss"])


@pytest.mark.parametrize("num_workers", [0, 1, 4])
@pytest.mark.parametrize("ranks", [1, 2, 3, 5, 8])
def test_ranks_and_workers_share_an_epoch_without_losses_or_duplicates(
    ranks: int, num_workers: int, data: Path
) -> None:
    """128 images lie in shards of 48, 48 and 32; an epoch uses 120 of them or less."""
    batch_size = 40 // ranks * ranks
    per_epoch = 128 // batch_size
    views = TrainingViews(Images(data, "train"), [View(8, Crop(scale=(0.9, 1.0)))], seed=0)
    seen: list[bytes] = []
    expected: list[tuple[int, int]] = []
    for rank in range(ranks):
        steps = Steps(128, batch_size, 0, per_epoch, seed=0, part=rank, num_parts=ranks)
        expected += [key for batch in steps for key in batch]
        for item in training_batches(views, steps, num_workers):
            seen += [view.numpy().tobytes() for view in item.views[0]]
    assert len(set(expected)) == len(expected) == batch_size * per_epoch > 128 - batch_size
    assert sorted(seen) == sorted(views[key].views[0].tobytes() for key in expected)
