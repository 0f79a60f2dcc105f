"""Pretraining: one loop, the same for every method. ``python -m ijepa.train --help``."""

import argparse
import contextlib
import fcntl
import json
import math
import os
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import IO

import torch
from torch import Tensor
from tqdm import tqdm

from ijepa import methods
from ijepa.checkpoint import resume, save, save_encoder
from ijepa.config import RunConfig, read
from ijepa.data.loader import (
    EvaluationViews,
    Images,
    Steps,
    TrainingViews,
    evaluation_batches,
    training_batches,
)
from ijepa.data.shards import verify
from ijepa.data.transforms import normalise
from ijepa.errors import UserError, run_command
from ijepa.files import write_text
from ijepa.methods import Batch
from ijepa.optim import adamw, learning_rate, schedule, weight_decay
from ijepa.precision import precision
from ijepa.provenance import here
from ijepa.vit import ViT

NUM_MONITORED = 512
"""Images whose features are watched for collapse."""


def train(run: RunConfig, data: Path, work: Path, out: Path) -> None:
    """Pretrain an encoder on the shards in ``data`` and write it to ``out``; log beside it.

    Checkpoints go to a folder in ``work`` named by the configuration and the data: the same run
    resumes there, a changed one starts anew, and so does one that had finished. On a CPU a resumed
    run ends bit-identical to an undisturbed one.
    """
    here()  # the commit that runs is that of the start, whatever is committed meanwhile
    index = verify(data)
    if index.dataset != run.dataset:
        raise UserError(f"{data} holds {index.dataset}, but the run's dataset is {run.dataset}")
    work = work / f"{run.identity()}-{index.version()}"
    with alone(work):
        writable(out.parent)
        _train(run, data, index.version(), work, out)


