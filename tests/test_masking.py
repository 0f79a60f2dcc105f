"""Context and targets, block-wise masks and random masks."""

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from ijepa import masking
from ijepa.errors import UserError
from ijepa.masking import Masking, Masks, MultiBlock, block_wise, random_masks, sampler
from ijepa.strict import strict

GRIDS = st.sampled_from([(8, 8), (14, 14), (16, 16), (12, 9), (28, 28)])
MODES = st.sampled_from(["official", "fixed"])
STRATEGIES = ["multi_block", "rasterised", "block", "random"]


def draw(mode: str, grid: tuple[int, int], seed: int, num_images: int = 6) -> Masks:
    sampler = MultiBlock(Masking(mode=mode, min_keep=3), grid)  # type: ignore[arg-type]
    return sampler.sample(num_images, torch.Generator().manual_seed(seed))


@settings(max_examples=60)
@given(MODES, GRIDS, st.integers(0, 10_000))
def test_context_and_targets_of_an_image_are_disjoint(
    mode: str, grid: tuple[int, int], seed: int
) -> None:
    masks = draw(mode, grid, seed)
    for context, targets in zip(masks.context_GK, masks.targets_GMT, strict=True):
        assert not set(context.tolist()) & set(targets.flatten().tolist())


@settings(max_examples=60)
@given(MODES, GRIDS, st.integers(0, 10_000))
def test_indices_ascend_lie_on_the_grid_and_are_enough(
    mode: str, grid: tuple[int, int], seed: int
) -> None:
    masks = draw(mode, grid, seed)
    for index in (masks.context_GK, masks.targets_GMT):
        assert (index.diff(dim=-1) > 0).all()
        assert index.min() >= 0
        assert index.max() < grid[0] * grid[1]
    assert masks.context_GK.shape[1] > 3
    assert masks.targets_GMT.shape[:2] == (6, 4)


@settings(max_examples=30)
@given(MODES, GRIDS, st.integers(0, 10_000))
def test_every_target_is_a_full_rectangle(mode: str, grid: tuple[int, int], seed: int) -> None:
    for block in draw(mode, grid, seed).targets_GMT.flatten(0, 1):
        rows, columns = block // grid[1], block % grid[1]
        height, width = (int(i.max() - i.min()) + 1 for i in (rows, columns))
        assert height * width == len(block)


@settings(max_examples=20)
@given(MODES, st.integers(0, 10_000))
def test_the_same_generator_gives_the_same_masks(mode: str, seed: int) -> None:
    first, second = (draw(mode, (14, 14), seed) for _ in range(2))
    assert all(a.equal(b) for a, b in zip(first, second, strict=True))


def test_block_sizes_are_those_of_the_release() -> None:
    """ijepa.md section 4.2: seeds 0 to 11 on a 14x14 grid; the context is always 13x13."""
    sampler = MultiBlock(Masking(), (14, 14))
    sizes = [sampler.block_sizes(torch.Generator().manual_seed(seed)) for seed in range(12)]
    expected = "66 75 75 56 65 75 65 65 65 75 65 56"
    assert " ".join(f"{h}{w}" for (h, w), _ in sizes) == expected
    assert {context for _, context in sizes} == {(13, 13)}


def covered(mode: str, seeds: int) -> np.ndarray:
    hits = torch.zeros(14 * 14)
    for seed in range(seeds):
        masks = draw(mode, (14, 14), seed, num_images=16)
        for index in masks:
            hits.scatter_add_(0, index.flatten(), torch.ones(index.numel()))
    return hits.view(14, 14).numpy()


def test_the_official_masks_never_touch_the_last_row_and_column() -> None:
    hits = covered("official", 20)
    assert hits[:-1, :-1].all()
    assert hits[-1].sum() == hits[:, -1].sum() == 0


def test_the_fixed_masks_reach_every_patch_and_favour_neither_top_nor_bottom() -> None:
    hits = covered("fixed", 60)
    assert hits.all()
    top, bottom = hits[:7].sum(), hits[7:].sum()
    assert abs(top / bottom - 1) < 0.1


