"""File lock that ends with its process, so that none is ever left behind."""

import errno
import fcntl
import math
import os
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from ijepa.errors import UserError

NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP)
"""Errors of disks without locks: some NFS, Lustre without -o flock."""


@contextmanager
def held(path: Path, taken: str, patience: float | None = None) -> Iterator[None]:
    """Hold a lock while the block runs; first wait for any other process that holds it.

    ``taken`` is the message about that process; ``{process}`` in it becomes the process id. Raises
    UserError after a wait of ``patience`` seconds; None waits without end.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a+", encoding="utf-8") as file:
        if not locked(file):
            file.seek(0)
            message = taken.format(process=file.read())
            if patience != 0:
                print(f"{message}: waiting for it", flush=True)
            until = time.monotonic() + (math.inf if patience is None else patience)
            while not locked(file):
                if time.monotonic() >= until:
                    raise UserError(f"{message}: wait for it, or end it")
                time.sleep(0.2)
        file.truncate(0)
        file.write(str(os.getpid()))
        file.flush()
        yield


def locked(file: IO[Any]) -> bool:
    """True if this process has taken the lock, or if the disk has none, of which it warns."""
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError as error:
        if error.errno not in NO_LOCKS:
            raise
        warning = "nothing is locked, so never start the same twice (or mount it with flock)"
        print(f"warning: {file.name}: its disk has no file locks: {warning}", file=sys.stderr)
    return True
