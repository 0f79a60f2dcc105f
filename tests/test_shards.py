"""Shards are made from raw files, and images are read from shards."""

import http.server
import io
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tarfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import webdataset
import yaml
from PIL import Image

from ijepa.data import register, shards
from ijepa.data.build import build_shards, inspect
from ijepa.data.loader import Images, Steps, TrainingViews, View
from ijepa.data.source import load_source
from ijepa.data.transforms import DINO_LOCAL, Crop, augment, centre_crop
from ijepa.errors import UserError


@pytest.fixture
def copy(data: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(data, tmp_path / "shards"))


def test_images_and_labels_come_back_as_they_went_in(tiny: Path, data: Path) -> None:
    records = np.fromfile(tiny / "raw" / "data_batch_1.bin", np.uint8).reshape(128, -1)
    images = Images(data, "train")
    assert images.labels["class"].tolist() == records[:, 0].tolist()
    for number in (0, 47, 48, 127):
        expected = records[number, 1:].reshape(3, 32, 32).transpose(1, 2, 0)
        assert (np.asarray(images[number]) == expected).all()


def test_any_webdataset_reader_reads_the_shards(data: Path) -> None:
    urls = [str(path) for path in sorted(data.glob("train-*.tar"))]
    samples = list(webdataset.WebDataset(urls, shardshuffle=False).decode("pil"))
    assert len(samples) == 128
    assert [s["cls"] for s in samples] == Images(data, "train").labels["class"].tolist()
    assert samples[0]["png"].size == (32, 32)


def test_the_same_raw_files_give_the_same_bytes(tiny: Path, data: Path, tmp_path: Path) -> None:
    build_shards("tiny", tiny / "raw", tmp_path, num_workers=1)
    for path in data.glob("[!.]*"):
        assert path.read_bytes() == (tmp_path / path.name).read_bytes()


def test_a_build_that_is_killed_keeps_its_finished_shards(tiny: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "ijepa.data", "build", "tiny"]
    command += ["--raw", str(tiny / "raw"), "--out", str(tmp_path), "--num-workers", "1"]
    process = subprocess.Popen(command, stderr=subprocess.DEVNULL)
    while process.poll() is None and not (tmp_path / "train-00000.json").exists():
        time.sleep(0.001)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not (tmp_path / "index.json").exists(), "the build ended before it could be killed"
    first = (tmp_path / "train-00000.tar").stat().st_mtime_ns
    subprocess.run(command, check=True, stderr=subprocess.DEVNULL)
    assert (tmp_path / "train-00000.tar").stat().st_mtime_ns == first
    assert shards.verify(tmp_path).dataset == "tiny"
    assert not list(tmp_path.glob(".*.part"))


def test_a_flipped_byte_is_named_and_mended_without_touching_the_index(
    tiny: Path, copy: Path
) -> None:
    index = (copy / "index.json").stat().st_mtime_ns
    path = copy / "train-00001.tar"
    whole = path.read_bytes()
    path.write_bytes(whole[:3000] + bytes([whole[3000] ^ 1]) + whole[3001:])
    with pytest.raises(UserError, match=r"train-00001\.tar is damaged.*To mend"):
        shards.verify(copy)
    build_shards("tiny", tiny / "raw", copy, num_workers=1)
    assert path.read_bytes() == whole
    assert (copy / "index.json").stat().st_mtime_ns == index


@pytest.mark.parametrize("left", [b"", b"no tar " * 200])
def test_a_tar_whose_first_header_is_gone_is_mended(left: bytes, tiny: Path, copy: Path) -> None:
    path = copy / "train-00001.tar"
    whole = path.read_bytes()
    path.write_bytes(left)
    build_shards("tiny", tiny / "raw", copy, num_workers=1)
    assert path.read_bytes() == whole


def test_a_changed_label_is_named_and_mended(tiny: Path, copy: Path) -> None:
    """Labels and places stand beside the tar; they are checked like it."""
    path = copy / "train-00001.json"
    whole = path.read_text()
    for damaged in (whole.replace(" 7", " 6", 1), whole[:-20], whole.replace("labels", "marks")):
        path.write_text(damaged)
        with pytest.raises(UserError, match=r"train-00001\.json is damaged"):
            shards.verify(copy)
        build_shards("tiny", tiny / "raw", copy, num_workers=1)
        assert path.read_text() == whole


