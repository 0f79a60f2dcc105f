import contextlib
import errno
import gzip
import hashlib
import io
import os
import tarfile
import zipfile
from pathlib import Path
from typing import Any, Literal

import pytest

from ijepa.data import archives
from ijepa.errors import UserError
from tests.tars import tar_of

FILES = {"a/one.jpg": b"1" * 700, "a/two.jpg": b"22", "three.jpg": b""}


def write_archive(path: Path, files: dict[str, bytes]) -> None:
    if path.suffix == ".zip":
        with zipfile.ZipFile(path, "w") as archive:
            for name, content in files.items():
                archive.writestr(zipfile.ZipInfo(name, (2020, 2, 3, 4, 5, 6)), content)
    else:
        path.write_bytes(gzip.compress(tar_of(files)))


@pytest.fixture(params=["files.tar.gz", "files.zip"])
def archive(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    path = tmp_path / str(request.param)
    write_archive(path, FILES)
    return path


def test_a_file_is_read_once_and_again_when_it_changed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "big.tar"
    path.write_bytes(b"right")
    right = f"sha1:{hashlib.sha1(b'right').hexdigest()}"
    archives.verify_once(path, right)
    with monkeypatch.context() as patch:
        patch.setattr(hashlib, "new", lambda _: pytest.fail("read a second time"))
        archives.verify_once(path, right)
    path.write_bytes(b"wrong")
    os.utime(path, (1, 1))
    checksum = hashlib.sha1(b"wrong").hexdigest()
    for _ in range(2):
        with pytest.raises(
            UserError, match=rf"big\.tar has sha1 {checksum}, expected {right[5:]}.*"
        ):
            archives.verify_once(path, right)


@pytest.fixture
def read_only(monkeypatch: pytest.MonkeyPatch) -> None:
    """Refuse whatever is written, to root as well."""

    def refuse(*_given: Any, **_named: Any) -> None:
        raise OSError(errno.EROFS, os.strerror(errno.EROFS))

    monkeypatch.setattr(Path, "write_text", refuse)
    monkeypatch.setattr("tempfile.TemporaryFile", refuse)


@pytest.mark.usefixtures("read_only")
def test_an_archive_in_a_read_only_folder_is_checked_each_time(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "big.tar").write_bytes(b"right")
    right = f"sha1:{hashlib.sha1(b'right').hexdigest()}"
    archives.verify_once(tmp_path / "big.tar", right)
    assert "big.tar.verified cannot be written: the next fetch reads the archive" in caplog.text
    (tmp_path / "big.tar").write_bytes(b"wrong")
    with pytest.raises(UserError, match=r"big\.tar has sha1"):
        archives.verify_once(tmp_path / "big.tar", right)
    assert [path.name for path in tmp_path.iterdir()] == ["big.tar"]


def test_an_archive_that_is_packed_otherwise_is_not_called_damaged(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"x\.tar is no \.tar\.gz, \.tgz or \.zip"):
        archives.unpack(tmp_path / "x.tar", tmp_path / "out")


@pytest.mark.usefixtures("read_only")
def test_a_folder_that_cannot_be_written_is_named_before_an_archive_is_read(
    archive: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An archive of 140 GB takes an hour to read."""
    for part in ("verify_once", "tar_entries", "_unpack_tar", "_unpack_zip"):
        monkeypatch.setattr(archives, part, lambda *_: pytest.fail("the archive is read"))
    with pytest.raises(UserError, match=r"out cannot be written \(Read-only file system\)"):
        archives.unpack(archive, tmp_path / "out", "md5:" + "0" * 32)
    with pytest.raises(UserError, match=rf"{tmp_path} cannot be written"):
        archives.list_once(archive)


def test_a_full_disk_is_no_read_only_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: Any) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(archives, "write_json", full)
    (tmp_path / "big.tar").write_bytes(b"right")
    with pytest.raises(OSError, match="No space left"):
        archives.verify_once(tmp_path / "big.tar", f"sha1:{hashlib.sha1(b'right').hexdigest()}")


def test_another_checksum_is_compared_anew(tmp_path: Path) -> None:
    path = tmp_path / "big.tar"
    path.write_bytes(b"right")
    archives.verify_once(path, f"sha1:{hashlib.sha1(b'right').hexdigest()}")
    with pytest.raises(UserError, match="expected 0000"):
        archives.verify_once(path, "md5:" + "0" * 32)


def test_an_archive_is_unpacked_once(archive: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    archives.unpack(archive, out)
    assert {name: (out / name).read_bytes() for name in FILES} == FILES
    (out / "three.jpg").unlink()
    archives.unpack(archive, out)
    assert not (out / "three.jpg").exists()


def test_an_interrupted_unpacking_goes_on_where_it_was(archive: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    archives.unpack(archive, out)
    (out / f".{archive.name}.unpacked").unlink()
    finished = (out / "a" / "one.jpg").stat().st_ctime_ns
    (out / "a" / "two.jpg").write_bytes(b"2")
    (out / "three.jpg").unlink()
    archives.unpack(archive, out)
    assert {name: (out / name).read_bytes() for name in FILES} == FILES
    assert (out / "a" / "one.jpg").stat().st_ctime_ns == finished


def test_a_file_of_the_right_size_that_was_not_written_to_its_end_is_written_again(
    archive: Path, tmp_path: Path
) -> None:
    """Some file systems reserve a file's whole size before its bytes arrive."""
    out = tmp_path / "out"
    (out / "a").mkdir(parents=True)
    (out / "a" / "one.jpg").write_bytes(bytes(700))
    archives.unpack(archive, out)
    assert (out / "a" / "one.jpg").read_bytes() == FILES["a/one.jpg"]


def test_another_version_of_an_archive_is_unpacked_too(archive: Path, tmp_path: Path) -> None:
    archives.unpack(archive, tmp_path / "out")
    write_archive(archive, {"four.jpg": b"4444"})
    archives.unpack(archive, tmp_path / "out")
    assert (tmp_path / "out" / "four.jpg").read_bytes() == b"4444"


def test_an_archive_with_a_wrong_checksum_is_not_unpacked(archive: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=rf"{archive.name} has md5"):
        archives.unpack(archive, tmp_path / "out", "md5:" + "0" * 32)
    assert not list((tmp_path / "out").iterdir())


@pytest.mark.parametrize("share", [0.0, 0.6, 0.99])
def test_a_truncated_archive_is_named(archive: Path, tmp_path: Path, share: float) -> None:
    whole = archive.read_bytes()
    archive.write_bytes(whole[: int(len(whole) * share)])
    with pytest.raises(UserError, match=rf"{archive.name} is damaged or was not downloaded to"):
        archives.unpack(archive, tmp_path / "out")
    archive.write_bytes(whole)
    archives.unpack(archive, tmp_path / "out")
    assert (tmp_path / "out" / "a" / "one.jpg").read_bytes() == FILES["a/one.jpg"]


@pytest.mark.parametrize("name", ["files.tar.gz", "files.zip"])
def test_a_member_outside_the_folder_is_refused(tmp_path: Path, name: str) -> None:
    write_archive(tmp_path / name, {"../outside.jpg": b"x"})
    with pytest.raises(UserError, match=rf"{name} is refused.*\.\./outside\.jpg"):
        archives.unpack(tmp_path / name, tmp_path / "out")
    assert not (tmp_path / "outside.jpg").exists()


def contents(path: Path, offset: int = 0, size: int | None = None) -> dict[str, bytes]:
    whole = path.read_bytes()
    return {
        name: whole[first : first + count]
        for name, first, count in archives.tar_entries(path, offset, size)
    }


def test_files_of_a_tar_are_found_in_place_and_folders_are_none(tmp_path: Path) -> None:
    path, folder = tmp_path / "files.tar", tmp_path / "folder"
    for name, content in FILES.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)
    with tarfile.open(path, "w") as tar:
        tar.add(folder, ".")
    assert contents(path) == {f"./{name}": content for name, content in FILES.items()}


def test_files_of_a_tar_in_a_tar_are_found_in_the_outer_one(tmp_path: Path) -> None:
    path = tmp_path / "outer.tar"
    path.write_bytes(tar_of({"other.tar": tar_of({"x": b"y"}), "inner.tar": tar_of(FILES)}))
    inner = {name: position for name, *position in archives.tar_entries(path)}["inner.tar"]
    assert contents(path, *inner) == FILES


def test_an_inner_tar_without_an_end_does_not_run_on_into_the_next(tmp_path: Path) -> None:
    path = tmp_path / "outer.tar"
    torn = tar_of(FILES)[:1536]  # ends after the first file
    path.write_bytes(tar_of({"torn.tar": torn, "next.tar": tar_of({"x": b"y"})}))
    first = next(archives.tar_entries(path))
    with pytest.raises(UserError, match=r"outer\.tar is damaged"):
        list(archives.tar_entries(path, *first[1:]))


@pytest.mark.parametrize(
    "length",
    [0, 300, 600, 1100, 1536, 1700, 2400],
    ids=["empty", "header", "file", "last-block", "between", "next-header", "next-file"],
)
def test_a_truncated_tar_is_named(tmp_path: Path, length: int) -> None:
    path = tmp_path / "files.tar"
    path.write_bytes(tar_of({"one": b"1" * 700, "two": b"2" * 700})[:length])
    with pytest.raises(UserError, match=r"files\.tar is damaged or was not downloaded to its end"):
        list(archives.tar_entries(path))
    with pytest.raises(UserError, match=r"files\.tar is no tar or was not downloaded to its end"):
        archives.verify_end(path)


def test_a_damaged_header_is_not_taken_for_the_end(tmp_path: Path) -> None:
    path = tmp_path / "files.tar"
    whole = bytearray(tar_of({"one": b"1" * 700, "two": b"2" * 700}))
    whole[1540] ^= 1
    path.write_bytes(whole)
    with pytest.raises(UserError, match=r"files\.tar is damaged.*at byte 1,536"):
        list(archives.tar_entries(path))


def test_headers_are_not_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "files.tar"
    path.write_bytes(tar_of({str(number): b"" for number in range(50)}))
    opened = []
    original = tarfile.open

    def open_noted(fileobj: io.BufferedReader, mode: Literal["r:"]) -> tarfile.TarFile:
        opened.append(original(fileobj=fileobj, mode=mode))
        return opened[0]

    monkeypatch.setattr(tarfile, "open", open_noted)
    assert all(len(vars(opened[0])["members"]) <= 1 for _ in archives.tar_entries(path))


def test_a_tar_is_listed_once_and_again_when_it_changed(tmp_path: Path) -> None:
    path = tmp_path / "a #1?.tar"  # signs that have a meaning in the address of a database
    path.write_bytes(tar_of(FILES))
    archives.list_once(path)
    whole = path.read_bytes()
    with archives.tar_lookup(path) as find:
        for name, content in FILES.items():
            position = find(name)
            assert position is not None
            assert whole[position[0] : position[0] + position[1]] == content
        assert find("four.jpg") is None
    listed = archives._table(path).stat().st_mtime_ns
    with archives.tar_lookup(path):
        assert archives._table(path).stat().st_mtime_ns == listed
    path.write_bytes(tar_of({"./four.jpg": b"4"}))
    os.utime(path, (1, 1))
    with archives.tar_lookup(path) as find:
        assert find("four.jpg") == (512, 1)
        assert find("three.jpg") is None


def test_a_listing_of_a_damaged_tar_leaves_nothing(tmp_path: Path) -> None:
    path = tmp_path / "files.tar"
    path.write_bytes(tar_of(FILES)[:1600])
    with contextlib.suppress(UserError):
        archives.list_once(path)
    assert [p.name for p in tmp_path.iterdir()] == ["files.tar"]


def test_hidden_files_and_files_of_other_kinds_are_no_images(tmp_path: Path) -> None:
    for name in ("b.JPEG", "a.jpg", ".c.jpg", "notes.txt"):
        (tmp_path / name).touch()
    assert [path.name for path in archives.folder_entries(tmp_path)] == ["a.jpg", "b.JPEG"]


def test_all_that_is_missing_is_said_at_once() -> None:
    with pytest.raises(UserError, match=r"a\.tar \(x\); b\.tar \(y\)"):
        archives.refuse_missing(["a.tar (x)", "b.tar (y)"])
    archives.refuse_missing([])
