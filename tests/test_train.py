"""The training loop resumes, stops in time, and reports what went wrong."""

import dataclasses
import io
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from ijepa import train
from ijepa.checkpoint import load_encoder
from ijepa.config import parse_run
from ijepa.data.shards import read_index
from ijepa.errors import UserError, run_command
from ijepa.lock import held
from ijepa.method import Batch, load_method

CLOCK = ("seconds", "data_seconds", "images_per_s")


def run(raw: dict[str, Any], data: Path, folder: Path) -> Path:
    out = folder / "out" / "encoder.safetensors"
    train.train(parse_run(raw), data, folder / "work", out)
    return out


def state(raw: dict[str, Any], data: Path, folder: Path) -> Path:
    """Folder of a run's checkpoint and log."""
    return folder / "work" / f"{parse_run(raw).identity()}-{read_index(data).version()}"


def wait_for_checkpoint(log: Path, steps: int) -> None:
    """Wait until a run in another process has a checkpoint and has logged so many steps."""
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline and not (
        log.with_name("checkpoint.pt").exists() and len(log.read_text().splitlines()) >= steps
    ):
        time.sleep(0.01)


def log_of(out: Path) -> list[dict[str, Any]]:
    """Records of a run's log, without the values that depend on the clock."""
    lines = (out.parent / "train.jsonl").read_text().splitlines()
    return [{k: v for k, v in json.loads(line).items() if k not in CLOCK} for line in lines]


def weights(out: Path) -> dict[str, torch.Tensor]:
    return load_encoder(out)[0].state_dict()


def test_a_run_that_is_killed_ends_like_an_undisturbed_one(
    raw_run: dict[str, Any], data: Path, tmp_path: Path
) -> None:
    """kill -9 after the checkpoint at step 6 of 16; later steps run twice and are logged once.

    The loader's processes get it too. Over 5 s: the default tier's one kill starts Python twice.
    """
    raw_run["num_workers"] = 2
    raw_run["recipe"]["optim"]["epochs"] = 4
    whole = run(raw_run, data, tmp_path / "whole")

    (cut := tmp_path / "cut").mkdir()
    (cut / "run.yaml").write_text(yaml.safe_dump(raw_run))
    out = cut / "out" / "encoder.safetensors"
    command = [sys.executable, "-m", "ijepa.train", str(cut / "run.yaml"), "--data", str(data)]
    command += ["--work", str(cut / "work"), "--out", str(out)]
    process = subprocess.Popen(command, start_new_session=True, stderr=subprocess.DEVNULL)
    log = state(raw_run, data, cut) / "train.jsonl"
    wait_for_checkpoint(log, 6)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    assert not out.exists(), "the run ended before it could be killed"
    subprocess.run(command, check=True, stderr=subprocess.DEVNULL)

    assert log_of(out) == log_of(whole)
    expected = weights(whole)
    assert all(expected[name].equal(value) for name, value in weights(out).items())


def test_the_log_tells_the_course_and_the_collapse_monitors(
    raw_run: dict[str, Any], data: Path, tmp_path: Path
) -> None:
    records = log_of(run(raw_run, data, tmp_path))
    assert [r["step"] for r in records] == list(range(1, 9))
    assert {"loss", "lr", "weight_decay", "momentum", "context_patches"} <= set(records[0])
    assert {"feature_std", "rankme"} <= set(records[-1])
    assert records[-1]["images"] == 8 * 32


def test_no_steps_leave_the_network_as_it_was_initialised(
    raw_run: dict[str, Any], data: Path, tmp_path: Path
) -> None:
    raw_run["recipe"]["optim"] |= {"epochs": 0, "warmup_epochs": 0}
    out = run(raw_run, data, tmp_path)
    torch.manual_seed(0)
    parsed = parse_run(raw_run)
    expected = load_method("ijepa").Method(parsed.recipe, parsed.vit).encoder.state_dict()
    assert all(expected[name].equal(value) for name, value in weights(out).items())


def test_training_lowers_the_loss(raw_run: dict[str, Any], data: Path, tmp_path: Path) -> None:
    """Over 5 s: ten epochs."""
    raw_run["recipe"]["optim"] |= {"epochs": 10, "warmup_epochs": 1}
    losses = [record["loss"] for record in log_of(run(raw_run, data, tmp_path))]
    assert sum(losses[-5:]) < 0.8 * sum(losses[:5])