def test_missing_shards_are_all_named(copy: Path) -> None:
    (copy / "train-00000.tar").unlink()
    (copy / "train-00002.json").unlink()
    with pytest.raises(
        UserError, match=r"train-00000\.tar is missing; .*train-00002\.json is miss"
    ):
        shards.verify(copy, ["train"])
    shards.verify(copy, ["test"])


def test_a_damaged_or_missing_index_is_an_error_that_a_build_mends(tiny: Path, copy: Path) -> None:
    (copy / "index.json").write_text("{")
    with pytest.raises(UserError, match=r"index\.json is damaged"):
        shards.verify(copy)
    build_shards("tiny", tiny / "raw", copy, num_workers=1)
    shards.verify(copy)
    (copy / "index.json").unlink()
    with pytest.raises(UserError, match=r"index\.json is missing"):
        shards.verify(copy)


def test_an_image_that_cannot_be_decoded_is_named(copy: Path) -> None:
    offset, size = shards.read_shard(copy / "train-00001.tar").places[3]
    content = bytearray((copy / "train-00001.tar").read_bytes())
    content[offset : offset + size] = bytes(size)
    (copy / "train-00001.tar").write_bytes(content)
    with pytest.raises(UserError, match=r"image 51 in .*train-00001\.tar cannot be decoded"):
        Images(copy, "train")[51]


PHOTOGRAPHS = {
    "source": "image_folder",
    "title": "Photographs",
    "citation": "none",
    "licence": "none",
    "image_size": 32,
    "splits": {"train": None},
    "labels": {"class": None},
    "shard_size": 16,
    "max_corrupt": 0.2,
}


@pytest.fixture
def photographs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of 60 JPEGs of two classes, ten of which are torn in different ways."""
    random = np.random.default_rng(0)
    for number in range(60):
        folder = tmp_path / "raw" / "train" / ("even" if number % 2 == 0 else "odd")
        folder.mkdir(parents=True, exist_ok=True)
        file = io.BytesIO()
        Image.fromarray(random.integers(0, 256, (40, 60, 3), np.uint8)).save(file, "jpeg")
        torn = [file.getvalue()[:-100], b"nothing", b"", file.getvalue()[:20], bytes(5000)]
        content = torn[number // 10 - 1] if number % 10 < 2 and number >= 10 else file.getvalue()
        (folder / f"{number:04d}.jpg").write_bytes(content)
    shrunk = {**PHOTOGRAPHS, "resize": {"short_side": 20, "quality": 90}}
    strict = {**PHOTOGRAPHS, "max_corrupt": 0.1}
    entries = {"photographs": PHOTOGRAPHS, "shrunk": shrunk, "strict": strict}
    (tmp_path / "datasets.yaml").write_text(yaml.safe_dump(entries))
    monkeypatch.setattr(register, "REGISTER", tmp_path / "datasets.yaml")
    return tmp_path


@pytest.fixture
def empty(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty class folder of the data set ``photographs``."""
    (tmp_path / "datasets.yaml").write_text(yaml.safe_dump({"photographs": PHOTOGRAPHS}))
    monkeypatch.setattr(register, "REGISTER", tmp_path / "datasets.yaml")
    (tmp_path / "raw" / "train" / "any").mkdir(parents=True)
    return tmp_path / "raw" / "train" / "any"


GREY = Image.linear_gradient("L").resize((16, 16))


@pytest.mark.parametrize(
    ("name", "mode"),
    [("1.ppm", "RGB"), ("1.pnm", "RGB"), ("1.pgm", "L"), ("1.pbm", "1"), ("1.PGM", "L")],
)
def test_netpbm_files_are_images(name: str, mode: str, empty: Path, tmp_path: Path) -> None:
    picture = GREY.convert(mode)
    picture.save(empty / name, "PPM")
    build_shards("photographs", tmp_path / "raw", tmp_path / "out", num_workers=1)
    image = Images(tmp_path / "out", "train")[0]
    assert np.asarray(image).tobytes() == picture.convert("RGB").tobytes()


