"""Data sets of the few-shot suite in miniature: archives, torchvision's folders, Hub copies."""

import hashlib
import io
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from scipy.io import savemat

from ijepa.data import register
from ijepa.data.build import build_shards
from ijepa.data.loader import Images
from ijepa.data.register import Dataset, load_dataset
from ijepa.data.source import load_source
from ijepa.errors import UserError
from tests.tars import tar_of

pytestmark = pytest.mark.usefixtures("real_register")

Files = dict[str, bytes]
Listed = list[tuple[str, int]]
"""Name and class of each image."""


def picture(name: str, ending: str = "jpeg", **options: Any) -> bytes:
    """A small image that no other name has."""
    file = io.BytesIO()
    colour = tuple(hashlib.md5(name.encode()).digest()[:3])
    Image.new("RGB", (8, 8), colour).save(file, ending, **options)
    return file.getvalue()


def pictures(folder: str, *names: str) -> Files:
    return {f"{folder}/{name}.jpg": picture(f"{name}.jpg") for name in names}


def lines(*texts: str) -> bytes:
    return "".join(f"{text}\n" for text in texts).encode()


def matlab(**variables: Any) -> bytes:
    file = io.BytesIO()
    savemat(file, variables)
    return file.getvalue()


def annotations(*pairs: tuple[str, int], labelled: bool = True) -> bytes:
    """Annotations of Stanford Cars: a box, a class and the name of each image."""
    boxes = [(f"bbox_{side}", object) for side in ("x1", "y1", "x2", "y2")]
    kinds = [*boxes, *([("class", object)] if labelled else []), ("fname", object)]
    rows = [(1, 2, 3, 4, *([number] if labelled else []), name) for name, number in pairs]
    return matlab(annotations=np.array([rows], dtype=kinds))


DTD = ["banded/banded_0002", "braided/braided_0001", "braided/braided_0010"]
AIRCRAFT = ["0034309", "0056978", "1025794"]
FOOD = ["apple_pie/1005649", "baby_back_ribs/2", "waffles/7"]
PETS = ["Abyssinian_1", "american_pit_bull_terrier_10", "Bengal_2"]
FLOWERS = [f"image_{number:05d}" for number in range(1, 7)]

