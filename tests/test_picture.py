"""Pictures of patch features: known components, twins, and images as users have them."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image

from evals import patches, picture
from evals.features import extract
from evals.views import patch_features
from ijepa.architecture import Variant, ViTConfig
from ijepa.checkpoint import load_encoder, save_encoder
from ijepa.config import RunConfig
from ijepa.data.loader import Images
from ijepa.data.transforms import centre_crop, normalise, to_array
from ijepa.errors import UserError
from ijepa.method import load_method
from ijepa.vit import ViT

SIZE: dict[str, Any] = {
    "image_size": 32, "patch_size": 8, "dim": 32, "depth": 1, "num_heads": 2
}  # fmt: skip
RUN = RunConfig("mae", "tiny", ViTConfig(**SIZE), load_method("mae").Config())


def saved(path: Path, variant: Variant = Variant()) -> Path:
    torch.manual_seed(0)
    save_encoder(path, ViT(ViTConfig(**SIZE), variant), RUN, {})
    return path


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return saved(tmp_path_factory.mktemp("encoder") / "encoder.safetensors")


@pytest.fixture
def images(tmp_path: Path) -> list[Path]:
    """Two photographs of noise; the second has a copy of the first's patch 1,2 at 2,0."""
    random = np.random.default_rng(0)
    pixels = random.integers(0, 256, (2, 32, 32, 3), np.uint8)
    pixels[1, 16:24, 0:8] = pixels[0, 8:16, 16:24]
    files = [tmp_path / f"{number}.png" for number in range(2)]
    for file, array in zip(files, pixels, strict=True):
        Image.fromarray(array).save(file)
    return files


def planted() -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Features of 3 images that are three known scores along three known directions."""
    random = np.random.default_rng(0)
    scores = random.uniform(-1, 1, (3, 50, 3)) * [9, 3, 1]
    directions = np.linalg.qr(random.normal(size=(8, 3)))[0].T
    return scores @ directions + 5, scores * np.sign(
        directions[range(3), abs(directions).argmax(1)]
    )


def test_components_are_the_known_ones_in_order_of_their_size() -> None:
    """Seconds, most of them scikit-learn's import."""
    features, scores = planted()
    colours = patches.components(features)
    assert colours.shape == (3, 50, 3)
    assert colours.min() == 0
    assert colours.max() == 1
    correlation = np.corrcoef(colours.reshape(-1, 3).T, scores.reshape(-1, 3).T)[:3, 3:]
    assert np.diag(correlation).min() > 0.98  # the sign too


def test_components_have_the_same_signs_whatever_the_order_of_the_images() -> None:
    features, _ = planted()
    for order in ([2, 0, 1], [1, 2, 0]):
        ordered = patches.components(features[order])
        np.testing.assert_allclose(ordered, patches.components(features)[order], atol=1e-6)


def test_a_component_without_variation_is_no_noise_in_full_colour() -> None:
    line = np.linspace(0, 1, 16)[None, :, None] * np.ones(8)
    colours = patches.components(line)
    assert np.ptp(colours[..., 0]) == 1
    assert (colours[..., 1:] == 0.5).all()


def test_one_basis_for_all_images_gives_equal_patches_equal_colours() -> None:
    features, _ = planted()
    features[2, 7] = features[0, 3]
    colours = patches.components(features)
    np.testing.assert_array_equal(colours[2, 7], colours[0, 3])


def test_the_nearest_patch_of_a_copied_patch_is_its_twin() -> None:
    features, _ = planted()
    features -= 5
    features[2, 7] = 3 * features[0, 3]  # cosine similarity ignores length
    cosines = patches.similarity(features, 0, 3)
    assert cosines[0, 3] == pytest.approx(1)
    first, second = patches.nearest(cosines, 0, 3, 2)
    assert first == (2, 7)
    assert cosines[second] <= cosines[first]
    assert (2, 7) in patches.nearest_of_each(cosines, 0)


def test_nearest_patches_are_of_other_images_and_of_a_single_image_its_other_patches() -> None:
    features, _ = planted()
    cosines = patches.similarity(features, 1, 4)
    assert {image for image, _ in patches.nearest(cosines, 1, 4, 1000)} == {0, 2}
    alone = patches.nearest(cosines[1:2], 0, 4, 1000)
    assert len(alone) == 49
    assert (0, 4) not in alone


@pytest.mark.parametrize("variant", [Variant(), Variant(class_token=True)], ids=["patches", "cls"])
def test_patch_features_are_after_the_final_norm_and_without_cls(variant: Variant) -> None:
    network = ViT(ViTConfig(**SIZE), variant).eval()
    torch.nn.init.constant_(network.get_parameter("norm.bias"), 7.0)
    x_BND = patch_features(network, torch.randn(2, 3, 32, 32))
    assert x_BND.shape == (2, 16, 32)
    torch.testing.assert_close(x_BND.mean(2), torch.full((2, 16), 7.0))


