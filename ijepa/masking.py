"""Masks: choice of the patches that are context or targets, or that are hidden.

``sampler`` draws I-JEPA's masks, as indices into the grid; ``block_wise`` and ``random_masks`` draw
those of the methods that hide patches of an image, as booleans.

Shape suffixes: B images, G images of a group, M target blocks, K context patches, T patches per
target block, Q a quadrant's patches, H rows of the grid, W columns of the grid, N = H * W patches
(row-major).

Source: Assran et al., CVPR 2023, section 3 and A.1. Paper and release differ: see ``Masking.mode``.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal, NamedTuple, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import Field
from torch import Tensor

from ijepa.ranges import Count, Positive, PositiveShare, Rising, Share

MAX_DRAWS = 20
"""Positions tried for a context block before one target's claim on its patches is dropped."""

BLOCK_WISE_ROUNDS = 16
"""Blocks drawn per image before ``block_wise`` fills up with single patches."""

Bits = NDArray[np.bool_]


@dataclass(frozen=True)
class Masking:
    """Defaults are those of every released config of I-JEPA.

    ``strategy`` is the paper's (Table 6). ``rasterised``: one quadrant of the grid is the context,
    the other three are targets. ``block`` and ``random``: the one target is a block, or a random
    set, of ``target_ratio`` of the patches, and the rest is the context. These three use only the
    settings ``target_ratio``, ``group_size`` and, for ``block``, ``target_aspect``.

    ``mode`` official reproduces the release, which differs from the paper in four ways: one uniform
    number decides both scale and aspect ratio, so small blocks are wide and large ones tall; a
    block's sides stay below the grid's, so the "0.85-1.0" context is always 13x13 of 14x14; the
    last row and column are never part of any block; and an image with more context patches than the
    smallest number in its group keeps the first ones in row-major order, which favours the top.
    ``fixed`` draws scale and aspect ratio separately, allows every position and size, and keeps a
    random subset.

    ``group_size`` images share block sizes and are cut to one context length. The release does so
    per device batch, so its effective context depends on the hardware (0.43 of the patches at 1
    image, 0.26 at 128); here it is a setting of its own. Block sizes come from a counter there that
    is the same on every device, so nominally all images of a step share them; here each group draws
    its own.
    """

    strategy: Literal["multi_block", "rasterised", "block", "random"] = "multi_block"
    target_ratio: Share = 0.6
    mode: Literal["official", "fixed"] = "official"
    num_targets: Annotated[int, Field(ge=1, le=64)] = 4
    target_scale: Rising[PositiveShare] = (0.15, 0.2)
    target_aspect: Rising[Positive] = (0.75, 1.5)
    context_scale: Rising[PositiveShare] = (0.85, 1.0)
    min_keep: Annotated[int, Field(ge=0, le=10**6)] = 10
    group_size: Annotated[int, Field(ge=1, le=10**6)] = 128


class Masks(NamedTuple):
    """Ascending indices of the context and target patches of one group of images."""

    context_GK: Tensor
    targets_GMT: Tensor


class Sampler(Protocol):
    """Sampler of one strategy's masks on one grid."""

    def sample(self, num_images: int, generator: torch.Generator) -> Masks:
        """Masks for one group of ``num_images``; a function of the generator's state alone."""
        ...


def sampler(config: Masking, grid: tuple[int, int]) -> Sampler:
    """Sampler of ``config.strategy``; raises ValueError if the grid is too small for it."""
    strategies: dict[str, Callable[[Masking, tuple[int, int]], Sampler]] = {
        "multi_block": MultiBlock,
        "rasterised": Rasterised,
        "block": Block,
        "random": Random,
    }
    return strategies[config.strategy](config, grid)