@pytest.mark.parametrize("padding", [b"", bytes(100)], ids=["whole", "padded"])
@pytest.mark.parametrize("name", ["1.jpg", "1.MPO"])
def test_of_a_camera_s_file_with_several_pictures_the_first_is_taken(
    name: str, padding: bytes, empty: Path, tmp_path: Path
) -> None:
    """Stereo cameras, and phones beside a portrait's depth, write MPO under a JPEG's name too."""
    file = io.BytesIO()
    GREY.save(file, "MPO", save_all=True, append_images=[Image.new("L", (16, 16), 255)])
    (empty / name).write_bytes(file.getvalue() + padding)
    build_shards("photographs", tmp_path / "raw", tmp_path / "out", num_workers=1)
    image = Images(tmp_path / "out", "train")[0]
    assert np.abs(np.asarray(image)[..., 0].astype(int) - np.asarray(GREY)).max() < 10


RAMP = np.linspace(0, 65_535, 256).reshape(16, 16)


@pytest.mark.parametrize(
    ("pixels", "kind"),
    [
        (RAMP.astype(np.uint16), "PNG"),
        (RAMP.astype(np.uint16), "TIFF"),
        (RAMP.astype(np.uint16), "PPM"),
        (RAMP.astype(np.int32), "TIFF"),
        ((RAMP / 65_535).astype(np.float32), "TIFF"),
        ((RAMP / 65_535).astype(np.float32), "PPM"),
    ],
    ids=["grey16.png", "grey16.tif", "grey16.pgm", "grey32.tif", "unit.tif", "unit.pfm"],
)
def test_an_image_with_more_than_8_bits_a_pixel_is_refused_with_the_remedy(
    pixels: np.ndarray, kind: str
) -> None:
    """A conversion to 8 bits would make it white or black; which range is right, nobody tells."""
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, kind)
    ending, fault = inspect(file.getvalue())
    assert not ending
    assert re.match(r"it has more than 8 bits a pixel .*: convert it to 8 bits", fault or "")


def test_a_deep_image_is_named_and_no_shards_are_made(empty: Path, tmp_path: Path) -> None:
    Image.fromarray(RAMP.astype(np.uint16)).save(empty / "xray.png")
    with pytest.raises(UserError, match=r"of no use here.*xray\.png \(it has more than 8 bits"):
        build_shards("photographs", tmp_path / "raw", tmp_path / "out", num_workers=1)
    assert not (tmp_path / "out" / "index.json").exists()


def test_corrupt_images_are_left_out_and_listed(photographs: Path) -> None:
    build_shards("photographs", photographs / "raw", photographs / "out", num_workers=2)
    report = json.loads((photographs / "out" / "corrupt.json").read_text())
    assert (report["images"], report["corrupt"], len(report["list"])) == (60, 10, 10)
    assert {fault["split"] for fault in report["list"]} == {"train"}
    torn = {Path(fault["image"]).stem for fault in report["list"]}
    assert torn == {f"{10 * ten + unit:04d}" for ten in range(1, 6) for unit in range(2)}
    images = Images(photographs / "out", "train")
    assert len(images) == 50
    assert [images[n].size for n in (0, 49)] == [(60, 40)] * 2
    assert sorted(images.labels["class"].tolist()) == [0] * 25 + [1] * 25


def test_too_many_corrupt_images_stop_the_build(photographs: Path) -> None:
    with pytest.raises(
        UserError, match=r"of 60 images of strict are corrupt.*0010\.jpg.*raise max"
    ):
        build_shards("strict", photographs / "raw", photographs / "out", num_workers=1)
    assert not (photographs / "out" / "index.json").exists()


