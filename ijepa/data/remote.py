"""Shards that lie at an address: any part of a file by HTTP, on connections that are kept open.

A mirror (ijepa.data.mirror) is a folder of shards without their tars. Its note
``address.json`` says where these lie. A tar that is not in the folder is read from there.

No secret is noted. HF_TOKEN opens a data set on the Hub. IJEPA_DATA_ADDRESS has addresses, with
spaces between them, with what opens them: ``https://USER:PASSWORD@HOST/PATH`` or a signed query.
"""

import logging
import os
import re
import time
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit, urlunsplit

from ijepa.data.addresses import HUB, bare, on_the_hub
from ijepa.data.download import PAUSES, TIMEOUT_SECONDS
from ijepa.errors import UserError
from ijepa.files import read_json

NOTE = "address.json"
SECRETS = "IJEPA_DATA_ADDRESS"
CONNECTIONS = 16
"""Requests of a process at a time, where it has several to make."""
SILENT_SECONDS = 10.0
"""Seconds after a warning in which a process gives no other one: 16 requests may fail at a time."""
TEMPORARY = (408, 429, 500, 502, 503, 504)
"""Answers after which the same request may succeed."""
REMEDIES = {
    401: f"set HF_TOKEN (on the Hub) or {SECRETS}, the address with its user or signature",
    403: f"set HF_TOKEN (on the Hub) or {SECRETS}, the address with its user or signature",
    404: "if the shards have moved, mirror their new address to the same folder",
    416: "it is shorter than its index says: mirror the address anew, to another folder",
    200: "this server gives only whole files: take one that answers Range requests",
}
"""Remedy by the status of an answer that another request would not change."""

ADDRESS = re.compile(r"\w+://\S+")

log = logging.getLogger(__name__)


class Remote:
    """Files of a folder of shards at an address.

    Every process has connections of its own: a forked one must not read its parent's answers.
    Raises UserError for an address that is not of http, https or the Hub.
    """

    def __init__(self, address: str) -> None:
        if not _is_valid(address):
            raise UserError(
                f"{bare(address)} is no address of shards: give "
                f"http://, https:// or {HUB}USER/NAME (a bucket has an https address, too)"
            )
        self.address = bare(address)
        self._secret_address = address
        # A parent's connections stay referenced, because closing them is the parent's.
        self._sessions: dict[int, Any] = {}
        self._silent_until = 0.0

    def read(self, name: str, first: int = 0, size: int | None = None) -> bytes:
        """Bytes of a file: all of it, or ``size`` bytes from ``first`` on.

        A failed request is made again, with pauses. Raises UserError if that does not help.
        """
        return self._patiently(name, first, size)[0]

    def size(self, name: str) -> int:
        """Number of bytes of a file; the request is for a part of it, as all later ones."""
        return self._patiently(name, 0, 1)[1]

    def __getstate__(self) -> dict[str, object]:
        return {**self.__dict__, "_sessions": {}}

    def _patiently(self, name: str, first: int, size: int | None) -> tuple[bytes, int]:
        # At first without a pause: the server may just have closed an idle connection.
        pauses = iter((0, *PAUSES))
        while True:
            try:
                return self._receive(name, first, size)
            except OSError as error:  # requests' errors are of this type
                pause, fault = next(pauses, None), _fault(error)
            if pause is None:
                raise UserError(
                    f"{self.address}/{name}: {fault}, {len(PAUSES) + 2} times: check the network "
                    "and the server and run the same command again, which goes on; or copy the "
                    "file into the folder of the shards"
                )
            if time.monotonic() >= self._silent_until:
                self._silent_until = time.monotonic() + SILENT_SECONDS
                log.warning("%s/%s: %s; again in %s s", self.address, name, fault, pause)
            time.sleep(pause)

    def _receive(self, name: str, first: int, size: int | None) -> tuple[bytes, int]:
        """Bytes from one request, and the size of the whole file."""
        url, headers = self._request(name)
        if size is not None:
            headers["Range"] = f"bytes={first}-{first + size - 1}"
        with self._session().get(
            url, headers=headers, timeout=TIMEOUT_SECONDS, stream=True
        ) as response:
            self._check(response, name, 200 if size is None else 206)
            total = None if size is None else self._total(response, name, first, size)
            content: bytes = response.content
        if size is not None and len(content) != size:
            raise ConnectionError(f"{len(content)} bytes came instead of {size}")
        return content, len(content) if total is None else total

    def _check(self, response: Any, name: str, expected: int) -> None:
        """Raise an error for another status: a UserError if the same request would not help."""
        status = response.status_code
        if status == expected:
            return
        if status in TEMPORARY:
            raise ConnectionError(f"the server answers {status} {response.reason}")
        remedy = REMEDIES.get(status, "check the address and the server")
        raise UserError(
            f"{self.address}/{name}: the server answers {status} {response.reason}: {remedy}; or "
            "copy the file into the folder of the shards"
        )

    def _total(self, response: Any, name: str, first: int, size: int) -> int:
        """Size of the whole file; raises UserError for an answer that has another part of it."""
        text = response.headers.get("Content-Range", "")
        part = re.fullmatch(rf"bytes {first}-{first + size - 1}/(\d+)", text)
        if part is None:
            raise UserError(
                f"{self.address}/{name}: asked for bytes {first}-{first + size - 1}, the server "
                f"gives {text!r}: the file is shorter than its index says, or the server is faulty:"
                " mirror the address anew, to another folder, or copy the file into the folder of "
                "the shards"
            )
        return int(part[1])

    def _request(self, name: str) -> tuple[str, dict[str, str]]:
        """HTTP address and headers for a file."""
        if self.address.startswith(HUB):
            return on_the_hub(f"{self.address}/{name}")
        scheme, host, path, query, _ = urlsplit(self._secret_address)
        return urlunsplit((scheme, host, f"{path.rstrip('/')}/{name}", query, "")), {}

    def _session(self) -> Any:
        """Connections of this process."""
        if os.getpid() not in self._sessions:
            import requests

            session = requests.Session()
            adapter = requests.adapters.HTTPAdapter(pool_maxsize=CONNECTIONS)
            session.mount("http://", adapter)
            session.mount("https://", adapter)
            session.headers["Accept-Encoding"] = "identity"  # a part of a compressed file is no use
            self._sessions.setdefault(os.getpid(), session)
        return self._sessions[os.getpid()]


def _is_valid(address: str) -> bool:
    """True if requests may go to an address."""
    try:
        parts = urlsplit(address)
        by_http = parts.scheme in ("http", "https") and parts.port != 0 and bool(parts.hostname)
        return by_http or address.startswith(HUB)
    except ValueError:  # no number as the port, for example
        return False


def _fault(error: BaseException) -> str:
    """Cause of a failed request; requests' own text would repeat the address with its secrets."""
    while cause := error.__cause__ or error.__context__:
        error = cause
    text = " ".join(str(error).split())  # a line that is no HTTP may have line ends
    return ADDRESS.sub("the address", text) or type(error).__name__


def remote_of(folder: Path) -> Remote | None:
    """Address at which the missing tars of a folder of shards lie, if it is a mirror."""
    path = folder / NOTE
    if not path.exists():
        return None
    content = read_json(path)
    if not isinstance(content, dict) or not isinstance(address := content.get("address"), str):
        raise UserError(f"{path} has no address: delete it and mirror the address again")
    secrets = os.environ.get(SECRETS, "").split()
    return Remote(next((secret for secret in secrets if bare(secret) == address), address))
