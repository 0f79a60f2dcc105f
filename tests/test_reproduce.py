"""Text that a person sees of a run: its time, each finished job, why one failed, the end."""

import ast
import io
import os
import platform
import resource
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import yaml
from rich.console import Console
from rich.progress import Progress, TextColumn

from evals import protocols
from ijepa import cores
from ijepa.architecture import ViTConfig
from tests.conftest import raw_run_of
from workflow.plan.benchmark import read_benchmark
from workflow.plan.estimate import SECONDS, job_seconds, wall_seconds
from workflow.plan.grid import Grid
from workflow.reproduce import View, clock, last_lines
from workflow.scripts import preflight

ROOT = Path(__file__).parents[1]
MINI: dict[str, Any] = yaml.safe_load((ROOT / "config" / "mini.yaml").read_text())
SPLITS = {
    "cifar10": {"train": 50_000, "test": 10_000},
    "clevr_tiny": {"train": 2000, "test": 1000},
}
RUNS = ("ijepa", "mae", "data2vec", "random_init")


def view() -> tuple[View, io.StringIO]:
    out = io.StringIO()
    console = Console(file=out, width=100)
    return View(console, Progress(TextColumn(""), console=console), at_once=2, begun=1000.0), out


def info(number: int, rule: str, time: float, log: Path | None = None, **wildcards: str) -> Any:
    event = {"event": "job_info", "jobid": number, "rule_name": rule, "wildcards": wildcards}
    return event | {"time": time, "log": [str(log)] if log else []}


def test_every_finished_job_has_a_line_with_its_time_and_what_is_left() -> None:
    shown, out = view()
    shown.expected = {("pretrain", "mae", "0"): 60.0, ("pretrain", "ijepa", "0"): 120.0}
    shown.take({"event": "run_info", "stats": {"pretrain": 2, "all": 1, "total": 3}, "time": 1000})
    shown.take(info(1, "pretrain", 1000.0, run="mae", seed="0"))
    shown.take(info(2, "pretrain", 1000.0, run="ijepa", seed="0"))
    shown.take({"event": "job_finished", "job_id": 1, "time": 1061.0})
    shown.take({"event": "job_finished", "job_id": 9, "time": 1062.0})  # the rule "all" has none
    shown.tick()
    (line,) = out.getvalue().splitlines()
    assert line.split()[:5] == ["1:01", "pretrain", "mae", "0", "1:01"]
    assert "1/2, about" in line
    assert "left" in line


def test_what_a_group_s_job_left_as_it_was_is_said(tmp_path: Path) -> None:
    log = tmp_path / "job.log"
    log.write_text(
        "linear_probe: there already\nknn: results/mini/evaluations/mae/seed0/knn.json\n"
    )
    shown, out = view()
    shown.take(info(1, "evaluate_features", 0.0, log, run="mae", seed="0", dataset="cifar10"))
    shown.take({"event": "job_finished", "job_id": 1, "time": 3.0})
    assert "(kept: linear_probe)" in out.getvalue()


def test_the_time_that_is_left_follows_the_pace_of_what_is_finished() -> None:
    """A machine that is twice as slow as expected is said to need twice as long."""
    shown, _ = view()
    shown.expected = {("a", str(number)): 600.0 for number in range(4)}
    shown.total = 4
    for number in range(2):
        shown.take(info(number, "a", 0.0, of=str(number)))
        shown.take({"event": "job_finished", "job_id": number, "time": 1200.0})
    assert shown.left() == "about 19:45 left"  # 2 x 600 s, two at a time, 1.98 times as slow


def test_a_failed_job_shows_the_end_of_its_log(tmp_path: Path) -> None:
    log = tmp_path / "job.log"
    bar = "step 1\rstep 2\rstep 3"
    log.write_text("\n".join([*(f"line {n}" for n in range(50)), bar, "error: no [red] disk\n"]))
    shown, out = view()
    shown.take(info(1, "pretrain", 0.0, log, run="mae", seed="0"))
    shown.take({"event": "job_error", "jobid": 1, "time": 3.0})
    text = out.getvalue()
    assert "pretrain mae 0" in text
    assert "error: no [red] disk" in text
    assert "step 3" in text
    assert "step 1" not in text
    assert len(last_lines(log)) <= 12
    assert last_lines(tmp_path / "none") == ["(it has none)"]


@pytest.mark.usefixtures("real_register")
def test_an_estimate_names_every_job_of_the_plan_and_twice_the_speed_halves_it() -> None:
    grid = Grid(read_benchmark(MINI), cores=2)
    vits = dict.fromkeys(RUNS, ViTConfig(**MINI["vit"]))
    gflops = {"ijepa": 7000.0, "mae": 3000.0, "data2vec": 5000.0}
    slow = job_seconds(grid, gflops, vits, SPLITS, 78e9)
    fast = job_seconds(grid, gflops, vits, SPLITS, 156e9)
    assert {key[0] for key in slow} == {
        *("fetch", "build_shards", "pretrain", "evaluate_features"),
        *("gpu_hours", "metrics", "tabulate", "report", "predict_cost"),
    }
    assert sum(key[0] == "evaluate_features" for key in slow) == len(grid.groups) == 10
    for key in slow:
        assert fast[key] == pytest.approx(slow[key] / 2)
    assert wall_seconds(grid, fast) == pytest.approx(wall_seconds(grid, slow) / 2)
    assert slow["pretrain", "ijepa", "0"] == pytest.approx(
        SECONDS["start"] + 7000e9 / (0.43 * 78e9)
    )


