"""Places205 and iNaturalist 2018, each in miniature."""

import gzip
import io
import json
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from ijepa.data.source import load_source
from ijepa.errors import UserError
from tests.named_pictures import fetched, make, pictures, summary, write
from tests.tars import tar_of

# Places205

PLACES = make("places205", 3)
PLACES_TRAIN = [("b/bar/gsun_2.jpg", 1), ("a/abbey/gsun_0003.jpg", 0), ("c/cave/inner/1.jpg", 2)]
PLACES_VAL = [("a/abbey/gsun_0001.jpg", 0)]
INNER = "data/vision/torralba/deeplearning/images256/"


def places_images() -> dict[str, bytes]:
    return pictures(sorted(name for name, _ in PLACES_TRAIN + PLACES_VAL), INNER)


def places_lists(folder: str = "trainvalsplit_places205/") -> dict[str, bytes]:
    return {
        f"{folder}{name}": "".join(f"{image} {label}\n" for image, label in lines).encode()
        for name, lines in (
            ("train_places205.csv", PLACES_TRAIN),
            ("val_places205.csv", PLACES_VAL),
        )
    }


def zip_of(files: dict[str, bytes]) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return file.getvalue()


@pytest.mark.parametrize("images", ["tar", "tar.gz", "unpacked", "moved"])
@pytest.mark.parametrize("lists", ["tar.gz", "zip", "unpacked", "no-folder"])
def test_places_come_in_every_form_in_the_order_of_the_list(
    tmp_path: Path, images: str, lists: str
) -> None:
    write(
        tmp_path,
        {
            "tar": {"imagesPlaces205_resize.tar": tar_of(places_images())},
            "tar.gz": {"imagesPlaces205_resize.tar.gz": gzip.compress(tar_of(places_images()))},
            "unpacked": places_images(),
            "moved": {n.replace(INNER, "images256/"): c for n, c in places_images().items()},
        }[images],
    )
    write(
        tmp_path,
        {
            "tar.gz": {"trainvalsplit_places205.tar.gz": gzip.compress(tar_of(places_lists()))},
            "zip": {"trainvalsplit_places205.zip": zip_of(places_lists(""))},
            "unpacked": places_lists(),
            "no-folder": places_lists(""),
        }[lists],
    )
    assert summary(fetched(PLACES, tmp_path, "train"), PLACES) == PLACES_TRAIN
    assert summary(fetched(PLACES, tmp_path, "test"), PLACES) == PLACES_VAL


@pytest.fixture
def places(tmp_path: Path) -> Path:
    images = {"imagesPlaces205_resize.tar": tar_of(places_images())}
    write(tmp_path / "places", {**images, **places_lists()})
    return tmp_path / "places"


def test_places_says_at_once_all_that_is_missing(tmp_path: Path) -> None:
    images, lists = load_source("places205").missing(PLACES, tmp_path)
    assert "imagesPlaces205_resize.tar.gz (the images, from " in images
    assert "trainvalsplit_places205.tar.gz (lists of the images" in lists
    with pytest.raises(UserError, match=r"Places205_resize\.tar\.gz .*trainvalsplit_places205"):
        load_source("places205").fetch(PLACES, tmp_path)


@pytest.mark.parametrize("form", ["tar", "unpacked"])
def test_a_listed_image_that_is_not_there_is_named_with_its_line(places: Path, form: str) -> None:
    if form == "unpacked":
        (places / "imagesPlaces205_resize.tar").unlink()
        write(places, places_images())
    path = places / "trainvalsplit_places205" / "train_places205.csv"
    path.write_text(path.read_text() + "a/abbey/gone.jpg 0\n")
    with pytest.raises(UserError, match=r"train_places205\.csv, line 4: the image 'a/abbey/gone"):
        fetched(PLACES, places, "train")


@pytest.mark.parametrize("label", ["3", "-1", "abbey", ""])
def test_a_listed_class_that_does_not_exist_is_named(places: Path, label: str) -> None:
    path = places / "trainvalsplit_places205" / "train_places205.csv"
    path.write_text(f"a/abbey/gsun_0003.jpg {label}\n")
    with pytest.raises(UserError, match=r"csv, line 1: .* is no class from 0 to 2: bring the off"):
        fetched(PLACES, places, "train")


@pytest.mark.parametrize("ending", ["tar", "tar.gz"])
def test_the_images_of_places_are_checked(places: Path, ending: str) -> None:
    name = f"imagesPlaces205_resize.{ending}"
    if ending == "tar.gz":
        path = places / "imagesPlaces205_resize.tar"
        (places / name).write_bytes(gzip.compress(path.read_bytes()))
        path.unlink()
    dataset = make("places205", 3, checksums={name: "md5:" + "0" * 32})
    with pytest.raises(UserError, match=rf"{name} has md5"):
        load_source("places205").fetch(dataset, places)


# iNaturalist 2018

INATURALIST = make("inaturalist", 2)
IMAGES = {
    "train": ["train_val2018/Aves/2/b.jpg", "train_val2018/Actinopterygii/5/a.jpg"],
    "val": ["train_val2018/Aves/2/c.jpg"],
}


