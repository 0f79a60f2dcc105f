"""Time and difference of a training view's pixels by each way to make them, on one core.

``python -m benchmarks.pixels``: JPEGs of several widths (benchmarks/jpegs.py), I-JEPA's crops to
224 pixels. Ways: torchvision's transforms on PIL's images; ``exact``, PIL; ``draft``, PIL that
decodes at a half where the crop has twice the view's side; ``fast`` (ijepa.data.fast_jpeg);
``device`` (ijepa.data.device_batches), on a GPU if there is one. All end in a batch of normalised
floats. Differences are those of bytes from ``exact``. Times are the process's; with a GPU the
wall's.

Then one loader process makes batches for this one, as in a training. Ours hands over bytes, which
the training normalises; torchvision's floats.
"""

import argparse
import io
import statistics
import time
from collections.abc import Callable, Iterable
from importlib.util import find_spec
from typing import Any

import numpy as np
import torch
from PIL import Image

from benchmarks import plain
from benchmarks.jpegs import Jpegs
from ijepa.allocator import keep_freed_memory
from ijepa.data import resident
from ijepa.data.device_batches import device_batches
from ijepa.data.fast_jpeg import SCALES
from ijepa.data.loader import Steps, TrainingViews, View, training_batches
from ijepa.data.transforms import IJEPA, INTERPOLATIONS, Crop, normalise, sample_box
from ijepa.provenance import here
from ijepa.ranges import Pixels
from ijepa.transfer import first_device

BATCH = 64
"""Images of a batch that a loader process makes."""

Pictures = list[np.ndarray[Any, Any]]


