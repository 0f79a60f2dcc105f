"""Prediction of GPU-hours, memory and energy for the runs of a config; ijepa.cost says how."""

import csv
import dataclasses
import io
import math
from collections.abc import Callable, Iterator
from typing import NamedTuple

import torch
import yaml
from rich.console import Console
from rich.table import Table

from ijepa import config
from ijepa.config import RunConfig
from ijepa.cost.cards import GPUS, UTILISATION, Gpu
from ijepa.cost.flops import size
from ijepa.data import register
from ijepa.errors import UserError
from ijepa.files import ROOT
from ijepa.method import method_names

PUBLISHED = ROOT / "results" / "published" / "costs.csv"


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


class Planned(NamedTuple):
    """A run, and how many GPUs train it together."""

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
    """Costs of every run, by name.

    Where gpu is None ``speeds`` are images/s of each, or ``flops_per_second`` is of all.
    ``here``: on no more cards than this machine has, as the run itself would be.

    Raises UserError where a data set's size is not known beforehand.
    """
    costs, published = [], list(published_costs())
    for name, (run, gpus) in runs.items():
        speed = speeds[name] if speeds else math.nan
        if here:
            gpus = min(gpus, max(1, torch.cuda.device_count()))
        known = (num_images or {}).get(
            run.dataset, register.load_dataset(run.dataset).splits.get("train")
        )
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
            run = config.parse_run(raw, str(PUBLISHED))
            images = register.load_dataset("imagenet").splits["train"] or 0
            card_in_half = gpu._replace(bfloat16=True)
            one = cost(row["method"], run, images, int(number), card_in_half, utilisation)
            pairs.append((row, one))
    return pairs


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
