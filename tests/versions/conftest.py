"""A repository whose results DVC versions, and an HTTP server that keeps them."""

import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.conftest import raw_run_of
from tests.versions.actions import (
    CONFIG,
    DVC,
    ROOT,
    UNLOCK,
    attempt,
    commit,
    killed_when,
    run,
    tear_locks,
)

WHEN_KILLED = "dvc.lock when killed"


class Store(ThreadingHTTPServer):
    """A remote that keeps what is put to it whole; so many ``cut`` transfers are broken off."""

    daemon_threads = True
    cut = 0


@pytest.fixture(scope="session")
def store(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Store]:
    folder = tmp_path_factory.mktemp("store")

    class Handler(SimpleHTTPRequestHandler):
        def __init__(self, *args: Any) -> None:
            super().__init__(*args, directory=str(folder))

        def do_PUT(self) -> None:
            if http.cut:
                http.cut -= 1
                self.rfile.read1(100)
                self.close_connection = True
                return
            path = Path(self.translate_path(self.path))
            path.parent.mkdir(parents=True, exist_ok=True)
            if self.headers.get("Transfer-Encoding") == "chunked":
                body = b""
                while size := int(self.rfile.readline(), 16):
                    body += self.rfile.read(size)
                    self.rfile.readline()
                self.rfile.readline()
            else:
                body = self.rfile.read(int(self.headers["Content-Length"]))
            path.write_bytes(body)
            self.send_response(201)
            self.send_header("Content-Length", "0")
            self.end_headers()

        def do_GET(self) -> None:
            path = Path(self.translate_path(self.path))
            if not (http.cut and path.is_file()):
                return super().do_GET()
            http.cut -= 1
            body = path.read_bytes()
            self.send_response(200)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body[: len(body) // 2])
            self.close_connection = True
            return None

        def log_message(self, *_: object) -> None:
            """Nothing."""

    http = Store(("127.0.0.1", 0), Handler)
    threading.Thread(target=http.serve_forever, daemon=True).start()
    yield http
    http.shutdown()


@pytest.fixture(scope="session")
def origin(tiny: Path, store: Store, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A repository of this code with a tiny config, reproduced, committed and pushed.

    On the way there ``dvc repro`` is killed once, with its locks torn, and ``dvc push`` loses
    its connection; both are finished by the same command. What had been noted by the kill lies
    in ``WHEN_KILLED``.
    """
    folder = tmp_path_factory.mktemp("origin")
    listed = ["git", "ls-files", "-co", "--exclude-standard", "-z"]
    names = subprocess.run(listed, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    for name in filter(None, names.split("\0")):
        made = name.startswith("results/") and not name.startswith("results/published/")
        if not (made or name.startswith(("tests/", "dvc.lock"))) and (ROOT / name).is_file():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, folder / name, follow_symlinks=False)
    shutil.copy(tiny / "datasets.yaml", folder / "data" / "datasets.yaml")
    config = {
        "name": "tiny",
        "dataset": "tiny",
        "vit": raw_run_of("ijepa")["vit"],
        "seeds": [0],
        "threads": 1,
        "raw": {"tiny": str(tiny / "raw")},
        "runs": [{**raw_run_of(name), "name": name} for name in ("ijepa", "mae")],
        "evaluations": [
            {"name": "knn", "config": {"num_neighbours": 5}},
            {"name": "feature_statistics"},
        ],
        "tables": [
            {"name": "table", "title": "Tiny", "evaluations": ["knn", "feature_statistics"]}
        ],
    }
    (folder / CONFIG).write_text(yaml.safe_dump(config, sort_keys=False))
    run(folder, sys.executable, "-m", "workflow.scripts.dvc_stages", str(CONFIG))
    run(folder, "git", "init", "-q")
    commit(folder)
    trained = "results/tiny/runs/*/seed0/encoder.safetensors"
    killed_when(lambda: list(folder.glob(trained)), folder, *DVC, "repro")
    shutil.copy(folder / "dvc.lock", folder.with_name(WHEN_KILLED))
    tear_locks(folder)
    assert "RWLock-file" in attempt(folder, *DVC, "repro").stderr
    run(folder, *UNLOCK)
    run(folder, *DVC, "repro")
    run(folder, *DVC, "remote", "add", "-d", "store", f"http://127.0.0.1:{store.server_port}")
    run(folder, *DVC, "remote", "modify", "store", "method", "PUT")
    store.cut = 5
    assert attempt(folder, *DVC, "push").returncode != 0
    store.cut = 0
    run(folder, *DVC, "push")
    commit(folder)
    return folder
