"""Raw archives: checked once, unpacked once, or read in place.

A hidden file beside each archive records that it was checked or unpacked, so that the next
``fetch`` does not read 140 GB again. In a read-only folder every ``fetch`` checks an archive; to
unpack or list it, link to it from a folder that can be written to.
"""

import contextlib
import errno
import gzip
import hashlib
import logging
import os
import sqlite3
import tarfile
import time
import zipfile
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from tqdm import tqdm

from ijepa.errors import UserError
from ijepa.files import read_json, writable, write_json, written_whole

log = logging.getLogger(__name__)

BLOCK_BYTES = 1 << 20
COMPRESSED = {
    b"\x1f\x8b": "gunzip", b"BZh": "bunzip2", b"\xfd7zXZ": "unxz", b"\x28\xb5\x2f\xfd": "unzstd",
    b"\x04\x22\x4d\x18": "unlz4", b"PK\x03\x04": "unzip", b"\x5d\0\0": "unlzma",
    b"\x78\x01": "pigz -dz", b"\x78\x9c": "pigz -dz", b"\x78\xda": "pigz -dz",
}  # fmt: skip
"""Commands that unpack a file, by its first bytes."""
READ_ONLY = (errno.EROFS, errno.EACCES, errno.EPERM)
IMAGE_ENDINGS = frozenset({".jpeg", ".jpg", ".png", ".webp"})


def verify_once(path: Path, checksum: str) -> None:
    """Compare a file with a checksum such as ``md5:HEX``, once for each version of the file.

    A file that has kept its size and modification time is not read again. Raises UserError with the
    file, its digest and the expected one.
    """
    stamp = path.with_name(f".{path.name}.verified")
    state = _state(path, checksum)
    if _read_stamp(stamp) == state:
        return
    algorithm, _, expected = checksum.partition(":")
    hasher = hashlib.new(algorithm)
    size = path.stat().st_size
    with (
        path.open("rb") as file,
        tqdm(desc=f"checking {path.name}", total=size, unit="B", unit_scale=True) as bar,
    ):
        while block := file.read(BLOCK_BYTES):
            hasher.update(block)
            bar.update(len(block))
    if hasher.hexdigest() != expected.lower():
        raise UserError(
            f"{path} has {algorithm} {hasher.hexdigest()}, expected {expected} ({size:,} bytes are "
            "there): it is damaged, was not downloaded to its end or is another version; bring it "
            "again"
        )
    _write_stamp(stamp, state)


def unpack(archive: Path, into: Path, checksum: str | None = None) -> None:
    """Unpack a ``.tar.gz``, ``.tgz`` or ``.zip``, checked first if a checksum is given.

    An interrupted unpacking goes on with the files that are missing or incomplete. Raises UserError
    if the archive is damaged, is packed otherwise or has files that would lie outside the folder.
    """
    if not archive.name.endswith((".tar.gz", ".tgz", ".zip")):
        raise UserError(f"{archive} is no .tar.gz, .tgz or .zip: pack its files as one of these")
    stamp = into / f".{archive.name}.unpacked"
    state = _state(archive, checksum)
    if _read_stamp(stamp) == state:
        return
    writable(into)  # before the archive is read, which takes long
    if checksum:
        verify_once(archive, checksum)
    with damage_named(archive):
        if archive.suffix == ".zip":
            _unpack_zip(archive, into)
        else:
            _unpack_tar(archive, into)
    _write_stamp(stamp, state)


def tar_entries(
    path: Path, offset: int = 0, size: int | None = None
) -> Iterator[tuple[str, int, int]]:
    """Name, first byte and number of bytes of every file of an uncompressed tar, in its order.

    With ``offset`` and ``size`` the tar lies there inside of ``path``; first bytes are still
    counted from the beginning of ``path``. Contents are not read. Raises UserError if the tar is
    compressed or has no proper end.
    """
    end = path.stat().st_size if size is None else offset + size
    with path.open("rb") as file, damage_named(path):
        file.seek(offset)
        head = file.read(8)
        for command in (tool for mark, tool in COMPRESSED.items() if head.startswith(mark)):
            raise UserError(
                f"{path} is compressed, and tars are read in place: unpack it ({command}), and "
                "name the unpacked file"
            )
        file.seek(offset)
        with tarfile.open(fileobj=file, mode="r:") as tar:
            for member in _members(tar):
                if member.isfile():
                    yield member.name, member.offset_data, member.size
            # tarfile takes a damaged header for the end; the true end is a block of zeros.
            file.seek(tar.offset)
            block = file.read(tarfile.BLOCKSIZE)
            if block != bytes(tarfile.BLOCKSIZE) or file.tell() > end:
                raise tarfile.ReadError(f"no end of the archive at byte {tar.offset:,}")


@contextlib.contextmanager
def tar_lookup(path: Path) -> Iterator[Callable[[str], tuple[int, int] | None]]:
    """Yield a function from a file's name in an uncompressed tar to its first byte and size.

    The function returns None for a name that is not there. See ``list_once``.
    """
    list_once(path)
    # Immutable: no locks, which some network file systems do not have.
    address = f"{_table(path).absolute().as_uri()}?immutable=1"
    with contextlib.closing(sqlite3.connect(address, uri=True)) as table:
        query = "SELECT offset, size FROM files WHERE name = ?"
        yield lambda name: table.execute(query, (name,)).fetchone()


