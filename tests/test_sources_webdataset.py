"""Raw formats: ready-made shards, here and at addresses."""

import http.server
import io
import json
import tarfile
import threading
from pathlib import Path
from typing import Any

import pytest
from webdataset.shardlists import expand_urls

from ijepa.data.download import download
from ijepa.data.register import Dataset, load_dataset
from ijepa.data.sources import webdataset
from ijepa.errors import UserError
from tests.hub import TOKEN, serving
from tests.raw_files import content, dataset, picture

Files = list[tuple[str, bytes]]


def shard(path: Path, files: Files) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as tar:
        for name, file in files:
            member = tarfile.TarInfo(name)
            member.size = len(file)
            tar.addfile(member, io.BytesIO(file))
    return path


SHARD: Files = [
    ("dir/0.jpg", picture(0, ending="jpg")),
    ("dir/0.cls", b"2"),
    ("dir/1.CLS", b"0\n"),
    ("dir/1.png", picture(1)),
]


def shards(train: str, **entry: Any) -> Dataset:
    splits = {"train": None}
    options = {"train": train, **entry.pop("options", {})}
    return dataset(
        "webdataset", **{"splits": splits, "labels": {"class": 3}, **entry}, options=options
    )


def test_ready_made_shards_are_read_in_place(tmp_path: Path) -> None:
    shard(tmp_path / "s-00.tar", SHARD)
    shard(tmp_path / "s-01.tar", SHARD[2:])
    tiny = shards("s-{00..01}.tar")
    webdataset.fetch(tiny, tmp_path)
    entries = list(webdataset.entries(tiny, tmp_path, "train"))
    assert [content(e) for e in entries] == [SHARD[0][1], SHARD[3][1], SHARD[3][1]]
    assert [e.labels["class"] for e in entries] == [2, 0, 0]
    assert entries[0].name == "s-00.tar: dir/0"
    assert sorted(p.name for p in tmp_path.iterdir()) == ["s-00.tar", "s-01.tar"]


@pytest.mark.parametrize("ending", ["ppm", "pgm", "pbm", "pnm"])
def test_ready_made_shards_may_hold_netpbm_files(ending: str, tmp_path: Path) -> None:
    shard(tmp_path / "0.tar", [(f"0.{ending}", b"an image"), ("0.cls", b"2")])
    (entry,) = webdataset.entries(shards("0.tar"), tmp_path, "train")
    assert (content(entry), entry.labels) == (b"an image", {"class": 2})


def test_shards_at_addresses_are_brought_once(server: str, tmp_path: Path) -> None:
    served, raw = tmp_path / "served", tmp_path / "raw"
    shard(served / "a" / "0.tar", SHARD)
    shard(served / "b" / "0.tar", SHARD[:2])
    raw.mkdir()
    pipe = f"pipe:cat {served}/b/0.tar"
    for address, count in ((f"{server}/a/0.tar", 2), (pipe, 1), (f"file://{served}/a/0.tar", 2)):
        tiny = shards(address)
        webdataset.fetch(tiny, raw)
        assert len(list(webdataset.entries(tiny, raw, "train"))) == count
    before = {p: p.stat().st_mtime_ns for p in raw.iterdir()}
    assert len(before) == 2
    webdataset.fetch(shards(pipe), raw)
    assert {p: p.stat().st_mtime_ns for p in raw.iterdir()} == before


@pytest.mark.parametrize("command", ["cat gone.tar", "head -c 99 whole.tar; exit 3", "exit 1"])
def test_a_shard_that_does_not_arrive_whole_is_named_and_not_kept(
    command: str, tmp_path: Path
) -> None:
    shard(tmp_path / "whole.tar", SHARD)
    raw = tmp_path / "raw"
    with pytest.raises(UserError, match=r"pipe:cd .* could not be fetched .*exit [13]"):
        webdataset.fetch(shards(f"pipe:cd {tmp_path}; {command}"), raw)
    assert not list(raw.iterdir())


def test_gated_shards_on_the_hub_are_fetched_with_the_token_of_the_environment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shard(tmp_path / "0.tar", SHARD)
    tiny, raw = shards("hf://datasets/me/gated/0.tar"), tmp_path / "raw"
    with serving() as hub:
        hub.gated["/datasets/me/gated/resolve/main/0.tar"] = (tmp_path / "0.tar").read_bytes()
        monkeypatch.setenv("HF_ENDPOINT", hub.address)
        monkeypatch.delenv("HF_TOKEN", raising=False)
        with pytest.raises(UserError, match=rf"HF_TOKEN is not set: .*{hub.address}/datasets/me"):
            webdataset.fetch(tiny, raw)
        assert not hub.requests
        monkeypatch.setenv("HF_TOKEN", "hf_of_nobody")
        with pytest.raises(
            UserError, match=r"0\.tar: the server answers 401 .*accept its terms on"
        ):
            webdataset.fetch(tiny, raw)
        monkeypatch.setenv("HF_TOKEN", TOKEN)
        webdataset.fetch(tiny, raw)
        (path,) = raw.iterdir()
        assert path.read_bytes() == (tmp_path / "0.tar").read_bytes()
        assert len(list(webdataset.entries(tiny, raw, "train"))) == 2
        with pytest.raises(UserError, match="is hf://datasets/USER/NAME/FILE: correct it"):
            webdataset.fetch(shards("hf://datasets/0.tar"), raw)


