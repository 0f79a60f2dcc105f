"""Speed of shard building beside ``tar``: python -m benchmarks.shards.

Both copy the same JPEGs (random bytes between a real head and end, of ImageNet's mean size) from a
folder to the same disk, and end with the bytes on the disk. The limit is the disk's and memory's
bandwidth: each byte is read, hashed and written once. The aim is 80 % of the speed of ``tar``.

2026-11-22, 2 cores of an AMD EPYC: 30,000 images (3.3 GB) at 471 MB/s, 1.40 of tar, which has one
thread and waits for the disk; 8,000 images, which stay in memory, at 506 MB/s, 0.63 of tar: there
the workers' start (0.7 s) and SHA-256 (a third of the remaining time) show.
"""

import argparse
import io
import os
import subprocess
import tempfile
import time
from pathlib import Path

import numpy as np
import yaml
from PIL import Image

from ijepa.data import register
from ijepa.data.build import build_shards

MEAN_SIZE = 110_000


def main() -> None:
    """Entry point of the command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.shards", description=__doc__)
    parser.add_argument("--images", type=int, default=10_000)
    parser.add_argument("--folder", type=Path, help="on the disk to be measured")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=options.folder) as temporary:
        measure(Path(temporary), options.images)


def measure(folder: Path, count: int) -> None:
    """Print megabytes a second of both, and their ratio."""
    random = np.random.default_rng(0)
    file = io.BytesIO()
    Image.new("RGB", (500, 375)).save(file, "jpeg")
    head, end = file.getvalue()[:-2], file.getvalue()[-2:]
    raw = folder / "raw" / "train" / "one_class"
    raw.mkdir(parents=True)
    for number in range(count):
        (raw / f"{number:08d}.jpg").write_bytes(head + random.bytes(MEAN_SIZE) + end)
    megabytes = count * MEAN_SIZE / 1e6
    entry = {
        "source": "image_folder",
        "title": "random bytes",
        "citation": "none",
        "licence": "none",
        "image_size": 224,
        "splits": {"train": count},
        "labels": {"class": None},
        "shard_size": 1000,
    }
    register.REGISTER = folder / "datasets.yaml"
    register.REGISTER.write_text(yaml.safe_dump({"random": entry}))
    speeds = {"tar": [], "shards": []}  # type: dict[str, list[float]]
    for attempt in range(3):
        begun = time.perf_counter()
        subprocess.run(["tar", "cf", folder / "by.tar", "-C", folder / "raw", "train"], check=True)
        os.sync()
        speeds["tar"].append(megabytes / (time.perf_counter() - begun))
        (folder / "by.tar").unlink()
        begun = time.perf_counter()
        build_shards("random", folder / "raw", folder / f"shards{attempt}")
        os.sync()
        speeds["shards"].append(megabytes / (time.perf_counter() - begun))
    best = {name: max(values) for name, values in speeds.items()}
    for name, values in speeds.items():
        print(f"{name:7s} MB/s: {', '.join(f'{value:.0f}' for value in values)}")
    print(f"shards at {best['shards'] / best['tar']:.2f} of the speed of tar (aim 0.8)")


if __name__ == "__main__":
    main()
