"""Shards that lie at an address: the same results as from local files, whatever the server does."""

import itertools
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from benchmarks import streaming
from benchmarks.range_server import Handler, RangeServer, serving
from evals.features import extract
from ijepa import train
from ijepa.config import parse_run
from ijepa.data import remote, shards
from ijepa.data.__main__ import main
from ijepa.data.loader import EvaluationViews, Images, TrainingViews, View, evaluation_batches
from ijepa.data.mirror import mirror
from ijepa.data.transforms import Crop
from ijepa.errors import UserError
from tests.conftest import Trained, raw_run_of
from tests.test_train import log_of, state, wait_for_checkpoint, weights
from tests.test_workflow import plan

TRIES, TIMEOUT = 4, 0.1


class FaultyServer(RangeServer):
    """A server whose ``faults`` say for each request what goes wrong; None is nothing."""

    faults: Iterator[str | int | None] = iter(())
    secret = ""
    barrier: threading.Barrier | None = None

    def __init__(self, folder: Path) -> None:
        super().__init__(folder, handler=FaultyHandler)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Say nothing: clients leave slow answers."""


class FaultyHandler(Handler):
    server: FaultyServer

    def answer(self, status: int, headers: dict[str, str], body: bytes) -> None:
        if self.server.barrier:
            self.server.barrier.wait(30)
        fault = next(self.server.faults, None)
        if self.server.secret not in f"{self.path} {self.headers['Authorization']}":
            fault = 403
        if isinstance(fault, int):
            return self.send_error(fault)
        if fault == "stalls":
            time.sleep(5 * TIMEOUT)
        if fault == "whole":
            status, headers = 200, {}
        if fault == "other part":
            headers = {"Content-Range": "bytes 0-9/1000"}
        if fault == "too short":
            body = body[:-1]
        if fault == "breaks off":
            self.wfile = Half(self.wfile, len(body))  # type: ignore[assignment]
        super().answer(status, headers, body)
        if fault in ("closes", "breaks off"):
            self.close_connection = True


class Half:
    """Stream that loses the second half of a body."""

    def __init__(self, stream: Any, length: int) -> None:
        self.stream, self.length = stream, length

    def write(self, content: bytes) -> None:
        half = len(content) == self.length
        self.stream.write(content[: len(content) // 2] if half else content)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.stream, name)


@pytest.fixture
def server(data: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[FaultyServer]:
    monkeypatch.setattr(remote, "PAUSES", (0,) * (TRIES - 2))
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    monkeypatch.delenv(remote.SECRETS, raising=False)
    server = FaultyServer(data)
    with serving(server):
        yield server


@pytest.fixture
def mirrored(server: FaultyServer, tmp_path: Path) -> Path:
    mirror(server.address, tmp_path / "mirror")
    server.requests.clear()
    return tmp_path / "mirror"


@pytest.fixture
def served(data: Path, server: FaultyServer, tmp_path: Path) -> Path:
    """A copy of the shards, in place of those that the server gives."""
    server.folder = Path(shutil.copytree(data, tmp_path / "served"))
    return server.folder


def run(raw: dict[str, Any], data: Path, folder: Path) -> Path:
    out = folder / "out" / "encoder.safetensors"
    train.train(parse_run(raw), data, folder / "work", out)
    return out


def assert_same(out: Path, expected: Path) -> None:
    assert log_of(out) == log_of(expected)
    both = weights(out), weights(expected)
    assert all(value.equal(both[1][name]) for name, value in both[0].items())


def test_a_training_from_an_address_equals_one_from_local_files(
    trained: Trained, mirrored: Path, tmp_path: Path
) -> None:
    out = run(raw_run_of("ijepa") | {"num_workers": 2}, mirrored, tmp_path)
    assert_same(out, trained("ijepa"))
    assert not list(mirrored.glob("*.tar"))


def test_a_training_whose_server_fails_goes_on_where_it_was(
    trained: Trained, server: FaultyServer, mirrored: Path, tmp_path: Path
) -> None:
    raw = raw_run_of("ijepa")
    checkpoint = state(raw, mirrored, tmp_path) / "checkpoint.pt"
    server.faults = map(lambda _: 404 if checkpoint.exists() else None, itertools.count())
    with pytest.raises(UserError, match=r"train-0000\d\.tar: the server answers 404"):
        run(raw, mirrored, tmp_path)
    assert 0 < torch.load(checkpoint)["step"] < 8
    server.faults = iter(())
    assert_same(run(raw, mirrored, tmp_path), trained("ijepa"))


@pytest.mark.processes
def test_a_training_from_an_address_that_is_killed_ends_like_an_undisturbed_one(
    data: Path, mirrored: Path, tmp_path: Path
) -> None:
    """Over 5 s: Python is started twice, and 16 steps are trained twice."""
    raw = raw_run_of("ijepa") | {"num_workers": 2}
    raw["recipe"]["optim"]["epochs"] = 4
    (tmp_path / "run.yaml").write_text(yaml.safe_dump(raw))
    out = tmp_path / "out" / "encoder.safetensors"
    command = [sys.executable, "-m", "ijepa.train", str(tmp_path / "run.yaml")]
    command += ["--data", str(mirrored), "--work", str(tmp_path / "work"), "--out", str(out)]
    process = subprocess.Popen(command, start_new_session=True, stderr=subprocess.DEVNULL)
    wait_for_checkpoint(state(raw, mirrored, tmp_path) / "train.jsonl", 6)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    assert not out.exists(), "the run ended before it could be killed"
    subprocess.run(command, check=True, stderr=subprocess.DEVNULL)
    assert_same(out, run(raw, data, tmp_path / "local"))


def test_features_from_an_address_equal_those_from_local_files(
    trained: Trained, data: Path, mirrored: Path, tmp_path: Path
) -> None:
    features = {}
    for name, folder in (("local", data), ("mirror", mirrored)):
        extract(trained("ijepa"), folder, tmp_path / "features" / name / "about.json")
        files = (tmp_path / "features" / name).glob("*.npy")
        features[name] = {path.name: path.read_bytes() for path in files}
    assert features["local"].keys() >= {"train.npy", "test.npy"}
    assert features["local"] == features["mirror"]


@pytest.mark.parametrize(
    "faults",
    [["breaks off"] * 3, ["too short"], [503, 429, 500], ["closes"] * 20],
)
def test_faults_that_pass_change_no_byte(
    data: Path, server: FaultyServer, mirrored: Path, faults: list[str | int]
) -> None:
    server.faults = iter(faults)
    images, local = Images(mirrored, "train"), Images(data, "train")
    numbers = range(0, 128, 8)
    assert [images.encoded(n) for n in numbers] == [local.encoded(n) for n in numbers]
    failed = [fault for fault in faults if fault != "closes"]
    assert len(server.requests) == len(numbers) + len(failed)


@pytest.mark.parametrize(
    ("fault", "message", "tries"),
    [
        ("breaks off", r"IncompleteRead\(.*, 4 times: check the network", TRIES),
        ("too short", r"bytes came instead of", TRIES),
        ("stalls", r"timed out, 4 times", TRIES),
        (503, r"the server answers 503 Service Unavailable, 4 times", TRIES),
        ("whole", r"the server answers 200 OK: this server gives only whole files", 1),
        ("other part", r"asked for bytes \d+-\d+, the server gives 'bytes 0-9/1000'", 1),
        (403, r"the server answers 403 Forbidden: set HF_TOKEN .* or IJEPA_DATA_ADDRESS", 1),
        (404, r"the server answers 404 Not Found: if the shards have moved, mirror their", 1),
    ],
)
def test_faults_that_stay_are_one_error_that_names_address_shard_and_remedy(
    server: FaultyServer,
    mirrored: Path,
    fault: str | int,
    message: str,
    tries: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Requests are made again only where that may help."""
    if fault == "stalls":  # others may take long on a busy machine
        monkeypatch.setattr(remote, "TIMEOUT_SECONDS", TIMEOUT)
    server.faults = itertools.repeat(fault)
    with pytest.raises(UserError) as failure:
        Images(mirrored, "train")[50]
    text = str(failure.value)
    assert text.startswith(f"{server.address}/train-00001.tar: ")
    assert re.search(message, text)
    assert "copy the file into the folder of the shards" in text
    assert "\n" not in text
    assert len(server.requests) == tries


