"""ImageNet-1k and ImageNet-22k, each in miniature."""

import gzip
import io
import json
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import pytest
from scipy.io import savemat

from ijepa.data import register
from ijepa.data.build import build_shards
from ijepa.data.loader import Images
from ijepa.data.shards import read_index
from ijepa.data.source import load_source
from ijepa.errors import UserError
from tests.named_pictures import fetched, make, picture, pictures, summary, write
from tests.tars import tar_of

# ImageNet-1k

IMAGENET = make("imagenet", 3)
IMAGENET_SOURCE = load_source("imagenet")
WNIDS = ["n01440764", "n01443537", "n02084071"]
TRAIN = {wnid: [f"{wnid}_{number}.JPEG" for number in (9, 10)] for wnid in WNIDS}
VAL = [f"ILSVRC2012_val_{number:08d}.JPEG" for number in range(1, 5)]
VAL_CLASSES = [2, 0, 1, 0]
IMAGENET_TRAIN = [(name, label) for label, w in enumerate(WNIDS) for name in sorted(TRAIN[w])]
IMAGENET_VAL = [(VAL[1], 0), (VAL[3], 0), (VAL[2], 1), (VAL[0], 2)]


def train_tar() -> bytes:
    inner = {f"{wnid}.tar": tar_of(pictures(names)) for wnid, names in TRAIN.items()}
    return tar_of(dict(reversed(inner.items())))


def devkit(truth: str = "1\n3\n2\n3\n") -> bytes:
    """ILSVRC2012_IDs do not follow the order of the WordNet IDs; the last is a class of classes."""
    kinds = [("ILSVRC2012_ID", "O"), ("WNID", "O"), ("words", "O"), ("num_children", "O")]
    ids = [WNIDS[2], WNIDS[1], WNIDS[0], "n00001740"]
    rows = [(1 + row, wnid, "word, other", int(row == 3)) for row, wnid in enumerate(ids)]
    meta = io.BytesIO()
    savemat(meta, {"synsets": np.array([[row] for row in rows], kinds)})
    folder = "ILSVRC2012_devkit_t12/data"
    files = {
        f"{folder}/meta.mat": meta.getvalue(),
        f"{folder}/ILSVRC2012_validation_ground_truth.txt": truth.encode(),
    }
    return gzip.compress(tar_of(files))


@pytest.fixture
def official(tmp_path: Path) -> Path:
    archives = {
        "ILSVRC2012_img_train.tar": train_tar(),
        "ILSVRC2012_img_val.tar": tar_of(pictures(reversed(VAL))),
        "ILSVRC2012_devkit_t12.tar.gz": devkit(),
    }
    write(tmp_path / "official", archives)
    return tmp_path / "official"


@pytest.fixture
def folders(tmp_path: Path) -> Path:
    for wnid, names in TRAIN.items():
        write(tmp_path / "folders" / "train" / wnid, pictures(names))
    for name, label in zip(VAL, VAL_CLASSES, strict=True):
        write(tmp_path / "folders" / "val" / WNIDS[label], pictures([name]))
    return tmp_path / "folders"


def test_imagenet_is_the_same_from_archives_and_from_folders(official: Path, folders: Path) -> None:
    for raw in (official, folders):
        assert summary(fetched(IMAGENET, raw, "train"), IMAGENET) == IMAGENET_TRAIN
        assert summary(fetched(IMAGENET, raw, "test"), IMAGENET) == IMAGENET_VAL


def test_one_split_of_imagenet_may_be_an_archive_and_the_other_folders(
    official: Path, folders: Path
) -> None:
    (official / "ILSVRC2012_img_train.tar").unlink()
    (folders / "train").rename(official / "train")
    assert summary(fetched(IMAGENET, official, "train"), IMAGENET) == IMAGENET_TRAIN
    assert summary(fetched(IMAGENET, official, "test"), IMAGENET) == IMAGENET_VAL


def test_imagenet_says_at_once_all_that_is_missing(tmp_path: Path, official: Path) -> None:
    source = load_source("imagenet")
    train, val, devkit = source.missing(IMAGENET, tmp_path)
    assert "ILSVRC2012_img_train.tar" in train
    assert "ILSVRC2012_img_val.tar" in val
    assert "ILSVRC2012_devkit_t12.tar.gz" in devkit
    with pytest.raises(UserError, match=r"img_train\.tar .*image-net.*img_val\.tar "):
        source.fetch(IMAGENET, tmp_path)
    (official / "ILSVRC2012_devkit_t12.tar.gz").unlink()
    (forgotten,) = source.missing(IMAGENET, official)
    assert "ILSVRC2012_devkit_t12.tar.gz" in forgotten


