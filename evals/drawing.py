"""Drawings of images, maps of their patches, and single patches, into Matplotlib's figures.

Shape suffixes: B images, N patches of the grid (row-major).
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.image import AxesImage
from numpy.typing import NDArray

from evals import patches
from ijepa.data.bands import Bands, Picture
from ijepa.image_size import PatchGrid

Patch = tuple[int, int]
"""Number of an image, and of a patch in it, row-major."""

FRAMES = ("#D55E00", "#0072B2")
"""Colours of the chosen patch's frame and of the nearest ones' (Okabe and Ito)."""
COLUMNS = 6
LONGEST_NAME = 28
"""Characters of a file's name that fit above its picture."""
AROUND = 2
"""Patches on each side of a nearest patch that are shown with it."""


GAP = 0.06
"""Share of a board's cell that stays free beside an image."""


def board(drawing: Figure, rows: dict[float, str], columns: int) -> Axes:
    """Axes with a cell of side 1 for each image, from the top left; ``rows`` has names by height.

    One for all images: Matplotlib takes 40 ms to make axes, draw them and find them room.
    """
    axis = drawing.subplots()
    bare(axis)
    axis.set(xlim=(-GAP, columns), ylim=(max(rows) + 1, -GAP), aspect="equal")
    axis.set_yticks([row + (1 - GAP) / 2 for row in rows], list(rows.values()))
    axis.tick_params(length=0)
    return axis


def show(axis: Axes, row: float, column: float, pixels: NDArray[Any], **colours: Any) -> AxesImage:
    """Draw an image into a cell, its longer side as wide as the cell."""
    height, width = pixels.shape[:2]
    scale = (1 - GAP) / max(height, width)
    extent = (column, column + width * scale, row + height * scale, row)
    return axis.imshow(pixels, interpolation="nearest", extent=extent, **colours)


def displayed(image: Picture) -> NDArray[np.uint8]:
    """Bytes [H, W, 3] of an image in RGB; of any other, its first three channels or first one.

    These are stretched to the largest value: 16 bits often use a small part of their range.
    """
    pixels: NDArray[Any] = np.asarray(image)
    if not isinstance(image, Bands):
        return pixels
    shown = pixels[..., :3] if pixels.shape[2] > 2 else pixels[..., :1].repeat(3, 2)
    stretched: NDArray[Any] = 255 * np.clip(shown / max(shown.max(), 1e-6), 0, 1)
    return stretched.astype(np.uint8)


def bare(axis: Axes) -> None:
    """Take away an axis' ticks and frame."""
    axis.set(xticks=[], yticks=[])
    axis.spines[:].set_visible(False)


def frame(axis: Axes, left: float, top: float, side: float, colour: str) -> None:
    """Draw a square frame."""
    x = [left, left + side, left + side, left, left]
    y = [top, top, top + side, top + side, top]
    # A light line below the dark one: visible on any image.
    axis.plot(x, y, color="white", linewidth=3.4, solid_joinstyle="miter")
    axis.plot(x, y, color=colour, linewidth=1.8, solid_joinstyle="miter")


def sheet(
    drawing: Figure,
    pixels: Sequence[NDArray[np.uint8]],
    maps: dict[str, NDArray[np.float64]],
    grid: PatchGrid,
    frames: Sequence[Patch] = (),
) -> None:
    """Draw images in columns, and below each its maps, [B, N] or in colour [B, N, 3].

    Framed are patches of the images, the first of them as the chosen one.
    """
    columns = min(COLUMNS, len(pixels))
    names = ["", *maps]
    blocks = -(-len(pixels) // columns)
    axis = board(drawing, dict(enumerate(names * blocks)), columns)
    step = (1 - GAP) / max(grid)
    for number, image in enumerate(pixels):
        top, column = number // columns * len(names), number % columns
        show(axis, top, column, image)
        for line, values in enumerate(maps.values(), start=1):
            by_place = values[number].reshape(*grid, *values.shape[2:])
            limits = {"cmap": "viridis", "vmin": values.min(), "vmax": values.max()}
            drawn = show(axis, top + line, column, by_place, **limits)
        for order, (of_image, patch) in enumerate(frames):
            if of_image == number:
                row_of_patch, column_of_patch = divmod(patch, grid[1])
                left, high = column + column_of_patch * step, top + row_of_patch * step
                frame(axis, left, high, step, FRAMES[order > 0])
    if values.ndim == 2:
        bar = drawing.colorbar(drawn, ax=axis, fraction=0.03, pad=0.01, aspect=30)
        bar.outline.set_visible(False)


def nearest_sheet(
    drawing: Figure,
    pixels: Sequence[NDArray[np.uint8]],
    names: Sequence[str],
    similarity_BN: NDArray[np.float64],
    chosen: Patch,
    count: int,
    grid: PatchGrid,
) -> None:
    """Draw a patch with the patches around it, and after it those that are nearest to it."""
    shown = [chosen, *patches.nearest(similarity_BN, *chosen, count)]
    columns = min(COLUMNS, len(shown))
    axes = drawing.subplots(-(-len(shown) // columns), columns, squeeze=False)
    for axis in axes.flat:
        bare(axis)
    side, (_, num_columns) = pixels[0].shape[1], grid
    step, width = side / num_columns, min(2 * AROUND + 1, num_columns)
    for order, (axis, (image, patch)) in enumerate(zip(axes.flat, shown, strict=False)):
        axis.imshow(pixels[image], interpolation="nearest")
        row, column = divmod(patch, num_columns)
        frame(axis, column * step - 0.5, row * step - 0.5, step, FRAMES[order > 0])
        left, top = (
            min(max(middle - AROUND, 0), num_columns - width) * step - 0.5
            for middle in (column, row)
        )
        axis.set(xlim=(left, left + width * step), ylim=(top + width * step, top))
        name = names[image].replace("$", r"\$") if order else "chosen patch"
        value = f": {similarity_BN[image, patch]:.2f}" if order else ""
        axis.set_title(f"{name}\nrow {row}, column {column}{value}", fontsize=7)
