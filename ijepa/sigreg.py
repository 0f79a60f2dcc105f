"""SIGReg: features whose every one-dimensional projection is close to a standard normal.

Balestriero and LeCun, "LeJEPA: Provable and Scalable Self-Supervised Learning Without the
Heuristics", arXiv:2511.08544, 2025. The statistic of one direction is that of Epps and Pulley, "A
test for normality based on the empirical characteristic function", Biometrika 70(3), 1983, with the
mean and the variance given, 0 and 1, and not estimated. Cramer and Wold's theorem (1936): a law in
K dimensions is known from its projections on all directions.

Shape suffixes: V samples (views, or patches of the grid), N members of each (images), K features, S
directions, T points of the integral.
"""

from dataclasses import dataclass
from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor
from torch.nn import functional as F

from ijepa.distributed import average, num_processes
from ijepa.precision import without_autocast
from ijepa.ranges import BelowOne, Count, Positive


@dataclass(frozen=True)
class SIGReg:
    """Defaults are LeJEPA's: 1024 directions, and the trapezoid rule on 17 points of [0, 3].

    ``lamb`` is the weight of SIGReg; the rest of the loss has the weight 1 - lamb. 0.05 is that of
    the reference implementation; the paper explores 0.01 to 0.1.
    """

    lamb: BelowOne = 0.05
    num_directions: Count = 1024
    num_points: Annotated[int, Field(ge=2)] = 17
    t_max: Positive = 3.0

    def directions(self, num_features: int, generator: torch.Generator) -> Tensor:
        """Random columns of length 1 on the CPU, [K, S]."""
        return F.normalize(
            torch.randn(num_features, self.num_directions, generator=generator), dim=0
        )

    def statistics(self, samples_VNK: Tensor, directions_KS: Tensor) -> Tensor:
        """Mean over directions of each sample's statistic, float32 [V].

        With several processes each has N members of every sample. The statistic is that of all
        their members together, on every process.
        """
        with without_autocast(samples_VNK.device):
            projections_VNS = samples_VNK.float() @ directions_KS
        return epps_pulley(projections_VNS, self.num_points, self.t_max).mean(-1)

    def weighed(self, loss: Tensor, statistics_V: Tensor) -> Tensor:
        """Sum of a loss and the mean statistic, by their weights."""
        return (1 - self.lamb) * loss + self.lamb * statistics_V.mean()


def epps_pulley(projections_VNS: Tensor, num_points: int, t_max: float) -> Tensor:
    """Distance of samples in one dimension from the standard normal, [V, S].

    It is N times the integral over t from -t_max to t_max of |phi(t) - exp(-t^2 / 2)|^2 exp(-t^2 /
    2), where phi is the mean of exp(i t x). The integrand is even: twice the integral from 0, by
    the trapezoid rule. N and the means of cos and sin are those of all processes together.
    """
    t_T = torch.linspace(0, t_max, num_points, device=projections_VNS.device)
    normal_T = (-t_T.square() / 2).exp()
    angles_VNST = projections_VNS.unsqueeze(-1) * t_T
    cos_VST, sin_VST = average(torch.stack([angles_VNST.cos().mean(1), angles_VNST.sin().mean(1)]))
    integrand_VST = ((cos_VST - normal_T).square() + sin_VST.square()) * normal_T
    size = projections_VNS.shape[1] * num_processes()
    return size * 2 * torch.trapezoid(integrand_VST, dx=t_max / (num_points - 1))
