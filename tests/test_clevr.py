"""CLEVR: the official files as they are read, and the scenes that are generated in their place."""

import io
import json
import math
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from ijepa.data.clevr import generate, raytracer
from ijepa.data.clevr import scenes as clevr
from ijepa.data.clevr.format import labels
from ijepa.data.clevr.generate import Settings
from ijepa.data.register import Dataset
from ijepa.data.sources import clevr as source
from ijepa.errors import UserError

Scene = dict[str, Any]


def dataset(**changes: Any) -> Dataset:
    return Dataset.model_validate(
        {
            "name": "clevr",
            "source": "clevr",
            "title": "CLEVR",
            "citation": "Johnson et al., 2017",
            "licence": "CC BY 4.0",
            "image_size": 8,
            "splits": {"train": 3, "test": 2},
            "labels": {"count": 8, "distance": 6},
            "view": "squash",
            **changes,
        }
    )


def scene(split: str, number: int, depths: list[float]) -> Scene:
    return {
        "image_index": number,
        "objects": [{"pixel_coords": [12, 34, depth], "color": "red"} for depth in depths],
        "relationships": {"left": [[] for _ in depths]},
        "image_filename": f"CLEVR_{split}_{number:06d}.png",
        "split": split,
    }


def official(raw: Path, scenes: dict[str, list[Scene]]) -> dict[str, bytes]:
    """Write the official folders; returns the bytes of each image by its file name."""
    contents = {}
    for split, listed in scenes.items():
        folder = raw / "CLEVR_v1.0" / "images" / split
        folder.mkdir(parents=True)
        for item in listed:
            file = io.BytesIO()
            Image.new("RGBA", (6, 4), (item["image_index"], 7, 9, 255)).save(file, "png")
            contents[item["image_filename"]] = file.getvalue()
            (folder / item["image_filename"]).write_bytes(file.getvalue())
        write_scenes(raw, split, listed)
    return contents


def write_scenes(raw: Path, split: str, scenes: list[Scene]) -> Path:
    path = raw / "CLEVR_v1.0" / "scenes" / f"CLEVR_{split}_scenes.json"
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps({"info": {"split": split, "version": "1.0"}, "scenes": scenes}))
    return path


TRAIN = [
    scene("train", 2, [11.0, 9.9, 12.0, 13.0]),
    scene("train", 0, [9.0, 8.0, 12.0]),
    scene("train", 1, [30.0] * 10),
]
VAL = [scene("val", 0, [9.1, 9.2, 9.3]), scene("val", 1, [8.3] * 5)]


def test_the_official_archive_is_unpacked_and_read_in_the_order_of_the_images(
    tmp_path: Path,
) -> None:
    contents = official(tmp_path / "made", {"train": TRAIN, "val": VAL})
    raw = tmp_path / "raw"
    raw.mkdir()
    with zipfile.ZipFile(raw / "CLEVR_v1.0.zip", "w") as archive:
        for path in sorted((tmp_path / "made").rglob("*.*")):
            if path.is_file():
                archive.write(path, path.relative_to(tmp_path / "made"))
    assert source.missing(dataset(), raw) == []
    source.fetch(dataset(), raw)
    train = list(source.entries(dataset(), raw, "train"))
    assert [entry.name for entry in train] == [f"CLEVR_train_{i:06d}.png" for i in range(3)]
    assert [entry.labels for entry in train] == [
        {"count": 0, "distance": 0},
        {"count": 7, "distance": 5},
        {"count": 1, "distance": 4},
    ]
    test = list(source.entries(dataset(), raw, "test"))
    assert [entry.labels["distance"] for entry in test] == [3, 1]
    for entry in train + test:
        assert (entry.offset, entry.size) == (0, None)
        content = entry.file.read_bytes()
        assert source.encode(dataset(), content) == contents[entry.name]


def test_an_archive_with_another_checksum_is_refused(tmp_path: Path) -> None:
    (tmp_path / "CLEVR_v1.0.zip").write_bytes(b"a page that says: not found")
    wrong = dataset(checksums={"CLEVR_v1.0.zip": "md5:" + 32 * "0"})
    with pytest.raises(UserError, match=r"CLEVR_v1\.0\.zip has md5 [0-9a-f]+, expected 0000"):
        source.fetch(wrong, tmp_path)


