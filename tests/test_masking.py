"""Context and target blocks."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ijepa.masking import Masking, Masks, MultiBlock

GRIDS = st.sampled_from([(8, 8), (14, 14), (16, 16), (12, 9), (28, 28)])
MODES = st.sampled_from(["official", "fixed"])


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
    [("target_scale", (0.3, 0.2)), ("context_scale", (0.5, 1.2)), ("num_targets", 0)],
)
def test_impossible_settings_are_refused(setting: str, value: object) -> None:
    with pytest.raises(ValueError, match=setting):
        Masking(**{setting: value})  # type: ignore[arg-type]
