"""The workflow plans what it should and refuses what it cannot do. (.ci/run runs it whole.)

Snakemake itself is started only for claims about Snakemake; plans are asked of workflow.plan in
tests/test_plan.py.
"""

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

from ijepa.architecture import Variant, ViTConfig
from ijepa.vit import ViT
from tests.conftest import raw_run_of

ROOT = Path(__file__).parents[1]
SNAKEMAKE = [sys.executable, "-m", "snakemake", "--profile", "workflow/profiles/local"]


REGISTER = ROOT / "data" / "datasets.yaml"


def plan(
    config: dict[str, Any], folder: Path, *more: str, register: Path = REGISTER
) -> subprocess.CompletedProcess[str]:
    """Output of Snakemake for a config, with all results in a folder of their own."""
    path = folder / "config.yaml"
    path.write_text(yaml.safe_dump(config))
    command = [*SNAKEMAKE, "--directory", str(folder), "--configfile", str(path), *more]
    env = {**os.environ, "IJEPA_REGISTER": str(register)}
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, env=env)


def test_the_default_plan_goes_from_the_address_to_the_report(
    mini: dict[str, Any], tmp_path: Path
) -> None:
    """The plan has at most 30 jobs; evaluations of the same features are one job."""
    done = plan(mini, tmp_path, "-n")
    assert done.returncode == 0, done.stderr
    output = done.stdout + done.stderr
    stats = dict(re.findall(r"^(\w+) +(\d+)$", output, re.MULTILINE))
    made = {"fetch", "build_shards", "pretrain", "evaluate_features", "predict_cost", "gpu_hours"}
    assert stats.keys() == made | {"metrics", "tabulate", "report", "all", "total"}
    assert int(stats["total"]) <= 30
    assert (
        "makes of cifar10: linear_probe, linear_own, knn, low_shot; clevr_tiny: clevr_count"
        in output
    )
    for encoder in ("ijepa", "mae", "data2vec", "random_init", "pixels"):
        for dataset in ("cifar10", "clevr_tiny"):
            assert f"results/mini/evaluations/{encoder}/seed0/{dataset}.done" in output


@pytest.mark.processes
def test_a_config_is_taken_whole_and_not_merged_with_the_default(
    mini: dict[str, Any], tmp_path: Path
) -> None:
    del mini["seeds"]
    done = plan(mini, tmp_path, "-n")
    assert "config.seeds: is missing" in done.stdout + done.stderr


@pytest.mark.processes
def test_a_mistake_in_a_recipe_stops_before_the_first_job(
    mini: dict[str, Any], tmp_path: Path
) -> None:
    """Over 5 s: Snakemake, and the check of the config."""
    mini["runs"][0]["recipe"]["optim"]["learning_rate"] = 1
    done = plan(mini, tmp_path, "--snakefile", str(ROOT / "Snakefile"))
    assert done.returncode != 0
    assert "runs.ijepa.recipe.optim.learning_rate: unknown key" in done.stdout + done.stderr
    assert not (tmp_path / "data").exists()
    assert not (tmp_path / "results").exists()


class Weights(NamedTuple):
    """Address of the weights, their expected SHA-256, and the bytes that each answer sent."""

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


@pytest.mark.processes
def test_published_weights_come_into_the_table_without_pretraining(
    tiny: Path, tmp_path: Path, server: Weights
) -> None:
    """A wrong file is refused; the same command again goes on through a broken connection.

    Over 5 s: Snakemake twice, and its jobs. Without hooks: the config is checked by other tests.
    """
    shutil.copytree(tiny / "raw", tmp_path / "data" / "raw" / "tiny")
    weights = {"name": "published", "address": server.address, "sha256": server.sha256}
    config: dict[str, Any] = {
        "name": "released",
        "dataset": "tiny",
        "seeds": [0],
        "released": [{**weights, "licence": "Apache-2.0", "layout": "dino", "num_heads": 1}],
        "images": {"tiny": {"train": 100, "test": 20}},
        "evaluations": [{"name": "knn", "config": {"num_neighbours": 5}}],
        "tables": [
            {"name": "tiny", "title": "Tiny", "evaluations": ["knn"], "runs": ["published"]}
        ],
    }
    table = "results/released/tables/tiny.md"
    refused = plan(config, tmp_path, "--no-hooks", table, register=tiny / "datasets.yaml")
    assert refused.returncode != 0
    assert "SHA-256" in refused.stdout + refused.stderr
    assert "MissingOutputException" not in refused.stdout + refused.stderr
    assert not (tmp_path / "data" / "weights" / "published").exists()
    done = plan(config, tmp_path, "--no-hooks", table, register=tiny / "datasets.yaml")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "Apache-2.0" in done.stdout + done.stderr
    assert sum(server.sent[1:]) == server.sent[0]
    text = (tmp_path / table).read_text()
    assert "| published |" in text
    assert "n = 20 images of tiny" in text