def test_folders_unpacked_by_hand_need_no_archive(tmp_path: Path) -> None:
    official(tmp_path, {"train": TRAIN, "val": VAL})
    assert source.missing(dataset(), tmp_path) == []
    source.fetch(dataset(), tmp_path)
    assert len(list(source.entries(dataset(), tmp_path, "test"))) == 2


def test_what_a_person_must_bring_is_listed(tmp_path: Path) -> None:
    official(tmp_path, {"train": TRAIN})
    (line,) = source.missing(dataset(), tmp_path)
    assert "CLEVR_v1.0.zip (18 GB, from https://" in line
    assert "images/val" in line
    assert "CLEVR_val_scenes.json" in line
    assert "train" not in line
    with pytest.raises(UserError, match=r"CLEVR is missing: bring .*CLEVR_v1\.0\.zip"):
        source.fetch(dataset(), tmp_path)


@pytest.mark.parametrize(
    ("depth", "label"),
    [
        (6.8, 0),
        (8.0, 0),
        (8.0000001, 1),
        (8.5, 1),
        (8.50001, 2),
        (9.0, 2),
        (9.5, 3),
        (10.0, 4),
        (10.0001, 5),
        (100.0, 5),
    ],
)
def test_distance_bins_hold_their_upper_bounds(depth: float, label: int) -> None:
    assert labels(scene("val", 0, [100.0, depth, 99.0]))["distance"] == label


@pytest.mark.parametrize("count", range(3, 11))
def test_the_label_of_a_count_starts_at_three_objects(count: int) -> None:
    assert labels(scene("val", 0, count * [9.0]))["count"] == count - 3


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda s: s[1].update(objects=[]), r"scene 1 \(.*\): it has 0 objects, not 3 to 10"),
        (lambda s: s[1].pop("objects"), r"scene 1 .*it has 0 objects"),
        (lambda s: s[1].update(objects=s[1]["objects"][:2]), r"scene 1 .*it has 2 objects"),
        (lambda s: s[0].update(objects=11 * s[0]["objects"][:1]), r"scene 0 .*it has 11 objects"),
        (lambda s: s[0]["objects"][3].update(pixel_coords=[1, 2, 0.0]), r"is 0\.0 away, not 0 to"),
        (lambda s: s[2].update(scene("train", 1, 3 * [100.1])), r"scene 2 .*is 100\.1 away"),
        (lambda s: s[2].update(scene("train", 1, 3 * [math.nan])), r"scene 2 .*is nan away"),
        (lambda s: s[0]["objects"][0].pop("pixel_coords"), r"scene 0 .*without pixel_coords"),
        (lambda s: s[1].update(split="val"), r"scene 1 is of split 'val', not 'train'"),
        (
            lambda s: s[1].update(image_filename="else.png"),
            r"scene 1: its image 'else\.png' is not",
        ),
        (lambda s: s[1].pop("image_filename"), r"scene 1: its image None is not in"),
        (lambda s: s[1].update(image_filename="CLEVR_train_000002.png"), r"scene 1: an earlier"),
        (lambda s: s.insert(1, 17), r"scene 1 is 17, no scene"),
        (lambda s: s.pop(1), r"no scene for .*CLEVR_train_000000\.png \(and 0 others\)"),
    ],
)
def test_a_scene_that_cannot_be_used_is_named(
    change: Callable[[list[Any]], object], message: str, tmp_path: Path
) -> None:
    official(tmp_path, {"train": TRAIN})
    scenes: list[Any] = json.loads(json.dumps(TRAIN))
    change(scenes)
    write_scenes(tmp_path, "train", scenes)
    with pytest.raises(UserError, match=rf"CLEVR_train_scenes\.json.*{message}"):
        list(source.entries(dataset(), tmp_path, "train"))


def test_an_empty_split_is_an_error(tmp_path: Path) -> None:
    official(tmp_path, {"train": []})
    with pytest.raises(UserError, match=r"CLEVR_train_scenes\.json has no scenes"):
        list(source.entries(dataset(), tmp_path, "train"))
    with pytest.raises(UserError, match=r"CLEVR_val_scenes\.json is missing"):
        list(source.entries(dataset(), tmp_path, "test"))


