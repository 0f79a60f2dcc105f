"""Speed of this machine, beside a plain implementation: ``make bench``.

Subjects are a training step of I-JEPA with its parts, the loader, the masks, a linear probe and the
extraction of features. Ours and the plain one (benchmarks/plain.py) run in turn in one process, so
that other work of the machine slows both alike; a number is the median of ``--repeats``. The share
is of a matrix product's speed on the same machine, in the same number format.

``benchmarks/results/MACHINE.json`` has the numbers, the commit and versions.
``python -m benchmarks.bench --table`` writes the table of all machines into docs/costs.md.
"""

import argparse
import json
import re
import resource
import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import replace
from functools import partial
from importlib.util import find_spec
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks import plain
from benchmarks.jpegs import Jpegs
from evals.features import _features
from evals.heads import Heads, Optimizer
from evals.replicas import replicas
from ijepa.allocator import keep_freed_memory
from ijepa.blocks import compile_blocks
from ijepa.config import RunConfig, parse_run
from ijepa.cores import usable_cores
from ijepa.cost.flops import size
from ijepa.cost.speed import matrix_product_speed
from ijepa.data.loader import Steps, TrainingViews, training_batches
from ijepa.data.register import load_dataset
from ijepa.data.transforms import normalise
from ijepa.files import ROOT, write_json, write_text
from ijepa.masking import Masks
from ijepa.method import Batch
from ijepa.methods.ijepa import Method
from ijepa.optim import adamw
from ijepa.precision import choose_attention, is_bfloat16, kernels, precision
from ijepa.provenance import here
from ijepa.randomness import generator
from ijepa.ranges import Compile, Pixels
from ijepa.transfer import fetched, placed
from ijepa.update import gradients, update
from ijepa.vit import take

RESULTS = ROOT / "benchmarks" / "results"
COSTS = ROOT / "docs" / "costs.md"
PROBE_IMAGES = 512
"""Batch of a probe, config/mini.yaml's."""
MARK = "<!-- python -m benchmarks.bench --table -->"

SHAPES: dict[str, dict[str, Any]] = {
    "mini": {
        "dataset": "cifar10",
        "vit": {"image_size": 32, "patch_size": 4, "dim": 128, "depth": 3, "num_heads": 2},
        "recipe": {"preset": "tiny"},
    },
    "tiny36": {
        "dataset": "cifar10",
        "vit": {"image_size": 36, "patch_size": 4, "size": "tiny"},
        "recipe": {"predictor_depth": 6, "optim": {"batch_size": 128}},
    },
    "small16": {
        "dataset": "imagenet",
        "vit": {"size": "small", "patch_size": 16},
        "recipe": {"preset": "small", "optim": {"batch_size": 16}},
    },
    "base16": {
        "dataset": "imagenet",
        "vit": {"size": "base", "patch_size": 16},
        "recipe": {"preset": "base", "optim": {"batch_size": 512}},
    },
    "huge14": {
        "dataset": "imagenet",
        "vit": {"size": "huge", "patch_size": 14},
        "recipe": {"optim": {"batch_size": 128}},
    },
}


THREADS = {"mini": 1}
"""Threads of a step, as config/mini.yaml has them; of other shapes all cores."""


class Clock:
    """Seconds of named parts of repeated work, the device's queue included."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.seconds: dict[str, list[float]] = {}

    @contextmanager
    def part(self, name: str) -> Iterator[None]:
        """Time the body; on a GPU both ends wait for the device."""
        self.wait()
        begun = time.perf_counter()
        yield
        self.wait()
        self.seconds.setdefault(name, []).append(time.perf_counter() - begun)

    def wait(self) -> None:
        """Wait until the device has done what is queued."""
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)

    def median(self, name: str) -> float:
        """Median of a part's seconds, without the first, which warms up."""
        return statistics.median(self.seconds[name][1:])


def compare(
    device: torch.device, repeats: int, ours: Callable[[], object], theirs: Callable[[], object]
) -> tuple[float, float]:
    """Median seconds of both, which run in turn."""
    clock = Clock(device)
    for _ in range(repeats + 1):
        for name, work in (("ours", ours), ("plain", theirs)):
            with clock.part(name):
                work()
    return clock.median("ours"), clock.median("plain")