def list_once(path: Path) -> None:
    """Write a table of an uncompressed tar's files beside it, unless there is one already.

    Millions of names would take gigabytes of memory, so the table is on disk.
    """
    stamp = path.with_name(f".{path.name}.listed")
    state = _state(path)
    if _read_stamp(stamp) == state:
        return
    writable(path.parent)
    with written_whole(_table(path)) as part:
        address = f"{part.absolute().as_uri()}?nolock=1"
        with contextlib.closing(sqlite3.connect(address, uri=True)) as table:
            table.execute("PRAGMA journal_mode = OFF")
            table.execute("CREATE TABLE files (name PRIMARY KEY, offset, size) WITHOUT ROWID")
            files = tqdm(tar_entries(path), desc=f"listing {path.name}", unit="file")
            # As in unpacking, the last of several files of one name counts, and "./a" is "a".
            table.executemany(
                "INSERT OR REPLACE INTO files VALUES (?, ?, ?)",
                ((name.removeprefix("./"), *extent) for name, *extent in files),
            )
            table.commit()
    _write_stamp(stamp, state)


def verify_end(path: Path) -> None:
    """Raise UserError if a tar does not end in zeros: a quick check for lack of a checksum."""
    with path.open("rb") as file:
        file.seek(max(0, path.stat().st_size - tarfile.BLOCKSIZE))
        if file.read() != bytes(tarfile.BLOCKSIZE):
            raise UserError(f"{path} is no tar or was not downloaded to its end: bring it again")


def refuse_missing(missing: list[str]) -> None:
    """Raise UserError that lists the files that a person must bring, if there are any."""
    if missing:
        raise UserError(f"files are missing; bring them, then run again: {'; '.join(missing)}")


def folder_entries(folder: Path) -> list[Path]:
    """Image files directly in a folder, sorted by name, without hidden files.

    Raises UserError for a link that leads to no file.
    """
    paths = []
    with os.scandir(folder) as items:  # knows files without asking the disk for each
        for item in items:
            path = Path(item.path)
            if path.suffix.lower() not in IMAGE_ENDINGS or item.name.startswith("."):
                continue
            if item.is_symlink() and not path.is_file():
                raise UserError(f"{path} is a link to nothing: bring the image again, or remove it")
            if path.is_file() if item.is_symlink() else item.is_file():
                paths.append(path)
    return sorted(paths)


@contextlib.contextmanager
def damage_named(path: Path) -> Iterator[None]:
    """Turn the libraries' errors for a damaged archive into a UserError that names it."""
    try:
        yield
    except REFUSED as error:
        raise UserError(f"{path} is refused ({error}): bring the official archive") from None
    except (tarfile.TarError, zipfile.BadZipFile, gzip.BadGzipFile, zlib.error, EOFError) as error:
        raise UserError(
            f"{path} is damaged or was not downloaded to its end ({error}): bring it again"
        ) from None


def _unpack_tar(archive: Path, into: Path) -> None:
    size = archive.stat().st_size
    with (
        archive.open("rb") as file,
        tqdm(desc=f"unpacking {archive.name}", total=size, unit="B", unit_scale=True) as bar,
        gzip.open(file) as stream,
    ):
        with tarfile.open(fileobj=stream, mode="r|") as tar:
            for member in _members(tar):
                if not _is_there(into / member.name, member.size, member.mtime):
                    _extract(tar, member, into)
                bar.update(file.tell() - bar.n)
        # A gzip stream is known to be whole only at its very end, after that of the tar.
        while stream.read(BLOCK_BYTES):
            pass


class Refused(tarfile.TarError):
    """A member of an archive that would lie outside its folder, or that is a link or a device."""


REFUSED = (Refused, getattr(tarfile, "FilterError", Refused))


def _extract(tar: tarfile.TarFile, member: tarfile.TarInfo, into: Path) -> None:
    """Extract a member as tarfile's filter "data" does; Debian 12's Python 3.11.2 has none."""
    if hasattr(tarfile, "data_filter"):
        tar.extract(member, into, filter="data")
        return
    inside = (into / member.name).resolve().is_relative_to(into.resolve())
    if not inside or not (member.isfile() or member.isdir()):
        raise Refused(f"{member.name!r} would lie outside the destination, or is a link or device")
    tar.extract(member, into)


def _unpack_zip(archive: Path, into: Path) -> None:
    with zipfile.ZipFile(archive) as content:
        for member in tqdm(content.infolist(), desc=f"unpacking {archive.name}", unit="file"):
            target = into / member.filename
            if not target.resolve().is_relative_to(into.resolve()):
                raise UserError(
                    f"{archive} is refused ({member.filename!r} would lie outside {into}): bring "
                    "the official archive"
                )
            changed = time.mktime((*member.date_time, 0, 0, -1))
            if not _is_there(target, member.file_size, changed):
                content.extract(member, into)
                os.utime(target, (changed, changed))


def _members(tar: tarfile.TarFile) -> Iterator[tarfile.TarInfo]:
    while (member := tar.next()) is not None:
        yield member
        # tarfile keeps every header: gigabytes for millions of images.
        tar.members.clear()  # type: ignore[attr-defined]


def _is_there(path: Path, size: int, changed: float) -> bool:
    """True if a file was written to its end: its modification time is set after its last byte."""
    if not path.is_file():
        return False
    stat = path.stat()
    return stat.st_size == size and int(stat.st_mtime) == int(changed)


def _table(path: Path) -> Path:
    return path.with_name(f".{path.name}.sqlite")


def _state(path: Path, checksum: str | None = None) -> dict[str, Any]:
    """Size and modification time of a file's version, and the checksum it was compared with."""
    stat = path.stat()
    return {"checksum": checksum, "bytes": stat.st_size, "mtime_ns": stat.st_mtime_ns}


def _write_stamp(path: Path, state: dict[str, Any]) -> None:
    try:
        write_json(path, state)
    except OSError as error:
        if error.errno not in READ_ONLY:
            raise
        log.warning("%s cannot be written: the next fetch reads the archive again", path)


def _read_stamp(path: Path) -> Any:
    return read_json(path) if path.exists() else None
