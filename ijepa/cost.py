"""What each run of a config will cost, before anything is queued: ``python -m ijepa.cost --help``.

FLOPs, and the bytes that a step saves, are counted without weights or a GPU (ijepa/flops.py).
GPU-hours = images x FLOPs per image / (peak x utilisation). UTILISATION is an assumption, derived
from one number: "under 1,200 GPU-hours" (paper) and 72 hours on 16 A100 80 GB (release's README)
for ViT-H/14. It therefore holds what the authors' loader, kernels and network held up, and an upper
bound of hours: other code on the same card can be twice as fast. For H100 and H200 it is a guess.
On V100 it is twice too high for code of 2021: ``--published`` sets predictions in half precision
beside what papers tell of MAE, DINO and iBOT, which agree with each other at 0.10. The error of
GPU-hours is therefore a factor of two; ratios of runs on one card are better than that.

The ratios of the paper are of hours, on cards that it does not name. In FLOPs, MAE's ViT-H/14 (1600
epochs) costs 2.3 times I-JEPA's (300 epochs), not "over 10", and iBOT's ViT-S/16 half as much, not
"over 2.5 times": the rest of those factors is cards and software, or is not explained.

``--gpu cpu`` trains each run for a while on this machine (ijepa/speed.py). ``--gpu here`` does so
where this machine has cards that are none of those below; where it has none, a second's matrix
product is its peak, of which small networks reach CPU_UTILISATION.

Memory = float32 weights, averages and their copies included, gradients (twice with several GPUs:
DDP has its buckets), two moments of AdamW, and what one part of a GPU's batch saves for the
backward pass. Not in it are what lives for moments only, the allocator's gaps and CUDA's own (about
1 GB). It was not measured on a GPU; expect 10 to 30 % more.

kWh = GPU-hours x the board's limit: an upper bound for the boards, without hosts, network, cooling.
"""

import argparse
import csv
import dataclasses
import io
import math
import os
import statistics
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

from ijepa.errors import UserError, run_command


class Gpu(NamedTuple):
    """A card's peaks (dense matrix products, TFLOP/s), memory (GB) and board limit (W)."""

    half: float
    single: float
    memory: float
    watts: float
    bfloat16: bool = True


# The vendor's data sheets, SXM boards: "NVIDIA V100" (2020), "NVIDIA A100" (2021), "NVIDIA H100"
# (2023), "NVIDIA H200" (2024). ``half`` is bfloat16, a half of what they give "with sparsity"; on
# V100 float16, which the releases used, while ijepa.precision computes there in float32.
GPUS = {
    "v100-16gb": Gpu(125, 15.7, 16, 300, bfloat16=False),
    "v100-32gb": Gpu(125, 15.7, 32, 300, bfloat16=False),
    "a100-40gb": Gpu(312, 19.5, 40, 400),
    "a100-80gb": Gpu(312, 19.5, 80, 400),
    "h100": Gpu(989, 67, 80, 700),
    "h200": Gpu(989, 67, 141, 700),
}
UTILISATION = 0.2