def test_imagenet_archives_are_checked(official: Path) -> None:
    for name in ("ILSVRC2012_img_val.tar", "ILSVRC2012_devkit_t12.tar.gz"):
        dataset = make("imagenet", 3, checksums={name: "md5:" + "0" * 32})
        with pytest.raises(UserError, match=rf"{name} has md5 \w+, expected 0000.*bring it again"):
            load_source("imagenet").fetch(dataset, official)


def test_a_half_downloaded_imagenet_is_named(official: Path) -> None:
    path = official / "ILSVRC2012_img_train.tar"
    path.write_bytes(path.read_bytes()[:-14_000])
    with pytest.raises(UserError, match=r"img_train\.tar is damaged or was not downloaded"):
        fetched(IMAGENET, official, "train")


def test_a_damaged_list_of_classes_is_named(official: Path) -> None:
    fetched(IMAGENET, official, "train")
    meta = official / "ILSVRC2012_devkit_t12/data/meta.mat"
    meta.write_bytes(bytes(range(256)) * 9)
    with pytest.raises(UserError, match=r"meta\.mat is damaged or no list of classes"):
        fetched(IMAGENET, official, "train")


def test_a_list_in_another_encoding_is_named(official: Path) -> None:
    write_list(official, "1percent.txt", [names[0] for names in TRAIN.values()])
    path = official / "1percent.txt"
    path.write_bytes(path.read_bytes() + b"n\xff\xfe_1.JPEG\n")
    with pytest.raises(UserError, match=r"1percent\.txt, line 4: .* names an image of no class"):
        fetched(IMAGENET, official, "train")


def flatten(folder: Path, name: str) -> None:
    """Move the images of class folders into the folder above."""
    for path in list(folder.glob("*/*")):
        path.rename(folder / name.format(image=path.stem, wnid=path.parent.name))
    for path in folder.glob("n*[0-9]/"):
        path.rmdir()


@pytest.mark.parametrize("name", ["{image}.JPEG", "{image}_{wnid}.JPEG"])
def test_images_in_one_folder_may_name_their_classes(name: str, folders: Path) -> None:
    """The Hugging Face Hub has such names; an official training image has one anyway."""
    flatten(folders / "train", name)
    flatten(folders / "val", "{image}_{wnid}.JPEG")
    assert summary(fetched(IMAGENET, folders, "train"), IMAGENET) == IMAGENET_TRAIN
    assert summary(fetched(IMAGENET, folders, "test"), IMAGENET) == IMAGENET_VAL


@pytest.mark.parametrize("place", [".", ".."])
def test_kaggle_s_list_gives_the_classes_of_its_validation_images(
    place: str, folders: Path
) -> None:
    flatten(folders / "val", "{image}.JPEG")
    pairs = zip(VAL, VAL_CLASSES, strict=True)
    rows = [f"{Path(name).stem},{WNIDS[label]} 1 2 3 4 \n".encode() for name, label in pairs]
    path = folders / place / "LOC_val_solution.csv"
    path.write_bytes(b"ImageId,PredictionString\n" + b"".join(rows))
    assert summary(fetched(IMAGENET, folders, "test"), IMAGENET) == IMAGENET_VAL
    path.write_bytes(b"".join(rows[:3]))
    with pytest.raises(UserError, match=rf"{VAL[3]} has no class .* nor a line in .*LOC_val"):
        fetched(IMAGENET, folders, "test")


@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-le"])
def test_kaggle_s_list_in_another_encoding_is_named(encoding: str, folders: Path) -> None:
    flatten(folders / "val", "{image}.JPEG")
    (folders / "LOC_val_solution.csv").write_text("ImageId,Prediction\n", encoding=encoding)
    with pytest.raises(UserError, match=r"LOC_val_solution\.csv is no text in UTF-8: bring"):
        fetched(IMAGENET, folders, "test")


def test_validation_images_of_which_nothing_tells_the_class_are_refused(folders: Path) -> None:
    flatten(folders / "val", "{image}.JPEG")
    (kaggle,) = IMAGENET_SOURCE.missing(IMAGENET, folders)
    assert f"{folders}/LOC_val_solution.csv (from Kaggle, " in kaggle
    with pytest.raises(UserError, match="or sort them into one folder a class"):
        IMAGENET_SOURCE.fetch(IMAGENET, folders)


