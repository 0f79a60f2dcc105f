"""Pictures of decoded blocks: the image, what the encoder saw of it, samples, and their spread.

Everything outside the pictures is transparent and labels are grey, so that they read on light and
dark pages and in print.

Shape suffixes: S samples, C channels, H and W pixels, K patches of the context, N patches.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from evals.decoder.blocks import Block
from evals.described import write_described
from ijepa.image_size import PatchGrid

SIDE, GAP, LABEL = 112, 6, 18
"""Pixels: least side of a picture, gap between two, height of the labels."""
OUTLINE, HIDDEN, TEXT = (0, 158, 115), (150, 150, 150), (128, 128, 128, 255)
SPREAD_COLOUR, SPREAD_MAX = np.array([213, 94, 0]), 0.3
"""Colour of a standard deviation of SPREAD_MAX, where values go from 0 to 1; none is white."""

Pixels = NDArray[np.uint8]


@dataclass(frozen=True)
class Row:
    """One image, its blocks, and the samples of each.

    ``samples`` has for each block [S, C, H, W] in [0, 1]. ``context_K`` are the patches that the
    encoder saw around the ``hidden`` blocks; None if it saw all of them. ``reconstruction_CHW`` is
    the method's own of these blocks.
    """

    image_CHW: Tensor
    blocks: list[Block]
    samples: list[Tensor]
    context_K: Tensor | None = None
    hidden: Sequence[Block] = ()
    reconstruction_CHW: Tensor | None = None


def sheet_of(rows: list[Row], grid: PatchGrid) -> Image.Image:
    """All rows below each other, with labels above the columns."""
    cells = [_cells(row, grid) for row in rows]
    labels = [label for label, _ in cells[0]]
    side = cells[0][0][1].width
    size = (len(labels) * (side + GAP) - GAP, LABEL + len(rows) * (side + GAP) - GAP)
    canvas = Image.new("RGBA", size, (0, 0, 0, 0))
    draw, font = ImageDraw.Draw(canvas), ImageFont.load_default(size=13)
    for column, label in enumerate(labels):
        draw.text((column * (side + GAP) + 1, 0), label, fill=TEXT, font=font)
    for number, row in enumerate(cells):
        for column, (_, picture) in enumerate(row):
            canvas.paste(picture, (column * (side + GAP), LABEL + number * (side + GAP)))
    return canvas


def write_picture(path: Path, rows: list[Row], grid: PatchGrid) -> None:
    """Write all rows as a PNG that says how it is read."""
    write_described(path, sheet_of(rows, grid), "Decoded images", description(rows[0]))


def description(row: Row) -> str:
    """Sentences on how to read a picture whose rows are like this one."""
    parts = ["Each row is an image. "]
    if row.context_K is not None and row.reconstruction_CHW is None:
        parts.append(
            "Context: the encoder saw no grey patch; the block framed in green was predicted. Each "
            "sample is that prediction, decoded from other noise. "
        )
    else:
        parts.append(
            "Each sample is the average feature of the whole image, decoded from other noise. "
        )
    if row.reconstruction_CHW is not None:
        parts.append("Its own: what the method itself draws in the framed block from the context. ")
    parts.append(
        "What all samples share is in the features; what differs between them is not. Spread: "
        f"their standard deviation, white for none, orange for {SPREAD_MAX} of black to white and "
        "more."
    )
    return "".join(parts)


def _cells(row: Row, grid: PatchGrid) -> list[tuple[str, Image.Image]]:
    """Labels and pictures of a row."""
    size = row.image_CHW.shape[-1]
    side = size * max(1, -(-SIDE // size))
    image = _enlarged(row.image_CHW, side)
    cells = [("image", image)]
    background = image
    if row.context_K is not None:
        faded = _faded(image, row.context_K, grid)
        cells.append(("context", _outlined(faded, row.hidden, grid)))
        if row.reconstruction_CHW is None:
            background = faded
        else:
            filled = _enlarged(row.reconstruction_CHW, side)
            cells.append(("its own", _outlined(filled, row.hidden, grid)))
    outlines = row.blocks if row.blocks == list(row.hidden) else []
    for number, parts in enumerate(zip(*row.samples, strict=True), start=1):
        sample = _filled(background, row.blocks, parts, grid)
        cells.append((f"sample {number}", _outlined(sample, outlines, grid)))
    blank = Image.new("RGB", (side, side), (255, 255, 255))
    spreads = _filled(blank, row.blocks, [_spread(x) for x in row.samples], grid)
    cells.append((f"spread, 0-{SPREAD_MAX}", _outlined(spreads, outlines, grid)))
    return cells


def _spread(samples_SCHW: Tensor) -> Tensor:
    """Standard deviation over samples, of one sample 0, as a picture [C, H, W]."""
    std_CHW = samples_SCHW.std(0, correction=min(1, len(samples_SCHW) - 1))
    share_HW = (std_CHW.mean(0) / SPREAD_MAX).clamp(max=1).unsqueeze(0)
    colour = torch.tensor(SPREAD_COLOUR / 255).float().view(3, 1, 1)
    return 1 - share_HW * (1 - colour)


def _array(picture_CHW: Tensor) -> Pixels:
    array: Pixels = (picture_CHW.clamp(0, 1) * 255).round().byte().permute(1, 2, 0).numpy()
    return array


def _enlarged(picture_CHW: Tensor, side: int) -> Image.Image:
    image = Image.fromarray(_array(picture_CHW))
    return image.resize((side, side), Image.Resampling.NEAREST)


def _box(block: Block, grid: PatchGrid, side: int) -> tuple[int, int, int, int]:
    """Left, top, right and bottom of a block in a picture."""
    rows, columns = grid
    return (
        block.column * side // columns,
        block.row * side // rows,
        (block.column + block.width) * side // columns,
        (block.row + block.height) * side // rows,
    )


def _faded(image: Image.Image, context_K: Tensor, grid: PatchGrid) -> Image.Image:
    """Image with grey in place of the patches that were not seen."""
    seen_N = torch.zeros(grid[0] * grid[1], dtype=torch.bool)
    seen_N[context_K] = True
    mask = Image.fromarray((seen_N.view(grid).numpy() * 255).astype(np.uint8))
    mask = mask.resize(image.size, Image.Resampling.NEAREST)
    return Image.composite(image, Image.new("RGB", image.size, HIDDEN), mask)


def _outlined(image: Image.Image, blocks: Sequence[Block], grid: PatchGrid) -> Image.Image:
    image = image.copy()
    draw = ImageDraw.Draw(image)
    for block in blocks:
        left, top, right, bottom = _box(block, grid, image.width)
        draw.rectangle((left, top, right - 1, bottom - 1), outline=OUTLINE, width=2)
    return image


def _filled(
    image: Image.Image, blocks: Sequence[Block], parts: Sequence[Tensor], grid: PatchGrid
) -> Image.Image:
    """Image with a picture [C, H, W] in each block."""
    image = image.copy()
    for block, picture in zip(blocks, parts, strict=True):
        left, top, right, bottom = _box(block, grid, image.width)
        drawn = Image.fromarray(_array(picture)).resize(
            (right - left, bottom - top), Image.Resampling.BICUBIC
        )
        image.paste(drawn, (left, top))
    return image
