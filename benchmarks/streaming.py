"""Cost of shards that lie at an address: ``python -m benchmarks.streaming``.

Images/s of the loader's reading alone, of files of ImageNet's mean size in random order: from local
tars, and from a server on this machine that waits before each answer. Its process, Python too,
shares the cores with the loader. "One at a time" is a worker that does not read ahead. All bytes
are in the page cache; the clock starts at the first batch. Prints a Markdown table.
"""

import argparse
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from torch.utils.data import DataLoader, Dataset

from benchmarks.growth import write_data
from ijepa.data.loader import Images, Steps
from ijepa.data.remote import NOTE
from ijepa.files import write_json
from ijepa.provenance import here

BATCH = 64


@dataclass(frozen=True)
class Sizes(Dataset[int]):
    """Number of bytes of each image, all of which were read."""

    images: Images
    ahead: bool

    def __getitem__(self, key: tuple[int, int]) -> int:
        return len(self.images.encoded(key[1]))

    def __getitems__(self, keys: list[tuple[int, int]]) -> list[int]:
        if self.ahead:
            self.images.read_ahead([number for _, number in keys])
        return [self[key] for key in keys]


def rate(folder: Path, num_workers: int, ahead: bool, seconds: float) -> float:
    """Images a second that the loader's processes read."""
    images = Images(folder, "train")
    steps = Steps(len(images), BATCH, 0, 10**6, seed=0)
    loader = DataLoader(Sizes(images, ahead), batch_sampler=steps, num_workers=num_workers)
    batches, count = iter(loader), 0
    next(batches)
    begun = time.perf_counter()
    while time.perf_counter() - begun < seconds:
        count += len(next(batches))
    return count / (time.perf_counter() - begun)


@contextmanager
def served(folder: Path, latency: float) -> Iterator[str]:
    """Address of a folder, at a server of its own process."""
    command = [sys.executable, "-m", "benchmarks.range_server", str(folder), str(latency)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        yield f"http://127.0.0.1:{int(process.stdout.readline())}"
        process.terminate()


def row(name: str, folder: Path, seconds: float) -> str:
    """Line of the table."""
    settings = ((1, False), (1, True), (4, True))
    rates = [rate(folder, workers, ahead, seconds) for workers, ahead in settings]
    return f"| {name} | {' | '.join(f'{number:,.0f}' for number in rates)} |"


def main() -> None:
    """Entry point of the command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.streaming", description=__doc__)
    parser.add_argument("--images", type=int, default=4000)
    parser.add_argument("--latencies", type=float, nargs="*", default=[0, 20, 50], help="in ms")
    parser.add_argument("--seconds", type=float, default=5, help="of each measurement")
    options = parser.parse_args()
    print(f"{here()['machine']}\n")
    print("| images/s | 1 worker, one at a time | 1 worker | 4 workers |\n|---|---:|---:|---:|")
    with tempfile.TemporaryDirectory() as temporary:
        folder, mirrored = Path(temporary, "shards"), Path(temporary, "mirror")
        folder.mkdir()
        write_data(folder, options.images, 500)
        shutil.copytree(folder, mirrored, ignore=shutil.ignore_patterns("*.tar"))
        print(row("local files", folder, options.seconds), flush=True)
        for latency in options.latencies:
            with served(folder, latency / 1000) as address:
                write_json(mirrored / NOTE, {"address": address})
                print(row(f"server, {latency:g} ms", mirrored, options.seconds), flush=True)


if __name__ == "__main__":
    main()
