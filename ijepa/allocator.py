"""Memory of the C library: what a step frees stays with the process for the next step.

glibc gives large freed blocks back to the kernel at once, and the kernel clears each page again at
its next use. A step of data2vec at mini's size took 32,000 such page faults, 16 % of its time
(benchmarks/page_faults.py).
"""

import ctypes
import sys

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3
"""Names of glibc's mallopt(3)."""
LARGEST_FROM_HEAP = 32 * 2**20
"""Bytes of the largest block that comes from the heap: glibc allows no more."""
KEPT = 2**30
"""Free bytes at the heap's end above which the process gives memory back."""


def keep_freed_memory() -> None:
    """Let this process keep freed memory; without effect where the C library is not glibc."""
    library = ctypes.CDLL(None) if sys.platform == "linux" else None
    if library is not None and hasattr(library, "mallopt"):
        library.mallopt(M_MMAP_THRESHOLD, LARGEST_FROM_HEAP)
        library.mallopt(M_TRIM_THRESHOLD, KEPT)
