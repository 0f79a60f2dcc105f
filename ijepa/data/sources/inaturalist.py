"""iNaturalist 2018: images in one archive, and their species in one JSON file a split.

The official validation split is ``test``: the labels of the test images are secret.
"""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ijepa.data.archives import refuse_missing, unpack
from ijepa.data.register import Dataset
from ijepa.data.source import Entry
from ijepa.errors import UserError

IMAGES = "train_val2018"
LISTS = {"train": "train2018.json", "test": "val2018.json"}
ORIGIN = "from github.com/visipedia/inat_comp, folder 2018"


def missing(dataset: Dataset, raw: Path) -> list[str]:
    """Archives that are neither there nor unpacked."""
    return [
        f"{raw / name}.tar.gz ({ORIGIN})"
        for name in (IMAGES, *LISTS.values())
        if not (raw / f"{name}.tar.gz").exists() and not (raw / name).exists()
    ]


def fetch(dataset: Dataset, raw: Path) -> None:
    """Check and unpack the archives."""
    refuse_missing(missing(dataset, raw))
    for name in (IMAGES, *LISTS.values()):
        archive = raw / f"{name}.tar.gz"
        if archive.exists():
            unpack(archive, raw, dataset.checksums.get(archive.name))


def entries(dataset: Dataset, raw: Path, split: str) -> Iterator[Entry]:
    """Images in the order of the split's JSON file; a class is a species, in the order of IDs."""
    path = raw / LISTS[split]
    images, annotations, categories = _read(path)
    if dataset.num_classes("class") not in (None, len(categories)):
        raise UserError(
            f"{path} has {len(categories)} categories, {dataset.name} has "
            f"{dataset.num_classes('class')} classes: bring the official file"
        )
    classes = {category: label for label, category in enumerate(sorted(categories))}
    labels: dict[int, int] = {}
    for image, category in annotations:
        if category not in classes:
            raise UserError(
                f"{path}: image {image} is of category {category}, which the file does not list: "
                "bring the official file"
            )
        if image in labels:
            raise UserError(f"{path}: image {image} has two annotations: bring the official file")
        labels[image] = classes[category]
    listed = {number for number, _ in images}
    for numbers, fault in (
        (labels.keys() - listed, "is annotated but not listed"),
        (listed - labels.keys(), "is listed but not annotated"),
    ):
        if numbers:
            raise UserError(f"{path}: image {min(numbers)} {fault}: bring the official file")
    for number, name in images:
        if not (raw / name).is_file():
            raise UserError(
                f"{raw / name} is missing, {path.name} names it: bring {IMAGES}.tar.gz, delete "
                f"{raw / f'.{IMAGES}.tar.gz.unpacked'} and fetch again"
            )
        yield Entry(raw / name, 0, None, name, {"class": labels[number]})


def encode(dataset: Dataset, content: bytes) -> bytes:
    """Bytes unchanged: they are image files."""
    return content


def _read(path: Path) -> tuple[list[tuple[int, str]], list[tuple[int, int]], list[int]]:
    """Images (ID, path), annotations (image ID, category ID) and category IDs of a split."""
    if not path.exists():
        raise UserError(f"{path} is missing: fetch the raw files again")
    try:
        with path.open(encoding="utf-8") as file:
            content = json.load(file, object_hook=_compact)
        images = [(int(number), str(name)) for number, name in content["images"]]
        annotations = [(int(image), int(category)) for image, category in content["annotations"]]
        return images, annotations, [int(category["id"]) for category in content["categories"]]
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(
            f"{path} is damaged or no list of iNaturalist 2018 ({error!r}): bring it again"
        ) from None


def _compact(item: dict[str, Any]) -> Any:
    """Pair of the needed values of an annotation or an image, which saves half of the memory."""
    if "image_id" in item:
        return item["image_id"], item["category_id"]
    if "file_name" in item:
        return item["id"], item["file_name"]
    return item
