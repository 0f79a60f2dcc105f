"""ImageNet-1k (ILSVRC 2012): the official archives, or folders of images by class.

A split is read in place from its archive or, if that is not there, from ``train`` or ``val`` with
one folder a class, as torchvision's ImageFolder has it. Either way gives the same images in the
same order: by class, then by name. Classes are numbered in the order of their WordNet IDs, as in
torchvision. A folder may also hold all images itself, as on Kaggle and the Hugging Face Hub: their
names hold their classes then, or ``LOC_val_solution.csv``, in ``raw`` or up to three folders above.

The archives of images do not name the classes: the official development kit does. The optional
files ``1percent.txt`` and ``10percent.txt`` name images of ``train`` for low-shot evaluation, one a
line: the lists of SimCLR (Chen et al., 2020) or of MSN (Assran et al., 2022).
"""

import os
import re
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

import numpy as np
from scipy.io import loadmat

from ijepa.data.archives import folder_entries, refuse_missing, tar_entries, unpack, verify_once
from ijepa.data.official import DAMAGED
from ijepa.data.register import Dataset
from ijepa.data.source import Entry
from ijepa.errors import UserError

ARCHIVES = {"train": "ILSVRC2012_img_train.tar", "test": "ILSVRC2012_img_val.tar"}
FOLDERS = {"train": ("train",), "test": ("val", "validation")}
ROOTS = ("", "ILSVRC/Data/CLS-LOC", "Data/CLS-LOC")
"""Folders within ``raw`` that may hold ``train`` and ``val``: the last two are Kaggle's."""
DEVKIT = "ILSVRC2012_devkit_t12"
SUBSETS = {"1pct": "1percent.txt", "10pct": "10percent.txt"}
SOLUTION = "LOC_val_solution.csv"
ORIGIN = "from image-net.org, after registration"


def missing(dataset: Dataset, raw: Path) -> list[str]:
    """Archives that are neither there nor replaced by folders, and ``options.subsets``' lists."""
    paths = [
        f"{raw / archive} (images of {split}, {ORIGIN}; or {_folder(raw, split)} with one folder "
        "a class)"
        for split, archive in ARCHIVES.items()
        if not (raw / archive).exists() and not (_folder(raw, split)).is_dir()
    ]
    devkit = raw / f"{DEVKIT}.tar.gz"
    only_folders = all(_folder(raw, split).is_dir() for split in FOLDERS)
    needs_devkit = _archives(raw) or not only_folders
    if needs_devkit and not devkit.exists() and not (raw / DEVKIT).is_dir():
        paths.append(f"{devkit} (the classes of the images in archives, {ORIGIN})")
    paths += [
        f"{raw / SOLUTION} (from Kaggle, the classes of the images in {_folder(raw, split)}; or "
        "sort them into one folder a class)"
        for split in FOLDERS
        if not (raw / ARCHIVES[split]).exists() and _without_classes(raw, _folder(raw, split))
    ]
    lists = [SUBSETS[subset] for subset in _wanted(dataset)]
    return paths + [
        f"{raw / name} (the official list, of SimCLR's or MSN's release; or take it from "
        f"{dataset.name}.options.subsets)"
        for name in lists
        if not (raw / name).exists()
    ]


def fetch(dataset: Dataset, raw: Path) -> None:
    """Check the archives and the folders, and unpack the development kit."""
    refuse_missing(missing(dataset, raw))
    devkit = raw / f"{DEVKIT}.tar.gz"
    if devkit.exists():
        unpack(devkit, raw, dataset.checksums.get(devkit.name))
    classes = _classes(dataset, raw)
    for split in FOLDERS:
        if not (raw / ARCHIVES[split]).exists():
            folder = _folder(raw, split)
            _check_classes(_folder_classes(raw, folder), classes, folder)
    for archive in _archives(raw):
        if archive.name in dataset.checksums:
            verify_once(archive, dataset.checksums[archive.name])


def entries(dataset: Dataset, raw: Path, split: str) -> Iterator[Entry]:
    """Images by class, then by name, each of ``train`` with the subsets that it stands in."""
    classes = _classes(dataset, raw)
    archive = raw / ARCHIVES[split]
    if not archive.exists():
        images = _from_folders(raw, _folder(raw, split), classes)
    elif split == "train":
        images = _from_train_archive(archive, classes)
    else:
        images = _from_val_archive(archive, raw, classes)
    yield from _with_subsets(images, raw, classes) if split == "train" else images


def encode(dataset: Dataset, content: bytes) -> bytes:
    """Bytes unchanged: they are image files."""
    return content


def subsets(dataset: Dataset, raw: Path) -> list[str]:
    """Names of the lists of training images that are there, or that the register asks for."""
    wanted = _wanted(dataset)
    return [key for key, name in SUBSETS.items() if key in wanted or (raw / name).exists()]


