"""Images that are not three channels of 8 bits: grey, multispectral, 16 bits a channel.

Pillow has no image of five channels, and reads only the upper 8 bits of colours of 16. So each
channel is a Pillow image of its own, and all are cut and resized alike. Channels are read from any
format that Pillow reads without a loss, from the pages of a TIFF, and from .npy [H, W, C].

The rule for 16 bits: 0 to 65535 become 0 to 255 as floats (value / 257). Nothing is clipped or
rounded; the data set's own mean and deviation then bring its range to that of other images.

Shape suffixes: H rows of pixels, W columns of pixels, C channels.
"""

import io
from collections.abc import Callable, Iterator
from dataclasses import fields, is_dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageSequence
from PIL.TiffImagePlugin import TiffImageFile

RGB = (3, 8)
"""Channels and bits a channel to which Pillow converts any file; others must be the file's own."""
NPY = b"\x93NUMPY"
"""First bytes of a .npy file."""
SCALE_16 = np.float32(65535 / 255)
"""Value of 16 bits that becomes 1."""
BITS_PER_SAMPLE, CHANNELS, EXTRA = 258, 277, 338
"""Tags of a TIFF: the bits of each channel, their number, and kinds of those beside the colours."""
PREMULTIPLIED = 1
"""Kind of a fourth channel by which Pillow divides the others."""
TIFF = (b"II*\0", b"MM\0*")
"""First bytes of a TIFF file."""
DEEP = ("I", "F")
"""Begin of Pillow's modes with more than 8 bits a pixel."""
SAVE = "save each channel as a page of a TIFF, or all as .npy, [rows, columns, channels]"
COLOURS = ("jitter", "grey", "blur", "solarise")
"""Keys of a crop that Pillow carries out, on three channels of 8 bits alone."""


class Bands:
    """Image of any number of channels, with the part of Pillow's interface that views need."""

    def __init__(self, channels: list[Image.Image]) -> None:
        self.channels = channels

    @property
    def size(self) -> tuple[int, int]:
        """Width and height in pixels."""
        return self.channels[0].size

    @property
    def width(self) -> int:
        """Number of columns of pixels."""
        return self.size[0]

    @property
    def height(self) -> int:
        """Number of rows of pixels."""
        return self.size[1]

    def crop(self, box: tuple[int, int, int, int]) -> "Bands":
        """Part within (left, top, right, bottom)."""
        return self._each(lambda channel: channel.crop(box))

    def resize(self, size: tuple[int, int], resample: Image.Resampling) -> "Bands":
        """Image of another width and height."""
        return self._each(lambda channel: channel.resize(size, resample))

    def transpose(self, method: Image.Transpose) -> "Bands":
        """Image that is mirrored or turned."""
        return self._each(lambda channel: channel.transpose(method))

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> NDArray[Any]:
        """Bytes, or floats from 0 to 255 if there are 16 bits a channel, [H, W, C]."""
        return np.stack([np.asarray(channel, dtype) for channel in self.channels], -1)

    def _each(self, change: Callable[[Image.Image], Image.Image]) -> "Bands":
        return Bands([change(channel) for channel in self.channels])


Picture = Image.Image | Bands
"""Image in RGB, or in any other channels."""


def read_bands(content: bytes, channels: int, bits: int) -> Bands:
    """Image of a file with exactly these channels and bits; raises ValueError for any other."""
    array_HWC = _array(content) if content.startswith(NPY) else _pages(content)
    if array_HWC.shape[2] != channels:
        raise ValueError(
            f"it is {' x '.join(map(str, array_HWC.shape))} (rows, columns, channels), the entry "
            f"has channels: {channels}"
        )
    if (depth := 8 * array_HWC.itemsize) != bits:
        raise ValueError(f"it has {depth} bits a channel, the entry has bits: {bits}")
    if bits == 16:
        array_HWC = array_HWC.astype(np.float32) / SCALE_16
    planes = np.ascontiguousarray(np.moveaxis(array_HWC, 2, 0))
    return Bands([Image.fromarray(plane) for plane in planes])


