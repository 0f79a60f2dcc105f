"""Discrete token ids of all patches, as CAE needs: ``python -m ijepa.data.tokens small|dalle``.

The ids of all training images lie beside the shards in ``tokens/NAME.npy``, [images, rows, columns]
of uint16; ``tokens/NAME.json``, written last, has its SHA-256 and its tokenizer's settings. Each
image is tokenised whole, squeezed into a square, so that training can cut the grid where it cuts
the image. The grid should therefore be finer than training's; by default it has twice its rows.
(CAE gives its tokenizer the crop itself, resized to half of the training size, at every step.)
"""

import argparse
import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from ijepa.cores import usable_cores
from ijepa.errors import UserError, program, run_command


def parser() -> argparse.ArgumentParser:
    """Options of the command line; an option left out has the tokenizer's default."""
    options = argparse.ArgumentParser(prog=program("ijepa.data.tokens"), description=__doc__)
    options.add_argument("tokenizer", help="one of ijepa/data/tokenizers, such as small")
    options.add_argument("--data", type=Path, required=True, help="folder of shards")
    left_out: Any = argparse.SUPPRESS
    for name, kind, text in (
        ("size", int, "side in pixels to which every image is squeezed"),
        ("vocabulary", int, "small: number of codes"),
        ("patch", int, "small: side of a patch in pixels"),
        ("stride", int, "small: pixels from patch to patch; the grid has size / stride rows"),
        ("seed", int, "small: seed of the sample and of k-means"),
        ("weights", Path, "dalle: the encoder's state dict (encoder.pkl: it says how to get it)"),
    ):
        options.add_argument(f"--{name}", type=kind, default=left_out, help=text)
    return options


if __name__ == "__main__":
    parser().parse_args()  # answer --help before torch is imported, which takes seconds

import numpy as np
import torch
from numpy.typing import NDArray
from tqdm import tqdm

from ijepa.data.loader import Images, evaluation_batches
from ijepa.data.shards import read_index, verify
from ijepa.data.tokenizer import WholeViews, configure, unit_floats
from ijepa.files import digest, write_json, written_whole
from ijepa.transfer import first_device


@torch.no_grad()
def build_tokens(
    folder: Path, tokenizer: str, weights: Path | None = None, **settings: int
) -> None:
    """Write the token cache of the training images of a folder of shards.

    ``settings`` are the other fields of the tokenizer's ``Config``. The same data, settings and
    machine give the same bytes; on another machine near ties may be decided differently. Raises
    UserError for an unknown tokenizer or setting, for bad weights and for damaged shards. After an
    interruption, run it again.
    """
    raw: dict[str, Any] = dict(settings) if weights is None else {**settings, "weights": weights}
    config = configure(tokenizer, raw, tokenizer)
    index = verify(folder, ["train"])
    if not index.rgb:
        raise UserError(
            f"{folder} has {index.channels} channels of {index.bits} bits: tokens are made of "
            "three channels of 8 bits; choose another data set"
        )
    images = Images(folder, "train")
    device = first_device()
    encoder = config.encoder(images).eval().to(device)
    # On a CPU the tokenizer uses every core, and a loader's process would only take time from it.
    num_workers = usable_cores() if device.type == "cuda" else 0
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
    """Tokens of all training images: ids [images, rows, columns] below ``vocabulary``.

    ``ids`` are mapped into memory. ``sha256`` names exactly these ids, for a run's provenance.
    """

    name: str
    vocabulary: int
    ids: NDArray[np.uint16]
    sha256: str


def read_tokens(folder: Path, name: str, data_version: str) -> TokenCache:
    """Read the token cache of a tokenizer, after its file was compared with its checksum.

    Raises UserError with the command to run if the cache is missing, damaged or of other data.
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
    """Path of the ids of a tokenizer."""
    return folder / "tokens" / f"{name}.npy"


def main() -> None:
    """Entry point of the command line."""
    options = vars(parser().parse_args())
    folder = options.pop("data")
    read_index(folder)
    build_tokens(folder, **options)


if __name__ == "__main__":
    run_command(main)