def product(device: torch.device, setting: str) -> float:
    """FLOP/s of a large matrix product in the format of a setting."""
    if device.type == "cpu":
        return matrix_product_speed(torch.get_num_threads(), setting=setting)
    side, clock = 8192, Clock(device)
    kind = torch.bfloat16 if is_bfloat16(setting, device) else torch.float32
    a, b = torch.randn(2, side, side, device=device, dtype=kind)
    for _ in range(10):
        with clock.part("product"):
            a @ b
    return 2 * side**3 / clock.median("product")


class Bench:
    """Subjects of one shape on one device."""

    def __init__(self, run: RunConfig, batch_size: int, repeats: int, compiled: Compile) -> None:
        self.run, self.images, self.repeats = run, batch_size, repeats
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        torch.manual_seed(0)
        self.method = Method(run.recipe, run.vit).to(self.device)  # type: ignore[arg-type]
        self.plain = Method(run.recipe, run.vit).to(self.device)  # type: ignore[arg-type]
        choose_attention(self.method, run.precision, self.device)
        compile_blocks(self.method, compiled)
        plain.explicit(self.plain)
        self.jpegs = Jpegs(2 * batch_size, 500 if run.vit.side >= 96 else 40)
        side = run.vit.side
        self.bytes = torch.randint(256, (batch_size, side, side, 3), dtype=torch.uint8)
        self.workers = max(1, usable_cores() - 1)

    def measured(self) -> dict[str, Any]:
        """Numbers of every subject, by name."""
        half = is_bfloat16(self.run.precision, self.device)
        flops = size(self.run, self.images, half).flops
        peak = product(self.device, self.run.precision)
        subjects: dict[str, tuple[Callable[[], tuple[float, float]], int]] = {
            "step": (self.step, self.images),
            "loader": (self.loader, self.images),
            "masks": (self.masks, self.images),
            "probe": (self.probe, PROBE_IMAGES),
        }
        if self.run.precision == "auto":
            subjects["evaluation"] = self.evaluation, self.images
        if find_spec("simplejpeg"):
            subjects["loader, fast pixels"] = (partial(self.loader, "fast"), self.images)
        rows: dict[str, Any] = {}
        for name, (subject, images) in subjects.items():
            ours, theirs = subject()
            rows[name] = {
                "images_per_s": round(images / ours, 1),
                "plain_images_per_s": round(images / theirs, 1),
                "times_plain": round(theirs / ours, 2),
            }
        speed = rows["step"]["images_per_s"] * flops
        rows["step"] |= {
            "gflop_per_image": round(flops / 1e9, 3),
            "gflop_per_s": round(speed / 1e9, 1),
            "share_of_product": round(speed / peak, 3),
            "parts_ms": self.parts(),
        }
        return {
            "batch_size": self.images,
            "threads": torch.get_num_threads(),
            "product_gflop_per_s": round(peak / 1e9, 1),
            "peak_gb": round(self.memory() / 1e9, 2),
            "subjects": rows,
        }

    def memory(self) -> int:
        """Largest number of bytes: of tensors on a GPU, of the whole process on a CPU."""
        if self.device.type == "cuda":
            return torch.cuda.max_memory_allocated()
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024

    def batch(self, step: int) -> Batch:
        """Images on the device."""
        return Batch((normalise(placed(self.bytes, self.device)),), 0, step, total=self.images)

    def step(self) -> tuple[float, float]:
        """Seconds of an update, ours and plain."""
        optim = self.run.recipe.optim
        optimizer, theirs = adamw(self.method, optim), plain.adamw(self.plain)
        numbers, same_numbers = count(), count()
        drawn = [self.groups(self.batch(step)) for step in range(self.repeats + 1)]

        def ours() -> None:
            batch = self.batch(next(numbers))
            gradients(lambda: self.method(batch), 1.0, self.run.precision, self.device)
            update(self.method, optimizer, optim)
            self.method.after_step(0.5)

        def other() -> None:
            images = self.batch(step := next(same_numbers)).images_BCHW
            plain.step(self.plain, theirs, images, drawn[step], self.run.precision)

        return compare(self.device, self.repeats, ours, other)

    def groups(self, batch: Batch) -> list[Masks]:
        """Masks that a step draws, group by group."""
        starts = range(0, self.images, size := self.method.config.masking.group_size)
        return [
            self.method.masking.sample(
                min(size, self.images - start), batch.generator("masks", group)
            )
            for group, start in enumerate(starts)
        ]

    def parts(self) -> dict[str, float]:
        """Milliseconds of each part of our step; the wait for data beside it."""
        method, clock = self.method, Clock(self.device)
        optimizer = adamw(method, self.run.recipe.optim)
        keys = [(0, number) for number in range(self.images)]
        views = TrainingViews(self.jpegs, self.run.recipe.views(self.run.vit.image_size), 0)  # type: ignore[arg-type]
        steps = Steps(len(self.jpegs), len(keys), 0, self.repeats + 1, 0)
        items = iter(training_batches(views, steps, self.workers))
        for step in range(self.repeats + 1):
            with clock.part("data wait"):
                item = next(items)
            images = normalise(placed(item.views[0], self.device))
            with clock.part("masks"):
                whole = method.masking.sample(self.images, generator(0, "masks", step))
                masks = type(whole)(*(placed(m, self.device) for m in whole))
            self._timed_step(clock, optimizer, images, masks)
        del items  # ends the loader's processes
        return {name: round(1000 * clock.median(name), 2) for name in clock.seconds}

    def _timed_step(
        self, clock: Clock, optimizer: torch.optim.Optimizer, images: torch.Tensor, masks: Any
    ) -> None:
        method, setting = self.method, self.run.precision
        with precision(setting, self.device):
            with clock.part("target"):
                targets = take(method.targets(images), masks.targets_GMT.flatten(1))
            with clock.part("context"):
                context = method.context_encoder(images, masks.context_GK)
            with clock.part("predictor"):
                predictions = method.predictor(context, masks)
                loss = method.loss(predictions.flatten(1, 2), targets)
        with clock.part("backward"), kernels(setting, self.device):
            loss.backward()
        with clock.part("optimiser"):
            update(method, optimizer, self.run.recipe.optim)
        with clock.part("average"):
            method.after_step(0.5)

    def loader(self, pixels: Pixels = "exact") -> tuple[float, float]:
        """Seconds to make normalised views of a batch in this process."""
        view = self.run.recipe.views(self.run.vit.image_size)
        views = TrainingViews(self.jpegs, view, 0, pixels=pixels)  # type: ignore[arg-type]
        theirs = plain.Views(self.jpegs, self.run.vit.side)

        def ours() -> None:
            stacked = [views[(0, number)].views[0] for number in range(self.images)]
            normalise(torch.from_numpy(np.stack(stacked)))

        def other() -> None:
            torch.stack([theirs[number] for number in range(self.images)])

        return compare(self.device, self.repeats, ours, other)

    def masks(self) -> tuple[float, float]:
        """Seconds to draw a batch's masks."""
        masking, grid, images = self.method.config.masking, self.run.vit.grid, self.images
        random = generator(0, "masks")
        return compare(
            torch.device("cpu"),
            self.repeats,
            lambda: self.method.masking.sample(images, random),
            lambda: plain.sample(masking, grid, images),
        )

    def probe(self) -> tuple[float, float]:
        """Seconds of an update of 16 linear heads, by SGD with Nesterov momentum and decay."""
        dim, classes = self.run.vit.dim, load_dataset(self.run.dataset).num_classes("class")
        assert classes is not None
        rates = [0.01 * n for n in range(1, 17)]
        x_BLD = torch.randn(PROBE_IMAGES, 1, dim, device=self.device)
        y_B = torch.randint(classes, (PROBE_IMAGES,), device=self.device)
        heads = Heads(tuple(rates), (plain.DECAY,), 1, dim, classes, 0, norms=("none",))
        heads = heads.to(self.device)
        optimizer = Optimizer(heads, "sgd")
        theirs = plain.Heads(dim, classes, rates, self.device)

        def ours() -> None:
            heads.loss(x_BLD, y_B).sum().backward()
            optimizer.step(1.0)

        return compare(self.device, self.repeats, ours, lambda: theirs.step(x_BLD[:, 0], y_B))

    def evaluation(self) -> tuple[float, float]:
        """Seconds to extract the features of two batches in memory, in ``auto`` precision."""
        batches = [self.bytes[: -(-self.images // 2)], self.bytes[-(-self.images // 2) :]]
        ours, *_ = replicas(deepcopy(self.method.encoder), self.device)
        theirs = self.plain.encoder.eval()
        return compare(
            self.device,
            self.repeats,
            lambda: list(fetched(_features(ours, images) for images in batches)),
            lambda: plain.features(
                theirs, (normalise(images.to(self.device)) for images in batches)
            ),
        )


def table() -> str:
    """Markdown table of every machine's file."""
    speed = "images/s | plain | times plain | GFLOP/s | of a product"
    lines = [f"| machine | shape | subject | threads | {speed} |", f"|{'---|' * 3}{'---:|' * 6}"]
    for path in sorted(RESULTS.glob("*.json")):
        record = json.loads(path.read_text(encoding="utf-8"))
        for shape, facts in record["shapes"].items():
            for name, row in facts["subjects"].items():
                share = row.get("share_of_product")
                cells = [record["machine"], shape, name, str(facts["threads"])]
                cells += [f"{row['images_per_s']:,.0f}"]
                cells += [f"{row['plain_images_per_s']:,.0f}", f"{row['times_plain']:.2f}"]
                cells.append(f"{row['gflop_per_s']:,.0f}" if share else "")
                cells.append(f"{share:.0%}" if share else "")
                lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def write_table() -> None:
    """Replace the table in docs/costs.md."""
    page = COSTS.read_text(encoding="utf-8")
    pattern = re.compile(rf"{re.escape(MARK)}\n.*?<!-- end -->", re.DOTALL)
    assert pattern.search(page), f"{COSTS} has no {MARK}"
    write_text(COSTS, pattern.sub(f"{MARK}\n{table()}<!-- end -->", page))


def main() -> None:
    """Entry point of the command line."""
    options = argparse.ArgumentParser(prog="python -m benchmarks.bench", description=__doc__)
    default = ["base16", "huge14"] if torch.cuda.is_available() else ["mini", "tiny36"]
    options.add_argument("--shapes", nargs="+", choices=SHAPES, default=default)
    options.add_argument("--batch-size", type=int, help="images, the shape's own by default")
    options.add_argument("--repeats", type=int, default=10)
    options.add_argument("--compile", choices=["teachers", "all"], help="blocks to compile")
    options.add_argument("--precision", default="auto")
    options.add_argument("--out", type=Path, help="file of results, named by the machine")
    options.add_argument("--table", action="store_true", help="only write docs/costs.md")
    chosen = options.parse_args()
    if chosen.table:
        write_table()
        return
    keep_freed_memory()  # as a training and an extraction do
    facts = here()
    how = [facts["machine"], *([f"compiled {chosen.compile}"] if chosen.compile else [])]
    name = ", ".join([*how, *([] if chosen.precision == "auto" else [chosen.precision])])
    record = {**facts, "machine": name, "shapes": {}}
    out = chosen.out or RESULTS / f"{re.sub('[^a-z0-9]+', '_', name.lower()).strip('_')}.json"
    for shape in chosen.shapes:
        raw = {"method": "ijepa", "precision": chosen.precision}
        run = parse_run({**raw, **SHAPES[shape]}, checked=False)
        optim = run.recipe.optim
        optim = replace(optim, batch_size=chosen.batch_size or optim.batch_size)
        run = replace(run, recipe=replace(run.recipe, optim=optim))  # type: ignore[type-var]
        torch.set_num_threads(THREADS.get(shape, usable_cores()))
        compiled = chosen.compile == "teachers" or chosen.compile or False
        bench = Bench(run, optim.batch_size, chosen.repeats, compiled)
        record["shapes"][shape] = bench.measured()
        print(shape, json.dumps(record["shapes"][shape], indent=1), flush=True)
        write_json(out, record)


if __name__ == "__main__":
    main()
