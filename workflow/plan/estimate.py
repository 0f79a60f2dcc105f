"""Time that a config takes on this machine: ``python -m workflow.plan.estimate CONFIG``.

A job takes its FLOPs over the speed of a matrix product here. Times that do not depend on FLOPs
were measured on two cores of 78 GFLOP/s each (SECONDS, LOG.md 2026-11-29) and are scaled to this
machine. The estimate says nothing of a cluster, where queues decide.
"""

import argparse
import json
from pathlib import Path
from typing import TYPE_CHECKING

from evals.pooling import NUM_LAYERS
from evals.protocol import Counts, configure, flops, load_evaluation
from ijepa.architecture import ViTConfig
from ijepa.cores import usable_cores
from ijepa.cost.cards import CPU_UTILISATION
from ijepa.data import register
from ijepa.encoder_file import PIXELS, PIXELS_SIZE, UNTRAINED
from ijepa.errors import UserError, program, run_command
from workflow.plan.benchmark import Benchmark, read_files
from workflow.plan.grid import Grid
from workflow.plan.paths import Group

if TYPE_CHECKING:
    from ijepa.cost.disk import Disk

Seconds = dict[tuple[str, ...], float]
"""Seconds of each job, by its rule and its wildcards."""

REFERENCE_SPEED = 78e9
"""FLOP/s of one core of the machine on which SECONDS were measured."""
SECONDS = {
    "start": 8.0,  # imports of torch and timm, and everything else before the first image
    "light": 2.0,  # a job without torch
    "report": 20.0,
    "predict_cost": 14.0,
    "raw image": 0.1e-3,
    "shard image": 0.45e-3,
    "rendered image": 8e-3,
    "token image": 2e-3,
    "head": 3.0e-10,  # linear heads: for each image, epoch, feature and head
    "evaluation": 3.0,  # any other evaluation of features: neighbours, logistic regression
}


def job_seconds(
    grid: Grid,
    gflops: dict[str, float],
    vits: dict[str, ViTConfig],
    splits: dict[str, dict[str, int]],
    speed: float,
) -> Seconds:
    """Seconds of every job of a grid on one core of ``speed`` FLOP/s.

    Args:
        grid: The config.
        gflops: FLOPs (1e9) of pretraining by run, without the control.
        vits: Each run's encoder.
        splits: Images of each data set by split.
        speed: FLOP/s of a matrix product with the threads of a job.
    """
    slower = REFERENCE_SPEED / speed
    cost = {name: seconds * slower for name, seconds in SECONDS.items()}
    network = speed * CPU_UTILISATION
    seconds: Seconds = {}
    for dataset in grid.datasets:
        images = sum(splits[dataset].values())
        is_drawn = "generate" in register.load_dataset(dataset).options  # here, on all cores
        raw = cost["rendered image"] * grid.cores if is_drawn else cost["raw image"]
        seconds["fetch", dataset] = cost["light"] + images * raw
        seconds["build_shards", dataset] = cost["light"] + images * cost["shard image"]
    for run, tokenizer in grid.tokenizers.items():
        dataset = grid.runs[run].dataset
        images = splits[dataset]["train"]
        seconds["tokenise", dataset, tokenizer] = cost["start"] + images * cost["token image"]
    for run, seed in grid.trained:
        spent = 1e9 * gflops.get(run, 0.0) / network
        seconds["pretrain", run, str(seed)] = cost["start"] + spent
    for group, evaluations in grid.groups.items():
        seconds["evaluate_features", *map(str, group)] = _group_seconds(
            grid, group, evaluations, vits, splits, cost, network
        )
    for cell in grid.cells:
        if grid.uses(cell.run, cell.evaluation) != "features":
            spent = _images_seconds(grid, cell.run, cell.evaluation, vits, splits, network)
            seconds["evaluate", *map(str, cell)] = cost["start"] + spent
    for rule in ("gpu_hours", "metrics", "tabulate"):
        seconds[rule,] = cost["light"]
    seconds["report",] = cost["report"]
    seconds["predict_cost",] = cost["predict_cost"]
    return seconds


def _evaluated(grid: Grid, dataset: str, splits: dict[str, dict[str, int]]) -> dict[str, int]:
    return {**splits[dataset], **grid.limit(dataset)}


def _group_seconds(
    grid: Grid,
    group: Group,
    evaluations: list[str],
    vits: dict[str, ViTConfig],
    splits: dict[str, dict[str, int]],
    cost: dict[str, float],
    network: float,
) -> float:
    """Seconds to extract the features of a group and to make every evaluation of them."""
    counts = _evaluated(grid, group.dataset, splits)
    images = sum(counts.values())
    if group.run == PIXELS:
        channels = register.load_dataset(group.dataset).channels
        seconds, width, layers = cost["start"], channels * PIXELS_SIZE**2, 1
    else:
        vit = vits[group.run]
        seconds = cost["start"] + images * vit.forward_flops / network
        width, layers = vit.dim, min(NUM_LAYERS, vit.depth)
    for name in evaluations:
        item = grid.evaluations[name]
        if hook := getattr(load_evaluation(item.evaluation), "features_read", None):
            config = configure(item.evaluation, item.settings(group.run), item.name)
            seconds += cost["head"] * counts["train"] * hook(config, width, layers)
        else:
            seconds += cost["evaluation"]
    return seconds


