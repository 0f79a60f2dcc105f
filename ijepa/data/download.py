"""Download of a file that goes on after a broken connection or a killed process.

Bytes go to ``PATH.part``; ``PATH.part.origin`` records where they come from: the address without
its signature, and the server's mark of this version of the file (ETag or Last-Modified). With these
two files the next call continues. A file that has changed meanwhile is fetched from its beginning.
"""

import contextlib
import logging
import os
import time
from collections.abc import Iterator, Mapping
from email.message import Message
from http.client import HTTPException
from pathlib import Path
from typing import Any
from urllib.error import HTTPError
from urllib.request import Request, urlopen

from tqdm import tqdm

from ijepa.data.addresses import unsigned
from ijepa.errors import REMEDIES, UserError
from ijepa.files import digest, write_text
from ijepa.lock import locked

TIMEOUT_SECONDS = 20
PAUSES = (1, 2, 4, 8, 16)
"""Seconds before each new connection; they start again after one that has brought more bytes."""

log = logging.getLogger(__name__)


def download(
    address: str,
    path: Path,
    checksum: str | None = None,
    headers: Mapping[str, str] | None = None,
) -> None:
    """Write the file at an address to ``path``; ``checksum`` is such as ``sha256:HEX``.

    ``headers`` go to the address alone, not to another one that it redirects to.

    Raises UserError if the download fails, if the file has another checksum (it is then removed,
    and the next call starts from the beginning), or if another process is writing it.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f"{path.name}.part")
    algorithm, _, expected = (checksum or "").partition(":")
    with _alone(part):
        # An earlier call may have been killed after all bytes had arrived.
        if not checksum or digest(part, algorithm) != expected:
            _receive_all(address, part, headers or {})
        if checksum and (got := digest(part, algorithm)) != expected:
            part.unlink()
            name = algorithm.upper().replace("SHA", "SHA-")
            raise UserError(
                f"{unsigned(address)} gave a file of {name} {got}, expected {expected}; it was "
                "removed: check the address and the checksum, then run again, which starts anew"
            )
        with part.open("rb+") as file:
            os.fsync(file.fileno())
        part.replace(path)


@contextlib.contextmanager
def _alone(part: Path) -> Iterator[None]:
    """Lock ``part`` against other processes; at the end remove it and its origin if it is empty."""
    with part.open("ab") as file:
        try:
            # The process that held the lock before may have renamed or removed the file.
            alone = locked(file) and os.path.samestat(os.fstat(file.fileno()), part.stat())
        except FileNotFoundError:
            alone = False
        if not alone:
            raise UserError(
                f"{part} is being written by another process: wait until it is done, then run the "
                "same command again"
            )
        try:
            yield
        finally:
            if not part.exists() or not part.stat().st_size:
                part.unlink(missing_ok=True)
                _origin(part).unlink(missing_ok=True)


def _origin(part: Path) -> Path:
    return part.with_name(f"{part.name}.origin")


def _receive_all(address: str, part: Path, headers: Mapping[str, str]) -> None:
    """Receive a file; connect again after an error as long as each connection brings more of it."""
    pauses: Iterator[float] = iter(())  # no new connection before the first byte
    most_bytes = 0
    while True:
        earlier_size = part.stat().st_size
        try:
            return _receive(address, part, headers)
        except (OSError, HTTPException) as error:
            if isinstance(error, HTTPError) and error.code in (401, 403):
                raise UserError(
                    f"{unsigned(address)}: the server answers {error.code} {error.reason}: renew "
                    "the address's signature or, for a gated data set on the Hub, accept its terms "
                    "on its page and set HF_TOKEN, then run the same command again"
                ) from None
            if isinstance(error, OSError) and error.errno in REMEDIES:
                error.filename = error.filename or str(part)
                raise  # a full or unwritable disk is no fault of the server
            size = part.stat().st_size
            # A server that always starts at byte 0 sends bytes each time and may never finish:
            # only more bytes than ever before count.
            if size != earlier_size and size > most_bytes:
                most_bytes, pauses = size, iter(PAUSES)
            pause = next(pauses, None)
            if pause is None:
                raise UserError(
                    f"{unsigned(address)}: {error}; {size:,} bytes are there: check the address "
                    "and the network, then run the same command again, which continues after these "
                    "bytes; or give the path of a copy in place of the address"
                ) from None
            log.warning("%s: %s; again in %s s", unsigned(address), error, pause)
            time.sleep(pause)


def _receive(address: str, part: Path, headers: Mapping[str, str]) -> None:
    """Write to ``part`` the bytes that one connection gives: those that are missing, or all."""
    origin = _origin(part)
    known_address, _, version = (origin.read_text() if origin.exists() else "").partition("\n")
    source = unsigned(address)  # a renewed signature gives the same bytes
    size = part.stat().st_size if known_address == source else 0
    response, start = _ask(address, size, version, headers)
    with response, part.open("ab") as file:
        if start == 0:
            file.truncate(0)
            write_text(origin, f"{source}\n{_version(response.headers)}")
        length = response.headers["Content-Length"]
        total = start + int(length) if length else None
        with tqdm(
            desc=part.stem, total=total, initial=start, unit="B", unit_scale=True, mininterval=1
        ) as bar:
            # Not read(), which loses up to a whole block when the connection breaks.
            while block := response.read1(1 << 20):
                file.write(block)
                bar.update(len(block))
    if total is not None and part.stat().st_size < total:
        raise ConnectionError(f"the connection broke before byte {total:,}")


def _ask(address: str, start: int, version: str, headers: Mapping[str, str]) -> tuple[Any, int]:
    """Server's response, and the byte of the file that it begins with: ``start`` or 0."""
    request = Request(address)
    for name, value in headers.items():
        request.add_unredirected_header(name, value)
    if start:
        request.add_header("Range", f"bytes={start}-")
        if version:
            request.add_header("If-Range", version)
    try:
        response = urlopen(request, timeout=TIMEOUT_SECONDS)
    except HTTPError as error:
        if start and error.code == 416:  # the file has become shorter
            return _ask(address, 0, "", headers)
        raise
    if not start or response.status != 206:
        return response, 0
    # Some servers ignore If-Range.
    same_file = _version(response.headers) == version
    if same_file and response.headers.get("Content-Range", "").startswith(f"bytes {start}-"):
        return response, start
    response.close()
    return _ask(address, 0, "", headers)


def _version(headers: Message) -> str:
    """Mark of a file's version that If-Range accepts: a strong ETag, a date, or nothing."""
    tag = str(headers.get("ETag", "W/"))
    return str(headers.get("Last-Modified", "")) if tag.startswith("W/") else tag
