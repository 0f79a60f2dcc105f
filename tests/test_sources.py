"""Raw formats: what each source has; CIFAR and IDX."""

import gzip
import hashlib
import io
import pickle
import re
import shutil
import struct
import subprocess
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from ijepa import collection
from ijepa.data.register import Dataset
from ijepa.data.source import SOURCES, load_source
from ijepa.data.sources import cifar, idx
from ijepa.errors import UserError
from tests.raw_files import content, dataset


def test_each_source_has_the_whole_contract() -> None:
    for name in collection.members(SOURCES):
        for function in ("missing", "fetch", "entries", "encode"):
            assert callable(getattr(load_source(name), function))


# CIFAR

LABELS = {10: ["class"], 100: ["coarse", "class"]}
BATCHES = {
    10: {"data_batch_1": 5, "data_batch_2": 4, "test_batch": 3},
    100: {"train": 6, "test": 3},
}


def records(kind: int) -> dict[str, np.ndarray]:
    """Batches of CIFAR-10 or CIFAR-100, as rows of labels and pixels."""
    random = np.random.default_rng(0)
    labels = len(LABELS[kind])
    batches = {}
    for name, count in BATCHES[kind].items():
        rows = random.integers(0, 256, (count, labels + 3072), dtype=np.uint8)
        rows[:, :labels] %= 10
        batches[name] = rows
    return batches


def python2_pickle(labels: dict[str, list[int]], pixels: np.ndarray) -> bytes:
    """A batch as Python 2 wrote it (protocol 2, text as bytes), which Python 3 cannot write."""

    def text(value: bytes) -> bytes:
        return pickle.BINSTRING + struct.pack("<i", len(value)) + value

    def plain(value: object) -> bytes:
        return pickle.dumps(value, 2)[2:-1]  # without its head and its STOP

    items = text(b"batch_label") + text(b"testing batch 1 of 1")
    for key, numbers in labels.items():
        items += text(key.encode()) + plain(numbers)
    minus_one = pickle.BININT + struct.pack("<i", -1)
    uint8 = b"cnumpy\ndtype\n" + text(b"u1") + b"K\x00K\x01\x87R"
    uint8 += b"(K\x03" + text(b"|") + b"NNN" + minus_one + minus_one + b"K\x00tb"
    items += text(b"data")
    items += (
        b"cnumpy.core.multiarray\n_reconstruct\n(cnumpy\nndarray\nK\x00\x85" + text(b"b") + b"tR"
    )
    items += b"(K\x01" + plain(pixels.shape) + uint8 + b"\x89" + text(pixels.tobytes()) + b"tb"
    return b"\x80\x02}(" + items + b"u."


def cifar_archive(path: Path, kind: int, python: bool) -> str:
    """Write an archive in the official layout; returns its MD5."""
    path.parent.mkdir(parents=True, exist_ok=True)
    keys = ["labels"] if kind == 10 else ["coarse_labels", "fine_labels"]
    folder = f"cifar-{kind}-{'python' if python else 'binary'}"
    with tarfile.open(path, "w:gz") as tar:
        member = tarfile.TarInfo(folder)
        member.type = tarfile.DIRTYPE
        tar.addfile(member)
        for name, rows in records(kind).items():
            if python:
                labels = {key: rows[:, i].tolist() for i, key in enumerate(keys)}
                file = python2_pickle(labels, rows[:, len(keys) :])
            else:
                file = rows.tobytes()
                name += ".bin"
            member = tarfile.TarInfo(f"{folder}/{name}")
            member.size = len(file)
            tar.addfile(member, io.BytesIO(file))
    return "md5:" + hashlib.md5(path.read_bytes()).hexdigest()


def cifar_entry(kind: int, **entry: Any) -> Dataset:
    sums = {}
    if kind == 10:
        for name, rows in records(10).items():
            sums[f"{name}.bin"] = "sha1:" + hashlib.sha1(rows.tobytes()).hexdigest()
    return dataset(
        "cifar",
        labels={label: 10 for label in LABELS[kind]},
        options={"labels": LABELS[kind]},
        checksums={**sums, **entry.pop("checksums", {})},
        **entry,
    )


