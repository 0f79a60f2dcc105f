"""CLEVR-like images: ``python -m ijepa.data.clevr OUT --train 4000 --test 2000``."""

import argparse
from pathlib import Path

from ijepa.data.clevr.format import FOLDER
from ijepa.data.clevr.generate import Settings, contact_sheet, generate
from ijepa.errors import program, run_command
from ijepa.strict import strict


def main() -> None:
    """Entry point of the command line."""
    defaults = Settings()
    parser = argparse.ArgumentParser(
        prog=program("ijepa.data.clevr"),
        description="Generate CLEVR-like images; the same command continues an interrupted one.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument("out", type=Path, metavar="OUT", help=f"{FOLDER} is written in this folder")
    parser.add_argument("--train", type=int, default=defaults.train, help="training images")
    parser.add_argument("--test", type=int, default=defaults.test, help="test images")
    parser.add_argument("--seed", type=int, default=defaults.seed, help="0 or more")
    parser.add_argument("--width", type=int, default=defaults.width, help="in pixels")
    parser.add_argument("--height", type=int, default=defaults.height, help="in pixels")
    parser.add_argument("--sheet", type=Path, help="also write the first 48 images as one PNG file")
    options = vars(parser.parse_args())
    out, sheet = options.pop("out"), options.pop("sheet")
    settings = strict(Settings, options, "command line")
    generate(settings, out)
    if sheet:
        contact_sheet(settings).save(sheet, "png")


if __name__ == "__main__":
    run_command(main)
