"""The contract of a tokenizer: one module of ``ijepa/data/tokenizers/``, named as in a recipe.

A module has ``Config``, a frozen dataclass with ``size``, pixels of the side that images are
squeezed to, and ``encoder(images)``: a network with ``vocabulary`` and ``batch_size`` that maps
images [B, C, H, W] in [0, 1] to ids [B, R, L].

Shape suffixes: B images, C channels, H rows of pixels, W columns of pixels, R rows of the grid,
L columns of the grid, N patches of an image, V words of the vocabulary.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from ijepa import collection
from ijepa.data.loader import EvaluationViews
from ijepa.data.transforms import to_array
from ijepa.errors import UserError
from ijepa.image_size import sides
from ijepa.strict import strict

TOKENIZERS = "ijepa.data.tokenizers"

LARGEST_VOCABULARY = 2**16
"""Ids are stored as uint16."""


def configure(tokenizer: str, settings: dict[str, Any], where: str) -> Any:
    """Config of a tokenizer, checked; raises UserError that begins with ``where``."""
    module = collection.load(TOKENIZERS, tokenizer, "tokenizer", f"{where}: ")
    if tokenizer == "dalle" and "weights" not in settings:
        raise UserError(f"{where}: dalle needs weights: give the file of the dVAE's encoder")
    return strict(module.Config, settings, where)


@dataclass(frozen=True)
class WholeViews(EvaluationViews):
    """Images in order, each squeezed whole into a square (Lanczos, as CAE for its dVAE)."""

    def __getitem__(self, number: int) -> NDArray[np.uint8]:
        image = self.images[number]
        rows, columns = sides(self.size)
        return to_array(image.resize((columns, rows), Image.Resampling.LANCZOS))


def unit_floats(images_BHWC: Tensor) -> Tensor:
    """Floats [B, C, H, W] in [0, 1] from bytes."""
    return images_BHWC.permute(0, 3, 1, 2).float() / 255
