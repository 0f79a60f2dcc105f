"""Replay of the step at which a training was not finite: ``ijepa-bench replay work/mini``.

The run is trained again from its last checkpoint up to that step, by the same loop and with the
same random numbers, and writes nothing. Every module is watched. A line names each module's first
value that is not finite: inputs, own weights and outputs on the way forward, then gradients, then
weights after the update. The first line is where it began.

One process replays what several did: each of their parts of the batch is one of its own.
"""

import argparse
import contextlib
import dataclasses
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

from ijepa.errors import UserError, program, run_command


def parser() -> argparse.ArgumentParser:
    """Options of the command line."""
    options = argparse.ArgumentParser(
        prog=program("ijepa.replay"),
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    options.add_argument("folder", type=Path, help="folder of the run's checkpoint, or one above")
    options.add_argument("--data", type=Path, help="folder of shards (default: the run's)")
    options.add_argument("--lines", type=int, default=20, help="modules to name")
    return options


if __name__ == "__main__":
    parser().parse_args()  # answer --help before torch is imported, which takes seconds

import torch
from torch import Tensor, nn

from ijepa.config import RunConfig, parse_run
from ijepa.distributed import ALONE
from ijepa.failure import Failure, read_failure
from ijepa.inputs import read_inputs
from ijepa.method import Batch, Method, load_method
from ijepa.train import learn

NEVER = 10**12
"""Interval in steps for what a replay leaves out: logging, monitors, checkpoints."""


class Bad(NamedTuple):
    """Tensor that is not finite: its module, its role there, its shape, and the share of values."""

    module: str
    role: str
    shape: tuple[int, ...]
    share: float

    def __str__(self) -> str:
        return f"{self.module}: {self.role} {list(self.shape)}, {self.share:.2%} not finite"


class Replayed(Exception):
    """End of a replay: its step was watched."""


class Watch:
    """Hooks on all modules of a method, which list what is not finite in a step.

    A step is bad if its loss, a gradient or a weight is not finite. What other steps list is
    forgotten: a value that is infinite on purpose harms nothing.
    """

    def __init__(self, method: Method, name: str, last: int) -> None:
        self.method, self.name, self.last = method, name, last
        self.step = -1
        self.lines: list[Bad] = []
        self.named: set[tuple[str, str]] = set()
        for path, module in method.named_modules():
            module.register_forward_pre_hook(partial(self._before, path), with_kwargs=True)
            module.register_forward_hook(partial(self._after, path))

    def is_over(self) -> bool:
        """False after a finite step; raises Replayed after one that was not finite, or the last."""
        for name, value in self.method.state_dict().items():
            self._look("update", name, "after the update", value)
        if self.is_bad() or self.step >= self.last:
            raise Replayed
        self.lines.clear()
        self.named.clear()
        return False

    def is_bad(self) -> bool:
        """True if the loss, a gradient, a weight or a buffer of this step is not finite."""
        phases = {phase for phase, _ in self.named}
        return bool(phases & {"loss", "gradient", "update"})

    def _before(self, path: str, module: nn.Module, args: Any, kwargs: Any) -> None:
        if not path:
            self._begin(args[0])
        for name, value in tensors_in((*args, kwargs), "input"):
            self._look("forward", path, name, value)
        own = [*module.named_parameters(recurse=False), *module.named_buffers(recurse=False)]
        for name, value in own:
            self._look("forward", path, f"weight {name}", value)

    def _begin(self, batch: Batch) -> None:
        if batch.step > self.last:
            raise UserError(f"the checkpoint is of a step after {self.last}: the run went on since")
        if self.step < 0:  # the parameters are on their device by now
            for name, parameter in self.method.named_parameters():
                if parameter.requires_grad:
                    parameter.register_hook(partial(self._look, "gradient", name, "gradient"))
        self.step = batch.step

    def _after(self, path: str, module: nn.Module, args: Any, output: Any) -> None:
        for name, value in tensors_in(output, "output"):
            phase = "loss" if (path, name) == ("", "output loss") else "forward"
            self._look(phase, path, name, value)
            if value.requires_grad:
                value.register_hook(partial(self._look, "gradient", path, f"gradient of {name}"))

    def _look(self, phase: str, path: str, role: str, value: Tensor) -> None:
        """List a tensor that is not finite, unless the module has one of this phase already."""
        finite = value.detach().isfinite()
        if (phase, path) in self.named or finite.all():
            return
        self.named.add((phase, path))
        share = 1 - finite.float().mean().item()
        self.lines.append(Bad(path or self.name, role, tuple(value.shape), share))


def tensors_in(value: Any, name: str) -> Iterator[tuple[str, Tensor]]:
    """Tensors of real numbers in nested containers, each with its path as words."""
    if isinstance(value, Tensor):
        if value.is_floating_point():
            yield name, value
        return
    if dataclasses.is_dataclass(value):
        value = {field.name: getattr(value, field.name) for field in dataclasses.fields(value)}
    if isinstance(value, tuple | list):
        value = dict(enumerate(value))
    if isinstance(value, dict):
        for key, inner in value.items():
            yield from tensors_in(inner, f"{name} {key}")


def replay(folder: Path, data: Path | None = None) -> tuple[int, list[Bad]]:
    """Step that was replayed last and everything in it that is not finite, in order.

    The list is empty if every step up to the one that failed is finite now. Raises UserError if
    the folder has no record of a failure, or if the data are not those of the run.
    """
    folder, failure = read_failure(folder)
    run = as_it_was(failure)
    data = data or Path(failure.data)
    if not (data / "index.json").exists():
        raise UserError(
            f"{data} has no shards: name their folder, --data data/shards/{run.dataset}"
        )
    inputs = read_inputs(run, data)
    if inputs.facts != failure.facts:
        raise UserError(f"{data} has {inputs.facts}, the run had {failure.facts}: bring its data")
    watches: list[Watch] = []

    def build() -> Method:
        method = load_method(run.method).Method(run.recipe, run.vit)
        watches.append(Watch(method, run.method, failure.step))
        return method

    with TemporaryDirectory() as temporary:
        copy = Path(temporary)
        (copy / "checkpoint.pt").symlink_to((folder / "checkpoint.pt").resolve())
        with contextlib.suppress(Replayed):
            learn(run, inputs, copy, ALONE, lambda: watches[0].is_over(), copy / "epochs", build)
    (watch,) = watches
    return watch.step, watch.lines if watch.is_bad() else []


def as_it_was(failure: Failure) -> RunConfig:
    """Run in one process, without what it keeps and logs, in the parts that the processes had."""
    run = parse_run(failure.run, "failed.json", checked=False)
    optim = run.recipe.optim
    if not run.recipe.whole_batch:
        optim = dataclasses.replace(optim, accumulate=optim.accumulate * failure.processes)
    keep = dataclasses.replace(run.keep, epochs=(), every=None)
    return dataclasses.replace(
        run,
        recipe=dataclasses.replace(run.recipe, optim=optim),  # type: ignore[type-var]
        compile=False,
        keep=keep,
        log_every=NEVER,
        monitor_every=NEVER,
        checkpoint_every=NEVER,
    )


def main() -> None:
    """Entry point of the command line."""
    options = parser().parse_args()
    _, failure = read_failure(options.folder)
    torch.set_num_threads(failure.threads)  # another number would add in another order
    step, lines = replay(options.folder, options.data)
    if not lines:
        print(
            f"every step up to {step} is finite here: on a GPU, or with another number of "
            "processes, sums are rounded differently; set precision: float32, or lower "
            "recipe.optim.lr"
        )
        return
    print(f"step {step} (seed {failure.run['seed']}): what is not finite, in order")
    for number, bad in enumerate(lines[: options.lines], start=1):
        print(f"{number:3} {bad}")
    if (more := len(lines) - options.lines) > 0:
        print(f"and {more} more (--lines {len(lines)})")


if __name__ == "__main__":
    run_command(main)
