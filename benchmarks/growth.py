"""Growth of start-up, memory and images/s with the data: ``python -m benchmarks.growth``.

The data are an index alone. One shard's JSON file stands under as many names as there are shards;
so does its tar, which is all zeros and takes no space on the disk. All files are in the page cache.
Seconds are those of the processor. Each number is of a fresh process that does what a training does
before its first step (verifies shards that were verified before, reads the tables, draws the
order of an epoch) and then reads ``--reads`` images' bytes in that order. Ranks are processes that
run at a time. Images/s by size are of the loader's whole work, on one core, on real JPEGs.

``benchmarks/results/growth.csv`` has the numbers, with the commit and the machine, and
``growth.svg`` the plot. ``--table`` prints the table of docs/costs.md from that file.
"""

import argparse
import csv
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ijepa.data.loader import Images, Steps, TrainingViews, View
from ijepa.data.shards import Index, Shard, read_index, verify
from ijepa.data.transforms import Crop
from ijepa.files import ROOT, write_json, write_text
from ijepa.provenance import here

RESULTS = ROOT / "benchmarks" / "results"
CLASSES = 21_841
"""Classes of ImageNet-22k."""
MEAN_SIZE = 110_000
"""Bytes of an image of ImageNet."""
BATCH = 256
LINKS = 10_000
"""Names of one file; ext4 allows 65,000."""
LIMIT = 16
"""Bytes of memory an image, which the start of a training may take."""

Row = dict[str, Any]


