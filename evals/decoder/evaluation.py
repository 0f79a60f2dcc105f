"""Evaluation of an encoder by a decoder: training, pictures, and identification of blocks.

Shape suffixes: N images, S samples of each, C channels, H and W pixels.
"""

from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from evals.decoder import pictures
from evals.decoder.identification import features, interval, scores, spread
from evals.decoder.model import Decoder, save_decoder
from evals.decoder.sample import Decoded, decode_group, row_of
from evals.decoder.settings import Config
from evals.decoder.source import Source
from evals.decoder.train import batches, folder_of, trained
from evals.result import Result
from evals.subject import Subject
from ijepa.architecture import ViTConfig
from ijepa.checkpoint import load_encoder
from ijepa.encoder_file import read_header
from ijepa.errors import UserError
from ijepa.files import write_text
from ijepa.vit import ViT


def evaluate(config: Config, subject: Subject) -> Result:
    """Train the decoder, draw, and compare decoded blocks with true ones.

    The value is two-way identification by the features of ``judge``; ``chosen`` has it by other
    features too, each with the shuffled pairing, and the samples' spread.
    """
    assert subject.encoder is not None
    check_judge(config)
    source = Source(subject.encoder, config.condition)
    with folder_of(subject) as folder:
        decoder = trained(config, subject, source, folder)
        decoded = decode_all(config, subject, source, decoder)
        result = measured(config, source, decoded)
        if subject.out is not None:
            write_text(subject.out.with_suffix(".jsonl"), log_of(folder))
            save_decoder(subject.out.with_suffix(".safetensors"), decoder, subject.index.dataset)
            rows = rows_of(config, source, decoded)
            pictures.write_picture(subject.out.with_suffix(".png"), rows, source.grid)
    return result


def log_of(folder: Path) -> str:
    """Log of a training, lines of JSON."""
    return (folder / "train.jsonl").read_text(encoding="utf-8")


def decode_all(config: Config, subject: Subject, source: Source, decoder: Decoder) -> list[Decoded]:
    """First test images in groups of equal size that share a block, with their samples."""
    images = torch.cat(list(batches(config, subject, source, "test", config.images)))
    size = len(images) // config.blocks
    if size < 2:
        raise UserError(
            f"{subject.data}: {len(images)} test images are too few for {config.blocks} blocks in "
            "two images or more each: lower blocks"
        )
    groups = images[: size * config.blocks].split(size)
    return [
        decode_group(decoder, source, group, number)
        for number, group in enumerate(tqdm(groups, desc="decode", unit="group"))
    ]


def rows_of(config: Config, source: Source, decoded: list[Decoded]) -> list[pictures.Row]:
    """Rows of the picture: the first images of each group in turn."""
    size = len(decoded[0].images_NCHW)
    turns = [divmod(turn, len(decoded)) for turn in range(config.pictures)]
    return [row_of(source, decoded[group], number) for number, group in turns if number < size]


def measured(config: Config, source: Source, decoded: list[Decoded]) -> Result:
    """Result of the decoded blocks, by the features of each judge."""
    judges: dict[str, ViT | None] = {"own": source.encoder, "pixels": None}
    if config.judge not in judges:
        judges[config.judge] = load_encoder(Path(config.judge))[0].to(source.device)
    by_judge = {name: compare(config, decoded, judge) for name, judge in judges.items()}
    chosen = {
        "condition": config.condition,
        "spread": spread(torch.cat([group.samples_NSCHW for group in decoded])),
        "identification": by_judge,
    }
    n = sum(len(group.images_NCHW) for group in decoded)
    value, ends = by_judge[config.judge]["value"], by_judge[config.judge]["interval"]
    return Result("identification", value, n, ends, chosen)


def compare(config: Config, decoded: list[Decoded], judge: ViT | None) -> dict[str, Any]:
    """Two-way identification with its interval, and the same with shuffled pairs."""
    pairs = []
    for group in decoded:
        samples_XD = features(group.samples_NSCHW.flatten(0, 1), judge)
        samples_NSD = samples_XD.unflatten(0, group.samples_NSCHW.shape[:2])
        pairs.append((samples_NSD, features(group.true_NCHW, judge)))
    numbers: dict[str, Any] = {}
    for prefix, shift in (("", 0), ("shuffled_", 1)):
        scores_N = torch.cat([scores(samples, true, shift) for samples, true in pairs])
        numbers[f"{prefix}value"] = scores_N.mean().item()
        numbers[f"{prefix}interval"] = interval(scores_N, config.resamples, config.seed)
    return numbers


def check_judge(config: Config) -> None:
    """Raise UserError, before the decoder is trained, if ``judge`` is no encoder of pictures."""
    if config.judge in ("own", "pixels"):
        return
    vit = ViTConfig(**read_header(Path(config.judge))["run"]["vit"])
    if vit.channels != 3 or not vit.is_square:
        raise UserError(
            f"judge: {config.judge} is for images of {vit.channels} channels and size "
            f"{vit.image_size}, pictures are square and have three: name another encoder"
        )