def test_original_bytes_are_kept_unless_resizing_is_asked_for(photographs: Path) -> None:
    for name in ("photographs", "shrunk"):
        build_shards(name, photographs / "raw", photographs / name, num_workers=1)
    first = (photographs / "raw" / "train" / "even" / "0000.jpg").read_bytes()
    offset, size = shards.read_shard(photographs / "photographs" / "train-00000.tar").places[0]
    tar = (photographs / "photographs" / "train-00000.tar").read_bytes()
    assert tar[offset : offset + size] == first
    assert Images(photographs / "shrunk", "train")[0].size == (30, 20)


def test_one_core_or_several_give_the_same_bytes(photographs: Path) -> None:
    for workers in (1, 3):
        out = photographs / str(workers)
        build_shards("photographs", photographs / "raw", out, num_workers=workers)
    for path in (photographs / "1").glob("[!.]*"):
        assert path.read_bytes() == (photographs / "3" / path.name).read_bytes()


def test_a_tar_is_what_webdataset_writes(data: Path, tmp_path: Path) -> None:
    """Our own writer makes the same bytes, so that data versions did not change with it."""
    images = Images(data, "test")
    with webdataset.TarWriter(str(tmp_path / "by.tar"), encoder=False, mtime=0) as writer:
        for number in range(len(images)):
            content = images.encoded(number)
            label = str(images.labels["class"][number]).encode()
            writer.write({"__key__": f"{number:08d}", "cls": label, "png": content})
    assert (tmp_path / "by.tar").read_bytes() == images.paths[0].read_bytes()


def test_a_verified_shard_is_not_read_again(copy: Path) -> None:
    """A flipped byte under the old time shows that only size and time are looked at."""
    shards.verify(copy)
    path = copy / "train-00000.tar"
    whole, times = path.read_bytes(), path.stat()
    path.write_bytes(whole[:3000] + bytes([whole[3000] ^ 1]) + whole[3001:])
    with pytest.raises(UserError, match="is damaged"):
        shards.verify(copy)
    os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))
    shards.verify(copy)


def test_a_raw_file_with_other_bytes_is_refused(tiny: Path, tmp_path: Path) -> None:
    raw = Path(shutil.copytree(tiny / "raw", tmp_path / "raw"))
    (raw / "test_batch.bin").write_bytes(bytes(32 * 3073))
    with pytest.raises(UserError, match=r"test_batch\.bin is missing or does not have the SHA-1"):
        build_shards("tiny", raw, tmp_path / "out", num_workers=1)
    assert (tmp_path / "out" / "train-00002.tar").exists()
    assert not (tmp_path / "out" / "index.json").exists()


@pytest.mark.skipif(os.geteuid() != 0, reason="mounting a small file system needs root")
def test_a_full_disk_is_one_clear_error_and_loses_nothing(tiny: Path, tmp_path: Path) -> None:
    mount = ["mount", "-t", "tmpfs", "-o", "size=220k", "tmpfs", str(tmp_path)]
    if subprocess.run(mount, check=False, capture_output=True).returncode:
        pytest.skip("this sandbox cannot mount a tmpfs")
    command = [sys.executable, "-m", "ijepa.data", "build", "tiny"]
    command += ["--raw", str(tiny / "raw"), "--out", str(tmp_path), "--num-workers", "1"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        error = done.stderr.splitlines()[-1]
        assert done.returncode == 1
        assert "No space left on device: free some space" in error
        assert ".tar" in error
        assert (tmp_path / "train-00000.json").exists()
        subprocess.run(["mount", "-o", "remount,size=8m", str(tmp_path)], check=True)
        subprocess.run(command, check=True, stderr=subprocess.DEVNULL)
        assert shards.verify(tmp_path).dataset == "tiny"
    finally:
        subprocess.run(["umount", "--lazy", str(tmp_path)], check=True)


@pytest.fixture
def archive(tiny: Path, tmp_path: Path) -> Iterator[str]:
    """Address of an archive in the official layout, served on this machine."""
    with tarfile.open(tmp_path / "tiny.tar.gz", "w:gz") as tar:
        for path in (tiny / "raw").iterdir():
            tar.add(path, f"cifar-10-batches-bin/{path.name}")

    class Handler(http.server.SimpleHTTPRequestHandler):
        def __init__(self, *args: object) -> None:
            super().__init__(*args, directory=str(tmp_path))  # type: ignore[arg-type]

        def log_message(self, *args: object) -> None:
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}/tiny.tar.gz"
        server.shutdown()