def test_the_picture_of_a_copied_patch_frames_its_twin(
    encoder: Path, images: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An encoder without positions and attention sees equal patches as equal."""
    network, _ = load_encoder(encoder)
    for name in ("pos_embed", "blocks.0.attn.proj.weight", "blocks.0.attn.proj.bias"):
        torch.nn.init.zeros_(network.get_parameter(name))
    blind = tmp_path / "blind.safetensors"
    save_encoder(blind, network, RUN, {})
    framed: list[Any] = []
    monkeypatch.setattr(picture, "sheet", lambda *given: framed.append(given[4:]))
    picture.draw(blind, images, tmp_path / "out", "1,2")
    assert framed == [(), ([(0, 6), (1, 8)],)]


def test_three_files_are_written_of_any_image_that_pillow_opens(
    encoder: Path, tmp_path: Path
) -> None:
    """Seven files: Matplotlib takes seconds to lay out and write so many images."""
    array = np.arange(40 * 60, dtype=np.uint16).reshape(40, 60)
    files = {
        "grey.png": Image.fromarray((array // 10).astype(np.uint8)),
        "deep.png": Image.fromarray(array * 20),
        "palette.gif": Image.new("P", (33, 50), 3),
        "clear.png": Image.new("RGBA", (64, 64), (0, 0, 0, 0)),
        "ink.jpg": Image.new("CMYK", (40, 40), (0, 9, 9, 0)),
        "cost $1 a_b.webp": Image.new("RGB", (7, 90), "red"),
        "float.tif": Image.fromarray(array.astype(np.float32) / 1e6),
    }
    for name, image in files.items():
        image.save(tmp_path / name)
    out = picture.draw(encoder, [tmp_path / name for name in files], tmp_path / "out")
    assert [path.name for path in out] == ["components.png", "similarity.png", "nearest.png"]
    for path in out:
        with Image.open(path) as image:
            assert min(image.size) > 300
            assert image.convert("RGB").getpixel((0, 0)) == (255, 255, 255)  # legible on dark pages
    assert picture.read_image(tmp_path / "clear.png").getpixel((0, 0)) == (255, 255, 255)
    for name in ("deep.png", "float.tif"):
        assert picture.read_image(tmp_path / name).getextrema()[0] == (0, 255)


def test_a_photograph_stands_as_its_camera_was_held(tmp_path: Path) -> None:
    image, exif = Image.new("RGB", (8, 4)), Image.Exif()
    exif[0x0112] = 6
    image.save(tmp_path / "turned.jpg", exif=exif)
    assert picture.read_image(tmp_path / "turned.jpg").size == (4, 8)


def test_larger_images_have_more_patches(encoder: Path, images: list[Path], tmp_path: Path) -> None:
    picture.draw(encoder, images, tmp_path / "out", "7,7", image_size=64)
    with pytest.raises(UserError, match="--patch 8,0: there are 8 rows and 8 columns"):
        picture.draw(encoder, images, tmp_path / "out", "8,0", image_size=64)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"patch": "4,0"}, "--patch 4,0: there are 4 rows and 4 columns of patches: give 0 to 3"),
        ({"patch": "-1,0"}, "--patch '-1,0': give a row and a column"),
        ({"patch": "3"}, "--patch '3': give a row and a column, as 3,4"),
        ({"count": 0}, "--count 0"),
        ({"out": "cat.png"}, r"cat\.png is a folder for several files: leave \.png out"),
        ({"image_size": 36}, "--image-size 36: .* has patches of 8 pixels"),
        ({"images": ["none.png"]}, "none.png does not exist"),
        ({"images": ["text.png"]}, "text.png cannot be opened as an image"),
        ({"encoder": "text.png"}, "text.png is not an encoder of this project"),
    ],
)
def test_mistakes_are_told_before_the_network_runs(
    encoder: Path,
    images: list[Path],
    tmp_path: Path,
    changed: dict[str, Any],
    message: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    (tmp_path / "text.png").write_text("text")
    monkeypatch.setattr(picture, "features", lambda *_: pytest.fail("the network ran"))
    given = {"encoder": encoder, "images": images, **changed}
    given["encoder"] = tmp_path / given["encoder"]
    given["images"] = [tmp_path / name for name in given["images"]]
    given["out"] = tmp_path / given.get("out", "out")
    with pytest.raises(UserError, match=message):
        picture.draw(**given)


def test_an_encoder_with_relative_positions_keeps_its_size(
    images: list[Path], tmp_path: Path
) -> None:
    beit = saved(tmp_path / "beit.safetensors", Variant(True, "relative", "beit"))
    picture.draw(beit, images, tmp_path / "out")
    with pytest.raises(UserError, match="relative positions, which fit only its own 32 pixels"):
        picture.draw(beit, images, tmp_path / "out", image_size=64)


def test_extraction_keeps_the_patches_of_some_test_images(
    encoder: Path, data: Path, tmp_path: Path
) -> None:
    """Those at equal distances among the images that are used, as the encoder gives them."""
    extract(encoder, data, tmp_path / "about.json", {"test": 20})
    stored = np.load(tmp_path / patches.PATCHES_FILE)
    note = json.loads((tmp_path / patches.PATCHES_FILE).with_suffix(".part.json").read_text())
    assert note["about"]["shown"] == [0, 3, 6, 9, 12, 15]
    test = Images(data, "test")
    pixels = np.stack([to_array(centre_crop(test[number], 32)) for number in (0, 3, 6, 9, 12, 15)])
    x_BND = patch_features(load_encoder(encoder)[0], normalise(torch.from_numpy(pixels)))
    np.testing.assert_allclose(stored, x_BND, atol=2e-3, rtol=2e-3)
    extract(encoder, data, tmp_path / "about.json", {"test": 12})
    note = json.loads((tmp_path / patches.PATCHES_FILE).with_suffix(".part.json").read_text())
    assert note["about"]["shown"] == [0, 2, 4, 6, 8, 10]


def test_the_names_of_rows_are_not_cut_off_at_the_edge(
    encoder: Path, images: list[Path], tmp_path: Path
) -> None:
    files = picture.draw(encoder, images * 3, tmp_path / "pictures")
    for path in files:
        grey = np.asarray(Image.open(path).convert("L"))
        assert (grey[:, 0] == 255).all(), f"{path.name} has ink in its first column"
