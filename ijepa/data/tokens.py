"""A discrete token id for every patch, as CAE needs: ``python -m ijepa.data.tokens small|dalle``.

The ids of all training images lie beside the shards in ``tokens/NAME.npy``, [images, rows, columns]
of uint16; ``tokens/NAME.json``, written last, has its SHA-256 and says what made it. Each image is
seen whole, squeezed into a square, so that training can cut the grid where it cuts the image: the
grid should be finer than training's, and by default has twice its rows. (CAE gives its tokenizer
the crop itself, resized to half of the training size, at every step.)

Shape suffixes: B images, C channels, H rows of pixels, W columns of pixels, R rows of the grid,
L columns of the grid, N patches of an image, P sampled patches, D numbers of a patch,
V words of the vocabulary.
"""

import argparse
import json
import os
import pickle
from collections import OrderedDict
from dataclasses import asdict, dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

from ijepa.errors import UserError, run_command

LARGEST_VOCABULARY = 2**16
"""Ids are stored as uint16."""


@dataclass(frozen=True)
class Small:
    """A codebook of contrast-normalised pixel patches, learnt here by k-means.

    This is not CAE's tokenizer: that is the DALL-E dVAE, whose 8192 ids are learnt from millions of
    images and reconstruct them. These ids know edges and colours of a few pixels and no more; a CAE
    trained on them is another method, and its results must be named so.
    """

    vocabulary: int = 512
    size: int = 32
    patch: int = 4
    stride: int = 2
    seed: int = 0

    def __post_init__(self) -> None:
        if not 2 <= self.vocabulary <= LARGEST_VOCABULARY:
            raise ValueError(f"vocabulary is {self.vocabulary}: choose 2 to {LARGEST_VOCABULARY}")
        if not 1 <= self.stride <= self.patch <= self.size:
            raise ValueError(
                f"stride, patch, size are {self.stride}, {self.patch}, {self.size}: they must be "
                "positive and in rising order"
            )
        if self.size % self.stride:
            raise ValueError(
                f"size is {self.size}: choose a multiple of the stride, which is {self.stride}"
            )
        if self.seed < 0:
            raise ValueError(f"seed is {self.seed}: choose 0 or more")

    def encoder(self, images: "Images") -> "Codebook":
        """The tokenizer, learnt from a random sample of the images."""
        # Training reads caches with this module, and must not wait for sklearn.
        from sklearn.cluster import MiniBatchKMeans

        random = np.random.default_rng(self.seed)
        numbers = random.permutation(len(images))[:SAMPLED_IMAGES]
        views = WholeViews(images, self.size)
        sample = []
        for number in tqdm(numbers, desc="sample of patches", unit="image", mininterval=2):
            image_BCHW = unit_floats(torch.from_numpy(views[number].copy())[None])
            patches_ND = contrast_normalised_patches(image_BCHW, self.patch, self.stride)[0]
            sample.append(patches_ND[random.permutation(len(patches_ND))[:PATCHES_PER_IMAGE]])
        patches_PD = torch.cat(sample).numpy()
        distinct = len(np.unique(patches_PD, axis=0))
        if distinct < self.vocabulary:
            raise UserError(
                f"vocabulary is {self.vocabulary}, but a sample of {len(numbers)} images has only "
                f"{distinct} different patches: choose a smaller vocabulary"
            )
        kmeans = MiniBatchKMeans(
            self.vocabulary,
            batch_size=4096,
            n_init=1,
            compute_labels=False,
            random_state=self.seed,
        )
        codes_VD = torch.from_numpy(kmeans.fit(patches_PD).cluster_centers_)
        return Codebook(codes_VD, self.patch, self.stride)


@dataclass(frozen=True)
class Dalle:
    """The DALL-E dVAE's encoder, CAE's tokenizer, with weights that the user has downloaded."""

    weights: Path
    size: int = 224

    def __post_init__(self) -> None:
        if self.size < 8 or self.size % 8:
            raise ValueError(f"size is {self.size}: choose a multiple of 8, the dVAE's reduction")

    def encoder(self, images: "Images") -> "DalleEncoder":
        """The tokenizer."""
        return load_dalle(self.weights)


TOKENIZERS: dict[str, type[Small] | type[Dalle]] = {"small": Small, "dalle": Dalle}


def parser() -> argparse.ArgumentParser:
    """Options of the command line."""
    options = argparse.ArgumentParser(prog="python -m ijepa.data.tokens", description=__doc__)
    commands = options.add_subparsers(dest="tokenizer", required=True)
    small = commands.add_parser("small", help="k-means of pixel patches", description=Small.__doc__)
    dalle = commands.add_parser("dalle", help="the DALL-E dVAE", description=Dalle.__doc__)
    for command in (small, dalle):
        command.add_argument("--data", type=Path, required=True, help="folder of shards")
    for name, text in (
        ("vocabulary", "number of codes"),
        ("size", "pixels of a side that every image is squeezed to"),
        ("patch", "pixels of a side of a patch"),
        ("stride", "pixels from patch to patch; the grid is size / stride"),
        ("seed", "of the sample and of k-means"),
    ):
        default = getattr(Small, name)
        small.add_argument(f"--{name}", type=int, default=default, help=f"{text} ({default})")
    dalle.add_argument("--weights", type=Path, required=True, help="the encoder's state dict")
    dalle.add_argument(
        "--size",
        type=int,
        default=Dalle.size,
        help=f"pixels of a side that every image is squeezed to; the grid is / 8 ({Dalle.size})",
    )
    return options