def test_larger_groups_leave_a_smaller_context() -> None:
    """ijepa.md section 4.5: the group's minimum decides; 0.42 of the patches at 1, 0.26 at 128."""
    means = [
        np.mean([draw("official", (14, 14), s, group).context_GK.shape[1] for s in range(60)]) / 196
        for group in (1, 128)
    ]
    np.testing.assert_allclose(means, [0.42, 0.26], rtol=0.06)


@pytest.mark.parametrize("mode", ["official", "fixed"])
@pytest.mark.parametrize("grid", [(8, 8), (7, 7), (4, 4)])
def test_a_grid_too_small_is_refused_with_a_remedy(mode: str, grid: tuple[int, int]) -> None:
    with pytest.raises(ValueError, match="lower min_keep below"):
        MultiBlock(Masking(mode=mode), grid)  # type: ignore[arg-type]


def test_constraints_are_dropped_rather_than_searched_for_ever() -> None:
    """Targets that cover the whole grid leave no context; the search still ends."""
    config = Masking(mode="fixed", target_scale=(0.9, 1.0), target_aspect=(1.0, 1.0), min_keep=10)
    masks = MultiBlock(config, (8, 8)).sample(4, torch.Generator().manual_seed(0))
    assert masks.context_GK.shape[1] > 10


@pytest.mark.parametrize(
    ("setting", "value"),
    [
        ("target_scale", (0.3, 0.2)),
        ("context_scale", (0.5, 1.2)),
        ("num_targets", 0),
        ("target_ratio", 0.0),
        ("target_ratio", 1.0),
    ],
)
def test_impossible_settings_are_refused(setting: str, value: object) -> None:
    with pytest.raises(UserError, match=f"masking: {setting} is "):
        strict(Masking, {setting: value}, "masking")


def draw_strategy(strategy: str, grid: tuple[int, int], seed: int, **settings: object) -> Masks:
    config = Masking(strategy=strategy, mode="fixed", min_keep=3, **settings)  # type: ignore[arg-type]
    return sampler(config, grid).sample(6, torch.Generator().manual_seed(seed))


EVEN_GRIDS = st.sampled_from([(8, 8), (14, 14), (16, 16), (12, 10), (4, 18)])


@settings(max_examples=80)
@given(st.sampled_from(STRATEGIES), EVEN_GRIDS, st.integers(0, 10_000))
def test_every_strategy_keeps_context_and_targets_apart_and_ascending(
    strategy: str, grid: tuple[int, int], seed: int
) -> None:
    masks = draw_strategy(strategy, grid, seed)
    for index in masks:
        assert (index.diff(dim=-1) > 0).all()
        assert index.min() >= 0
        assert index.max() < grid[0] * grid[1]
    for context, targets in zip(masks.context_GK, masks.targets_GMT, strict=True):
        assert not set(context.tolist()) & set(targets.flatten().tolist())


@settings(max_examples=60)
@given(st.sampled_from(STRATEGIES[1:]), EVEN_GRIDS, st.integers(0, 10_000))
def test_every_other_strategy_makes_each_patch_context_or_target_once(
    strategy: str, grid: tuple[int, int], seed: int
) -> None:
    masks = draw_strategy(strategy, grid, seed)
    patches = torch.cat([masks.context_GK, masks.targets_GMT.flatten(1)], 1).sort(1).values
    assert patches.equal(torch.arange(grid[0] * grid[1]).expand(6, -1))


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_the_same_generator_gives_the_same_masks_for_every_strategy(strategy: str) -> None:
    first, second, other = (draw_strategy(strategy, (14, 14), seed) for seed in (1, 1, 2))
    assert all(a.equal(b) for a, b in zip(first, second, strict=True))
    assert first.context_GK.tolist() != other.context_GK.tolist()


