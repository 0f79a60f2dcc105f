"""Pretraining: one loop, the same for every method. ``python -m ijepa.train --help``."""

import argparse
import json
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from shlex import quote
from typing import Any

from ijepa.errors import UserError, program, run_command

ABOUT = """Pretrain an encoder on the shards in ``data`` and write it to ``out``; log beside it.

Checkpoints go to a folder in ``work`` whose name holds the run's identity and the data's version.
The same run resumes from there. A run that learns something else, or that had finished, starts from
the beginning. On a CPU a resumed run ends bit-identical to an undisturbed one.
"""


def parser() -> argparse.ArgumentParser:
    """Options of the command line."""
    options = argparse.ArgumentParser(prog=program("ijepa.train"), description=ABOUT)
    options.add_argument("run", type=Path, help="YAML file of one run")
    options.add_argument("--data", type=Path, required=True, help="folder of shards")
    options.add_argument("--work", type=Path, required=True, help="folder for checkpoints")
    options.add_argument("--out", type=Path, required=True, help="file for the encoder")
    return options


if __name__ == "__main__":
    parser().parse_args()  # answer --help before torch is imported, which takes seconds

import torch

from ijepa import distributed, failure
from ijepa.allocator import keep_freed_memory
from ijepa.blocks import compile_blocks, recompute_blocks
from ijepa.checkpoint import resume, save, save_encoder
from ijepa.config import RunConfig, as_plain, read_run
from ijepa.data.device_batches import device_batches
from ijepa.data.loader import Item, Steps, TrainingViews, training_batches
from ijepa.data.transforms import normalised
from ijepa.distributed import World
from ijepa.encoder_file import EPOCHS
from ijepa.failure import Failure, NotFinite
from ijepa.files import writable, write_json, write_text, write_yaml
from ijepa.identity import MEMO
from ijepa.inputs import Inputs, check_batches, read_inputs
from ijepa.lock import held
from ijepa.log import Log
from ijepa.method import Batch, Method, load_method
from ijepa.monitors import monitored
from ijepa.optim import adamw, learning_rate, schedule, weight_decay
from ijepa.precision import choose_attention
from ijepa.provenance import here
from ijepa.randomness import generator
from ijepa.saver import Saver
from ijepa.start import begin_from
from ijepa.transfer import first_device, placed
from ijepa.update import gradient_norm, gradients, update
from ijepa.whole import save_whole

HASHES = ("data_version", "tokens_sha256", "start_sha256")
"""Facts of inputs whose first digits are in the name of a run's folder."""
PATIENCE = 120
"""Seconds that a run of several processes waits for an earlier one in its folder to end."""


class Stopped(Exception):
    """End of a training that was asked to stop; its state is saved in a checkpoint."""


def never() -> bool:
    """Return False: the answer for a training that nobody stops."""
    return False


def train(
    run: RunConfig,
    data: Path,
    work: Path,
    out: Path,
    world: World = distributed.ALONE,
    stopping: Callable[[], bool] = never,
) -> None:
    """Pretrain an encoder; ABOUT describes outputs and resumption.

    The processes of a ``world`` share each batch, and end with the weights that one process would
    have, up to rounding. The first one verifies the data, logs and writes. Raises Stopped, after a
    checkpoint, at the end of the first step at which ``stopping`` is true for any of the processes.
    """
    here()  # caches the commit now: the running code is that of the start
    keep_freed_memory()
    with (
        prepared(run, data, work, out, world) as (folder, inputs),
        failure_recorded(run, data, inputs, folder, world),
    ):
        method, optimizer = learn(run, inputs, folder, world, stopping, out.with_name(EPOCHS))
        if world.rank == 0:
            deliver(run, inputs, method, optimizer, folder, out)
        distributed.wait()


