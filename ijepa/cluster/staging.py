"""Shards on a node's own disk: reading images in random order asks more of a shared file system."""

import os
import shutil
import socket
from collections.abc import Callable
from pathlib import Path

from tqdm import tqdm

from ijepa.data.shards import read_index, verify
from ijepa.errors import UserError
from ijepa.files import written_whole
from ijepa.lock import held


def staged(data: Path, folder: Path, copies: bool, wait: Callable[[], None]) -> Path:
    """The folder of the copy of ``data`` in ``folder``, made by one process of each node.

    The processes for which ``copies`` holds copy what is not there yet, compare it with its
    checksums, and all go on when ``wait``, the barrier of all processes, lets them. A copy that was
    interrupted is finished; jobs of one node share it. Variables in ``folder`` are the node's.
    Raises UserError where it has no room.
    """
    place = os.path.expandvars(folder)
    if "$" in place:
        raise UserError(
            f"stage: {folder} names a variable that {socket.gethostname()} does not have: set it "
            "by setup, or write the folder's own name"
        )
    index = read_index(data)
    copy = Path(place) / f"{index.dataset}-{index.version()}"
    if copies:
        with held(copy / "lock", f"process {{process}} copies shards to {copy}"):
            _copy(data, copy)
            verify(copy)
    wait()
    return copy


def _copy(data: Path, copy: Path) -> None:
    """Copy the files that are missing or differ in size or time, the index last."""
    files = [path.relative_to(data) for path in data.rglob("*") if path.is_file()]
    files = [path for path in files if not path.name.startswith(".")]
    size = {path: (data / path).stat().st_size for path in files}
    left = [
        path
        for path in sorted(files, key=lambda path: (path.name == "index.json", path))
        if not (copy / path).exists() or stamp(copy / path) != stamp(data / path)
    ]
    needed, free = sum(size[path] for path in left), shutil.disk_usage(copy).free
    if needed > free:
        raise UserError(
            f"{copy} has {free / 1e9:.1f} GB free, the shards of {data} take {needed / 1e9:.1f}: "
            "free some space, choose another folder for stage, or leave it out"
        )
    with tqdm(total=needed, unit="B", unit_scale=True, desc="staging shards", mininterval=2) as bar:
        for path in left:
            with written_whole(copy / path) as part:
                shutil.copy2(data / path, part)
            bar.update(size[path])


def stamp(path: Path) -> tuple[int, int]:
    """A file's size and its time of change in seconds, which a copy keeps."""
    return path.stat().st_size, int(path.stat().st_mtime)