ARCHIVES: dict[str, dict[str, Files]] = {
    "dtd": {
        "dtd-r1.0.1.tar.gz": {
            **pictures("dtd/images", *DTD),
            "dtd/labels/train1.txt": lines(*(f"{name}.jpg" for name in DTD[:2])),
            "dtd/labels/val1.txt": lines(f"{DTD[1]}.jpg"),
            "dtd/labels/test1.txt": lines(f"{DTD[2]}.jpg"),
            "dtd/labels/labels_joint_anno.txt": lines(f"{DTD[0]}.jpg banded"),
        }
    },
    "aircraft": {
        "fgvc-aircraft-2013b.tar.gz": {
            **pictures("fgvc-aircraft-2013b/data/images", *AIRCRAFT),
            "fgvc-aircraft-2013b/data/variants.txt": lines("Model B200", "F/A-18"),
            "fgvc-aircraft-2013b/data/images_variant_train.txt": lines(
                "0034309 Model B200", "0056978 F/A-18"
            ),
            "fgvc-aircraft-2013b/data/images_variant_test.txt": lines("1025794 F/A-18"),
        }
    },
    "cars": {
        "cars_train.tgz": pictures("cars_train", "00001", "00002"),
        "cars_test.tgz": pictures("cars_test", "00001"),
        "car_devkit.tgz": {
            "devkit/cars_train_annos.mat": annotations(("00001.jpg", 2), ("00002.jpg", 1)),
            "devkit/cars_test_annos.mat": annotations(("00001.jpg", 0), labelled=False),
        },
        "cars_test_annos_withlabels.mat": {
            "cars_test_annos_withlabels.mat": annotations(("00001.jpg", 2))
        },
    },
    "flowers102": {
        "102flowers.tgz": pictures("jpg", *FLOWERS),
        "imagelabels.mat": {"imagelabels.mat": matlab(labels=[[2, 2, 1, 1, 1, 2]])},
        "setid.mat": {"setid.mat": matlab(trnid=[[4, 1]], valid=[[3, 2]], tstid=[[5, 6]])},
    },
    "food101": {
        "food-101.tar.gz": {
            **pictures("food-101/images", *FOOD),
            "food-101/meta/train.txt": lines(*FOOD[:2]),
            "food-101/meta/test.txt": lines(FOOD[0]),
            "food-101/meta/train.json": b"{}",
        }
    },
    "pets": {
        "images.tar.gz": {**pictures("images", *PETS), "images/Abyssinian_1.mat": b"none"},
        "annotations.tar.gz": {
            "annotations/list.txt": lines("#Image CLASS-ID SPECIES BREED ID", "Abyssinian_1 1 1 1"),
            "annotations/trainval.txt": lines(
                "Abyssinian_1 1 1 1", "american_pit_bull_terrier_10 2 2 1"
            ),
            "annotations/test.txt": lines("Abyssinian_1 1 1 1"),
        },
    },
}
EXPECTED: dict[str, dict[str, Listed]] = {
    "dtd": {"train": [(f"{DTD[0]}.jpg", 0), (f"{DTD[1]}.jpg", 1)], "test": [(f"{DTD[2]}.jpg", 1)]},
    "aircraft": {"train": [("0034309.jpg", 0), ("0056978.jpg", 1)], "test": [("1025794.jpg", 1)]},
    "cars": {"train": [("00001.jpg", 1), ("00002.jpg", 0)], "test": [("00001.jpg", 1)]},
    "flowers102": {
        "train": [("image_00004.jpg", 0), ("image_00001.jpg", 1)],
        "test": [("image_00005.jpg", 0), ("image_00006.jpg", 1)],
    },
    "food101": {
        "train": [(f"{FOOD[0]}.jpg", 0), (f"{FOOD[1]}.jpg", 1)],
        "test": [(f"{FOOD[0]}.jpg", 0)],
    },
    "pets": {
        "train": [(f"{PETS[0]}.jpg", 0), (f"{PETS[1]}.jpg", 1)],
        "test": [(f"{PETS[0]}.jpg", 0)],
    },
}
TORCHVISION = {
    "dtd": "dtd", "aircraft": "", "cars": "stanford_cars", "flowers102": "flowers-102",
    "food101": "", "pets": "oxford-iiit-pet",
}  # fmt: skip
"""Folder of each data set in torchvision's root."""
NAMES = sorted(ARCHIVES)


def write(folder: Path, files: Files) -> Path:
    for name, content in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)
    return folder


def archived(name: str) -> Files:
    """The official files of a data set."""
    packed = {}
    for archive, files in ARCHIVES[name].items():
        file = io.BytesIO()
        with tarfile.open(fileobj=file, mode="w:gz") as tar:
            for path, content in files.items():
                member = tarfile.TarInfo(path)
                member.size, member.mtime = len(content), 1_000_000_000
                tar.addfile(member, io.BytesIO(content))
        packed[archive] = files[archive] if archive in files else file.getvalue()
    return packed


def unpacked(name: str) -> Files:
    """Content of the official files of a data set, by path."""
    return {path: content for files in ARCHIVES[name].values() for path, content in files.items()}


def tiny(name: str, files: Files | None = None, address: str | None = None) -> Dataset:
    """The register's entry, with the sizes of the miniature, and the checksums of ``files``."""
    sums = {key: f"md5:{hashlib.md5(value).hexdigest()}" for key, value in (files or {}).items()}
    origins = [] if address is None else [{"archive": f"{address}/{key}"} for key in sums]
    updates = {
        "labels": {"class": 2},
        "splits": {"train": None, "test": None},
        "checksums": sums,
        "origins": origins,
    }
    return load_dataset(name).model_copy(update=updates)


