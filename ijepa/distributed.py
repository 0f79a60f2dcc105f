"""Training of one network by several processes: ranks, barriers and all-reduces."""

import contextlib
import os
import socket
from collections.abc import Callable, Iterator
from datetime import timedelta
from typing import Any, NamedTuple, TypeVar

import torch
from torch import Tensor, distributed, nn
from torch.nn.parallel import DistributedDataParallel

from ijepa.errors import UserError

T = TypeVar("T")

TIMEOUT = timedelta(hours=2)
"""Longest wait for other processes; one may be copying or verifying 150 GB of shards."""


VARIABLES = ("RANK", "WORLD_SIZE", "LOCAL_RANK")
"""Environment variables in which torchrun gives a process the fields of its World."""


class World(NamedTuple):
    """Rank of this process, number of processes, and rank on its machine; alone it is 0 of 1."""

    rank: int = 0
    size: int = 1
    local_rank: int = 0


ALONE = World()


@contextlib.contextmanager
def joined() -> Iterator[World]:
    """Join the processes that ``torchrun`` started, if any: GPUs by NCCL, CPUs by gloo.

    Each process takes the GPU with the number of its local rank, or the only one that it sees.
    """
    world = World(*(int(os.environ.get(k, d)) for k, d in zip(VARIABLES, ALONE, strict=True)))
    device = None
    if torch.cuda.is_available():
        device = torch.device("cuda", gpu_of(world.local_rank, torch.cuda.device_count()))
        torch.cuda.set_device(device)
    if world.size == 1:
        yield world
        return
    backend = "gloo" if device is None else "cpu:gloo,cuda:nccl"
    try:
        distributed.init_process_group(backend, timeout=TIMEOUT, device_id=device)
    except distributed.DistNetworkError as error:
        # Only the first process listens, so a port in use is its own fault, no other's loss.
        if "failed to listen" not in str(error) or "EADDRINUSE" not in str(error):
            raise
        raise UserError(
            f"port {os.environ['MASTER_PORT']} of {socket.gethostname()} is in use by another "
            "program: run the same again, a new job takes another port"
        ) from None
    try:
        yield world
    finally:
        distributed.destroy_process_group()


def gpu_of(local_rank: int, visible: int) -> int:
    """Number of a process's GPU among those that it sees; raises UserError if there is none.

    Some clusters bind one GPU to each task of a job (--gpu-bind, --gpus-per-task): it is the only
    one that the task sees, and its number is 0.
    """
    bound = visible == 1 and os.environ.get("SLURM_LOCALID") == str(local_rank)
    if local_rank >= visible and not bound:
        raise UserError(
            f"process {local_rank} of this machine has no GPU: there are {visible}; start no more "
            "processes than that"
        )
    return 0 if bound else local_rank


def wait() -> None:
    """Wait until every process has called this (barrier)."""
    if distributed.is_initialized():
        distributed.barrier()


def shared(method: nn.Module, world: World) -> nn.Module:
    """Method whose gradients are averaged over all processes after each backward pass (DDP)."""
    if world.size == 1:
        return method
    # Buffers need no broadcast: they are computed from all-reduced sums, so they stay equal.
    # After its first step DDP regroups the gradients in their order of arrival. With three or more
    # processes the order of a sum changes its last digit, so a resumed run would not end
    # bit-identical. A search for unused parameters prevents the regrouping. On GPUs runs are not
    # bit-identical anyway, so there the search is spared.
    return DistributedDataParallel(
        method,
        forward_sync_buffers=False,
        find_unused_parameters=not torch.cuda.is_available(),
    )


def gradients_shared(network: nn.Module, now: bool) -> contextlib.AbstractContextManager[Any]:
    """Context in which gradients are averaged over processes only if ``now``; else DDP's no_sync.

    ``now`` is true for the last part of a batch, which ends the accumulation.
    """
    if now or not isinstance(network, DistributedDataParallel):
        return contextlib.nullcontext()
    return network.no_sync()


@torch.no_grad()
def total(values: Tensor) -> Tensor:
    """Sum over all processes (all-reduce)."""
    values = values.detach().clone()
    if distributed.is_initialized():
        distributed.all_reduce(values)
    return values


class _Average(torch.autograd.Function):
    """Mean over all processes, and of the gradients on the way back.

    The processes' gradients are averaged once more after the backward pass (``shared``). Together
    that is the gradient of the mean of all processes' losses.
    """

    @staticmethod
    def forward(ctx: Any, values: Tensor) -> Tensor:
        return total(values) / num_processes()

    @staticmethod
    def backward(ctx: Any, gradients: Tensor) -> Tensor:
        return total(gradients) / num_processes()


def average(values: Tensor) -> Tensor:
    """Mean over all processes, through which gradients flow."""
    if num_processes() == 1:
        return values
    averaged: Tensor = _Average.apply(values)
    return averaged


def num_processes() -> int:
    """Number of processes that train together."""
    return distributed.get_world_size() if distributed.is_initialized() else 1


def any_of(fact: bool) -> bool:
    """True on every process if ``fact`` is true on at least one; the CPUs ask, no GPU waits."""
    if not distributed.is_initialized():
        return fact
    return bool(total(torch.tensor(float(fact))))


def of_first(make: Callable[[], T]) -> T:
    """Object that the first process makes, on every process."""
    if not distributed.is_initialized():
        return make()
    objects: list[Any] = [make() if distributed.get_rank() == 0 else None]
    distributed.broadcast_object_list(objects)
    made: T = objects[0]
    return made


def same(number: int) -> bool:
    """True if all processes call this with the same number."""
    if not distributed.is_initialized():
        return True
    numbers: list[Any] = [None] * distributed.get_world_size()
    distributed.all_gather_object(numbers, number)
    return len(set(numbers)) == 1


def lost_another(error: RuntimeError) -> bool:
    """True if an error only says that another process is gone; gloo has no error type for that."""
    return isinstance(error, distributed.DistError) or any(
        word in str(error) for word in ("gloo", "Connection reset by peer", "Broken pipe")
    )


def mean(scalars: dict[str, Tensor]) -> dict[str, float]:
    """Means of named scalars over all processes, on every process."""
    stacked = torch.stack([value.detach().float() for value in scalars.values()])
    return dict(zip(scalars, (total(stacked) / num_processes()).tolist(), strict=True))