INVENTED = """
from dataclasses import dataclass
USES = ("images",)

@dataclass(frozen=True)
class Config:
    pass
"""


@pytest.mark.usefixtures("real_register")
def test_an_estimate_takes_a_new_evaluation_of_images_for_one_pass_over_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "invented.py").write_text(INVENTED)
    monkeypatch.setattr(protocols, "__path__", [*protocols.__path__, str(tmp_path)])
    evaluations = [{"name": "new", "evaluation": "invented", "uses": "images"}]
    tables = [{"name": "new", "title": "New", "evaluations": ["new"], "runs": ["ijepa"]}]
    raw = {**MINI, "images": {}, "evaluations": evaluations, "tables": tables}
    vit = ViTConfig(**MINI["vit"])
    seconds = job_seconds(Grid(read_benchmark(raw)), {}, {"ijepa": vit}, SPLITS, 78e9)
    spent = 60_000 * vit.forward_flops / (0.43 * 78e9)
    assert seconds["evaluate", "ijepa", "0", "new"] == pytest.approx(SECONDS["start"] + spent)


def test_a_forward_pass_costs_the_closed_form() -> None:
    """ViT-B/16 at 224 pixels: 17.6 GMAC as everybody counts them, without head and [cls]."""
    vit = ViTConfig(dim=768, depth=12, patch_size=16, image_size=224)
    assert vit.forward_flops == pytest.approx(2 * 17.5e9, rel=0.01)


def test_minutes_and_seconds() -> None:
    assert [clock(seconds) for seconds in (0, 59.9, 61, 3600)] == ["0:00", "0:59", "1:01", "60:00"]


@pytest.mark.parametrize(
    ("lacking", "message"),
    [
        ({"which": lambda name, **_: None if name == "git" else "/bin"}, "git is not installed"),
        ({"disk_usage": lambda _: SimpleNamespace(free=5e9)}, "5.0 GB of disk left, 12 are needed"),
        ({"memory": lambda: 2e9}, "2.0 GB of memory, 4 are needed"),
        ({"access": lambda *_: False}, "cannot be written: clone to a folder of your own"),
        ({"getrlimit": lambda _: (2 * 10**9, -1)}, "ulimit -v allows 2.0 GB of addresses"),
        ({"uv": lambda: None, "right_python": lambda: False}, "there is no Python 3.11 with venv"),
        (
            {"uv": lambda: None, "right_python": lambda: True, "reaches_index": lambda _: False},
            "cannot be reached: connect this machine, or tell pip of a mirror",
        ),
        (
            {"uv": lambda: "uv", "full_cache": lambda *_: None, "reaches_index": lambda _: False},
            "cannot be reached: connect this machine, or tell uv of a mirror",
        ),
        ({"libc": lambda: (2, 17)}, "this Linux has glibc 2.17, PyTorch's packages ask for 2.28"),
        ({"libc": lambda: (0,)}, "this Linux has no glibc, "),
        ({"machine": lambda: "ppc64le"}, "no packages for processors of the kind ppc64le"),
        ({"platform": "cygwin"}, "this is cygwin: use Linux, on Windows that of WSL"),
    ],
)
def test_what_a_machine_lacks_is_one_line_with_the_remedy(
    lacking: dict[str, Any], message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    enough = {
        "which": lambda name, **_: f"/bin/{name}",
        "disk_usage": lambda _: SimpleNamespace(free=1e12),
        "memory": lambda: 1e12,
        "environment": lambda _: None,
        "reaches_index": lambda _: True,
    }
    for name, value in (enough | lacking).items():
        owners = (preflight, shutil, platform, os, resource) if name != "platform" else (sys,)
        monkeypatch.setattr(next(o for o in owners if hasattr(o, name)), name, value)
    line = preflight.fault("install")
    assert line is not None
    assert message in line
    assert "\n" not in line
    assert ":" in line


def program(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)
    return path


def test_an_environment_of_another_python_or_of_none_is_to_be_deleted(tmp_path: Path) -> None:
    assert preflight.environment(tmp_path) is None
    python = program(tmp_path / ".venv/bin/python", "echo 3 9")
    found = preflight.environment(tmp_path)
    assert found is not None
    assert f"{python} is Python 3.9, the packages are for 3.11 to 3.13: delete" in found
    program(python, "echo 3 12")
    assert preflight.environment(tmp_path) is None
    python.unlink()
    found = preflight.environment(tmp_path)
    assert found is not None
    assert f"{python} does not start any more: delete its environment (rm -r .venv)" in found


def test_the_disk_of_uv_s_downloads_is_looked_at_if_it_is_another(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    uv = str(program(tmp_path / "uv", "echo /proc/none/uv"))  # /proc is never the clone's disk
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=1e9))
    found = preflight.full_cache(uv, tmp_path)
    assert found is not None
    assert "/proc, where uv keeps its downloads, has 1.0 GB of disk left, 6 are needed" in found
    program(tmp_path / "uv", f"echo {tmp_path}/uv-cache")
    assert preflight.full_cache(uv, tmp_path) is None


