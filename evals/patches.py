"""Three ways to look at the features of patches: components, similarity, nearest patches.

Principal components as colours are those of Oquab et al., "DINOv2", TMLR 2024, Figure 1, with one
basis for a set of images. That figure leaves out the background by a threshold; this code does not.

Shape suffixes: B images, N patches of the grid (row-major), D features.
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.floating[Any]]

PATCHES_FILE = "test.patches.npy"
"""File beside an encoder's stored features: those of every patch of some test images, [B, N, D]."""
COLOURS = 3
"""Principal components that are shown: red, green and blue."""
TAILS = (1, 99)
"""Percentiles of a component that are black and full colour; one odd patch would dim all others."""
FLAT = 1e-6
"""Range of a component, as a share of the first one's, below which it is rounding and no colour."""


def spread_out(total: int, count: int = 6) -> list[int]:
    """Numbers of ``count`` images, at equal distances in a split of ``total``."""
    return list(range(0, total, max(1, total // count)))[:count]


def components(features_BND: Array) -> NDArray[np.float64]:
    """First three principal components of all patches together, [B, N, 3], as colours in [0, 1].

    The basis is one for all images: a colour means the same in each. Signs, which the data leave
    open, are such that each component's largest weight is positive (scikit-learn's rule).
    """
    # Not at the top: it takes a second to import, and extraction needs spread_out alone.
    from sklearn.decomposition import PCA

    x = np.asarray(features_BND, np.float64)
    pca = PCA(COLOURS, svd_solver="covariance_eigh")
    scores = pca.fit_transform(x.reshape(-1, x.shape[-1]))
    low, high = np.percentile(scores, TAILS, axis=0)
    span = high - low
    colours = np.where(span > FLAT * span[0], (scores - low) / np.where(span, span, 1), 0.5)
    return colours.clip(0, 1).reshape(*x.shape[:2], COLOURS)


def similarity(features_BND: Array, image: int, patch: int) -> NDArray[np.float64]:
    """Cosine similarity of one patch's features to those of every patch, [B, N]."""
    x = np.asarray(features_BND, np.float64)
    x = x / np.maximum(np.linalg.norm(x, axis=-1, keepdims=True), np.finfo(np.float64).tiny)
    cosines: NDArray[np.float64] = x @ x[image, patch]
    return cosines


def nearest(similarity_BN: Array, image: int, patch: int, count: int) -> list[tuple[int, int]]:
    """Image and patch of the most similar patches of the other images, the nearest first.

    If there is one image, they are the other patches of it.
    """
    values = np.array(similarity_BN, np.float64)
    if len(values) > 1:
        values[image] = -np.inf
    else:
        values[image, patch] = -np.inf
    order = np.argsort(-values, axis=None, kind="stable")[: min(count, np.isfinite(values).sum())]
    return [(int(i), int(p)) for i, p in zip(*np.unravel_index(order, values.shape), strict=True)]


def nearest_of_each(similarity_BN: Array, image: int) -> list[tuple[int, int]]:
    """Most similar patch of each image but ``image``."""
    best = np.asarray(similarity_BN).argmax(1)
    return [(other, int(patch)) for other, patch in enumerate(best) if other != image]