def _wanted(dataset: Dataset) -> list[str]:
    """Lists that the register asks for."""
    wanted = dataset.options.get("subsets", [])
    if not isinstance(wanted, list) or not all(name in [*SUBSETS] for name in wanted):
        raise UserError(
            f"datasets.yaml: {dataset.name}: options.subsets is {wanted!r}: give a list; known are "
            f"{', '.join(SUBSETS)}"
        )
    return wanted


def _folder(raw: Path, split: str) -> Path:
    """Folder of a split's images; ``raw/train`` or ``raw/val`` if there is none."""
    folders = [raw / root / name for root in ROOTS for name in FOLDERS[split]]
    return next((folder for folder in folders if folder.is_dir()), raw / FOLDERS[split][0])


def _archives(raw: Path) -> list[Path]:
    return [raw / name for name in ARCHIVES.values() if (raw / name).exists()]


def _classes(dataset: Dataset, raw: Path) -> list[str]:
    """WordNet IDs in the order of the class numbers."""
    if _archives(raw):
        path = _devkit_file(raw, "meta.mat")
        classes = sorted(_wordnet_ids(path).values())
    else:
        path = _folder(raw, "train")
        classes = _folder_classes(raw, path)
    expected = dataset.num_classes("class")
    if expected is not None and len(classes) != expected:
        raise UserError(
            f"{path} has {len(classes)} classes, {dataset.name} has {expected}: bring it whole"
        )
    return classes


def _devkit_file(raw: Path, name: str) -> Path:
    path = raw / DEVKIT / "data" / name
    if not path.exists():
        raise UserError(f"{path} is missing: bring {DEVKIT}.tar.gz ({ORIGIN}) and fetch again")
    return path


def _wordnet_ids(meta: Path) -> dict[int, str]:
    """WordNet ID of each ILSVRC2012_ID that is a class of images, not a parent of classes."""
    try:
        synsets = loadmat(meta, squeeze_me=True)["synsets"]
    except DAMAGED as error:
        raise UserError(
            f"{meta} is damaged or no list of classes ({error}): bring {DEVKIT}.tar.gz again, "
            f"delete {meta.parents[1]} and fetch again"
        ) from None
    return {
        int(synset["ILSVRC2012_ID"]): str(synset["WNID"])
        for synset in np.atleast_1d(synsets)
        if synset["num_children"] == 0
    }


def _class_folders(folder: Path) -> list[str]:
    names = sorted(path.name for path in folder.iterdir() if path.is_dir())
    for name in names:
        if not re.fullmatch(r"n\d{8}", name):
            raise UserError(
                f"{folder / name} is named after no class (such as n01440764): move it away"
            )
    if not names:
        raise UserError(
            f"{folder} has no class folders (such as n01440764): sort its images into one folder a "
            f"class, or bring the official archive in place of {folder.name}"
        )
    return names


def _check_classes(names: list[str], classes: list[str], path: Path) -> None:
    """Raise UserError if the names of the data's classes are not those expected."""
    if differing := sorted(set(names).symmetric_difference(classes)):
        absent = [wnid for wnid in differing if wnid in classes]
        fault = f"lacks the class {absent[0]}" if absent else f"has another class, {differing[0]}"
        raise UserError(f"{path} {fault} ({len(differing)} such in all): bring it whole")


def _is_flat(folder: Path) -> bool:
    """True if a folder holds images, and no folders."""
    with os.scandir(folder) as items:
        return not any(item.is_dir() for item in items) and bool(folder_entries(folder))


def _solution(raw: Path) -> Path | None:
    """Kaggle's list of the classes of ``val``, if there is one."""
    folders = [raw, *raw.resolve().parents[:3]]
    return next((folder / SOLUTION for folder in folders if (folder / SOLUTION).exists()), None)


def _flat(raw: Path, folder: Path) -> list[tuple[str, str, Path]]:
    """Class, official name and path of each image of a flat folder, sorted."""
    solution = _solution(raw)
    text = solution.read_text(encoding="utf-8", errors="replace") if solution else ""
    if "\ufffd" in text or "\0" in text:
        raise UserError(f"{solution} is no text in UTF-8: bring Kaggle's file, or save it as UTF-8")
    classes = dict(re.findall(r"^(\w+),(n\d{8})\b", text, re.MULTILINE))
    images = []
    for path in folder_entries(folder):
        wnid = classes.get(path.stem) or _class_in(path.stem)
        if wnid is None:
            raise UserError(
                f"{path} has no class (such as n01440764) in its name, nor a line in "
                f"{solution or raw / SOLUTION}: bring that file, or sort the images of {folder} "
                "into one folder a class"
            )
        images.append((wnid, path.stem.removesuffix(f"_{wnid}") + path.suffix, path))
    return sorted(images)