@pytest.mark.parametrize("python", [False, True])
@pytest.mark.parametrize("kind", [10, 100])
def test_both_versions_of_both_cifars_give_the_same_records(
    kind: int, python: bool, tmp_path: Path
) -> None:
    name = f"cifar-{kind}-{'python' if python else 'binary'}.tar.gz"
    md5 = cifar_archive(tmp_path / name, kind, python)
    tiny = cifar_entry(kind, checksums={name: md5})
    assert cifar.missing(tiny, tmp_path) == []
    cifar.fetch(tiny, tmp_path)
    for split in ("train", "test"):
        rows = np.concatenate(
            [r for n, r in records(kind).items() if (n[:4] == "test") == (split == "test")]
        )
        entries = list(cifar.entries(tiny, tmp_path, split))
        assert b"".join(map(content, entries)) == rows.tobytes()
        labels = [[e.labels[label] for label in LABELS[kind]] for e in entries]
        assert labels == rows[:, : len(LABELS[kind])].tolist()


def test_a_cifar_record_becomes_its_image(tmp_path: Path) -> None:
    row = records(100)["train"][0]
    with Image.open(io.BytesIO(cifar.encode(cifar_entry(100), row.tobytes()))) as image:
        assert image.format == "PNG"
        assert (np.asarray(image) == row[2:].reshape(3, 32, 32).transpose(1, 2, 0)).all()


def test_a_cifar_archive_is_downloaded_where_a_first_address_fails(
    server: str, tmp_path: Path
) -> None:
    md5 = cifar_archive(tmp_path / "served" / "c.tar.gz", 100, python=True)
    origins = [{"archive": f"{server}/gone.tar.gz"}, {"archive": f"{server}/c.tar.gz"}]
    tiny = cifar_entry(100, origins=origins, checksums={"c.tar.gz": md5})
    cifar.fetch(tiny, tmp_path / "raw")
    assert sorted(p.name for p in (tmp_path / "raw").iterdir()) == ["test.bin", "train.bin"]


def test_cifar_is_not_fetched_again_where_it_is_right(tmp_path: Path) -> None:
    md5 = cifar_archive(tmp_path / "c.tar.gz", 10, python=False)
    tiny = cifar_entry(10, checksums={"c.tar.gz": md5})
    cifar.fetch(tiny, tmp_path)
    (tmp_path / "c.tar.gz").write_bytes(b"")
    cifar.fetch(tiny, tmp_path)


def test_a_cifar_archive_with_another_checksum_is_refused(tmp_path: Path) -> None:
    md5 = cifar_archive(tmp_path / "c.tar.gz", 100, python=False)
    tiny = cifar_entry(100, checksums={"c.tar.gz": "md5:" + "0" * 32})
    with pytest.raises(UserError, match=rf"c\.tar\.gz has {md5}, expected md5:0000"):
        cifar.fetch(tiny, tmp_path)
    assert not (tmp_path / "train.bin").exists()


def test_a_cifar_archive_that_nothing_vouches_for_is_refused(server: str, tmp_path: Path) -> None:
    cifar_archive(tmp_path / "served" / "c.tar.gz", 100, python=False)
    tiny = cifar_entry(100, origins=[{"archive": f"{server}/c.tar.gz"}])
    with pytest.raises(UserError, match=r"no checksum of c\.tar\.gz, nor of all of its batches"):
        cifar.fetch(tiny, tmp_path / "raw")