def learn(
    run: RunConfig,
    inputs: Inputs,
    folder: Path,
    world: World,
    stopping: Callable[[], bool],
    epochs: Path,
    build: Callable[[], Method] | None = None,
) -> tuple[Method, torch.optim.Optimizer]:
    """Train for all steps, from the folder's checkpoint on if there is one.

    Encoders of the epochs that are kept go to the folder ``epochs``. ``build`` makes the networks
    at initialisation, by default those of the run's method. Returns the networks and the optimizer.

    Raises Stopped, and NotFinite for a loss or a weight that is not finite.
    """
    recipe, optim = run.recipe, run.recipe.optim
    device = first_device()
    num_steps = optim.num_steps(len(inputs.images))

    # Networks at initialisation, from other weights, or from the last checkpoint.
    torch.manual_seed(run.seed)
    method = (build() if build else load_method(run.method).Method(recipe, run.vit)).to(device)
    optimizer, first = begin(run, method, device, folder, world)
    shared = distributed.shared(method, world)

    # Images from that step on.
    loader = batches_from(first, num_steps, run, inputs, world, device)
    watched = monitored(inputs.images, run.vit).to(device)

    with (
        Log(folder / "train.jsonl", run, first, num_steps, watched, world) as log,
        Saver(folder / "checkpoint.pt") as saver,
    ):
        for step, item in enumerate(log.waiting(loader), start=first):
            # Rates of this update.
            progress = step / num_steps
            lr, decay = learning_rate(optim, step, num_steps), weight_decay(optim, step, num_steps)
            schedule(optimizer, lr, decay)

            # Gradients, part by part; processes average them after the last part.
            scalars, share = [], 1 / optim.accumulate
            for part, batch in enumerate(parts(item, run, step, progress, world, device), start=1):
                with distributed.gradients_shared(shared, part == optim.accumulate):
                    scalars.append(gradients(partial(shared, batch), share, run.precision, device))

            # Update of the weights, and of the method's moving averages and centres.
            done = step + 1
            method.before_step(progress)
            norms = {"grad_norm": gradient_norm(method)} if log.due(done) else {}
            update(method, optimizer, optim)
            method.after_step(progress)

            # Log, encoders that are kept, and checkpoint.
            stop = distributed.any_of(stopping()) and done < num_steps
            log.step(done, scalars, method, stop, lr=lr, weight_decay=decay, **norms)
            epoch, rest = divmod(done, len(inputs.images) // optim.batch_size)
            is_kept = not rest and run.keep.due(epoch)
            is_saved = done % run.checkpoint_every == 0 or stop
            if is_kept or is_saved or done == num_steps:
                log.check_weights(done, method)
            if is_kept and world.rank == 0:
                keep_epoch(epochs, epoch, run, inputs, method)
            if is_saved and world.rank == 0:
                log.flush()
                saver.save(method, optimizer, done)
            if stop:
                raise Stopped(f"stopped after step {done} of {num_steps}, which is saved")
    return method, optimizer


def begin(
    run: RunConfig, method: Method, device: torch.device, folder: Path, world: World
) -> tuple[torch.optim.Optimizer, int]:
    """Prepare the networks, and make the optimizer; returns it and the number of steps done.

    Both are as in the folder's checkpoint. Without one, networks take the weights of the file that
    the run starts from, if it starts from any.
    """
    choose_attention(method, run.precision, device)
    recompute_blocks(method, run.activation_checkpointing)
    compile_blocks(method, run.compile)
    optimizer = adamw(method, run.recipe.optim)
    first = resume(folder / "checkpoint.pt", method, optimizer)
    same_checkpoint(first, folder)
    if run.start and not first:
        note = begin_from(run.start, method, run.method)
        if world.rank == 0:
            print(note, flush=True)
    return optimizer, first


def batches_from(
    first: int,
    num_steps: int,
    run: RunConfig,
    inputs: Inputs,
    world: World,
    device: torch.device,
) -> Iterable[Item]:
    """This process's images of each step from ``first`` on."""
    images, kinds = inputs.images, run.recipe.views(run.vit.image_size)
    views = TrainingViews(images, kinds, run.seed, inputs.token_ids, run.vit.grid, run.pixels)
    steps = Steps(
        num_images=len(images),
        batch_size=run.recipe.optim.batch_size,
        first=first,
        last=num_steps,
        seed=run.seed,
        part=world.rank,
        num_parts=world.size,
    )
    if run.pixels == "device":
        return device_batches(views, steps, run.num_workers, device)
    return training_batches(views, steps, run.num_workers)


def parts(
    item: Item, run: RunConfig, step: int, progress: float, world: World, device: torch.device
) -> Iterator[Batch]:
    """Equal parts of this process's images on its device, for gradient accumulation."""
    optim = run.recipe.optim
    views = [view.chunk(optim.accumulate) for view in item.views]
    tokens = [None] * optim.accumulate
    if item.tokens is not None:
        tokens = item.tokens.chunk(optim.accumulate)
    for part in range(optim.accumulate):
        images = tuple(normalised(view[part], run.vit, device) for view in views)
        ids = tokens[part]
        yield Batch(
            images,
            run.seed,
            step,
            progress,
            offset=(world.rank * optim.accumulate + part) * len(images[0]),
            total=optim.batch_size,
            tokens_BN=None if ids is None else placed(ids, device),
        )


def keep_epoch(folder: Path, epoch: int, run: RunConfig, inputs: Inputs, method: Method) -> None:
    """Write the encoder as it is after an epoch."""
    optim = run.recipe.optim
    images_seen = epoch * (len(inputs.images) // optim.batch_size) * optim.batch_size
    facts = {**inputs.facts, "epoch": epoch, "images_seen": images_seen}
    folder.mkdir(parents=True, exist_ok=True)
    save_encoder(folder / f"{epoch}.safetensors", method.encoder, run, facts)


def deliver(
    run: RunConfig,
    inputs: Inputs,
    method: Method,
    optimizer: torch.optim.Optimizer,
    folder: Path,
    out: Path,
) -> None:
    """Write the encoder, and beside it its log, its run, some of its masks, and what it keeps."""
    records = (folder / "train.jsonl").read_text(encoding="utf-8")
    write_text(out.with_name("train.jsonl"), records)
    write_yaml(out.with_name("run.yaml"), as_plain(run))
    write_json(out.with_name("masks.json"), masks_of(run))
    optim = run.recipe.optim
    facts = {
        **inputs.facts,
        "images_seen": optim.num_steps(len(inputs.images)) * optim.batch_size,
        "train_seconds": sum(json.loads(record)["seconds"] for record in records.splitlines()),
    }
    if run.keep.whole:
        save_whole(out.with_name("whole.safetensors"), method, run, facts)
    if run.keep.optimiser:
        num_steps = optim.num_steps(len(inputs.images))
        save(out.with_name("optimiser.pt"), method, optimizer, num_steps)
    save_encoder(out, method.encoder, run, facts)
    for name in ("checkpoint.pt", failure.NAME):
        (folder / name).unlink(missing_ok=True)


def masks_of(run: RunConfig) -> dict[str, Any]:
    """Masks of six images, for the report's picture: named rows of 0 and 1, images x patches."""
    masks = run.recipe.masks(6, run.vit.grid, generator("picture of masks"))
    rows = {name: visible.int().tolist() for name, visible in masks.items()}
    return {"image_size": run.vit.image_size, "patch_size": run.vit.patch_size, "masks": rows}


@contextmanager
def prepared(
    run: RunConfig, data: Path, work: Path, out: Path, world: World
) -> Iterator[tuple[Path, Inputs]]:
    """Lock the run's folder for this training; yields the folder and the inputs.

    Raises UserError if data and run do not fit each other, or if a folder cannot be written.
    """
    inputs = read_inputs(run, data, world, work / MEMO)
    check_batches(run, inputs.images, data, world)
    hashes = [inputs.facts[name][:12] for name in HASHES if name in inputs.facts]
    folder = work / "-".join([run.identity(), *hashes])
    if world.rank > 0:
        distributed.wait()
        yield folder, inputs
        return
    writable(out.parent)
    writable(folder.parent)
    message = f"{folder} is being trained by process {{process}}"
    patience = None if world.size == 1 else PATIENCE
    with held(folder / "lock", message, patience):
        distributed.wait()
        yield folder, inputs


@contextmanager
def failure_recorded(
    run: RunConfig, data: Path, inputs: Inputs, folder: Path, world: World
) -> Iterator[None]:
    """Record the step at which a training is not finite, and name the command that replays it."""
    try:
        yield
    except NotFinite as error:
        if world.rank == 0:
            record = (as_plain(run), str(data.resolve()), inputs.facts, world.size)
            Failure(error.step, *record, torch.get_num_threads()).write(folder)
        raise UserError(
            f"{error}; to see which tensor it began with: ijepa-bench replay {quote(str(folder))}"
        ) from None


def same_checkpoint(first: int, folder: Path) -> None:
    """Raise UserError if the processes resume from different steps."""
    if not distributed.same(first):
        raise UserError(
            f"the processes found different checkpoints in {folder}: it must be one folder for "
            "all, on a file system that every machine sees"
        )


def main() -> None:
    """Entry point of the command line."""
    options = parser().parse_args()
    with distributed.joined() as world:
        train(read_run(options.run), options.data, options.work, options.out, world)


if __name__ == "__main__":
    run_command(main)