def test_fast_pixels_take_a_failed_request_for_no_fault_of_a_jpeg(
    server: FaultyServer, mirrored: Path
) -> None:
    server.faults = itertools.repeat(404)
    views = TrainingViews(Images(mirrored, "train"), [View(32, Crop())], 0, pixels="fast")
    with pytest.raises(UserError, match="the server answers 404"):
        views[0, 50]
    assert len(server.requests) == 1


def test_without_a_server_the_error_says_so(server: FaultyServer, mirrored: Path) -> None:
    server.shutdown()
    server.server_close()
    with pytest.raises(UserError, match=r"train-00000\.tar: .*Connection refused, 4 times"):
        Images(mirrored, "train").encoded(0)


def test_a_connection_stays_open_and_a_forked_loader_has_its_own(
    data: Path, server: FaultyServer, mirrored: Path
) -> None:
    images = Images(mirrored, "train")
    for number in range(20):
        images.encoded(number)
    (ours,) = {port for port, *_ in server.requests}
    server.requests.clear()
    batches = evaluation_batches(EvaluationViews(images, 32), 16, num_workers=2)
    local = evaluation_batches(EvaluationViews(Images(data, "train"), 32), 16, num_workers=0)
    assert torch.cat(list(batches)).equal(torch.cat(list(local)))
    ports = [port for port, *_ in server.requests]
    assert ports.count(ours) <= 1, "the first image, which tells the size of all, is the parent's"
    assert len(set(ports)) - 1 <= 2 * remote.CONNECTIONS


