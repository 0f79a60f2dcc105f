"""Draw what an encoder, or its predictor, tells of an image: ``python -m evals.decoder --help``."""

import argparse
from pathlib import Path

from ijepa.errors import UserError, program, run_command

ABOUT = """Draw what an encoder tells of an image, by a trained decoder (docs/decoder.md).

With --block, the block is hidden and the predictor's output for it is decoded (I-JEPA, Figure 6);
the block may be given several times. Without it, the encoder's output for the whole image is
decoded (Figure 7). The image is cut to the central square, as in evaluations. A block counts
patches of the encoder's grid, from 0: 2,2,4,4 of 8x8 patches is the middle.
"""


def parser() -> argparse.ArgumentParser:
    """Options of the command line."""
    options = argparse.ArgumentParser(
        prog=program("evals.decoder"),
        description=ABOUT,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    options.add_argument("--encoder", type=Path, required=True, help="encoder of a finished run")
    options.add_argument("--image", type=Path, required=True, help="picture file")
    options.add_argument(
        "--block", action="append", default=[], metavar="ROW,COLUMN,HEIGHT,WIDTH", help="in patches"
    )
    options.add_argument("--samples", type=int, default=6, help="number of samples (default: 6)")
    options.add_argument("--seed", type=int, default=0, help="of their noise (default: 0)")
    options.add_argument(
        "--decoder",
        type=Path,
        help="decoder that the evaluation decoder has left (default: one of this encoder in "
        "evaluations/RUN/SEED of its results folder)",
    )
    options.add_argument("--out", type=Path, required=True, help="PNG file to write")
    return options


def main() -> None:
    """Entry point of the command line."""
    options = parser().parse_args()
    if options.samples < 1:
        raise UserError(f"--samples {options.samples}: it must be 1 or more")
    # Not at the top: torch and diffusers take seconds to import, and --help does not need them.
    from evals.decoder.command import draw

    draw(**vars(options))
    print(options.out)


if __name__ == "__main__":
    run_command(main)