def test_a_loss_that_is_not_finite_ends_the_run_and_no_checkpoint_has_its_weights(
    raw_run: dict[str, Any], data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    method_type = type(
        load_method("ijepa").Method(parse_run(raw_run).recipe, parse_run(raw_run).vit)
    )
    original = method_type.forward

    def broken(self: Any, batch: Batch) -> dict[str, torch.Tensor]:
        scalars: dict[str, torch.Tensor] = original(self, batch)
        return {**scalars, "loss": scalars["loss"] * (float("nan") if batch.step == 4 else 1)}

    monkeypatch.setattr(method_type, "forward", broken)
    with pytest.raises(UserError, match=r"loss is nan at step 4.*lower recipe\.optim\.lr"):
        run(raw_run, data, tmp_path)
    checkpoint = torch.load(state(raw_run, data, tmp_path) / "checkpoint.pt")
    assert 0 < checkpoint["step"] <= 4
    assert all(value.isfinite().all() for value in checkpoint["method"].values())


@pytest.mark.parametrize("length", [0, 5000])
def test_a_torn_checkpoint_is_an_error_and_not_a_new_start(
    raw_run: dict[str, Any], data: Path, tmp_path: Path, length: int
) -> None:
    file = io.BytesIO()
    torch.save({"step": 3, "method": {}, "filling": torch.zeros(10_000)}, file)
    checkpoint = state(raw_run, data, tmp_path) / "checkpoint.pt"
    checkpoint.parent.mkdir(parents=True)
    checkpoint.write_bytes(file.getvalue()[:length])
    with pytest.raises(UserError, match=r"checkpoint\.pt is damaged.*delete it to start"):
        run(raw_run, data, tmp_path)
    assert len(checkpoint.read_bytes()) == length


def test_a_finished_run_that_is_asked_for_again_is_trained_again(
    raw_run: dict[str, Any], data: Path, tmp_path: Path
) -> None:
    """Otherwise weights of older code would pass for those of today's code."""
    out = run(raw_run, data, tmp_path)
    assert not (state(raw_run, data, tmp_path) / "checkpoint.pt").exists()
    first = weights(out)
    out.unlink()
    assert len(log_of(run(raw_run, data, tmp_path))) == 8
    assert all(first[name].equal(value) for name, value in weights(out).items())


def test_shards_of_another_data_set_are_refused(
    raw_run: dict[str, Any], data: Path, tmp_path: Path
) -> None:
    other = dataclasses.replace(parse_run(raw_run), dataset="cifar10")
    with pytest.raises(UserError, match="holds tiny, but the run's dataset is cifar10"):
        train.train(other, data, tmp_path / "work", tmp_path / "out" / "encoder")


def test_a_damaged_test_shard_stops_training_too(
    raw_run: dict[str, Any], data: Path, tmp_path: Path
) -> None:
    copy = Path(shutil.copytree(data, tmp_path / "shards"))
    (copy / "test-00000.tar").unlink()
    with pytest.raises(UserError, match=r"test-00000\.tar is missing"):
        run(raw_run, copy, tmp_path)


def cut_off(raw: dict[str, Any], data: Path, folder: Path, steps: int) -> None:
    """Train a run, and stop it after some steps."""
    steps_left = iter(range(steps))
    with pytest.raises(train.Stopped):
        train.train(
            parse_run(raw),
            data,
            folder / "work",
            folder / "out" / "encoder.safetensors",
            stopping=lambda: next(steps_left) + 1 == steps,
        )


def test_the_line_of_a_stop_has_no_gradient_norm_if_none_was_measured(
    raw_run: dict[str, Any], data: Path, tmp_path: Path
) -> None:
    raw_run["log_every"] = 2
    cut_off(raw_run, data, tmp_path, steps=3)
    lines = (state(raw_run, data, tmp_path) / "train.jsonl").read_text().splitlines()
    norms = {record["step"]: record.get("grad_norm") for record in map(json.loads, lines)}
    assert norms[2] > 0
    assert norms[3] is None


@pytest.mark.parametrize(
    ("key", "value"),
    [("num_workers", 1), ("log_every", 2), ("monitor_every", 7), ("checkpoint_every", 2)],
)
def test_a_run_whose_workers_or_intervals_change_goes_on_where_it_was(
    key: str, value: int, raw_run: dict[str, Any], data: Path, tmp_path: Path
) -> None:
    undisturbed = weights(run(raw_run, data, tmp_path / "calm"))
    cut_off(raw_run, data, tmp_path, steps=3)
    raw_run[key] = value
    assert state(raw_run, data, tmp_path).exists()
    ended = weights(run(raw_run, data, tmp_path))
    assert all(torch.equal(ended[name], undisturbed[name]) for name in undisturbed)
    steps = [record["step"] for record in log_of(tmp_path / "out" / "encoder.safetensors")]
    assert steps[:3] == [1, 2, 3]


def test_a_finished_run_says_every_value_that_it_was_made_with(
    raw_run: dict[str, Any], data: Path, tmp_path: Path
) -> None:
    out = run(raw_run, data, tmp_path)
    written = yaml.safe_load(out.with_name("run.yaml").read_text())
    assert parse_run(written) == parse_run(raw_run)
    assert written["recipe"]["optim"]["betas"] == [0.9, 0.999]


def test_a_changed_configuration_starts_anew(
    raw_run: dict[str, Any], data: Path, tmp_path: Path
) -> None:
    run(raw_run, data, tmp_path)
    raw_run["recipe"]["optim"]["lr"] = 5e-4
    assert len(log_of(run(raw_run, data, tmp_path))) == 8


def test_a_second_process_waits_for_the_one_that_trains_the_same_run(
    raw_run: dict[str, Any], data: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    work = state(raw_run, data, tmp_path)
    second = threading.Thread(target=run, args=(raw_run, data, tmp_path))
    with held(work / "lock", "held by {process}"):
        second.start()
        second.join(timeout=3)
        assert second.is_alive()
        assert not (work / "train.jsonl").exists()
    second.join()
    assert f"is being trained by process {os.getpid()}: waiting" in capfd.readouterr().out
    assert (tmp_path / "out" / "encoder.safetensors").exists()


@pytest.mark.skipif(os.geteuid() != 0, reason="mounting a small file system needs root")
def test_a_disk_that_fills_up_is_one_clear_error_and_keeps_the_last_checkpoint(
    raw_run: dict[str, Any], data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "work").mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(tmp_path / "work")]
    if subprocess.run(mount, check=False, capture_output=True).returncode:
        pytest.skip("this sandbox cannot mount a tmpfs")
    (tmp_path / "run.yaml").write_text(yaml.safe_dump(raw_run))
    command = ["ijepa.train", str(tmp_path / "run.yaml"), "--data", str(data)]
    command += ["--work", str(tmp_path / "work"), "--out", str(tmp_path / "out" / "encoder")]
    monkeypatch.setattr("sys.argv", command)
    try:
        # An exit with a text prints the text and returns 1.
        message = r"^error: .*checkpoint\.pt cannot be written.*free some"
        with pytest.raises(SystemExit, match=message):
            run_command(train.main)
        checkpoint = state(raw_run, data, tmp_path) / "checkpoint.pt"
        assert torch.load(checkpoint, weights_only=True)["step"] == 3
        subprocess.run(["mount", "-o", "remount,size=9m", str(tmp_path / "work")], check=True)
        train.main()
    finally:
        # Lazily: whatever else looks at this machine's disks just then would keep it busy.
        subprocess.run(["umount", "--lazy", str(tmp_path / "work")], check=True)


def test_a_batch_larger_than_the_data_is_refused(
    raw_run: dict[str, Any], data: Path, tmp_path: Path
) -> None:
    """A folder of shards may hold less than the register says."""
    parsed = parse_run(raw_run)
    optim = dataclasses.replace(parsed.recipe.optim, batch_size=129)
    larger = dataclasses.replace(parsed, recipe=dataclasses.replace(parsed.recipe, optim=optim))  # type: ignore[type-var]
    with pytest.raises(UserError, match=r"batch_size is 129, but .* has only 128"):
        train.train(larger, data, tmp_path / "work", tmp_path / "out" / "encoder")


@pytest.mark.parametrize("name", ["work", "out"])
def test_a_folder_that_cannot_be_written_is_refused_before_training(
    raw_run: dict[str, Any], data: Path, tmp_path: Path, name: str
) -> None:
    (tmp_path / name).write_text("a file stands where the folder should be")
    with pytest.raises(UserError, match=rf"{name}.*cannot be written"):
        run(raw_run, data, tmp_path)
    assert not list(tmp_path.glob("work/*/checkpoint.pt"))
