"""Extraction of features: ``python -m evals.features --help``.

Features are averages over patches, of each of the last four layers after the final LayerNorm
(paper, A.2, as VISSL does it); of an encoder with [cls], they are [cls] and the average side by
side (evals.pooling). The control ``pixels`` has no encoder: its single layer of features is the
bytes of the image, resized to 32x32, divided by 255.

Shape suffixes: B images of a batch, H rows and W columns of pixels, C channels, L layers, N patches
of the grid, D features.
"""

import argparse
import json
import time
from collections.abc import Callable
from functools import cache
from itertools import cycle
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ijepa.cores import usable_cores
from ijepa.errors import UserError, program, run_command

ABOUT = """Write the features of every split, of an encoder or of raw pixels.

``--images`` gives, for some splits, the number of images to take, from the first on; of all other
splits every image is taken.

``SPLIT.npy`` beside ``out`` is [images, L, D] float16, to be memory-mapped by its readers; D is
the encoder's width, or twice that: [cls], if there is one, then the patches' average. It is
written batch by batch, so that memory does not grow with it. For the report's pictures,
``test.patches.npy``, [6, N, D] float16, has every patch's features of up to six test images, at
equal distances in the split (evals.patches). ``out`` is a JSON file that is written last: it names
the encoder, the data set, the code and the machine. A call that is killed keeps the rows that it
has written, and the next call goes on from there.
"""


def parser() -> argparse.ArgumentParser:
    """Options of the command line."""
    options = argparse.ArgumentParser(prog=program("evals.features"), description=ABOUT)
    options.add_argument("encoder", help="encoder file, or the word pixels")
    options.add_argument("--data", type=Path, required=True, help="folder of shards")
    options.add_argument("--out", type=Path, required=True, help="about.json of the features")
    options.add_argument(
        "--images",
        nargs="*",
        default=[],
        metavar="SPLIT=NUMBER",
        help="use only the first images of a split, for example train=2000",
    )
    return options


if __name__ == "__main__":
    parser().parse_args()  # answers --help before torch is imported, which takes seconds

import numpy as np
import torch
from numpy.lib.format import open_memmap
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import Subset
from tqdm import tqdm

from evals.about import FORMAT
from evals.patches import PATCHES_FILE, spread_out
from evals.pooling import NUM_LAYERS, PATCHES, Pool, kinds
from evals.replicas import replicas
from evals.subject import check_channels
from evals.views import CHUNK, inputs, patch_features, pooled
from ijepa.allocator import keep_freed_memory
from ijepa.architecture import ViTConfig
from ijepa.data.loader import EvaluationViews, Images, evaluation_batches
from ijepa.data.shards import check_limit, verify
from ijepa.encoder_file import PIXELS, PIXELS_SIZE, encoder_digest, read_header
from ijepa.files import read_json, write_json
from ijepa.image_size import Size
from ijepa.provenance import here
from ijepa.transfer import fetched, first_device

if TYPE_CHECKING:
    from ijepa.vit import ViT

SECONDS_BETWEEN_NOTES = 10
"""Seconds of work that a killed extraction loses at most."""


def extract(
    encoder_file: Path | None,
    data: Path,
    out: Path,
    limit: dict[str, int] | None = None,
) -> None:
    """Write the features of every split, to the files that ABOUT describes."""
    about: dict[str, Any] = {} if encoder_file is None else read_header(encoder_file)
    about = {"encoder": encoder_digest(encoder_file), **about}
    index = verify(data)
    image_size: Size = PIXELS_SIZE
    if encoder_file is not None:
        vit = ViTConfig(**about["run"]["vit"])
        image_size = vit.image_size
        check_channels(encoder_file, vit, index)
    if (stored := kinds(about)) != PATCHES:
        about["features_of_tokens"] = list(stored)
    about |= {"dataset": index.dataset, "data_version": index.version(), "image_size": image_size}
    keep_freed_memory()
    device = first_device()
    networks = cache(lambda: _loaded(encoder_file, device))
    seconds = 0.0
    for split in index.splits:
        images = Images(data, split)
        count = (limit or {}).get(split, len(images))
        views = EvaluationViews(images, image_size, index.view)
        whole = Subset(views, range(count))
        seconds += _extract_split(
            networks, whole, out.with_name(f"{split}.npy"), about, device, _features
        )
        if split == "test" and encoder_file is not None:
            shown = spread_out(count)
            some, about_some = Subset(views, shown), {**about, "shown": shown}
            path = out.with_name(PATCHES_FILE)
            seconds += _extract_split(networks, some, path, about_some, device, _patches)
    write_json(
        out, about | {"format": FORMAT, "features": here(), "feature_seconds": round(seconds, 2)}
    )