def listed(dataset: Dataset, raw: Path, split: str) -> Listed:
    """Name and class of each image, after its place was found to hold the image of that name."""
    entries = list(load_source(dataset.source).entries(dataset, raw, split))
    assert [entry.file.read_bytes() for entry in entries] == [picture(e.name) for e in entries]
    return [(entry.name, entry.labels["class"]) for entry in entries]


def check(dataset: Dataset, raw: Path) -> None:
    source = load_source(dataset.source)
    assert source.missing(dataset, raw) == []
    source.fetch(dataset, raw)
    for split, expected in EXPECTED[dataset.name].items():
        assert listed(dataset, raw, split) == expected


@pytest.mark.parametrize("name", NAMES)
def test_official_archives_are_checked_unpacked_and_listed(name: str, tmp_path: Path) -> None:
    files = archived(name)
    write(tmp_path, files)
    check(tiny(name, files), tmp_path)
    check(tiny(name, files), tmp_path)


@pytest.mark.parametrize("name", NAMES)
def test_official_archives_are_fetched_from_their_addresses(
    name: str, server: str, tmp_path: Path
) -> None:
    files = archived(name)
    write(tmp_path / "served", files)
    check(tiny(name, files, server), tmp_path / "raw")


@pytest.mark.parametrize("name", NAMES)
def test_torchvisions_folders_are_read_where_they_are(name: str, tmp_path: Path) -> None:
    """Without the archives: its root, or its folder of the data set; read-only ones too."""
    folder = write(tmp_path / "root" / TORCHVISION[name], unpacked(name))
    for raw in {tmp_path / "root", folder}:
        raw.chmod(0o555)
        check(tiny(name, archived(name), "http://no.such.host"), raw)
        raw.chmod(0o755)
    before = {path.name for path in (tmp_path / "root").rglob("*") if path.is_file()}
    assert before == {path.rpartition("/")[2] for path in unpacked(name)}


@pytest.mark.parametrize("name", NAMES)
def test_another_data_set_in_torchvisions_root_is_no_part_of_it(name: str, tmp_path: Path) -> None:
    """Both Food-101 and Pets have a folder called images."""
    for other in set(NAMES) - {name}:
        write(tmp_path / TORCHVISION[other], unpacked(other))
    assert (
        load_source(load_dataset(name).source).missing(tiny(name, archived(name), "x"), tmp_path)
        == []
    )


@pytest.mark.parametrize(("name", "folder"), [("dtd", "dtd"), ("food101", "food-101")])
def test_the_topmost_folder_of_an_archive_may_be_named(
    name: str, folder: str, tmp_path: Path
) -> None:
    check(tiny(name), write(tmp_path, unpacked(name)) / folder)


@pytest.mark.parametrize("name", NAMES)
def test_a_missing_split_file_is_named_before_anything_is_done(name: str, tmp_path: Path) -> None:
    write(tmp_path, unpacked(name))
    lost = {
        "dtd": "dtd/labels/test1.txt",
        "aircraft": "fgvc-aircraft-2013b/data/images_variant_test.txt",
        "cars": "cars_test_annos_withlabels.mat",
        "flowers102": "setid.mat",
        "food101": "food-101/meta/test.txt",
        "pets": "annotations/test.txt",
    }[name]
    (tmp_path / lost).unlink()
    dataset = tiny(name, archived(name), "http://no.such.host")
    source = load_source(dataset.source)
    (message,) = source.missing(dataset, tmp_path)
    assert message.startswith(f"{tmp_path / lost} (it is part of ")
    with pytest.raises(UserError, match=f"bring them, then run again: .*{Path(lost).name}"):
        source.fetch(dataset, tmp_path)
    with pytest.raises(UserError, match=f"{Path(lost).name} is missing: bring "):
        list(source.entries(dataset, tmp_path, "train"))


def test_a_file_that_was_removed_is_unpacked_again(tmp_path: Path) -> None:
    files = archived("dtd")
    write(tmp_path, files)
    check(tiny("dtd", files), tmp_path)
    (tmp_path / "dtd/labels/test1.txt").unlink()
    check(tiny("dtd", files), tmp_path)


