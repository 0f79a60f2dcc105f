"""A real cluster on this machine: ``tests/slurm/cluster``, two nodes of two pretend A100s each."""

import os
import subprocess
import tempfile
from collections.abc import Iterator

import pytest

from tests.slurm.actions import CLUSTER


@pytest.fixture(scope="session")
def cluster() -> Iterator[None]:
    """The cluster, up, with its commands first in PATH; skips where it cannot be installed."""
    # Short: a socket's path has at most 108 characters.
    folder = tempfile.mkdtemp(prefix="slurm-")
    env = {**os.environ, "SLURMLAB_DIR": folder, "SLURMLAB_NODES": "2", "SLURMLAB_GPUS": "2"}
    with pytest.MonkeyPatch.context() as patch:
        for _ in range(2):  # of some fifty starts one took minutes, for no known reason
            up = subprocess.run([CLUSTER, "up"], env=env, capture_output=True, text=True)
            if up.returncode == 0:
                break
        else:
            if "package install failed" in up.stderr:
                pytest.skip(f"Slurm cannot be installed: {up.stderr}")
            pytest.fail(up.stderr)
        patch.setenv("SLURM_CONF", f"{folder}/etc/slurm.conf")
        patch.setenv("PATH", f"{folder}/bin:{os.environ['PATH']}")
        patch.setenv("SLURMLAB_DIR", folder)
        # All nodes are this machine.
        patch.setenv("GLOO_SOCKET_IFNAME", "lo")
        patch.setenv("OMP_NUM_THREADS", "1")
        try:
            yield
        finally:
            subprocess.run([CLUSTER, "purge"], env=env, check=True, capture_output=True)
