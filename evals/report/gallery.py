"""Pictures for the report, as SVG text: masks on images, and nearest neighbours."""

from pathlib import Path
from typing import Any

import numpy as np
import torch
from matplotlib.axes import Axes
from numpy.typing import NDArray

from evals.protocols.knn import neighbours
from evals.report.figures import COLOURS, figure
from evals.subject import stored
from ijepa.data.loader import Images
from ijepa.data.transforms import centre_crop


def masks(shown: dict[str, Any], images: Images) -> str:
    """Images, and below each its visible patches: ``shown`` is a run's masks.json."""
    size, patch = shown["image_size"], shown["patch_size"]
    side = size // patch
    rows = {name: np.array(row, bool) for name, row in shown["masks"].items()}
    count = len(next(iter(rows.values())))
    with figure(1.5 * count, 1.7 * (1 + len(rows))) as (drawing, file):
        axes = drawing.subplots(1 + len(rows), count, squeeze=False)
        for column in range(count):
            pixels = np.asarray(centre_crop(images[column], size))
            _picture(axes[0, column], pixels)
            for row, visible in enumerate(rows.values(), start=1):
                by_patch = visible[column].reshape(side, side)
                by_pixel = by_patch.repeat(patch, 0).repeat(patch, 1)
                faded = (pixels * 0.12 + 255 * 0.80).astype(np.uint8)
                _picture(axes[row, column], np.where(by_pixel[..., None], pixels, faded))
        for row, name in enumerate(["image", *rows]):
            axes[row, 0].set_ylabel(name)
    return file.getvalue()


def nearest_images(features: Path, train: Images, test: Images, count: int = 6, k: int = 7) -> str:
    """Test images, each followed by the training images whose features are nearest (cosine)."""
    train_features, test_features = (
        torch.from_numpy(stored(features, split)[:, -1]) for split in ("train", "test")
    )
    queries = list(range(0, len(test_features), max(1, len(test_features) // count)))[:count]
    neighbourhoods, count = neighbours(train_features, test_features[queries], k), len(queries)
    labels = list(train.labels)
    indices = torch.cat([index for _, index in neighbourhoods]).tolist()
    with figure(1.1 * (k + 1), 1.15 * count) as (drawing, file):
        axes = drawing.subplots(count, k + 1, squeeze=False)
        for row, (query, nearest) in enumerate(zip(queries, indices, strict=True)):
            _picture(axes[row, 0], np.asarray(test[query]))
            for spine in axes[row, 0].spines.values():
                spine.set(visible=True, color=COLOURS[1], linewidth=2.5)
            for column, index in enumerate(nearest, start=1):
                _picture(axes[row, column], np.asarray(train[index]))
                if labels and train.labels[labels[0]][index] == test.labels[labels[0]][query]:
                    axes[row, column].set_xlabel("same class", fontsize=7, labelpad=1)
        axes[0, 0].set_title("test image", fontsize=8)
        axes[0, 1].set_title("nearest", fontsize=8)
    return file.getvalue()


def _picture(axis: Axes, pixels: NDArray[np.uint8]) -> None:
    axis.imshow(pixels, interpolation="nearest")
    axis.set(xticks=[], yticks=[])
    axis.spines[:].set_visible(False)
