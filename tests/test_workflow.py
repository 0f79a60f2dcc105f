"""The workflow plans what it should and refuses what it cannot do. (.ci/run runs it whole.)"""

import hashlib
import os
import re
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
import yaml

from ijepa import methods
from ijepa.vit import Variant, ViT, ViTConfig

ROOT = Path(__file__).parents[1]
SNAKEMAKE = [sys.executable, "-m", "snakemake", "--profile", "workflow/profiles/local"]


REGISTER = ROOT / "data" / "datasets.yaml"


def plan(
    config: dict[str, Any], folder: Path, *more: str, register: Path = REGISTER
) -> subprocess.CompletedProcess[str]:
    """What Snakemake says of a config, with all results in a folder of their own."""
    path = folder / "config.yaml"
    path.write_text(yaml.safe_dump(config))
    command = [*SNAKEMAKE, "--directory", str(folder), "--configfile", str(path), *more]
    env = {**os.environ, "IJEPA_REGISTER": str(register)}
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, env=env)


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


def test_a_run_that_no_table_asks_for_costs_nothing_and_needs_nothing(
    mini: dict[str, Any], tmp_path: Path
) -> None:
    """Neither its data nor its tokens, also for the prediction of what the others cost."""
    mini["runs"].append({**mini["runs"][1], "name": "elsewhere", "dataset": "cifar100"})
    for table in mini["tables"]:
        table["runs"] = ["ijepa", "mae"]
    done = plan(mini, tmp_path, "-n", "-p")
    assert done.returncode == 0, done.stderr
    output = done.stdout + done.stderr
    assert "rule predict_cost:" in output
    assert "rule tokenise:" not in output
    assert '"name": "elsewhere", ' not in output
    assert "data/shards/cifar100" not in output


def test_an_unknown_key_of_the_grid_is_refused(mini: dict[str, Any], tmp_path: Path) -> None:
    done = plan({**mini, "sedes": [1]}, tmp_path, "-n")
    assert done.returncode != 0
    assert "'sedes' was unexpected" in done.stdout + done.stderr


def test_a_mistake_in_a_recipe_stops_before_the_first_job(
    mini: dict[str, Any], tmp_path: Path
) -> None:
    mini["runs"][0]["recipe"]["optim"]["learning_rate"] = 1
    done = plan(mini, tmp_path, "--snakefile", str(ROOT / "Snakefile"))
    assert done.returncode != 0
    assert "runs.ijepa.recipe.optim.learning_rate: unknown key" in done.stdout + done.stderr
    assert not (tmp_path / "data").exists()
    assert not (tmp_path / "results").exists()


class Weights(NamedTuple):
    """Where the weights are, what they should be, and how many bytes each answer sent."""

    address: str
    sha256: str
    sent: list[int]


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Weights]:
    """A server of weights in DINO's released layout: wrong at first, then cut off, then whole."""
    torch.manual_seed(0)
    vit = ViTConfig(image_size=32, patch_size=8, dim=64, depth=1, num_heads=1)
    encoder = ViT(vit, Variant(class_token=True, positions="learned"))
    torch.save(encoder.state_dict(), tmp_path / "weights.pth")
    with serve((tmp_path / "weights.pth").read_bytes()) as weights:
        yield weights


@contextmanager
def serve(whole: bytes) -> Iterator[Weights]:
    sent: list[int] = []

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            start = int(re.findall(r"\d+", self.headers.get("Range", "0"))[0])
            body = (bytes(len(whole)) if not sent else whole)[start:]
            cut = body[: len(body) // 2] if len(sent) == 1 else body
            sent.append(len(cut))
            self.send_response(206 if start else 200)
            self.send_header("ETag", '"one"')
            self.send_header("Content-Length", str(len(body)))
            if start:
                self.send_header("Content-Range", f"bytes {start}-{len(whole) - 1}/{len(whole)}")
            self.end_headers()
            self.wfile.write(cut)
            self.close_connection = True

        def log_message(self, *_: object) -> None:
            """Nothing."""

    http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=http.serve_forever, daemon=True).start()
    address = f"http://127.0.0.1:{http.server_port}/weights.pth"
    yield Weights(address, hashlib.sha256(whole).hexdigest(), sent)
    http.shutdown()