def _train(run: RunConfig, data: Path, data_version: str, work: Path, out: Path) -> None:
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    optim = run.recipe.optim
    images = Images(data, "train")
    if optim.batch_size > len(images):
        raise UserError(
            f"recipe.optim.batch_size is {optim.batch_size}, but {data} has only {len(images)} "
            "training images: choose a smaller batch"
        )
    num_steps = int(optim.epochs * (len(images) // optim.batch_size))
    if optim.epochs and not num_steps:
        raise UserError(
            f"recipe.optim.epochs is {optim.epochs}: that is not one step of batch_size "
            f"{optim.batch_size} on {len(images)} images: raise epochs, or say 0 for no training"
        )

    torch.manual_seed(run.seed)
    method = methods.load(run.method).Method(run.recipe, run.vit).to(device)
    optimizer = adamw(method, optim)
    first = resume(work / "checkpoint.pt", method, optimizer)
    views = TrainingViews(images, run.vit.image_size, run.recipe.crop, run.seed)
    steps = Steps(len(images), optim.batch_size, first, num_steps, run.seed)
    monitored = first_views(images, run.vit.image_size).to(device)

    with (
        open_log(work / "train.jsonl", first) as log,
        tqdm(
            total=num_steps,
            initial=first,
            desc=f"pretrain {run.method}",
            unit="step",
            mininterval=2,
        ) as bar,
    ):
        logged_at, logged_step = time.perf_counter(), first
        for step, batch in enumerate(training_batches(views, steps, run.num_workers), start=first):
            lr, decay = learning_rate(optim, step, num_steps), weight_decay(optim, step, num_steps)
            schedule(optimizer, lr, decay)

            with precision(run.precision, device):
                scalars = method(
                    Batch(normalise(batch.to(device, non_blocking=True)), run.seed, step)
                )
            if not math.isfinite(loss := scalars["loss"].item()):
                raise UserError(
                    f"the loss is {loss} at step {step}, before its update; the last checkpoint is "
                    "whole: lower recipe.optim.lr, or set precision: float32"
                )
            scalars["loss"].backward()
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
            method.after_step(step / num_steps)

            done = step + 1
            bar.update()
            if done % run.log_every == 0 or done == num_steps:
                seconds = time.perf_counter() - logged_at
                speed = (done - logged_step) * optim.batch_size / seconds
                logged_at, logged_step = time.perf_counter(), done
                bar.set_postfix(loss=f"{loss:.4f}", images_per_s=f"{speed:.0f}")
                record = {
                    "step": done,
                    "images": done * optim.batch_size,
                    "lr": lr,
                    "weight_decay": decay,
                }
                record |= {name: value.item() for name, value in scalars.items()}
                record |= method.scheduled(step / num_steps)
                record |= {"images_per_s": round(speed, 1), "seconds": round(seconds, 3)}
                if done % run.monitor_every < run.log_every or done == num_steps:
                    record |= collapse_monitors(method.encoder, monitored, run.precision)
                log.write(json.dumps(record) + "\n")
            if done % run.checkpoint_every == 0:
                log.flush()
                save(work / "checkpoint.pt", method, optimizer, done)

    records = (work / "train.jsonl").read_text(encoding="utf-8")
    write_text(out.with_name("train.jsonl"), records)
    facts = {
        "images_seen": num_steps * optim.batch_size,
        "train_seconds": sum(json.loads(record)["seconds"] for record in records.splitlines()),
        "data_version": data_version,
    }
    save_encoder(out, method.encoder, run, facts)
    (work / "checkpoint.pt").unlink(missing_ok=True)


def first_views(images: Images, size: int) -> Tensor:
    """The first images in the evaluation view, for the monitors, [B, C, H, W]."""
    views = EvaluationViews(images, size)
    return normalise(next(iter(evaluation_batches(views, min(NUM_MONITORED, len(images)), 0))))


@torch.no_grad()
def collapse_monitors(encoder: ViT, images_BCHW: Tensor, setting: str) -> dict[str, float]:
    """Two numbers that fall when features collapse, of mean-pooled features.

    ``feature_std``: standard deviation over images, averaged over features. ``rankme``: the
    exponential of the entropy of the singular values (Garrido et al., ICML 2023), at most D.
    """
    with precision(setting, images_BCHW.device):
        pooled_BD = encoder(images_BCHW).float().mean(1)
    values = torch.linalg.svdvals(pooled_BD)
    p = values / values.sum() + 1e-7
    return {
        "feature_std": pooled_BD.std(0).mean().item(),
        "rankme": torch.exp(-(p * p.log()).sum()).item(),
    }


@contextlib.contextmanager
def alone(work: Path) -> Iterator[None]:
    """Hold the run's folder, after any other process that trains the same run has ended.

    A job whose Snakemake was killed goes on; a second start waits for it and takes over from its
    last checkpoint. The lock goes with its process, however that ends: none is ever left behind.
    """
    writable(work)
    with (work / "lock").open("a+", encoding="utf-8") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.seek(0)
            print(f"{work} is being trained by process {file.read()}: waiting for it", flush=True)
            fcntl.flock(file, fcntl.LOCK_EX)
        file.truncate(0)
        file.write(str(os.getpid()))
        file.flush()
        yield


def writable(folder: Path) -> None:
    """Make a folder; raises UserError where nothing can be written to it."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise UserError(
            f"{folder} cannot be written ({error.strerror}): choose another folder, "
            "or give yourself the right to write there"
        ) from None


@contextlib.contextmanager
def open_log(path: Path, first: int) -> Iterator[IO[str]]:
    """The run's log, cut to the checkpoint's step: steps that are run twice are told once."""
    lines = path.read_text(encoding="utf-8").splitlines(keepends=True) if path.exists() else []
    kept = [ln for ln in lines if ln.endswith("\n") and json.loads(ln)["step"] <= first]
    write_text(path, "".join(kept))
    with path.open("a", encoding="utf-8") as file:
        yield file


def main() -> None:
    """Entry point of the command line."""
    parser = argparse.ArgumentParser(prog="python -m ijepa.train", description=train.__doc__)
    parser.add_argument("run", type=Path, help="YAML file of one run")
    parser.add_argument("--data", type=Path, required=True, help="folder of shards")
    parser.add_argument("--work", type=Path, required=True, help="folder for checkpoints")
    parser.add_argument("--out", type=Path, required=True, help="file for the encoder")
    options = parser.parse_args()
    train(read(options.run), options.data, options.work, options.out)


if __name__ == "__main__":
    run_command(main)
