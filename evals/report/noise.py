"""Tests of the difference of two accuracies on the same test images against noise.

The noise is that of the test images. The noise of pretraining again with another seed is not part
of it. Several seeds are pooled: an image counts with its mean over seeds, and images are drawn, not
seeds.

- Image by image, if both results have each image (``paired``): a bootstrap for the interval and the
  exact test of random signs for the p-value, which for one seed is McNemar's. Twice a tail of the
  bootstrap is no substitute: for four images that changed, all one way, it gives 0.04, not 0.13.
- Otherwise as two proportions (``unpaired``), by Agresti and Caffo, The American Statistician 54
  (2000). As the images are the same ones, it errs towards noise. S seeds of n images count as n
  images.

Shape suffixes: N images.
"""

import math
from statistics import NormalDist

import numpy as np
from numpy.typing import NDArray

RESAMPLES = 10_000


def paired(changes_N: NDArray[np.int64], seeds: int, alpha: float) -> tuple[float, float, float]:
    """Interval and two-sided p-value of a difference in accuracy.

    ``changes_N`` has for each image the number of seeds in which the second result has it right,
    less that of the first.
    """
    low, high = bootstrap(changes_N, alpha)
    return low / seeds, high / seeds, sign_test(changes_N)


def bootstrap(changes_N: NDArray[np.int64], alpha: float) -> tuple[float, float]:
    """Percentile interval of the mean change, from 10,000 resamples of the images.

    The mean change of N images drawn with replacement depends only on the number of images of each
    kind of change (for one seed: lost, kept, won), and these counts are multinomial. So a resample
    costs three numbers instead of N.
    """
    n = len(changes_N)
    values, counts = np.unique(changes_N, return_counts=True)
    draws = np.random.default_rng(0).multinomial(n, counts / n, size=RESAMPLES)
    low, high = np.quantile(draws @ values / n, [alpha / 2, 1 - alpha / 2])
    return float(low), float(high)


def sign_test(changes_N: NDArray[np.int64]) -> float:
    """Exact two-sided p-value of the sum of changes, if both signs of each are equally likely.

    The sum's distribution comes from its characteristic function, the product of cos(t * change).
    """
    sizes, counts = np.unique(np.abs(changes_N[changes_N != 0]), return_counts=True)
    largest = int(sizes @ counts)
    t = 2 * np.pi * np.arange(2 * largest + 1) / (2 * largest + 1)
    probability = np.fft.ifft(np.prod(np.cos(np.outer(t, sizes)) ** counts, axis=1)).real
    sums = np.minimum(np.arange(len(t)), len(t) - np.arange(len(t)))  # negative sums come last
    return float(np.clip(probability[sums >= abs(changes_N.sum())].sum(), 0.0, 1.0))


def unpaired(a: float, b: float, n: int, alpha: float) -> tuple[float, float, float]:
    """Interval and two-sided p-value of b - a, both shares of ``n`` images."""
    a, b = ((share * n + 1) / (n + 2) for share in (a, b))
    error = math.sqrt((a * (1 - a) + b * (1 - b)) / (n + 2))
    half = NormalDist().inv_cdf(1 - alpha / 2) * error
    return b - a - half, b - a + half, 2 * NormalDist().cdf(-abs(b - a) / error)


def holm(p: list[float]) -> list[float]:
    """Return p-values corrected for their number, in the same order (Holm, 1979).

    If all up to alpha are called real, the probability of even one error is at most alpha.
    """
    corrected, highest = [0.0] * len(p), 0.0
    for rank, index in enumerate(sorted(range(len(p)), key=p.__getitem__)):
        highest = max(highest, min(1.0, (len(p) - rank) * p[index]))
        corrected[index] = highest
    return corrected
