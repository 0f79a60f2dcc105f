"""Mean and deviation of a data set's channels, by which its images are normalised.

They are those of all pixels of the training images in the evaluation view, so that large and small
images count alike; sums are whole numbers, so that the order does not matter.
"""

from pathlib import Path

import torch
from tqdm import tqdm

from ijepa.cores import usable_cores
from ijepa.data.loader import EvaluationViews, Images, evaluation_batches
from ijepa.data.shards import verify
from ijepa.errors import UserError

BATCH_SIZE = 128


def statistics(
    folder: Path, size: int, num_workers: int | None = None
) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and standard deviation of each channel of the training images, in shares of 255.

    Raises UserError if a channel has the same value everywhere: nothing could be divided by 0.
    """
    index = verify(folder, ["train"])
    views = EvaluationViews(Images(folder, "train"), size, index.view)
    workers = usable_cores() if num_workers is None else num_workers
    batches = evaluation_batches(views, BATCH_SIZE, workers)
    total_C = squares_C = torch.zeros(3, dtype=torch.int64)
    for images_BHWC in tqdm(batches, desc="statistics", unit="batch", mininterval=2):
        x_NC = images_BHWC.flatten(0, 2).long()
        total_C, squares_C = total_C + x_NC.sum(0), squares_C + x_NC.square().sum(0)
    count = len(views) * size * size
    mean_C = total_C.double() / count
    std_C = (squares_C.double() / count - mean_C.square()).clamp(min=0).sqrt()
    if not std_C.all():
        raise UserError(f"{folder}: a channel of all training images has one value: use ImageNet's")
    mean, std = ([round(value, 4) for value in (x / 255).tolist()] for x in (mean_C, std_C))
    return tuple(mean), tuple(std)
