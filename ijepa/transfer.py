"""Copies between the host and a device for which neither waits.

A GPU works on what is queued for it. A copy from ordinary memory, or to it, would make the host
wait until the queue is empty, and the GPU then wait for the host. Copies from and to pinned memory
are queued like all other work. On a CPU there is nothing to copy.
"""

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import torch
from torch import Tensor

Item = TypeVar("Item")


def first_device() -> torch.device:
    """First GPU, or the CPU."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def placed(x: Tensor, device: torch.device) -> Tensor:
    """Copy of a tensor of the host on a device."""
    if device.type == "cuda" and x.device.type == "cpu":
        x = x.pin_memory()
    return x.to(device, non_blocking=True)


def fetched(tensors: Iterable[Tensor], ahead: int = 1) -> Iterator[Tensor]:
    """Tensors on the host, in order.

    One of a GPU is waited for only after the work of the next ones is queued, as many as ``ahead``,
    the number of GPUs that make them, so that each always has work.
    """
    queued: deque[tuple[Tensor, torch.cuda.Event | None]] = deque()
    for x in tensors:
        if x.device.type == "cpu":
            yield x
            continue
        queued.append((x.to("cpu", non_blocking=True), mark(x.device)))
        if len(queued) > ahead:
            yield _arrived(*queued.popleft())
    while queued:
        yield _arrived(*queued.popleft())


def made_ahead(
    make: Callable[[Item], list[Tensor]], items: Iterable[Item], device: torch.device
) -> Iterator[tuple[Item, list[Tensor]]]:
    """Items, in order, and the tensors that ``make`` makes of each on a device.

    A thread reads the next item and makes its tensors while the caller works; on a GPU in a queue
    of its own, so that neither the host nor the GPU waits for it unless it is slower.
    """
    rest = iter(items)
    stream = torch.cuda.Stream(device) if device.type == "cuda" else None

    def make_next() -> tuple[Item, list[Tensor], torch.cuda.Event | None] | None:
        for item in rest:
            return item, make(item), mark(device)
        return None

    # The thread's device and queue, once and for all; without them it would use the first GPU. None
    # changes nothing.
    set_stream: Callable[..., None] = torch.cuda.set_stream
    with ThreadPoolExecutor(1, initializer=set_stream, initargs=(stream,)) as thread:
        ahead = thread.submit(make_next)
        while made := ahead.result():
            ahead = thread.submit(make_next)
            item, tensors, event = made
            if event is not None:
                own = torch.cuda.current_stream(device)
                own.wait_event(event)
                for x in tensors:
                    x.record_stream(own)  # or its memory could be used again too early
            yield item, tensors


def mark(device: torch.device) -> torch.cuda.Event | None:
    """Mark in a device's queue, to wait for what is before it; None for a CPU, which has none."""
    if device.type != "cuda":
        return None
    event = torch.cuda.Event()
    event.record(torch.cuda.current_stream(device))
    return event


def _arrived(x: Tensor, event: torch.cuda.Event | None) -> Tensor:
    """Return a tensor of the host once the device has copied it."""
    if event is not None:
        event.synchronize()
    return x