def _class_in(stem: str) -> str | None:
    """Class that an image's name ends or begins with, as of n01440764_18_n01440764."""
    match = re.search(r"_(n\d{8})$", stem) or re.match(r"(n\d{8})_", stem)
    return match[1] if match else None


def _without_classes(raw: Path, folder: Path) -> bool:
    """True if nothing tells the class of a flat folder's first image."""
    if not folder.is_dir() or not _is_flat(folder) or _solution(raw):
        return False
    return _class_in(folder_entries(folder)[0].stem) is None


def _folder_classes(raw: Path, folder: Path) -> list[str]:
    """Classes of a folder's images, sorted."""
    if _is_flat(folder):
        return sorted({wnid for wnid, *_ in _flat(raw, folder)})
    return _class_folders(folder)


def _from_folders(raw: Path, folder: Path, classes: list[str]) -> Iterator[Entry]:
    _check_classes(_folder_classes(raw, folder), classes, folder)
    if _is_flat(folder):
        for wnid, name, path in _flat(raw, folder):
            yield Entry(path, 0, None, name, {"class": classes.index(wnid)})
        return
    for label, wnid in enumerate(classes):
        images = folder_entries(folder / wnid)
        if not images:
            raise UserError(f"{folder / wnid} has no images: copy them again")
        for path in images:
            yield Entry(path, 0, None, path.name, {"class": label})


def _from_train_archive(archive: Path, classes: list[str]) -> Iterator[Entry]:
    """Images of the training archive, in which each class is a tar of its own."""
    tars = sorted(tar_entries(archive))
    _check_classes([PurePosixPath(name).stem for name, _, _ in tars], classes, archive)
    for label, (_, tar_offset, tar_size) in enumerate(tars):
        for name, offset, size in sorted(tar_entries(archive, tar_offset, tar_size)):
            yield Entry(archive, offset, size, PurePosixPath(name).name, {"class": label})


def _from_val_archive(archive: Path, raw: Path, classes: list[str]) -> Iterator[Entry]:
    """Images of the validation archive; line n of the ground truth is image n's ILSVRC2012_ID."""
    truth = _devkit_file(raw, "ILSVRC2012_validation_ground_truth.txt")
    wordnet_ids = _wordnet_ids(_devkit_file(raw, "meta.mat"))
    lines = truth.read_text(encoding="utf-8", errors="replace").split()
    images = []
    for path, offset, size in tar_entries(archive):
        name = PurePosixPath(path).name
        number = re.fullmatch(r"ILSVRC2012_val_(\d{8})\.JPEG", name)
        if number is None or not 1 <= int(number[1]) <= len(lines):
            raise UserError(
                f"{archive}: {path} has no line in {truth} ({len(lines)} lines): bring the "
                "official files"
            )
        line = lines[int(number[1]) - 1]
        if not line.isdecimal() or int(line) not in wordnet_ids:
            raise UserError(
                f"{truth}, line {int(number[1])}: {line!r} is the ILSVRC2012_ID of no class: "
                "bring the official file"
            )
        images.append((classes.index(wordnet_ids[int(line)]), name, offset, size))
    for label, name, offset, size in sorted(images):
        yield Entry(archive, offset, size, name, {"class": label})


def _with_subsets(images: Iterator[Entry], raw: Path, classes: list[str]) -> Iterator[Entry]:
    """Images with the names of the subsets that list them; each listed image must be there."""
    missing_stems = {
        subset: _read_list(raw / name, classes)
        for subset, name in SUBSETS.items()
        if (raw / name).exists()
    }
    for entry in images:
        stem = PurePosixPath(entry.name).stem
        subsets = tuple(subset for subset, stems in missing_stems.items() if stem in stems)
        for subset in subsets:
            missing_stems[subset].remove(stem)
        yield entry._replace(subsets=subsets)
    for subset, stems in missing_stems.items():
        if stems:
            raise UserError(
                f"{raw / SUBSETS[subset]} names {len(stems)} images that are not there, such as "
                f"{', '.join(sorted(stems)[:3])}: bring these images, or the official list"
            )


def _read_list(path: Path, classes: list[str]) -> set[str]:
    """Names of images without their ending; each class must have some."""
    stems: set[str] = set()
    unlisted = set(classes)
    for number, line in enumerate(
        path.read_text(encoding="utf-8", errors="replace").splitlines(), start=1
    ):
        stem = line.strip().removesuffix(".JPEG")
        wnid = stem.partition("_")[0]
        if wnid not in classes:
            raise UserError(
                f"{path}, line {number}: {line!r} names an image of no class: name images as in "
                "n01440764_10026.JPEG, one a line"
            )
        if stem in stems:
            raise UserError(f"{path}, line {number}: {stem} is there twice: delete one of them")
        stems.add(stem)
        unlisted.discard(wnid)
    if unlisted:
        raise UserError(
            f"{path} names no image of {len(unlisted)} classes, such as {min(unlisted)}: bring the "
            "official list"
        )
    return stems
