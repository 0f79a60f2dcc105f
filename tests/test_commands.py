"""Commands of README.md and docs/: each is run, or commands.yaml says why it is not."""

import importlib
import json
import re
import shlex
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from PIL import Image

from ijepa.data import register
from tests.conftest import raw_run_of
from tests.documented import ROOT, blocks, inline
from tests.released_files import fabricate
from tests.test_decoder import TINY as DECODER
from workflow.__main__ import COMMANDS
from workflow.plan.benchmark import read_benchmark
from workflow.plan.grid import Grid

LISTED: dict[str, Any] = yaml.safe_load((ROOT / "tests" / "commands.yaml").read_text())
HERE = [item if isinstance(item, dict) else {item: item} for item in LISTED["here"]]
CI = (ROOT / ".ci" / "run").read_text()
ELSEWHERE = LISTED["elsewhere"].items()


def test_every_command_of_the_documentation_is_listed_once_and_no_other() -> None:
    listed = [command for item in HERE for command in item]
    listed += [command for part in ("elsewhere", "short", "never") for command in LISTED[part]]
    assert sorted(listed) == sorted({command for _, command in (*blocks(), *inline())})


def test_what_is_run_elsewhere_is_there() -> None:
    for command, place in ELSEWHERE:
        path, _, test = place.partition(" (")[0].partition("::")
        assert (ROOT / path).is_file(), command
        if test:
            assert f"def {test}(" in (ROOT / path).read_text(), command
        else:
            assert (re.findall(r"\((make .*)\)", place) or [command])[0] in CI
    run = " ".join(command for item in HERE for command in item)
    assert all(f"ijepa-bench {word} " in run for word in LISTED["short"].values())


Run = Callable[[str], None]


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch) -> Run:
    """Run a command; one of ijepa-bench in this process, which has imported torch already."""

    def run(command: str) -> None:
        words = shlex.split(command)
        if words[0] != "ijepa-bench":
            subprocess.run(words, check=True, capture_output=True)
            return
        name = COMMANDS[words[1]][0] if words[1] in COMMANDS else "workflow"
        module = importlib.import_module(name)
        if hasattr(module, "__path__"):
            module = importlib.import_module(f"{name}.__main__")
        monkeypatch.setattr("sys.argv", words if name == "workflow" else words[1:])
        code: Any = 0
        try:
            module.main()
        except SystemExit as ended:
            code = ended.code or 0
        # The exit status of a comparison is 1 if something is worse.
        assert code == 0 or (words[1] == "compare" and code == 1), command

    return run


@pytest.fixture
def mini(tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Grid:
    """A folder in which tiny files have the names that the documentation uses."""
    monkeypatch.chdir(tmp_path)
    entry = yaml.safe_load((tiny / "datasets.yaml").read_text())["tiny"]
    Path("datasets.yaml").write_text(yaml.safe_dump({"cifar10": entry}))
    monkeypatch.setattr(register, "REGISTER", tmp_path / "datasets.yaml")
    monkeypatch.setenv("IJEPA_REGISTER", str(tmp_path / "datasets.yaml"))
    shutil.copytree(tiny / "raw", "data/raw/cifar10")
    vit = raw_run_of("ijepa")["vit"]
    config = {
        "name": "mini",
        "dataset": "cifar10",
        "vit": vit,
        "seeds": [0],
        "runs": [
            raw_run_of(name) | {"name": name, "dataset": "cifar10"} for name in ("ijepa", "mae")
        ],
        "evaluations": [{"name": "knn", "config": {"num_neighbours": 5, "pool": "patches"}}],
        "tables": [
            {"name": "cifar10", "title": "T", "evaluations": ["knn"], "runs": ["ijepa", "mae"]}
        ],
    }
    Path("config").mkdir()
    Path("config/mini.yaml").write_text(yaml.safe_dump(config))
    grid = Grid(read_benchmark(config))
    grid.write_plan()
    shutil.copy(grid.run_plan("ijepa", 0), "RUN.yaml")
    pixels = np.random.default_rng(0).integers(0, 256, (50, 70, 3)).astype(np.uint8)
    for name in ("photo.jpg", "cat.jpg", "dog.png"):
        Image.fromarray(pixels).save(name)
    fabricate("ijepa", Path("IN1K-vit.h.14-300e.pth.tar"))
    return grid


def evaluate_all(grid: Grid, run: Run) -> None:
    """Make what the workflow makes of the config, by its own commands."""
    for group in grid.groups:
        encoder, data = grid.encoder(group.run, 0), grid.shards("cifar10")
        plan = grid.run_plan(group.run, 0)
        run(
            f"ijepa-bench train {plan} --data {data} --work {grid.work}/{group.run} --out {encoder}"
        )
        about = grid.features(*group)
        run(
            f"ijepa-bench group {grid.group_plan(*group)} {encoder} --data {data}"
            f" --features {about} --results {Path(grid.marker(group)).parent}"
            f" --work {grid.work}/evaluations --done {grid.marker(group)}"
        )
    hours = f"{grid.results}/tables/gpu_hours.csv"
    run(f"ijepa-bench gpu-hours {grid.results} --notes {grid.jobs} --out {hours}")
    run("ijepa-bench plan tables config/mini.yaml")
    shutil.copytree("results/mini", "results/reference/mini")
    shutil.copy(str(grid.encoder("ijepa", 0)), "mine.safetensors")


SETTINGS: dict[str, Any] = {
    "linear_probe": {
        "epochs": 1,
        "milestones": [],
        "batch_size": 32,
        "learning_rates": [0.1],
        "optimiser": "sgd",
    },
    "decoder": {**DECODER, "condition": "image"},
}


@pytest.mark.processes
def test_commands_of_the_documentation_do_what_they_say(
    mini: Grid, run: Run, capsys: pytest.CaptureFixture[str]
) -> None:
    """Over 5 s: some forty commands, of which three train a network for 8 steps."""
    printed = {}
    for command in [command for item in HERE for command in item.values()]:
        words = command.split()
        if words[1:2] == ["evaluate"]:
            Path("SETTINGS.yaml").write_text(yaml.safe_dump(SETTINGS.get(words[2], {})))
        if words[1] == "watch":
            evaluate_all(mini, run)
            capsys.readouterr()
        run(command)
        printed[command] = capsys.readouterr().out
        if "--out" in words:
            assert Path(words[words.index("--out") + 1]).exists(), command
    said = "\n".join(printed.values())
    for text in ("usage: ", "2 pretrainings, 2 results", "recipe:", "minutes on", "vit: {mean:"):
        assert text in said
    assert "mini agrees with the published results within noise (2 compared" in said
    assert json.loads(Path("mine/knn.json").read_text())["n"] == 32
