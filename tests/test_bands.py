"""Images of other than three channels, or of 16 bits: read exactly, learnt from, or refused."""

import io
import re
import struct
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from numpy.typing import NDArray
from PIL import Image

from evals.drawing import displayed
from evals.features import extract
from evals.run import evaluate
from evals.subject import Subject, stored
from ijepa import checkpoint
from ijepa.architecture import Variant, ViTConfig
from ijepa.config import parse_run
from ijepa.cost.flops import batch_of_noise
from ijepa.data import register
from ijepa.data.bands import Bands, read_bands
from ijepa.data.build import build_shards, inspect
from ijepa.data.loader import EvaluationViews, Images
from ijepa.data.shards import read_index
from ijepa.data.statistics import statistics
from ijepa.data.tokens import build_tokens
from ijepa.data.transforms import Crop, augment, centre_crop, normalise, squash, to_array
from ijepa.errors import UserError
from ijepa.files import read_json
from ijepa.released.weights import export_encoder
from ijepa.train import train
from tests.conftest import raw_run_of
from tests.released_files import VIT, network
from tests.test_odd_inputs import png_of_16_bits, tiff_of_16_bits
from workflow.plan.benchmark import read_benchmark
from workflow.plan.check import check as check_plan

Pixels = NDArray[Any]


def as_image(pixels: Pixels) -> bytes:
    """PNG of one channel, or of all of an RGBA image."""
    return saved(Image.fromarray(pixels[..., 0] if pixels.shape[2] == 1 else pixels), "png")


def as_pages(pixels: Pixels) -> bytes:
    """TIFF with a page for each channel."""
    pages = [Image.fromarray(np.ascontiguousarray(plane)) for plane in np.moveaxis(pixels, 2, 0)]
    return saved(pages[0], "tiff", save_all=True, append_images=pages[1:])


def as_array(pixels: Pixels) -> bytes:
    file = io.BytesIO()
    np.save(file, pixels)
    return file.getvalue()


def saved(image: Image.Image, kind: str, **options: Any) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


KINDS: dict[str, tuple[int, int, Callable[[Pixels], bytes], str]] = {
    "grey": (1, 8, as_image, "png"),
    "deep grey": (1, 16, as_image, "png"),
    "four bands": (4, 8, as_image, "png"),
    "deep pages": (5, 16, as_pages, "tif"),
    "deep array": (3, 16, as_array, "npy"),
}
"""Channels, bits, and a writer of each kind of image."""


def entry(kind: str) -> dict[str, Any]:
    channels, bits, *_ = KINDS[kind]
    return {
        **dict.fromkeys(("title", "citation", "licence"), "any"),
        **{"source": "image_folder", "image_size": 32, "channels": channels, "bits": bits},
        **{"labels": {"class": ["dark", "light"]}, "splits": {"train": 64, "test": 16}},
    }


def drawn(kind: str, number: int) -> Pixels:
    """Image of noise [40, 36, C], whose class tells its brightness."""
    channels, bits, *_ = KINDS[kind]
    random = np.random.default_rng(number)
    largest = 2**bits - 1
    values = random.uniform(0, 0.5, (40, 36, channels)) + 0.5 * (number % 2)
    dtype: Any = np.uint8 if bits == 8 else np.uint16
    return np.asarray((values * largest).astype(dtype))


def write_raw(kind: str, raw: Path) -> None:
    """Raw files, of which the training images have the numbers from 0 on, the others from 64 on."""
    *_, encoded, ending = KINDS[kind]
    for split, first, count in (("train", 0, 64), ("test", 64, 16)):
        for number in range(first, first + count):
            folder = raw / split / ("dark", "light")[number % 2]
            folder.mkdir(parents=True, exist_ok=True)
            (folder / f"{number:03}.{ending}").write_bytes(encoded(drawn(kind, number)))


