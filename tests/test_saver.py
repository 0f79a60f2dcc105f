"""Checkpoints are written beside training, whole, in order, and waited for at the end."""

import threading
from pathlib import Path
from typing import Any

import pytest
import torch

from ijepa import saver, train
from ijepa.checkpoint import resume, write
from ijepa.config import parse_run
from ijepa.errors import UserError
from ijepa.optim import adamw
from ijepa.saver import Saver
from tests.conftest import raw_run_of
from tests.fake_device import OnDevice, cuda, on_device
from tests.test_methods import make

__all__ = ["cuda"]
pytestmark = pytest.mark.usefixtures("tiny")
OPTIM = parse_run(raw_run_of("ijepa"), checked=False).recipe.optim


class Disk:
    """A disk that writes a checkpoint only when it may."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.steps: list[int] = []
        self.may_write = threading.Event()
        monkeypatch.setattr(saver, "write", self.write)

    def write(self, path: Path, state: dict[str, Any]) -> None:
        """Write once it is allowed."""
        assert self.may_write.wait(60)
        write(path, state)
        self.steps.append(state["step"])


@pytest.fixture
def disk(monkeypatch: pytest.MonkeyPatch) -> Disk:
    return Disk(monkeypatch)


def trained_step(method: torch.nn.Module, optimizer: torch.optim.Optimizer) -> None:
    """Move every weight and every moment."""
    for parameter in method.parameters():
        if parameter.requires_grad:
            parameter.grad = torch.ones_like(parameter)
    optimizer.step()


def test_training_goes_on_while_a_checkpoint_is_written_and_does_not_change_it(
    disk: Disk, tmp_path: Path
) -> None:
    """Weights and moments are those of the step that was saved."""
    path, method, again = tmp_path / "checkpoint.pt", make("ijepa"), make("ijepa")
    optimizer, other = adamw(method, OPTIM), adamw(again, OPTIM)
    with Saver(path) as writer:
        trained_step(method, optimizer)
        writer.save(method, optimizer, 1)
        trained_step(method, optimizer)
        assert not path.exists()
        disk.may_write.set()
    trained_step(again, other)
    expected, moments = again.state_dict(), other.state_dict()["state"]
    assert resume(path, method, optimizer) == 1
    assert all(value.equal(expected[name]) for name, value in method.state_dict().items())
    for number, values in optimizer.state_dict()["state"].items():
        assert all(value.equal(moments[number][name]) for name, value in values.items())


def test_the_next_checkpoint_and_the_end_wait_for_the_one_before(
    disk: Disk, tmp_path: Path
) -> None:
    method = make("ijepa")
    optimizer = adamw(method, OPTIM)
    with Saver(tmp_path / "checkpoint.pt") as writer:
        writer.save(method, optimizer, 1)
        second = threading.Thread(target=writer.save, args=(method, optimizer, 2))
        second.start()
        second.join(0.2)
        assert second.is_alive()
        disk.may_write.set()
        second.join(60)
    assert disk.steps == [1, 2]
    assert resume(tmp_path / "checkpoint.pt", method, optimizer) == 2


@pytest.mark.parametrize("ending", [None, train.Stopped("saved"), KeyboardInterrupt()])
def test_an_error_of_writing_is_raised_however_the_training_ends(
    ending: BaseException | None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """A stop must not say that its state is saved."""

    def refuse(path: Path, state: dict[str, Any]) -> None:
        raise UserError(f"{path} cannot be written")

    monkeypatch.setattr(saver, "write", refuse)
    method = make("ijepa")

    def train_and_end() -> None:
        with Saver(tmp_path / "checkpoint.pt") as writer:
            writer.save(method, adamw(method, OPTIM), 1)
            if ending:
                raise ending

    with pytest.raises(UserError, match=r"checkpoint\.pt cannot be written"):
        train_and_end()


def test_an_error_of_writing_ends_the_training_at_its_next_checkpoint(
    raw_run: dict[str, Any], data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Checkpoints are due at steps 3 and 6 of 8."""
    asked: list[int] = []

    def never() -> bool:
        asked.append(0)
        return False

    def refuse(path: Path, state: dict[str, Any]) -> None:
        raise UserError("the disk is full")

    monkeypatch.setattr(saver, "write", refuse)
    out = tmp_path / "out" / "encoder.safetensors"
    with pytest.raises(UserError, match="the disk is full"):
        train.train(parse_run(raw_run), data, tmp_path, out, stopping=never)
    assert len(asked) == 6
    assert not out.exists()


@pytest.mark.usefixtures("cuda")
def test_the_host_waits_for_no_gpu_to_save(disk: Disk, tmp_path: Path) -> None:
    """The thread that writes waits for the copies, which the device makes in their order."""
    method = on_device(make("ijepa"))
    with OnDevice(), Saver(tmp_path / "checkpoint.pt") as writer:
        writer.save(method, adamw(method, OPTIM), 1)
        disk.may_write.set()
    state = torch.load(tmp_path / "checkpoint.pt", weights_only=True)
    assert {value.device.type for value in state["method"].values()} == {"cpu"}