class MultiBlock:
    """Sampler of one context block and several target blocks, for groups of images on one grid.

    The constructor raises ValueError for settings that cannot be met on the grid. The release would
    search for ever instead (on every grid of 8x8 and below).
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

        Context and targets of an image are disjoint. But if each of 20 draws leaves no more than
        ``min_keep`` context patches, the context may overlap the last target; after 20 more draws
        also the target before it, and so on, as in the release.
        """
        target_size, context_size = self.block_sizes(generator)
        shape = (num_images, self.config.num_targets)
        top, left = self._corners(math.prod(shape), target_size, generator)
        targets_GMHW = _rectangles(self.grid, (top, left), target_size).reshape(*shape, *self.grid)
        context_GN = self._contexts(targets_GMHW, context_size, generator).reshape(num_images, -1)
        rows, columns = (np.arange(length) for length in target_size)
        patches_T = (rows[:, None] * self.grid[1] + columns).ravel()
        targets_GMT = (top * self.grid[1] + left + patches_T).reshape(*shape, -1)
        return Masks(self._cut(context_GN, generator), torch.from_numpy(targets_GMT))

    def _contexts(
        self, targets_GMHW: Bits, size: tuple[int, int], generator: torch.Generator
    ) -> Bits:
        """Context patches of each image, boolean [G, H, W], before they are cut to one number."""
        G, M, *grid = targets_GMHW.shape
        context_GHW = np.zeros((G, *grid), bool)
        pending = np.arange(G)
        for draw in range(MAX_DRAWS * (M + 1)):
            if draw % MAX_DRAWS == 0:  # first all targets claim their patches, at the end none
                claimed: Any = targets_GMHW[:, : M - draw // MAX_DRAWS].any(axis=1)
                free_GHW = ~claimed
            corners = self._corners(len(pending), size, generator)
            block = _rectangles(self.grid, corners, size) & free_GHW[pending]
            enough = np.count_nonzero(block, axis=(1, 2)) > self.config.min_keep
            context_GHW[pending[enough]] = block[enough]
            pending = pending[~enough]
            if not len(pending):
                return context_GHW
        raise AssertionError("the constructor refuses settings that cannot be met")

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

    def _corners(
        self, count: int, size: tuple[int, int], generator: torch.Generator
    ) -> list[NDArray[np.int64]]:
        """Uniform first rows and columns of ``count`` blocks of one size, [count, 1] each."""
        # The release leaves out the last position: its upper bound is exclusive.
        last = self.config.mode == "fixed"
        return [
            torch.randint(side - length + last, (count, 1), generator=generator).numpy()
            for side, length in zip(self.grid, size, strict=True)
        ]

    def _cut(self, context_GN: Bits, generator: torch.Generator) -> Tensor:
        """Ascending indices of the context patches, cut to the smallest count of the group."""
        counts_G = np.count_nonzero(context_GN, axis=1)
        length = int(counts_G.min())
        if self.config.mode == "official":
            first_G = counts_G.cumsum() - counts_G
            index_GK = first_G[:, None] + np.arange(length)
            return torch.from_numpy(context_GN.nonzero()[1][index_GK])
        order_GN = torch.rand(context_GN.shape, generator=generator) + ~torch.from_numpy(context_GN)
        return order_GN.topk(length, dim=1, largest=False).indices.sort(dim=1).values


class Rasterised:
    """Sampler of quadrants of the grid: one is the context, the other three are targets."""

    def __init__(self, config: Masking, grid: tuple[int, int]) -> None:
        H, W = grid
        if H % 2 or W % 2:
            raise ValueError(
                f"masking: strategy rasterised needs four equal quadrants, and the grid is {H}x{W}:"
                " use an image size and patch size that make both sides even"
            )
        halves = torch.arange(H * W).view(2, H // 2, 2, W // 2)
        self.quadrants_4Q = halves.transpose(1, 2).reshape(4, -1)

    def sample(self, num_images: int, generator: torch.Generator) -> Masks:
        """Masks of ``num_images``: each quadrant is equally likely to be the context.

        The targets are in row-major order.
        """
        context_G1 = torch.randint(4, (num_images, 1), generator=generator)
        others_G3 = ((context_G1 + torch.arange(1, 4)) % 4).sort(dim=1).values
        return Masks(self.quadrants_4Q[context_G1[:, 0]], self.quadrants_4Q[others_G3])


class Block:
    """Sampler of one large target block; all patches around it are the context.

    The block's size is shared by a group; every position on the grid is equally likely. If the grid
    is too narrow for the aspect ratio drawn, the block becomes longer to keep its area.
    """

    def __init__(self, config: Masking, grid: tuple[int, int]) -> None:
        self.config = config
        self.grid = grid
        self.area = _target_patches(config, grid)
        low, high = (self._size(aspect)[0] for aspect in config.target_aspect)
        largest = max(rows * round(self.area / rows) for rows in range(low, high + 1))
        if largest == grid[0] * grid[1]:
            raise ValueError(
                f"masking: a target block of target_ratio {config.target_ratio} can fill the whole "
                f"{grid[0]}x{grid[1]} grid and leave no context: lower target_ratio, or use "
                "smaller patches"
            )

    def sample(self, num_images: int, generator: torch.Generator) -> Masks:
        """One target per image; context and target are complements."""
        low, high = self.config.target_aspect
        size = self._size(low + torch.rand((), generator=generator).item() * (high - low))
        corner = [
            torch.randint(side - length + 1, (num_images, 1), generator=generator).numpy()
            for side, length in zip(self.grid, size, strict=True)
        ]
        return _complements(torch.from_numpy(_rectangles(self.grid, corner, size)).flatten(1))

    def _size(self, aspect: float) -> tuple[int, int]:
        """(rows, columns) of the block."""
        H, W = self.grid
        rows = min(max(round(math.sqrt(self.area * aspect)), math.ceil(self.area / W)), H)
        return rows, max(round(self.area / rows), 1)


class Random:
    """Sampler of random target patches; the others are the context."""

    def __init__(self, config: Masking, grid: tuple[int, int]) -> None:
        self.num_patches = grid[0] * grid[1]
        self.target_patches = _target_patches(config, grid)

    def sample(self, num_images: int, generator: torch.Generator) -> Masks:
        """One target per image; context and target are complements."""
        counts_G = torch.full((num_images,), self.target_patches)
        return _complements(random_masks(counts_G, self.num_patches, generator))


@dataclass(frozen=True)
class BlockWise:
    """Settings of BEiT's masks; published recipes of data2vec and CAE have the defaults.

    ``min_patches`` null is iBOT's: the square of a third of the grid's shorter side, 16 of 14 x 14.
    """

    min_patches: Count | None = 16
    max_aspect: Annotated[float, Field(ge=1, allow_inf_nan=False)] = 1 / 0.3

    def hide(self, counts_B: Tensor, grid: tuple[int, int], generator: torch.Generator) -> Tensor:
        """Boolean [B, N], true where hidden: see ``block_wise``."""
        least = self.min_patches or max(1, (min(grid) // 3) ** 2)
        return block_wise(counts_B, grid, generator, least, self.max_aspect)


def block_wise(
    counts_B: Tensor,
    grid: tuple[int, int],
    generator: torch.Generator,
    min_patches: Count = 16,
    max_aspect: Annotated[float, Field(ge=1, allow_inf_nan=False)] = 1 / 0.3,
) -> Tensor:
    """Boolean [B, N], true where hidden: blocks that hide exactly ``counts_B[b]`` of image b.

    As in BEiT (Bao et al., 2021, algorithm 1), blocks are drawn one after the other: the area is
    uniform from ``min_patches`` to the number of patches still to hide, the aspect ratio
    log-uniform in [1 / max_aspect, max_aspect], and the position uniform. A block is taken if its
    sides are shorter than the grid's and it hides at least one new patch and no more than are still
    to hide. Once fewer than ``min_patches`` are still to hide, the area is drawn between these two
    numbers, so that most blocks taken overlap hidden patches. For an image with fewer than
    ``min_patches`` to hide at all, that count replaces ``min_patches``.

    The releases give up on an image after 10 failed draws, so data2vec hides 120 of 196 patches or
    fewer; CAE hides exactly 98. Here every image has 16 draws. The patches still missing then (1 of
    120 on average) are random ones next to hidden patches, then random ones elsewhere: that rule is
    ours.
    """
    H, W = grid
    assert ((counts_B >= 0) & (counts_B <= H * W)).all(), "counts are between 0 and H * W"
    assert min_patches >= 1
    assert max_aspect >= 1
    hidden_BHW = torch.zeros(len(counts_B), H, W, dtype=torch.bool)
    missing_B, least_B = counts_B.clone(), counts_B.clamp(max=min_patches)
    draws = torch.rand(4, BLOCK_WISE_ROUNDS, len(counts_B), generator=generator)
    draws[1] = max_aspect ** (2 * draws[1] - 1)
    for scale_B, aspect_B, *positions in draws.unbind(1):
        area_B = least_B + scale_B * (missing_B - least_B)
        size = [(area_B * aspect_B).sqrt().round(), (area_B / aspect_B).sqrt().round()]
        corner = [
            (u_B * (side - length_B + 1)).floor()
            for u_B, side, length_B in zip(positions, grid, size, strict=True)
        ]
        first, sides = ([x[:, None].numpy() for x in values] for values in (corner, size))
        block_BHW = torch.from_numpy(_rectangles(grid, first, sides))
        block_BHW &= ~hidden_BHW
        new_B = block_BHW.flatten(1).sum(1)
        taken_B = (size[0] < H) & (size[1] < W) & (new_B <= missing_B)
        hidden_BHW |= block_BHW & taken_B[:, None, None]
        missing_B -= new_B * taken_B
    # Patches beside hidden ones rank below 1, others from 1, hidden ones last.
    beside_BHW = torch.zeros_like(hidden_BHW)
    beside_BHW[:, 1:] |= hidden_BHW[:, :-1]
    beside_BHW[:, :-1] |= hidden_BHW[:, 1:]
    beside_BHW[:, :, 1:] |= hidden_BHW[:, :, :-1]
    beside_BHW[:, :, :-1] |= hidden_BHW[:, :, 1:]
    rank_BHW = torch.rand(hidden_BHW.shape, generator=generator) + ~beside_BHW
    rank_BHW.masked_fill_(hidden_BHW, math.inf)
    return hidden_BHW.flatten(1) | _lowest(rank_BHW.flatten(1), missing_B)


def random_masks(counts_B: Tensor, num_patches: int, generator: torch.Generator) -> Tensor:
    """Boolean [B, N], true where hidden: exactly ``counts_B[b]`` random patches of image b."""
    assert ((counts_B >= 0) & (counts_B <= num_patches)).all(), "counts are between 0 and N"
    return _lowest(torch.rand(len(counts_B), num_patches, generator=generator), counts_B)


def num_hidden(ratio: float, grid: tuple[int, int]) -> int:
    """Number of patches that ``ratio`` of the grid is; raises ValueError for none or all."""
    N = grid[0] * grid[1]
    hidden = round(N * ratio)
    if not 0 < hidden < N:
        raise ValueError(
            f"recipe.mask_ratio is {ratio}: of {grid[0]}x{grid[1]} patches {hidden} would be "
            "hidden; choose another ratio or smaller patches"
        )
    return hidden


def _lowest(rank_BN: Tensor, counts_B: Tensor) -> Tensor:
    """Boolean [B, N]: the ``counts_B[b]`` patches of lowest rank; exact even where ranks tie."""
    chosen_BN = torch.arange(rank_BN.shape[1]) < counts_B[:, None]
    return torch.zeros_like(chosen_BN).scatter_(1, rank_BN.argsort(dim=1), chosen_BN)


def _rectangles(
    grid: tuple[int, int],
    corner: Sequence[NDArray[Any]],
    size: Sequence[NDArray[Any] | int],
) -> Bits:
    """Boolean [B, H, W] with rectangles of ``size`` (rows, columns) at ``corner`` [B, 1] each.

    NumPy works on one thread. Torch would share these few bytes among its threads, which beside
    other work wait for each other longer than they work.
    """
    inside = []
    for side, start, length in zip(grid, corner, size, strict=True):
        index = np.arange(side, dtype=start.dtype)
        inside.append((index >= start) & (index < start + length))
    return inside[0][:, :, None] & inside[1][:, None]


def _target_patches(config: Masking, grid: tuple[int, int]) -> int:
    """``target_ratio`` of the grid's patches; raises ValueError for none or all."""
    N = grid[0] * grid[1]
    count = round(N * config.target_ratio)
    if not 0 < count < N:
        raise ValueError(
            f"masking: target_ratio {config.target_ratio} makes {count} of the grid's "
            f"{grid[0]}x{grid[1]} patches targets, which leaves no target or no context: use a "
            "target_ratio nearer to 0.5, or smaller patches"
        )
    return count


def _complements(target_GN: Tensor) -> Masks:
    """Masks with the one target per image, and all other patches as context."""
    return Masks(_indices(~target_GN), _indices(target_GN).unsqueeze(1))


def _indices(chosen_BN: Tensor) -> Tensor:
    """Ascending indices of the chosen patches, equally many in every row."""
    return chosen_BN.nonzero()[:, 1].view(len(chosen_BN), -1)