def test_folders_that_are_no_classes_or_lack_one_are_named(folders: Path) -> None:
    fetch = load_source("imagenet").fetch
    (folders / "val" / "n99999999").mkdir()
    with pytest.raises(UserError, match=r"val has another class, n99999999 \(1 such in all\)"):
        fetch(IMAGENET, folders)
    (folders / "val" / "n99999999").rmdir()
    (folders / "train" / "dogs").mkdir()
    with pytest.raises(UserError, match=r"train/dogs is named after no class.*move it away"):
        fetch(IMAGENET, folders)
    (folders / "train" / "dogs").rmdir()
    (folders / "val" / WNIDS[1]).rename(folders / "elsewhere")
    with pytest.raises(UserError, match=rf"val lacks the class {WNIDS[1]} \(1 such"):
        fetch(IMAGENET, folders)
    with pytest.raises(UserError, match=r"train has 3 classes, imagenet has 1000"):
        fetch(make("imagenet", 1000), folders)


def test_a_class_folder_without_images_is_named(folders: Path) -> None:
    for path in (folders / "train" / WNIDS[1]).iterdir():
        path.unlink()
    with pytest.raises(UserError, match=rf"train/{WNIDS[1]} has no images"):
        fetched(IMAGENET, folders, "train")


def test_a_train_archive_that_lacks_a_class_is_refused(official: Path) -> None:
    inner = {f"{wnid}.tar": tar_of(pictures(TRAIN[wnid])) for wnid in WNIDS[:2]}
    write(official, {"ILSVRC2012_img_train.tar": tar_of(inner)})
    with pytest.raises(UserError, match=rf"img_train\.tar lacks the class {WNIDS[2]}"):
        fetched(IMAGENET, official, "train")


def test_validation_images_without_a_label_are_named(official: Path) -> None:
    write(official, {"ILSVRC2012_devkit_t12.tar.gz": devkit("1\n3\n2\n")})
    with pytest.raises(UserError, match=r"00000004\.JPEG has no line in .*truth\.txt \(3 lines\)"):
        fetched(IMAGENET, official, "test")
    write(official, {"ILSVRC2012_devkit_t12.tar.gz": devkit("1\n3\n4\n3\n")})
    with pytest.raises(UserError, match=r"truth\.txt, line 3: '4' is the ILSVRC2012_ID of no cl"):
        fetched(IMAGENET, official, "test")


def test_a_development_kit_without_its_files_is_named(official: Path) -> None:
    load_source("imagenet").fetch(IMAGENET, official)
    (official / "ILSVRC2012_devkit_t12" / "data" / "meta.mat").unlink()
    with pytest.raises(UserError, match=r"data/meta\.mat is missing: bring ILSVRC2012_devkit"):
        list(load_source("imagenet").entries(IMAGENET, official, "test"))


def write_list(raw: Path, name: str, stems: Iterable[str]) -> None:
    write(raw, {name: "".join(f"{stem}\n" for stem in stems).encode()})


@pytest.mark.parametrize("ending", ["", ".JPEG"])
def test_images_know_the_subsets_that_they_stand_in(folders: Path, ending: str) -> None:
    write_list(folders, "1percent.txt", [f"{wnid}_9{ending}" for wnid in WNIDS])
    write_list(folders, "10percent.txt", [f"{w}_{n}{ending}" for w in WNIDS for n in (9, 10)])
    train = fetched(IMAGENET, folders, "train")
    assert {e.name: e.subsets for e in train} == {
        f"{wnid}_{number}.JPEG": subsets
        for wnid in WNIDS
        for number, subsets in ((9, ("1pct", "10pct")), (10, ("10pct",)))
    }
    assert all(entry.subsets == () for entry in fetched(IMAGENET, folders, "test"))


@pytest.mark.parametrize(
    ("stems", "fault"),
    [
        ([f"{WNIDS[0]}_9", f"{WNIDS[2]}_9"], rf"no image of 1 classes, such as {WNIDS[1]}"),
        (["n99999999_9"], r", line 1: 'n99999999_9' names an image of no class"),
        ([f"{WNIDS[0]}_9", f"{WNIDS[0]}_9.JPEG"], rf", line 2: {WNIDS[0]}_9 is there twice"),
    ],
)
def test_a_wrong_list_of_a_subset_is_refused_before_the_first_image(
    folders: Path, stems: list[str], fault: str
) -> None:
    write_list(folders, "1percent.txt", stems)
    with pytest.raises(UserError, match=rf"1percent\.txt.*{fault}"):
        next(load_source("imagenet").entries(IMAGENET, folders, "train"))


