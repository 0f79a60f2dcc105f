"""Encoders of several epochs are kept, and each is evaluated like a run of its own."""

import json
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file

from ijepa.config import parse_run
from ijepa.encoder_file import read_header
from ijepa.errors import UserError
from ijepa.train import Stopped, train
from tests.conftest import Trained, raw_run_of
from workflow.plan.benchmark import read_benchmark
from workflow.plan.grid import Grid
from workflow.plan.paths import Cell


def keeping(**keep: Any) -> dict[str, Any]:
    """A run of two epochs, of four steps each."""
    return {**raw_run_of("ijepa"), "keep": keep}


def test_an_encoder_is_kept_as_it_is_after_its_epoch(
    data: Path, tmp_path: Path, trained: Trained
) -> None:
    """The last epoch's is the run's; the first is that of a run which goes on after a stop."""
    raw = keeping(epochs=[1], every=2)
    assert parse_run(raw).identity() == parse_run(raw_run_of("ijepa")).identity()
    out = tmp_path / "out" / "encoder.safetensors"
    train(parse_run(raw), data, tmp_path / "work", out)
    kept = {path.stem: path for path in (out.parent / "epochs").iterdir()}
    assert kept.keys() == {"1", "2"}
    same = [v.equal(load_file(kept["2"])[k]) for k, v in load_file(out).items()]
    assert all(same)
    assert not all(v.equal(load_file(kept["1"])[k]) for k, v in load_file(out).items())
    assert all(v.equal(load_file(trained("ijepa"))[k]) for k, v in load_file(out).items())
    facts = read_header(kept["1"])["facts"]
    assert (facts["epoch"], facts["images_seen"]) == (1, 128)

    answers = iter([False, False, True])
    cut = tmp_path / "cut" / "encoder.safetensors"
    with pytest.raises(Stopped):
        train(parse_run(raw), data, tmp_path / "again", cut, stopping=lambda: next(answers))
    assert not (cut.parent / "epochs").exists()
    train(parse_run(raw), data, tmp_path / "again", cut)
    again = load_file(cut.parent / "epochs" / "1.safetensors")
    assert all(value.equal(again[key]) for key, value in load_file(kept["1"]).items())


def config(**keep: Any) -> dict[str, Any]:
    """A benchmark of one run that keeps epochs."""
    return {
        "name": "curve",
        "dataset": "tiny",
        "seeds": [0],
        "runs": [{**keeping(**keep), "name": "ijepa"}],
        "evaluations": [{"name": "knn"}],
        "tables": [{"name": "t", "title": "T", "evaluations": ["knn"]}],
    }


def test_epochs_are_rows_before_their_run_and_need_no_training_of_their_own() -> None:
    grid = Grid(read_benchmark(config(epochs=[1, 2])))
    runs = [cell.run for cell in grid.cells]
    assert runs == ["ijepa@epoch1", "ijepa@epoch2", "ijepa", "random_init", "pixels"]
    assert grid.trained == [("ijepa", 0), ("random_init", 0)]
    folder = "results/curve/runs/ijepa/seed0"
    assert grid.encoder("ijepa@epoch1", 0) == f"{folder}/epochs/1.safetensors"
    assert grid.comes_with("ijepa@epoch1", 0) == f"{folder}/encoder.safetensors"
    result = grid.result(Cell("ijepa@epoch1", 0, "knn"))
    assert result == "results/curve/evaluations/ijepa@epoch1/seed0/knn.json"
    assert not grid.runs["random_init"].keep.epochs
    only = config(epochs=[1])
    only["tables"][0]["runs"] = ["ijepa@epoch1"]
    assert Grid(read_benchmark(only)).trained == [("ijepa", 0)]


def test_an_epoch_that_was_over_when_it_was_asked_for_is_one_clear_error(tmp_path: Path) -> None:
    """``keep`` may change in the middle of a run, which goes on."""
    message = r"2\.safetensors does not exist: keep\.epochs asked for this epoch only after it"
    with pytest.raises(UserError, match=message):
        read_header(tmp_path / "epochs" / "2.safetensors")


@pytest.mark.parametrize(
    ("keep", "message"),
    [
        ({"epochs": [3]}, r"keep\.epochs: 3 is after the end \(recipe\.optim\.epochs is 2\)"),
        ({"every": 0}, r"keep: every is 0: it must be at least 1"),
        ({"epoch": [1]}, r"keep\.epoch: unknown key \(did you mean epochs\?\)"),
    ],
)
def test_an_epoch_that_cannot_be_kept_is_refused(keep: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        parse_run(json.loads(json.dumps(keeping(**keep))))


def test_wrong_epochs_are_named_where_the_config_is_read() -> None:
    with pytest.raises(UserError, match=r"runs\.ijepa\.keep\.epochs: .*given: 3"):
        read_benchmark(config(epochs=3))