def parser() -> argparse.ArgumentParser:
    """Options of the command line."""
    options = argparse.ArgumentParser(
        prog="python -m ijepa.cost",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    options.add_argument("config", type=Path, help="a benchmark, such as config/paper.yaml")
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
    options.add_argument("--against", type=Path, help="results of the config, such as results/mini")
    options.add_argument("--published", action="store_true", help="also published times")
    options.add_argument("--markdown", action="store_true", help="a table for the README instead")
    options.add_argument("--json", type=Path, help="file for all numbers")
    options.add_argument("--csv", type=Path, help="file for all numbers")
    return options


if __name__ == "__main__":
    parser().parse_args()  # --help is answered before torch is there, which takes seconds

import torch
import yaml
from rich.console import Console
from rich.table import Table

from ijepa import config, methods
from ijepa.config import RunConfig
from ijepa.data import register
from ijepa.data.shards import read_index
from ijepa.files import read_json, read_yaml, write_json, write_text
from ijepa.flops import size
from ijepa.speed import images_per_second, matrix_product_speed

PUBLISHED = Path(__file__).parents[1] / "results" / "published" / "costs.csv"


CPU_UTILISATION = 0.43
"""Share that the steps of config/mini.yaml reach beside a loader (LOG.md, 2026-11-29)."""
REFERENCE = ("ijepa", "ViT-H/14")


@dataclasses.dataclass(frozen=True)
class Cost:
    """One run's prediction, for one seed. None is what is not known of this machine."""

    run: str
    method: str
    arch: str
    gflop_per_image: float
    steps: int
    images: int
    gpus: int
    gb_per_gpu: float
    gpu_hours: float
    hours: float
    kwh: float | None
    of_reference: float | None = None
    """GPU-hours over those of I-JEPA's ViT-H/14 in the same config."""
    published: str = ""
    measured_hours: float | None = None
    """Of the same run, from its results."""


def card_here() -> str:
    """Name in GPUS of this machine's cards; ``cpu`` for others, ``product`` where it has none."""
    if not torch.cuda.is_available():
        return "product"
    told = torch.cuda.get_device_name()  # as "NVIDIA A100-SXM4-80GB"
    found = [name for name in GPUS if all(part in told.lower() for part in name.split("-"))]
    if not found:
        print(f"{told} is none of {', '.join(GPUS)}: every run is timed on it instead", flush=True)
    return found[0] if found else "cpu"


def arch(run: RunConfig) -> str:
    """The encoder's name in papers."""
    names = {(192, 12): "Ti", (384, 12): "S", (768, 12): "B", (1024, 24): "L", (1280, 32): "H"}
    vit = run.vit
    letter = {**names, (1408, 40): "g"}.get((vit.dim, vit.depth), f"{vit.depth}x{vit.dim}")
    at = "" if vit.image_size == 224 else f"_{vit.image_size}"
    return f"ViT-{letter}/{vit.patch_size}{at}"


def cost(
    name: str,
    run: RunConfig,
    num_images: int,
    gpus: int,
    gpu: Gpu | None,
    utilisation: float = UTILISATION,
    speed: float = math.nan,
    flops_per_second: float = math.nan,
) -> Cost:
    """The prediction for a run on so many cards; None are those of this machine, or its CPU.

    Of one of these ``speed`` is images/s, or else ``flops_per_second`` what it computes.
    """
    optim = run.recipe.optim
    half = run.precision != "float32" and (gpu is None or gpu.bfloat16)
    one = size(run, optim.batch_size // (gpus * optim.accumulate), half)
    steps = optim.num_steps(num_images)
    images = steps * optim.batch_size
    per_parameter = 4 + 8 + (4 if gpus > 1 else 0)
    memory = 4 * one.parameters + per_parameter * one.trained + one.saved
    if gpu is None:
        speed = flops_per_second / one.flops if math.isnan(speed) else speed
        hours = images / (speed * gpus) / 3600
    else:
        peak = 1e12 * (gpu.half if half else gpu.single)
        hours = images * one.flops / (peak * utilisation) / 3600 / gpus
    return Cost(
        name,
        run.method,
        arch(run),
        one.flops / 1e9,
        steps,
        images,
        gpus,
        memory / 1e9,
        hours * gpus,
        hours,
        None if gpu is None else hours * gpus * gpu.watts / 1000,
    )


def read(path: Path) -> dict[str, Any]:
    """A benchmark's config that has runs."""
    benchmark = read_yaml(path)
    if not isinstance(benchmark, dict) or not benchmark.get("runs"):
        raise UserError(f"{path}: runs is missing: without pretraining there is nothing to predict")
    return benchmark


def run_of(benchmark: dict[str, Any], item: dict[str, Any]) -> RunConfig:
    """The run of one of a config's ``runs``, the config's defaults applied as the workflow does.

    Raises UserError for any mistake in it, also for GPUs that cannot share its batches.
    """
    keys = ("dataset", "vit")
    raw: dict[str, Any] = {key: benchmark[key] for key in keys if key in benchmark}
    raw |= {key: item[key] for key in item if key not in ("name", "gpus")}
    run = config.parse(raw, f"runs.{item['name']}")
    gpus, optim = item.get("gpus", 1), run.recipe.optim
    if optim.batch_size % (gpus * optim.accumulate):
        raise UserError(
            f"runs.{item['name']}.gpus: {gpus} (times recipe.optim.accumulate {optim.accumulate}) "
            f"does not divide recipe.optim.batch_size {optim.batch_size}: choose a divisor"
        )
    return run


def predict(
    benchmark: dict[str, Any],
    gpu: Gpu | None,
    utilisation: float = UTILISATION,
    num_images: dict[str, int] | None = None,
    speeds: dict[str, float] | None = None,
    here: bool = False,
    flops_per_second: float = math.nan,
) -> list[Cost]:
    """The prediction for every run of a config.

    Where gpu is None ``speeds`` are images/s of each, or ``flops_per_second`` is of all.
    ``here``: on no more cards than this machine has, as the run itself would be.

    Raises UserError where a data set's size is not known beforehand.
    """
    costs, published = [], list(published_costs())
    for item in benchmark["runs"]:
        name, gpus, run = item["name"], item.get("gpus", 1), run_of(benchmark, item)
        speed = speeds[name] if speeds else math.nan
        if here:
            gpus = min(gpus, max(1, torch.cuda.device_count()))
        known = (num_images or {}).get(run.dataset, register.load(run.dataset).splits.get("train"))
        if known is None:
            raise UserError(
                f"{register.REGISTER.name}: {run.dataset}.splits.train is not known beforehand: "
                f"say --images {run.dataset}=NUMBER"
            )
        one = cost(name, run, known, gpus, gpu, utilisation, speed, flops_per_second)
        costs.append(dataclasses.replace(one, published=_told(one, run, published)))
    reference = next((c.gpu_hours for c in costs if (c.method, c.arch) == REFERENCE), None)
    return [
        dataclasses.replace(c, of_reference=c.gpu_hours / reference if reference else None)
        for c in costs
    ]


def published_costs() -> Iterator[dict[str, str]]:
    """Training times that papers and repositories tell."""
    with PUBLISHED.open(encoding="utf-8", newline="") as file:
        yield from csv.DictReader(file)


def _told(one: Cost, run: RunConfig, published: list[dict[str, str]]) -> str:
    """Published GPU-hours of the same network, for this run's epochs."""
    for row in published:
        same = (row["method"], row["arch"], "imagenet") == (one.method, one.arch, run.dataset)
        if same and row["gpu_hours"] and row["epochs"]:
            hours = float(row["gpu_hours"]) * run.recipe.optim.epochs / float(row["epochs"])
            return f"{hours:,.0f} {row['hardware'].split(maxsplit=1)[1]}"
    return ""


def held_against_published(utilisation: float = UTILISATION) -> list[tuple[dict[str, str], Cost]]:
    """Published times on known cards, each with the prediction for that card in half precision."""
    pairs = []
    for row in published_costs():
        number, card = row["hardware"].split(maxsplit=1)
        gpu = next((g for name, g in GPUS.items() if name.startswith(card.lower())), None)
        if row["method"] in methods.names() and row["gpu_hours"] and row["epochs"] and gpu:
            letter, patch = row["arch"].removeprefix("ViT-").split("/")
            sizes = {"S": "small", "B": "base", "L": "large", "H": "huge"}
            recipe = yaml.safe_load(row["recipe"]) or {}
            raw = {
                "method": row["method"],
                "dataset": "imagenet",
                "vit": {"size": sizes[letter], "patch_size": int(patch)},
                "recipe": {**recipe, "optim": {"epochs": float(row["epochs"])}},
            }
            run = config.parse(raw, str(PUBLISHED))
            images = register.load("imagenet").splits["train"] or 0
            card_in_half = gpu._replace(bfloat16=True)
            one = cost(row["method"], run, images, int(number), card_in_half, utilisation)
            pairs.append((row, one))
    return pairs


def measured_hours(results: Path, one: Cost) -> float | None:
    """Hours that a run took, averaged over its seeds and scaled to its images, if there are any."""
    hours = {}
    for path in sorted(results.glob(f"evaluations/{one.run}/seed*/*.json")):
        facts = read_json(path)["about"].get("facts", {})
        if facts.get("images_seen"):
            hours[path.parent] = facts["train_seconds"] / 3600 * one.images / facts["images_seen"]
    return statistics.mean(hours.values()) if hours else None


def figures(value: float | None, unit: str = "") -> str:
    """Three figures that tell, or nothing for what is not known."""
    if value is None:
        return ""
    return f"{value:,.0f}{unit}" if value >= 100 else f"{value:.3g}{unit}"


COLUMNS: dict[str, Callable[[Cost], str]] = {
    "run": lambda c: c.run,
    "GFLOP / image": lambda c: figures(c.gflop_per_image),
    "steps": lambda c: f"{c.steps:,}",
    "images": lambda c: figures(c.images / 1e6, " M"),
    "gpus": lambda c: str(c.gpus),
    "memory per GPU (estimate)": lambda c: figures(c.gb_per_gpu, " GB"),
    "GPU-hours": lambda c: figures(c.gpu_hours),
    "hours": lambda c: figures(c.hours),
    "kWh": lambda c: figures(c.kwh),
    "of I-JEPA H/14": lambda c: f"{c.of_reference:.2f}" if c.of_reference else "",
    "published": lambda c: c.published,
    "measured hours": lambda c: figures(c.measured_hours),
    "predicted / measured": lambda c: (
        f"{c.hours / c.measured_hours:.2f}" if c.measured_hours else ""
    ),
}
MARKDOWN = ("run", "gpus", "memory per GPU (estimate)", "GPU-hours", "hours", "kWh")


def markdown(costs: list[Cost]) -> str:
    """The columns that a plan needs, for the README."""
    lines = ["| " + " | ".join(MARKDOWN) + " |", "|---" + "|---:" * (len(MARKDOWN) - 1) + "|"]
    lines += ["| " + " | ".join(COLUMNS[name](c) for name in MARKDOWN) + " |" for c in costs]
    return "\n".join(lines) + "\n"


def show(title: str, cells: list[dict[str, str]]) -> None:
    """Print a table, without its empty columns."""
    table = Table(title=title)
    names = [name for name in cells[0] if any(row[name] for row in cells)]
    for name in names:
        first = name == names[0]
        table.add_column(name, justify="left" if first else "right", no_wrap=first)
    for row in cells:
        table.add_row(*(row[name] for name in names))
    Console(width=max(Console().width, 130)).print(table)


def show_published(utilisation: float) -> None:
    """Print how far predictions are from published times, which are none of this code's."""
    pairs = held_against_published(utilisation)
    hours = next(float(r["gpu_hours"]) for r, c in pairs if (c.method, c.arch) == REFERENCE)
    flop = next(c.images * c.gflop_per_image for _, c in pairs if (c.method, c.arch) == REFERENCE)
    cells = [
        {
            "run": f"{c.method} {c.arch}, {row['epochs']} epochs",
            "hardware": row["hardware"],
            "published GPU-hours": f"{float(row['gpu_hours']):,.0f}",
            "predicted": f"{c.gpu_hours:,.0f}",
            "predicted / published": f"{c.gpu_hours / float(row['gpu_hours']):.2f}",
            "GPU-hours of I-JEPA H/14's": f"{float(row['gpu_hours']) / hours:.2f}",
            "FLOPs of I-JEPA H/14's": f"{c.images * c.gflop_per_image / flop:.2f}",
        }
        for row, c in pairs
    ]
    show(f"held against published times, at a utilisation of {utilisation:.2f}", cells)


def table_csv(costs: list[Cost]) -> str:
    """All fields, a row for each run."""
    file = io.StringIO()
    writer = csv.DictWriter(file, [f.name for f in dataclasses.fields(Cost)], lineterminator="\n")
    writer.writeheader()
    writer.writerows(dataclasses.asdict(c) for c in costs)
    return file.getvalue()


def main() -> None:
    """Entry point of the command line."""
    options = parser().parse_args()
    if not 0 < options.utilisation <= 1:
        raise UserError(f"--utilisation: {options.utilisation} must lie above 0 and up to 1")
    num_images = {}
    for path in options.shards.glob("*/index.json") if options.shards else ():
        shards = read_index(path.parent).splits.get("train", [])
        num_images[path.parent.name] = sum(shard["num_samples"] for shard in shards)
    for told in options.images:
        dataset, _, number = told.partition("=")
        if not number.isdecimal():
            raise UserError(f"--images: {told!r} must be DATASET=NUMBER")
        num_images[dataset] = int(number)
    card = card_here() if options.gpu == "here" else options.gpu
    here = options.gpu in ("here", "cpu")
    benchmark = read(options.config)
    speeds, product = None, math.nan
    threads = benchmark.get("threads") or len(os.sched_getaffinity(0))
    if card == "product":
        product = CPU_UTILISATION * matrix_product_speed(threads)
    elif card not in GPUS:
        if options.shards is None:
            raise UserError("--gpu cpu measures on real images: say --shards data/shards")
        runs = {item["name"]: run_of(benchmark, item) for item in benchmark["runs"]}
        speeds = images_per_second(runs, options.shards, threads)
    costs = predict(
        benchmark, GPUS.get(card), options.utilisation, num_images, speeds, here, product
    )
    if options.against:
        costs = [
            dataclasses.replace(c, measured_hours=measured_hours(options.against, c)) for c in costs
        ]
    if options.json:
        about = {"gpu": card, "utilisation": options.utilisation if card in GPUS else None}
        write_json(options.json, about | {"runs": [dataclasses.asdict(c) for c in costs]})
    if options.csv:
        write_text(options.csv, table_csv(costs))
    if options.markdown:
        print(markdown(costs), end="")
        return
    how = f"{card} at {options.utilisation:.2f} of its peak" if card in GPUS else "measured here"
    if card == "product":
        how = f"this machine's CPU at {product / 1e9:.0f} GFLOP/s for each run"
    show(
        f"{options.config}, {how}",
        [{name: tell(c) for name, tell in COLUMNS.items()} for c in costs],
    )
    total, seeds = sum(c.gpu_hours for c in costs), len(benchmark.get("seeds", [0]))
    print(f"{total * seeds:,.4g} GPU-hours for all runs with {seeds} seed(s), within a factor of 2")
    if (gpu := GPUS.get(card)) and (large := [c.run for c in costs if c.gb_per_gpu > gpu.memory]):
        print(
            f"more than the {gpu.memory:.0f} GB of {card}: {', '.join(large)}: set "
            "activation_checkpointing: true, recipe.optim.accumulate or more gpus"
        )
    if options.published:
        show_published(options.utilisation)


if __name__ == "__main__":
    run_command(main)