def test_listed_images_that_are_not_there_are_counted_and_named(folders: Path) -> None:
    stems = [f"{wnid}_9" for wnid in WNIDS] + [f"{WNIDS[0]}_77", f"{WNIDS[0]}_78"]
    write_list(folders, "10percent.txt", stems)
    expected = rf"10percent\.txt names 2 images that are not there, such as {WNIDS[0]}_77, "
    with pytest.raises(UserError, match=expected):
        fetched(IMAGENET, folders, "train")


def test_official_archives_become_shards_that_know_their_subset(
    official: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The test goes the whole way: downloaded archives, shards, images with labels by number."""
    write_list(official, "1percent.txt", [names[1] for names in TRAIN.values()])
    entry = IMAGENET.model_dump(exclude={"name"}) | {"shard_size": 4}
    (official / "datasets.yaml").write_text(json.dumps({"miniature": entry}))
    monkeypatch.setattr(register, "REGISTER", official / "datasets.yaml")
    IMAGENET_SOURCE.fetch(IMAGENET, official)
    build_shards("miniature", official, official / "out", num_workers=1)
    images = Images(official / "out", "train")
    assert images.labels["class"].tolist() == [0, 0, 1, 1, 2, 2]
    (few,) = images.subsets.values()
    listed = {picture(names[1]) for names in TRAIN.values()}
    tars = [path.read_bytes() for path in images.paths]
    starts = [images.table.position(number)[1:] for number in range(6)]
    owner = [0] * 4 + [1] * 2
    assert {tars[owner[n]][starts[n][0] :][: starts[n][1]] for n in few.tolist()} == listed
    assert read_index(official / "out").labels == {"class": 3}


def test_a_list_that_the_register_asks_for_is_missed_in_time(official: Path) -> None:
    """The list must be missed before pretraining, not after it."""
    dataset = make("imagenet", 3, options={"subsets": ["1pct"]})
    (line,) = IMAGENET_SOURCE.missing(dataset, official)
    assert "1percent.txt (the official list" in line
    write_list(official, "1percent.txt", [names[0] for names in TRAIN.values()])
    assert IMAGENET_SOURCE.missing(dataset, official) == []


# ImageNet-22k

IMAGENET22K = make("imagenet22k", None, splits={"train": None})


@pytest.fixture
def tars(tmp_path: Path) -> Path:
    tars = {f"{wnid}.tar": tar_of(pictures(TRAIN[wnid])) for wnid in reversed(WNIDS)}
    write(tmp_path / "tars", tars)
    write(tmp_path / "tars", {"notes.tar": b""})
    return tmp_path / "tars"


def test_each_tar_of_imagenet22k_is_a_class(tars: Path) -> None:
    assert summary(fetched(IMAGENET22K, tars, "train"), IMAGENET22K) == IMAGENET_TRAIN


def test_an_imagenet22k_without_tars_says_where_they_come_from(tmp_path: Path) -> None:
    (line,) = load_source("imagenet22k").missing(IMAGENET22K, tmp_path)
    assert "n*.tar (one tar a class: fall11_whole.tar" in line
    with pytest.raises(UserError, match=r"n\*\.tar"):
        load_source("imagenet22k").fetch(IMAGENET22K, tmp_path)


def test_a_half_downloaded_tar_of_imagenet22k_is_named_when_it_is_fetched(tars: Path) -> None:
    path = tars / f"{WNIDS[1]}.tar"
    path.write_bytes(path.read_bytes()[:900])
    with pytest.raises(UserError, match=rf"{WNIDS[1]}\.tar is no tar or was not downloaded to"):
        load_source("imagenet22k").fetch(IMAGENET22K, tars)


def test_a_number_of_tars_that_the_register_contradicts_is_refused(tars: Path) -> None:
    dataset = make("imagenet22k", 19167, splits={"train": None})
    with pytest.raises(UserError, match=r"has 3 tars named after classes, .* has 19167 classes"):
        fetched(dataset, tars, "train")
