"""Training of the decoder on the images of an evaluation, by the loop of every pretraining.

Shape suffixes: B images, C channels, H and W pixels, D values of a condition.
"""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, cast

import torch
from torch import Tensor
from torch.utils.data import Subset

from evals.decoder.model import Decoder, Recipe
from evals.decoder.settings import Config
from evals.decoder.source import Source
from evals.subject import Subject
from ijepa.checkpoint import save
from ijepa.config import RunConfig
from ijepa.data.loader import EvaluationViews, Images, evaluation_batches
from ijepa.data.transforms import normalise
from ijepa.distributed import ALONE
from ijepa.errors import UserError
from ijepa.inputs import Inputs
from ijepa.lock import held
from ijepa.optim import Optim
from ijepa.precision import precision
from ijepa.randomness import generator
from ijepa.train import learn, never

NUM_STANDARDISED = 1024
"""Training images whose conditions give their mean and deviation."""
MAX_CHECKPOINTS = 300
"""Largest number of checkpoints of a training."""


def run_of(config: Config, subject: Subject, source: Source, num_images: int) -> RunConfig:
    """Run of the training loop: RCDM's AdamW, without weight decay, warm-up or annealing."""
    if num_images < config.batch_size:
        raise UserError(
            f"batch_size is {config.batch_size}, but {subject.data} has only {num_images} training "
            "images to use: choose a smaller batch"
        )
    optim = Optim(
        batch_size=config.batch_size,
        accumulate=config.accumulate,
        # Half a step more, so that rounding cannot lose the last one.
        epochs=(config.steps + 0.5) / (num_images // config.batch_size),
        warmup_epochs=0,
        lr=config.lr,
        start_lr=config.lr,
        final_lr=config.lr,
        weight_decay=(0.0, 0.0),
        counted_from=0,
    )
    return RunConfig(
        "decoder",
        subject.index.dataset,
        source.encoder.config,
        Recipe(optim),
        seed=config.seed,
        precision=config.precision,
        num_workers=config.num_workers,
        log_every=10,
        monitor_every=10**9,
        checkpoint_every=max(50, config.steps // MAX_CHECKPOINTS),
    )


def trained(config: Config, subject: Subject, source: Source, folder: Path) -> Decoder:
    """Trained decoder; it goes on from the checkpoint in ``folder``, even a finished one."""
    images = part(subject, "train")
    run = run_of(config, subject, source, len(images))

    def build() -> Decoder:
        decoder = Decoder(config, source.dim, source)
        decoder.to(source.device).standardise(some_conditions(config, subject, source))
        return decoder

    with held(folder / "lock", f"{folder} is being trained by process {{process}}"):
        inputs = Inputs(cast(Images, images))
        decoder, optimizer = learn(run, inputs, folder, ALONE, never, folder / "epochs", build)
        save(folder / "checkpoint.pt", decoder, optimizer, config.steps)
    assert isinstance(decoder, Decoder)
    return decoder.eval()


@contextmanager
def folder_of(subject: Subject) -> Iterator[Path]:
    """Folder of the training's log and checkpoint, which is removed when all is done."""
    if subject.work is None:
        with TemporaryDirectory() as temporary:
            yield Path(temporary)
        return
    folder = subject.work / f"decoder-{subject.identity}"
    yield folder
    shutil.rmtree(folder)


class First(Subset[Any]):
    """First images of a split, with their labels."""

    @property
    def labels(self) -> dict[str, Any]:
        """Classes of every image, by kind of label."""
        images: Any = self.dataset
        return {name: classes[: len(self)] for name, classes in images.labels.items()}

    def read_ahead(self, numbers: list[int]) -> None:
        """Read images that lie at an address, several at a time; they have the split's numbers."""
        images: Any = self.dataset
        images.read_ahead(numbers)


def part(subject: Subject, split: str, count: int | None = None) -> First:
    """First ``count`` images of a split, by default all that the evaluation uses."""
    images = subject.images(split)
    most = min(len(images), subject.limit.get(split, len(images)))
    return First(cast(Any, images), range(min(most, count or most)))


def batches(
    config: Config, subject: Subject, source: Source, split: str, count: int
) -> Iterator[Tensor]:
    """First images of a split in the evaluation view, normalised, some at a time."""
    images = cast(Images, part(subject, split, count))
    views = EvaluationViews(images, source.size, subject.index.view)
    vit = source.encoder.config
    loaded = evaluation_batches(views, 64, config.num_workers)
    return (normalise(images, vit.mean, vit.std) for images in loaded)


@torch.no_grad()
def some_conditions(config: Config, subject: Subject, source: Source) -> Tensor:
    """Conditions of the first training images, each with a block of its own, [B, D]."""
    conditions = []
    for number, images in enumerate(batches(config, subject, source, "train", NUM_STANDARDISED)):
        regions = source.draw(len(images), generator(config.seed, "standardise", number))
        with precision(config.precision, source.device):
            conditions.append(source.conditions(images.to(source.device), regions))
    return torch.cat(conditions)