@pytest.fixture
def without_slurm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Put all programs of this machine but Slurm's in PATH."""
    programs = tmp_path / "bin"
    programs.mkdir()
    for folder in os.environ["PATH"].split(":"):
        for program in Path(folder).iterdir() if Path(folder).is_dir() else ():
            if program.name not in {"sbatch", "sinfo", "squeue", "sacct", "scontrol", "srun"}:
                (programs / program.name).unlink(missing_ok=True)
                (programs / program.name).symlink_to(program)
    monkeypatch.setenv("PATH", str(programs))


@pytest.mark.processes
@pytest.mark.usefixtures("without_slurm")
@pytest.mark.parametrize("profile", ["slurm", "workflow/profiles/slurm"])
def test_without_slurm_its_profile_plans_and_else_says_one_clear_error(
    profile: str, mini: dict[str, Any], tmp_path: Path
) -> None:
    """Over 5 s: Snakemake twice."""
    done = plan(mini, tmp_path, "-n", "--profile", profile)
    assert done.returncode == 0, done.stderr
    assert "slurm_partition=gpu" in done.stdout + done.stderr
    refused = plan(mini, tmp_path, "--profile", profile)
    assert refused.returncode != 0
    output = refused.stdout + refused.stderr
    assert "there is no Slurm on this machine (no sbatch in PATH)" in output
    assert "Traceback" not in output


@pytest.mark.processes
@pytest.mark.usefixtures("without_slurm")
@pytest.mark.parametrize(
    ("seconds", "message"),
    [
        (300, "slurm_partition: 'gpu' is unknown here"),  # by the next check: this one passes
        (120, "This cluster forgets a job 120 s after its end (MinJobAge)"),
        (40, "slurm_partition: 'gpu' is unknown here"),
    ],
)
def test_a_cluster_that_forgets_its_jobs_too_soon_is_refused(
    seconds: int, message: str, mini: dict[str, Any], tmp_path: Path
) -> None:
    """This Slurm says how long it keeps jobs, that no job lives, and that it has no partition."""
    answers = {"sbatch": "", "squeue": "", "sinfo": "", "scontrol": f"MinJobAge = {seconds} sec"}
    for name, answer in answers.items():
        program = tmp_path / "bin" / name
        program.write_text(f"#!/bin/sh\necho '{answer}'\n")
        program.chmod(0o755)
    refused = plan(mini, tmp_path, "--profile", "slurm")
    assert refused.returncode != 0
    assert message in refused.stdout + refused.stderr
    assert ("slurm-init-seconds-before-status-checks: 41" in refused.stderr) == (seconds == 120)


@pytest.mark.processes
def test_the_profile_of_one_machine_with_several_gpus_plans(
    mini: dict[str, Any], tmp_path: Path
) -> None:
    done = plan(mini, tmp_path, "-n", "--profile", "workflow/profiles/gpus")
    assert done.returncode == 0, done.stderr
    assert "gpu=1" in done.stdout + done.stderr


@pytest.mark.processes
def test_the_workflow_runs_in_a_folder_with_quotes_and_refuses_one_with_braces_or_a_colon(
    tiny: Path, tmp_path: Path
) -> None:
    """Over 5 s: Snakemake three times, and a job."""
    shutil.copytree(tiny / "raw", tmp_path / "data" / "raw" / "tiny")
    config = {
        "name": "quotes",
        "dataset": "tiny",
        "seeds": [0],
        "runs": [raw_run_of("mae") | {"name": "mae"}],
        "evaluations": [{"name": "knn"}],
        "tables": [{"name": "tiny", "title": "Tiny", "evaluations": ["knn"]}],
    }

    def fetch(folder: str) -> subprocess.CompletedProcess[str]:
        (tmp_path / folder).symlink_to(ROOT)
        options = ["--snakefile", str(tmp_path / folder / "Snakefile"), "data/raw/tiny/fetched"]
        return plan(config, tmp_path, *options, register=tiny / "datasets.yaml")

    done = fetch('o\'brien "$HOME" ; x')
    assert done.returncode == 0, done.stdout + done.stderr
    for folder, words in (
        ("a{b}", "Snakemake takes braces in a path for variables"),
        ("a:b", "a colon divides the folders of PYTHONPATH"),
    ):
        refused = fetch(folder)
        assert refused.returncode != 0
        assert f"{folder}: {words}: rename the folder" in refused.stderr


