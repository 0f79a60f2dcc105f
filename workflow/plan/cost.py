"""Predicted cost of each run of a config: ``python -m workflow.plan.cost CONFIG``."""

import argparse
import math
from pathlib import Path

import ijepa.cost
from ijepa.cores import usable_cores
from ijepa.cost.cards import CPU_UTILISATION, GPUS, UTILISATION
from ijepa.errors import UserError, program, run_command
from ijepa.files import write_text
from workflow.plan.benchmark import read_files


def parser() -> argparse.ArgumentParser:
    """Options of the command line."""
    options = argparse.ArgumentParser(
        prog=program("workflow.plan.cost"),
        description=ijepa.cost.__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    options.add_argument("config", type=Path, nargs="+", help="one file, or several to be merged")
    options.add_argument("--runs", nargs="+", help="of its runs only these")
    options.add_argument(
        "--gpu",
        choices=(*GPUS, "cpu", "here"),
        default="a100-80gb",
        help="cpu trains each run for a while here, on the images in --shards; here is this "
        "machine's card or, where it has none, its CPU by a second's matrix product",
    )
    options.add_argument("--utilisation", type=float, default=UTILISATION, help="share of the peak")
    options.add_argument("--images", action="append", default=[], metavar="DATASET=NUMBER")
    options.add_argument("--shards", type=Path, help="count images in these, such as data/shards")
    options.add_argument("--published", action="store_true", help="also published times")
    options.add_argument("--markdown", action="store_true", help="a table for docs/costs.md")
    options.add_argument("--csv", type=Path, help="file for all numbers")
    return options


def main() -> None:
    """Entry point of the command line."""
    options = parser().parse_args()
    # Imported here: torch takes seconds to import, and --help does not need it.
    from ijepa.cost import predict
    from ijepa.cost.speed import images_per_second, matrix_product_speed
    from ijepa.data.shards import read_index
    from workflow.plan.check import planned

    if not 0 < options.utilisation <= 1:
        raise UserError(f"--utilisation: {options.utilisation} must lie above 0 and up to 1")
    num_images = {}
    for path in options.shards.glob("*/index.json") if options.shards else ():
        shards = read_index(path.parent).splits.get("train", [])
        num_images[path.parent.name] = sum(shard["num_samples"] for shard in shards)
    for option in options.images:
        dataset, _, number = option.partition("=")
        if not number.isdecimal():
            raise UserError(f"--images: {option!r} must be DATASET=NUMBER")
        num_images[dataset] = int(number)
    card = predict.card_here() if options.gpu == "here" else options.gpu
    here = options.gpu in ("here", "cpu")
    _, benchmark = read_files(options.config)
    if not benchmark.runs:
        raise UserError(f"{benchmark.name} has no runs: nothing is pretrained")
    if unknown := set(options.runs or []) - {run.name for run in benchmark.runs}:
        raise UserError(f"--runs: {', '.join(sorted(unknown))} is no run of {benchmark.name}")
    runs = {
        run.name: planned(run)
        for run in benchmark.runs
        if options.runs is None or run.name in options.runs
    }
    speeds, product = None, math.nan
    threads = benchmark.threads or usable_cores()
    if card == "product":
        product = CPU_UTILISATION * matrix_product_speed(threads)
    elif card not in GPUS:
        if options.shards is None:
            raise UserError("--gpu cpu measures on real images: say --shards data/shards")
        configs = {name: plan.run for name, plan in runs.items()}
        speeds = images_per_second(configs, options.shards, threads)
    costs = predict.predict(
        runs, GPUS.get(card), options.utilisation, num_images, speeds, here, product
    )
    if options.csv:
        write_text(options.csv, predict.table_csv(costs))
    if options.markdown:
        print(predict.markdown(costs), end="")
        return
    basis = f"{card} at {options.utilisation:.2f} of its peak" if card in GPUS else "measured here"
    if card == "product":
        basis = f"this machine's CPU at {product / 1e9:.0f} GFLOP/s for each run"
    predict.show(
        f"{benchmark.name}, {basis}",
        [{name: tell(c) for name, tell in predict.COLUMNS.items()} for c in costs],
    )
    total, seeds = sum(c.gpu_hours for c in costs), len(benchmark.seeds)
    print(f"{total * seeds:,.4g} GPU-hours for all runs with {seeds} seed(s), within a factor of 2")
    if (gpu := GPUS.get(card)) and (large := [c.run for c in costs if c.gb_per_gpu > gpu.memory]):
        print(
            f"more than the {gpu.memory:.0f} GB of {card}: {', '.join(large)}: set "
            "activation_checkpointing: true, recipe.optim.accumulate or more gpus"
        )
    if options.published:
        predict.show_published(options.utilisation)


if __name__ == "__main__":
    run_command(main)
