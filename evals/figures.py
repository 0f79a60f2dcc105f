"""Pictures for the report, as self-contained SVG text.

Colours are Okabe and Ito's, which colour-blind readers tell apart; line styles differ as well.
"""

import io
import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import matplotlib as mpl
import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray
from torch import Tensor

from evals.knn import neighbours
from ijepa.data.loader import Images
from ijepa.data.transforms import centre_crop
from ijepa.vit import ViTConfig

COLOURS = ["#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9"]
STYLES = ["-", "--", "-.", ":", (0, (5, 1)), (0, (3, 1, 1, 1))]


def loss_curves(logs: dict[str, Path]) -> str:
    """Loss, learning rate and the two collapse monitors against images seen."""
    panels = {
        "loss": "training loss",
        "lr": "learning rate",
        "feature_std": "feature standard deviation",
        "rankme": "RankMe",
    }
    with figure(9, 5.2) as (drawing, file):
        axes = list(drawing.subplots(2, 2, sharex=True).flat)
        for number, (run, path) in enumerate(logs.items()):
            records = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
            for axis, name in zip(axes, panels, strict=True):
                points = [(r["images"], r[name]) for r in records if name in r]
                x, y = zip(*points, strict=True) if points else ((), ())
                style, colour = STYLES[number % len(STYLES)], COLOURS[number % len(COLOURS)]
                axis.plot(x, y, color=colour, linestyle=style, label=run, marker=".", markersize=3)
        for axis, title in zip(axes, panels.values(), strict=True):
            axis.set_title(title)
            axis.grid(alpha=0.3)
            axis.set_ylim(bottom=0)
        for axis in axes[2:]:
            axis.set_xlabel("images seen")
        axes[0].legend()
    return file.getvalue()


def masks(rows: dict[str, Tensor], vit: ViTConfig, images: Images) -> str:
    """Real images, and below what is visible of them: named rows, boolean [images, patches]."""
    count = len(next(iter(rows.values())))
    with figure(1.5 * count, 1.7 * (1 + len(rows))) as (drawing, file):
        axes = drawing.subplots(1 + len(rows), count, squeeze=False)
        for column in range(count):
            pixels = np.asarray(centre_crop(images[column], vit.image_size))
            _picture(axes[0, column], pixels)
            for row, visible in enumerate(rows.values(), start=1):
                by_patch = visible[column].view(vit.grid).numpy()
                by_pixel = by_patch.repeat(vit.patch_size, 0).repeat(vit.patch_size, 1)
                faded = (pixels * 0.12 + 255 * 0.80).astype(np.uint8)
                _picture(axes[row, column], np.where(by_pixel[..., None], pixels, faded))
        for row, name in enumerate(["image", *rows]):
            axes[row, 0].set_ylabel(name)
    return file.getvalue()


def nearest_images(features: Path, train: Images, test: Images, count: int = 6, k: int = 7) -> str:
    """Test images, each followed by the training images whose features are nearest (cosine)."""
    known, asked = (
        torch.from_numpy(np.load(features.with_name(f"{split}.npy"), mmap_mode="c")[:, -1])
        for split in ("train", "test")
    )
    queries = list(range(0, len(asked), len(asked) // count))[:count]
    found = neighbours(known, asked[queries], k)
    labels = list(train.labels)
    indices = torch.cat([index for _, index in found]).tolist()
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


@contextmanager
def figure(width: float, height: float) -> Iterator[tuple[Figure, io.StringIO]]:
    """A figure of a size in inches, and the text file that holds it as SVG after the block."""
    file = io.StringIO()
    # A fixed salt and no date: the same data draw the same bytes.
    with mpl.rc_context({"svg.hashsalt": "ijepa-bench", "svg.fonttype": "path"}):
        drawing = Figure(figsize=(width, height), layout="constrained")
        yield drawing, file
        drawing.savefig(file, format="svg", metadata={"Date": None})
    text = file.getvalue()
    file.seek(0)
    file.truncate()
    file.write(text[text.index("<svg") :])


def _picture(axis: Axes, pixels: NDArray[np.uint8]) -> None:
    axis.imshow(pixels, interpolation="nearest")
    axis.set(xticks=[], yticks=[])
    axis.spines[:].set_visible(False)
