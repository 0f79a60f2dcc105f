"""A repository whose results DVC versions, and an HTTP server that stores them.

Every worker of pytest-xdist has its own server. The folder behind the servers, the
repository and clones of it are made once, by the worker that needs them first.
"""

import json
import os
import shutil
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import yaml
from filelock import FileLock

from tests.conftest import raw_run_of
from tests.versions.actions import (
    CONFIG,
    DVC,
    LOCAL,
    QUICK,
    ROOT,
    UNLOCK,
    attempt,
    change_evaluation,
    clone_of,
    commit,
    disk,
    full,
    killed_when,
    pull_and_settle,
    run,
    set_address,
    tear_locks,
)

WHEN_KILLED = "dvc.lock when killed"


class Store(ThreadingHTTPServer):
    """A remote that stores what is put to it whole; so many ``cut`` transfers are broken off."""

    daemon_threads = True
    cut = 0

    @property
    def address(self) -> str:
        """Address that DVC is given."""
        return f"http://127.0.0.1:{self.server_port}"


@pytest.fixture(scope="session")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder that all workers of this session see."""
    own = tmp_path_factory.getbasetemp()
    return own.parent if "PYTEST_XDIST_WORKER" in os.environ else own


def made_once(folder: Path, make: Callable[[Path], None]) -> Path:
    """A folder that the first worker makes, while others wait for it."""
    with FileLock(f"{folder}.lock"):
        marker = folder.with_name(f"{folder.name}.done")
        if not marker.exists():
            assert not folder.exists(), "another worker failed to make it"
            folder.mkdir()
            make(folder)
            marker.touch()
    return folder


@pytest.fixture(scope="session")
def store(shared: Path) -> Iterator[Store]:
    """This worker's server."""
    folder = shared / "store"
    folder.mkdir(exist_ok=True)

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
def origin(tiny: Path, store: Store, shared: Path) -> Path:
    """A repository of this code with a tiny config, reproduced, committed and pushed; read only.

    The table has one pretrained network and both controls. On the way there ``dvc repro`` is killed
    once, with its locks torn, and ``dvc push`` loses its connection; both are finished by the same
    command. The lock file as the kill left it lies in ``WHEN_KILLED``.
    """

    def make(folder: Path) -> None:
        copy_code(folder)
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
                {"name": "feature_statistics", "config": {"resamples": 40}},
            ],
            "tables": [
                {
                    "name": "table",
                    "title": "Tiny",
                    "evaluations": ["knn", "feature_statistics"],
                    # The untrained network is that of the first run, which itself is not trained.
                    "runs": ["mae", "random_init", "pixels"],
                }
            ],
        }
        (folder / CONFIG).write_text(yaml.safe_dump(config, sort_keys=False))
        (folder / QUICK).mkdir()
        local = (folder / LOCAL / "config.yaml").read_text()
        (folder / QUICK / "config.yaml").write_text(f"{local}no-hooks: true\n")
        run(folder, sys.executable, "-m", "workflow.scripts.dvc_stages", str(CONFIG))
        with (folder / ".dvc" / "config").open("a") as file:
            file.write("    remote = store\n['remote \"store\"']\n    method = PUT\n")
            file.write(f"    url = {store.address}\n")
        run(folder, "git", "init", "-q")
        commit(folder)
        encoders = "results/tiny/runs/*/seed0/encoder.safetensors"
        killed_when(lambda: list(folder.glob(encoders)), folder, *DVC, "repro")
        shutil.copy(folder / "dvc.lock", folder.with_name(WHEN_KILLED))
        tear_locks(folder)
        assert "RWLock-file" in attempt(folder, *DVC, "repro").stderr
        run(folder, *UNLOCK)
        run(folder, *DVC, "repro")
        store.cut = 5
        assert attempt(folder, *DVC, "push").returncode != 0
        store.cut = 0
        run(folder, *DVC, "push")
        commit(folder)

    return made_once(shared / "origin", make)


def copy_code(folder: Path) -> None:
    """Copy this repository's files as they are now, without results and tests."""
    listed = ["git", "ls-files", "-co", "--exclude-standard", "-z"]
    names = subprocess.run(listed, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    for name in filter(None, names.split("\0")):
        made = name.startswith("results/") and not name.startswith("results/published/")
        if not (made or name.startswith(("tests/", "dvc.lock"))) and (ROOT / name).is_file():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, folder / name, follow_symlinks=False)


@pytest.fixture
def clone(origin: Path, store: Store, tmp_path: Path) -> Path:
    """A clone of the repository, without results."""
    return clone_of(origin, tmp_path / "clone", store.address)


@pytest.fixture
def pulled(origin: Path, store: Store, shared: Path, tmp_path: Path) -> Path:
    """A clone as ``dvc pull`` leaves it: a copy of one that was pulled once."""

    def make(folder: Path) -> None:
        run(clone_of(origin, folder, store.address), *DVC, "pull")

    first = made_once(shared / "pulled", make)
    copy = Path(shutil.copytree(first, tmp_path / "pulled", symlinks=True))
    set_address(copy, store.address)
    return copy


@dataclass(frozen=True)
class Changed:
    """A clone whose evaluation was changed and made, on a disk that had no room at first.

    Attributes:
        clone: The clone's folder.
        output: Output of ``dvc repro``.
        no_disk: Reason why there was room all the time: no disk can be mounted here.
        when_full: Exit status of ``dvc pull`` and ``dvc repro`` without room.
        locks: Text of dvc.lock before and after that ``dvc repro``.
    """

    clone: Path
    output: str
    no_disk: str
    when_full: list[int]
    locks: list[str]


@pytest.fixture
def changed(origin: Path, store: Store, shared: Path, tmp_path: Path) -> Changed:
    """A clone whose evaluation was changed and made: a copy of one that was made once."""

    def make(folder: Path) -> None:
        small, when_full = folder / "disk", []
        small.mkdir()
        with disk("small", small) as no_disk:
            clone = clone_of(origin, small / "clone", store.address)
            if not no_disk:
                with full(small, room=100_000):
                    when_full.append(attempt(clone, *DVC, "pull").returncode)
                run(small, "mount", "-o", "remount,size=200m", str(small))
            pull_and_settle(clone)
            change_evaluation(clone)
            locks = [(clone / "dvc.lock").read_text()]
            if not no_disk:
                with full(small):
                    when_full.append(attempt(clone, *DVC, "repro").returncode)
            locks.append((clone / "dvc.lock").read_text())
            run(clone, *UNLOCK)
            output = run(clone, *DVC, "repro")
            shutil.copytree(clone, folder / "clone", symlinks=True)
        record = {"output": output, "no_disk": no_disk, "when_full": when_full, "locks": locks}
        (folder / "record.json").write_text(json.dumps(record))

    first = made_once(shared / "changed", make)
    copy = Path(shutil.copytree(first / "clone", tmp_path / "changed", symlinks=True))
    return Changed(copy, **json.loads((first / "record.json").read_text()))
