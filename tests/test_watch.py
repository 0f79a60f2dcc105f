"""Trainings are followed in the terminal, and their logs go to a tracker of choice."""

import json
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
from rich.console import Console

from ijepa.errors import UserError
from ijepa.track import track
from ijepa.watch import BARS, curve, view


def write(path: Path, losses: list[float], end: str = "") -> None:
    """A log with a loss in each line."""
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = [
        json.dumps({"step": step, "images": 64 * step, "loss": loss})
        for step, loss in enumerate(losses, start=1)
    ]
    path.write_text("\n".join(lines) + "\n" + end)


def shown(folder: Path, reference: Path | None = None) -> str:
    """Text that a person sees of a folder's logs."""
    console = Console(width=140, record=True, file=sys.stderr)
    console.print(view(folder, reference))
    return console.export_text()


def test_a_curve_falls_as_its_values_do() -> None:
    assert curve([4, 3, 2, 1]) == "█▆▃▁"
    assert curve([1.0] * 100) == "▁" * 40
    assert curve(list(range(1000)))[-1] == "█"
    assert curve([]) == ""


def test_the_newest_log_of_each_run_is_shown_beside_a_reference(tmp_path: Path) -> None:
    """Also while a line is being written. Both have one scale; one's own is as long as it is."""
    write(tmp_path / "work/mae/seed0/job/a/train.jsonl", [0.9, 0.5], end='{"step": 3, "im')
    write(tmp_path / "reference/runs/mae/seed0/train.jsonl", [0.8, 0.7, 0.3])
    text = shown(tmp_path / "work", tmp_path / "reference")
    assert "mae/seed0: step 2, 128 images" in text
    assert "0.5" in text
    assert "█▃ " in text
    assert "▇▆▁" in text
    with pytest.raises(UserError, match=r"nothing has no train\.jsonl: name a folder"):
        view(tmp_path / "nothing")


def publish(folder: Path, rows: list[str]) -> None:
    """A config's published logs."""
    path = folder / "results/reference/mini/plots/loss.csv"
    path.parent.mkdir(parents=True)
    path.write_text("\n".join(["run,seed,step,images,loss,rankme", *rows]) + "\n")


@pytest.mark.parametrize("folder", ["work/mini", "work/mini/mae", "results/mini"])
def test_the_published_run_of_the_same_config_is_shown_without_a_word(
    folder: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Seed 1 has the curve of the run's only seed; half of its images are half of its length."""
    monkeypatch.chdir(tmp_path)
    publish(tmp_path, [f"mae,0,{n},{64 * n},{1 - n / 100}," for n in range(1, 81)])
    losses = [1 - n / 100 for n in range(1, 41)]
    write(Path("work/mini/mae/seed1/train.jsonl"), losses)
    write(Path("results/mini/mae/seed1/train.jsonl"), losses)
    text = shown(Path(folder))
    assert "published" in text
    (line,) = [line for line in text.splitlines() if line.strip(" │┃").startswith("loss")]
    own, published = ("".join(c for c in part if c in BARS) for part in line.split("│")[3:5])
    assert (len(own), len(published)) == (20, 40)
    assert published.startswith(own[:5])
    write(Path("work/other/mae/seed1/train.jsonl"), losses)
    assert "published" not in shown(Path("work/other"))


def test_a_loss_that_is_not_finite_is_left_out_of_its_curve(tmp_path: Path) -> None:
    write(tmp_path / "work/mae/seed0/train.jsonl", [0.9, 0.5, float("nan"), float("inf")])
    assert "█▁ " in shown(tmp_path / "work")


def test_logs_go_to_tensorboard_if_it_is_installed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(tmp_path / "runs/mae/seed0/train.jsonl", [0.9, 0.5])
    sent: list[Any] = []
    writer = SimpleNamespace(add_scalar=lambda *given: sent.append(given), close=lambda: None)
    module = ModuleType("torch.utils.tensorboard")

    def opened(folder: str) -> Any:
        sent.append(folder)
        return writer

    vars(module)["SummaryWriter"] = opened
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", module)
    earlier = tmp_path / "out" / "mae/seed0" / "events.out.tfevents.1"
    earlier.parent.mkdir(parents=True)
    earlier.touch()  # both would be drawn as one curve that goes back
    assert track(tmp_path, "tensorboard", "any", tmp_path / "out") == 1
    assert sent[0] == str(tmp_path / "out" / "mae/seed0")
    assert ("loss", 0.5, 2) in sent
    assert not earlier.exists()


@pytest.mark.parametrize("name", ["wandb", "trackio"])
def test_logs_go_to_a_tracker_with_the_runs_own_settings(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(tmp_path / "runs/mae/seed0/train.jsonl", [0.9, 0.5])
    (tmp_path / "runs/mae/seed0/run.yaml").write_text("method: mae\n")
    sent: list[Any] = []
    module = ModuleType(name)
    run = SimpleNamespace(log=lambda v, step: sent.append((v["loss"], step)), finish=lambda: None)

    def begun(**given: Any) -> Any:
        sent.append(given)
        return run

    vars(module)["init"] = begun
    monkeypatch.setitem(sys.modules, name, module)
    track(tmp_path, name, "bench", tmp_path)
    assert sent[0] == {"project": "bench", "name": "mae/seed0", "config": {"method": "mae"}}
    assert sent[1:] == [(0.9, 1), (0.5, 2)]


def test_a_tracker_that_is_missing_or_does_not_answer_is_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(tmp_path / "runs/mae/seed0/train.jsonl", [0.9])
    monkeypatch.setitem(sys.modules, "mlflow", None)
    with pytest.raises(UserError, match=r"mlflow is not installed .*: pip install mlflow"):
        track(tmp_path, "mlflow", "bench", tmp_path)

    def refuse(**_: Any) -> None:
        raise ConnectionError("no route to host")

    module = ModuleType("wandb")
    vars(module)["init"] = refuse
    monkeypatch.setitem(sys.modules, "wandb", module)
    with pytest.raises(UserError, match=r"wandb does not take mae/seed0 \(no route to host\)"):
        track(tmp_path, "wandb", "bench", tmp_path)
