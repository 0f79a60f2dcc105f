"""Losses of a training that leave the device only now and then.

Shape suffixes: S networks that learn from the same batches.
"""

import torch
from torch import Tensor

from ijepa.errors import UserError


class Losses:
    """Mean losses of each epoch, from losses that stay on the device until they are read together.

    Args:
        means_S: Mean losses of each epoch so far, float64; ``read`` adds to them.
        per_epoch: Updates of an epoch.
        what: Name of the training.
    """

    def __init__(self, means_S: list[Tensor], per_epoch: int, what: str) -> None:
        self.means_S, self.per_epoch, self.what = means_S, per_epoch, what
        self.unread: list[tuple[int, float, Tensor]] = []

    def add(self, step: int, share: float, loss_S: Tensor) -> None:
        """Note each network's loss of a part, which is this share, of a step's batch."""
        self.unread.append((step, share, loss_S))

    def read(self) -> float:
        """Return the least loss of the last step; the host waits for the device.

        Raises UserError if in one step since the last call no network's loss was finite.
        """
        losses_S: dict[int, Tensor] = {}
        values = torch.stack([loss_S for *_, loss_S in self.unread]).cpu().double()
        for (step, share, _), value_S in zip(self.unread, values, strict=True):
            losses_S[step] = losses_S.get(step, 0.0) + share * value_S
        self.unread.clear()
        for step, loss_S in losses_S.items():
            if not loss_S.isfinite().any():
                raise UserError(
                    f"the loss of {self.what} is {float(loss_S[0])} at step {step}: lower the "
                    "learning rate, or set precision: float32"
                )
            if step % self.per_epoch == 0:
                self.means_S.append(torch.zeros_like(loss_S))
            self.means_S[-1] = self.means_S[-1] + loss_S / self.per_epoch
        return float(loss_S[loss_S.isfinite()].min())
