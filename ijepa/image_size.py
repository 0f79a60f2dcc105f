"""Size of images in pixels: the side of a square, or (height, width)."""

from typing import Any

from pydantic import TypeAdapter, ValidationError

Size = int | tuple[int, int]
PatchGrid = tuple[int, int]
"""Rows and columns of patches."""
_whole = TypeAdapter(int)


def sides(size: Size) -> tuple[int, int]:
    """Height and width."""
    return (size, size) if isinstance(size, int) else size


def as_size(value: Any) -> Size:
    """Size from a config; equal sides are one number. Raises ValueError for anything else."""
    pair = list(value) if isinstance(value, list | tuple) else [value, value]
    try:
        height, width = (_whole.validate_python(side) for side in pair)
    except (ValidationError, ValueError):
        raise ValueError(
            f"image_size is {value!r}: give a number of pixels, or [height, width]"
        ) from None
    return height if height == width else (height, width)
