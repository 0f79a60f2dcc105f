"""A hub on this machine that answers as the Hub does: repositories, uploads, gated files.

Paths and answers are those that huggingface_hub 2.4 asks for (hf_api.py, _commit_api.py, lfs.py).
"""

import base64
import contextlib
import http.server
import json
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

TOKEN = "hf_of_the_tests"


@dataclass
class Hub:
    """Address of the server, and what was uploaded: files by name, one repository."""

    address: str = ""
    files: dict[str, bytes] = field(default_factory=dict)
    objects: dict[str, bytes] = field(default_factory=dict)
    gated: dict[str, bytes] = field(default_factory=dict)
    requests: list[str] = field(default_factory=list)

    def answer(self, path: str, body: bytes) -> Any:
        """Answer to a POST request with a valid token."""
        if path == "/api/repos/create":
            name = json.loads(body)["name"]
            return {"url": f"{self.address}/me/{name}", "name": f"me/{name}"}
        if path == "/api/validate-yaml":
            return {"errors": [], "warnings": []}
        if "/preupload/" in path:
            return {"files": [self.upload_mode(file["path"]) for file in json.loads(body)["files"]]}
        if path.endswith("/info/lfs/objects/batch"):
            objects = [self.upload_action(item) for item in json.loads(body)["objects"]]
            return {"transfer": "basic", "objects": objects}
        assert "/commit/" in path, path
        for line in map(json.loads, body.splitlines()):
            value = line["value"]
            if line["key"] == "file":
                self.files[value["path"]] = base64.b64decode(value["content"])
            elif line["key"] == "lfsFile":
                self.files[value["path"]] = self.objects[value["oid"]]
        url = f"{self.address}/me/encoder/commit/{'a' * 40}"
        return {"success": True, "commitOid": "a" * 40, "commitUrl": url}

    def upload_mode(self, path: str) -> dict[str, Any]:
        """Large files go to the object store, others with the commit."""
        mode = "lfs" if path.endswith(".safetensors") else "regular"
        return {"path": path, "uploadMode": mode, "shouldIgnore": False}

    def upload_action(self, item: dict[str, Any]) -> dict[str, Any]:
        """Address in the object store."""
        return {**item, "actions": {"upload": {"href": f"{self.address}/store/{item['oid']}"}}}


@contextlib.contextmanager
def serving() -> Iterator[Hub]:
    """A hub that listens; every request but those to the object store needs TOKEN."""
    hub = Hub()

    class Handler(http.server.BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *args: object) -> None:
            pass

        def reply(self, status: int, content: bytes) -> None:
            self.send_response(status)
            self.send_header("Content-Length", str(len(content)))
            if status == 401:
                self.send_header("X-Error-Message", "Invalid username or password.")
            self.end_headers()
            self.wfile.write(content)

        def body(self) -> bytes:
            return self.rfile.read(int(self.headers.get("Content-Length", 0)))

        def known(self) -> bool:
            hub.requests.append(self.path)
            return self.headers.get("Authorization") == f"Bearer {TOKEN}"

        def do_POST(self) -> None:
            body = self.body()
            if not self.known():
                return self.reply(401, b'{"error": "Invalid username or password."}')
            return self.reply(200, json.dumps(hub.answer(self.path, body)).encode())

        def do_PUT(self) -> None:
            hub.objects[self.path.rpartition("/")[2]] = self.body()
            self.reply(200, b"")

        def do_GET(self) -> None:
            if not self.known():
                return self.reply(401, b"Access to this dataset is restricted.")
            content = hub.gated.get(self.path)
            return self.reply(404, b"") if content is None else self.reply(200, content)

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        hub.address = f"http://127.0.0.1:{server.server_port}"
        yield hub
        server.shutdown()