def test_the_package_index_is_asked_by_the_program_that_will_install(tmp_path: Path) -> None:
    assert not preflight.reaches_index(str(program(tmp_path / "uv", "echo dns error; exit 2")))
    assert preflight.reaches_index(str(program(tmp_path / "uv", "echo six==1.17")))
    no_python = "echo error: No interpreter found for Python 3.11; exit 2"
    assert preflight.reaches_index(str(program(tmp_path / "uv", no_python)))


def test_the_first_look_at_a_machine_needs_no_newer_python_than_rhel_8_has() -> None:
    for module in (preflight, cores):
        source = Path(str(module.__file__)).read_text()
        ast.parse(source, feature_version=(3, 6))
        assert "capture_output=" not in source
        assert "-> list[" not in source


@pytest.mark.processes
def test_a_run_is_shown_from_its_estimate_to_its_end_and_a_failure_is_mended_by_the_same_command(
    tiny: Path, tmp_path: Path
) -> None:
    """A whole tiny workflow three times: over 5 s, since each starts Snakemake and its jobs."""
    probe = {"epochs": 1, "milestones": [], "batch_size": 32, "learning_rates": [1e38]}
    probe["optimiser"] = "sgd"
    config = {
        "name": "tiny",
        "dataset": "tiny",
        "vit": raw_run_of("mae")["vit"],
        "seeds": [0],
        "threads": 1,
        "raw": {"tiny": str(tiny / "raw")},
        "runs": [{**raw_run_of("mae"), "name": "mae", "keep": {"epochs": [1]}}],
        "evaluations": [
            {"name": "knn", "config": {"num_neighbours": 5}},
            {"name": "linear_probe", "config": probe},
        ],
        "tables": [
            {
                "name": "table",
                "title": "Tiny",
                "evaluations": ["knn", "linear_probe"],
                "runs": ["mae@epoch1", "mae", "pixels"],
            }
        ],
    }
    path = tmp_path / "tiny.yaml"

    def reproduce() -> subprocess.CompletedProcess[str]:
        path.write_text(yaml.safe_dump(config))
        env = {**os.environ, "IJEPA_REGISTER": str(tiny / "datasets.yaml"), "PYTHONPATH": str(ROOT)}
        command = [sys.executable, "-m", "workflow.reproduce", str(path)]
        command += ["--profile", str(ROOT / "workflow/profiles/local"), "--"]
        command += ["--snakefile", str(ROOT / "Snakefile")]
        return subprocess.run(
            command, cwd=tmp_path, env=env, text=True, capture_output=True, check=False
        )

    failed = reproduce()
    assert failed.returncode == 1
    assert "minutes from scratch on this machine" in failed.stdout
    assert "failed" in failed.stdout
    assert "heads diverged by epoch 1: choose smaller learning_rates" in failed.stdout
    assert "the same command goes on from here" in failed.stdout
    # The failure of one evaluation left the other.
    knn = tmp_path / "results/tiny/evaluations/pixels/seed0/knn.json"
    before = knn.read_bytes()

    probe["learning_rates"] = [0.1]
    whole = reproduce()
    assert whole.returncode == 0, whole.stdout + whole.stderr
    # Once in both, whether it ran beside what failed or only afterwards.
    assert (failed.stdout + whole.stdout).count(" pretrain mae 0 ") == 1
    assert knn.read_bytes() == before
    assert "report: results/tiny/report.html" in whole.stdout
    assert "git has no results of tiny to compare with" in whole.stdout
    assert len(whole.stdout.splitlines()) < 50

    # Snakemake's own report, with a caption for every figure.
    command = [sys.executable, "-m", "snakemake", "--snakefile", str(ROOT / "Snakefile")]
    command += ["--profile", str(ROOT / "workflow/profiles/local"), "--configfile", str(path)]
    env = {**os.environ, "IJEPA_REGISTER": str(tiny / "datasets.yaml"), "PYTHONPATH": str(ROOT)}
    reported = subprocess.run(
        [*command, "--report", "all.html"], cwd=tmp_path, env=env, capture_output=True, check=False
    )
    assert reported.returncode == 0, reported.stderr
    assert b"linear_probe" in (tmp_path / "all.html").read_bytes()

    (tmp_path / "results/reference").mkdir()
    shutil.copytree(tmp_path / "results/tiny", tmp_path / "results/reference/tiny")
    again = reproduce()
    assert "Nothing to be done" in again.stdout
    assert "tiny agrees with the published results within noise (6 compared" in again.stdout