@pytest.mark.processes
def test_a_data_set_with_capitals_and_hyphens_is_planned(
    tiny: Path, mini: dict[str, Any], tmp_path: Path
) -> None:
    """Over 5 s: Snakemake plans."""
    (entry,) = yaml.safe_load((tiny / "datasets.yaml").read_text()).values()
    (tmp_path / "register.yaml").write_text(yaml.safe_dump({"Tiny-100": entry}))
    mini["dataset"] = "Tiny-100"
    del mini["images"]
    mini["evaluations"] = [{"name": "knn"}, {"name": "finetune", "uses": "images"}]
    mini["tables"] = [{"name": "tiny", "title": "Tiny", "evaluations": ["knn", "finetune"]}]
    done = plan(mini, tmp_path, "-n", register=tmp_path / "register.yaml")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "results/mini/evaluations/mae/seed0/Tiny-100.done" in done.stdout + done.stderr


@pytest.mark.processes
@pytest.mark.usefixtures("without_slurm")
def test_names_of_a_profile_reach_slurm_and_its_hidden_partitions_are_seen(
    mini: dict[str, Any], tmp_path: Path
) -> None:
    """This Slurm has a partition ``all``, and the user one account. Over 5 s: Snakemake plans."""
    answers = {
        "sbatch": "",
        "squeue": "",
        "scontrol": "MinJobAge = 300 sec; SINFO_ALL is $SINFO_ALL",
        "sinfo": "9|gpu:8|infinite|256|4000000",
        "sacctmgr": "lab",
    }
    for name, answer in answers.items():
        program = tmp_path / "bin" / name
        program.unlink(missing_ok=True)
        program.write_text(f'#!/bin/sh\necho "{answer}" | tee -a {tmp_path}/said\n')
        program.chmod(0o755)
    profile = yaml.safe_load((ROOT / "workflow/profiles/slurm/config.yaml").read_text())
    profile["default-resources"] |= {"slurm_partition": "all", "slurm_account": "2024-15"}
    (tmp_path / "profile").mkdir()
    (tmp_path / "profile" / "config.yaml").write_text(yaml.safe_dump(profile))
    refused = plan(mini, tmp_path, "--profile", str(tmp_path / "profile"))
    output = refused.stdout + refused.stderr
    assert "slurm_account: '2024-15' is none of yours; you have lab" in output
    assert "SINFO_ALL is 1" in (tmp_path / "said").read_text()


CONDA = """#!/bin/bash
# Answers what Snakemake asks of conda, and makes environments whose python leaves a mark.
case "$*" in
  --version) echo "conda 24.9.1" ;;
  "info --json") echo '{"conda_prefix": "FOLDER", "platform": "linux-64"}' ;;
  config*) echo '{"get": {"channel_priority": "strict"}}' ;;
  *create*)
    while [ "$1" != --prefix ] && [[ "$1" != --prefix=* ]]; do shift; done
    prefix=${2:-${1#--prefix=}}
    mkdir -p "$prefix/bin"
    printf '#!/bin/bash\\necho "$*" >>FOLDER/used\\nexec PYTHON "$@"\\n' >"$prefix/bin/python"
    chmod +x "$prefix/bin/python" ;;
esac
"""


@pytest.mark.processes
def test_a_job_in_a_conda_environment_runs_that_environments_python(
    tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A stand-in for conda: our prefix, which comes after its activation, must not hide it.

    Over 5 s: Snakemake and a job.
    """
    shutil.copytree(tiny / "raw", tmp_path / "data" / "raw" / "tiny")
    (tmp_path / "bin").mkdir()
    script = CONDA.replace("FOLDER", str(tmp_path)).replace("PYTHON", sys.executable)
    (tmp_path / "bin" / "conda").write_text(script)
    (tmp_path / "bin" / "activate").write_text('export PATH="$1/bin:$PATH"\n')
    (tmp_path / "bin" / "conda").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:{os.environ['PATH']}")
    config = {
        "name": "conda",
        "dataset": "tiny",
        "seeds": [0],
        "runs": [raw_run_of("mae") | {"name": "mae"}],
        "evaluations": [{"name": "knn"}],
        "tables": [{"name": "tiny", "title": "Tiny", "evaluations": ["knn"]}],
    }
    index = "data/shards/tiny/index.json"
    more = ("--no-hooks", "--sdm", "conda", "--", index)
    done = plan(config, tmp_path, *more, register=tiny / "datasets.yaml")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "-m ijepa.data build tiny" in (tmp_path / "used").read_text()
    assert (tmp_path / index).exists()
