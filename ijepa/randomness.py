"""Randomness as a function of named keys, so that a resumed run needs no generator state."""

import hashlib

import torch


def generator(*key: int | str) -> torch.Generator:
    """CPU generator whose stream depends on the key alone, on any machine and in any process.

    Example: ``generator(seed, "masks", step, group)``. Different keys give unrelated streams.
    """
    digest = hashlib.sha256(repr(key).encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:8], "big") >> 1)