def by_draft(files: list[bytes], size: int, crop: Crop) -> Pictures:
    """Views of PIL's draft mode, with the boxes of TrainingViews."""
    views = []
    for number, file in enumerate(files):
        image = Image.open(io.BytesIO(file))
        width, _ = image.size
        box = sample_box(*image.size, crop, np.random.default_rng((0, 0, number)))
        side = min(box.width, box.height)
        scale = next((scale for scale in SCALES if side >= scale * size), 1)
        image.draft("RGB", (image.width // scale, image.height // scale))
        image.load()
        share = image.width / width
        edges = (box.left, box.top, box.left + box.width, box.top + box.height)
        part = image.crop(tuple(round(edge * share) for edge in edges))  # type: ignore[arg-type]
        views.append(np.asarray(part.resize((size, size), INTERPOLATIONS[crop.interpolation])))
    return views


def by_us(jpegs: Jpegs, size: int, crop: Crop, pixels: Pixels) -> Pictures:
    """Views of the project's loader."""
    views = TrainingViews(jpegs, [View(size, crop)], 0, pixels=pixels)  # type: ignore[arg-type]
    return [views[(0, number)].views[0] for number in range(len(jpegs))]


def by_device(jpegs: Jpegs, size: int, crop: Crop) -> torch.Tensor:
    """Views [B, H, W, C] that the device makes, in the files' order."""
    views = TrainingViews(jpegs, [View(size, crop)], 0, pixels="device")  # type: ignore[arg-type]
    steps = Steps(len(jpegs), len(jpegs), 0, 1, 0)
    (item,) = device_batches(views, steps, 0, first_device())
    order = torch.tensor([number for _, number in next(iter(steps))])
    return torch.as_tensor(item.views[0][order.argsort().to(item.views[0].device)])


def by_loader(jpegs: Jpegs, size: int, pixels: Pixels | None) -> float:
    """Images/s of one loader process, after its first batch; torchvision's without ``pixels``."""
    batches: Iterable[Any]
    if pixels is None:
        batches = plain.batches(jpegs, size, BATCH, num_workers=1)
    else:
        views = TrainingViews(jpegs, [View(size, IJEPA)], 0, pixels=pixels)  # type: ignore[arg-type]
        steps = Steps(len(jpegs), BATCH, 0, len(jpegs) // BATCH, 0)
        batches = training_batches(views, steps, num_workers=1)
    waiting = iter(batches)
    next(waiting)
    begun = time.perf_counter()
    count = sum(BATCH for _ in waiting)
    return count / (time.perf_counter() - begun)


def finished(views: Pictures) -> torch.Tensor:
    """Batch as a step gets it."""
    return normalise(torch.from_numpy(np.stack(views)))


def now() -> float:
    """Seconds of the process, or of the wall once the GPU has done all that is queued."""
    if not torch.cuda.is_available():
        return time.process_time()
    torch.cuda.synchronize()
    return time.perf_counter()


def main() -> None:
    """Entry point of the command line."""
    options = argparse.ArgumentParser(prog="python -m benchmarks.pixels", description=__doc__)
    options.add_argument("--widths", type=int, nargs="+", default=[500, 1000, 2000])
    options.add_argument("--size", type=int, default=224)
    options.add_argument("--images", type=int, default=64)
    options.add_argument("--repeats", type=int, default=5)
    chosen = options.parse_args()
    torch.set_num_threads(1)
    keep_freed_memory()  # as in a training, for all ways
    resident.LARGEST = 0  # as of a large data set, which does not lie on the device
    print({name: here()[name] for name in ("commit", "machine", "torch")})
    for width in chosen.widths:
        report(Jpegs(chosen.images, width), width, chosen.size, chosen.repeats)
        report_loaders(Jpegs(8 * BATCH, width), chosen.size, chosen.repeats)


def report(jpegs: Jpegs, width: int, size: int, repeats: int) -> None:
    """Print speeds and differences for images of one width; all ways run in turn."""
    torchvision = plain.Views(jpegs, size)
    ways: dict[str, Callable[[], Any]] = {
        "torchvision": lambda: torch.stack([torchvision[n] for n in range(len(jpegs))]),
        "exact": lambda: finished(by_us(jpegs, size, IJEPA, "exact")),
        "draft": lambda: finished(by_draft(jpegs.files, size, IJEPA)),
        "fast": lambda: finished(by_us(jpegs, size, IJEPA, "fast")),
    }
    if find_spec("torchcodec"):
        ways["device"] = lambda: normalise(by_device(jpegs, size, IJEPA))
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(repeats + 1):
        for name, way in ways.items():
            begun = now()
            way()
            seconds[name].append(now() - begun)
    medians = {name: statistics.median(times[1:]) for name, times in seconds.items()}
    kilobytes = statistics.mean(map(len, jpegs.files)) / 1000
    print(f"{width} pixels wide, {kilobytes:.0f} kB")
    for name, median in medians.items():
        times = medians["torchvision"] / median
        print(f"  {name}: {len(jpegs) / median:.0f} images/s, {times:.2f} times torchvision's")
    exact = np.stack(by_us(jpegs, size, IJEPA, "exact")).astype(int)
    others = {
        "draft": np.stack(by_draft(jpegs.files, size, IJEPA)),
        "fast": np.stack(by_us(jpegs, size, IJEPA, "fast")),
    }
    if "device" in ways:
        others["device"] = by_device(jpegs, size, IJEPA).cpu().numpy()
    for name, other in others.items():
        gap = np.abs(other - exact)
        print(
            f"  {name} differs by {gap.mean():.2f} of 255 on average, by at most {gap.max()}, by "
            f"more than 2 in {(gap > 2).mean():.2%} of the bytes"
        )


def report_loaders(jpegs: Jpegs, size: int, repeats: int) -> None:
    """Print speeds of one loader process; torchvision's, exact and fast pixels run in turn."""
    ways: tuple[Pixels | None, ...] = (None, "exact", "fast")
    speeds: dict[Pixels | None, list[float]] = {way: [] for way in ways}
    for _ in range(repeats):
        for way in ways:
            speeds[way].append(by_loader(jpegs, size, way))
    medians = {way: statistics.median(values) for way, values in speeds.items()}
    for way, median in medians.items():
        times = median / medians[None]
        name = way or "torchvision"
        print(f"  loader process, {name}: {median:.0f} images/s, {times:.2f} times torchvision's")


if __name__ == "__main__":
    main()
