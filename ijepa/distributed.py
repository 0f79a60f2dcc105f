"""Several processes that train one network together: who they are, and what they add up."""

import contextlib
import os
from collections.abc import Iterator
from datetime import timedelta
from typing import Any, NamedTuple

import torch
from torch import Tensor, distributed, nn
from torch.nn.parallel import DistributedDataParallel

from ijepa.errors import UserError

TIMEOUT = timedelta(hours=2)
"""How long a process waits for the others; one may be copying or verifying 150 GB of shards."""


VARIABLES = ("RANK", "WORLD_SIZE", "LOCAL_RANK")
"""How torchrun tells a process its place."""


class World(NamedTuple):
    """This process's place among all; a process alone is 0 of 1."""

    rank: int = 0
    size: int = 1
    local_rank: int = 0


ALONE = World()


@contextlib.contextmanager
def joined() -> Iterator[World]:
    """Join the processes that ``torchrun`` started, or none; NCCL where there are GPUs, else gloo.

    Each process takes the GPU of its number on its machine.
    """
    world = World(*(int(os.environ.get(k, d)) for k, d in zip(VARIABLES, ALONE, strict=True)))
    device = None
    if torch.cuda.is_available():
        if world.local_rank >= torch.cuda.device_count():
            raise UserError(
                f"process {world.local_rank} of this machine has no GPU: there are "
                f"{torch.cuda.device_count()}; start no more processes than that"
            )
        device = torch.device("cuda", world.local_rank)
        torch.cuda.set_device(device)
    if world.size == 1:
        yield world
        return
    backend = "gloo" if device is None else "nccl"
    distributed.init_process_group(backend, timeout=TIMEOUT, device_id=device)
    try:
        yield world
    finally:
        distributed.destroy_process_group()


def wait() -> None:
    """Go on when every process is here."""
    if distributed.is_initialized():
        distributed.barrier()


def shared(method: nn.Module, world: World) -> nn.Module:
    """The method, whose gradients are averaged over all processes after each backward pass."""
    if world.size == 1:
        return method
    # Buffers are equal everywhere by themselves: what enters them was added up.
    # After its first step DDP sorts the gradients anew, by when they come, and from three processes
    # on the order of a sum tells in its last digit: a resumed run would not end bit-identical.
    # Looking for unused parameters keeps it from that. A GPU makes no such promise anyway.
    return DistributedDataParallel(
        method,
        forward_sync_buffers=False,
        find_unused_parameters=not torch.cuda.is_available(),
    )


def gradients_shared(network: nn.Module, now: bool) -> contextlib.AbstractContextManager[Any]:
    """Whether this part's backward pass ends the accumulation, and averages over the processes."""
    if now or not isinstance(network, DistributedDataParallel):
        return contextlib.nullcontext()
    return network.no_sync()


@torch.no_grad()
def total(values: Tensor) -> Tensor:
    """The sum over all processes."""
    values = values.detach().clone()
    if distributed.is_initialized():
        distributed.all_reduce(values)
    return values


def any_of(fact: bool, device: torch.device) -> bool:
    """Whether something holds for at least one of the processes, on every one of them."""
    if not distributed.is_initialized():
        return fact
    return bool(total(torch.tensor(float(fact), device=device)))


def same(number: int) -> bool:
    """Whether all processes have the same number."""
    if not distributed.is_initialized():
        return True
    found: list[Any] = [None] * distributed.get_world_size()
    distributed.all_gather_object(found, number)
    return len(set(found)) == 1


def lost_another(error: RuntimeError) -> bool:
    """Whether an error says only that another of the processes is gone; gloo has no type for it."""
    return isinstance(error, distributed.DistError) or any(
        word in str(error) for word in ("gloo", "Connection reset by peer", "Broken pipe")
    )


def mean(scalars: dict[str, Tensor]) -> dict[str, float]:
    """The means of named scalars over all processes, on every one of them."""
    stacked = torch.stack([value.detach().float() for value in scalars.values()])
    size = distributed.get_world_size() if distributed.is_initialized() else 1
    return dict(zip(scalars, (total(stacked) / size).tolist(), strict=True))