def test_images_of_a_batch_are_read_at_the_same_time(
    data: Path, server: FaultyServer, mirrored: Path
) -> None:
    server.barrier = threading.Barrier(4)
    images, local = Images(mirrored, "train"), Images(data, "train")
    images.read_ahead(range(40, 56))
    server.barrier = None
    assert [images.encoded(n) for n in range(40, 56)] == [local.encoded(n) for n in range(40, 56)]
    assert len(server.requests) == 16


def test_a_tar_that_is_copied_later_is_read_at_once_but_not_before_it_is_whole(
    data: Path, server: FaultyServer, mirrored: Path
) -> None:
    images, local = Images(mirrored, "train"), Images(data, "train")
    whole = (data / "train-00000.tar").read_bytes()
    (mirrored / "train-00000.tar").write_bytes(whole[: len(whole) // 2])
    assert images.encoded(47) == local.encoded(47)
    assert len(server.requests) == 1
    (mirrored / "train-00000.tar").write_bytes(whole)
    assert images.encoded(46) == local.encoded(46)
    images.read_ahead([45, 48])
    assert len(server.requests) == 2


def test_an_image_whose_bytes_at_the_address_are_damaged_is_named_with_the_address(
    server: FaultyServer, mirrored: Path, served: Path
) -> None:
    tar = served / "train-00001.tar"
    offset, size = shards.read_shard(tar).places[3]
    content = bytearray(tar.read_bytes())
    content[offset : offset + size] = bytes(size)
    tar.write_bytes(content)
    tar_there = re.escape(f"{server.address}/train-00001.tar")
    with pytest.raises(UserError, match=rf"image 51 in {tar_there} .*SHA-256"):
        Images(mirrored, "train")[51]


def test_a_mirror_is_verified_without_reading_its_tars(
    server: FaultyServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Mirrored and verified by the commands."""
    for words in (["mirror", server.address], ["verify"]):
        server.requests.clear()
        monkeypatch.setattr(sys, "argv", ["data", *words, "--out", str(tmp_path / "mirror")])
        main()
    asked = {path: part for _, path, part in server.requests}
    tars = {f"/{path.name}": "bytes=0-0" for path in server.folder.glob("*.tar")}
    assert asked == {"/index.json": None, **tars}


def test_what_is_wrong_in_a_mirror_or_at_its_address_is_told_at_the_start(
    data: Path, served: Path, mirrored: Path, server: FaultyServer
) -> None:
    def put(path: Path, content: bytes | None) -> None:
        path.unlink(missing_ok=True)
        if content is not None:
            path.write_bytes(content)

    def refused(path: Path, content: bytes | None, message: str) -> None:
        whole = path.read_bytes() if path.exists() else None
        put(path, content)
        with pytest.raises(UserError, match=message):
            shards.verify(mirrored)
        put(path, whole)
        shards.verify(mirrored)

    tar = (data / "train-00001.tar").read_bytes()
    index = json.loads((data / "index.json").read_bytes())
    index["splits"]["test"][0]["sha256"] = "0" * 64
    mend = rf"delete them, then python -m ijepa\.data mirror {server.address} --out "
    refused(mirrored / "train-00001.json", b"{}", rf"train-00001\.json is damaged.*{mend}")
    refused(mirrored / "train-00001.tar", tar[:-1] + b"1", rf"train-00001\.tar is damaged.*{mend}")
    refused(mirrored / remote.NOTE, None, r"train-00000\.tar is missing.*make shards")
    refused(mirrored / remote.NOTE, b"[]", r"address\.json has no address: delete it")
    refused(served / "train-00001.tar", tar[:20_000], r"has 20,000 bytes, its images end at")
    refused(served / "train-00001.tar", None, r"train-00001\.tar: the server answers 404")
    other = json.dumps(index).encode()
    refused(served / "index.json", other, r"has version \w+, .* mirrors version \w+: mirror it")
    refused(served / "index.json", b"[]", r"has version unknown")
    server.faults = itertools.chain([None], itertools.repeat("whole"))
    with pytest.raises(UserError, match="gives only whole files"):
        shards.verify(mirrored)


def test_a_shards_index_that_is_not_that_of_the_whole_is_refused(
    served: Path, server: FaultyServer, tmp_path: Path
) -> None:
    path = served / "train-00001.json"
    path.write_text(path.read_text().replace(" 7", " 6", 1))
    with pytest.raises(UserError, match=r"train-00001\.json has SHA-256 \w+, index\.json there"):
        mirror(server.address, tmp_path / "mirror")
    assert not (tmp_path / "mirror" / "index.json").exists()


def test_a_folder_of_another_version_is_refused_and_one_of_the_same_is_completed(
    data: Path, served: Path, server: FaultyServer, mirrored: Path
) -> None:
    (mirrored / "train-00001.json").write_text("torn")
    written = (mirrored / "index.json").stat().st_mtime_ns
    mirror(f"{server.address}/", mirrored)
    assert [path for _, path, _ in server.requests] == ["/index.json", "/train-00001.json"]
    assert (mirrored / "index.json").stat().st_mtime_ns == written
    shards.verify(mirrored)
    index = json.loads((data / "index.json").read_bytes())
    index["splits"]["test"][0]["sha256"] = "0" * 64
    (served / "index.json").write_text(json.dumps(index))
    before = {path.name: path.read_bytes() for path in mirrored.iterdir()}
    with pytest.raises(UserError, match=r"holds tiny in version \w+, .* in version \w+: choose"):
        mirror(server.address, mirrored)
    assert {path.name: path.read_bytes() for path in mirrored.iterdir()} == before


def test_addresses_and_indices_that_cannot_be_mirrored_are_refused(
    served: Path, server: FaultyServer, tmp_path: Path
) -> None:
    for address in ("s3://bucket/shards", "shards", "http://", "http://host:port/", "https://[x"):
        with pytest.raises(UserError, match="is no address of shards: give http"):
            mirror(address, tmp_path / "mirror")
    text = (served / "index.json").read_text()
    for wrong in ("<html>", "[]", "{}", text.replace("test-00000.tar", "../test-00000.tar")):
        (served / "index.json").write_text(wrong)
        with pytest.raises(UserError, match=r"/index\.json is no index of shards"):
            mirror(server.address, tmp_path / "mirror")
    assert not list(tmp_path.rglob("mirror/*.json"))


@pytest.mark.parametrize("opened", ["query", "user"])
def test_a_secret_of_an_address_opens_it_and_is_written_nowhere(
    server: FaultyServer,
    data: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
    opened: str,
) -> None:
    server.secret = "sig=SECRET" if opened == "query" else "Basic bWU6U0VDUkVU"  # me:SECRET
    user, query = ("", "/?sv=1&sig=SECRET") if opened == "query" else ("me:SECRET@", "")
    address = f"http://{user}127.0.0.1:{server.server_port}{query}"
    out = tmp_path / "mirror"
    mirror(address, out)
    assert json.loads((out / remote.NOTE).read_text()) == {"address": server.address}
    assert "noted without its user or query: set IJEPA_DATA_ADDRESS" in capfd.readouterr().out
    with pytest.raises(UserError, match=r"403 Forbidden: set .* or IJEPA_DATA_ADDRESS"):
        Images(out, "train").encoded(0)
    monkeypatch.setenv(remote.SECRETS, f"http://other/ {address}")
    assert Images(out, "train").encoded(0) == Images(data, "train").encoded(0)
    shards.verify(out)
    server.shutdown()
    server.server_close()
    with pytest.raises(UserError) as failure:
        Images(out, "train").encoded(1)
    written = b"".join(path.read_bytes() for path in out.rglob("*"))
    assert "SECRET" not in f"{failure.value} {capfd.readouterr()} {written!r}"


def test_shards_on_the_hub_are_read_with_the_token_of_the_environment(
    served: Path, server: FaultyServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_ENDPOINT", server.address)
    monkeypatch.setenv("HF_TOKEN", "hf_SECRET")
    server.secret, server.folder = "Bearer hf_SECRET", tmp_path / "hub"
    folder = server.folder / "datasets" / "me" / "tiny" / "resolve" / "main" / "shards"
    shutil.copytree(served, folder)
    mirror("hf://datasets/me/tiny/shards", tmp_path / "mirror")
    shards.verify(tmp_path / "mirror")
    local = Images(served, "test").encoded(3)
    assert Images(tmp_path / "mirror", "test").encoded(3) == local


@pytest.mark.processes
def test_the_workflow_takes_a_mirror_for_made_shards(
    mini: dict[str, Any], server: FaultyServer, tmp_path: Path
) -> None:
    """Over 5 s: Snakemake. Nothing of the data set's raw files is there."""
    mirror(server.address, tmp_path / "data" / "shards" / "cifar10")
    done = plan(mini, tmp_path, "-n")
    assert done.returncode == 0, done.stderr
    made = re.findall(r"data/shards/(\w+)/index\.json", done.stdout + done.stderr)
    stats = dict(re.findall(r"^(\w+) +(\d+)$", done.stdout + done.stderr, re.MULTILINE))
    assert "clevr_tiny" in made
    assert stats["fetch"] == stats["build_shards"] == "1"


def test_a_small_benchmark_prints_a_table(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    few = ["--images", "500", "--latencies", "1", "--seconds", "0.1"]
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    monkeypatch.setattr(sys, "argv", ["streaming", *few])
    streaming.main()
    table = capsys.readouterr().out
    assert re.search(r"^\| local files \| [\d,]+ \| [\d,]+ \| [\d,]+ \|$", table, re.MULTILINE)
    assert re.search(r"^\| server, 1 ms \| [\d,]+ \| [\d,]+ \| [\d,]+ \|$", table, re.MULTILINE)


def test_a_server_that_is_gone_is_told_once_and_not_for_each_request(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Sixteen requests fail at a time, each several times."""
    monkeypatch.setattr(remote, "PAUSES", (0, 0))
    gone = remote.Remote("http://127.0.0.1:9/shards")
    for _ in range(3):
        with pytest.raises(UserError, match="4 times"):
            gone.read("train-000000.tar")
    assert [record.levelname for record in caplog.records] == ["WARNING"]
