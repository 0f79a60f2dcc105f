"""Device pixels: JPEGs that a training's device decodes; on a CPU, as here, by libjpeg-turbo."""

import io
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import ExifTags, Image
from torch import Tensor

from ijepa.config import parse_run
from ijepa.data import device_jpeg, resident
from ijepa.data.device_jpeg import check_device
from ijepa.data.loader import Images, Item, View
from ijepa.data.transforms import IJEPA, MAE, Crop
from ijepa.errors import UserError
from ijepa.files import ROOT
from ijepa.transfer import made_ahead
from tests.jpegs import CPU, PIXELS, Files, batches, encoded, gap, numbers_read, picture

pytest.importorskip("torchcodec")


@pytest.fixture(autouse=True)
def large(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let no data set be small enough to lie on the device (tests/test_resident.py)."""
    monkeypatch.setattr(resident, "LARGEST", 0)


@pytest.mark.parametrize("crop", [IJEPA, MAE])
def test_views_differ_from_exact_ones_by_rounding(
    crop: Crop, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Bilinear, bicubic, flipped, in grey and colour, of many sizes and of sides of their own."""
    shapes = [(500, 375), (375, 500), (224, 224), (64, 600), (33, 47), (1200, 900)]
    files = Files(*(encoded(picture(*s, mode)) for s in shapes for mode in ("RGB", "L")))
    monkeypatch.setattr(device_jpeg, "AT_A_TIME", 3)  # of batches of four
    assert gap(files, View(224, crop)) <= 2
    assert gap(files, View((96, 160), crop), View(32, crop)) <= 2


@pytest.mark.parametrize("crop", [IJEPA, MAE])
def test_views_of_noise_differ_by_rounding_too(crop: Crop) -> None:
    """The bicubic filter overshoots there; PIL cuts that off after the first of its two passes."""
    random = np.random.default_rng(0)
    noise = [random.integers(0, 256, (90 + n, 120, 3), np.uint8) for n in range(8)]
    files = Files(*(encoded(Image.fromarray(pixels)) for pixels in noise))
    assert gap(files, View(224, crop)) <= 2
    assert gap(files, View((48, 96), crop)) <= 2


@pytest.mark.parametrize("orientation", [2, 3, 6, 8])
def test_an_image_that_exif_data_would_turn_is_exact(orientation: int) -> None:
    """PIL leaves it as it is stored, and boxes are drawn on that."""
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = orientation
    file = io.BytesIO()
    picture(200, 100).save(file, "jpeg", exif=exif)
    (device,), (exact,) = (batches(Files(file.getvalue()), [View(64, IJEPA)], p, 1) for p in PIXELS)
    assert torch.equal(device.views[0], exact.views[0])


def test_a_batch_is_bytes_of_images_and_their_tokens() -> None:
    files = Files(*(encoded(picture(80, 60)) for _ in range(4)))
    tokens = np.arange(4 * 6).reshape(4, 2, 3)
    made: dict[str, Item] = {}
    for pixels in ("device", "exact"):
        (made[pixels],) = batches(files, [View(32, IJEPA)], pixels, tokens=tokens)
    assert made["device"].views[0].shape == (4, 32, 32, 3)
    assert made["device"].views[0].dtype == torch.uint8
    assert torch.equal(made["device"].tokens, made["exact"].tokens)


def test_what_is_no_jpeg_in_grey_or_colour_is_exact() -> None:
    kinds = [("RGB", "png"), ("CMYK", "jpeg"), ("L", "png"), ("RGB", "jpeg")]
    files = Files(*(encoded(picture(300, 200, mode), kind) for mode, kind in kinds))
    device, exact = (batches(files, [View(64, IJEPA)], pixels, 1) for pixels in ("device", "exact"))
    same = [torch.equal(a.views[0], b.views[0]) for a, b in zip(device, exact, strict=True)]
    assert sum(same) >= 3
    assert gap(files, View(64, IJEPA)) <= 2


def test_an_image_that_the_decoder_refuses_is_pils_and_the_others_are_not(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """A rare kind of JPEG, say, that nvJPEG does not know."""
    decode, odd = device_jpeg._decode, encoded(picture(90, 70))

    def picky(files: list[Tensor], device: torch.device) -> list[Tensor]:
        if odd in [bytes(file.tolist()) for file in files]:
            raise RuntimeError("unsupported")
        return decode(files, device)

    monkeypatch.setattr(device_jpeg, "_decode", picky)
    files = Files(encoded(picture(80, 60)), odd, encoded(picture(60, 80)), encoded(picture(70, 70)))
    read = numbers_read(monkeypatch)
    made = batches(files, [View(32, IJEPA)])
    assert read == [0, 1]  # the first one tells how large the data set would be
    assert [record.getMessage() for record in caplog.records] == [
        "pixels: device: PIL decodes images that torchcodec refuses (unsupported)"
    ]
    (exact,) = batches(files, [View(32, IJEPA)], "exact")
    assert (made[0].views[0].int() - exact.views[0].int()).abs().max() <= 2


@pytest.mark.parametrize("length", [40, 400, 4000])
def test_a_damaged_image_is_named_as_pil_names_it(length: int) -> None:
    """Its header, its tables or its pixels end too early."""
    whole = encoded(picture(300, 200))
    assert len(whole) > 4000
    files = Files(*([whole] * 3), whole[:length])
    with pytest.raises(OSError, match=r"[Tt]runcated|cannot identify"):
        batches(files, [View(64, IJEPA)])


@pytest.mark.parametrize("pixels", ["device", "exact"])
def test_a_process_ends_after_an_error_with_workers_at_work(pixels: str) -> None:
    """They ignore SIGTERM, by which Python would end them, and may wait for a reader.

    Over 5 s: each is a process that imports torch.
    """
    code = f"""
import numpy as np
from PIL import Image
from ijepa.data import resident
from ijepa.data.loader import View
from ijepa.data.transforms import IJEPA
from tests.jpegs import Files, batches, encoded
resident.LARGEST = 0
noise = np.random.default_rng(0).integers(0, 256, (800, 900, 3), np.uint8)
files = Files(*[encoded(Image.fromarray(noise))] * 24, b"no image")
batches(files, [View(32, IJEPA)], {pixels!r}, batch_size=1, workers=2)
"""
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 1
    assert "cannot identify" in done.stderr.strip().splitlines()[-1]


@pytest.mark.parametrize("workers", [0, 2])
def test_the_order_is_that_of_exact_pixels(workers: int) -> None:
    """Each image of one grey, so that a view tells which image it is of."""
    files = Files(*(encoded(Image.new("RGB", (40, 40), (10 * n,) * 3)) for n in range(24)))
    device = batches(files, [View(16, IJEPA)], workers=workers)
    exact = batches(files, [View(16, IJEPA)], "exact", workers=workers)
    for a, b in zip(device, exact, strict=True):
        assert torch.equal(a.views[0], b.views[0])


def test_shards_without_jpegs_have_exact_pixels(data: Path) -> None:
    images = Images(data, "train")
    device, exact = (batches(images, [View(32, MAE)], p, 8)[0] for p in ("device", "exact"))
    assert torch.equal(device.views[0], exact.views[0])


def test_one_batch_is_made_while_the_caller_works_and_no_more() -> None:
    begun = [threading.Event() for _ in range(4)]

    def make(number: int) -> list[Tensor]:
        begun[number].set()
        return [torch.tensor(number)]

    made = made_ahead(make, range(4), CPU)
    assert next(made) == (0, [torch.tensor(0)])
    assert begun[1].wait(10)
    assert not begun[2].is_set()
    assert [item for item, _ in made] == [1, 2, 3]


def test_a_fault_in_the_thread_reaches_the_caller() -> None:
    def numbers() -> Iterator[int]:
        yield 1
        raise UserError("image 2 is damaged")

    made = made_ahead(lambda number: [torch.tensor(number)], numbers(), CPU)
    assert next(made)[0] == 1
    with pytest.raises(UserError, match="image 2"):
        next(made)


def test_device_pixels_are_another_run(raw_run: dict[str, Any]) -> None:
    exact, fast, device = (
        parse_run({**raw_run, "pixels": pixels}) for pixels in ("exact", "fast", "device")
    )
    assert len({run.identity() for run in (exact, fast, device)}) == 3


def test_changes_of_colour_are_refused_with_the_key(raw_run: dict[str, Any]) -> None:
    raw = {**raw_run, "method": "dino", "recipe": {"preset": "tiny"}, "pixels": "device"}
    with pytest.raises(UserError, match=r"recipe\..*jitter.*on the host.*or say pixels: fast"):
        parse_run(raw)


def test_a_missing_package_is_told_before_anything_is_read(
    raw_run: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ijepa.config.find_spec", lambda name: None)
    parse_run(raw_run)
    with pytest.raises(UserError, match=r"pixels: device needs the package torchcodec.*exact"):
        parse_run({**raw_run, "pixels": "device"})


def test_a_build_that_cannot_decode_on_the_device_is_told_at_the_start() -> None:
    """Torchcodec for CPUs, asked for a GPU's decoder: the error is its own, ours the remedy."""
    check_device(CPU)
    with pytest.raises(UserError, match=r"torchcodec cannot decode a JPEG on cuda.*install"):
        check_device(torch.device("cuda"))