if __name__ == "__main__":
    parser().parse_args()  # --help is answered before torch is there, which takes seconds

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor, nn
from tqdm import tqdm

from ijepa.data.loader import EvaluationViews, Images, evaluation_batches
from ijepa.data.shards import read_index, verify
from ijepa.data.transforms import to_array
from ijepa.files import digest, write_json, written_whole
from ijepa.strict import strict

SAMPLED_IMAGES, PATCHES_PER_IMAGE = 1000, 200
"""What the codebook of ``small`` is learnt from."""
CONTRAST_FLOOR = 10 / 255**2
"""Keeps the noise of flat patches small (Coates et al. 2011, section 3.2.1: 10 for bytes)."""


@dataclass(frozen=True)
class WholeViews(EvaluationViews):
    """The images in order, each squeezed whole into a square (Lanczos, as CAE for its dVAE)."""

    def __getitem__(self, number: int) -> NDArray[np.uint8]:
        image = self.images[number]
        return to_array(image.resize((self.size, self.size), Image.Resampling.LANCZOS))


def unit_floats(images_BHWC: Tensor) -> Tensor:
    """Floats [B, C, H, W] in [0, 1] from bytes."""
    return images_BHWC.permute(0, 3, 1, 2).float() / 255


def contrast_normalised_patches(images_BCHW: Tensor, patch: int, stride: int) -> Tensor:
    """Patches [B, N, D] with their mean removed and divided by their standard deviation.

    The image is padded by reflection, so that one patch stands on the middle of every square of
    ``stride`` pixels. Brightness and contrast are lost, colour is kept: both are taken over all
    channels. Coates, Ng and Lee (2011), section 3.2.1; their whitening is left out.
    """
    before = (patch - stride) // 2
    after = patch - stride - before
    padded = F.pad(images_BCHW, (before, after, before, after), mode="reflect")
    patches_BND = F.unfold(padded, patch, stride=stride).transpose(1, 2)
    patches_BND = patches_BND - patches_BND.mean(2, keepdim=True)
    variance = patches_BND.square().mean(2, keepdim=True)
    return patches_BND / (variance + CONTRAST_FLOOR).sqrt()


