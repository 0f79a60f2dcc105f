"""Raw formats: CIFAR, IDX, folders of images and ready-made shards."""

import gzip
import hashlib
import http.server
import io
import json
import pickle
import shutil
import struct
import subprocess
import tarfile
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from webdataset.shardlists import expand_urls

from ijepa.data.download import download
from ijepa.data.register import Dataset, load_dataset
from ijepa.data.source import Entry, load_source, source_names
from ijepa.data.sources import cifar, flat_folder, idx, image_folder, webdataset
from ijepa.errors import UserError
from tests.hub import TOKEN, serving


def dataset(source: str, **entry: Any) -> Dataset:
    """An entry of the register."""
    fixed = {"name": "tiny", "title": "Tiny", "citation": "none", "licence": "none"}
    splits = {"train": None, "test": None}
    return Dataset.model_validate(
        {**fixed, "source": source, "image_size": 32, "splits": splits, **entry}
    )


def content(entry: Entry) -> bytes:
    """The bytes at an entry's place."""
    whole = entry.file.read_bytes()
    return whole if entry.size is None else whole[entry.offset : entry.offset + entry.size]


def picture(colour: int = 0, size: tuple[int, int] = (4, 4), ending: str = "png") -> bytes:
    file = io.BytesIO()
    Image.new("RGB", size, (colour, 0, 0)).save(file, {"jpg": "jpeg"}.get(ending, ending))
    return file.getvalue()


def test_each_source_has_the_whole_contract() -> None:
    for name in ("cifar", "flat_folder", "idx", "image_folder", "image_lists", "webdataset"):
        assert name in source_names()
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


# Folders


def tree(folder: Path, *names: str) -> Path:
    for number, name in enumerate(names):
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(picture(number, ending=path.suffix[1:].lower()))
    return folder


CLASSES = {"labels": {"class": None}}


def test_an_image_folder_has_the_classes_of_its_training_folders(tmp_path: Path) -> None:
    tree(tmp_path, "train/dog/b.JPG", "train/dog/a/z.png", "train/cat/1.webp", "val/dog/1.png")
    (tmp_path / "train/dog/notes.txt").write_text("none")
    (tmp_path / "train/dog/._b.jpg").write_bytes(b"")
    tiny = dataset("image_folder", **CLASSES)
    image_folder.fetch(tiny, tmp_path)
    entries = list(image_folder.entries(tiny, tmp_path, "train"))
    assert [(e.name, e.labels["class"]) for e in entries] == [
        ("train/cat/1.webp", 0),
        ("train/dog/a/z.png", 1),
        ("train/dog/b.JPG", 1),
    ]
    assert (
        image_folder.encode(tiny, content(entries[0])) == (tmp_path / entries[0].name).read_bytes()
    )
    (test,) = image_folder.entries(tiny, tmp_path, "test")
    assert (test.name, test.labels) == ("val/dog/1.png", {"class": 1})


def test_listed_classes_keep_their_order(tmp_path: Path) -> None:
    tree(tmp_path, "train/dog/1.png", "train/cat/1.png")
    tiny = dataset("image_folder", labels={"animal": ["dog", "cat"]})
    labels = [e.labels for e in image_folder.entries(tiny, tmp_path, "train")]
    assert labels == [{"animal": 0}, {"animal": 1}]


def test_an_image_folder_is_fetched_from_its_origin(server: str, tmp_path: Path) -> None:
    archive, raw = tmp_path / "served" / "photos.tgz", tmp_path / "raw"
    with tarfile.open(archive, "w:gz") as tar:
        for name in ("photos-320/train/cat/0.png", "photos-320/val/cat/1.png"):
            info = tarfile.TarInfo(name)
            info.size = len(picture())
            tar.addfile(info, io.BytesIO(picture()))
    sums = {"photos.tgz": f"md5:{hashlib.md5(archive.read_bytes()).hexdigest()}"}
    origins = [{"archive": f"{server}/photos.tgz"}]
    tiny = dataset(
        "image_folder", **CLASSES, origins=origins, checksums=sums, options={"folder": "photos-320"}
    )
    assert image_folder.missing(tiny, raw) == []
    image_folder.fetch(tiny, raw)
    (entry,) = image_folder.entries(tiny, raw, "test")
    assert content(entry) == picture()
    archive.unlink()
    image_folder.fetch(tiny, raw)  # nothing is asked for again
    wrong = tiny.model_copy(update={"checksums": {}})
    with pytest.raises(UserError, match="needs the form archive: ADDRESS, and checksums"):
        image_folder.fetch(wrong, tmp_path / "elsewhere")
    with pytest.raises(UserError, match=r"options\.root is unknown: allowed is folder"):
        image_folder.fetch(tiny.model_copy(update={"options": {"root": "x"}}), raw)


def test_faults_of_an_image_folder_are_named(tmp_path: Path) -> None:
    tree(tmp_path, "train/cat/1.png", "test/cat/1.png")

    def refused(words: str, split: str = "train", **entry: Any) -> None:
        with pytest.raises(UserError, match=words):
            list(
                image_folder.entries(dataset("image_folder", **(entry or CLASSES)), tmp_path, split)
            )

    refused("train/cat is no class of tiny: it has dog", labels={"class": ["dog"]})
    refused("train/dog has no image", labels={"class": ["cat", "dog"]})
    refused("has 1 folders, datasets.yaml says 2", labels={"class": 2})
    refused("take the source flat_folder", labels={})
    tree(tmp_path, "test/dog/1.png")
    refused("test/dog is no class of tiny: it has cat", "test")
    (tmp_path / "train/dog").mkdir()
    refused("train/dog has no image")
    tree(tmp_path, "train/stray.png")
    refused(r"stray\.png lies in no class's folder")
    shutil.rmtree(tmp_path / "test")
    with pytest.raises(UserError, match=r"bring .*/test"):
        image_folder.fetch(dataset("image_folder", **CLASSES), tmp_path)


def test_a_flat_folder_gives_every_image_once(tmp_path: Path) -> None:
    tree(tmp_path, "b/2.png", "b/1.jpg", "a.png", "held/out/1.png")
    tiny = dataset("flat_folder", splits={"train": None})
    flat_folder.fetch(tiny, tmp_path)
    entries = [(e.name, e.labels) for e in flat_folder.entries(tiny, tmp_path, "train")]
    assert entries == [(n, {}) for n in ("a.png", "b/1.jpg", "b/2.png", "held/out/1.png")]
    tiny = dataset("flat_folder", options={"test": "held"})
    assert [e.name for e in flat_folder.entries(tiny, tmp_path, "train")] == [
        "a.png",
        "b/1.jpg",
        "b/2.png",
    ]
    assert [e.name for e in flat_folder.entries(tiny, tmp_path, "test")] == ["held/out/1.png"]


def test_faults_of_a_flat_folder_are_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="has no image for train"):
        list(flat_folder.entries(dataset("flat_folder"), tmp_path, "train"))
    with pytest.raises(UserError, match=r"name the folder in options\.test"):
        list(flat_folder.entries(dataset("flat_folder"), tmp_path, "test"))
    with pytest.raises(UserError, match="take the source image_folder"):
        list(flat_folder.entries(dataset("flat_folder", **CLASSES), tmp_path, "train"))
    tiny = dataset("flat_folder", options={"tset": "held"})
    with pytest.raises(UserError, match="options tset are unknown to flat_folder"):
        flat_folder.fetch(tiny, tmp_path)
    tiny = dataset("flat_folder", options={"test": "held"})
    with pytest.raises(UserError, match=r"bring .*held"):
        flat_folder.fetch(tiny, tmp_path)


# WebDataset

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
