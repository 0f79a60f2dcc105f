"""Fast pixels: JPEGs that libjpeg-turbo decodes only as finely as a crop needs.

``exact`` pixels are PIL's. ``fast`` ones are decoded by simplejpeg and resized by torch on bytes,
with antialiasing as PIL's. Decoded whole, a view differs from the exact one by rounding. A crop of
at least twice the view's side is decoded at a half, a quarter or an eighth of the image's size,
which its discrete cosine transform gives at less cost; its box is then rounded to whole pixels of
that size. ``python -m benchmarks.pixels`` measures time and differences.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn import functional as F

from ijepa.image_size import Size, sides

SCALES = (8, 4, 2)
"""Sizes, as parts of the whole, that libjpeg-turbo computes faster than the whole."""


class Jpeg:
    """Undecoded JPEG in grey or colour; ``whole`` decodes it exactly, if simplejpeg finds a fault.

    Raises ValueError for any other bytes, CMYK included.
    """

    def __init__(self, data: bytes, whole: Callable[[], Any]) -> None:
        import simplejpeg

        height, width, colours, _ = simplejpeg.decode_jpeg_header(data)
        if colours not in ("Gray", "YCbCr", "RGB"):
            raise ValueError(f"the JPEG's colours are {colours}")
        self.data, self.whole = data, whole
        self.size: tuple[int, int] = (width, height)
        self.scale, self.pixels_HWC = 0, np.empty((0, 0, 3), np.uint8)

    def view(self, box: tuple[int, int, int, int], size: Size, mode: str) -> NDArray[np.uint8]:
        """View [H, W, 3] that shows a box (left, top, right, bottom) of the whole image."""
        left, top, right, bottom = box
        rows, columns = sides(size)
        finer = min((bottom - top) / rows, (right - left) / columns)
        needed = next((scale for scale in SCALES if finer >= scale), 1)
        if not 0 < self.scale <= needed:  # a finer one, which another view needed, will do
            self._decode(needed)
        left, top, right, bottom = ((edge + self.scale // 2) // self.scale for edge in box)
        # A batch first, then its dimensions in torch's order: strides that torch knows as "channels
        # last". It resizes those faster, and the view has them too and need not be copied.
        crop_BHWC = torch.from_numpy(self.pixels_HWC[top:bottom, left:right])[None]
        crop_BCHW = crop_BHWC.permute(0, 3, 1, 2)
        view_BCHW = F.interpolate(crop_BCHW, (rows, columns), mode=mode, antialias=True)
        return view_BCHW[0].permute(1, 2, 0).numpy()

    def _decode(self, scale: int) -> None:
        """Decode at 1 / ``scale`` of the size."""
        import simplejpeg

        width, height = (-(-length // scale) for length in self.size)
        least: dict[str, Any] = {"min_height": height, "min_width": width} if scale > 1 else {}
        try:
            self.pixels_HWC = simplejpeg.decode_jpeg(self.data, "RGB", strict=True, **least)
            self.scale = scale
        except ValueError:
            self.pixels_HWC, self.scale = np.array(self.whole()), 1
