"""Pictures of an encoder's patch features on images of yours, as PNG files.

``components.png``: the first three principal components of the patches' features as red, green and
blue, with one basis for all images. ``similarity.png``: the cosine similarity of one patch of the
first image (--patch) to every patch of every image. ``nearest.png``: the patches of the other
images whose features are nearest to it; of a single image, its other patches.

An image is cut as in evaluation: its short side is resized to 8/7 of the encoder's, then the
central square is taken.
"""

import argparse
from pathlib import Path

from ijepa.errors import UserError, program, run_command


def parser() -> argparse.ArgumentParser:
    """Options of the command line."""
    options = argparse.ArgumentParser(
        prog=program("evals.picture"),
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    options.add_argument(
        "--encoder", type=Path, required=True, help="encoder file, trained here or imported"
    )
    options.add_argument("--image", type=Path, nargs="+", required=True, help="image files")
    options.add_argument("--out", type=Path, default=Path("pictures"), help="folder for the files")
    options.add_argument(
        "--patch", metavar="ROW,COLUMN", help="patch of the first image, from 0 (default: middle)"
    )
    options.add_argument("--count", type=int, default=8, help="nearest patches to show")
    options.add_argument(
        "--image-size",
        type=int,
        help="side of the images in pixels (default: the encoder's); a larger one has more patches",
    )
    return options


if __name__ == "__main__":
    parser().parse_args()  # answers --help before torch is imported, which takes seconds

from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch
from matplotlib.figure import Figure
from numpy.typing import NDArray
from PIL import Image, ImageOps

from evals import patches
from evals.described import texts
from evals.drawing import COLUMNS, LONGEST_NAME, nearest_sheet, sheet
from evals.views import inputs, patch_features
from ijepa.architecture import Variant, ViTConfig
from ijepa.data.transforms import centre_crop, to_array
from ijepa.encoder_file import read_header
from ijepa.files import written_whole
from ijepa.image_size import PatchGrid
from ijepa.transfer import first_device

DOTS_PER_INCH = 150
BATCH_SIZE = 8
"""Images per forward pass: large ones have thousands of patches each."""
READING = {
    "components": "The first three principal components of the patches' features as red, green and "
    "blue, with one basis for all images: a colour means the same in each.",
    "similarity": "The cosine similarity of the patch framed in orange to every patch; framed in "
    "blue is the nearest patch of each other image.",
    "nearest": "A patch of the first image, framed in orange; then those whose features are "
    "nearest to it, framed in blue, the nearest first.",
}
"""Sentences that tell how to read each picture, by its name."""


def read_image(path: Path) -> Image.Image:
    """Image in RGB, turned as its EXIF says, on white where it is transparent.

    More than 8 bits a pixel are stretched from the image's darkest to its brightest value. Raises
    UserError if Pillow cannot open the file.
    """
    try:
        with Image.open(path) as file:
            image = ImageOps.exif_transpose(file)
            image.load()
    except FileNotFoundError:
        raise UserError(f"{path} does not exist: name an image file") from None
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise UserError(
            f"{path} cannot be opened as an image ({error}): convert it, to PNG for example"
        ) from None
    if image.mode[0] in "IF":
        values = np.nan_to_num(np.asarray(image, np.float64))
        span = max(float(np.ptp(values)), 1.0 if image.mode[0] == "I" else 1e-30)
        image = Image.fromarray((255 * (values - values.min()) / span).round().astype(np.uint8))
    if image.has_transparency_data:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return image.convert("RGB")


def patches_of(encoder: Path, image_size: int | None) -> tuple[int, PatchGrid]:
    """Side of the images in pixels and the grid of patches, from an encoder's header."""
    header = read_header(encoder)
    vit, variant = ViTConfig(**header["run"]["vit"]), Variant(**header.get("variant", {}))
    if vit.channels != 3:
        raise UserError(
            f"{encoder} is for images of {vit.channels} channels: pictures have three; draw it in "
            "a report"
        )
    if not isinstance(vit.image_size, int):
        raise UserError(
            f"{encoder} is for images of {vit.image_size} pixels: only encoders of square images "
            "are drawn here; a report draws any"
        )
    size = vit.image_size if image_size is None else image_size
    if size < 2 * vit.patch_size or size % vit.patch_size:
        raise UserError(
            f"--image-size {size}: {encoder} has patches of {vit.patch_size} pixels: give a "
            f"multiple of {vit.patch_size}, at least {2 * vit.patch_size}"
        )
    if variant.positions == "relative" and size != vit.image_size:
        raise UserError(
            f"--image-size {size}: {encoder} has relative positions, which fit only its own "
            f"{vit.image_size} pixels: leave --image-size out"
        )
    return size, (size // vit.patch_size,) * 2


def patch_number(text: str | None, grid: PatchGrid) -> int:
    """Number of the patch ``ROW,COLUMN``; the middle one if there is no text."""
    rows, columns = grid
    words = f"{rows // 2},{columns // 2}".split(",") if text is None else text.split(",")
    if len(words) != 2 or not all(word.strip().isdecimal() for word in words):
        raise UserError(f"--patch {text!r}: give a row and a column, as 3,4")
    row, column = map(int, words)
    if row >= rows or column >= columns:
        raise UserError(
            f"--patch {text}: there are {rows} rows and {columns} columns of patches: give "
            f"0 to {rows - 1}, then 0 to {columns - 1}"
        )
    return row * columns + column


@torch.no_grad()
def features(encoder: Path, pixels_BHWC: NDArray[np.uint8]) -> NDArray[np.float32]:
    """Features of every patch of the images, [B, N, D]."""
    # Not at the top: timm takes seconds to import, and mistakes are told before.
    from ijepa.checkpoint import load_encoder

    network = load_encoder(encoder)[0].to(first_device())
    batches = torch.from_numpy(pixels_BHWC).split(BATCH_SIZE)
    parts = [patch_features(network, inputs(network, batch)).cpu() for batch in batches]
    return torch.cat(parts).numpy()


@contextmanager
def png(path: Path, width: float, height: float) -> Iterator[Figure]:
    """Figure of a size in inches, dark on white, written as PNG after the block.

    The file says in itself what it shows, by its name (READING).
    """
    drawing = Figure(figsize=(width, height), layout="compressed")  # for cells of fixed shape
    yield drawing
    with written_whole(path) as part:
        about = texts(path.stem, READING[path.stem])
        drawing.savefig(part, format="png", dpi=DOTS_PER_INCH, metadata=about)


def draw(
    encoder: Path,
    images: list[Path],
    out: Path,
    patch: str | None = None,
    count: int = 8,
    image_size: int | None = None,
) -> list[Path]:
    """Write the three pictures of ``images``; returns their files."""
    if count < 1:
        raise UserError(f"--count {count}: show at least one patch")
    if out.suffix in (".png", ".jpg", ".svg", ".pdf"):
        raise UserError(f"--out {out} is a folder for several files: leave {out.suffix} out")
    size, grid = patches_of(encoder, image_size)
    chosen = (0, patch_number(patch, grid))
    pixels = [to_array(centre_crop(read_image(path), size)) for path in images]
    x_BND = features(encoder, np.stack(pixels))
    cosines = patches.similarity(x_BND, *chosen)
    framed = [chosen, *patches.nearest_of_each(cosines, chosen[0])]
    columns, blocks = min(COLUMNS, len(images)), -(-len(images) // COLUMNS)
    width = 1.0 + 1.6 * columns
    files = [out / f"{name}.png" for name in ("components", "similarity", "nearest")]
    with png(files[0], width, 3.3 * blocks) as drawing:
        sheet(drawing, pixels, {"components": patches.components(x_BND)}, grid)
    with png(files[1], width, 3.3 * blocks) as drawing:
        sheet(drawing, pixels, {"cosine similarity": cosines}, grid, framed)
    with png(files[2], 1.7 * COLUMNS, 2.1 * -(-(count + 1) // COLUMNS)) as drawing:
        names = [path.name[-LONGEST_NAME:] for path in images]
        nearest_sheet(drawing, pixels, names, cosines, chosen, count, grid)
    return files


def main() -> None:
    """Entry point of the command line."""
    options = parser().parse_args()
    for path in draw(
        options.encoder,
        options.image,
        options.out,
        options.patch,
        options.count,
        options.image_size,
    ):
        print(path)


if __name__ == "__main__":
    run_command(main)
