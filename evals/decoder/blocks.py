"""Blocks of patches: where they lie, what an image shows there, and what is seen around them.

Shape suffixes: B images, C channels, H and W pixels, N patches of the grid (row-major), K patches
of the context, T patches of a block.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from ijepa.errors import UserError
from ijepa.image_size import PatchGrid, Size, sides


@dataclass(frozen=True)
class Block:
    """Rectangle of patches: its first row and column, counted from 0, its height and its width."""

    row: int
    column: int
    height: int
    width: int

    def patches(self, grid: PatchGrid) -> Tensor:
        """Ascending indices of its patches, [T]."""
        numbers = torch.arange(grid[0] * grid[1]).view(grid)
        return numbers[
            self.row : self.row + self.height, self.column : self.column + self.width
        ].flatten()

    def position(self, grid: PatchGrid) -> list[float]:
        """Row, column, height and width as shares of the grid's sides."""
        rows, columns = grid
        return [self.row / rows, self.column / columns, self.height / rows, self.width / columns]


class Regions(NamedTuple):
    """Block to decode of each image, and the patches that the encoder sees, [B, K]."""

    blocks: list[Block]
    context_BK: Tensor


def whole(grid: PatchGrid) -> Block:
    """Block that is the whole image."""
    return Block(0, 0, *grid)


def around(blocks: Sequence[Block], grid: PatchGrid) -> Tensor:
    """Ascending indices of all patches outside the blocks, [K]."""
    outside_N = torch.ones(grid[0] * grid[1], dtype=torch.bool)
    for block in blocks:
        outside_N[block.patches(grid)] = False
    return outside_N.nonzero().flatten()


def parse(text: str, grid: PatchGrid) -> Block:
    """Block from ``row,column,height,width`` in patches; raises UserError if it is not on the grid.

    A block that leaves no patch around it is an error, too: nothing would be seen.
    """
    rows, columns = grid
    example = f"such as {rows // 4},{columns // 4},{rows // 2},{columns // 2}"
    try:
        block = Block(*map(int, text.split(",")))
    except (TypeError, ValueError):
        raise UserError(
            f"--block {text}: it must be row,column,height,width, four whole numbers of patches, "
            f"{example}"
        ) from None
    inside = (
        0 <= block.row < block.row + block.height <= rows
        and 0 <= block.column < block.column + block.width <= columns
    )
    if not inside:
        raise UserError(
            f"--block {text}: it must lie within the grid of {rows}x{columns} patches and have a "
            f"height and a width above 0, {example}"
        )
    if block.height * block.width == rows * columns:
        raise UserError(f"--block {text}: it hides the whole image: leave some patches around it")
    return block


def bounding(patches_T: Tensor, grid: PatchGrid) -> Block:
    """Block of these patches; raises UserError if they are no full rectangle."""
    rows, columns = patches_T // grid[1], patches_T % grid[1]
    first = int(rows.min()), int(columns.min())
    sides = int(rows.max()) - first[0] + 1, int(columns.max()) - first[1] + 1
    if sides[0] * sides[1] != len(patches_T):
        raise UserError(
            "condition: prediction needs targets that are blocks, and this run's masking has "
            "scattered ones: set condition: image"
        )
    return Block(*first, *sides)


def crop(images_BCHW: Tensor, blocks: Sequence[Block], grid: PatchGrid, size: int) -> Tensor:
    """Content of each image in its block, resized to [B, C, size, size]."""
    patch = images_BCHW.shape[2] // grid[0]
    parts = []
    for image_CHW, block in zip(images_BCHW, blocks, strict=True):
        top, left = block.row * patch, block.column * patch
        part = image_CHW[
            :, top : top + block.height * patch, left : left + block.width * patch
        ].unsqueeze(0)
        parts.append(resize(part, size))
    return torch.cat(parts)


def resize(images_BCHW: Tensor, size: Size) -> Tensor:
    """Images in ``size`` pixels, bilinear, smoothed where they shrink."""
    if images_BCHW.shape[2:] == sides(size):
        return images_BCHW
    return F.interpolate(images_BCHW, sides(size), mode="bilinear", antialias=True)