@pytest.fixture
def shards(kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Shards of one kind, the data set ``sky`` of a register of its own."""
    write_raw(kind, tmp_path / "raw")
    registered(kind, tmp_path, monkeypatch)
    build_shards("sky", tmp_path / "raw", tmp_path / "shards", num_workers=1)
    return tmp_path / "shards"


def registered(kind: str, folder: Path, monkeypatch: pytest.MonkeyPatch, **changes: Any) -> None:
    content = {"sky": {**entry(kind), **changes}}
    (folder / "datasets.yaml").write_text(yaml.safe_dump(content, sort_keys=False))
    monkeypatch.setattr(register, "REGISTER", folder / "datasets.yaml")


def raw_run(kind: str, method: str = "ijepa", **changes: Any) -> dict[str, Any]:
    own = {name: [0.5] * KINDS[kind][0] for name in ("mean", "std")}
    raw = raw_run_of(method)
    raw["recipe"]["optim"]["epochs"] = 4  # 8 steps of 32
    return {**raw, "dataset": "sky", "vit": {**raw["vit"], **own}, **changes}


@pytest.mark.parametrize("kind", KINDS)
def test_an_image_is_read_as_it_was_written(kind: str) -> None:
    channels, bits, encoded, ending = KINDS[kind]
    pixels = drawn(kind, 1)
    pixels[0, 0], pixels[0, 1] = 0, 2**bits - 1
    content = encoded(pixels)
    assert inspect(content, channels, bits) == (ending, None)
    read = to_array(read_bands(content, channels, bits))
    assert read.dtype == (np.uint8 if bits == 8 else np.float32)
    np.testing.assert_array_equal(read, pixels if bits == 8 else pixels.astype(np.float32) / 257)
    assert (read[0, 0] == 0).all()
    assert (read[0, 1] == 255).all()


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
def test_channels_are_cut_and_resized_as_pillow_does_colours(interpolation: Any) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (37, 53, 3), np.uint8)
    colours = Image.fromarray(pixels)
    bands = Bands([Image.fromarray(pixels[..., c].copy()) for c in range(3)])
    crop = Crop(flip=0.5, interpolation=interpolation)
    for seed in range(6):
        (ours, box), (theirs, same) = (
            augment(image, 24, crop, np.random.default_rng(seed)) for image in (bands, colours)
        )
        assert box == same
        np.testing.assert_array_equal(to_array(ours), to_array(theirs))
    for view in (centre_crop, squash):
        np.testing.assert_array_equal(to_array(view(bands, 24)), to_array(view(colours, 24)))


def test_16_bits_are_neither_rounded_nor_clipped() -> None:
    edge = np.zeros((32, 32, 1), np.uint16)
    edge[:, 16:] = 65535
    edge[0, 0] = 1
    bands = read_bands(as_image(edge), 1, 16)
    assert to_array(bands)[0, 0] == np.float32(1 / 257)
    resized = to_array(squash(bands, 48))
    assert resized.min() < 0
    assert resized.max() > 255


def test_floats_are_normalised_without_a_change_of_the_batch() -> None:
    images = torch.full((2, 4, 4, 1), 127.5)
    assert (normalise(images, (0.25,), (0.25,)) == 1).all()
    assert (images == 127.5).all()


@pytest.mark.parametrize(
    ("kind", "method"),
    [("grey", "mae"), ("four bands", "ijepa"), ("deep pages", "mae"), ("deep array", "ijepa")],
)
def test_a_run_learns_from_them_and_is_evaluated(
    kind: str, method: str, shards: Path, tmp_path: Path
) -> None:
    channels, *_ = KINDS[kind]
    mean, std = statistics(shards, 32, num_workers=0)
    assert len(mean) == len(std) == channels
    assert all(0.45 < value < 0.55 for value in mean)
    raw = raw_run(kind, method)
    run = parse_run({**raw, "vit": {**raw["vit"], "mean": mean, "std": std}})
    out = tmp_path / "encoder.safetensors"
    train(run, shards, tmp_path / "work", out)
    assert len((tmp_path / "train.jsonl").read_text().splitlines()) == 8

    encoder, _ = checkpoint.load_encoder(out)
    assert encoder.patch_embed.proj.weight.shape[1] == channels
    about = tmp_path / "features" / "about.json"
    extract(out, shards, about)
    views = EvaluationViews(Images(shards, "test"), 32)
    images = np.stack([views[number] for number in range(4)]).astype(np.float64) / 255
    by_hand = torch.from_numpy((images - mean) / std).permute(0, 3, 1, 2).float()
    with torch.no_grad():
        expected = encoder.patches(encoder(by_hand)).mean(1)
    features = torch.from_numpy(stored(about, "test", "patches")[:4, -1].astype(np.float32))
    torch.testing.assert_close(features, expected, rtol=5e-3, atol=1e-2)

    evaluate("knn", {}, Subject(shards, "class", features_of=about), tmp_path / "knn.json")
    assert read_json(tmp_path / "knn.json")["value"] > 0.8
    probe = {"epochs": 2, "milestones": [1], "batch_size": 16, "num_workers": 0}
    subject = Subject(shards, "class", encoder=out)
    evaluate("linear_probe", probe, subject, tmp_path / "probe.json")
    if channels != 3:
        with pytest.raises(UserError, match=rf"images of {channels} channels, every --layout"):
            export_encoder(out, tmp_path / "out.pth", "timm")


@pytest.mark.parametrize("kind", ["deep array"])
def test_raw_pixels_are_in_shares_of_the_largest_value(shards: Path, tmp_path: Path) -> None:
    about = tmp_path / "features" / "about.json"
    extract(None, shards, about)
    features = stored(about, "test")
    assert features.shape[2] == 32 * 32 * 3
    assert 0.4 < features.mean() < 0.6


@pytest.mark.parametrize("kind", ["grey"])
def test_the_same_files_in_other_channels_are_another_version(
    shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert {"channels": 1, "bits": 8}.items() <= yaml.safe_load(
        (shards / "index.json").read_text()
    ).items()
    registered("grey", tmp_path, monkeypatch, channels=3)
    build_shards("sky", tmp_path / "raw", tmp_path / "colours", num_workers=1)
    grey, colours = read_index(shards), read_index(tmp_path / "colours")
    assert grey.splits == colours.splits
    assert grey.version() != colours.version()
    assert to_array(Images(tmp_path / "colours", "train")[0]).shape == (40, 36, 3)


def test_rgb_runs_and_shards_are_named_and_written_as_before(data: Path) -> None:
    assert not {"channels", "bits"} & yaml.safe_load((data / "index.json").read_text()).keys()
    assert list(asdict(ViTConfig())) == [
        *("image_size", "patch_size", "dim", "depth", "num_heads", "mlp_ratio"),
        *("init", "patch_std", "mean", "std"),
    ]
    assert parse_run(raw_run_of("ijepa")).identity() == IDENTITY


IDENTITY = "904f84b22caa"
"""Identity of that run, which the version before other channels computed."""


def tiff(bits: list[int], colours: int, kind: int, planar: int = 1) -> bytes:
    """A TIFF of 2 x 2 pixels with channels beside its colours, as GDAL writes it; Pillow doesn't.

    ``kind`` of the further channels: 0 is unknown, 1 an opacity by which colours are multiplied.
    """
    count = len(bits)
    strips = count if planar == 2 else 1
    strip = 4 * sum(bits) // 8 // strips
    tags = {256: [2], 257: [2], 258: bits, 259: [1], 262: [2 if colours == 3 else 1]}
    tags |= {273: [0] * strips, 277: [count], 278: [2], 279: [strip] * strips, 284: [planar]}
    tags[338] = [kind] * (count - colours)
    end = 8 + 2 + 12 * len(tags) + 4
    first = end + sum(2 * len(values) for values in tags.values() if len(values) > 2)
    tags[273] = [first + number * strip for number in range(strips)]
    head, tail = struct.pack("<4sIH", b"II*\0", 8, len(tags)), b""
    for tag, values in tags.items():
        packed = struct.pack(f"<{len(values)}H", *values)
        if len(values) > 2:
            head += struct.pack("<HHII", tag, 3, len(values), end + len(tail))
            tail += packed
        else:
            head += struct.pack("<HHI", tag, 3, len(values)) + packed.ljust(4, b"\0")
    return head + bytes(4) + tail + bytes(range(1, strip + 1)) * strips


@pytest.mark.parametrize(
    ("content", "channels", "bits", "fault"),
    [
        (tiff([8] * 2, 1, 0), 1, 8, "Pillow reads 1 of its 2 channels: save each channel as a"),
        (tiff([8] * 4, 3, 0), 4, 8, "Pillow reads 3 of its 4 channels"),
        (tiff([8] * 4, 3, 1), 4, 8, "Pillow divides its channels by the last"),
        (tiff([16] * 13, 1, 0, planar=2), 13, 16, "a TIFF that Pillow does not read"),
        (tiff([16] * 5, 1, 0), 5, 16, "a TIFF that Pillow does not read: save each channel"),
        (as_image(np.zeros((4, 4, 3), np.uint8)), 4, 8, r"4 x 4 x 3 .*channels: 4"),
        (as_image(np.zeros((4, 4, 1), np.uint8)), 1, 16, "8 bits a channel, the entry has bits"),
        (as_image(np.zeros((4, 4, 1), np.uint16)), 1, 8, "16 bits a channel, the entry has bits"),
        (png_of_16_bits(), 3, 16, "Pillow reads only 8 of the 16 bits"),
        (tiff_of_16_bits(), 3, 16, "Pillow reads only 8 of the 16 bits"),
        (as_array(np.zeros((4, 4, 2), np.float32)), 2, 16, "array of float32"),
        (as_array(np.zeros((2, 2, 2, 2), np.uint8)), 2, 8, r"array of uint8, \[2, 2, 2, 2\]"),
        (as_array(np.array([{}])), 2, 8, "pickle"),
        (as_array(np.zeros((4, 4, 2), np.uint8))[:-3], 2, 8, "."),
        (saved(Image.new("P", (4, 4)), "png"), 1, 8, "its mode is P"),
        (saved(Image.new("F", (4, 4)), "tiff"), 1, 16, "its mode is F"),
        (saved(Image.new("I", (4, 4), 70000), "tiff"), 1, 16, "from 70000 to 70000"),
        (as_array(np.zeros((4, 4, 3), np.uint8)), 3, 8, "no image"),
    ],
)
def test_an_image_that_would_lose_values_is_a_fault(
    content: bytes, channels: int, bits: int, fault: str
) -> None:
    ending, said = inspect(content, channels, bits)
    assert not ending
    assert re.search(fault, said or "")


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"vit": {"patch_size": 4}}, r"run\.vit\.mean: sky has 4 channels, mean and std have 3"),
        ({"pixels": "fast"}, r"run\.pixels: fast is for JPEGs, but sky has 4 channels of 8 bits"),
        ({"method": "cae"}, r"run\.method: cae needs token ids"),
        ({"recipe": {"crop": {"solarise": 0.1}}}, r"run\.recipe\.crop\.solarise is 0.1: it needs"),
        ({"method": "data2vec"}, r"run\.recipe\.crop\.jitter is \(0\.4"),
        ({"method": "dino"}, r"run\.recipe\.global_crops\.0\.jitter is"),
    ],
)
def test_a_run_that_cannot_learn_from_them_is_refused(
    changes: dict[str, Any], says: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    registered("four bands", tmp_path, monkeypatch)
    monkeypatch.setattr("ijepa.config._check_pixels", lambda *_: None)
    raw = raw_run("four bands", changes.pop("method", "ijepa"))
    with pytest.raises(UserError, match=says):
        parse_run({**raw, **changes})


def test_an_entry_that_stores_jpegs_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    registered("grey", tmp_path, monkeypatch, resize={"short_side": 16})
    with pytest.raises(UserError, match="resize stores JPEGs of three channels"):
        register.load_dataset("sky")


@pytest.mark.parametrize("kind", ["four bands"])
def test_an_encoder_of_other_channels_is_not_evaluated(shards: Path, tmp_path: Path) -> None:
    encoder = network(Variant(), VIT)
    run = {"method": "released", "seed": None, "vit": asdict(VIT)}
    about = {"run": run, "variant": asdict(Variant()), "facts": {}}
    checkpoint.save_tensors(tmp_path / "encoder", encoder.state_dict(), about)
    with pytest.raises(UserError, match="is for images of 3 channels, sky has 4"):
        extract(tmp_path / "encoder", shards, tmp_path / "features" / "about.json")
    subject = Subject(shards, "class", encoder=tmp_path / "encoder")
    with pytest.raises(UserError, match="the encoder is for images of 3 channels, the data"):
        evaluate("finetune", {}, subject, tmp_path / "out.json")
    with pytest.raises(UserError, match="tokens are made of three channels"):
        build_tokens(shards, "small")


@pytest.mark.parametrize(
    ("evaluation", "says"),
    [
        ({"name": "finetune", "uses": "images"}, r"finetune\.config\.auto_augment is rand"),
        ({"name": "decoder", "uses": "images"}, r"decoder\.config\.condition is prediction: the"),
        ({"name": "knn", "dataset": "tiny"}, r"the encoder is for images of 4 channels, the data"),
    ],
)
def test_a_plan_names_evaluations_that_are_impossible(
    evaluation: dict[str, Any],
    says: str,
    tiny: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    known = yaml.safe_load((tiny / "datasets.yaml").read_text())
    (tmp_path / "datasets.yaml").write_text(yaml.safe_dump({**known, "sky": entry("four bands")}))
    monkeypatch.setattr(register, "REGISTER", tmp_path / "datasets.yaml")
    monkeypatch.chdir(tmp_path)
    run = {k: v for k, v in raw_run("four bands").items() if k != "dataset"}
    config = {
        **{"name": "a", "dataset": "sky", "seeds": [0], "evaluations": [evaluation]},
        "runs": [{"name": "r", **run}],
        "tables": [{"name": "t", "title": "T", "evaluations": [evaluation["name"]]}],
    }
    with pytest.raises(UserError, match=says):
        check_plan(read_benchmark(config))


def test_pictures_show_the_first_channels_in_their_whole_range() -> None:
    channels = [Image.fromarray(np.full((2, 2), value, np.float32)) for value in (1, 2, 4, 9)]
    assert displayed(Bands(channels))[0, 0].tolist() == [63, 127, 255]
    assert displayed(Bands(channels[:1]))[0, 0].tolist() == [255, 255, 255]
    assert displayed(Image.new("RGB", (1, 1), (1, 2, 3)))[0, 0].tolist() == [1, 2, 3]


@pytest.mark.usefixtures("tiny")
def test_the_cost_of_a_run_counts_its_channels() -> None:
    eight = replace(VIT, mean=(0.5,) * 8, std=(0.5,) * 8)
    assert eight.forward_flops - VIT.forward_flops == 2 * 64 * 5 * 4**2 * VIT.dim
    run = replace(parse_run(raw_run_of("ijepa")), vit=eight)
    assert batch_of_noise(run, 2, 0, torch.device("cpu")).images_BCHW.shape == (2, 8, 32, 32)
