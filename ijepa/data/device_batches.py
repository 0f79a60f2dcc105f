"""Batches of ``pixels: device``, whose views are made where a training runs.

A small data set lies there as bytes (ijepa.data.resident). Of a larger one JPEGs are decoded there
(ijepa.data.device_jpeg). Loader processes draw boxes in either case, and read files in the latter.
"""

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from ijepa.data import device_jpeg
from ijepa.data.loader import Item, Steps, TrainingViews, View, training_batches
from ijepa.data.resident import cut, resident
from ijepa.transfer import made_ahead, placed


def device_batches(
    views: TrainingViews, steps: Steps, num_workers: int, device: torch.device
) -> Iterator[Item]:
    """Items of ``training_batches`` with views [B, H, W, C] as bytes on a device.

    Raises UserError if JPEGs have to be decoded and cannot be on this device.
    """
    images_NCHW = resident(views.images, device)
    if images_NCHW is None:
        device_jpeg.check_device(device)
    else:
        height, width = images_NCHW.shape[2:]
        views = replace(views, resident=(width, height))

    def of(pictures: Any, view: View) -> Tensor:
        size, mode = view.size, view.crop.interpolation
        if isinstance(pictures, Tensor):  # the loader has made all of them
            return placed(pictures, device)
        if images_NCHW is not None:
            return cut(images_NCHW, pictures, size, mode)
        return device_jpeg.decoded(pictures, size, mode, device, views.images.__getitem__)

    def make(item: Item) -> list[Tensor]:
        return list(map(of, item.views, views.views))

    made = made_ahead(make, training_batches(views, steps, num_workers), device)
    return (item._replace(views=tensors) for item, tensors in made)
