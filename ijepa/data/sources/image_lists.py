"""Official archives whose text files list the images of each split, a line each, with their class.

DTD (Cimpoi et al., 2014), FGVC-Aircraft (Maji et al., 2013), Food-101 (Bossard et al., 2014) and
Oxford-IIIT Pets (Parkhi et al., 2012) are such. ``ijepa.data.official`` says where they may lie.

``options.archives`` are their names, ``options.images`` is the folder of the images.
``options.train`` and ``options.test`` are the lists of each split. ``options.line`` is a regular
expression of a line: its group ``image`` is the image's path without ``.jpg``, its group ``class``
the name of the class. Classes are numbered in the order of the text file ``options.classes``, a
name a line, or without one in the order of their names, whatever their case.
"""

import re
from collections.abc import Iterator
from pathlib import Path

from ijepa.data import official
from ijepa.data.official import Official
from ijepa.data.register import Dataset
from ijepa.data.source import Entry
from ijepa.errors import UserError

OPTIONS = {"archives", "images", "line", "train", "test"}


def missing(dataset: Dataset, raw: Path) -> list[str]:
    """Archives and lists that a person must bring."""
    return official.missing(dataset, raw, _parts(dataset))


def fetch(dataset: Dataset, raw: Path) -> None:
    """Bring the archives, check and unpack them."""
    official.fetch(dataset, raw, _parts(dataset))


def entries(dataset: Dataset, raw: Path, split: str) -> Iterator[Entry]:
    """Images in the order of the split's lists."""
    home = official.unpacked_home(dataset, raw, _parts(dataset))
    classes = _classes(dataset, home)
    for path, number, name, class_name in _lines(dataset, home, split):
        if class_name not in classes:
            raise UserError(
                f"{path}, line {number}: the class {class_name!r} has no training image: bring the "
                "official lists"
            )
        image = official.image(home / dataset.options["images"] / f"{name}.jpg", path)
        yield Entry(image, 0, None, f"{name}.jpg", {"class": classes[class_name]})


def encode(dataset: Dataset, content: bytes) -> bytes:
    """Bytes unchanged: they are image files."""
    return content


def _parts(dataset: Dataset) -> Official:
    options = dataset.options
    keys = ["archives", *dataset.splits]
    if options.keys() - {"classes"} != OPTIONS or not all(
        isinstance(options[key], list) for key in keys
    ):
        raise UserError(
            f"datasets.yaml: {dataset.name}: options are {options}: give images, line, "
            "as lists archives, train and test, and, if there is one, classes"
        )
    lists = [name for split in dataset.splits for name in options[split]]
    classes = [options["classes"]] if "classes" in options else []
    return Official(options["archives"], [options["images"], *lists, *classes])


def _lines(dataset: Dataset, home: Path, split: str) -> Iterator[tuple[Path, int, str, str]]:
    """List, number of the line, image and class of every line of a split's lists."""
    try:
        pattern = re.compile(dataset.options["line"])
        if not {"image", "class"} <= pattern.groupindex.keys():
            raise re.error("it has no groups image and class")
    except (re.error, TypeError) as error:
        raise UserError(f"datasets.yaml: {dataset.name}: options.line: {error}") from None
    for name in dataset.options[split]:
        path = home / name
        with path.open(encoding="utf-8", errors="replace") as lines:
            for number, line in enumerate(lines, start=1):
                match = pattern.fullmatch(line.strip())
                if match is None:
                    raise UserError(
                        f"{path}, line {number}: {line.strip()!r} names no image and class: bring "
                        "the official list"
                    )
                yield path, number, match["image"], match["class"]


def _classes(dataset: Dataset, home: Path) -> dict[str, int]:
    """Number of each class, by name; raises UserError if there are fewer or more than expected."""
    names = {class_name for *_, class_name in _lines(dataset, home, "train")}
    expected = dataset.num_classes("class")
    if expected is not None and len(names) != expected:
        raise UserError(
            f"{', '.join(str(home / name) for name in dataset.options['train'])}: {len(names)} "
            f"classes, datasets.yaml says {expected}: bring the official list, or correct `labels`"
        )
    ordered = sorted(names, key=str.lower)
    if "classes" in dataset.options:
        path = home / dataset.options["classes"]
        ordered = path.read_text(encoding="utf-8", errors="replace").split("\n")
        ordered = [line.strip() for line in ordered if line.strip()]
        if set(ordered) != names:
            raise UserError(f"{path}: its classes are not those of the lists: bring both again")
    return {name: number for number, name in enumerate(ordered)}
