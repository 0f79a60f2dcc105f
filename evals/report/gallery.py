"""Pictures for the report, as SVG text: masks, patch features, nearest neighbours."""

import math
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from evals import patches
from evals.drawing import GAP, board, displayed, frame, sheet, show
from evals.protocols.knn import neighbours
from evals.report.figures import COLOURS, figure
from evals.subject import stored
from ijepa.data.loader import Images
from ijepa.data.transforms import WHOLE_VIEWS, centre_crop
from ijepa.files import read_json
from ijepa.image_size import Size, as_size, sides

HEIGHT = 1.18
"""Height of a row of neighbours, in cells: an image and the words below it."""


def masks(shown: dict[str, Any], images: Images) -> str:
    """Images, and below each its visible patches: ``shown`` is a run's masks.json."""
    size, patch = as_size(shown["image_size"]), shown["patch_size"]
    grid = [side // patch for side in sides(size)]
    rows = {name: np.array(row, bool) for name, row in shown["masks"].items()}
    count = len(next(iter(rows.values())))
    names: dict[float, str] = dict(enumerate(["image", *rows]))
    with figure(1.0 + 1.5 * count, 1.55 * len(names), layout="compressed") as (drawing, file):
        axis = board(drawing, names, count)
        for column in range(count):
            pixels = displayed(centre_crop(images[column], size))
            show(axis, 0, column, pixels)
            for row, visible in enumerate(rows.values(), start=1):
                by_patch = visible[column].reshape(grid)
                by_pixel = by_patch.repeat(patch, 0).repeat(patch, 1)
                faded = (pixels * 0.12 + 255 * 0.80).astype(np.uint8)
                show(axis, row, column, np.where(by_pixel[..., None], pixels, faded))
    return file.getvalue()


def patch_features(file: Path, view: str, size: Size, test: Images) -> str:
    """Test images, and below each its patches' components, and their similarity to one patch.

    ``file`` has the features of some test images; the note beside it has the images' numbers
    (evals.features). ``view`` and ``size`` are those in which the encoder saw them.
    """
    features_BND: NDArray[np.float16] = np.load(file)
    numbers = read_json(file.with_suffix(".part.json"))["about"]["shown"]
    pixels = [displayed(WHOLE_VIEWS[view](test[number], size)) for number in numbers]
    height, width = sides(size)
    patch = math.isqrt(height * width // features_BND.shape[1])
    grid = height // patch, width // patch
    chosen = (0, grid[0] // 2 * grid[1] + grid[1] // 2)
    cosines = patches.similarity(features_BND, *chosen)
    maps = {"components": patches.components(features_BND), "cosine similarity": cosines}
    with figure(1.0 + 1.4 * len(numbers), 4.3, layout="compressed") as (drawing, text):
        framed = [chosen, *patches.nearest_of_each(cosines, chosen[0])]
        sheet(drawing, pixels, maps, grid, framed)
    return text.getvalue()


def nearest_images(features: Path, train: Images, test: Images, count: int = 6, k: int = 7) -> str:
    """Test images, each followed by the training images whose features are nearest (cosine)."""
    train_features, test_features = (
        torch.from_numpy(stored(features, split)[:, -1]) for split in ("train", "test")
    )
    queries = list(range(0, len(test_features), max(1, len(test_features) // count)))[:count]
    neighbourhoods, count = neighbours(train_features, test_features[queries], k), len(queries)
    labels = list(train.labels)
    indices = torch.cat([index for _, index in neighbourhoods]).tolist()
    with figure(1.1 * (k + 1), 1.3 * count, layout="compressed") as (drawing, file):
        axis = board(drawing, {row * HEIGHT: "" for row in range(count)}, k + 1)
        for number, (query, nearest) in enumerate(zip(queries, indices, strict=True)):
            row = number * HEIGHT
            show(axis, row, 0, displayed(test[query]))
            frame(axis, 0, row, 1 - GAP, COLOURS[1])
            for column, index in enumerate(nearest, start=1):
                show(axis, row, column, displayed(train[index]))
                if labels and train.labels[labels[0]][index] == test.labels[labels[0]][query]:
                    middle = column + (1 - GAP) / 2
                    axis.text(middle, row + 1, "same class", fontsize=7, ha="center", va="top")
        for column, name in enumerate(("test image", "nearest")):
            axis.text(column + (1 - GAP) / 2, -2 * GAP, name, fontsize=8, ha="center")
    return file.getvalue()