def write_data(folder: Path, samples: int, shard_size: int) -> int:
    """Write the index of shards that were verified; returns the number of images, in whole shards.

    The images of a shard have the sizes and random labels of those of every other.
    """
    random = np.random.default_rng(0)
    shard_size = min(shard_size, samples)
    sizes = random.integers(MEAN_SIZE // 2, MEAN_SIZE * 3 // 2, shard_size)
    # Two headers and the label come before each image.
    ends = (3 * 512 + -(-sizes // 512) * 512).cumsum()
    places = list(zip((ends - -(-sizes // 512) * 512).tolist(), sizes.tolist(), strict=True))
    labels = {"class": random.integers(0, CLASSES, shard_size).tolist()}
    sha256 = "0" * 64
    entries: list[Row] = []
    verified = {}
    for number in range(samples // shard_size):
        tar = folder / f"train-{number:05d}.tar"
        names = (tar, tar.with_suffix(".json"))
        if number % LINKS == 0:
            first = names
            write_json(first[1], asdict(Shard(sha256, places, labels)))
            with first[0].open("wb") as file:
                file.truncate(int(ends[-1]))
        else:
            for source, name in zip(first, names, strict=True):
                os.link(source, name)
        for name in names:
            state = name.stat()
            verified[name.name] = [sha256, state.st_size, state.st_mtime_ns]
        facts = {"num_samples": shard_size, "sha256": sha256, "places_sha256": sha256}
        entries.append({"name": tar.name, **facts})
    write_json(folder / ".verified.json", verified)
    index = Index("growth", "none", "centre", {"class": CLASSES}, {"train": entries})
    write_json(folder / "index.json", index.plain())
    return len(entries) * shard_size


def memory(file: str, key: str) -> int:
    """Bytes of this process, by a key of a file of /proc/self."""
    lines = Path("/proc/self", file).read_text(encoding="utf-8").splitlines()
    return 1024 * int(next(line.split()[1] for line in lines if line.startswith(f"{key}:")))


def measured(folder: Path, rank: int, ranks: int, reads: int) -> Row:
    """Seconds of the parts of a start, its peak of memory, and reads a second, of this process."""
    torch.set_num_threads(1)
    Path("/proc/self/clear_refs").write_text("5", encoding="utf-8")  # the peak begins here
    before, times = memory("status", "VmRSS"), [time.process_time()]
    index = verify(folder) if rank == 0 else read_index(folder)
    del index
    times.append(time.process_time())
    images = Images(folder, "train")
    times.append(time.process_time())
    size = len(images)
    batches = iter(Steps(size, BATCH, 0, size // BATCH, 0, rank, ranks))
    keys = next(batches)
    times.append(time.process_time())
    peak = memory("status", "VmHWM") - before
    batch = BATCH // ranks
    keys += [key for _ in range(min(reads, size // ranks) // batch - 1) for key in next(batches)]
    begun = time.process_time()
    for _, number in keys:
        images.encoded(number)
    rate = len(keys) / (time.process_time() - begun)
    own = of_worker(images, [number for _, number in keys[-BATCH:]])
    verifying, tables, order = np.diff(times).round(3).tolist()
    return {
        "verify_s": verifying,
        "tables_s": tables,
        "order_s": order,
        "start_s": round(times[-1] - times[0], 3),
        "peak_mb": round(peak / 1e6, 1),
        "worker_mb": round(own / 1e6, 1),
        "images_per_s": round(rate),
    }


def of_worker(images: Images, numbers: list[int]) -> int:
    """Bytes of memory that a forked process has for itself after it read these images."""
    reading, writing = os.pipe()
    if not (process := os.fork()):
        for number in numbers:
            images.encoded(number)
        os.write(writing, str(memory("smaps_rollup", "Private_Dirty")).encode())
        os._exit(0)
    os.waitpid(process, 0)
    return int(os.read(reading, 32))


def of_processes(folder: Path, ranks: int, reads: int) -> Row:
    """Results of fresh processes that run at a time: the slowest's seconds, memory together."""
    command = [sys.executable, "-m", "benchmarks.growth", "--reads", str(reads), "--measure"]
    processes = [
        subprocess.Popen([*command, f"{folder}", f"{rank}", f"{ranks}"], stdout=subprocess.PIPE)
        for rank in range(ranks)
    ]
    answers = [process.communicate()[0] for process in processes]
    if failed := [process.returncode for process in processes if process.returncode]:
        raise SystemExit(f"a measured process ended with status {failed[0]}, see above")
    rows: list[Row] = [json.loads(answer) for answer in answers]
    whole = {key: max(row[key] for row in rows) for key in rows[0]}
    return {**whole, "peak_mb": round(sum(row["peak_mb"] for row in rows), 1)}


def pixels(size: int, count: int) -> float:
    """Images/s that one core makes views of a size from, out of JPEGs."""
    # Not at the top: measured processes need neither scikit-learn nor Matplotlib.
    from benchmarks.jpegs import Jpegs

    torch.set_num_threads(1)
    jpegs = Jpegs(count, 500 if size >= 96 else 40)
    views = TrainingViews(jpegs, [View(size, Crop())], 0)  # type: ignore[arg-type]
    views[0, 0]
    begun = time.process_time()
    for number in range(count):
        views[0, number]
    return count / (time.process_time() - begun)


def rows(options: argparse.Namespace) -> Iterator[Row]:
    """Measurements of all subjects, the longest ones last."""
    middle = sorted(options.samples)[len(options.samples) // 2]
    facts = {key: here()[key] for key in ("commit", "machine")}
    for size in options.image_sizes:
        rate = round(pixels(size, options.pictures))
        yield {"subject": "image size", "image_size": size, "images_per_s": rate, **facts}
    wanted = [("ranks", middle, options.shard_size, ranks) for ranks in options.ranks]
    wanted += [("shards", middle, size, 1) for size in options.shard_sizes]
    wanted += [("samples", samples, options.shard_size, 1) for samples in sorted(options.samples)]
    for subject, samples, shard_size, ranks in wanted:
        with tempfile.TemporaryDirectory(dir=options.folder) as temporary:
            count = write_data(Path(temporary), samples, shard_size)
            numbers = of_processes(Path(temporary), ranks, options.reads)
        numbers["bytes_per_image"] = round(numbers["peak_mb"] * 1e6 / ranks / count, 1)
        shape = {"samples": count, "shards": count // min(shard_size, samples), "ranks": ranks}
        yield {"subject": subject, **shape, **numbers, **facts}


COLUMNS = [
    "subject", "samples", "shards", "ranks", "image_size", "verify_s", "tables_s", "order_s",
    "start_s", "peak_mb", "bytes_per_image", "worker_mb", "images_per_s", "commit", "machine",
]  # fmt: skip


def read_rows(path: Path) -> list[Row]:
    """Rows of a file of results; numbers are floats, an empty cell is left out."""
    texts = ("subject", "commit", "machine")
    with path.open(encoding="utf-8", newline="") as file:
        return [
            {key: cell if key in texts else float(cell) for key, cell in row.items() if cell}
            for row in csv.DictReader(file)
        ]


def table(measurements: list[Row]) -> str:
    """Markdown table of the rows that have an index."""
    head = (
        "| images | shards | ranks | start-up, s | of these tables | order | peak, MB | bytes an "
    )
    head += "image and rank | a worker's own, MB | reads/s |"
    lines = [head, f"|{'---:|' * 10}"]
    for row in measurements:
        if row["subject"] != "image size":
            cells = [f"{row[key]:,.0f}" for key in ("samples", "shards", "ranks")]
            cells += [f"{row[key]:,.1f}" for key in ("start_s", "tables_s", "order_s")]
            cells += [f"{row['peak_mb']:,.0f}", f"{row['bytes_per_image']:,.1f}"]
            cells += [f"{row['worker_mb']:,.0f}", f"{row['images_per_s']:,.0f}"]
            lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


PANELS = [
    ("samples", "samples", "start_s", "start-up, s"),
    ("samples", "samples", "peak_mb", "peak of memory, MB"),
    ("samples", "samples", "images_per_s", "reads/s, one core"),
    ("shards", "shards", "start_s", "start-up, s"),
    ("ranks", "ranks", "peak_mb", "memory of all ranks, MB"),
    ("image size", "image_size", "images_per_s", "images/s, one core"),
]
"""Subject, column of the horizontal axis, column of the vertical one, its name."""


def plot(measurements: list[Row]) -> str:
    """Plot of a panel for each subject, both axes logarithmic, as SVG."""
    from evals.report.figures import figure, line

    with figure(10, 5.6, "growth") as (drawing, file):
        for (subject, x, y, name), axis in zip(PANELS, drawing.subplots(2, 3).flat, strict=True):
            points = sorted((row[x], row[y]) for row in measurements if row["subject"] == subject)
            axis.loglog(*zip(*points, strict=True), **line(0), marker="o", markersize=4)
            if (x, y) == ("samples", "peak_mb"):
                ends = [points[0][0], points[-1][0]]
                limits = [LIMIT * end / 1e6 for end in ends]
                axis.plot(ends, limits, **line(1), label=f"{LIMIT} bytes an image")
                axis.legend()
            axis.set(xlabel=x.replace("_", " "), ylabel=name)
            axis.grid(alpha=0.3)
    return file.getvalue()


def parser() -> argparse.ArgumentParser:
    """Options of the command line."""
    options = argparse.ArgumentParser(
        prog="python -m benchmarks.growth",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    default = [10**4, 10**5, 10**6, 10**7]
    add = options.add_argument
    add("--samples", type=int, nargs="+", default=default, help="images (to 10^8: minutes more)")
    add("--shard-size", type=int, default=5000, help="images of a shard, the register's default")
    add("--shard-sizes", type=int, nargs="*", default=[100, 1000, 10_000], help="of one data set")
    add("--ranks", type=int, nargs="*", default=[1, 2, 4], help="processes at a time")
    add("--image-sizes", type=int, nargs="*", default=[32, 96, 224, 448], help="pixels")
    add("--pictures", type=int, default=200, help="JPEGs for each image size")
    add("--reads", type=int, default=10_000, help="images whose bytes are read")
    add("--folder", type=Path, help="for the index, a temporary folder by default")
    add("--out", type=Path, default=RESULTS, help="folder of growth.csv and growth.svg")
    add("--table", action="store_true", help="only print the table of growth.csv")
    add("--measure", nargs=3, metavar=("FOLDER", "RANK", "RANKS"), help=argparse.SUPPRESS)
    return options


def main() -> None:
    """Entry point of the command line."""
    options = parser().parse_args()
    if options.measure:
        folder, rank, ranks = options.measure
        print(json.dumps(measured(Path(folder), int(rank), int(ranks), options.reads)))
        return
    path = options.out / "growth.csv"
    if not options.table:
        options.out.mkdir(parents=True, exist_ok=True)
        with path.open("w", encoding="utf-8", newline="") as file:
            writer = csv.DictWriter(file, COLUMNS, lineterminator="\n")
            writer.writeheader()
            for row in rows(options):
                writer.writerow(row)
                file.flush()  # a benchmark that was stopped leaves the rows that it has
                print(row, flush=True)
        write_text(options.out / "growth.svg", plot(read_rows(path)))
    print(table(read_rows(path)), end="")


if __name__ == "__main__":
    main()
