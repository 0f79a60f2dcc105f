"""Checkpoints that are written beside training, not in front of it."""

from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any, Self

import torch
from torch import Tensor, nn

from ijepa.checkpoint import state_of, write
from ijepa.transfer import mark


class Saver:
    """Writer of a run's checkpoints; one thread writes and renames while the loop goes on.

    ``save`` copies the state and returns. It waits first for the checkpoint before, so that at most
    one copy exists and checkpoints appear in order. The end of the block waits too, whatever ended
    it: a stop is not told, nor a run delivered, before its checkpoint is whole. An error of writing
    is raised by the next of these waits.

    The copy costs memory of the host, beside the loop's own: four bytes for each weight, eight for
    each that is trained; 10.4 GB for I-JEPA's ViT-H/14. Until the new file is whole, the one before
    stays. A process that is killed meanwhile loses the steps since that one: an interval, and the
    time that writing took.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.thread = ThreadPoolExecutor(1, "checkpoint")
        self.written: Future[None] | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_error: object) -> None:
        try:
            self.wait()
        finally:
            self.thread.shutdown()

    def save(self, method: nn.Module, optimizer: torch.optim.Optimizer, step: int) -> None:
        """Copy the state after ``step`` updates, and begin to write it; waits for no device."""
        self.wait()
        state = copied(state_of(method, optimizer, step))
        self.written = self.thread.submit(
            self._write, state, mark(next(method.parameters()).device)
        )

    def wait(self) -> None:
        """Wait until the last checkpoint is on the disk; raises the error that kept it from it."""
        if self.written is not None:
            written, self.written = self.written, None
            written.result()

    def _write(self, state: dict[str, Any], queued: torch.cuda.Event | None) -> None:
        if queued is not None:
            queued.synchronize()  # a GPU has copied only what is before the mark in its queue
        write(self.path, state)


def copied(state: Any) -> Any:
    """Copy of nested dictionaries and lists whose tensors lie on the host.

    Those of a GPU go to pinned memory, in the order of its queue: later updates don't change them.
    """
    if isinstance(state, Tensor):
        return state.detach().to("cpu", non_blocking=True, copy=True)
    if isinstance(state, dict):
        return {name: copied(value) for name, value in state.items()}
    return [copied(value) for value in state] if isinstance(state, list) else state
