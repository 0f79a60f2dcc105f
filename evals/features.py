"""The one place that loads an encoder and extracts features: ``python -m evals.features --help``.

Features are the average of the last layer's patch features after the final LayerNorm (paper, A.2).
The control ``pixels`` has no encoder: its features are the bytes of the image, as they are.
"""

import argparse
import json
import os
import time
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Subset
from tqdm import tqdm

from ijepa.checkpoint import load_encoder, save_tensors
from ijepa.data.loader import EvaluationViews, Images, evaluation_batches
from ijepa.data.shards import read_index, verify
from ijepa.data.transforms import normalise
from ijepa.errors import UserError, run_command
from ijepa.files import digest
from ijepa.precision import precision
from ijepa.provenance import here

BATCH_SIZE = 128
"""Small enough for a processor's cache: on 2 cores a third faster than 500."""


@torch.no_grad()
def extract(
    encoder_file: Path | None,
    data: Path,
    image_size: int,
    out: Path,
    numbers: dict[str, int] | None = None,
) -> None:
    """Write the features of every split; ``encoder_file`` None means raw pixels.

    ``numbers`` says of which splits only so many images are taken, the first ones.

    The tensors ``SPLIT.x`` [images, D] and ``SPLIT.y`` [images] are one safetensors file, which can
    be mapped into memory; its header says of what and by whom.
    """
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    begun = time.perf_counter()
    about: dict[str, Any] = {"encoder": "pixels"}
    encoder = None
    if encoder_file is not None:
        encoder, header = load_encoder(encoder_file)
        encoder = encoder.to(device)
        image_size = header["run"]["vit"]["image_size"]
        about = {"encoder": digest(encoder_file)[:12], **header}
    # On a CPU the network uses every core; one process that decodes ahead makes it 1.4 times as
    # fast.
    num_workers = (os.cpu_count() or 1) if device.type == "cuda" else 1
    index = verify(data)
    tensors: dict[str, Tensor] = {}
    for split in index.splits:
        images = Images(data, split)
        count = (numbers or {}).get(split, len(images))
        batches = evaluation_batches(
            Subset(EvaluationViews(images, image_size), range(count)),
            BATCH_SIZE,
            num_workers=num_workers,
        )
        pooled: list[Tensor] = []
        for images_BHWC in tqdm(batches, desc=f"features of {split}", unit="batch", mininterval=2):
            if encoder is None:
                pooled.append(images_BHWC.flatten(1).float() / 255)
                continue
            with precision("auto", device):
                features = encoder(normalise(images_BHWC.to(device)))
            pooled.append(encoder.patches(features).float().mean(1).cpu())
        tensors |= {
            f"{split}.x": torch.cat(pooled),
            f"{split}.y": torch.from_numpy(images.labels[:count]),
        }
    about |= {
        "dataset": index.dataset,
        "data_version": index.version(),
        "features": here(),
        "feature_seconds": round(time.perf_counter() - begun, 2),
    }
    save_tensors(out, tensors, about)


def main() -> None:
    """Entry point of the command line."""
    parser = argparse.ArgumentParser(prog="python -m evals.features", description=extract.__doc__)
    parser.add_argument("encoder", help="encoder file, or the word pixels")
    parser.add_argument("--data", type=Path, required=True, help="folder of shards")
    parser.add_argument("--image-size", type=int, default=32, help="for pixels only")
    parser.add_argument("--out", type=Path, required=True, help="file for the features")
    parser.add_argument("--images", type=json.loads, default={}, help='{"train": 2000}: not all')
    options = parser.parse_args()
    splits = read_index(options.data).splits
    if unknown := sorted(options.images.keys() - splits.keys()):
        raise UserError(f"images.{unknown[0]}: unknown split; there are {', '.join(splits)}")
    encoder = None if options.encoder == "pixels" else Path(options.encoder)
    if encoder is not None and not encoder.exists():
        raise UserError(f"{encoder} does not exist: pretrain it first, or say pixels")
    extract(encoder, options.data, options.image_size, options.out, options.images)


if __name__ == "__main__":
    run_command(main)