def _array(content: bytes) -> NDArray[Any]:
    """Array [H, W, C] of uint8 or uint16 from a .npy file."""
    array: NDArray[Any] = np.load(io.BytesIO(content), allow_pickle=False)
    array_HWC = array[..., None] if array.ndim == 2 else array
    kind = f"{array.dtype.kind}{array.itemsize}"  # in either order of bytes
    if array_HWC.ndim != 3 or not array_HWC.size or kind not in ("u1", "u2"):
        raise ValueError(
            f"it is an array of {array.dtype}, {list(array.shape)}: save uint8 or uint16, "
            "[rows, columns, channels]"
        )
    return array_HWC


def _pages(content: bytes) -> NDArray[Any]:
    """Channels [H, W, C] of an image, those of all pages if it is a TIFF with several."""
    with Image.open(io.BytesIO(content)) as image:
        if isinstance(image, TiffImageFile):
            pages = ImageSequence.Iterator(image)
            arrays = [_all_channels(image, _page(page, content)) for page in pages]
        else:
            arrays = [_page(image, content)]
    if len({(array.shape[:2], array.dtype) for array in arrays}) > 1:
        raise ValueError("its pages have different sizes or bits: give each page the same")
    return np.concatenate(arrays, 2)


def _page(image: Image.Image, content: bytes) -> NDArray[Any]:
    """Channels [H, W, C] of one picture."""
    if image.mode.startswith("I"):
        values = np.asarray(image)
        if values.min() < 0 or values.max() > 65535:
            raise ValueError(
                f"it has values from {values.min()} to {values.max()}: scale them to 16 bits "
                "(0 to 65535)"
            )
        return values.astype(np.uint16)[..., None]
    if image.mode in ("P", "PA", "F"):
        raise ValueError(f"its mode is {image.mode}: save channels of 8 or 16 bits")
    if is_deep(image, content):
        raise ValueError(f"Pillow reads only 8 of the 16 bits of its colours: {SAVE}")
    values = np.asarray(image.convert("L") if image.mode == "1" else image)
    return values[..., None] if values.ndim == 2 else values


def _all_channels(image: TiffImageFile, values_HWC: NDArray[Any]) -> NDArray[Any]:
    """Channels of a page, [H, W, C]; raises ValueError unless Pillow reads all as they are."""
    count = image.tag_v2.get(CHANNELS, 1)
    if values_HWC.shape[2] != count:
        raise ValueError(f"Pillow reads {values_HWC.shape[2]} of its {count} channels: {SAVE}")
    if PREMULTIPLIED in image.tag_v2.get(EXTRA, ()):
        raise ValueError(f"Pillow divides its channels by the last, as an opacity: {SAVE}")
    return values_HWC


def is_deep(image: Image.Image, content: bytes) -> bool:
    """True for more than 8 bits a channel: of colours Pillow reads the upper 8, without a word."""
    bits = (content[24],) if image.format == "PNG" else (8,)
    if isinstance(image, TiffImageFile):
        bits = image.tag_v2.get(BITS_PER_SAMPLE, bits)
    return image.mode.startswith(DEEP) or max(bits) > 8


def check_colours(
    config: Any,
    names: tuple[str, ...] = COLOURS,
    reason: str = "it needs images of three channels and 8 bits",
) -> None:
    """Raise ValueError that names a key, if settings change colours; ``names`` are such keys."""
    for path, value in _settings(config):
        used = any(value) if isinstance(value, tuple) else value
        if path.rpartition(".")[2] in names and used:
            raise ValueError(f"{path} is {value}: {reason}: switch it off")


def _settings(config: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    """Path and value of every setting, those of nested settings and of their lists too."""
    if is_dataclass(config):
        for field in fields(config):
            yield from _settings(getattr(config, field.name), f"{path}.{field.name}".lstrip("."))
    elif isinstance(config, tuple) and config and is_dataclass(config[0]):
        for number, item in enumerate(config):
            yield from _settings(item, f"{path}.{number}")
    else:
        yield path, config
