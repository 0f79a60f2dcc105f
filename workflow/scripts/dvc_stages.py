"""Write dvc.yaml: the stages of the configs that are versioned here, and their encoders by name.

``python -m workflow.scripts.dvc_stages config/mini.yaml config/hour.yaml``. The dependencies of a
stage are in the configs and nowhere else: DVC's own templates have no lists of dependencies. Leave
out a config that was never run, or ``dvc status`` would say that no clone is up to date.
"""

import argparse
import re
from pathlib import Path
from typing import Any

import yaml

from ijepa.encoder_file import UNTRAINED
from ijepa.errors import program, run_command
from ijepa.files import write_text
from workflow.plan.benchmark import read_files
from workflow.plan.grid import Grid

HEAD = """\
# Written by: python -m workflow.scripts.dvc_stages {configs}
# Snakemake decides what runs, DVC versions what comes in and out (docs/versions.md).
"""
MAKE = "python -m workflow.scripts.versioned make"


def document(paths: list[Path]) -> dict[str, Any]:
    """Stages and artifacts of all configs; a data set that several configs use has one stage."""
    stages: dict[str, Any] = {}
    artifacts: dict[str, Any] = {}
    for path in paths:
        artifacts |= artifacts_of(path)
        for name, stage in stages_of(path).items():
            stages.setdefault(name, stage)
    return {"stages": stages, "artifacts": artifacts}


def artifacts_of(path: Path) -> dict[str, Any]:
    """Encoders of one config as models, for ``dvc artifacts get`` and DVC's model registry.

    DVC's names have letters, digits, hyphens and underscores.
    """
    grid = Grid(read_files([path])[1])
    trained = [(run, seed) for run, seed in grid.trained if run != UNTRAINED]
    released = [(run, seed) for run in grid.released for seed in grid.seeds_of(run)]
    artifacts = {}
    for run, seed in [*trained, *released]:
        method = grid.runs[run].method if run in grid.runs else "released"
        name = re.sub(r"[^A-Za-z0-9_-]", "-", f"{grid.name}-{run}-seed{seed}")
        artifacts[name] = {
            "path": grid.encoder(run, seed),
            "type": "model",
            "desc": f"encoder of {run}, seed {seed}, of {path}",
            "labels": [method],
        }
    return artifacts


def stages_of(path: Path) -> dict[str, Any]:
    """The stages of one config: its data sets, encoders and tables."""
    config, benchmark = read_files([path])
    grid = Grid(benchmark)
    name, results = grid.name, grid.results
    stages: dict[str, Any] = {}
    for dataset in grid.datasets:
        stages[f"data-{dataset}"] = {
            "desc": f"{dataset} as WebDataset shards",
            "cmd": f"{MAKE} data {path} --dataset {dataset}",
            "params": [{"data/datasets.yaml": [dataset]}],
            "outs": kept(grid.shards(dataset), f"data/records/{dataset}.records.json"),
        }

    def parameters(*keys: str) -> list[Any]:
        return [{str(path): [key for key in keys if key in config]}]

    encoders = [f"{results}/{part}" for part in ("runs", "released") if part in config]
    stages[f"encoders-{name}"] = {
        "desc": f"every pretrained network of {path}",
        "cmd": f"{MAKE} encoders {path}",
        "params": parameters("dataset", "vit", "seeds", "runs", "tokenizers", "released", "tables"),
        "deps": [grid.shards(dataset) for dataset in grid.trained_on],
        "outs": kept(*encoders, f"{results}/encoders.records.json"),
    }
    stages[f"tables-{name}"] = {
        "desc": "features, evaluations, tables and report",
        "cmd": f"{MAKE} tables {path}",
        # The whole config: in a list of keys, a new one could be forgotten.
        "params": [{str(path): None}],
        "deps": [
            *encoders,
            *map(grid.shards, grid.evaluated_on),
            *benchmark.external,
        ],
        "outs": kept(
            f"{results}/features",
            f"{results}/evaluations",
            f"{results}/tables",
            f"{results}/report.html",
            f"{results}/figures",
            f"{results}/tables.records.json",
        ),
        "metrics": kept(f"{results}/metrics.json"),
        "plots": [
            plot(
                f"{results}/plots/loss.csv", "by_run", ("images", "images seen"), ("loss", "loss")
            ),
            plot(
                f"{results}/plots/accuracy.csv",
                "points",
                ("hours", "hours of pretraining"),
                ("value", "top-1 %"),
            ),
        ],
    }
    return stages


def kept(*paths: str) -> list[Any]:
    """Outputs that DVC does not delete before a stage runs: Snakemake makes what is missing."""
    return [{path: {"persist": True}} for path in paths]


def plot(path: str, template: str, x: tuple[str, str], y: tuple[str, str]) -> dict[str, Any]:
    """A CSV that ``dvc plots`` draws; axes are (column, title)."""
    axes = {"template": template, "x": x[0], "x_label": x[1], "y": y[0], "y_label": y[1]}
    return {path: {"persist": True, **axes}}


def text_of(paths: list[Path]) -> str:
    """Text of dvc.yaml."""
    body = yaml.safe_dump(document(paths), sort_keys=False, width=100)
    return HEAD.format(configs=" ".join(map(str, paths))) + body


def main() -> None:
    """Entry point of the command line."""
    parser = argparse.ArgumentParser(
        prog=program("workflow.scripts.dvc_stages"), description=__doc__
    )
    parser.add_argument("configs", type=Path, nargs="+", help="config/mini.yaml, …")
    parser.add_argument("--out", type=Path, default=Path("dvc.yaml"))
    options = parser.parse_args()
    write_text(options.out, text_of(options.configs))


if __name__ == "__main__":
    run_command(main)
