"""A step whose loss is not finite is replayed alone, and names where it began."""

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from ijepa import replay as replaying
from ijepa import train
from ijepa.config import parse_run
from ijepa.errors import UserError
from ijepa.failure import Failure
from ijepa.files import read_json
from ijepa.method import Batch, load_method
from ijepa.replay import replay, tensors_in
from tests.conftest import raw_run_of

Raw = dict[str, Any]


def fail(raw: Raw, data: Path, work: Path, message: str) -> Path:
    """Train until the run is not finite; returns its folder."""
    with pytest.raises(UserError, match=message) as caught:
        train.train(parse_run(raw), data, work, work / "out" / "encoder.safetensors")
    (folder,) = work.glob("*-*")
    assert f"ijepa-bench replay {folder}" in str(caught.value)
    return folder


def with_parts(monkeypatch: pytest.MonkeyPatch, change: Any) -> None:
    """Let ``change`` alter every part of a batch in place."""
    original = train.parts

    def changed(*args: Any) -> Iterator[Batch]:
        for batch in original(*args):
            change(batch)
            yield batch

    monkeypatch.setattr(train, "parts", changed)


def test_an_infinite_pixel_is_named_first_with_its_share(
    raw_run: Raw, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The checkpoint is of step 3: the replay trains one step before the bad one, too."""

    def spoil(batch: Batch) -> None:
        if batch.step == 4:
            batch.images_BCHW[0, 0, 0, 0] = torch.inf

    with_parts(monkeypatch, spoil)
    folder = fail(raw_run, data, tmp_path, "the loss is nan at step 4; .*")
    before = {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}
    step, (first, second, *_) = replay(folder)
    assert step == read_json(folder / "failed.json")["step"] == 4
    assert (first.module, first.role) == ("ijepa", "input 0 views 0")
    assert first.shape == (32, 3, 32, 32)
    assert first.share == pytest.approx(1 / (32 * 3 * 32 * 32), rel=1e-2)
    assert second.module.startswith(("context_encoder", "target_encoder"))
    after = {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}
    assert before == after, "a replay leaves the run as it is"


def test_an_infinite_weight_is_named_before_what_it_spoils(
    raw_run: Raw, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A checkpoint may be damaged so; the command prints a line for each module."""
    stops = iter([False, False, True])
    with pytest.raises(train.Stopped):
        train.train(
            parse_run(raw_run), data, tmp_path, tmp_path / "out" / "e", stopping=lambda: next(stops)
        )
    (path,) = tmp_path.glob("*-*/checkpoint.pt")
    state = torch.load(path)
    name = "context_encoder.blocks.1.mlp.fc1"
    state["method"][f"{name}.weight"][0, 0] = torch.inf
    torch.save(state, path)
    fail(raw_run, data, tmp_path, "the loss is nan at step 3")
    _, lines = replay(tmp_path)  # a folder above will do
    assert str(lines[0]).startswith(f"{name}: weight weight [128, 32], 0.02% not finite")
    assert lines[1].module == "context_encoder.blocks.1.mlp.act"


def test_a_gradient_that_is_not_finite_is_caught_before_its_weights_are_saved(
    raw_run: Raw,
    data: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """The loss of step 2 is finite, and the checkpoint after it would have held its weights."""
    parsed = parse_run(raw_run)
    method_type = type(load_method("ijepa").Method(parsed.recipe, parsed.vit))
    original = method_type.forward

    def broken(self: Any, batch: Batch) -> dict[str, torch.Tensor]:
        scalars: dict[str, torch.Tensor] = original(self, batch)
        root = (
            scalars["loss"] * (0 if batch.step == 2 else 1)
        ).sqrt()  # its slope at 0 is infinite
        return {**scalars, "loss": root}

    monkeypatch.setattr(method_type, "forward", broken)
    folder = fail(raw_run, data, tmp_path, "the update of step 2 made weights not finite")
    assert not (folder / "checkpoint.pt").exists()
    monkeypatch.setattr(sys, "argv", ["replay", str(folder), "--lines", "1"])
    threads = torch.get_num_threads()
    replaying.main()
    assert torch.get_num_threads() == threads
    out = capsys.readouterr().out
    assert "step 2 (seed 0): what is not finite, in order\n  1 predictor" in out
    assert "gradient of output" in out
    assert "more (--lines" in out


def test_parts_of_several_processes_are_parts_of_one() -> None:
    run = raw_run_of("mae")
    failure = Failure(4, run, "data", {}, processes=4, threads=1)
    assert replaying.as_it_was(failure).recipe.optim.accumulate == 4


def test_a_replay_that_is_finite_says_so(
    raw_run: Raw, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        with_parts(patch, lambda batch: batch.images_BCHW.fill_(torch.inf))
        folder = fail(raw_run, data, tmp_path, "at step 0")
    assert replay(folder) == (0, [])
    with pytest.raises(UserError, match=r"nowhere has no shards: name their folder"):
        replay(folder, tmp_path / "nowhere")
    with pytest.raises(UserError, match=r"no failed\.json: name the folder in work/"):
        replay(data)
    train.train(parse_run(raw_run), data, tmp_path, tmp_path / "out" / "encoder.safetensors")
    assert not (folder / "failed.json").exists(), "the run went on and ended"


def test_tensors_are_found_in_every_container() -> None:
    ones = torch.ones(1)
    batch = Batch((ones,), seed=0, step=0, tokens_BN=torch.ones(1, dtype=torch.long))
    names = [name for name, _ in tensors_in(({"a": [ones]}, batch, 3), "input")]
    assert names == ["input 0 a 0", "input 1 views 0"]
