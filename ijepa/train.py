"""Pretraining: one loop, the same for every method. ``python -m ijepa.train --help``."""

import argparse
import contextlib
import fcntl
import json
import math
import os
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, Any

from ijepa.errors import UserError, run_command

ABOUT = """Pretrain an encoder on the shards in ``data`` and write it to ``out``; log beside it.

Checkpoints go to a folder in ``work`` named by the configuration and the data: the same run
resumes there, a changed one starts anew, and so does one that had finished. On a CPU a resumed
run ends bit-identical to an undisturbed one.

The processes of a ``world`` share each batch, and end with the weights that one process would
have, up to rounding. The first one reads the data through, logs and writes.

Raises Stopped, after a checkpoint, at the end of a step by which ``stopping`` is true for any
of them.
"""


def parser() -> argparse.ArgumentParser:
    """Options of the command line."""
    options = argparse.ArgumentParser(prog="python -m ijepa.train", description=ABOUT)
    options.add_argument("run", type=Path, help="YAML file of one run")
    options.add_argument("--data", type=Path, required=True, help="folder of shards")
    options.add_argument("--work", type=Path, required=True, help="folder for checkpoints")
    options.add_argument("--out", type=Path, required=True, help="file for the encoder")
    return options


if __name__ == "__main__":
    parser().parse_args()  # --help is answered before torch is there, which takes seconds

import torch
from numpy.typing import NDArray
from torch import Tensor
from tqdm import tqdm

from ijepa import distributed, methods
from ijepa.checkpoint import resume, save, save_encoder
from ijepa.collapse import rankme
from ijepa.config import RunConfig, read
from ijepa.data.loader import (
    EvaluationViews,
    Images,
    Item,
    Steps,
    TrainingViews,
    evaluation_batches,
    training_batches,
)
from ijepa.data.shards import Index, read_index, verify
from ijepa.data.tokens import TokenCache
from ijepa.data.tokens import read as read_tokens
from ijepa.data.transforms import normalise
from ijepa.distributed import World
from ijepa.files import write_text
from ijepa.methods import Batch
from ijepa.optim import adamw, clip, learning_rate, schedule, weight_decay
from ijepa.precision import kernels, precision
from ijepa.provenance import here
from ijepa.vit import ViT

PATIENCE = 120
"""Seconds that several processes wait for the last writer of their folder to end."""
NUM_MONITORED = 512
"""Images whose features are watched for collapse."""


class Stopped(Exception):
    """Training was asked to stop; a checkpoint has all that was done."""


def never() -> bool:
    """Training that nobody stops."""
    return False


def train(
    run: RunConfig,
    data: Path,
    work: Path,
    out: Path,
    world: World = distributed.ALONE,
    stopping: Callable[[], bool] = never,
) -> None:
    """Pretrain an encoder; ABOUT says what is written, what is resumed and what is raised."""
    here()  # the commit that runs is that of the start, whatever is committed meanwhile
    with contextlib.ExitStack() as held:
        index = verify(data) if world.rank == 0 else read_index(data)
        if index.dataset != run.dataset:
            raise UserError(f"{data} holds {index.dataset}, but the run's dataset is {run.dataset}")
        tokens = token_cache(run, data, index)
        made_of = [run.identity(), index.version(), *([tokens.sha256[:12]] if tokens else [])]
        work = work / "-".join(made_of)
        if world.rank == 0:
            held.enter_context(alone(work, None if world.size == 1 else PATIENCE))
            writable(out.parent)
        distributed.wait()
        facts = {"data_version": index.version()}
        if tokens:
            facts |= {"tokenizer": tokens.name, "tokens_sha256": tokens.sha256}
        _train(run, data, tokens.ids if tokens else None, facts, work, out, world, stopping)
        distributed.wait()


