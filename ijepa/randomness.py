"""Randomness as a function of named keys, so that a resumed run needs no generator state."""

import contextlib
import hashlib
import random
from collections.abc import Iterator

import numpy as np
import torch


def generator(*key: int | str) -> torch.Generator:
    """CPU generator whose stream depends on the key alone, on any machine and in any process.

    Example: ``generator(seed, "masks", step, group)``. Different keys give unrelated streams.
    """
    digest = hashlib.sha256(repr(key).encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:8], "big") >> 1)


@contextlib.contextmanager
def seeded(*key: int | str) -> Iterator[None]:
    """Seed the global generators, which timm uses, by ``key``; restore their state afterwards."""
    seed = generator(*key).initial_seed()
    python, numpy = random.getstate(), np.random.get_state()
    # A loader's worker must not touch the GPU; CUDA is not initialised there.
    gpus = range(torch.cuda.device_count()) if torch.cuda.is_initialized() else ()
    with torch.random.fork_rng(devices=gpus):
        random.seed(seed)
        np.random.seed(seed % 2**32)
        torch.manual_seed(seed)
        try:
            yield
        finally:
            random.setstate(python)
            np.random.set_state(numpy)
