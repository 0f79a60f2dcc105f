"""The workflow plans what it should and refuses what it cannot do. (.ci/run runs it whole.)"""

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from ijepa import methods

ROOT = Path(__file__).parents[1]
SNAKEMAKE = [sys.executable, "-m", "snakemake", "--profile", "workflow/profiles/local"]


def plan(config: dict[str, Any], folder: Path, *more: str) -> subprocess.CompletedProcess[str]:
    """What Snakemake says of a config, with all results in a folder of their own."""
    path = folder / "config.yaml"
    path.write_text(yaml.safe_dump(config))
    command = [*SNAKEMAKE, "--directory", str(folder), "--configfile", str(path), *more]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)


@pytest.fixture
def mini() -> dict[str, Any]:
    config: dict[str, Any] = yaml.safe_load((ROOT / "config" / "mini.yaml").read_text())
    return config


def test_the_default_plan_goes_from_the_address_to_the_report(
    mini: dict[str, Any], tmp_path: Path
) -> None:
    done = plan(mini, tmp_path, "-n")
    assert done.returncode == 0, done.stderr
    output = done.stdout + done.stderr
    for rule in (
        "fetch",
        "build_shards",
        "tokenise",
        "pretrain",
        "extract_features",
        "evaluate",
        "report",
    ):
        assert f"rule {rule}:" in output
    for encoder in (*methods.names(), "random_init", "pixels"):
        assert f"results/mini/evaluations/{encoder}/seed0/linear_probe.json" in output


def test_a_config_is_taken_whole_and_not_merged_with_the_default(
    mini: dict[str, Any], tmp_path: Path
) -> None:
    del mini["seeds"]
    done = plan(mini, tmp_path, "-n")
    assert "'seeds' is a required property" in done.stdout + done.stderr


def test_an_unknown_key_of_the_grid_is_refused(mini: dict[str, Any], tmp_path: Path) -> None:
    done = plan({**mini, "sedes": [1]}, tmp_path, "-n")
    assert done.returncode != 0
    assert "'sedes' was unexpected" in done.stdout + done.stderr


def test_a_mistake_in_a_recipe_stops_before_the_first_job(
    mini: dict[str, Any], tmp_path: Path
) -> None:
    mini["runs"][0]["recipe"]["optim"]["learning_rate"] = 1
    mini["evaluations"][1]["config"] = {}
    done = plan(mini, tmp_path, "--snakefile", str(ROOT / "Snakefile"))
    assert done.returncode != 0
    assert "runs.ijepa.recipe.optim.learning_rate: unknown key" in done.stdout + done.stderr
    assert not (tmp_path / "data").exists()
    assert not (tmp_path / "results").exists()