def test_the_token_does_not_follow_a_redirection(tmp_path: Path) -> None:
    headers: list[str | None] = []

    class Handler(http.server.BaseHTTPRequestHandler):
        def log_message(self, *args: object) -> None:
            pass

        def do_GET(self) -> None:
            headers.append(self.headers["Authorization"])
            if self.path == "/store":
                self.send_response(200)
                self.send_header("Content-Length", "2")
                self.end_headers()
                self.wfile.write(b"ok")
                return
            self.send_response(302)
            self.send_header("Location", "/store")
            self.send_header("Content-Length", "0")
            self.end_headers()

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        address = f"http://127.0.0.1:{server.server_port}/file"
        download(address, tmp_path / "file", headers={"Authorization": "Bearer x"})
        server.shutdown()
    assert (tmp_path / "file").read_bytes() == b"ok"
    assert headers == ["Bearer x", None]


@pytest.mark.usefixtures("real_register")
def test_the_hubs_imagenet_is_fetched_whole() -> None:
    counts = {"imagenet_hub": {"train": 1024, "test": 64}, "imagenet22k_hub": {"train": 4608}}
    for name, numbers in counts.items():
        entry = load_dataset(name)
        for split, number in numbers.items():
            addresses = expand_urls(entry.options[split])
            assert len(set(addresses)) == number
            assert all(address.startswith("hf://datasets/timm/") for address in addresses)


def test_an_address_that_webdataset_cannot_open_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"gopher://x/0\.tar could not be fetched"):
        webdataset.fetch(shards("gopher://x/0.tar"), tmp_path)


def test_checksums_of_shards_hold(tmp_path: Path) -> None:
    shard(tmp_path / "0.tar", SHARD)
    with pytest.raises(UserError, match=r"0\.tar has md5 \w+, expected 0000"):
        webdataset.fetch(shards("0.tar", checksums={"0.tar": "md5:" + "0" * 32}), tmp_path)


def test_labels_come_from_json_or_from_several_endings(tmp_path: Path) -> None:
    text = json.dumps({"label": 1, "other": 2}).encode()
    shard(tmp_path / "0.tar", [("0.jpg", picture()), ("0.json", text)])
    for options, expected in (({}, 1), ({"json_label": "other"}, 2)):
        (entry,) = webdataset.entries(shards("0.tar", options=options), tmp_path, "train")
        assert entry.labels == {"class": expected}
    shard(tmp_path / "1.tar", [("0.fine.cls", b"9"), ("0.coarse.cls", b"4"), ("0.jpg", picture())])
    tiny = shards("1.tar", labels={"coarse": None, "fine": 10})
    (entry,) = webdataset.entries(tiny, tmp_path, "train")
    assert entry.labels == {"coarse": 4, "fine": 9}
    (entry,) = webdataset.entries(shards("1.tar", labels={}), tmp_path, "train")
    assert entry.labels == {}


IMAGE = ("0.jpg", b"an image")


@pytest.mark.parametrize(
    ("files", "words"),
    [
        ([("0.cls", b"1")], "sample '0' has 0 images among cls"),
        ([IMAGE, ("0.png", b""), ("0.cls", b"1")], "sample '0' has 2 images among jpg, png, cls"),
        ([IMAGE, IMAGE], "sample '0' has two members jpg"),
        ([IMAGE], "sample '0' has no class.cls or cls or json for the label 'class'"),
        ([IMAGE, ("0.cls", b"cat")], "sample '0': cls has no number"),
        ([IMAGE, ("0.json", b"{}")], "json has no number of a class under the name 'label'"),
        ([IMAGE, ("0.json", b"[")], "json has no number of a class under the name 'label'"),
        ([IMAGE, ("0.json", b'{"label": "1"}')], "sample '0' has class '1'; .* 3 classes"),
        ([IMAGE, ("0.cls", b"3")], "sample '0' has class 3; datasets.yaml has 3 classes"),
        ([IMAGE, ("0.cls", b"-1")], "sample '0' has class -1"),
        (
            [IMAGE, ("0.cls", b"0"), ("1.cls", b"0"), ("1.jpg", b""), ("0.json", b"")],
            "'0' comes back",
        ),
        ([], "have no sample"),
    ],
)
def test_faulty_samples_are_named(files: Files, words: str, tmp_path: Path) -> None:
    shard(tmp_path / "0.tar", files)
    with pytest.raises(UserError, match=words):
        list(webdataset.entries(shards("0.tar"), tmp_path, "train"))


def test_a_truncated_shard_is_named(tmp_path: Path) -> None:
    path = shard(tmp_path / "0.tar", SHARD)
    path.write_bytes(path.read_bytes()[:2000])
    with pytest.raises(UserError, match=r"0\.tar is damaged"):
        list(webdataset.entries(shards("0.tar"), tmp_path, "train"))


def test_missing_shards_and_unknown_options_are_named(tmp_path: Path) -> None:
    assert webdataset.missing(shards("http://x/0.tar"), tmp_path) == []
    assert f"{tmp_path}/1.tar" in webdataset.missing(shards("{0,1}.tar"), tmp_path)[1]
    with pytest.raises(UserError, match=r"bring .*0\.tar"):
        webdataset.fetch(shards("0.tar"), tmp_path)
    with pytest.raises(UserError, match=r"0\.tar is missing"):
        list(webdataset.entries(shards("0.tar"), tmp_path, "train"))
    with pytest.raises(UserError, match="give a pattern of the shards of test"):
        list(webdataset.entries(shards("0.tar"), tmp_path, "test"))
    with pytest.raises(UserError, match=r"options are .*jsonlabel.*known are json_label"):
        webdataset.missing(shards("0.tar", options={"jsonlabel": "x"}), tmp_path)
