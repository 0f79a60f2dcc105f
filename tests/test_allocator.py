"""Memory that a step has freed serves the next one."""

import subprocess
import sys

import pytest

FAULTS = """
import resource, sys
import numpy as np
{0}
for _ in range(20):
    [np.ones(2**21) for _ in range(8)]  # sixteen MB each
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="glibc's")
def test_freed_memory_is_used_again_without_page_faults() -> None:
    """128 MB come and go twenty times: 32,768 pages at once, and the first time only."""

    def faults(before: str) -> int:
        command = [sys.executable, "-c", FAULTS.format(before)]
        return int(subprocess.run(command, check=True, capture_output=True, text=True).stdout)

    keep = "from ijepa.allocator import keep_freed_memory; keep_freed_memory()"
    assert faults(keep) < faults("") / 4