def _train(
    run: RunConfig,
    data: Path,
    token_ids: NDArray[Any] | None,
    facts: dict[str, Any],
    work: Path,
    out: Path,
    world: World,
    stopping: Callable[[], bool],
) -> None:
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    recipe, optim = run.recipe, run.recipe.optim
    images = Images(data, "train")
    num_parts = world.size * optim.accumulate
    if optim.batch_size > len(images):
        raise UserError(
            f"recipe.optim.batch_size is {optim.batch_size}, but {data} has only {len(images)} "
            "training images: choose a smaller batch"
        )
    if optim.batch_size % num_parts:
        raise UserError(
            f"recipe.optim.batch_size is {optim.batch_size}: it must be a multiple of {num_parts} "
            f"({world.size} processes times recipe.optim.accumulate {optim.accumulate})"
        )
    num_steps = optim.num_steps(len(images))
    if optim.epochs and not num_steps:
        raise UserError(
            f"recipe.optim.epochs is {optim.epochs}: that is not one step of batch_size "
            f"{optim.batch_size} on {len(images)} images: raise epochs, or say 0 for no training"
        )

    torch.manual_seed(run.seed)
    method = methods.load(run.method).Method(recipe, run.vit).to(device)
    for network in method.modules():
        if isinstance(network, ViT):
            network.activation_checkpointing = run.activation_checkpointing
    optimizer = adamw(method, optim)
    first = resume(work / "checkpoint.pt", method, optimizer)
    if not distributed.same(first):
        raise UserError(
            f"the processes found different checkpoints in {work}: it must be one folder for all, "
            "on a file system that every machine sees"
        )
    shared = distributed.shared(method, world)
    kinds = recipe.views(run.vit.image_size)
    views = TrainingViews(images, kinds, run.seed, token_ids, run.vit.grid)
    steps = Steps(len(images), optim.batch_size, first, num_steps, run.seed, world.rank, world.size)
    monitored = first_views(images, run.vit.image_size).to(device)

    with (
        open_log(work / "train.jsonl", first, world) as log,
        tqdm(
            total=num_steps,
            initial=first,
            desc=f"pretrain {run.method}",
            unit="step",
            mininterval=2,
            disable=world.rank > 0,
        ) as bar,
    ):
        logged_at, logged_step = time.perf_counter(), first
        for step, item in enumerate(training_batches(views, steps, run.num_workers), start=first):
            progress = step / num_steps
            lr, decay = learning_rate(optim, step, num_steps), weight_decay(optim, step, num_steps)
            schedule(optimizer, lr, decay)

            told: list[dict[str, float]] = []
            for number, part in enumerate(parts(item, optim.accumulate)):
                views_of_part, tokens = (to(part.views, device), to(part.tokens, device))
                batch = Batch(
                    tuple(normalise(view) for view in views_of_part),
                    run.seed,
                    step,
                    progress,
                    offset=(world.rank * optim.accumulate + number) * len(views_of_part[0]),
                    total=optim.batch_size,
                    tokens_BN=tokens,
                )
                last = number + 1 == optim.accumulate
                with distributed.gradients_shared(shared, last):
                    with precision(run.precision, device):
                        scalars = shared(batch)
                    told.append(distributed.mean(scalars))
                    if not math.isfinite(told[-1]["loss"]):
                        raise UserError(
                            f"the loss is {told[-1]['loss']} at step {step}, before its update; "
                            "the last checkpoint is whole: lower recipe.optim.lr, or set "
                            "precision: float32"
                        )
                    with kernels(run.precision, device):
                        (scalars["loss"] / optim.accumulate).backward()
            method.before_step(progress)
            clip(method, optim)
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
            method.after_step(progress)

            done = step + 1
            bar.update()
            stop = distributed.any_of(stopping(), device) and done < num_steps
            # At a stop, too, or the seconds since the last line would be lost.
            if world.rank == 0 and (done % run.log_every == 0 or done == num_steps or stop):
                seconds = time.perf_counter() - logged_at
                speed = (done - logged_step) * optim.batch_size / seconds
                logged_at, logged_step = time.perf_counter(), done
                means = {name: sum(one[name] for one in told) / len(told) for name in told[0]}
                bar.set_postfix(loss=f"{means['loss']:.4f}", images_per_s=f"{speed:.0f}")
                record = {
                    "step": done,
                    "images": done * optim.batch_size,
                    "lr": lr,
                    "weight_decay": decay,
                }
                record |= means | method.scheduled(progress)
                record |= {"images_per_s": round(speed, 1), "seconds": round(seconds, 3)}
                if done % run.monitor_every < run.log_every or done == num_steps:
                    record |= collapse_monitors(method.encoder, monitored, run.precision)
                log.write(json.dumps(record) + "\n")
            if world.rank == 0 and (done % run.checkpoint_every == 0 or stop):
                log.flush()
                save(work / "checkpoint.pt", method, optimizer, done)
            if stop:
                raise Stopped(f"stopped after step {done} of {num_steps}, which is saved")

    if world.rank > 0:
        return
    records = (work / "train.jsonl").read_text(encoding="utf-8")
    write_text(out.with_name("train.jsonl"), records)
    facts |= {
        "images_seen": num_steps * optim.batch_size,
        "train_seconds": sum(json.loads(record)["seconds"] for record in records.splitlines()),
    }
    save_encoder(out, method.encoder, run, facts)
    (work / "checkpoint.pt").unlink(missing_ok=True)


