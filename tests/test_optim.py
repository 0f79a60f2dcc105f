"""Schedules and parameter groups, beside section 6 of the reference."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from ijepa.architecture import ViTConfig
from ijepa.masking import Masking
from ijepa.methods import ijepa
from ijepa.optim import Optim, adamw, clip, learning_rate, schedule, weight_decay

STEPS = 300 * 625


@pytest.mark.parametrize(
    ("step", "lr", "decay"),
    [
        (1, 2.00032e-4, 0.040000),
        (12_500, 6.0e-4, 0.043933),
        (24_999, 9.99968e-4, None),
        (25_000, 1e-3, 0.055562),
        (93_750, 6.200382e-4, 0.22),
        (187_500, 1e-6, 0.4),
    ],
)
def test_schedules_are_those_of_the_released_huge_run(
    step: int, lr: float, decay: float | None
) -> None:
    """ijepa.md section 6.2; the release counts steps from 1."""
    assert learning_rate(Optim(), step - 1, STEPS) == pytest.approx(lr, rel=1e-6)
    if decay is not None:
        assert weight_decay(Optim(), step - 1, STEPS) == pytest.approx(decay, rel=2e-5)


@given(st.integers(1, 400), st.floats(0, 1), st.sampled_from(["cosine", "linear"]))
def test_rates_stay_between_their_ends(num_steps: int, warmup: float, shape: str) -> None:
    optim = Optim(epochs=1, warmup_epochs=warmup, weight_decay_shape=shape)  # type: ignore[arg-type]
    for step in range(num_steps):
        assert optim.final_lr <= learning_rate(optim, step, num_steps) <= optim.lr * (1 + 1e-12)
        assert 0.04 <= weight_decay(optim, step, num_steps) <= 0.4 + 1e-12


def test_groups_stand_in_the_released_order_and_only_matrices_decay() -> None:
    vit = ViTConfig(image_size=32, patch_size=4, dim=32, depth=1, num_heads=2)
    config = ijepa.Config(masking=Masking(min_keep=3), predictor_dim=16, predictor_depth=1)
    method = ijepa.Method(config, vit)
    optimizer = adamw(method, Optim())
    schedule(optimizer, 0.5, 0.1)
    shapes = [{p.shape for p in group["params"]} for group in optimizer.param_groups]
    assert [group["weight_decay"] for group in optimizer.param_groups] == [0.1, 0.1, 0, 0]
    assert torch.Size([1, 1, 16]) in shapes[1]  # the mask token decays
    assert all(len(shape) == 1 for group in shapes[2:] for shape in group)
    held = {id(p) for group in optimizer.param_groups for p in group["params"]}
    assert not held & {id(p) for p in method.target_encoder.parameters()}


@pytest.mark.parametrize(("of", "norms"), [("all", (0.6, 0.8)), ("each", (0.5, 1.0))])
def test_gradients_are_clipped_together_or_one_by_one(of: str, norms: tuple[float, float]) -> None:
    """Two parameters with gradients of norm 3 and 4, and a bound of 1; or of norm 0.5 and 4."""
    net = torch.nn.ParameterList([torch.zeros(1), torch.zeros(1)])
    small = 3.0 if of == "all" else 0.5
    for parameter, gradient in zip(net, (small, 4.0), strict=True):
        parameter.grad = torch.tensor([gradient])
    clip(net, Optim(clip=1.0, clip_of=of))  # type: ignore[arg-type]
    assert [float(p.grad) for p in net] == pytest.approx(norms, rel=1e-5)


def test_without_a_bound_gradients_stay_as_they_are() -> None:
    net = torch.nn.ParameterList([torch.zeros(1)])
    net[0].grad = torch.tensor([1e6])
    clip(net, Optim())
    assert net[0].grad == 1e6


def test_rates_counted_from_0_start_at_the_start() -> None:
    """MAE, data2vec, CAE, DINO and iBOT count from 0; I-JEPA's release from 1."""
    optim = Optim(epochs=10, warmup_epochs=2, start_lr=0.0, lr=1.0, counted_from=0)
    assert learning_rate(optim, 0, 100) == 0
    assert learning_rate(optim, 20, 100) == 1
