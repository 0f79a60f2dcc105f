"""Raw formats: folders of images, with a folder for each class and without."""

import hashlib
import io
import shutil
import tarfile
from pathlib import Path
from typing import Any

import pytest

from ijepa.data.sources import flat_folder, image_folder
from ijepa.errors import UserError
from tests.raw_files import content, dataset, picture


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


@pytest.mark.parametrize("split", ["train", "test"])
@pytest.mark.parametrize("target", ["nowhere", "dog"])
def test_a_class_that_is_a_link_to_nothing_or_to_itself_is_named(
    target: str, split: str, tmp_path: Path
) -> None:
    """Left out, it would leave the later classes with other numbers."""
    tree(tmp_path, "train/cat/1.png", "test/cat/1.png")
    (tmp_path / split / "dog").symlink_to(target)
    with pytest.raises(UserError, match=f"{split}/dog is a link to nothing"):
        list(image_folder.entries(dataset("image_folder", **CLASSES), tmp_path, split))


@pytest.mark.parametrize("source", [image_folder, flat_folder])
def test_files_that_may_be_images_by_other_names_are_counted_in_one_warning(
    source: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    tree(tmp_path, "train/cat/1.png", "train/dog/2.png")
    for name in ("cat/plain", "cat/notes.txt", "cat/labels.csv.gz", "dog/3.JPG.gz", "dog/.hidden"):
        (tmp_path / "train" / name).touch()
    words = CLASSES if source is image_folder else {}
    tiny = dataset(source.__name__.rpartition(".")[2], **words)
    assert len(list(source.entries(tiny, tmp_path, "train"))) == 2
    (message,) = caplog.messages
    assert "2 files without an ending, or compressed, are left out, such as" in message
    assert "train/cat/plain" in message


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