def token_cache(run: RunConfig, data: Path, index: Index) -> TokenCache | None:
    """The token cache that the recipe names, if any; raises UserError where it does not fit."""
    tokens = run.recipe.tokens
    if tokens is None:
        return None
    cache = read_tokens(data, tokens.tokenizer, index.version())
    if cache.vocabulary > tokens.vocabulary:
        raise UserError(
            f"recipe.vocabulary is {tokens.vocabulary}, but the tokenizer {tokens.tokenizer} has "
            f"{cache.vocabulary} words: set recipe.vocabulary to that"
        )
    return cache


def parts(item: Item, number: int) -> Iterator[Item]:
    """A batch in equal parts, for gradient accumulation."""
    views = [view.chunk(number) for view in item.views]
    tokens = [None] * number if item.tokens is None else item.tokens.chunk(number)
    yield from (Item(list(v), t) for *v, t in zip(*views, tokens, strict=True))


def to(tensors: Any, device: torch.device) -> Any:
    """A tensor, several, or none on a device."""
    if isinstance(tensors, list):
        return [to(tensor, device) for tensor in tensors]
    return None if tensors is None else tensors.to(device, non_blocking=True)


def first_views(images: Images, size: int) -> Tensor:
    """The first images in the evaluation view, for the monitors, [B, C, H, W]."""
    views = EvaluationViews(images, size)
    return normalise(next(iter(evaluation_batches(views, min(NUM_MONITORED, len(images)), 0))))


@torch.no_grad()
def collapse_monitors(encoder: ViT, images_BCHW: Tensor, setting: str) -> dict[str, float]:
    """Two numbers that fall when features collapse, of mean-pooled features.

    ``feature_std``: standard deviation over images, averaged over features. ``rankme``: see
    ijepa.collapse.
    """
    mode = encoder.training
    encoder.eval()
    with precision(setting, images_BCHW.device):
        pooled_BD = encoder.patches(encoder(images_BCHW)).float().mean(1)
    encoder.train(mode)
    if not pooled_BD.isfinite().all():  # the next step's loss will say so
        return {"feature_std": math.nan, "rankme": math.nan}
    return {
        "feature_std": pooled_BD.std(0).mean().item(),
        "rankme": rankme(torch.linalg.svdvals(pooled_BD)).item(),
    }


@contextlib.contextmanager
def alone(work: Path, patience: float | None = None) -> Iterator[None]:
    """Hold the run's folder, after any other process that trains the same run has ended.

    After ``patience`` seconds another process is an error: those that wait for this one would give
    up. A job that was put back into a queue may find its former self still on its way out.
    A job whose Snakemake was killed goes on; a second start waits for it and takes over from its
    last checkpoint. The lock goes with its process, however that ends: none is ever left behind.
    """
    writable(work)
    with (work / "lock").open("a+", encoding="utf-8") as file:
        if not locked(file):
            file.seek(0)
            other = f"{work} is being trained by process {file.read()}"
            print(f"{other}: waiting for it", flush=True)
            until = math.inf if patience is None else time.monotonic() + patience
            while not locked(file):
                if time.monotonic() > until:
                    raise UserError(f"{other}: wait for it, or end it")
                time.sleep(0.2)
        file.truncate(0)
        file.write(str(os.getpid()))
        file.flush()
        yield


def locked(file: IO[str]) -> bool:
    """Whether the lock on a file is ours now."""
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


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
def open_log(path: Path, first: int, world: World) -> Iterator[IO[str]]:
    """The run's log, cut to the checkpoint's step: steps that are run twice are told once."""
    if world.rank > 0:
        with Path(os.devnull).open("w", encoding="utf-8") as nowhere:
            yield nowhere
        return
    lines = path.read_text(encoding="utf-8").splitlines(keepends=True) if path.exists() else []
    kept = [ln for ln in lines if ln.endswith("\n") and json.loads(ln)["step"] <= first]
    write_text(path, "".join(kept))
    with path.open("a", encoding="utf-8") as file:
        yield file


def main() -> None:
    """Entry point of the command line."""
    options = parser().parse_args()
    with distributed.joined() as world:
        train(read(options.run), options.data, options.work, options.out, world)


if __name__ == "__main__":
    run_command(main)
