"""SIGReg's statistic beside an integral by other means, and what its descent does to features."""

import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy.integrate import quad

from ijepa.sigreg import SIGReg, epps_pulley

LAWS: dict[str, tuple[Callable[[float], float], float]] = {
    "normal": (lambda t: math.exp(-(t**2) / 2), 0.0),
    "normal of deviation 2": (lambda t: math.exp(-2 * t**2), 0.0),
    "uniform of variance 1": (lambda t: math.sin(3**0.5 * t) / (3**0.5 * t) if t else 1.0, 0.0),
    "two points": (math.cos, 0.0),
    "collapsed": (lambda _: 1.0, 0.0),
    "collapsed elsewhere": (lambda _: 1.0, 1.5),
}
"""Characteristic function of each law about its mean, and the mean."""


def distance(phi: Callable[[float], complex]) -> float:
    """The integral of |phi(t) - exp(-t^2 / 2)|^2 exp(-t^2 / 2) over [-3, 3], adaptively."""

    def integrand(t: float) -> float:
        normal = math.exp(-(t**2) / 2)
        return abs(phi(t) - normal) ** 2 * normal

    return float(quad(integrand, -3, 3, epsabs=1e-10, limit=200)[0])


def law(name: str) -> float:
    """The distance of a law from the standard normal."""
    about_mean, mean = LAWS[name]
    return distance(lambda t: about_mean(t) * np.exp(1j * t * mean))


def sample(name: str, size: int) -> NDArray[np.float64]:
    random = np.random.default_rng(0)
    return {
        "normal": random.normal(size=size),
        "normal of deviation 2": random.normal(0, 2, size),
        "uniform of variance 1": random.uniform(-(3**0.5), 3**0.5, size),
        "two points": random.choice([-1.0, 1.0], size),
        "collapsed": np.zeros(size),
        "collapsed elsewhere": np.full(size, 1.5),
    }[name]


def statistic(x: NDArray[np.float64], num_points: int = 17) -> float:
    return epps_pulley(torch.from_numpy(x).float().view(1, -1, 1), num_points, 3.0).item()


@pytest.mark.parametrize("name", LAWS)
def test_a_large_sample_is_as_far_from_the_normal_as_its_law(name: str) -> None:
    """A sample of N adds its own noise, about 1.06 in all, to N times the distance of the law."""
    size = 20_000
    noise = distance(lambda t: math.exp(-(t**2) / 2) + math.sqrt(1 - math.exp(-(t**2))))
    expected = size * law(name)
    assert noise == pytest.approx(1.06, abs=0.01)
    assert statistic(sample(name, size)) == pytest.approx(expected, rel=0.03, abs=4 * noise)


@settings(max_examples=50)
@given(st.lists(st.floats(-8, 8), min_size=1, max_size=40))
def test_the_statistic_of_any_sample_is_its_numerical_integral(values: list[float]) -> None:
    """17 points follow exp(3 i x) up to |x| of 8 to some per cent; 2000 do exactly."""
    x = np.array(values)
    expected = len(x) * distance(lambda t: complex(np.exp(1j * t * x).mean()))
    assert statistic(x, 2000) == pytest.approx(expected, rel=1e-3, abs=1e-4)
    assert statistic(x) == pytest.approx(expected, rel=0.1, abs=1e-3)


@settings(max_examples=25)
@given(st.lists(st.floats(-3, 3), min_size=2, max_size=40))
def test_neither_order_nor_sign_matters(values: list[float]) -> None:
    x = np.array(values)
    shuffled = np.random.default_rng(len(values)).permutation(x)
    assert statistic(shuffled) == pytest.approx(statistic(x), rel=1e-4, abs=1e-5)
    assert statistic(-x) == pytest.approx(statistic(x), rel=1e-4, abs=1e-5)


def test_the_mean_over_samples_of_the_normal_is_that_of_the_theory() -> None:
    """The variance of cos and sin together is 1 - exp(-t^2), so that N cancels."""
    expected = distance(lambda t: math.exp(-(t**2) / 2) + math.sqrt(1 - math.exp(-(t**2))))
    for size in (8, 128):
        x = torch.randn(50, size, 50, generator=torch.Generator().manual_seed(size))
        assert epps_pulley(x, 17, 3.0).mean().item() == pytest.approx(expected, rel=0.05)


def test_directions_have_length_one_and_are_the_generators() -> None:
    settings = SIGReg(num_directions=64)
    first, again, other = (
        settings.directions(16, torch.Generator().manual_seed(seed)) for seed in (0, 0, 1)
    )
    assert first.shape == (16, 64)
    torch.testing.assert_close(first.norm(dim=0), torch.ones(64))
    assert first.equal(again)
    assert not first.equal(other)


def test_views_are_samples_of_their_own() -> None:
    """A collapsed view stays visible beside a good one, as it would not in one pooled sample."""
    settings = SIGReg(num_directions=32)
    good = torch.randn(1, 256, 8, generator=torch.Generator().manual_seed(0))
    directions = settings.directions(8, torch.Generator().manual_seed(1))
    both = settings.statistics(torch.cat([good, torch.zeros_like(good)]), directions)
    assert both[0] == settings.statistics(good, directions)
    assert both[0] < 2
    assert both[1] == pytest.approx(256 * law("collapsed"), rel=0.01)


def test_autocast_does_not_round_what_is_projected() -> None:
    settings = SIGReg(num_directions=16)
    x = torch.randn(2, 64, 32, generator=torch.Generator().manual_seed(0))
    directions = settings.directions(32, torch.Generator().manual_seed(1))
    with torch.autocast("cpu", torch.bfloat16):
        under = settings.statistics(x, directions)
    assert under.equal(settings.statistics(x, directions))


@pytest.mark.parametrize("start", ["collapsed", "one line"])
def test_descent_spreads_collapsed_features_over_all_directions(start: str) -> None:
    random, settings = torch.Generator().manual_seed(0), SIGReg(num_directions=16)
    x = torch.randn(1, 64, 4, generator=random) * 0.01
    if start == "one line":
        x = x + torch.randn(1, 64, 1, generator=random)
    x.requires_grad_()
    optimizer = torch.optim.Adam([x], lr=0.05)
    for _ in range(150):
        loss = settings.statistics(x, settings.directions(4, random)).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    variances = torch.linalg.eigvalsh(torch.cov(x[0].detach().T))
    assert 0.4 < variances.min() < variances.max() < 4, "at first the least is 0.0001"
    assert x.detach().mean(1).abs().max() < 0.3


def test_weights_of_prediction_and_sigreg_add_up_to_one() -> None:
    loss = SIGReg(lamb=0.25).weighed(torch.tensor(8.0), torch.tensor([1.0, 3.0]))
    assert loss == 0.75 * 8 + 0.25 * 2
