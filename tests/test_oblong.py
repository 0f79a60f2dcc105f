"""Images that are not square: ``image_size: [height, width]`` in every step, or refused."""

import io
import re
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from evals import picture
from evals.features import extract
from evals.patches import PATCHES_FILE
from evals.protocol import Facts
from evals.protocol import check as check_protocol
from evals.protocols import decoder
from evals.report import gallery
from evals.run import evaluate
from evals.subject import Subject, stored
from ijepa import checkpoint
from ijepa.config import parse_run
from ijepa.cost.predict import arch
from ijepa.data.fast_jpeg import Jpeg
from ijepa.data.loader import EvaluationViews, Images
from ijepa.data.statistics import statistics
from ijepa.data.transforms import IJEPA, Crop, augment, centre_crop, normalise, sample_box, squash
from ijepa.errors import UserError
from ijepa.files import read_json
from ijepa.method import Batch, load_method, method_names
from ijepa.released.weights import export_encoder
from ijepa.train import train
from tests.conftest import Trained, raw_run_of

OBLONG = [24, 40]


def raw_run(method: str, image_size: Any = OBLONG, **changes: Any) -> dict[str, Any]:
    raw = raw_run_of(method)
    return {**raw, "vit": {**raw["vit"], "image_size": image_size}, **changes}


@pytest.mark.parametrize("method", ["ijepa", "mae"])
def test_a_run_learns_from_oblong_images_and_is_evaluated(
    method: str, data: Path, tmp_path: Path
) -> None:
    out, about = tmp_path / "run" / "encoder.safetensors", tmp_path / "features" / "about.json"
    train(parse_run(raw_run(method)), data, tmp_path / "work", out)
    encoder, header = checkpoint.load_encoder(out)
    assert header["run"]["vit"]["image_size"] == OBLONG
    assert encoder.config.grid == (6, 10)

    extract(out, data, about)
    views = EvaluationViews(Images(data, "test"), (24, 40))
    images = normalise(torch.from_numpy(np.stack([views[number] for number in range(4)])))
    assert images.shape == (4, 3, 24, 40)
    with torch.no_grad():
        expected = encoder.patches(encoder(images)).mean(1)
    features = torch.from_numpy(stored(about, "test", "patches")[:4, -1].astype(np.float32))
    torch.testing.assert_close(features, expected, rtol=5e-3, atol=1e-2)

    evaluate("knn", {}, Subject(data, "class", features_of=about), tmp_path / "knn.json")
    probe = {"epochs": 2, "milestones": [1], "batch_size": 16, "num_workers": 0}
    evaluate("linear_probe", probe, Subject(data, "class", encoder=out), tmp_path / "probe.json")

    shown, (train_images, test) = read_json(out.with_name("masks.json")), splits(data)
    assert "<svg" in gallery.masks(shown, train_images)
    patches = about.with_name(PATCHES_FILE)
    assert "<svg" in gallery.patch_features(patches, "centre", (24, 40), test)

    with pytest.raises(UserError, match=r"\(24, 40\) pixels, every --layout is for square"):
        export_encoder(out, tmp_path / "out.pth", "timm")
    with pytest.raises(UserError, match="only encoders of square images"):
        picture.patches_of(out, None)


def splits(data: Path) -> tuple[Images, Images]:
    return Images(data, "train"), Images(data, "test")


@pytest.mark.usefixtures("tiny")
@pytest.mark.parametrize("name", method_names())
def test_every_method_learns_from_oblong_images(name: str) -> None:
    run = parse_run(raw_run(name))
    torch.manual_seed(0)
    method = load_method(name).Method(run.recipe, run.vit)
    sizes = [view.size for view in run.recipe.views(run.vit.image_size)]
    assert sizes[0] == (24, 40)
    views = [(s, s) if isinstance(s, int) else s for s in sizes]
    batch = Batch(
        tuple(torch.randn(4, 3, *size) for size in views),
        seed=0,
        step=0,
        total=4,
        tokens_BN=torch.randint(32, (4, 60)),
    )
    loss = method(batch)["loss"]
    loss.backward()
    assert loss.isfinite()


@pytest.mark.usefixtures("tiny")
def test_equal_sides_are_a_square_of_the_same_identity() -> None:
    square, pair = (parse_run(raw_run("ijepa", size)) for size in (32, [32, 32]))
    assert pair == square
    assert pair.identity() == square.identity()
    assert asdict(pair)["vit"]["image_size"] == 32
    assert parse_run(raw_run("ijepa")).identity() != square.identity()


