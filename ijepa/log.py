"""Log of a pretraining: lines of JSON, a progress bar, and monitors of collapse."""

import json
import math
import os
import time
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import IO, Any, Self

import torch
from torch import Tensor, nn
from tqdm import tqdm

from ijepa import distributed
from ijepa.config import RunConfig
from ijepa.data.loader import Item
from ijepa.distributed import World
from ijepa.failure import NotFinite
from ijepa.files import write_text
from ijepa.gpu_meter import Meter
from ijepa.method import Method
from ijepa.monitors import Monitored, measure, warning

REMEDY = "the last checkpoint is whole: lower recipe.optim.lr, or set precision: float32"


class Log:
    """Clock, speed, bar, file and monitors of a run; it also checks that the loss is finite.

    Numbers are copied from the device at log steps and before a checkpoint only, because the device
    waits for each copy. Only the first process shows and writes anything, but all must call.

    Args:
        path: File of the log; lines of steps after ``first`` are cut off.
        run: The run, for its intervals and precision.
        first: Updates that are done already.
        num_steps: Updates of the whole run.
        watched: Images whose features are monitored.
        world: The processes.
    """

    def __init__(
        self,
        path: Path,
        run: RunConfig,
        first: int,
        num_steps: int,
        watched: Monitored,
        world: World,
    ) -> None:
        self.path, self.run, self.num_steps = path, run, num_steps
        self.watched, self.world = watched, world
        self.logged_step = first
        self.losses: list[tuple[int, Tensor]] = []
        self.warned = False
        self.meter = Meter(run, world)
        self.data_seconds = 0.0

    def __enter__(self) -> Self:
        self.opened = ExitStack()
        self.file = self.opened.enter_context(_open(self.path, self.logged_step, self.world))
        self.bar = self.opened.enter_context(
            tqdm(
                total=self.num_steps,
                initial=self.logged_step,
                desc=f"pretrain {self.run.method}",
                unit="step",
                mininterval=2,
                disable=self.world.rank > 0,
            )
        )
        self.logged_at = time.perf_counter()
        return self

    def __exit__(self, *error: object) -> None:
        self.opened.close()

    def waiting(self, items: Iterable[Item]) -> Iterator[Item]:
        """Items as they are, while the time is measured for which the loop waits for them."""
        iterator = iter(items)
        while True:
            begun = time.perf_counter()
            item = next(iterator, None)
            self.data_seconds += time.perf_counter() - begun
            if item is None:
                return
            yield item

    def step(
        self,
        done: int,
        scalars: list[dict[str, Tensor]],
        method: Method,
        stop: bool,
        **rates: float | Tensor,
    ) -> None:
        """Record a step, and write a line if one is due.

        Args:
            done: Updates done, this one included.
            scalars: The method's scalars of each part of the batch on this device.
            method: The method after the update.
            stop: True if the run stops here: a line then keeps the seconds since the last one.
            rates: Numbers of this update, such as ``lr``.
        """
        self.losses.append((done - 1, torch.stack([part["loss"].detach() for part in scalars])))
        self.bar.update()
        last = done == self.num_steps
        if not self.due(done) and not stop:
            return
        means = _means(scalars)
        self.check()
        if self.world.rank > 0:
            return
        images, now = done * self.run.recipe.optim.batch_size, time.perf_counter()
        seconds = now - self.logged_at
        speed = (done - self.logged_step) * self.run.recipe.optim.batch_size / seconds
        self.logged_at, self.logged_step = now, done
        self.bar.set_postfix(loss=f"{means['loss']:.4f}", images_per_s=f"{speed:.0f}")
        record: dict[str, Any] = {"step": done, "images": images}
        record |= {name: float(value) for name, value in rates.items()} | means
        record |= method.scheduled((done - 1) / self.num_steps)
        record |= {"images_per_s": round(speed, 1), "seconds": round(seconds, 3)}
        record |= {"data_seconds": round(self.data_seconds, 3), **self.meter.read(speed)}
        self.data_seconds = 0.0
        if done % self.run.monitor_every < self.run.log_every or last:
            numbers = measure(method.encoder, self.watched, self.run.precision)
            record |= numbers
            if (sentence := warning(numbers)) and not self.warned:
                self.bar.write(sentence)
            self.warned = bool(sentence)
        self.file.write(json.dumps(record) + "\n")

    def due(self, done: int) -> bool:
        """True if a line is due after so many updates."""
        return done % self.run.log_every == 0 or done == self.num_steps

    def check(self) -> None:
        """Raise NotFinite if a loss since the last call is not finite on any process."""
        if not self.losses:
            return
        means = distributed.mean({str(step): loss.mean() for step, loss in self.losses})
        self.losses.clear()
        for step, loss in means.items():
            if not math.isfinite(loss):
                raise NotFinite(f"the loss is {loss} at step {step}; {REMEDY}", int(step))

    def check_weights(self, done: int, method: Method) -> None:
        """Raise NotFinite if a loss, or a weight or average after ``done`` updates, is not finite.

        A finite loss may have gradients that are not, and the update then spoils the weights.
        """
        self.check()
        state = [value for value in method.state_dict().values() if value.is_floating_point()]
        largest = nn.utils.get_total_norm(state, math.inf)
        if not math.isfinite(distributed.mean({"largest": largest})["largest"]):
            raise NotFinite(
                f"the update of step {done - 1} made weights not finite; {REMEDY}", done - 1
            )

    def flush(self) -> None:
        """Write buffered lines to the file, before a checkpoint that relies on them."""
        self.file.flush()


def _means(scalars: list[dict[str, Tensor]]) -> dict[str, float]:
    """Named scalars, averaged over parts and processes."""
    values = {name: [part[name].detach().float() for part in scalars] for name in scalars[0]}
    return distributed.mean({name: torch.stack(parts).mean() for name, parts in values.items()})


@contextmanager
def _open(path: Path, first: int, world: World) -> Iterator[IO[str]]:
    """Open the log's file, cut to the checkpoint's step: a step that is run twice has one line."""
    if world.rank > 0:
        with Path(os.devnull).open("w", encoding="utf-8") as nowhere:
            yield nowhere
        return
    lines = path.read_text(encoding="utf-8").splitlines(keepends=True) if path.exists() else []
    whole = [line for line in lines if line.endswith("\n") and json.loads(line)["step"] <= first]
    write_text(path, "".join(whole))
    with path.open("a", encoding="utf-8") as file:
        yield file
