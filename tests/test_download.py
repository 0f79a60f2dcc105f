"""Files that arrive whole, whatever the server and the connection do."""

import hashlib
import http.server
import re
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from ijepa.data import download
from ijepa.errors import UserError
from ijepa.released.download import bring

CONTENT = np.random.default_rng(0).bytes(300_000)
OTHER = np.random.default_rng(1).bytes(300_000)
HALF = 150_000


class Server(http.server.ThreadingHTTPServer):
    """A server of one file; its fields say how badly it serves, and which ranges were requested."""

    content = CONTENT
    marks: tuple[str, ...] = ("ETag",)
    ranges = True
    heeds_if_range = True
    breaks: Iterator[int] = iter(())  # at which byte of the file each connection ends
    stall: threading.Event | None = None  # halfway, wait for this

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.served = 0
        self.requested_ranges: list[str | None] = []

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}/weights.pth"


class Handler(http.server.BaseHTTPRequestHandler):
    server: Server

    def do_GET(self) -> None:
        server, content = self.server, self.server.content
        requested = self.headers["Range"]
        server.requested_ranges.append(requested)
        if self.path not in ("/weights.pth", "/mirror.pth"):
            return self.send_error(404)
        sum_ = hashlib.md5(content).hexdigest()
        values = {
            "ETag": f'"{sum_}"',
            "Last-Modified": f"Thu, 01 Jan 1970 00:00:{int(sum_, 16) % 60:02d} GMT",
        }
        marks = {name: values[name] for name in server.marks}
        condition = self.headers["If-Range"]
        start = 0
        unchanged = condition is None or condition in marks.values()
        if requested and server.ranges and (unchanged or not server.heeds_if_range):
            start = int(requested.removeprefix("bytes=").removesuffix("-"))
        if start and start >= len(content):
            return self.send_error(416)
        self.send_response(206 if start else 200)
        for name, value in marks.items():
            self.send_header(name, value)
        if start:
            self.send_header("Content-Range", f"bytes {start}-{len(content) - 1}/{len(content)}")
        self.send_header("Content-Length", str(len(content) - start))
        self.end_headers()
        end = next(server.breaks, len(content))
        if server.stall:
            self.send(start, HALF)
            server.stall.wait()
            start = max(start, HALF)
        self.send(start, end)

    def send(self, start: int, end: int) -> None:
        try:
            for first in range(start, end, 10_000):
                chunk = self.server.content[first : min(end, first + 10_000)]
                # Before it is sent: the client may have it, and look, before this thread goes on.
                self.server.served += len(chunk)
                self.wfile.write(chunk)
        except ConnectionError:
            assert self.server.stall, "only the killed client may leave"

    def log_message(self, format: str, *args: object) -> None:
        pass


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    monkeypatch.setattr(download, "PAUSES", (0, 0, 0))
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    with Server() as server:
        threading.Thread(target=server.serve_forever, args=(0.01,)).start()
        yield server
        server.shutdown()


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "weights" / "weights.pth"


def sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def fetch(server: Server, path: Path, content: bytes = CONTENT) -> None:
    bring(server.address, path, sha256(content), "CC BY-NC 4.0")


def part_of(path: Path) -> Path:
    return path.with_name("weights.pth.part")


def assert_alone(path: Path, content: bytes = CONTENT) -> None:
    assert path.read_bytes() == content
    assert list(path.parent.iterdir()) == [path]


def interrupt(server: Server, path: Path, end: int = HALF) -> None:
    """Leave the first ``end`` bytes behind, as a call that gave up does."""
    server.breaks = iter([end] * 4)
    with pytest.raises(UserError):
        fetch(server, path)
    assert part_of(path).read_bytes() == server.content[:end]
    server.breaks = iter(())
    server.served = 0
    server.requested_ranges.clear()