def test_rasterised_masks_are_the_four_quadrants_and_each_is_the_context_of_some_image() -> None:
    seen = set()
    for seed in range(10):
        masks = draw_strategy("rasterised", (4, 6), seed)
        assert masks.targets_GMT.shape == (6, 3, 6)
        for image in torch.cat([masks.context_GK.unsqueeze(1), masks.targets_GMT], 1):
            assert sorted(image.tolist()) == [
                [0, 1, 2, 6, 7, 8],
                [3, 4, 5, 9, 10, 11],
                [12, 13, 14, 18, 19, 20],
                [15, 16, 17, 21, 22, 23],
            ]
        assert (masks.targets_GMT[:, :, 0].diff(dim=1) > 0).all()
        seen |= {int(context[0]) for context in masks.context_GK}
    assert seen == {0, 3, 12, 15}


@settings(max_examples=60)
@given(GRIDS | EVEN_GRIDS, st.integers(0, 10_000), st.floats(0.1, 0.8))
def test_the_block_strategy_has_one_rectangle_of_the_ratio_asked_for(
    grid: tuple[int, int], seed: int, ratio: float
) -> None:
    masks = draw_strategy("block", grid, seed, target_ratio=ratio)
    assert masks.targets_GMT.shape[1] == 1
    for block in masks.targets_GMT[:, 0]:
        rows, columns = block // grid[1], block % grid[1]
        height, width = (int(i.max() - i.min()) + 1 for i in (rows, columns))
        assert height * width == len(block)
        assert abs(height * width - ratio * grid[0] * grid[1]) <= 0.5 * (height + 1)