def test_published_weights_come_into_the_table_without_pretraining(
    tiny: Path, tmp_path: Path, server: Weights
) -> None:
    """A wrong file is refused; the same command again goes on through a broken connection."""
    shutil.copytree(tiny / "raw", tmp_path / "data" / "raw" / "tiny")
    weights = {"name": "published", "address": server.address, "sha256": server.sha256}
    config: dict[str, Any] = {
        "name": "released",
        "dataset": "tiny",
        "seeds": [0],
        "released": [{**weights, "licence": "Apache-2.0", "layout": "dino", "num_heads": 1}],
        "images": {"tiny": {"train": 100, "test": 20}},
        "evaluations": [{"name": "knn", "config": {"num_neighbours": 5}}],
        "tables": [{"name": "tiny", "title": "Tiny", "evaluations": ["knn"]}],
    }
    refused = plan(config, tmp_path, register=tiny / "datasets.yaml")
    assert refused.returncode != 0
    assert "SHA-256" in refused.stdout + refused.stderr
    assert "MissingOutputException" not in refused.stdout + refused.stderr
    assert not (tmp_path / "data" / "weights" / "published").exists()
    done = plan(config, tmp_path, register=tiny / "datasets.yaml")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "Apache-2.0" in done.stdout + done.stderr
    assert sum(server.sent[1:]) == server.sent[0]
    table = (tmp_path / "results" / "released" / "tables" / "tiny.md").read_text()
    assert "| published |" in table
    assert "n = 20 images of tiny" in table
    assert (tmp_path / "results" / "released" / "report.html").exists()


@pytest.fixture
def without_slurm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """All programs of this machine but Slurm's."""
    programs = tmp_path / "bin"
    programs.mkdir()
    for folder in os.environ["PATH"].split(":"):
        for program in Path(folder).iterdir() if Path(folder).is_dir() else ():
            if program.name not in {"sbatch", "sinfo", "squeue", "sacct", "scontrol", "srun"}:
                (programs / program.name).unlink(missing_ok=True)
                (programs / program.name).symlink_to(program)
    monkeypatch.setenv("PATH", str(programs))


@pytest.mark.usefixtures("without_slurm")
@pytest.mark.parametrize("profile", ["slurm", "workflow/profiles/slurm"])
def test_without_slurm_its_profile_plans_and_else_says_one_clear_error(
    profile: str, mini: dict[str, Any], tmp_path: Path
) -> None:
    done = plan(mini, tmp_path, "-n", "--profile", profile)
    assert done.returncode == 0, done.stderr
    assert "slurm_partition=gpu" in done.stdout + done.stderr
    refused = plan(mini, tmp_path, "--profile", profile)
    assert refused.returncode != 0
    said = refused.stdout + refused.stderr
    assert "there is no Slurm on this machine (no sbatch in PATH)" in said
    assert "Traceback" not in said


@pytest.mark.usefixtures("without_slurm")
@pytest.mark.parametrize(
    ("kept", "told"),
    [
        (300, "slurm_partition: 'gpu' is unknown here"),  # the next check: the first has passed
        (120, "This cluster forgets a job 120 s after its end (MinJobAge)"),
        (40, "slurm_partition: 'gpu' is unknown here"),
    ],
)
def test_a_cluster_that_forgets_its_jobs_too_soon_is_refused(
    kept: int, told: str, mini: dict[str, Any], tmp_path: Path
) -> None:
    """All that it answers here: how long it keeps them, that no job lives, and no partition."""
    answers = {"sbatch": "", "squeue": "", "sinfo": "", "scontrol": f"MinJobAge = {kept} sec"}
    for name, answer in answers.items():
        program = tmp_path / "bin" / name
        program.write_text(f"#!/bin/sh\necho '{answer}'\n")
        program.chmod(0o755)
    refused = plan(mini, tmp_path, "--profile", "slurm")
    assert refused.returncode != 0
    assert told in refused.stdout + refused.stderr
    assert ("slurm-init-seconds-before-status-checks: 41" in refused.stderr) == (kept == 120)


def test_the_profile_of_one_machine_with_several_gpus_plans(
    mini: dict[str, Any], tmp_path: Path
) -> None:
    done = plan(mini, tmp_path, "-n", "--profile", "workflow/profiles/gpus")
    assert done.returncode == 0, done.stderr
    assert "gpu=1" in done.stdout + done.stderr


def test_how_many_gpus_share_a_run_does_not_change_which_run_it_is(
    mini: dict[str, Any], tmp_path: Path
) -> None:
    target = "results/mini/runs/ijepa/seed0/run.yaml"
    mini["runs"][0]["gpus"] = 4
    done = plan(mini, tmp_path, "-p", target)
    assert done.returncode == 0, done.stderr
    frozen = yaml.safe_load((tmp_path / target).read_text())
    assert frozen.keys() == {"method", "dataset", "vit", "recipe", "seed"}
