"""Device pixels: JPEGs that are decoded, cut and resized where a training runs.

Loader processes read files and draw boxes. On a GPU torchcodec decodes a batch by nvJPEG, in a
thread that works ahead of the training (ijepa.transfer.made_ahead); on a CPU by libjpeg-turbo.
Views are resized in float32 with antialiasing and rounded to bytes. On a CPU they differ from exact
ones by rounding. nvJPEG's transform rounds in its own way: by how much was not measured yet, nor
what it makes of a truncated file, which PIL and libjpeg-turbo refuse.

Loader processes hand a batch over as tensors, which lie in shared memory. Files in the loader's
pipe would fill it, and a process that waits there for a reader that is gone never ends.
"""

import io
import logging
from collections.abc import Callable, Iterator
from functools import cache
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import ExifTags, Image
from torch import Tensor
from torch.nn import functional as F

from ijepa.data.bands import Picture
from ijepa.data.transforms import Box
from ijepa.errors import UserError
from ijepa.image_size import Size, sides
from ijepa.transfer import placed

AT_A_TIME = 32
"""Images that are decoded together: of photographs with 12 million pixels they take 1.2 GB."""
READY = -1
"""Length in the place of a file's, of a view that is made already."""

log = logging.getLogger(__name__)


def check_device(device: torch.device) -> None:
    """Raise UserError if JPEGs cannot be decoded on this device."""
    file = io.BytesIO()
    Image.new("RGB", (16, 16)).save(file, "jpeg")
    try:
        _decode([torch.frombuffer(file.getbuffer(), dtype=torch.uint8)], device)
    except (RuntimeError, ImportError, OSError) as error:
        raise UserError(
            f"pixels: device: torchcodec cannot decode a JPEG on {device} ({error}): install its "
            "build for this device and this torch, or say pixels: exact"
        ) from None


class Deferred(NamedTuple):
    """Image ``number`` of ``size`` (width, height), whose views the device makes.

    It is an undecoded JPEG in grey or colour. The content is empty if the image lies on the device
    (ijepa.data.resident).
    """

    number: int
    size: tuple[int, int]
    content: bytes = b""

    @classmethod
    def of(cls, number: int, content: bytes) -> "Deferred":
        """Image of a file; raises ValueError for one that the device would make another picture of.

        That is one which is no JPEG in grey or colour, or one that torchcodec would turn, as its
        EXIF data ask for, and PIL does not.
        """
        try:
            image = Image.open(io.BytesIO(content))  # reads the header only
            turned = image.getexif().get(ExifTags.Base.Orientation, 1) != 1
        except OSError as error:
            raise ValueError(str(error)) from None
        if image.format != "JPEG" or image.mode not in ("L", "RGB") or turned:
            raise ValueError(f"the file is {image.format} of mode {image.mode}, turned: {turned}")
        return cls(number, image.size, content)


class Part(NamedTuple):
    """Part of an image that a view shows."""

    image: Deferred
    box: Box


class Parts(NamedTuple):
    """Views of a batch that the device makes.

    Args:
        rows_BR: Of each view the image's number, the length of its file, and the box; of a ready
            view its place in ``ready_KHWC`` and READY.
        files: Bytes of all files, one after the other.
        ready_KHWC: Bytes of views that are made already.
    """

    rows_BR: Tensor
    files: Tensor
    ready_KHWC: Tensor

    @classmethod
    def of(cls, pictures: list[Part | NDArray[np.uint8]]) -> "Parts":
        """Parts, and views [H, W, C], of a batch."""
        rows: list[list[int]] = []
        files: list[bytes] = []
        ready: list[NDArray[np.uint8]] = []
        for picture in pictures:
            if isinstance(picture, Part):
                image, box = picture
                rows.append([image.number, len(image.content), *box])
                files.append(image.content)
            else:
                rows.append([len(ready), READY, 0, 0, 0, 0, 0])
                ready.append(picture)
        content = np.frombuffer(b"".join(files), np.uint8).copy()
        views = np.stack(ready) if ready else np.empty((0, 0, 0, 3), np.uint8)
        return cls(torch.tensor(rows), torch.from_numpy(content), torch.from_numpy(views))