def species(split: str) -> dict[str, list[dict[str, Any]]]:
    images, classes = IMAGES[split], [1, 0]
    return {
        "images": [
            {"id": 70 + n, "file_name": name, "width": 4, "height": 4, "license": 3}
            for n, name in enumerate(images)
        ],
        "annotations": [
            {"id": 70 + n, "image_id": 70 + n, "category_id": 40 + classes[n]}
            for n in reversed(range(len(images)))
        ],
        "categories": [{"id": 41, "name": "Aves b"}, {"id": 40, "name": "Actinopterygii a"}],
    }


@pytest.fixture
def inaturalist(tmp_path: Path) -> Path:
    raw = tmp_path / "inaturalist"
    images = gzip.compress(tar_of(pictures([*IMAGES["train"], *IMAGES["val"]])))
    write(raw, {"train_val2018.tar.gz": images})
    for split in IMAGES:
        name = f"{split}2018.json"
        packed = gzip.compress(tar_of({name: json.dumps(species(split)).encode()}))
        write(raw, {f"{name}.tar.gz": packed})
    return raw


def test_images_of_inaturalist_have_their_species(inaturalist: Path) -> None:
    train = summary(fetched(INATURALIST, inaturalist, "train"), INATURALIST)
    assert train == list(zip(IMAGES["train"], [1, 0], strict=True))
    test = summary(fetched(INATURALIST, inaturalist, "test"), INATURALIST)
    assert test == [(IMAGES["val"][0], 1)]


def test_an_unpacked_inaturalist_needs_no_archives(inaturalist: Path) -> None:
    load_source("inaturalist").fetch(INATURALIST, inaturalist)
    for path in [*inaturalist.glob("*.gz"), *inaturalist.glob(".*")]:
        path.unlink()
    assert len(fetched(INATURALIST, inaturalist, "train")) == 2


def test_inaturalist_says_at_once_all_that_is_missing(tmp_path: Path, inaturalist: Path) -> None:
    lines = load_source("inaturalist").missing(INATURALIST, tmp_path)
    assert [Path(path.split(" ")[0]).name for path in lines] == [
        "train_val2018.tar.gz",
        "train2018.json.tar.gz",
        "val2018.json.tar.gz",
    ]
    (inaturalist / "val2018.json.tar.gz").unlink()
    with pytest.raises(UserError, match=r"val2018\.json\.tar\.gz \(from "):
        load_source("inaturalist").fetch(INATURALIST, inaturalist)


@pytest.mark.parametrize("name", ["train_val2018.tar.gz", "train2018.json.tar.gz"])
def test_archives_of_inaturalist_are_checked(inaturalist: Path, name: str) -> None:
    dataset = make("inaturalist", 2, checksums={name: "md5:" + "0" * 32})
    with pytest.raises(UserError, match=rf"{name} has md5"):
        load_source("inaturalist").fetch(dataset, inaturalist)


def spoil(raw: Path, change: Callable[[dict[str, list[dict[str, Any]]]], object]) -> None:
    """Bring the list of training images unpacked and changed."""
    content = species("train")
    change(content)
    (raw / "train2018.json.tar.gz").unlink()
    (raw / "train2018.json").write_text(json.dumps(content))


@pytest.mark.parametrize(
    ("change", "fault"),
    [
        (lambda c: c["annotations"].pop(), "image 70 is listed but not annotated"),
        (lambda c: c["images"].pop(), "image 71 is annotated but not listed"),
        (
            lambda c: c["annotations"][0].update(category_id=99),
            "image 71 is of category 99, which the file does not list",
        ),
        (lambda c: c["annotations"].append(c["annotations"][0]), "image 71 has two annotations"),
        (lambda c: c["categories"].pop(), "has 1 categories, inaturalist has 2 classes"),
        (lambda c: c["images"][0].pop("file_name"), "is damaged or no list of iNaturalist"),
        (lambda c: c["annotations"][0].pop("category_id"), "is damaged or no list of iNat"),
        (lambda c: c.pop("images"), r"is damaged or no list of iNaturalist 2018 \(KeyError"),
    ],
)
def test_a_list_of_inaturalist_that_contradicts_itself_is_refused(
    inaturalist: Path, change: Callable[[dict[str, list[dict[str, Any]]]], object], fault: str
) -> None:
    spoil(inaturalist, change)
    with pytest.raises(UserError, match=rf"train2018\.json:? {fault}"):
        fetched(INATURALIST, inaturalist, "train")


def test_a_half_copied_list_of_inaturalist_is_named(inaturalist: Path) -> None:
    spoil(inaturalist, lambda _: None)
    path = inaturalist / "train2018.json"
    path.write_text(path.read_text()[:-30])
    with pytest.raises(UserError, match=r"train2018\.json is damaged .*bring it again"):
        fetched(INATURALIST, inaturalist, "train")


def test_an_image_of_inaturalist_that_is_not_there_is_named(inaturalist: Path) -> None:
    load_source("inaturalist").fetch(INATURALIST, inaturalist)
    (inaturalist / IMAGES["train"][1]).unlink()
    with pytest.raises(UserError, match=r"5/a\.jpg is missing, train2018\.json names it"):
        fetched(INATURALIST, inaturalist, "train")
