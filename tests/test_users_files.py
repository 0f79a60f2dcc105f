"""Files and folders as users have them: taken as they are, or refused in one line."""

import lzma
import shutil
import tarfile
import zlib
from pathlib import Path
from typing import Any

import pytest
import yaml
from PIL import Image

from ijepa.data import register
from ijepa.data.archives import tar_entries
from ijepa.data.download import _origin, _receive
from ijepa.data.origins import fault
from ijepa.data.register import load_dataset
from ijepa.data.sources import cifar, flat_folder, idx, image_folder, imagenet, webdataset
from ijepa.errors import UserError, in_one_line
from tests.raw_files import dataset
from tests.test_sources import cifar_archive, cifar_entry, idx_entry, idx_folder


@pytest.mark.parametrize(("mode", "tool"), [("w:gz", "gunzip"), ("w:bz2", "bunzip2")])
def test_a_compressed_shard_is_called_so(mode: Any, tool: str, tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(b"a")
    with tarfile.open(tmp_path / "0.tar", mode) as tar:
        tar.add(tmp_path / "a.png", "a.png")
    with pytest.raises(UserError, match=rf"0\.tar is compressed, .*unpack it \({tool}\)"):
        list(tar_entries(tmp_path / "0.tar"))


@pytest.mark.parametrize(
    ("head", "tool"),
    [
        (b"\x04\x22\x4d\x18d@", "unlz4"),
        (b"PK\3\4\x14", "unzip"),
        (lzma.compress(b"a", lzma.FORMAT_ALONE), "unlzma"),
        *((zlib.compress(b"a", level), "pigz -dz") for level in (1, 6, 9)),
    ],
    ids=["lz4", "zip", "lzma", "zlib 1", "zlib 6", "zlib 9"],
)
def test_a_shard_compressed_in_a_rarer_way_is_called_so(
    head: bytes, tool: str, tmp_path: Path
) -> None:
    (tmp_path / "0.tar").write_bytes(head.ljust(1024, b"a"))
    with pytest.raises(UserError, match=rf"0\.tar is compressed, .*unpack it \({tool}\)"):
        list(tar_entries(tmp_path / "0.tar"))


@pytest.mark.parametrize("test", ["..", "a/../../b", "/tmp", ".", "", 3])
def test_the_test_folder_lies_within_the_raw_files(test: Any, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"options\.test is .*: name a folder within"):
        flat_folder.missing(dataset("flat_folder", options={"test": test}), tmp_path)


ENTRY = {
    **dict.fromkeys(("title", "citation", "licence"), "any"),
    **{"source": "image_folder", "image_size": 8, "splits": {"train": None}},
}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"a": ENTRY, 1: ENTRY}, "1 is no text: quote it, or rename the data set"),
        ({"a": {**ENTRY, "shard_size": -1}}, r"a: shard_size: .*greater than or equal to 1"),
        ({"a": {**ENTRY, "checksums": {"x.tar": "0123"}}}, r"a: checksums\.x\.tar: .*pattern"),
        ({"a": {**ENTRY, "splits": {"test": 3}}}, "a: splits: .*train is missing"),
    ],
)
def test_an_entry_of_the_register_of_a_wrong_type_is_named(
    content: Any, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "datasets.yaml").write_text(yaml.safe_dump(content, sort_keys=False))
    monkeypatch.setattr(register, "REGISTER", tmp_path / "datasets.yaml")
    with pytest.raises(UserError, match=message) as error:
        load_dataset("a")
    assert "\n" not in str(error.value)


def test_a_checksum_in_capitals_is_that_of_the_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    entry = {**ENTRY, "checksums": {"x.tar": "md5:0CC175B9C0F1B6A831C399E269772661"}}
    (tmp_path / "datasets.yaml").write_text(yaml.safe_dump({"a": entry}))
    monkeypatch.setattr(register, "REGISTER", tmp_path / "datasets.yaml")
    assert load_dataset("a").checksums["x.tar"] == "md5:0cc175b9c0f1b6a831c399e269772661"


def test_an_error_of_several_lines_is_told_whole_and_a_worker_s_without_its_traceback() -> None:
    for text in (
        "a.pt does not fit:\n\tsize",
        "Original Traceback:\n  x\nUserError: a.pt does not fit: size",
    ):
        with pytest.raises(SystemExit, match=r"^error: a\.pt does not fit: size$"), in_one_line():
            raise UserError(text)


