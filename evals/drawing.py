"""Drawings of images, maps of their patches, and single patches, into Matplotlib's figures.

Shape suffixes: B images, N patches of the grid (row-major).
"""

from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray

from evals import patches

Patch = tuple[int, int]
"""Number of an image, and of a patch in it, row-major."""
Grid = tuple[int, int]
"""Rows and columns of patches."""

FRAMES = ("#D55E00", "#0072B2")
"""Colours of the chosen patch's frame and of the nearest ones' (Okabe and Ito)."""
COLUMNS = 6
LONGEST_NAME = 28
"""Characters of a file's name that fit above its picture."""
AROUND = 2
"""Patches on each side of a nearest patch that are shown with it."""


def show(axis: Axes, pixels: NDArray[np.uint8]) -> None:
    """Draw an image without axes."""
    axis.imshow(pixels, interpolation="nearest")
    bare(axis)


def bare(axis: Axes) -> None:
    """Take away an axis' ticks and frame."""
    axis.set(xticks=[], yticks=[])
    axis.spines[:].set_visible(False)


def frame(axis: Axes, patch: int, grid: Grid, side: float, colour: str) -> None:
    """Draw a frame around a patch on an image ``side`` pixels wide."""
    row, column = divmod(patch, grid[1])
    step = side / grid[1]
    left, top = column * step - 0.5, row * step - 0.5
    x = [left, left + step, left + step, left, left]
    y = [top, top, top + step, top + step, top]
    # A light line below the dark one: visible on any image.
    axis.plot(x, y, color="white", linewidth=3.4, solid_joinstyle="miter")
    axis.plot(x, y, color=colour, linewidth=1.8, solid_joinstyle="miter")


def sheet(
    drawing: Figure,
    pixels: Sequence[NDArray[np.uint8]],
    maps: dict[str, NDArray[np.float64]],
    grid: Grid,
    frames: Sequence[Patch] = (),
) -> None:
    """Draw images in columns, and below each its maps, [B, N] or in colour [B, N, 3].

    Framed are patches of the images, the first of them as the chosen one.
    """
    columns = min(COLUMNS, len(pixels))
    height = 1 + len(maps)
    blocks = -(-len(pixels) // columns)
    axes = drawing.subplots(blocks * height, columns, squeeze=False)
    for axis in axes.flat:
        bare(axis)
    for number, image in enumerate(pixels):
        top, column = number // columns * height, number % columns
        show(axes[top, column], image)
        for line, values in enumerate(maps.values(), start=1):
            axis = axes[top + line, column]
            axis.imshow(
                values[number].reshape(*grid, *values.shape[2:]),
                interpolation="nearest",
                cmap="viridis",
                vmin=values.min(),
                vmax=values.max(),
            )
        for order, (of_image, patch) in enumerate(frames):
            if of_image == number:
                frame(axes[top, column], patch, grid, image.shape[1], FRAMES[order > 0])
    for block in range(blocks):
        for line, (name, values) in enumerate(maps.items(), start=1):
            row = axes[block * height + line]
            row[0].set_ylabel(name)
            if values.ndim == 2:
                bar = drawing.colorbar(row[0].images[0], ax=list(row), fraction=0.03, pad=0.01)
                bar.outline.set_visible(False)


def nearest_sheet(
    drawing: Figure,
    pixels: Sequence[NDArray[np.uint8]],
    names: Sequence[str],
    similarity_BN: NDArray[np.float64],
    chosen: Patch,
    count: int,
    grid: Grid,
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
        show(axis, pixels[image])
        frame(axis, patch, grid, side, FRAMES[order > 0])
        row, column = divmod(patch, num_columns)
        left, top = (
            min(max(middle - AROUND, 0), num_columns - width) * step - 0.5
            for middle in (column, row)
        )
        axis.set(xlim=(left, left + width * step), ylim=(top + width * step, top))
        name = names[image].replace("$", r"\$") if order else "chosen patch"
        value = f": {similarity_BN[image, patch]:.2f}" if order else ""
        axis.set_title(f"{name}\nrow {row}, column {column}{value}", fontsize=7)