@pytest.mark.parametrize("name", NAMES)
def test_without_archives_and_addresses_each_archive_is_asked_for(
    name: str, tmp_path: Path
) -> None:
    dataset = tiny(name)
    source = load_source(dataset.source)
    asked = [text.partition(" ")[0] for text in source.missing(dataset, tmp_path / "raw")]
    assert asked == [str(tmp_path / "raw" / archive) for archive in ARCHIVES[name]]


def test_an_archive_with_another_checksum_is_refused(tmp_path: Path) -> None:
    files = archived("food101")
    write(tmp_path, files)
    dataset = tiny("food101", {name: content + b"." for name, content in files.items()})
    with pytest.raises(UserError, match=r"food-101\.tar\.gz has md5 \w+, expected"):
        load_source("image_lists").fetch(dataset, tmp_path)


@pytest.mark.parametrize("name", NAMES)
def test_an_image_that_is_listed_and_not_there_is_named(name: str, tmp_path: Path) -> None:
    write(tmp_path, unpacked(name))
    first = load_source(load_dataset(name).source)
    entry = next(iter(first.entries(tiny(name), tmp_path, "train")))
    entry.file.unlink()
    with pytest.raises(UserError, match=rf"{entry.file.name} is missing, \S+ names it: bring"):
        list(first.entries(tiny(name), tmp_path, "train"))


@pytest.mark.parametrize("name", NAMES)
def test_classes_that_are_not_those_of_the_register_are_refused(name: str, tmp_path: Path) -> None:
    write(tmp_path, unpacked(name))
    dataset = tiny(name).model_copy(update={"labels": {"class": 1}})
    with pytest.raises(UserError, match=r"datasets\.yaml (says|has) 1"):
        list(load_source(dataset.source).entries(dataset, tmp_path, "train"))


@pytest.mark.parametrize(
    ("name", "path", "content", "words"),
    [
        ("pets", "annotations/test.txt", b"Abyssinian_1 1\n", "line 1: 'Abyssinian_1 1' names no"),
        ("dtd", "dtd/labels/test1.txt", b"\xff/x.jpg\n", "line 1: the class '.' has no training"),
        ("flowers102", "setid.mat", b"none", r"setid\.mat is damaged, or has no trnid"),
        ("flowers102", "imagelabels.mat", b"no" * 99, r"imagelabels\.mat is damaged, or has"),
        (
            "flowers102",
            "setid.mat",
            matlab(trnid=[[9]]),
            "trnid has image 9, imagelabels.mat has 6",
        ),
        ("flowers102", "setid.mat", matlab(tstid=[[1]]), "has no trnid"),
        (
            "cars",
            "devkit/cars_train_annos.mat",
            annotations(("00001.jpg", 0), labelled=False),
            r"have no class, as those of cars_test_annos\.mat",
        ),
        (
            "cars",
            "devkit/cars_train_annos.mat",
            annotations(("00001.jpg", 0)),
            r"00001\.jpg has class 0, datasets\.yaml has 2 classes, from 1 on",
        ),
    ],
)
def test_faulty_lists_are_named(
    name: str, path: str, content: bytes, words: str, tmp_path: Path
) -> None:
    write(tmp_path, {**unpacked(name), path: content})
    dataset = tiny(name)
    read = load_source(dataset.source).entries
    with pytest.raises(UserError, match=words):
        [list(read(dataset, tmp_path, split)) for split in ("train", "test")]


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"line": "("}, r"tiny_lists: options\.line: .*unterminated"),
        ({"line": "(?P<image>.*)"}, r"options\.line: it has no groups image and class"),
        ({"train": "train.txt"}, "give images, line, as lists archives, train and test"),
        ({"tset": []}, "give images, line, as lists archives, train and test"),
    ],
)
def test_faulty_options_are_named(options: dict[str, Any], words: str, tmp_path: Path) -> None:
    write(tmp_path, unpacked("dtd"))
    entry = tiny("dtd")
    more = {"name": "tiny_lists", "options": {**entry.options, **options}}
    with pytest.raises(UserError, match=words):
        list(load_source("image_lists").entries(entry.model_copy(update=more), tmp_path, "train"))