def _extract_split(
    networks: "Callable[[], list[ViT | None]]",
    views: "Subset[NDArray[np.uint8]]",
    path: Path,
    about: dict[str, Any],
    device: torch.device,
    features_of: "Callable[[ViT | None, Tensor], Tensor]",
) -> float:
    """Write a row for each view; returns the seconds that they took, over all calls.

    The networks are copies of one encoder, a GPU each, and take the batches in turn.

    Rows that an earlier call has noted as written are kept. The note lies beside the file and is
    written only after the rows that it counts are flushed. If all rows are there, the network is
    not loaded.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    note_path = path.with_suffix(".part.json")
    count = len(views)
    identity = {**about, "images": count}
    num_done, seconds_before = 0, 0.0
    if note_path.exists() and path.exists():
        note = read_json(note_path)
        if note["about"] == json.loads(json.dumps(identity)):
            num_done, seconds_before = note["rows"], note["seconds"]
    if num_done == count:
        return seconds_before
    start = last_note = time.perf_counter()
    # On a CPU the network uses every core. One process that decodes ahead makes the extraction 1.4
    # times as fast.
    num_workers = usable_cores() if device.type == "cuda" else 1
    rows = open_memmap(path, "r+") if num_done else None
    batches = evaluation_batches(Subset(views, range(num_done, count)), CHUNK, num_workers)
    with tqdm(
        total=count, initial=num_done, desc=f"features of {path.stem}", unit="image", mininterval=2
    ) as bar:
        copies = networks()
        outputs = (
            features_of(network, images)
            for images, network in zip(batches, cycle(copies), strict=False)
        )
        for x_BLD in fetched(outputs, len(copies)):
            if not x_BLD.isfinite().all():
                raise UserError(
                    f"features of {path.stem} images are not finite, or too large for float16: the "
                    "encoder has no final LayerNorm, or its weights are damaged or diverged"
                )
            if rows is None:
                rows = open_memmap(path, "w+", np.float16, (count, *x_BLD.shape[1:]))
            rows[num_done : num_done + len(x_BLD)] = x_BLD.numpy()
            num_done += len(x_BLD)
            bar.update(len(x_BLD))
            if time.perf_counter() - last_note > SECONDS_BETWEEN_NOTES or num_done == count:
                last_note = time.perf_counter()
                rows.flush()
                note = {
                    "about": identity,
                    "rows": num_done,
                    "seconds": seconds_before + last_note - start,
                }
                write_json(note_path, note)
    return seconds_before + time.perf_counter() - start


def _loaded(encoder_file: Path | None, device: torch.device) -> "list[ViT | None]":
    """Network of an encoder file, on every GPU; None for raw pixels."""
    if encoder_file is None:
        return [None]
    # Not at the top: timm takes seconds to import; pixels and finished features do not need it.
    from ijepa.checkpoint import load_encoder

    return [*replicas(load_encoder(encoder_file)[0], device)]


@torch.no_grad()
def _features(network: "ViT | None", images_BHWC: Tensor) -> Tensor:
    if network is None:
        return (images_BHWC.flatten(1).float() / 255).unsqueeze(1).half()
    pool: Pool = "cls_patches" if network.variant.class_token else "patches"
    return pooled(network, inputs(network, images_BHWC), NUM_LAYERS, pool).half()


def _patches(network: "ViT | None", images_BHWC: Tensor) -> Tensor:
    assert network is not None, "raw pixels have no patches"
    return patch_features(network, inputs(network, images_BHWC)).half()


def split_counts(words: list[str]) -> dict[str, int]:
    """Counts of images by split, from words ``SPLIT=NUMBER``; raises UserError for other words."""
    counts = {}
    for word in words:
        split, _, number = word.partition("=")
        if not number.isdecimal() or int(number) < 1:
            raise UserError(f"--images {word!r}: give counts by split, as train=2000")
        counts[split] = int(number)
    return counts


def main() -> None:
    """Entry point of the command line."""
    options = parser().parse_args()
    limit = split_counts(options.images)
    check_limit(limit, options.data)
    encoder = None if options.encoder == PIXELS else Path(options.encoder)
    extract(encoder, options.data, options.out, limit)


if __name__ == "__main__":
    run_command(main)
