"""Prediction of GPU-hours, memory and energy for the runs of a config (explained in ijepa.cost)."""

import csv
import dataclasses
import io
import math
from collections.abc import Callable
from typing import NamedTuple

import torch
import yaml
from rich.console import Console
from rich.table import Table
from tqdm import tqdm

from ijepa import config
from ijepa.config import RunConfig
from ijepa.cost.cards import GPUS, UTILISATION, Gpu, named
from ijepa.cost.flops import size
from ijepa.cost.published import COSTS, published_costs
from ijepa.data import register
from ijepa.errors import UserError
from ijepa.image_size import sides
from ijepa.method import method_names

REFERENCE = ("ijepa", "ViT-H/14")


@dataclasses.dataclass(frozen=True)
class Cost:
    """Prediction for one run and one seed; None is a value that is not known for this machine."""

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
    """Published GPU-hours of the same network, for this run's epochs, and the hardware."""


def card_here() -> str:
    """Name in GPUS of this machine's cards; ``cpu`` for others, ``product`` if it has none."""
    if not torch.cuda.is_available():
        return "product"
    name = named(card := torch.cuda.get_device_name())
    if name is None:
        print(f"{card} is none of {', '.join(GPUS)}: every run is timed on it instead", flush=True)
    return name or "cpu"


def arch(run: RunConfig) -> str:
    """Name of the encoder in papers."""
    names = {(192, 12): "Ti", (384, 12): "S", (768, 12): "B", (1024, 24): "L", (1280, 32): "H"}
    vit = run.vit
    letter = {**names, (1408, 40): "g"}.get((vit.dim, vit.depth), f"{vit.depth}x{vit.dim}")
    pixels = vit.image_size if vit.is_square else "x".join(map(str, sides(vit.image_size)))
    at = "" if vit.image_size == 224 else f"_{pixels}"
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
    """Prediction for a run on ``gpus`` cards; ``gpu`` None means this machine's cards, or its CPU.

    Then one card's speed is ``speed`` images/s or, if that is not a number, ``flops_per_second``.
    """
    optim = run.recipe.optim
    half = run.precision in ("auto", "bfloat16") and (gpu is None or gpu.bfloat16)
    counted = size(run, optim.batch_size // (gpus * optim.accumulate), half)
    steps = optim.num_steps(num_images)
    images = steps * optim.batch_size
    per_parameter = 4 + 8 + (4 if gpus > 1 else 0)
    memory = 4 * counted.parameters + per_parameter * counted.trained + counted.saved
    if gpu is None:
        speed = flops_per_second / counted.flops if math.isnan(speed) else speed
        hours = images / (speed * gpus) / 3600
    else:
        peak = 1e12 * gpu.peak(run.precision)
        hours = images * counted.flops / (peak * utilisation) / 3600 / gpus
    return Cost(
        name,
        run.method,
        arch(run),
        counted.flops / 1e9,
        steps,
        images,
        gpus,
        memory / 1e9,
        hours * gpus,
        hours,
        None if gpu is None else hours * gpus * gpu.watts / 1000,
    )


class Planned(NamedTuple):
    """Run, and the number of GPUs that train it together."""

    run: RunConfig
    gpus: int = 1


def predict(
    runs: dict[str, Planned],
    gpu: Gpu | None,
    utilisation: float = UTILISATION,
    num_images: dict[str, int] | None = None,
    speeds: dict[str, float] | None = None,
    here: bool = False,
    flops_per_second: float = math.nan,
) -> list[Cost]:
    """Costs of every run, in the order of ``runs``.

    If ``gpu`` is None, ``speeds`` gives the images/s of each run, or ``flops_per_second`` holds for
    all. ``here`` limits the cards to those of this machine, as the run itself would be.

    Raises UserError if a data set's size is not known beforehand.
    """
    costs, published = [], published_costs()
    bar = tqdm(runs.items(), desc="count FLOPs", unit="run", delay=2)
    for name, (run, gpus) in bar:
        speed = speeds[name] if speeds else math.nan
        if here:
            gpus = min(gpus, max(1, torch.cuda.device_count()))
        count = (num_images or {}).get(
            run.dataset, register.load_dataset(run.dataset).splits.get("train")
        )
        if count is None:
            raise UserError(
                f"{register.REGISTER.name}: {run.dataset}.splits.train is not known beforehand: "
                f"say --images {run.dataset}=NUMBER"
            )
        prediction = cost(name, run, count, gpus, gpu, utilisation, speed, flops_per_second)
        hours = _published_hours(prediction, run, published)
        costs.append(dataclasses.replace(prediction, published=hours))
    reference = next((c.gpu_hours for c in costs if (c.method, c.arch) == REFERENCE), None)
    return [
        dataclasses.replace(c, of_reference=c.gpu_hours / reference if reference else None)
        for c in costs
    ]


def _published_hours(own: Cost, run: RunConfig, published: list[dict[str, str]]) -> str:
    """Published GPU-hours of the same network, for this run's epochs, and the hardware."""
    for row in published:
        matches = (row["method"], row["arch"], "imagenet") == (own.method, own.arch, run.dataset)
        if matches and row["gpu_hours"] and row["epochs"]:
            hours = float(row["gpu_hours"]) * run.recipe.optim.epochs / float(row["epochs"])
            return f"{hours:,.0f} {row['hardware'].split(maxsplit=1)[1]}"
    return ""


def held_against_published(utilisation: float = UTILISATION) -> list[tuple[dict[str, str], Cost]]:
    """Published times on known cards, each with the prediction for that card in half precision."""
    pairs = []
    for row in published_costs():
        number, card = row["hardware"].split(maxsplit=1)
        gpu = next((g for name, g in GPUS.items() if name.startswith(card.lower())), None)
        if row["method"] in method_names() and row["gpu_hours"] and row["epochs"] and gpu:
            letter, patch = row["arch"].removeprefix("ViT-").split("/")
            sizes = {"S": "small", "B": "base", "L": "large", "H": "huge"}
            recipe = yaml.safe_load(row["recipe"]) or {}
            raw = {
                "method": row["method"],
                "dataset": "imagenet",
                "vit": {"size": sizes[letter], "patch_size": int(patch)},
                "recipe": {**recipe, "optim": {"epochs": float(row["epochs"])}},
            }
            run = config.parse_run(raw, str(COSTS))
            images = register.load_dataset("imagenet").splits["train"] or 0
            card_in_half = gpu._replace(bfloat16=True)
            prediction = cost(row["method"], run, images, int(number), card_in_half, utilisation)
            pairs.append((row, prediction))
    return pairs


def figures(value: float | None, unit: str = "") -> str:
    """Number with three significant figures; "" for None."""
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
}
MARKDOWN = ("run", "gpus", "memory per GPU (estimate)", "GPU-hours", "hours", "kWh")


def markdown(costs: list[Cost]) -> str:
    """Markdown table of the columns that a plan needs, for the README."""
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
    """Print predictions beside published times, which are of other code than this."""
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
    """CSV table of all fields, a row for each run."""
    file = io.StringIO()
    writer = csv.DictWriter(file, [f.name for f in dataclasses.fields(Cost)], lineterminator="\n")
    writer.writeheader()
    writer.writerows(dataclasses.asdict(c) for c in costs)
    return file.getvalue()
