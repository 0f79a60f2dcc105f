"""A clone, a pull, nothing to do: DVC and Snakemake agree (real dvc, git and an HTTP server)."""

import json
import os
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

from evals.audit import check
from evals.provenance import trace
from ijepa.errors import UserError
from tests.conftest import raw_run_of
from workflow.scripts.dvc_stages import text_of

ROOT = Path(__file__).parents[1]
DVC = [sys.executable, "-m", "dvc"]
SETTLE = [sys.executable, "-m", "workflow.scripts.versioned", "settle"]
CONFIG = Path("config/tiny.yaml")
PLAN = [sys.executable, "-m", "snakemake", "-n", "--profile", "workflow/profiles/local"]


class Store(ThreadingHTTPServer):
    """A remote that keeps what is put to it; ``cut`` answers are broken off half-way."""

    daemon_threads = True
    cut = 0


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Store]:
    folder = tmp_path_factory.mktemp("store")

    class Handler(SimpleHTTPRequestHandler):
        def __init__(self, *args: Any) -> None:
            super().__init__(*args, directory=str(folder))

        def do_PUT(self) -> None:
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


def run(folder: Path, *command: str) -> str:
    """What a command says; it must succeed."""
    done = attempt(folder, *command)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr


def attempt(folder: Path, *command: str) -> subprocess.CompletedProcess[str]:
    env = {key: value for key, value in os.environ.items() if key != "IJEPA_REGISTER"}
    env |= {"PATH": f"{Path(sys.executable).parent}:{env['PATH']}", "OMP_NUM_THREADS": "1"}
    return subprocess.run(command, cwd=folder, env=env, capture_output=True, text=True, check=False)


def commit(folder: Path) -> None:
    run(folder, "git", "add", "-A")
    run(folder, "git", "-c", "user.name=a", "-c", "user.email=a@b", "commit", "-qm", "a commit")


@pytest.fixture(scope="module")
def origin(tiny: Path, store: Store, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A repository of this code with a tiny config, reproduced, committed and pushed."""
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
    run(folder, *DVC, "repro")
    run(folder, *DVC, "remote", "add", "-d", "store", f"http://127.0.0.1:{store.server_port}")
    run(folder, *DVC, "remote", "modify", "store", "method", "PUT")
    run(folder, *DVC, "push")
    commit(folder)
    return folder


def clone_of(origin: Path, folder: Path) -> Path:
    run(origin, "git", "clone", "-q", str(origin), str(folder))
    return folder


def finished(said: str) -> list[str]:
    """The rules whose jobs ran, in order."""
    return [line.split("Rule: ")[1].rstrip(")") for line in said.splitlines() if "(Rule: " in line]


def test_the_committed_stages_are_those_of_their_configs(monkeypatch: pytest.MonkeyPatch) -> None:
    text = (ROOT / "dvc.yaml").read_text()
    configs = text.splitlines()[0].split("dvc_stages ")[1].split()
    monkeypatch.chdir(ROOT)
    assert text == text_of([Path(config) for config in configs])


def test_after_a_clone_and_a_pull_there_is_nothing_to_do(
    origin: Path, store: Store, tmp_path: Path
) -> None:
    """Also where the connection is lost on the way: the same command again finishes."""
    clone = clone_of(origin, tmp_path / "clone")
    store.cut = 3
    attempt(clone, *DVC, "pull")
    store.cut = 0
    run(clone, *DVC, "pull")
    run(clone, *SETTLE)
    planned = run(clone, *PLAN, "--configfile", str(CONFIG))
    assert "Nothing to be done" in planned
    assert "up to date" in run(clone, *DVC, "status")
    same = ("data/shards/tiny", "results/tiny/runs")
    for path in (path for place in same for path in (origin / place).rglob("*.[st]a[fr]*")):
        assert (clone / path.relative_to(origin)).read_bytes() == path.read_bytes()


def test_in_a_clone_a_changed_evaluation_makes_that_evaluation_and_no_other(
    origin: Path, tmp_path: Path
) -> None:
    clone = clone_of(origin, tmp_path / "clone")
    run(clone, *DVC, "pull")
    config = (clone / CONFIG).read_text()
    (clone / CONFIG).write_text(config.replace("num_neighbours: 5", "num_neighbours: 7"))
    said = run(clone, *DVC, "repro")
    assert "Stage 'encoders-tiny' didn't change, skipping" in said
    assert finished(said).count("evaluate") == 4  # knn of two encoders and two controls
    assert {"pretrain", "extract_features", "extract_pixels"}.isdisjoint(finished(said))
    result = json.loads((clone / "results/tiny/evaluations/mae/seed0/knn.json").read_text())
    assert result["protocol"]["num_neighbours"] == 7
    shown = json.loads(run(clone, *DVC, "metrics", "diff", "--json"))
    changed = shown["results/tiny/metrics.json"]
    assert {key.split(".")[-1] for key in changed} <= {"knn"}
    assert "up to date" in run(clone, *DVC, "status")


def test_in_a_clone_a_changed_recipe_trains_that_run_and_no_other(
    origin: Path, tmp_path: Path
) -> None:
    clone = clone_of(origin, tmp_path / "clone")
    run(clone, *DVC, "pull")
    said = run(clone, *DVC, "exp", "run", "-S", f"{CONFIG}:runs.1.recipe.decoder_depth=2")
    assert finished(said).count("pretrain") == 1
    assert finished(said).count("extract_features") == 1
    assert finished(said).count("evaluate") == 2
    assert "decoder_depth: 2" in (clone / "results/tiny/runs/mae/seed0/run.yaml").read_text()
    assert "results/tiny/metrics.json" in run(clone, *DVC, "exp", "show", "--json")


def test_an_old_result_is_never_noted_under_new_parameters(origin: Path, tmp_path: Path) -> None:
    """Without records, times say that all is up to date: the content must say that it is not."""
    clone = clone_of(origin, tmp_path / "clone")
    run(clone, *DVC, "pull")
    run(clone, *SETTLE)
    before = (clone / "dvc.lock").read_text()
    config = (clone / CONFIG).read_text()
    (clone / CONFIG).write_text(config.replace("num_neighbours: 5", "num_neighbours: 7"))
    shutil.rmtree(clone / ".snakemake")
    for records in clone.glob("results/tiny/*.records.json"):
        records.unlink()
    done = attempt(clone, *DVC, "repro", "tables-tiny", "--single-item")
    said = done.stdout + done.stderr
    assert done.returncode != 0
    assert "has protocol.num_neighbours 5, not 7" in said
    assert (clone / "dvc.lock").read_text() == before


def test_a_cell_of_a_table_leads_to_its_origin(origin: Path) -> None:
    found = trace(origin / "results/tiny/tables/table", "mae")
    assert {one["evaluation"] for one in found} == {"knn", "feature_statistics"}
    for one in found:
        assert Path(one["result"]).exists()
        assert one["seed"] == "0"
        assert one["commit"] == one["commit of the encoder"] != "unknown"
        assert json.loads(one["config of the encoder"])["method"] == "mae"
    with pytest.raises(UserError, match="has no row 'maee': there are ijepa, mae"):
        trace(origin / "results/tiny/tables/table", "maee")
    with pytest.raises(UserError, match="does not exist: tables here are gpu_hours, table"):
        trace(origin / "results/tiny/tables/nope", "mae")


def test_what_an_earlier_config_left_is_named(
    origin: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(origin)
    with pytest.raises(UserError, match="results/tiny/runs/mae/seed0 is of an earlier config"):
        check(
            {
                "encoders": {},
                "folder": "results/tiny/runs",
            }
        )