def test_licence_and_address_are_printed_before_the_first_byte(
    server: Server, path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    fetch(server, path)
    assert_alone(path)
    assert capsys.readouterr().out == f"licence: CC BY-NC 4.0\nfetching {server.address}\n"
    path.unlink()
    with pytest.raises(UserError):
        bring(f"{server.address}.no", path, sha256(CONTENT), "CC BY-NC 4.0")
    assert "licence: CC BY-NC 4.0" in capsys.readouterr().out


@pytest.mark.parametrize("marks", [("ETag",), ("Last-Modified",), ("ETag", "Last-Modified"), ()])
def test_a_broken_connection_is_continued_where_it_broke(
    server: Server, path: Path, marks: tuple[str, ...]
) -> None:
    server.marks = marks
    server.breaks = iter([HALF])
    fetch(server, path)
    assert_alone(path)
    assert server.requested_ranges == [None, f"bytes={HALF}-"]
    assert server.served == len(CONTENT)


def test_any_number_of_breaks_is_survived_while_bytes_arrive(server: Server, path: Path) -> None:
    server.breaks = iter(range(10_000, 300_000, 10_000))
    fetch(server, path)
    assert_alone(path)
    assert server.served == len(CONTENT)


def test_a_connection_that_brings_nothing_more_is_given_up_and_the_next_call_continues(
    server: Server, path: Path
) -> None:
    server.breaks = iter([HALF] * 99)
    with pytest.raises(UserError, match=r"150,000 bytes are there.*same command.*continues") as e:
        fetch(server, path)
    assert server.address in str(e.value)
    assert len(server.requested_ranges) == 1 + len(download.PAUSES)
    assert not path.exists()
    assert part_of(path).read_bytes() == CONTENT[:HALF]
    server.breaks = iter(())
    fetch(server, path)
    assert_alone(path)
    assert server.served == len(CONTENT)


def test_a_server_without_ranges_sends_the_whole_file_again(server: Server, path: Path) -> None:
    server.ranges = False
    server.breaks = iter([HALF])
    fetch(server, path)
    assert_alone(path)
    assert server.served == HALF + len(CONTENT)


def test_a_server_without_ranges_that_always_breaks_is_given_up(server: Server, path: Path) -> None:
    server.ranges = False
    server.breaks = iter([HALF, *[HALF - 1] * 99])
    with pytest.raises(UserError, match=r"149,999 bytes"):
        fetch(server, path)
    assert len(server.requested_ranges) == 1 + len(download.PAUSES)


@pytest.mark.parametrize("marks", [("ETag",), ("Last-Modified",)])
@pytest.mark.parametrize("heeds_if_range", [True, False])
def test_a_file_that_changed_is_never_glued_to_its_old_beginning(
    server: Server, path: Path, marks: tuple[str, ...], heeds_if_range: bool
) -> None:
    server.marks, server.heeds_if_range = marks, heeds_if_range
    interrupt(server, path)
    server.content = OTHER
    fetch(server, path, OTHER)
    assert_alone(path, OTHER)
    assert server.requested_ranges == [f"bytes={HALF}-"] + ([] if heeds_if_range else [None])


def test_a_file_that_became_shorter_is_fetched_anew(server: Server, path: Path) -> None:
    server.heeds_if_range = False
    interrupt(server, path)
    server.content = OTHER[:1000]
    fetch(server, path, OTHER[:1000])
    assert_alone(path, OTHER[:1000])


def test_the_beginning_from_another_address_is_not_used(server: Server, path: Path) -> None:
    server.marks = ()
    interrupt(server, path)
    server.content = OTHER
    mirror = server.address.replace("weights", "mirror")
    bring(mirror, path, sha256(OTHER), "none")
    assert server.requested_ranges == [None]
    assert_alone(path, OTHER)


def test_a_wrong_file_is_refused_and_the_right_one_accepted_next(
    server: Server, path: Path
) -> None:
    server.content = OTHER
    with pytest.raises(UserError) as error:
        fetch(server, path)
    assert sha256(OTHER) in str(error.value)
    assert sha256(CONTENT) in str(error.value)
    assert list(path.parent.iterdir()) == []
    server.content = CONTENT
    fetch(server, path)
    assert_alone(path)
    assert server.requested_ranges == [None, None]


def test_a_complete_file_causes_no_request_and_is_not_written(server: Server, path: Path) -> None:
    path.parent.mkdir()
    path.write_bytes(CONTENT)
    before = path.stat()
    fetch(server, path)
    assert server.requested_ranges == []
    assert (path.stat().st_ino, path.stat().st_mtime_ns) == (before.st_ino, before.st_mtime_ns)
    assert_alone(path)


def test_another_file_in_its_place_is_refused_and_kept(server: Server, path: Path) -> None:
    path.parent.mkdir()
    path.write_bytes(OTHER)
    with pytest.raises(UserError, match="move it away"):
        fetch(server, path)
    assert server.requested_ranges == []
    assert_alone(path, OTHER)


def test_a_complete_part_needs_no_request(server: Server, path: Path) -> None:
    path.parent.mkdir()
    part_of(path).write_bytes(CONTENT)
    fetch(server, path)
    assert server.requested_ranges == []
    assert_alone(path)


def test_an_http_error_names_address_and_remedy_and_is_not_retried(
    server: Server, path: Path
) -> None:
    address = server.address.replace("weights.pth", "none.pth")
    with pytest.raises(UserError, match=rf"{re.escape(address)}: HTTP Error 404.*check") as error:
        bring(address, path, sha256(CONTENT), "none")
    assert "\n" not in str(error.value)
    assert len(server.requested_ranges) == 1
    assert list(path.parent.iterdir()) == []


@pytest.mark.parametrize("address", ["http://no-such-host.invalid/a", "http://127.0.0.1:1/a"])
def test_a_host_that_cannot_be_reached_is_the_users_error(address: str, path: Path) -> None:
    with pytest.raises(UserError, match=rf"^{re.escape(address)}: .*check the address"):
        bring(address, path, sha256(CONTENT), "none")


def test_a_process_that_is_killed_is_continued_by_the_same_command(
    server: Server, path: Path
) -> None:
    server.stall = threading.Event()
    command = [sys.executable, "-m", "ijepa.released.download", server.address, str(path)]
    command += ["--sha256", sha256(CONTENT), "--licence", "CC BY-NC 4.0"]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    part = part_of(path)
    while process.poll() is None and not (part.exists() and part.stat().st_size > HALF // 2):
        time.sleep(0.01)
    with pytest.raises(UserError, match="another process"):
        fetch(server, path)
    process.kill()
    assert process.wait() == -9
    there = part.stat().st_size
    server.stall.set()
    server.stall = None
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert "licence: CC BY-NC 4.0" in done.stdout
    assert server.requested_ranges == [None, f"bytes={there}-"]
    assert_alone(path)
    assert subprocess.run(command, capture_output=True, check=False).returncode == 0
    assert len(server.requested_ranges) == 2


def test_a_copy_on_this_machine_serves_as_well_and_stays(tmp_path: Path, path: Path) -> None:
    copy = tmp_path / "a copy.pth"
    copy.write_bytes(CONTENT)
    for address in (str(copy), copy.as_uri()):
        bring(address, path, sha256(CONTENT).upper(), "none")
        assert_alone(path)
        assert not path.samefile(copy)
        path.unlink()
    with pytest.raises(UserError, match="expected"):
        bring(str(copy), path, sha256(OTHER), "none")
    assert copy.read_bytes() == CONTENT
    with pytest.raises(UserError, match="check the address"):
        bring(str(tmp_path / "none"), path, sha256(CONTENT), "none")


def test_a_checksum_or_a_place_that_cannot_be_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="64 hexadecimal digits"):
        bring("http://127.0.0.1:1/a", tmp_path / "a", "abc", "none")
    with pytest.raises(UserError, match="is a folder"):
        bring("http://127.0.0.1:1/a", tmp_path, sha256(CONTENT), "none")
