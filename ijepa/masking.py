"""Multi-block masks: which patches are context and which are targets, as indices into the grid.

Shape suffixes: G images of a group, M target blocks, K context patches, T patches per target block,
H rows of the grid, W columns of the grid, N = H * W patches (row-major).

Source: Assran et al., CVPR 2023, section 3 and A.1. Paper and release differ: see ``Masking.mode``.
"""

import math
from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
from torch import Tensor

MAX_DRAWS = 20
"""Positions tried for a context block before one target's claim on its patches is dropped."""


@dataclass(frozen=True)
class Masking:
    """Defaults are those of every released config of I-JEPA.

    ``official`` reproduces the release, which does not do what the paper says in four ways:
    one uniform number decides both scale and aspect ratio, so small blocks are wide and large ones
    tall; a block's sides stay below the grid's, so the "0.85-1.0" context is always 13x13 of 14x14;
    the last row and column are never part of any block; and of an image with more context patches
    than its group's smallest, the first in row-major order are kept, which favours the top.
    ``fixed`` draws scale and aspect ratio apart, allows every position and size, and keeps a random
    subset.

    ``group_size`` images share block sizes and are cut to one context length. The release does so
    per device batch, so its effective context depends on the hardware (0.43 of the patches at 1
    image, 0.26 at 128); here it is a setting of its own.
    """

    mode: Literal["official", "fixed"] = "official"
    num_targets: int = 4
    target_scale: tuple[float, float] = (0.15, 0.2)
    target_aspect: tuple[float, float] = (0.75, 1.5)
    context_scale: tuple[float, float] = (0.85, 1.0)
    min_keep: int = 10
    group_size: int = 128

    def __post_init__(self) -> None:
        for name, low, high in (
            ("num_targets", 1, 64),
            ("min_keep", 0, 10**6),
            ("group_size", 1, 10**6),
        ):
            if not low <= getattr(self, name) <= high:
                raise ValueError(f"{name} is {getattr(self, name)}: allowed are {low} to {high}")
        for name, ceiling in (
            ("target_scale", 1.0),
            ("context_scale", 1.0),
            ("target_aspect", math.inf),
        ):
            first, last = getattr(self, name)
            if not 0 < first <= last <= ceiling:
                raise ValueError(
                    f"{name} is {[first, last]}: it must rise from above 0 to at most {ceiling}"
                )


class Masks(NamedTuple):
    """Indices of the patches kept, ascending, for one group of images."""

    context_GK: Tensor
    targets_GMT: Tensor


class MultiBlock:
    """Samples masks for groups of images on one grid.

    Raises ValueError on construction where the settings cannot be met on the grid: the release
    would search for ever (on every grid of 8x8 and below).
    """

    def __init__(self, config: Masking, grid: tuple[int, int]) -> None:
        self.config = config
        self.grid = grid
        smallest = {
            "target": self._smallest_area("target"),
            "context": self._smallest_area("context"),
        }
        for name, area in smallest.items():
            if area <= config.min_keep:
                raise ValueError(
                    f"masking: a {name} block can have only {area} of the grid's "
                    f"{grid[0]}x{grid[1]} patches, but must have more than min_keep "
                    f"({config.min_keep}): lower min_keep below {area}, raise {name}_scale, "
                    "or use smaller patches"
                )

    def block_sizes(self, generator: torch.Generator) -> tuple[tuple[int, int], tuple[int, int]]:
        """(rows, columns) of the target blocks and of the context block, shared by a group."""
        if self.config.mode == "official":
            target, context = torch.rand(2, generator=generator).tolist()
            return self._size("target", target, target), self._size("context", context, context)
        scale, aspect, context = torch.rand(3, generator=generator).tolist()
        return self._size("target", scale, aspect), self._size("context", context, context)

    def sample(self, num_images: int, generator: torch.Generator) -> Masks:
        """Masks for one group of ``num_images``; a function of the generator's state alone.

        Context and targets of an image are disjoint, unless no more than ``min_keep`` patches are
        left in each of 20 draws: then the last target's claim is dropped, and so on, as in the
        release.
        """
        target_size, context_size = self.block_sizes(generator)
        M = self.config.num_targets
        targets_GMHW = self._blocks(num_images * M, target_size, generator).unflatten(0, (-1, M))
        # claimed[:, r] is the union of the first r targets; all M are tried first, none last.
        claimed_GRHW = torch.cat(
            [torch.zeros_like(targets_GMHW[:, :1]), targets_GMHW.cummax(1).values], dim=1
        )
        context_GHW = torch.zeros_like(targets_GMHW[:, 0])
        todo = torch.arange(num_images)
        for draw in range(MAX_DRAWS * (M + 1)):
            block = self._blocks(len(todo), context_size, generator)
            block &= ~claimed_GRHW[todo, M - draw // MAX_DRAWS]
            enough = block.flatten(1).sum(1) > self.config.min_keep
            context_GHW[todo[enough]] = block[enough]
            todo = todo[~enough]
            if not len(todo):
                break
        assert not len(todo), "the constructor refuses settings that cannot be met"
        return Masks(
            self._cut(context_GHW.flatten(1), generator),
            self._cut(targets_GMHW.flatten(2).flatten(0, 1), generator).unflatten(0, (-1, M)),
        )

    def _size(self, name: str, scale_draw: float, aspect_draw: float) -> tuple[int, int]:
        """(rows, columns) of a block for uniform draws in [0, 1)."""
        config, (H, W) = self.config, self.grid
        (s0, s1) = config.target_scale if name == "target" else config.context_scale
        (a0, a1) = config.target_aspect if name == "target" else (1.0, 1.0)
        area = int(H * W * (s0 + scale_draw * (s1 - s0)))
        aspect = a0 + aspect_draw * (a1 - a0)
        margin = 1 if config.mode == "official" else 0
        return (
            min(round(math.sqrt(area * aspect)), H - margin),
            min(round(math.sqrt(area / aspect)), W - margin),
        )

    def _smallest_area(self, name: str) -> int:
        draws = [i / 64 for i in range(65)]
        pairs = (
            ((d, d) for d in draws)
            if self.config.mode == "official"
            else ((s, a) for s in draws for a in draws)
        )
        return min(h * w for h, w in (self._size(name, *pair) for pair in pairs))

    def _blocks(self, count: int, size: tuple[int, int], generator: torch.Generator) -> Tensor:
        """``count`` blocks of one size at uniform positions, boolean [count, H, W]."""
        inside = []
        for side, length in zip(self.grid, size, strict=True):
            # The release leaves out the last position: its upper bound is exclusive.
            positions = side - length + (self.config.mode == "fixed")
            start = torch.randint(positions, (count, 1), generator=generator)
            place = torch.arange(side)
            inside.append((place >= start) & (place < start + length))
        return inside[0].unsqueeze(2) & inside[1].unsqueeze(1)

    def _cut(self, kept_GN: Tensor, generator: torch.Generator) -> Tensor:
        """Ascending indices of kept patches, cut to the smallest count of the group."""
        length = int(kept_GN.sum(1).min())
        if self.config.mode == "official":
            return kept_GN.byte().sort(dim=1, descending=True, stable=True).indices[:, :length]
        order_GN = torch.rand(kept_GN.shape, generator=generator) + ~kept_GN
        return order_GN.topk(length, dim=1, largest=False).indices.sort(dim=1).values
