"""Losses of a training that leave the device only now and then."""

import math

import torch
from torch import Tensor

from ijepa.errors import UserError


class Losses:
    """Mean loss of each epoch, from losses that stay on the device until they are read together.

    Args:
        means: Mean losses so far; ``read`` adds to them.
        per_epoch: Updates of an epoch.
        what: Name of the training.
    """

    def __init__(self, means: list[float], per_epoch: int, what: str) -> None:
        self.means, self.per_epoch, self.what = means, per_epoch, what
        self.unread: list[tuple[int, float, Tensor]] = []

    def add(self, step: int, share: float, scalars: dict[str, Tensor]) -> None:
        """Note the loss of a part, which is this share, of a step's batch."""
        self.unread.append((step, share, scalars["loss"].detach()))

    def read(self) -> float:
        """Return the last step's loss; raises UserError if one since the last call is not finite.

        The host waits for the device.
        """
        losses: dict[int, float] = {}
        values = torch.stack([loss for *_, loss in self.unread]).tolist()
        for (step, share, _), value in zip(self.unread, values, strict=True):
            losses[step] = losses.get(step, 0.0) + share * value
        self.unread.clear()
        for step, loss in losses.items():
            if not math.isfinite(loss):
                raise UserError(
                    f"the loss of {self.what} is {loss} at step {step}: lower base_lr, or set "
                    "precision: float32"
                )
            if step % self.per_epoch == 0:
                self.means.append(0.0)
            self.means[-1] += loss / self.per_epoch
        return loss