def test_shards_are_built_from_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    dataset = tiny("pets")
    raw = write(tmp_path / "raw", unpacked("pets"))
    monkeypatch.setattr(register, "load_dataset", lambda name: dataset)
    build_shards("pets", raw, tmp_path / "shards", num_workers=1)
    images = Images(tmp_path / "shards", "train")
    assert images.labels["class"].tolist() == [0, 1]


# The Hub


def hub(folder: Path, counts: dict[str, list[int]]) -> Path:
    """A copy as CLIP_benchmark writes it: shards of lossless WebP, counted in nshards.txt."""
    number = 0
    for split, sizes in counts.items():
        (folder / split).mkdir(parents=True)
        for shard, size in enumerate(sizes):
            files = {}
            for _ in range(size):
                files[f"s{number:07d}.cls"] = str(number % 2).encode()
                files[f"s{number:07d}.webp"] = picture(f"{number}", "webp", lossless=True)
                number += 1
            (folder / split / f"{shard}.tar").write_bytes(tar_of(files))
        (folder / split / "nshards.txt").write_text(f"{len(sizes)}\n")
    (folder / "classnames.txt").write_text("a\nb\n")
    return folder


def copy_of(name: str, address: str) -> Dataset:
    """The register's entry of a copy, at another address."""
    entry = load_dataset(f"{name}_hub")
    options = {split: f"{address}/{split}/" for split in ("train", "test")}
    return entry.model_copy(update={"labels": {"class": 2}, "options": options})


HUB = ["dtd", "aircraft", "cars", "cifar10", "cifar100", "flowers102", "food101", "pets"]


@pytest.mark.parametrize("name", HUB)
def test_the_register_names_copies_on_the_hub(name: str) -> None:
    entry = load_dataset(f"{name}_hub")
    assert entry.source == "webdataset"
    assert list(entry.labels) == ["class"]
    assert entry.num_classes("class") == load_dataset(name).num_classes("class")
    for split, address in entry.options.items():
        assert address.startswith("https://huggingface.co/datasets/clip-benchmark/wds_")
        assert address.endswith(f"/resolve/main/{split}/")


@pytest.mark.parametrize(("name", "remote"), [("dtd", True), *((name, False) for name in HUB)])
def test_all_shards_that_a_copy_counts_are_read(
    name: str, remote: bool, server: str, tmp_path: Path
) -> None:
    folder = hub(tmp_path / "served" / "copy", {"train": [3, 1], "test": [2]})
    raw = tmp_path / "raw"
    raw.mkdir()
    dataset = copy_of(name, f"{server}/copy" if remote else str(folder))
    source = load_source("webdataset")
    assert source.missing(dataset, raw) == []
    source.fetch(dataset, raw)
    train, test = (list(source.entries(dataset, raw, split)) for split in ("train", "test"))
    assert [entry.labels["class"] for entry in train] == [0, 1, 0, 1]
    assert len(test) == 2
    assert len(list(raw.iterdir())) == (5 if remote else 0)


def test_faults_of_a_copy_are_named(tmp_path: Path) -> None:
    folder = hub(tmp_path / "copy", {"train": [1, 1], "test": [1]})
    dataset, source = copy_of("dtd", str(folder)), load_source("webdataset")
    (folder / "train" / "1.tar").unlink()
    assert source.missing(dataset, tmp_path) == [f"{folder}/train/1.tar (a shard of options.train)"]
    (folder / "train" / "nshards.txt").write_text("some\n")
    with pytest.raises(UserError, match=r"nshards\.txt says 'some', no number of shards: bring"):
        source.missing(dataset, tmp_path)
    (folder / "train" / "nshards.txt").unlink()
    (message,) = source.missing(dataset, tmp_path)
    assert message.startswith(f"{folder}/train/nshards.txt")
    with pytest.raises(UserError, match=r"nshards\.txt is missing: fetch it"):
        list(source.entries(dataset, tmp_path, "train"))