@pytest.mark.usefixtures("tiny")
@pytest.mark.parametrize(
    ("size", "says"),
    [
        ([24, 30], r"run\.vit: patch_size 4 does not divide image_size \(24, 30\)"),
        (
            [24, 40, 3],
            r"run\.vit\.image_size: image_size is \[24, 40, 3\]: give a number of pixels",
        ),
        ("large", r"run\.vit\.image_size: image_size is 'large': give a number of pixels, or"),
        ([0, 40], r"run\.vit: image_size is \(0, 40\): it must be at least 1"),
    ],
)
def test_sizes_that_cannot_be_are_refused(size: Any, says: str) -> None:
    with pytest.raises(UserError, match=says):
        parse_run(raw_run("ijepa", size))


def test_crops_are_stretched_as_much_as_those_of_squares() -> None:
    crop = Crop(scale=(0.05, 0.1), aspect=(0.9, 1.1))
    boxes = [sample_box(400, 400, crop, np.random.default_rng(n), shape=2.0) for n in range(50)]
    assert all(1.75 < box.width / box.height < 2.25 for box in boxes)
    view, box = augment(Image.new("RGB", (400, 400)), (20, 40), crop, np.random.default_rng(0))
    assert view.size == (40, 20)
    assert 1.75 < box.width / box.height < 2.25


def test_the_evaluation_view_is_the_largest_central_part_of_its_shape() -> None:
    ramp = np.broadcast_to(np.arange(200, dtype=np.uint8)[:, None, None], (200, 100, 3))
    image = Image.fromarray(ramp.copy())
    view = np.asarray(centre_crop(image, (28, 56)))
    assert view.shape == (28, 56, 3)
    # 64 columns of 100, so that 28 rows of 128 are seen: the middle 44 of 200.
    assert 76 < view[0, 0, 0] < 82
    assert 118 < view[-1, 0, 0] < 124
    whole = np.asarray(squash(image, (28, 56)))
    assert whole.shape == (28, 56, 3)
    assert whole[0, 0, 0] < 8
    assert whole[-1, 0, 0] > 190
    fitting = image.crop((0, 0, 56, 60))
    assert (np.asarray(centre_crop(fitting, (28, 56))) == np.asarray(fitting)[16:44]).all()


def test_fast_pixels_have_the_shape_too() -> None:
    file, gradient = io.BytesIO(), np.linspace(0, 255, 400)
    pixels = np.broadcast_to(gradient[None, :, None], (200, 400, 3)).astype(np.uint8)
    Image.fromarray(pixels.copy()).save(file, "jpeg", quality=95)
    exact, fast = (
        np.asarray(augment(image, (20, 48), IJEPA, np.random.default_rng(0))[0]).astype(int)
        for image in (Image.open(file), Jpeg(file.getvalue(), lambda: None))
    )
    assert exact.shape == fast.shape == (20, 48, 3)
    assert abs(exact - fast).max() < 6


def test_statistics_count_the_pixels_of_the_view(data: Path) -> None:
    views = EvaluationViews(Images(data, "train"), (16, 32))
    pixels = np.stack([views[n] for n in range(len(views))]).reshape(-1, 3) / 255
    np.testing.assert_allclose(statistics(data, (16, 32), 0)[0], pixels.mean(0), atol=1e-4)


def test_a_start_resamples_the_positions_of_squares_and_of_no_others(
    data: Path, trained: Trained, tmp_path: Path
) -> None:
    """Grids of 8 x 8 and 4 x 16 have as many patches: the table's size does not tell them apart."""
    start = {"from": str(trained("mae")), "parts": "encoder"}
    raw = raw_run("mae", [16, 64])
    with pytest.raises(UserError, match=r"images of 32 pixels, vit.image_size is \(16, 64\)"):
        train(parse_run({**raw, "start": start}), data, tmp_path / "w", tmp_path / "refused")
    out = tmp_path / "out.safetensors"
    run = parse_run({**raw, "start": {**start, "interpolate_positions": True}})
    train(run, data, tmp_path / "work", out)
    again = {"from": str(out), "parts": "encoder", "interpolate_positions": True}
    run_again = parse_run(raw_run("mae", 32, start=again))
    with pytest.raises(UserError, match=re.escape("is for images of (16, 64) pixels")):
        train(run_again, data, tmp_path / "w", tmp_path / "refused")


@pytest.mark.usefixtures("tiny")
def test_costs_count_the_patches_of_the_grid() -> None:
    run = parse_run(raw_run("ijepa", [16, 64]))
    assert run.vit.forward_flops == replace(run.vit, image_size=32).forward_flops
    assert arch(run).endswith("/4_16x64")


def test_the_decoder_refuses_them() -> None:
    facts = Facts(uses="images", square=False)
    with pytest.raises(UserError, match=r"condition is prediction: the decoder draws square"):
        check_protocol("decoder", decoder.Config(), facts, "evaluations.decoder.config")
