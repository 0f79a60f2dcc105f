"""A renewed signature of an address changes nothing: the bytes there are the same."""

from pathlib import Path
from typing import Any

import pytest
import yaml

from ijepa.data import register
from ijepa.data.addresses import unsigned
from ijepa.data.build import build_shards
from ijepa.data.sources import webdataset
from ijepa.errors import UserError
from tests.test_sources_webdataset import SHARD, shard, shards
from workflow.plan.command_options import register_entry


@pytest.mark.parametrize(
    ("signed", "plain"),
    [
        ("s3.com/{0..9}.tar?X-Amz-Date=2&X-Amz-Credential=A%2F2&X-Amz-Signature=a", "{0..9}.tar"),
        ("storage.com/0.tar?GoogleAccessId=a&Expires=1&Signature=b%2B", "0.tar"),
        ("blob.net/0.tar?sv=2022&st=2024&se=2025&sr=b&sp=r&sig=a%3D", "0.tar"),
        ("front.net/0.tar?Expires=1&Signature=2&Key-Pair-Id=K", "0.tar"),
        ("oss.com/0.tar?OSSAccessKeyId=a&Expires=1&Signature=b", "0.tar"),
        ("hub.co/0.tar?token=hf_a", "0.tar"),
        ("s3.com/0.tar?versionId=3&X-Amz-Signature=a", "0.tar?versionId=3"),
        ("s3.com/0.tar?X-Amz-Signature=a&versionId=3", "0.tar?versionId=3"),
        ("blob.net/0.tar?sig=a::https://blob.net/1.tar?sig=b", "0.tar::https://blob.net/1.tar"),
        ("any.org/0.tar?file=3", "0.tar?file=3"),
        ("any.org/0.tar?se=3&sp=4", "0.tar?se=3&sp=4"),
        (
            "any.org/0.tar?sr=1::https://blob.net/1.tar?sr=b&sig=b",
            "0.tar?sr=1::https://blob.net/1.tar",
        ),
        ("git.org/0.tar?private_token=a&ref=main", "0.tar?ref=main"),
        ("any.org/0.tar?api_key=a", "0.tar"),
        ("cos.com/0.tar?q-sign-algorithm=sha1&q-ak=a&q-key-time=1;2&q-signature=b", "0.tar"),
        ("any.org/0.tar?auth_token=a&jwt=b&verify=1-c&rlkey=d&dl=1", "0.tar?dl=1"),
        ("any.org/0.tar?hdnts=exp=1~acl=/*~hmac=a", "0.tar"),
        ("any.org/0.tar?temp_url_sig=a&temp_url_expires=1", "0.tar"),
        ("any.org/0.tar#x=1&access_token=a", "0.tar"),
        ("any.org/0.tar#part", "0.tar#part"),
        ("any.org/get?key=train/{0..9}.tar&api_key=a", "get?key=train/{0..9}.tar"),
        ("any.org/key=3/token.tar", "key=3/token.tar"),
        ("any.org/0.tar?author=a&design=b&monkey=c", "0.tar?author=a&design=b&monkey=c"),
        ("any.org/0.tar", "0.tar"),
    ],
)
def test_an_address_loses_its_signature_and_nothing_else(signed: str, plain: str) -> None:
    host = signed.partition("/")[0]
    assert unsigned(f"https://{signed}") == f"https://{host}/{plain}"


@pytest.mark.parametrize(
    "command", ["rsync -au host:/data/0.tar -", "scp -u host:/a/0.tar -", "docker run -u 1:1 x cat"]
)
def test_a_command_keeps_what_only_looks_like_a_password(command: str) -> None:
    assert unsigned(f"pipe:{command}") == f"pipe:{command}"


def test_a_command_keeps_its_quotes_and_a_text_that_is_no_address_all_of_it() -> None:
    command = "pipe:curl -s 'https://any.org/0.tar?sig=a' | gunzip"
    assert unsigned(command) == "pipe:curl -s 'https://any.org/0.tar' | gunzip"
    assert unsigned({"a": ["b?sig=c", 1, None]}) == {"a": ["b?sig=c", 1, None]}


@pytest.mark.parametrize(
    ("command", "plain"),
    [
        ("curl -H 'Authorization: Bearer X' https://a/0.tar", "curl -H 'Authorization:' "),
        ('curl --header "PRIVATE-TOKEN: X Y" a/0.tar', 'curl --header "PRIVATE-TOKEN:" '),
        (r"curl -H Authorization:\ Bearer\ X https://a/0.tar", "curl -H Authorization: h"),
        ("curl -u me:X https://a/0.tar", "curl -u  "),
        ("curl -su me:X https://a/0.tar", "curl -su  "),
        ("curl --user 'me:X Y' a/0.tar?token=X", "curl --user  "),
        ("wget -qO- --user=me --password=X https://a/0.tar", "--user=me --password= "),
        ("AWS_SECRET_ACCESS_KEY=X aws s3 cp s3://a/0.tar -", "pipe:AWS_SECRET_ACCESS_KEY= "),
        ("curl https://me:X@a/0.tar", "curl https://a/0.tar"),
    ],
)
def test_a_command_loses_its_secrets(command: str, plain: str) -> None:
    without = unsigned(f"pipe:{command}")
    assert "X" not in without
    assert plain in without
    assert "a/0.tar" in without


