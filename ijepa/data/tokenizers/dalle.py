"""Token ids by the encoder of the DALL-E dVAE, CAE's tokenizer.

Shape suffixes: as in ijepa.data.tokenizer.
"""

import pickle
from collections import OrderedDict
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ijepa.data.loader import Images
from ijepa.data.tokenizer import LARGEST_VOCABULARY
from ijepa.errors import UserError


class Conv(nn.Module):
    """Convolution that keeps the size, with the release's names ``w`` and ``b``."""

    def __init__(self, num_in: int, num_out: int, kernel: int) -> None:
        super().__init__()
        self.w = nn.Parameter(torch.zeros(num_out, num_in, kernel, kernel))
        self.b = nn.Parameter(torch.zeros(num_out))

    def forward(self, x_BCHW: Tensor) -> Tensor:  # noqa: D102
        return F.conv2d(x_BCHW, self.w, self.b, padding=self.w.shape[-1] // 2)


class DalleBlock(nn.Module):
    """Residual bottleneck of the dVAE's encoder: identity + gain * four convolutions."""

    def __init__(self, num_in: int, num_out: int, gain: float) -> None:
        super().__init__()
        self.gain = gain
        self.id_path = Conv(num_in, num_out, 1) if num_in != num_out else nn.Identity()
        widths = (num_in, *(num_out // 4,) * 3, num_out)
        layers: OrderedDict[str, nn.Module] = OrderedDict()
        for number, (narrow, wide) in enumerate(pairwise(widths), start=1):
            layers[f"relu_{number}"] = nn.ReLU()
            layers[f"conv_{number}"] = Conv(narrow, wide, 1 if number == 4 else 3)
        self.res_path = nn.Sequential(layers)

    def forward(self, x_BCHW: Tensor) -> Tensor:  # noqa: D102
        result: Tensor = self.id_path(x_BCHW) + self.gain * self.res_path(x_BCHW)
        return result


class DalleEncoder(nn.Module):
    """Ids [B, H / 8, W / 8] of the likeliest words, from images [B, C, H, W] in [0, 1].

    The discrete VAE of Ramesh et al. (2021), *Zero-Shot Text-to-Image Generation*, appendix A, with
    the names of its release; there ``hidden`` is 256 and ``vocabulary`` 8192.
    """

    batch_size = 8

    def __init__(self, hidden: int, vocabulary: int) -> None:
        super().__init__()
        self.vocabulary = vocabulary
        groups, blocks_per_group = 4, 2
        gain = 1 / (groups * blocks_per_group) ** 2
        blocks: OrderedDict[str, nn.Module] = OrderedDict(input=Conv(3, hidden, 7))
        width = hidden
        for number in range(1, groups + 1):
            group: OrderedDict[str, nn.Module] = OrderedDict()
            for block in range(1, blocks_per_group + 1):
                group[f"block_{block}"] = DalleBlock(width, hidden * 2 ** (number - 1), gain)
                width = hidden * 2 ** (number - 1)
            if number < groups:
                group["pool"] = nn.MaxPool2d(2)
            blocks[f"group_{number}"] = nn.Sequential(group)
        blocks["output"] = nn.Sequential(
            OrderedDict(relu=nn.ReLU(), conv=Conv(width, vocabulary, 1))
        )
        self.blocks = nn.Sequential(blocks)

    def forward(self, images_BCHW: Tensor) -> Tensor:  # noqa: D102
        # The dVAE was trained on pixels in [0.1, 0.9], which keeps their logits finite.
        scores_BVRL: Tensor = self.blocks(0.8 * images_BCHW + 0.1)
        return scores_BVRL.argmax(1)


def load_dalle(path: Path) -> DalleEncoder:
    """Load the dVAE's encoder from a plain state dict, with the sizes of its weights.

    No code of the file is run. Raises UserError for a file that would need that, such as the
    released ``encoder.pkl``, and for a file with missing or other weights.
    """
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
        if not isinstance(state, dict) or not all(isinstance(v, Tensor) for v in state.values()):
            raise ValueError("it holds something else than named tensors")
    except FileNotFoundError:
        raise UserError(f"{path} does not exist: give the dVAE encoder's file as weights") from None
    except (pickle.UnpicklingError, RuntimeError, EOFError, ValueError) as error:
        # torch's message is left out: it advises the user to run the file's code.
        raise UserError(
            f"{path} is not a plain state dict ({type(error).__name__}): if it is the released "
            "encoder.pkl, convert it in an environment where you trust the DALL-E package: "
            "python -c \"import torch; torch.save(torch.load('encoder.pkl', map_location='cpu', "
            "weights_only=False).state_dict(), 'encoder.pt')\""
        ) from None
    expected = DalleEncoder(hidden=4, vocabulary=2).state_dict()
    missing, unexpected = sorted(expected.keys() - state), sorted(state.keys() - expected)
    if missing or unexpected:
        raise UserError(
            f"{path} is not the dVAE's encoder: missing are {', '.join(missing) or 'none'}; "
            f"unexpected are {', '.join(unexpected) or 'none'}: give the encoder's whole state dict"
        )
    hidden, vocabulary = len(state["blocks.input.w"]), len(state["blocks.output.conv.w"])
    if vocabulary > LARGEST_VOCABULARY:
        raise UserError(f"{path} has {vocabulary} words: at most {LARGEST_VOCABULARY} can be kept")
    encoder = DalleEncoder(hidden, vocabulary)
    try:
        encoder.load_state_dict(state)
    except RuntimeError as error:
        reason = " ".join(str(error).split())
        raise UserError(
            f"{path} has weights of other shapes: give the release's ({reason})"
        ) from None
    return encoder


@dataclass(frozen=True)
class Config:
    """Path of the weights that the user has downloaded, and side of squeezed images in pixels."""

    weights: Path
    size: int = 224

    def __post_init__(self) -> None:
        if self.size < 8 or self.size % 8:
            raise ValueError(f"size is {self.size}: choose a multiple of 8, the dVAE's reduction")

    def encoder(self, images: Images) -> DalleEncoder:
        """Tokenizer with the configured weights."""
        return load_dalle(self.weights)