def _images_seconds(
    grid: Grid,
    run: str,
    evaluation: str,
    vits: dict[str, ViTConfig],
    splits: dict[str, dict[str, int]],
    network: float,
) -> float:
    """Seconds of an evaluation that runs the encoder, fine-tuned or frozen under a head."""
    item = grid.evaluations[evaluation]
    config = configure(item.evaluation, item.settings(run), item.name)
    images = _evaluated(grid, item.dataset, splits)
    classes = register.load_dataset(item.dataset).num_classes(item.label) or 1
    counts = Counts(images["train"], images["test"], classes)
    return flops(item.evaluation, config, vits[run], counts) / network


def wall_seconds(grid: Grid, seconds: Seconds) -> float:
    """Seconds of the whole plan on all cores: no job starts before the files that it needs.

    Shards come first, then the jobs of MIDDLE side by side, then tables and report. Snakemake's
    scheduler nearly reaches that time.
    """
    at_once = max(1, grid.cores // grid.threads)
    data = sum(value for key, value in seconds.items() if key[0] in ("fetch", "build_shards"))
    ends = sum(value for key, value in seconds.items() if key[0] in ("gpu_hours", "tabulate"))
    middle = [value for key, value in seconds.items() if key[0] in MIDDLE]
    longest = max(middle, default=0.0)
    return data / grid.cores + max(sum(middle) / at_once, longest) + ends + seconds["report",]


MIDDLE = {"tokenise", "pretrain", "evaluate_features", "evaluate", "predict_cost", "metrics"}
"""Rules whose jobs run side by side."""


def estimate(benchmark: Benchmark, cores: int) -> tuple[Seconds, float, float]:
    """Seconds of every job and of the whole on this machine, and FLOP/s of one job."""
    # Imported here: commands that only plan need no network.
    from ijepa.cost.predict import predict
    from ijepa.cost.speed import matrix_product_speed
    from workflow.plan.check import planned

    grid = Grid(benchmark, cores)
    speed = matrix_product_speed(grid.threads)
    runs = {run.name: planned(run) for run in grid.costing}
    splits = {dataset: _sizes(grid, dataset) for dataset in grid.datasets}
    num_images = {name: counts["train"] for name, counts in splits.items() if "train" in counts}
    costs = predict(runs, None, num_images=num_images)
    gflops = {cost.run: cost.gflop_per_image * cost.images for cost in costs}
    vits = {name: plan.run.vit for name, plan in runs.items()}
    if vits:
        vits[UNTRAINED] = next(iter(vits.values()))
    vits |= {name: vits[run] for name, (run, _) in grid.kept.items() if run in vits}
    for name in grid.released:  # the size of published weights is known only when they are read
        vits[name] = ViTConfig()
    seconds = job_seconds(grid, gflops, vits, splits, speed)
    return seconds, wall_seconds(grid, seconds), speed


def disk_of_runs(grid: Grid) -> dict[str, "Disk"]:
    """Bytes that every run which is trained keeps of a seed, the control's among them."""
    from ijepa.cost.disk import disk
    from workflow.plan.check import planned

    return {name: disk(planned(grid.runs[name]).run) for name in dict(grid.trained)}


def kept_bytes(grid: Grid) -> int:
    """Bytes that all runs of a config keep together."""
    of_run = disk_of_runs(grid)
    return sum(of_run[run].total for run, _ in grid.trained)


def _sizes(grid: Grid, dataset: str) -> dict[str, int]:
    """Images by split, of the shards if they are there, else of the register.

    Raises UserError if neither knows them.
    """
    from ijepa.data.shards import read_index

    if Path(grid.index(dataset)).exists():
        splits = read_index(Path(grid.shards(dataset))).splits
        return {
            split: sum(shard["num_samples"] for shard in shards) for split, shards in splits.items()
        }
    counts: dict[str, int] = {}
    for split, count in register.load_dataset(dataset).splits.items():
        if count is None:
            raise UserError(
                f"{register.REGISTER.name}: {dataset}.splits.{split} is null, so that its size is "
                f"not known before the shards are made (make shards DATASET={dataset})"
            )
        counts[split] = count
    return counts


def main() -> None:
    """Entry point of the command line."""
    parser = argparse.ArgumentParser(prog=program("workflow.plan.estimate"), description=__doc__)
    parser.add_argument("config", type=Path, nargs="+", help="one file, or several to be merged")
    parser.add_argument("--cores", type=int, default=usable_cores())
    parser.add_argument("--json", action="store_true", help="every job, for another program")
    options = parser.parse_args()
    _, benchmark = read_files(options.config)
    seconds, wall, speed = estimate(benchmark, options.cores)
    size = kept_bytes(Grid(benchmark))
    if options.json:
        jobs = [[list(key), value] for key, value in seconds.items()]
        print(json.dumps({"jobs": jobs, "wall": wall, "speed": speed, "bytes": size}))
        return
    for key, value in seconds.items():
        print(f"{' '.join(key):50} {value:6.0f} s")
    print(f"{len(seconds)} jobs, {wall / 60:.1f} minutes on {options.cores} cores")
    print(f"({speed / 1e9:.0f} GFLOP/s in a matrix product of one job)")
    print(f"{size / 1e9:.3g} GB of encoders and networks on disk at the end")


if __name__ == "__main__":
    run_command(main)
