"""The one place that extracts features: ``python -m evals.features --help``.

Features are averages over patches, of each of the last four layers after the final LayerNorm
(paper, A.2, as VISSL does it). The control ``pixels`` has no encoder: its one layer of features are
the bytes of the image, as they are.

Shape suffixes: B images of a batch, H rows and W columns of pixels, C channels, L layers, D
features.
"""

import argparse
import json
import os
import time
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ijepa.errors import UserError, run_command

ABOUT = """Write the features of every split; ``encoder_file`` None means raw pixels.

``limit`` says of which splits only so many images are taken, the first ones.

``SPLIT.npy`` beside ``out`` is [images, L, D] float16 and meant to be mapped into memory; it is
written as it comes, so that memory does not grow with it. ``out``, a JSON file written last,
says of what and by whom. What a killed call has written is kept.
"""


def parser() -> argparse.ArgumentParser:
    """Options of the command line."""
    options = argparse.ArgumentParser(prog="python -m evals.features", description=ABOUT)
    options.add_argument("encoder", help="encoder file, or the word pixels")
    options.add_argument("--data", type=Path, required=True, help="folder of shards")
    options.add_argument("--image-size", type=int, default=32, help="for pixels only")
    options.add_argument("--out", type=Path, required=True, help="about.json of the features")
    options.add_argument(
        "--images", nargs="*", default=[], metavar="SPLIT=NUMBER", help="not all: train=2000"
    )
    return options


if __name__ == "__main__":
    parser().parse_args()  # --help is answered before torch is there, which takes seconds

import numpy as np
import torch
from numpy.lib.format import open_memmap
from torch import Tensor
from torch.utils.data import Subset
from tqdm import tqdm

from evals.views import pooled
from ijepa.data.loader import EvaluationViews, Images, evaluation_batches
from ijepa.data.shards import read_index, verify
from ijepa.data.transforms import normalise
from ijepa.encoder_file import PIXELS, encoder_digest, read_header
from ijepa.files import read_json, write_json
from ijepa.provenance import here

if TYPE_CHECKING:
    from ijepa.vit import ViT

NUM_LAYERS = 4
BATCH_SIZE = 128
"""Small enough for a processor's cache: on 2 cores a third faster than 500."""
SECONDS_BETWEEN_NOTES = 10
"""How much work a killed extraction loses at most."""


def extract(
    encoder_file: Path | None,
    data: Path,
    image_size: int,
    out: Path,
    limit: dict[str, int] | None = None,
) -> None:
    """Write the features of every split; ABOUT says to which files, and what is left out."""
    about: dict[str, Any] = {"encoder": encoder_digest(encoder_file)}
    if encoder_file is not None:
        about |= read_header(encoder_file)
        image_size = about["run"]["vit"]["image_size"]
    index = verify(data)
    about |= {"dataset": index.dataset, "data_version": index.version(), "image_size": image_size}
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    network = cache(lambda: _loaded(encoder_file, device))
    seconds = 0.0
    for split in index.splits:
        images = Images(data, split)
        count = (limit or {}).get(split, len(images))
        views = EvaluationViews(images, image_size, index.view)
        seconds += _extract_split(
            network, views, count, out.with_name(f"{split}.npy"), about, device
        )
    write_json(out, about | {"features": here(), "feature_seconds": round(seconds, 2)})


def _extract_split(
    network: "Callable[[], ViT | None]",
    views: EvaluationViews,
    count: int,
    path: Path,
    about: dict[str, Any],
    device: torch.device,
) -> float:
    """Write ``count`` rows, going on after those that an earlier call has noted; give its seconds.

    The note, beside the file, is written after the rows that it vouches for. Where all rows are
    there, the network is not asked for.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    note = path.with_suffix(".part.json")
    same = {**about, "images": count}
    done, before = 0, 0.0
    if note.exists() and path.exists():
        noted = read_json(note)
        if noted["about"] == json.loads(json.dumps(same)):
            done, before = noted["rows"], noted["seconds"]
    if done == count:
        return before
    begun = noted_at = time.perf_counter()
    # On a CPU the network uses every core; one process that decodes ahead makes it 1.4 times as
    # fast.
    num_workers = len(os.sched_getaffinity(0)) if device.type == "cuda" else 1
    rows = open_memmap(path, "r+") if done else None
    left = evaluation_batches(Subset(views, range(done, count)), BATCH_SIZE, num_workers)
    with tqdm(
        total=count, initial=done, desc=f"features of {path.stem}", unit="image", mininterval=2
    ) as bar:
        for images_BHWC in left:
            x_BLD = _features(network(), images_BHWC, device)
            if not x_BLD.isfinite().all():  # in float32 they were, or pooled would have said so
                raise UserError(
                    f"features of {path.stem} images are too large for float16: the encoder has no "
                    "final LayerNorm, or its weights are damaged"
                )
            if rows is None:
                rows = open_memmap(path, "w+", np.float16, (count, *x_BLD.shape[1:]))
            rows[done : done + len(x_BLD)] = x_BLD.numpy()
            done += len(x_BLD)
            bar.update(len(x_BLD))
            if time.perf_counter() - noted_at > SECONDS_BETWEEN_NOTES or done == count:
                noted_at = time.perf_counter()
                rows.flush()
                told = {"about": same, "rows": done, "seconds": before + noted_at - begun}
                write_json(note, told)
    return before + time.perf_counter() - begun


def _loaded(encoder_file: Path | None, device: torch.device) -> "ViT | None":
    """The network of a file; none for raw pixels."""
    if encoder_file is None:
        return None
    # Not at the top: timm takes seconds, and pixels or finished features need none of it.
    from ijepa.checkpoint import load_encoder

    return load_encoder(encoder_file)[0].to(device)


@torch.no_grad()
def _features(network: "ViT | None", images_BHWC: Tensor, device: torch.device) -> Tensor:
    if network is None:
        return (images_BHWC.flatten(1).float() / 255).unsqueeze(1).half()
    return pooled(network, normalise(images_BHWC.to(device)), NUM_LAYERS).half().cpu()


def split_counts(words: list[str]) -> dict[str, int]:
    """Counts of images by split, from ``SPLIT=NUMBER``."""
    counts = {}
    for word in words:
        split, _, number = word.partition("=")
        if not number.isdecimal() or int(number) < 1:
            raise UserError(f"--images {word!r}: give counts by split, as train=2000")
        counts[split] = int(number)
    return counts


def check_limit(limit: dict[str, int], data: Path) -> None:
    """Raise UserError where a split has fewer images than asked for, or is not there."""
    index = read_index(data)
    for split, count in limit.items():
        if split not in index.splits:
            raise UserError(f"images.{split}: unknown split; there are {', '.join(index.splits)}")
        if count > (have := len(Images(data, split))):
            raise UserError(f"images.{split}: {count} cannot be had, {data} has {have}")


def main() -> None:
    """Entry point of the command line."""
    options = parser().parse_args()
    limit = split_counts(options.images)
    check_limit(limit, options.data)
    encoder = None if options.encoder == PIXELS else Path(options.encoder)
    extract(encoder, options.data, options.image_size, options.out, limit)


if __name__ == "__main__":
    run_command(main)