def decoded(
    parts: Parts, size: Size, mode: str, device: torch.device, exact: Callable[[int], Picture]
) -> Tensor:
    """Views [B, H, W, C] of a batch as bytes on a device.

    Args:
        parts: The batch.
        size: Size of the views.
        mode: Interpolation, bilinear or bicubic.
        device: The device.
        exact: Image of a number by PIL, for one that the device's decoder refuses. It raises
            UserError for a damaged one.
    """
    rows = parts.rows_BR.tolist()
    lengths = [max(length, 0) for _, length, *_ in rows]
    files = zip(rows, parts.files.split(lengths), strict=True)
    images = [(number, file) for (number, length, *_), file in files if length != READY]
    images_CHW, ready_KHWC = _whole(images, device, exact), placed(parts.ready_KHWC, device)
    views = torch.empty(len(rows), 3, *sides(size), device=device)
    for view_CHW, (number, length, *box) in zip(views, rows, strict=True):
        if length == READY:
            view_CHW.copy_(ready_KHWC[number].permute(2, 0, 1))
        else:
            _cut(next(images_CHW), Box(*box), view_CHW, mode)
    return as_bytes(views).to(torch.uint8).permute(0, 2, 3, 1)


def _cut(image_CHW: Tensor, box: Box, view_CHW: Tensor, mode: str) -> None:
    """Write the part of an image that a box shows into a view."""
    part = image_CHW[None, :, box.top : box.top + box.height, box.left : box.left + box.width]
    sized, (rows, columns) = part.float(), view_CHW.shape[1:]
    if mode == "bicubic":  # it overshoots, and PIL cuts that off after the first of both passes
        narrowed = F.interpolate(sized, (box.height, columns), mode=mode, antialias=True)
        sized = as_bytes(narrowed)
    sized = F.interpolate(sized, (rows, columns), mode=mode, antialias=True)[0]
    view_CHW.copy_(sized.flip(2) if box.flip else sized)


def as_bytes(x: Tensor) -> Tensor:
    """Floats changed in place to those that a byte can have; halves go up, as PIL's."""
    return x.add_(0.5).floor_().clamp_(0, 255)


def _whole(
    images: list[tuple[int, Tensor]], device: torch.device, exact: Callable[[int], Picture]
) -> Iterator[Tensor]:
    """Images [C, H, W] as bytes of numbers and files; one that the decoder refuses is PIL's."""
    for first in range(0, len(images), AT_A_TIME):
        together = images[first : first + AT_A_TIME]
        try:
            decoded_CHW = _decode([file for _, file in together], device)
        except torch.OutOfMemoryError:
            raise
        except RuntimeError:  # of any of them
            decoded_CHW = [_one(*image, device, exact) for image in together]
        yield from decoded_CHW


def _one(
    number: int, file: Tensor, device: torch.device, exact: Callable[[int], Picture]
) -> Tensor:
    try:
        return _decode([file], device)[0]
    except torch.OutOfMemoryError:
        raise
    except RuntimeError as error:
        image = torch.from_numpy(np.array(exact(number)))
        _tell(str(error))
        return placed(image, device).permute(2, 0, 1)


@cache
def _tell(fault: str) -> None:
    """Warn once of each fault: every image is read in every epoch."""
    log.warning("pixels: device: PIL decodes images that torchcodec refuses (%s)", fault)


def _decode(files: list[Tensor], device: torch.device) -> list[Tensor]:
    """Images [C, H, W] of JPEGs; raises RuntimeError if any of them cannot be decoded."""
    from torchcodec.decoders import decode_jpeg

    images_CHW: list[Tensor] = decode_jpeg(files, mode="RGB", device=device)
    return images_CHW
