"""HTTP server of a folder, with open connections and parts of files, as object stores have them.

``python -m benchmarks.range_server FOLDER SECONDS`` prints its port; each answer waits so long.
"""

import re
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any


class RangeServer(ThreadingHTTPServer):
    """A server of a folder, on a free port of this machine.

    ``requests`` has of each request the client's port, the path and the part that it asked for.
    """

    request_queue_size = 128  # connections at a time that wait; with 5, others wait a second

    def __init__(self, folder: Path, latency: float = 0.0, handler: Any = None) -> None:
        super().__init__(("127.0.0.1", 0), handler or Handler)
        self.folder, self.latency = folder, latency
        self.requests: list[tuple[int, str, str | None]] = []

    @property
    def address(self) -> str:
        """Address of the folder."""
        return f"http://127.0.0.1:{self.server_port}"


class Handler(BaseHTTPRequestHandler):
    """Answers to the requests of one connection."""

    server: RangeServer
    protocol_version = "HTTP/1.1"
    # Head and body are sent one after the other: the body must not wait for the head's receipt.
    disable_nagle_algorithm = True

    def do_GET(self) -> None:
        """Send a file or the part of it that is asked for."""
        self.server.requests.append((self.client_address[1], self.path, self.headers["Range"]))
        time.sleep(self.server.latency)
        path = self.server.folder / self.path.partition("?")[0].lstrip("/")
        if not path.is_file():
            return self.send_error(404)
        size = path.stat().st_size
        first, last = 0, size - 1
        if part := re.fullmatch(r"bytes=(\d+)-(\d+)", self.headers["Range"] or ""):
            first, last = int(part[1]), min(int(part[2]), last)
        with path.open("rb") as file:
            file.seek(first)
            body = file.read(last - first + 1)
        headers = {"Content-Range": f"bytes {first}-{last}/{size}"} if part else {}
        self.answer(206 if part else 200, headers, body)

    def answer(self, status: int, headers: dict[str, str], body: bytes) -> None:
        """Send status, headers and body."""
        self.send_response(status)
        for name, value in (headers | {"Content-Length": str(len(body))}).items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:
        """Say nothing."""


@contextmanager
def serving(server: RangeServer) -> Iterator[RangeServer]:
    """A server whose threads run as long as the block."""
    with server:
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        yield server
        server.shutdown()


def main() -> None:
    """Serve until the process is ended."""
    with serving(RangeServer(Path(sys.argv[1]), float(sys.argv[2]))) as server:
        print(server.server_port, flush=True)
        threading.Event().wait()


if __name__ == "__main__":
    main()
