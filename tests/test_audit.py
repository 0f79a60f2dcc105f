"""Results are compared with the config by their own records (other such tests: tests/versions)."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file, save_file

from ijepa.config import parse_run
from ijepa.data import tokens
from ijepa.encoder_file import read_header
from ijepa.errors import UserError
from ijepa.train import train
from tests.conftest import raw_run_of
from workflow.plan.audit import _left_over, check


def test_an_encoder_of_other_tokens_is_named(
    tokenised: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The tokenizer's settings are not part of the encoder's run."""
    monkeypatch.chdir(tmp_path)
    shards = tmp_path / "data/shards/tiny"
    shutil.copytree(tokenised, shards, symlinks=True)
    raw = raw_run_of("cae")
    raw["recipe"]["optim"] |= {"epochs": 0, "warmup_epochs": 0}
    out = tmp_path / "runs/cae/seed0/encoder.safetensors"
    train(parse_run(raw), shards, tmp_path / "work", out)
    expected = {"encoders": {str(out): raw}, "folders": [str(tmp_path / "runs")]}
    check(expected)
    tokens.build_tokens(shards, "small", vocabulary=16)
    with pytest.raises(UserError, match=r"cae/seed0/encoder\.safetensors has tokens_sha256"):
        check(expected)
    shutil.rmtree(shards / "tokens")  # a clone has none
    check(expected)


def test_results_that_the_config_has_no_more_are_named(tmp_path: Path) -> None:
    """An evaluation that was taken out of the config leaves its result behind."""
    wanted = tmp_path / "evaluations/mae/seed0/knn.json"
    for name in ("knn.json", "linear_probe.json"):
        path = wanted.with_name(name)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("{}")
    expected = {"evaluations": {str(wanted): {}}, "folders": [str(tmp_path / "evaluations")]}
    assert list(_left_over(expected)) == [
        f"{wanted.with_name('linear_probe.json')} is of an earlier config"
    ]


def test_an_encoder_is_the_configs_if_all_that_decides_what_is_learned_is_the_same(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A file of a version without SIGReg is valid; one that began from other weights is not."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "data/shards").mkdir(parents=True)
    (tmp_path / "data/shards/tiny").symlink_to(data)
    raw = raw_run_of("ijepa")
    raw["recipe"]["optim"] |= {"epochs": 0, "warmup_epochs": 0}
    out = tmp_path / "runs/ijepa/seed0/encoder.safetensors"
    train(parse_run(raw), data, tmp_path / "work", out)
    header = read_header(out)
    for key in ("anticollapse", "sigreg", "sigreg_of"):
        del header["run"]["recipe"][key]
    header["run"]["recipe"]["optim"]["accumulate"] = 2
    save_file(load_file(out), out, {"ijepa": json.dumps(header)})
    expected: dict[str, Any] = {"encoders": {str(out): raw}, "folders": [str(tmp_path / "runs")]}
    check(expected)
    header["run"]["start"] = {"from": "there", "parts": "all", "interpolate_positions": False}
    save_file(load_file(out), out, {"ijepa": json.dumps(header)})
    with pytest.raises(UserError, match=r"has start \{'parts': 'all'"):
        check(expected)
    raw["start"] = {"from": str(out)}
    with pytest.raises(UserError, match="has start_sha256 None"):
        check(expected)