def test_a_truncated_cifar_archive_is_named(tmp_path: Path) -> None:
    cifar_archive(tmp_path / "c.tar.gz", 10, python=False)
    whole = (tmp_path / "c.tar.gz").read_bytes()
    (tmp_path / "c.tar.gz").write_bytes(whole[: len(whole) // 2])
    md5 = "md5:" + hashlib.md5(whole[: len(whole) // 2]).hexdigest()
    with pytest.raises(UserError, match=r"c\.tar\.gz: .*end.*test_batch\.bin is missing"):
        cifar.fetch(cifar_entry(10, checksums={"c.tar.gz": md5}), tmp_path)


def test_a_pickle_that_would_run_a_command_is_refused(tmp_path: Path) -> None:
    class Command:
        def __reduce__(self) -> tuple[Any, ...]:
            return (eval, (f"open({str(tmp_path / 'ran')!r}, 'w')",))

    with tarfile.open(tmp_path / "c.tar.gz", "w:gz") as tar:
        file = pickle.dumps(Command(), 2)
        member = tarfile.TarInfo("cifar-10-batches-py/test_batch")
        member.size = len(file)
        tar.addfile(member, io.BytesIO(file))
    md5 = "md5:" + hashlib.md5((tmp_path / "c.tar.gz").read_bytes()).hexdigest()
    with pytest.raises(UserError, match=r"__builtin__\.eval is refused"):
        cifar.fetch(cifar_entry(10, checksums={"c.tar.gz": md5}), tmp_path)
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("shape", [(3, 32, 32), (32, 32, 3)])
def test_a_pickle_of_images_in_another_shape_is_named(
    shape: tuple[int, ...], tmp_path: Path
) -> None:
    folder = tmp_path / "cifar-10-batches-py"
    folder.mkdir()
    batch = {"labels": [0, 1], "data": np.zeros((2, *shape), np.uint8)}
    for name in records(10):
        (folder / name).write_bytes(pickle.dumps(batch, 2))
    with pytest.raises(UserError, match=rf"shape {re.escape(str([2, *shape]))}, not \[2, 3072\]"):
        cifar.fetch(cifar_entry(10), tmp_path)


def test_cifar_batches_of_another_form_are_refused(tmp_path: Path) -> None:
    tiny = cifar_entry(100)
    assert len(cifar.missing(tiny, tmp_path)) == 2
    rows = records(100)["test"]
    (tmp_path / "test.bin").write_bytes(rows.tobytes()[:-1])
    with pytest.raises(UserError, match=r"test\.bin has 9,221 bytes, no multiple of 3,074"):
        list(cifar.entries(tiny, tmp_path, "test"))
    rows[1, 1] = 10
    (tmp_path / "test.bin").write_bytes(rows.tobytes())
    with pytest.raises(UserError, match=r"test\.bin: image 1 has class 10, .* has 10 classes"):
        list(cifar.entries(tiny, tmp_path, "test"))
    with pytest.raises(UserError, match=r"train\.bin is missing"):
        list(cifar.entries(tiny, tmp_path, "train"))


def test_an_origin_of_an_unknown_kind_is_named(tmp_path: Path) -> None:
    with pytest.raises(
        UserError, match=r"origin 'torrent' is unknown .*known are folder, archive, npm"
    ):
        cifar.fetch(cifar_entry(10, origins=[{"torrent": "x"}]), tmp_path)


def test_names_of_cifar_label_bytes_must_be_those_of_the_labels(tmp_path: Path) -> None:
    tiny = cifar_entry(100).model_copy(update={"options": {"labels": ["coarse", "fine"]}})
    with pytest.raises(
        UserError, match=r"tiny: options are .*fine.*known are \['coarse', 'class'\]"
    ):
        list(cifar.entries(tiny, tmp_path, "train"))


# IDX


def idx_file(values: np.ndarray) -> bytes:
    sizes = struct.pack(f">{values.ndim}I", *values.shape)
    return bytes([0, 0, 8, values.ndim]) + sizes + values.astype(np.uint8).tobytes()


IDX_IMAGES = np.random.default_rng(0).integers(0, 256, (5, 6, 6), dtype=np.uint8)
IDX_LABELS = np.arange(5) % 3


def idx_folder(folder: Path, zipped: bool = True) -> dict[str, str]:
    """Write the four files; returns the checksums of their unpacked bytes."""
    folder.mkdir(parents=True, exist_ok=True)
    sums = {}
    for prefix, count in (("train", 5), ("t10k", 2)):
        for name, values in (("images-idx3", IDX_IMAGES), ("labels-idx1", IDX_LABELS)):
            file = idx_file(values[:count])
            sums[f"{prefix}-{name}-ubyte"] = "sha1:" + hashlib.sha1(file).hexdigest()
            path = folder / f"{prefix}-{name}-ubyte{'.gz' if zipped else ''}"
            path.write_bytes(gzip.compress(file) if zipped else file)
    return sums


def idx_entry(**entry: Any) -> Dataset:
    return dataset("idx", **{"image_size": 6, "labels": {"class": 3}, **entry})


def test_idx_images_come_back_with_their_labels(tmp_path: Path) -> None:
    tiny = idx_entry(checksums=idx_folder(tmp_path))
    assert idx.missing(tiny, tmp_path) == []
    idx.fetch(tiny, tmp_path)
    entries = list(idx.entries(tiny, tmp_path, "train"))
    assert [e.labels["class"] for e in entries] == IDX_LABELS.tolist()
    assert len(list(idx.entries(tiny, tmp_path, "test"))) == 2
    for entry, expected in zip(entries, IDX_IMAGES, strict=True):
        with Image.open(io.BytesIO(idx.encode(tiny, content(entry)))) as image:
            assert (image.format, image.mode) == ("PNG", "L")
            assert (np.asarray(image) == expected).all()


def test_idx_files_are_downloaded_from_a_folder(server: str, tmp_path: Path) -> None:
    sums = idx_folder(tmp_path / "served" / "fashion")
    origins = [{"archive-folder": f"{server}/gone"}, {"archive-folder": f"{server}/fashion/"}]
    idx.fetch(idx_entry(checksums=sums, origins=origins), tmp_path / "raw")
    assert sorted(p.name for p in (tmp_path / "raw").iterdir()) == sorted(sums)


@pytest.mark.skipif(shutil.which("dpkg-deb") is None, reason="needs dpkg-deb")
def test_idx_files_come_out_of_a_debian_package(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sums = idx_folder(tmp_path / "package/usr/share/datasets/fashion-mnist")
    (tmp_path / "package/DEBIAN").mkdir()
    control = "Package: tiny\nVersion: 1\nArchitecture: all\nMaintainer: a <a@b>\nDescription: a\n"
    (tmp_path / "package/DEBIAN/control").write_text(control)
    packed = tmp_path / "tiny_1_all.deb"
    subprocess.run(["dpkg-deb", "-b", tmp_path / "package", packed], check=True)
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin/apt-get").write_text(
        f'#!/bin/sh\n[ "$*" = "download tiny" ] && cp {packed} .\n'
    )
    (tmp_path / "bin/apt-get").chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path / "bin"), prepend=":")
    idx.fetch(idx_entry(checksums=sums, origins=[{"debian": "tiny"}]), tmp_path / "raw")
    assert sorted(p.name for p in (tmp_path / "raw").iterdir()) == sorted(sums)


def test_a_machine_without_debian_tools_is_told_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(UserError, match=r"tiny: apt-get is not installed: this machine is no"):
        idx.fetch(idx_entry(origins=[{"debian": "tiny"}]), tmp_path)


def test_idx_files_with_other_bytes_are_refused(tmp_path: Path) -> None:
    sums = idx_folder(tmp_path)
    sums["t10k-labels-idx1-ubyte"] = "sha1:" + "0" * 40
    with pytest.raises(UserError, match=r"t10k-labels-idx1-ubyte has sha1:\w+, expected sha1:000"):
        idx.fetch(idx_entry(checksums=sums), tmp_path)


def test_idx_files_that_do_not_fit_each_other_are_refused(tmp_path: Path) -> None:
    idx_folder(tmp_path, zipped=False)
    images, labels = tmp_path / idx.FILES["train"][0], tmp_path / idx.FILES["train"][1]
    right = labels.read_bytes()

    def refused(words: str, **entry: Any) -> None:
        with pytest.raises(UserError, match=words):
            list(idx.entries(idx_entry(**entry), tmp_path, "train"))

    refused("images of 6 x 6 pixels, datasets.yaml says image_size 28", image_size=28)
    refused("image 2 has class 2, datasets.yaml has 2 classes", labels={"class": 2})
    labels.write_bytes(idx_file(IDX_LABELS[:4]))
    refused("has 5 images and .*has 4 labels")
    labels.write_bytes(right[:-1])
    refused("has 12 bytes, its header tells of 13")
    labels.write_bytes(idx_file(IDX_IMAGES))
    refused("labels-idx1-ubyte begins with 00000803")
    labels.write_bytes(right)
    images.unlink()
    refused("train-images-idx3-ubyte is missing")
    assert "train-images-idx3-ubyte.gz" in idx.missing(idx_entry(), tmp_path)[0]
