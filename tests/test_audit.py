"""Results are compared with the config by their own records (other such tests: tests/versions)."""

import shutil
from pathlib import Path

import pytest

from ijepa.config import parse_run
from ijepa.data import tokens
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
