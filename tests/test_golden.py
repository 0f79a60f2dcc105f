"""The step that the reference release took, and ours."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from tests.golden import replay

HERE = Path(__file__).parent
RECORDED = HERE / "golden_files" / "ijepa_step.npz"


def test_the_recorded_step_of_the_release_is_replayed() -> None:
    command = [sys.executable, str(HERE / "golden.py"), str(RECORDED)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "166 of 166 quantities agree" in done.stdout


@pytest.mark.parametrize(
    "key", ["loss", "grad/predictor/mask_token", "after/target_encoder/norm.bias", "block_sizes"]
)
def test_a_recorded_value_that_differs_is_reported(key: str) -> None:
    with np.load(RECORDED) as archive:
        file = {name: archive[name] for name in archive.files}
    file[key] = file[key] * 1.01 + 0.01 if file[key].dtype.kind == "f" else file[key] + 1
    wrong = {error.name for error in replay(file) if not error.value <= error.limit}
    assert wrong == {key}