def test_the_block_strategy_reaches_every_patch_and_both_ends_of_the_aspect_ratios() -> None:
    hits, shapes = torch.zeros(196), set()
    for seed in range(60):
        blocks = draw_strategy("block", (14, 14), seed).targets_GMT[:, 0]
        hits.scatter_add_(0, blocks.flatten(), torch.ones(blocks.numel()))
        first = blocks[0]
        shapes.add(
            (int(first.max() // 14 - first.min() // 14) + 1, len(set((first % 14).tolist())))
        )
    assert hits.all()
    # 118 patches: the square root of 118 / 0.75 is 12.5, that of 118 / 1.5 is 8.9.
    assert {width for _, width in shapes} == {9, 10, 11, 12, 13}


def test_random_targets_are_the_ratio_of_the_patches_and_every_patch_is_as_likely() -> None:
    hits = torch.zeros(196)
    for seed in range(200):
        targets = draw_strategy("random", (14, 14), seed).targets_GMT
        assert targets.shape == (6, 1, 118)
        hits.scatter_add_(0, targets.flatten(), torch.ones(targets.numel()))
    # 1200 images: one patch is hit 722 +- 17 times.
    assert (hits / 1200 - 118 / 196).abs().max() < 5 * 17 / 1200


@pytest.mark.parametrize(
    ("settings", "grid", "message"),
    [
        ({"strategy": "rasterised"}, (7, 8), r"four equal quadrants, and the grid is 7x8: use"),
        ({"strategy": "rasterised"}, (8, 7), r"four equal quadrants, and the grid is 8x7: use"),
        ({"strategy": "block"}, (1, 1), r"makes 1 of the grid's 1x1 patches .*no context: use"),
        ({"strategy": "random"}, (1, 1), r"makes 1 of the grid's 1x1 patches .*no context: use"),
        ({"strategy": "random", "target_ratio": 0.01}, (4, 4), r"target_ratio 0\.01 makes 0 of"),
        ({"strategy": "block", "target_ratio": 0.94}, (4, 4), r"whole 4x4 grid .*lower target_"),
    ],
)
def test_a_strategy_refuses_a_grid_without_room_for_context_and_target(
    settings: dict[str, Any], grid: tuple[int, int], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        sampler(Masking(**settings), grid)


@settings(max_examples=100)
@given(st.sampled_from([(1, 1), (1, 5), (2, 3), (4, 4), (7, 9), (13, 13)]), st.data())
def test_block_wise_masks_hide_exactly_what_is_asked_of_each_image(
    grid: tuple[int, int], data: st.DataObject
) -> None:
    N = grid[0] * grid[1]
    counts_B = torch.tensor(data.draw(st.lists(st.integers(0, N), min_size=1, max_size=8)))
    min_patches, seed = data.draw(st.integers(1, 20)), data.draw(st.integers(0, 10_000))
    first, second = (
        block_wise(counts_B, grid, torch.Generator().manual_seed(seed), min_patches)
        for _ in range(2)
    )
    assert first.dtype == torch.bool
    assert first.shape == (len(counts_B), N)
    assert first.sum(1).equal(counts_B)
    assert first.equal(second)


@settings(max_examples=60)
@given(st.lists(st.integers(0, 30), min_size=1, max_size=8), st.integers(0, 10_000))
def test_random_masks_hide_exactly_what_is_asked_of_each_image(
    counts: list[int], seed: int
) -> None:
    counts_B = torch.tensor(counts)
    first, second = (
        random_masks(counts_B, 30, torch.Generator().manual_seed(seed)) for _ in range(2)
    )
    assert first.shape == (len(counts_B), 30)
    assert first.sum(1).equal(counts_B)
    assert first.equal(second)


@pytest.mark.parametrize("count", [-1, 17])
def test_more_patches_than_the_grid_has_cannot_be_hidden(count: int) -> None:
    counts_B, generator = torch.tensor([3, count]), torch.Generator()
    with pytest.raises(AssertionError, match="counts are between"):
        block_wise(counts_B, (4, 4), generator)
    with pytest.raises(AssertionError, match="counts are between"):
        random_masks(counts_B, 16, generator)


def hidden_neighbours(hidden_BN: Tensor, grid: tuple[int, int]) -> float:
    """Mean number of hidden neighbours, of up to 4, over hidden patches."""
    hidden_BHW = hidden_BN.view(-1, *grid)
    pairs = (hidden_BHW[:, 1:] & hidden_BHW[:, :-1]).sum()
    pairs += (hidden_BHW[:, :, 1:] & hidden_BHW[:, :, :-1]).sum()
    return float(2 * pairs / hidden_BN.sum())


@pytest.mark.parametrize(
    ("grid", "count", "min_patches", "expected"),
    [
        ((14, 14), 120, 16, 3.52),
        ((14, 14), 98, 16, 3.45),
        ((14, 14), 30, 16, 3.05),
        ((8, 8), 38, 4, 3.10),
    ],
)
def test_block_wise_masks_are_as_clumped_as_those_of_beit(
    grid: tuple[int, int], count: int, min_patches: int, expected: float
) -> None:
    """Expected are 1500 images of BEiT's algorithm, written as its loop over draws.

    Of 120 on 14x14 it hides 119.6 on average. Random masks have at most 2.3 hidden neighbours.
    """
    counts_B, generator = torch.full((800,), count), torch.Generator().manual_seed(0)
    clumped = hidden_neighbours(block_wise(counts_B, grid, generator, min_patches), grid)
    scattered = hidden_neighbours(random_masks(counts_B, grid[0] * grid[1], generator), grid)
    assert clumped == pytest.approx(expected, abs=0.03)
    assert scattered < 2.3


def draw_once(monkeypatch: pytest.MonkeyPatch, make_up: bool) -> Tensor:
    """One draw of a block for each of 600 images, 40 of 16x16 patches to hide, [B, H, W]."""
    monkeypatch.setattr(masking, "BLOCK_WISE_ROUNDS", 1)
    if not make_up:
        monkeypatch.setattr(masking, "_lowest", lambda rank_BN, _: torch.zeros_like(rank_BN).bool())
    counts_B, generator = torch.full((600,), 40), torch.Generator().manual_seed(0)
    return block_wise(counts_B, (16, 16), generator, min_patches=36, max_aspect=8).view(-1, 16, 16)


def test_blocks_are_as_often_tall_as_wide_and_shorter_than_the_grid(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    block_BHW = draw_once(monkeypatch, make_up=False)
    height_B, width_B = (block_BHW.any(axis).sum(1) for axis in (2, 1))
    assert block_BHW.flatten(1).sum(1).equal(height_B * width_B)
    assert height_B.max() == width_B.max() == 15
    tall, wide = int((height_B > width_B).sum()), int((height_B < width_B).sum())
    assert abs(tall - wide) < 0.3 * (tall + wide)
    assert block_BHW.any(0).all()


def test_patches_made_up_lie_next_to_hidden_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    finished_BHW = draw_once(monkeypatch, make_up=True)
    block_BHW = draw_once(monkeypatch, make_up=False)
    found_B = block_BHW.flatten(1).any(1)
    padded = torch.nn.functional.pad(block_BHW, (1, 1, 1, 1))
    beside_BHW = padded[:, 2:, 1:-1] | padded[:, :-2, 1:-1]
    beside_BHW |= padded[:, 1:-1, 2:] | padded[:, 1:-1, :-2]
    made_up_BHW = finished_BHW & ~block_BHW
    assert made_up_BHW[found_B].any()
    assert not (made_up_BHW & ~beside_BHW)[found_B].any()
    assert (finished_BHW.flatten(1).sum(1) == 40).all()


def test_the_masks_of_an_image_do_not_depend_on_the_counts_of_the_others() -> None:
    masks = [
        block_wise(torch.tensor([50, other]), (14, 14), torch.Generator().manual_seed(0))[0]
        for other in (0, 98, 196)
    ]
    assert masks[0].equal(masks[1])
    assert masks[0].equal(masks[2])


def image_by_image(config: Masking, grid: tuple[int, int], num_images: int, seed: int) -> Masks:
    """Masks of a group by the rule, patch by patch, from the draws that a sampler takes."""
    sampler, random = MultiBlock(config, grid), torch.Generator().manual_seed(seed)
    last = config.mode == "fixed"

    def corners(size: tuple[int, int], count: int) -> list[tuple[int, int]]:
        rows, columns = (
            torch.randint(side - length + last, (count, 1), generator=random)
            for side, length in zip(grid, size, strict=True)
        )
        return list(zip(rows[:, 0].tolist(), columns[:, 0].tolist(), strict=True))

    def block(corner: tuple[int, int], size: tuple[int, int]) -> list[int]:
        (top, left), (height, width) = corner, size
        rows, columns = range(top, top + height), range(left, left + width)
        return [row * grid[1] + column for row in rows for column in columns]

    M = config.num_targets
    target_size, context_size = sampler.block_sizes(random)
    blocks = [block(corner, target_size) for corner in corners(target_size, num_images * M)]
    targets = [blocks[image * M : (image + 1) * M] for image in range(num_images)]
    contexts: dict[int, list[int]] = {}
    for draw in range(20 * (M + 1)):
        pending = [image for image in range(num_images) if image not in contexts]
        for image, corner in zip(pending, corners(context_size, len(pending)), strict=True):
            claimed = {p for target in targets[image][: M - draw // 20] for p in target}
            patches = [p for p in block(corner, context_size) if p not in claimed]
            if len(patches) > config.min_keep:
                contexts[image] = patches
        if len(contexts) == num_images:
            break
    length = min(map(len, contexts.values()))
    order = [list(range(grid[0] * grid[1]))] * num_images
    if last:
        order = torch.rand(num_images, len(order[0]), generator=random).tolist()
    kept = [sorted(contexts[i], key=order[i].__getitem__)[:length] for i in range(num_images)]
    return Masks(torch.tensor([sorted(row) for row in kept]), torch.tensor(targets))


@pytest.mark.parametrize("mode", ["official", "fixed"])
@pytest.mark.parametrize(
    ("grid", "settings"),
    [
        ((14, 14), {}),
        ((12, 9), {"min_keep": 3, "num_targets": 2}),
        ((16, 16), {"min_keep": 34}),
        # Images need many draws here, and some lose targets.
        ((14, 14), {"target_scale": (0.5, 0.8), "min_keep": 40}),
    ],
)
def test_masks_of_a_group_are_those_of_the_rule_image_by_image(
    grid: tuple[int, int], settings: dict[str, Any], mode: str
) -> None:
    """They are part of what a run learns from, so that no faster way may change them."""
    config = Masking(mode=mode, **settings)  # type: ignore[arg-type]
    for seed in range(3):
        expected = image_by_image(config, grid, 40, seed)
        masks = MultiBlock(config, grid).sample(40, torch.Generator().manual_seed(seed))
        assert all(a.equal(b) for a, b in zip(masks, expected, strict=True))