@pytest.mark.parametrize(
    "address",
    [
        "pipe:python -u fetch.py https://any.org/0.tar",
        "pipe:python -u https://any.org/0.tar",
        "pipe:aws s3 cp --no-sign-request s3://keys/{0..9}.tar -",
        "pipe:aws s3api get-object --bucket b --key train/0.tar /dev/stdout",
        "pipe:curl -H 'Accept: a/b' 'https://any.org/0.tar?x=1' | sed s#a#b# # a",
        "hf://datasets/USER/NAME@main/0.tar",
        "auth/token=3.tar",
    ],
)
def test_an_address_without_secrets_stays(address: str) -> None:
    assert unsigned(address) == address


def test_an_address_loses_its_user_and_password() -> None:
    assert unsigned("https://me:X@a.org/0.tar") == unsigned("https://X@a.org/0.tar")
    assert unsigned("https://me:X@a.org/0.tar") == "https://a.org/0.tar"


def test_a_command_that_fails_is_named_without_its_secrets(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="could not be fetched") as failure:
        webdataset.fetch(shards("pipe:exit 1; curl -u me:SECRET https://any.org"), tmp_path / "raw")
    assert "SECRET" not in str(failure.value)


def test_a_secret_that_was_written_beside_shards_is_taken_away_and_the_shards_stay(
    server: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "datasets.yaml"
    monkeypatch.setattr(register, "REGISTER", path)
    shard(tmp_path / "served" / "0.tar", SHARD)
    address = f"{server}/0.tar?private_token=SECRET"
    dataset = shards(address)
    path.write_text(yaml.safe_dump({"tiny": dataset.model_dump(exclude={"name"})}))
    webdataset.fetch(dataset, tmp_path / "raw")
    build_shards("tiny", tmp_path / "raw", tmp_path / "out", num_workers=1)
    settings = tmp_path / "out/settings.json"
    clean = settings.read_text()
    assert "SECRET" not in clean
    settings.write_text(clean.replace(f"{server}/0.tar", address))  # as an earlier version did
    before = {p: p.stat().st_mtime_ns for p in (tmp_path / "out").glob("train-*")}
    build_shards("tiny", tmp_path / "raw", tmp_path / "out", num_workers=1)
    assert settings.read_text() == clean
    assert before == {p: p.stat().st_mtime_ns for p in (tmp_path / "out").glob("train-*")}
    assert before


def test_shards_are_not_fetched_again_and_their_checksums_still_hold(
    server: str, tmp_path: Path
) -> None:
    path = shard(tmp_path / "served" / "0.tar", SHARD)
    first, renewed = (f"{server}/0.tar?sig={number}" for number in (1, 2))
    webdataset.fetch(shards(first), tmp_path / "raw")
    path.unlink()
    webdataset.fetch(shards(renewed), tmp_path / "raw")
    assert len(list(webdataset.entries(shards(renewed), tmp_path / "raw", "train"))) == 2
    wrong = {first: "md5:" + "0" * 32}
    with pytest.raises(UserError, match=r"has md5 \w+, expected 0000"):
        webdataset.fetch(shards(renewed, checksums=wrong), tmp_path / "raw")


def test_an_address_that_fails_is_named_without_its_signature(server: str, tmp_path: Path) -> None:
    expected = rf"^{server}/gone\.tar could not .* may be out of date"
    with pytest.raises(UserError, match=expected) as failure:
        webdataset.fetch(shards(f"{server}/gone.tar?sig=SECRET"), tmp_path / "raw")
    assert "SECRET" not in str(failure.value)


def test_finished_shards_stay_and_no_signature_is_written_beside_them(
    server: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "datasets.yaml"
    monkeypatch.setattr(register, "REGISTER", path)
    shard(tmp_path / "served" / "0.tar", SHARD)
    seen: list[Any] = []
    for signature in ("FIRST", "RENEWED"):
        dataset = shards(f"{server}/0.tar?sig={signature}")
        path.write_text(yaml.safe_dump({"tiny": dataset.model_dump(exclude={"name"})}))
        webdataset.fetch(dataset, tmp_path / "raw")
        build_shards("tiny", tmp_path / "raw", tmp_path / "out", num_workers=1)
        files = {p.name: p.stat().st_mtime_ns for p in (tmp_path / "out").iterdir()}
        seen.append((files, register_entry("tiny")))
    assert seen[0] == seen[1]
    written = b"".join(p.read_bytes() for p in (tmp_path / "out").iterdir())
    assert not [word for word in (b"FIRST", b"RENEWED") if word in written]
    assert "RENEWED" not in str(seen)