def test_scenes_are_read_a_piece_at_a_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    scenes = [scene("train", i, (3 + i % 8) * [9.0]) for i in range(50)]
    path = tmp_path / "scenes.json"
    monkeypatch.setattr(source, "CHUNK", 700)  # characters; the longest scene has 600
    for text in (
        json.dumps({"info": {}, "scenes": scenes}),
        json.dumps({"scenes": scenes, "info": {}}, indent=0),
    ):
        path.write_text(text)
        assert list(source._scenes(path)) == scenes
    path.write_text(text[: len(text) // 2])
    read = source._scenes(path)
    assert next(read) == scenes[0]
    with pytest.raises(UserError, match=r"scenes\.json is damaged or cut off in scene 2\d:"):
        list(read)


SMALL = Settings(seed=3, width=24, height=16, train=6, test=3)


def content(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


@pytest.fixture(scope="module")
def generated(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("clevr")
    generate.generate(SMALL, folder, workers=1)
    return folder


def test_another_process_with_other_workers_makes_the_same_bytes(
    generated: Path, tmp_path: Path
) -> None:
    command = [sys.executable, "-m", "ijepa.data.clevr", str(tmp_path / "raw")]
    command += ["--seed", "3", "--width", "24", "--height", "16", "--train", "6", "--test", "3"]
    subprocess.run([*command, "--sheet", str(tmp_path / "sheet.png")], check=True)
    assert content(tmp_path / "raw") == content(generated)
    with Image.open(tmp_path / "sheet.png") as sheet:
        assert sheet.size == (8 * 28, 6 * 32)


def test_an_image_depends_on_no_other(generated: Path, tmp_path: Path) -> None:
    for number in (5, 0):
        scene = clevr.sample_scene(3, "train", number, 24, 16)
        name = f"CLEVR_v1.0/images/train/CLEVR_train_{number:06d}.png"
        with Image.open(generated / name) as image:
            assert image.mode == "RGB"
            assert (np.asarray(image) == raytracer.render(*scene, 24, 16)).all()


def test_an_interrupted_generation_keeps_its_images(generated: Path, tmp_path: Path) -> None:
    generate.generate(SMALL, tmp_path)
    images = tmp_path / "CLEVR_v1.0" / "images"
    finished = images / "train" / "CLEVR_train_000001.png"
    written = finished.stat().st_mtime_ns
    (tmp_path / "CLEVR_v1.0" / "scenes" / "CLEVR_train_scenes.json").unlink()
    (images / "train" / "CLEVR_train_000004.png").rename(
        images / "train" / "CLEVR_train_000004.part"
    )
    (images / "val" / "CLEVR_val_000000.png").unlink()
    generate.generate(SMALL, tmp_path)
    assert content(tmp_path) == content(generated)
    assert finished.stat().st_mtime_ns == written


def test_images_of_other_settings_or_origin_are_not_mixed_with_new_ones(
    generated: Path, tmp_path: Path
) -> None:
    with pytest.raises(UserError, match=r"CLEVR_v1\.0 holds other images than .*seed=4"):
        generate.generate(Settings(**{**vars(SMALL), "seed": 4}), generated)
    official(tmp_path, {"train": TRAIN})
    with pytest.raises(UserError, match="holds other images"):
        generate.generate(SMALL, tmp_path)


def test_the_reader_generates_what_its_options_say(generated: Path, tmp_path: Path) -> None:
    small = dataset(options={"generate": vars(SMALL)})
    assert source.missing(small, tmp_path) == []
    source.fetch(small, tmp_path)
    assert content(tmp_path) == content(generated)
    entries = list(source.entries(small, tmp_path, "train"))
    assert len(entries) == 6
    for number, entry in enumerate(entries):
        objects = clevr.sample_scene(3, "train", number, 24, 16).objects
        assert entry.labels["count"] == len(objects) - 3


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"generator": {}}, r"clevr\.options has 'generator'"),
        (
            {"generate": {"sed": 1}},
            r"clevr\.options\.generate\.sed: unknown key \(did you mean seed",
        ),
        (
            {"generate": {"width": 0}},
            r"clevr\.options\.generate: width is 0: it must be at least 8",
        ),
    ],
)
def test_a_wrong_option_is_named(options: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=message):
        source.fetch(dataset(options=options), tmp_path)
