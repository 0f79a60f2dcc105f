"""Device pixels of small data sets: images lie on the device, here the CPU, and are cut there."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from ijepa.data import resident
from ijepa.data.device_jpeg import Deferred, Part, Parts
from ijepa.data.loader import Images, View
from ijepa.data.resident import cut
from ijepa.data.transforms import IJEPA, INTERPOLATIONS, MAE, Box, Crop
from tests.jpegs import CPU, PIXELS, Files, batches, encoded, gap, numbers_read, picture


def of_one_size(count: int = 8, width: int = 48, height: int = 40) -> Files:
    """Parts of one picture, without losses."""
    whole = picture(width + 10 * count, height)
    parts = [whole.crop((10 * n, 0, 10 * n + width, height)) for n in range(count)]
    return Files(*(encoded(part, "png") for part in parts))


@pytest.mark.parametrize("crop", [IJEPA, MAE, Crop(whole=True)])
@pytest.mark.parametrize("size", [32, 64, 8, (24, 56)])
def test_views_differ_from_pils_by_rounding(crop: Crop, size: Any) -> None:
    """Enlarged and reduced, bilinear and bicubic, flipped and not."""
    assert gap(of_one_size(), View(size, crop)) <= 1


@given(
    left=st.integers(0, 30),
    top=st.integers(0, 20),
    width=st.integers(1, 18),
    height=st.integers(1, 20),
    flip=st.booleans(),
    rows=st.integers(1, 70),
    mode=st.sampled_from(["bilinear", "bicubic"]),
)
def test_any_part_is_cut_as_pil_cuts_it(
    left: int, top: int, width: int, height: int, flip: bool, rows: int, mode: str
) -> None:
    """A pixel outside the part has no influence, as it has none on a cropped image."""
    image, box = picture(48, 40), Box(left, top, width, height, flip)
    bytes_HWC = torch.from_numpy(np.array(image))
    part = Part(Deferred(0, image.size), box)
    view = cut(bytes_HWC.permute(2, 0, 1)[None], Parts.of([part]), (rows, 20), mode)[0]
    pil = image.crop((left, top, left + width, top + height))
    pil = pil.resize((20, rows), INTERPOLATIONS[mode])
    pil = pil.transpose(Image.Transpose.FLIP_LEFT_RIGHT) if flip else pil
    assert (view.int() - torch.from_numpy(np.array(pil)).int()).abs().max() <= 1


def test_images_are_read_once_and_then_never(monkeypatch: pytest.MonkeyPatch) -> None:
    """The batches take no file: their order and boxes are those of exact pixels."""
    read = numbers_read(monkeypatch)
    files = of_one_size()
    batches(files, [View(32, IJEPA)])
    assert sorted(read) == [0, *range(8)]


@pytest.mark.parametrize("workers", [0, 2])
def test_the_shards_of_a_run_lie_on_the_device(data: Path, workers: int) -> None:
    images = Images(data, "train")
    device, exact = (batches(images, [View(32, MAE)], p, 8, workers) for p in PIXELS)
    for a, b in zip(device, exact, strict=True):
        assert (a.views[0].int() - b.views[0].int()).abs().max() <= 1


@pytest.mark.parametrize(
    "files",
    [
        Files(*(encoded(picture(40 + n, 40), "png") for n in range(4))),
        Files(*(encoded(picture(40, 40), "png") for _ in range(4))),
    ],
)
def test_images_of_several_sizes_and_too_many_do_not_lie_there(
    files: Files, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(resident, "LARGEST", 4 * 40 * 40 * 3 - (files.files[0] == files.files[1]))
    assert resident.resident(files, CPU) is None


def test_a_mirrors_images_are_read_ahead(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Sequence[int]] = []
    monkeypatch.setattr(Files, "read_ahead", lambda self, numbers: asked.append(numbers))
    monkeypatch.setattr(resident, "CHUNK", 3)
    assert resident.resident(of_one_size(), CPU) is not None
    assert asked == [range(3), range(3, 6), range(6, 8)]