@pytest.mark.parametrize(
    ("source", "options"),
    [
        (cifar, {"labels": 3}),
        (cifar, {"labels": [1]}),
        (webdataset, {"train": "0.tar", "test": ["1.tar"]}),
        (webdataset, {"train": "0.tar", "test": "1.tar", "json_label": 3}),
        (imagenet, {"subsets": "1pct"}),
        (imagenet, {"subsets": ["5pct"]}),
    ],
)
def test_options_of_a_wrong_type_are_named(source: Any, options: Any, tmp_path: Path) -> None:
    entry = dataset("any", options=options, labels={"class": 3})

    def read(*where: Any) -> Any:
        if source is cifar:
            return list(cifar.entries(where[0], where[1], "train"))
        return source.missing(*where)

    with pytest.raises(UserError, match=r"datasets\.yaml: tiny: options"):
        read(entry, tmp_path)


def test_a_folder_with_the_name_of_a_raw_file_is_named(tmp_path: Path) -> None:
    (tmp_path / "data_batch_1.bin").mkdir()
    with pytest.raises(UserError, match=r"data_batch_1\.bin is a folder where a file is needed"):
        cifar.fetch(cifar_entry(10), tmp_path)


@pytest.mark.parametrize("python", [False, True])
@pytest.mark.parametrize("kind", [10, 100])
def test_cifar_s_unpacked_folder_is_taken(kind: int, python: bool, tmp_path: Path) -> None:
    """The folder of raw files may also be the unpacked one itself."""
    ending = {10: ("batches-bin", "batches-py"), 100: ("binary", "python")}[kind][python]
    cifar_archive(tmp_path / "a.tar.gz", kind, python)
    with tarfile.open(tmp_path / "a.tar.gz") as tar:
        tar.extractall(tmp_path)
    unpacked = tmp_path / f"cifar-{kind}-{'python' if python else 'binary'}"
    within = tmp_path / "raw" / f"cifar-{kind}-{ending}"
    shutil.copytree(unpacked, within)
    for raw in (tmp_path / "raw", unpacked):
        assert cifar.missing(cifar_entry(kind), raw) == []
        cifar.fetch(cifar_entry(kind), raw)
        assert len(list(cifar.entries(cifar_entry(kind), raw, "train"))) == 9 - 3 * (kind == 100)


@pytest.mark.parametrize("folder", ["", "MNIST/raw"])
def test_mnist_s_other_names_are_taken(folder: str, tmp_path: Path) -> None:
    entry = idx_entry(checksums=idx_folder(tmp_path / folder, zipped=False))
    for path in list((tmp_path / folder).iterdir()):
        path.rename(path.with_name(path.name.replace("-idx", ".idx")))
    assert idx.missing(entry, tmp_path) == []
    idx.fetch(entry, tmp_path)
    assert not any(fault(entry, tmp_path / name) for name in idx.NAMES)


@pytest.mark.parametrize("name", ["test", "val", "validation"])
def test_the_folder_of_test_images_has_one_of_three_names(name: str, tmp_path: Path) -> None:
    for split in ("train", name):
        (tmp_path / split / "cat").mkdir(parents=True)
        Image.new("RGB", (4, 4)).save(tmp_path / split / "cat" / "0.png")
    entry = dataset("image_folder", labels={"class": None})
    assert image_folder.missing(entry, tmp_path) == []
    assert len(list(image_folder.entries(entry, tmp_path, "test"))) == 1


@pytest.mark.parametrize("root", ["", "ILSVRC/Data/CLS-LOC", "Data/CLS-LOC"])
@pytest.mark.parametrize("val", ["val", "validation"])
def test_imagenet_is_found_below_kaggle_s_root(root: str, val: str, tmp_path: Path) -> None:
    for split in ("train", val):
        folder = tmp_path / root / split / "n01440764"
        folder.mkdir(parents=True)
        Image.new("RGB", (4, 4)).save(folder / "n01440764_1.JPEG")
    entry = dataset("imagenet", labels={"class": 1})
    assert imagenet.missing(entry, tmp_path) == []
    imagenet.fetch(entry, tmp_path)
    for split in ("train", "test"):
        assert len(list(imagenet.entries(entry, tmp_path, split))) == 1


def test_the_record_of_a_download_has_no_signature_and_a_renewed_one_goes_on(
    server: str, tmp_path: Path
) -> None:
    (tmp_path / "served" / "a").write_bytes(b"whole")
    part = tmp_path / "a.part"
    for signature in ("FIRST", "RENEWED"):
        _receive(f"{server}/a?sig={signature}", part, {})
        record = _origin(part).read_text()
        assert record.startswith(f"{server}/a\n")
        assert signature not in record