def test_the_original_archive_is_fetched_where_a_first_address_fails(
    archive: str, tiny: Path, tmp_path: Path
) -> None:
    missing = archive.replace("tiny.tar", "gone.tar")
    dataset = register.load_dataset("tiny").model_copy(
        update={"origins": [{"archive": missing}, {"archive": archive}]}
    )
    load_source("cifar").fetch(dataset, tmp_path / "raw")
    for path in (tiny / "raw").iterdir():
        assert (tmp_path / "raw" / path.name).read_bytes() == path.read_bytes()


def test_files_with_other_checksums_are_not_accepted(archive: str, tmp_path: Path) -> None:
    dataset = register.load_dataset("tiny")
    dataset = dataset.model_copy(
        update={
            "origins": [{"archive": archive}],
            "checksums": {**dataset.checksums, "test_batch.bin": f"sha1:{'0' * 40}"},
        }
    )
    with pytest.raises(UserError, match=r"test_batch\.bin could not be had with the checksums"):
        load_source("cifar").fetch(dataset, tmp_path / "raw")


def test_an_augmentation_depends_on_seed_epoch_and_image_alone(data: Path) -> None:
    kinds = [View(32, Crop()), View(16, DINO_LOCAL)]
    views = TrainingViews(Images(data, "train"), kinds, seed=0)
    other = TrainingViews(views.images, kinds, seed=1)
    for number in range(2):
        first = views[(1, 7)].views[number]
        assert (first == views[(1, 7)].views[number]).all()
        assert (first != views[(2, 7)].views[number]).any()
        assert (first != other[(1, 7)].views[number]).any()
    assert [view.shape for view in views[(0, 0)].views] == [(32, 32, 3), (16, 16, 3)]


def test_processes_share_each_batch_between_them() -> None:
    whole = list(Steps(100, 10, first=3, last=12, seed=3))
    halves = [list(Steps(100, 10, 3, 12, 3, part, num_parts=2)) for part in range(2)]
    assert [a + b for a, b in zip(*halves, strict=True)] == whole


def test_an_epoch_shows_every_image_once_and_resumes_where_it_was() -> None:
    steps = list(Steps(100, 10, first=0, last=25, seed=3))
    assert len(steps) == 25
    for epoch in range(2):
        keys = [key for step in steps[epoch * 10 : epoch * 10 + 10] for key in step]
        assert sorted(keys) == [(epoch, image) for image in range(100)]
    assert list(Steps(100, 10, first=13, last=25, seed=3)) == steps[13:]
    assert [i for _, i in steps[0]] != [i for _, i in steps[10]]


def test_crops_cover_the_asked_for_share_of_the_image() -> None:
    pixels = np.add.outer(np.arange(64) * 2, np.zeros(64)).astype(np.uint8)
    image = Image.fromarray(np.stack([pixels] * 3, 2))
    random = np.random.default_rng(0)
    tight = Crop(scale=(0.25, 0.25), aspect=(1, 1))
    crop = np.asarray(augment(image, 32, tight, random)[0])
    assert crop.shape == (32, 32, 3)
    assert abs(int(crop[-1, 0, 0]) - int(crop[0, 0, 0]) - 62) <= 2  # half of the height
    whole = Crop(scale=(1, 1), aspect=(1, 1))
    assert np.asarray(augment(image, 64, whole, random)[0]).tolist() == np.asarray(image).tolist()


def test_the_evaluation_view_keeps_a_small_image_whole_and_cuts_a_large_one() -> None:
    file = io.BytesIO()
    Image.effect_noise((32, 32), 50).convert("RGB").save(file, "png")
    small = Image.open(file)
    assert np.asarray(centre_crop(small, 32)).tolist() == np.asarray(small).tolist()
    assert centre_crop(Image.new("RGB", (640, 480)), 224).size == (224, 224)
