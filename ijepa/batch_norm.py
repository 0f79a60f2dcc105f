"""Batch normalisation whose batch is that of all processes.

Ioffe and Szegedy, ICML 2015, https://arxiv.org/abs/1502.03167.

Shape suffixes: R rows, D features.
"""

import torch
from torch import Tensor, nn

from ijepa.distributed import average, num_processes


class BatchNorm(nn.BatchNorm1d):
    """Torch's BatchNorm1d over the rows of all processes, in float32 also under autocast.

    Torch's SyncBatchNorm does the same on GPUs alone.
    """

    def forward(self, x_RD: Tensor) -> Tensor:
        """Normalised rows; in evaluation mode by the running mean and variance."""
        if not self.training:
            return super().forward(x_RD)
        x_RD = x_RD.float()
        mean_D = average(x_RD.mean(0))
        centred_RD = x_RD - mean_D
        variance_D = average(centred_RD.square().mean(0))
        self._follow(mean_D, variance_D, len(x_RD) * num_processes())
        return centred_RD * (variance_D + self.eps).rsqrt() * self.weight + self.bias

    @torch.no_grad()
    def _follow(self, mean_D: Tensor, variance_D: Tensor, rows: int) -> None:
        """Move the running mean and the running unbiased variance."""
        assert self.num_batches_tracked is not None
        assert self.running_mean is not None
        assert self.running_var is not None
        assert self.momentum is not None
        self.num_batches_tracked.add_(1)
        self.running_mean.lerp_(mean_D, self.momentum)
        self.running_var.lerp_(variance_D * rows / max(1, rows - 1), self.momentum)
