"""Copy of shards on a node's own disk, because random reads strain a shared file system."""

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
    """Copy ``data`` into ``folder`` by one process of each node; returns the copy's folder.

    The processes with ``copies`` copy the missing files and compare them with their checksums. All
    processes go on after ``wait``, their barrier. An interrupted copy is completed; jobs of one
    node share it. Environment variables in ``folder`` are the node's. Raises UserError if the node
    has no room.
    """
    expanded = os.path.expandvars(folder)
    if "$" in expanded:
        raise UserError(
            f"stage: {folder} names a variable that {socket.gethostname()} does not have: set it "
            "by setup, or write the folder's own name"
        )
    index = read_index(data)
    copy = Path(expanded) / f"{index.dataset}-{index.version()}"
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
    missing = [
        path
        for path in sorted(files, key=lambda path: (path.name == "index.json", path))
        if not (copy / path).exists() or stamp(copy / path) != stamp(data / path)
    ]
    needed, free = sum(size[path] for path in missing), shutil.disk_usage(copy).free
    if needed > free:
        raise UserError(
            f"{copy} has {free / 1e9:.1f} GB free, the shards of {data} take {needed / 1e9:.1f}: "
            "free some space, choose another folder for stage, or leave it out"
        )
    with tqdm(total=needed, unit="B", unit_scale=True, desc="staging shards", mininterval=2) as bar:
        for path in missing:
            with written_whole(copy / path) as part:
                shutil.copy2(data / path, part)
            bar.update(size[path])


def stamp(path: Path) -> tuple[int, int]:
    """Size and modification time of a file, in bytes and whole seconds, which a copy keeps."""
    return path.stat().st_size, int(path.stat().st_mtime)
