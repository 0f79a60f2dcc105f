"""Shards of a data set: ``python -m ijepa.data fetch|build|mirror|verify|missing|statistics``."""

import argparse
import logging
from pathlib import Path

from ijepa.data import register
from ijepa.data.build import build_shards, missing
from ijepa.data.mirror import mirror
from ijepa.data.shards import check_limit, verify
from ijepa.data.source import Source, load_source
from ijepa.errors import UserError, program, run_command
from ijepa.files import read_yaml


def main() -> None:
    """Entry point of the command line."""
    parser = argparse.ArgumentParser(prog=program("ijepa.data"), description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    for command, text in (
        ("missing", "list the missing raw files that you must bring yourself"),
        ("fetch", "download the raw files, if they have an address, and check them"),
        ("build", "write the shards that are missing or damaged"),
        ("mirror", "copy the index of shards that lie at an address, where their tars stay"),
        ("verify", "compare every shard with the index"),
        ("statistics", "mean and deviation of the training images, for vit: of a config"),
    ):
        sub = commands.add_parser(command, help=text, description=text)
        if command == "missing":
            sub.add_argument(
                "wanted", nargs="+", metavar="DATASET=RAW", help="names and raw folders"
            )
        elif command == "mirror":
            sub.add_argument("address", help="folder of the shards, http(s) or hf://")
        elif command not in ("verify", "statistics"):
            sub.add_argument("dataset", help="a name in data/datasets.yaml")
            sub.add_argument("--raw", type=Path, required=True, help="folder of the raw files")
        if command in ("build", "mirror", "verify", "statistics"):
            sub.add_argument("--out", type=Path, required=True, help="folder of the shards")
        if command == "statistics":
            sub.add_argument(
                "--image-size",
                type=int,
                nargs="+",
                default=[224],
                metavar="PIXELS",
                help="side of the images that an encoder sees, or height and width",
            )
        if command == "build":
            sub.add_argument(
                "--num-workers", type=int, help="processes (default: one for each core)"
            )
            sub.add_argument(
                "--images-of",
                type=Path,
                metavar="CONFIG",
                help="config whose `images` must be had of the shards, or this fails",
            )
    options = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    if options.command == "missing":
        for name, _, raw in (text.partition("=") for text in options.wanted):
            for line in missing(name, Path(raw)):
                print(line)
    elif options.command == "fetch":
        dataset = register.load_dataset(options.dataset)
        source: Source = load_source(dataset.source)
        source.fetch(dataset, options.raw)
    elif options.command == "build":
        build_shards(options.dataset, options.raw, options.out, options.num_workers)
        if options.images_of is not None:
            limits = read_yaml(options.images_of).get("images", {})
            check_limit(limits.get(options.dataset, {}), options.out)
    elif options.command == "mirror":
        mirror(options.address, options.out)
    elif options.command == "statistics":
        # Not at the top: torch takes seconds to import, and the other commands need none.
        from ijepa.data.statistics import statistics

        numbers = options.image_size
        if len(numbers) > 2 or min(numbers) < 1:
            raise UserError(
                f"--image-size {' '.join(map(str, numbers))}: give the side of a square, or height "
                "and width, in pixels"
            )
        mean, std = statistics(options.out, (numbers[0], numbers[-1]))
        print(f"vit: {{mean: {list(mean)}, std: {list(std)}}}")
    else:
        verify(options.out)


if __name__ == "__main__":
    run_command(main)
