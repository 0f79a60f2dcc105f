"""Mean and deviation of a data set's channels, by which its images are normalised.

They are those of all pixels of the training images in the evaluation view, so that large and small
images count alike; sums of bytes are whole numbers, so that the order does not matter.
"""

import math
from pathlib import Path

import torch
from tqdm import tqdm

from ijepa.cores import usable_cores
from ijepa.data.loader import EvaluationViews, Images, evaluation_batches
from ijepa.data.shards import verify
from ijepa.errors import UserError
from ijepa.image_size import Size, sides

BATCH_SIZE = 128
DECIMALS = {8: 4, 16: 6}
"""Decimals by bits a channel: images of 16 bits often use a small part of the range."""


def statistics(
    folder: Path, size: Size, num_workers: int | None = None
) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and standard deviation of each channel of the training images, in shares of 255.

    Channels of 16 bits are in shares of 65535, which become 255 (ijepa.data.bands). Raises
    UserError if a channel has the same value everywhere: nothing could be divided by 0.
    """
    index = verify(folder, ["train"])
    views = EvaluationViews(Images(folder, "train"), size, index.view)
    workers = usable_cores() if num_workers is None else num_workers
    batches = evaluation_batches(views, BATCH_SIZE, workers)
    kind = torch.int64 if index.bits == 8 else torch.float64
    total_C = squares_C = torch.zeros(index.channels, dtype=kind)
    for images_BHWC in tqdm(batches, desc="statistics", unit="batch", mininterval=2):
        x_NC = images_BHWC.flatten(0, 2).to(kind)
        total_C, squares_C = total_C + x_NC.sum(0), squares_C + x_NC.square().sum(0)
    count = len(views) * math.prod(sides(size))
    mean_C = total_C.double() / count
    std_C = (squares_C.double() / count - mean_C.square()).clamp(min=0).sqrt()
    mean, std = (
        tuple(round(value, DECIMALS[index.bits]) for value in (x / 255).tolist())
        for x in (mean_C, std_C)
    )
    if 0 in std:
        remedy = "use ImageNet's" if index.channels == 3 else "leave it out of the images"
        raise UserError(
            f"{folder}: channel {std.index(0) + 1} of all training images has one value: {remedy}"
        )
    return mean, std
