"""The steps that the reference releases took, and ours."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.golden import main, replay

HERE = Path(__file__).parent
FILES = HERE / "golden_files"
QUANTITIES = {
    "ijepa": 166,
    "mae": 66,
    "data2vec": 42,
    "cae": 123,
    "dino": 13,
    "ibot": 15,
    "lejepa": 46,
}


def golden_file(name: str) -> dict[str, Any]:
    with np.load(FILES / f"{name}_step.npz") as archive:
        return {key: archive[key] for key in archive.files}


@pytest.mark.parametrize("name", QUANTITIES)
def test_the_recorded_step_of_the_release_is_replayed(name: str) -> None:
    errors = list(replay(golden_file(name)))
    assert not [error for error in errors if not error.value <= error.limit]
    assert len(errors) == QUANTITIES[name]


@pytest.mark.processes
def test_the_command_prints_every_quantity_and_fails_for_a_wrong_one(tmp_path: Path) -> None:
    """Over 5 s: it starts Python. The steps themselves are replayed in the default tier."""
    np.savez(tmp_path / "wrong.npz", **{**golden_file("mae"), "loss": np.float32(1)})
    command = [sys.executable, str(HERE / "golden.py"), str(tmp_path / "wrong.npz")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 1, done.stdout + done.stderr
    assert "65 of 66 quantities agree" in done.stdout
    assert "loss   ABOVE 1e-05" in done.stdout


def test_the_command_succeeds_where_all_quantities_agree(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.argv", ["golden.py", str(FILES / "mae_step.npz")])
    with pytest.raises(SystemExit) as end:
        main()
    assert end.value.code == 0
    assert "66 of 66 quantities agree" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("name", "key"),
    [
        ("ijepa", "loss"),
        ("ijepa", "grad/predictor/mask_token"),
        ("ijepa", "after/target_encoder/norm.bias"),
        ("ijepa", "block_sizes"),
        ("mae", "grad/patch_embed.proj.weight"),
        ("mae", "patches"),
        ("data2vec", "targets"),
        ("data2vec", "grad/rel_pos_bias.relative_position_bias_table"),
        ("cae", "latent_targets"),
        ("cae", "loss_alignment"),
        ("cae", "grad/regresser.norm.weight"),
        ("dino", "center_after"),
        ("dino", "teacher_temperature"),
        ("ibot", "patch_center_after"),
        ("ibot", "patch_feature_grad"),
        ("lejepa", "sigreg_of_views"),
        ("lejepa", "prediction_loss"),
        ("lejepa", "grad/encoder/pos_embed"),
    ],
)
def test_a_recorded_value_that_differs_is_reported(name: str, key: str) -> None:
    file = golden_file(name)
    if key == "teacher_temperature":
        file[key][5] *= 1.1  # moved as a whole, it would be another schedule
    elif file[key].dtype.kind == "f":
        file[key] = file[key] * 1.01 + 0.01
    else:
        file[key] = file[key] + 1
    wrong = {error.name for error in replay(file) if not error.value <= error.limit}
    assert wrong == {key}


def test_another_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match="not a recorded step of a method that is known"):
        list(replay({"meta": np.array("{}")}))