class Codebook(nn.Module):
    """Ids [B, R, L] of the nearest codes (Euclidean), from images [B, C, H, W] in [0, 1]."""

    batch_size = 32

    def __init__(self, codes_VD: Tensor, patch: int, stride: int) -> None:
        super().__init__()
        self.vocabulary = len(codes_VD)
        self.patch, self.stride = patch, stride
        self.codes_DV: Tensor
        self.offset_V: Tensor
        self.register_buffer("codes_DV", codes_VD.T.contiguous())
        self.register_buffer("offset_V", -codes_VD.square().sum(1) / 2)

    def forward(self, images_BCHW: Tensor) -> Tensor:  # noqa: D102
        patches_BND = contrast_normalised_patches(images_BCHW, self.patch, self.stride)
        # The code with the largest x.c - |c|^2 / 2 is the one with the smallest |x - c|^2.
        scores = torch.addmm(self.offset_V, patches_BND.flatten(0, 1), self.codes_DV)
        rows, columns = (length // self.stride for length in images_BCHW.shape[2:])
        return scores.argmax(1).view(len(images_BCHW), rows, columns)


class Conv(nn.Module):
    """A convolution that keeps the size, with the release's names ``w`` and ``b``."""

    def __init__(self, num_in: int, num_out: int, kernel: int) -> None:
        super().__init__()
        self.w = nn.Parameter(torch.zeros(num_out, num_in, kernel, kernel))
        self.b = nn.Parameter(torch.zeros(num_out))

    def forward(self, x_BCHW: Tensor) -> Tensor:  # noqa: D102
        return F.conv2d(x_BCHW, self.w, self.b, padding=self.w.shape[-1] // 2)


class DalleBlock(nn.Module):
    """A residual bottleneck of the dVAE's encoder: identity + gain * four convolutions."""

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
        # The dVAE was trained on pixels in [0.1, 0.9], away from the rim of its logit.
        scores_BVRL: Tensor = self.blocks(0.8 * images_BCHW + 0.1)
        return scores_BVRL.argmax(1)


def load_dalle(path: Path) -> DalleEncoder:
    """The dVAE's encoder from a plain state dict; its sizes are those of the weights.

    No code of the file is run. Raises UserError for a file that would need that, such as the
    released ``encoder.pkl``, and for one that lacks weights or has others.
    """
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
        if not isinstance(state, dict) or not all(isinstance(v, Tensor) for v in state.values()):
            raise ValueError("it holds something else than named tensors")
    except FileNotFoundError:
        raise UserError(f"{path} does not exist: give the dVAE encoder's file as weights") from None
    except (pickle.UnpicklingError, RuntimeError, EOFError, ValueError) as error:
        # torch's text goes on with advice to run the file's code.
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


def configure(tokenizer: str, settings: dict[str, Any], where: str) -> Small | Dalle:
    """A tokenizer's settings, checked; raises UserError that begins with ``where``."""
    if tokenizer not in TOKENIZERS:
        raise UserError(
            f"{where}: unknown tokenizer {tokenizer!r}: choose {' or '.join(TOKENIZERS)}"
        )
    if tokenizer == "dalle" and "weights" not in settings:
        raise UserError(f"{where}: dalle needs weights: give the file of the dVAE's encoder")
    return strict(TOKENIZERS[tokenizer], settings, where)


@torch.no_grad()
def build(folder: Path, tokenizer: str, weights: Path | None = None, **settings: int) -> None:
    """Write the token cache of the training images of a folder of shards.

    ``settings`` are the other fields of ``Small`` or ``Dalle``. The same data, settings and machine
    give the same bytes; on another machine near ties may fall otherwise. Raises UserError for an
    unknown tokenizer or setting, for bad weights and for damaged shards. After an interruption,
    run it again.
    """
    raw: dict[str, Any] = dict(settings) if weights is None else {**settings, "weights": weights}
    config = configure(tokenizer, raw, tokenizer)
    index = verify(folder, ["train"])
    images = Images(folder, "train")
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    encoder = config.encoder(images).eval().to(device)
    # On a CPU the tokenizer uses every core, and a loader's process would only be in its way.
    num_workers = len(os.sched_getaffinity(0)) if device.type == "cuda" else 0
    batches = evaluation_batches(
        WholeViews(images, config.size), encoder.batch_size, num_workers=num_workers
    )
    path = cache_path(folder, tokenizer)
    with (
        written_whole(path) as part,
        part.open("wb") as file,
        tqdm(total=len(images), desc=f"{tokenizer} tokens", unit="image", mininterval=2) as bar,
    ):
        for images_BHWC in batches:
            ids_BRL = encoder(unit_floats(images_BHWC.to(device))).cpu().numpy().astype("<u2")
            if file.tell() == 0:
                shape = (len(images), *ids_BRL.shape[1:])
                header = {"descr": "<u2", "fortran_order": False, "shape": shape}
                np.lib.format.write_array_header_1_0(file, header)
            file.write(ids_BRL.tobytes())
            bar.update(len(ids_BRL))
    about = {
        "tokenizer": tokenizer,
        "vocabulary": encoder.vocabulary,
        "data_version": index.version(),
        "weights_sha256": digest(weights) if weights is not None else None,
        "settings": {k: v for k, v in asdict(config).items() if k != "weights"},
        "sha256": digest(path),
    }
    write_json(path.with_suffix(".json"), about)


@dataclass(frozen=True)
class TokenCache:
    """The tokens of all training images: ids [images, rows, columns] below ``vocabulary``.

    ``ids`` are mapped into memory. ``sha256`` names exactly these ids, for a run's provenance.
    """

    name: str
    vocabulary: int
    ids: NDArray[np.uint16]
    sha256: str


def read(folder: Path, name: str, data_version: str) -> TokenCache:
    """The token cache of a tokenizer, after its file was compared with its checksum.

    Raises UserError that says the command if it is missing, damaged or of other data.
    """
    path = cache_path(folder, name)
    weights = " --weights FILE" if name == "dalle" else ""
    remedy = f"python -m ijepa.data.tokens {name} --data {folder}{weights}"
    try:
        about = json.loads(path.with_suffix(".json").read_text(encoding="utf-8"))
        vocabulary, sha256, version = (
            about[key] for key in ("vocabulary", "sha256", "data_version")
        )
        if digest(path) != sha256:
            raise ValueError("its SHA-256 is another")
    except FileNotFoundError as error:
        raise UserError(f"{error.filename} is missing: {remedy}") from None
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"{path} or its .json is damaged ({error}): {remedy}") from None
    if version != data_version:
        raise UserError(
            f"{path} was made from data version {version}, the shards are {data_version}: {remedy}"
        )
    return TokenCache(name, vocabulary, np.load(path, mmap_mode="r"), sha256)


def cache_path(folder: Path, name: str) -> Path:
    """Where the ids of a tokenizer lie."""
    return folder / "tokens" / f"{name}.npy"


def main() -> None:
    """Entry point of the command line."""
    options = vars(parser().parse_args())
    folder = options.pop("data")
    read_index(folder)
    build(folder, **options)


if __name__ == "__main__":
    run_command(main)
