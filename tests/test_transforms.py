"""Augmented views."""

import hashlib
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image, ImageEnhance, ImageFilter
from torchvision.transforms import functional as tv

from ijepa.data import transforms
from ijepa.data.transforms import Box, Crop, augment, crop_tokens, sample_box
from ijepa.errors import UserError
from ijepa.strict import strict

WHOLE = Crop(scale=(1, 1), aspect=(1, 1))
PRESETS = {k: v for k, v in vars(transforms).items() if isinstance(v, Crop)}


def picture(width: int = 32, height: int = 32) -> Image.Image:
    """Noise, so that no two views are alike."""
    shape = (height, width, 3)
    return Image.fromarray(np.random.default_rng(7).integers(0, 256, shape, dtype=np.uint8))


def pixels(image: Image.Image) -> NDArray[np.int64]:
    return np.asarray(image).astype(np.int64)


def view(seed: int = 0, image: Image.Image | None = None, **changes: Any) -> NDArray[np.int64]:
    """The whole picture, changed."""
    random = np.random.default_rng(seed)
    return pixels(augment(image or picture(), 32, replace(WHOLE, **changes), random)[0])


# Boxes, the hash of the views at 24 pixels and the next number of the generator, from the code that
# the first published I-JEPA runs used (commit 9402f4e), on the generator of (0, 1, 2).
RECORDED = [
    (
        (32, 32),
        Crop(),
        [(11, 2, 20, 22, 0), (4, 9, 20, 19, 0), (3, 0, 26, 31, 0), (3, 4, 27, 25, 0)],
        ("e212044a7a9f7a6e", 13406913708823804601),
    ),
    (
        (500, 375),
        Crop(),
        [
            (198, 16, 267, 297, 0),
            (82, 79, 276, 261, 0),
            (130, 46, 277, 284, 0),
            (160, 91, 278, 218, 0),
        ],
        ("8c7feb1354213aeb", 11433839418045418942),
    ),
    (
        (60, 500),
        Crop(flip=0.5),
        [(0, 210, 60, 80, 0), (0, 210, 60, 80, 1), (0, 210, 60, 80, 1), (0, 210, 60, 80, 1)],
        ("e3f3eacd837d6266", 12596905409348656244),
    ),
    (
        (224, 180),
        Crop(scale=(0.08, 1), flip=0.5),
        [
            (110, 15, 94, 104, 1),
            (49, 66, 90, 85, 0),
            (74, 41, 97, 99, 0),
            (20, 5, 139, 173, 1),
        ],
        ("7127bb7a15d98bdf", 628622387162599937),
    ),
]


@pytest.mark.parametrize(("size", "crop", "boxes", "after"), RECORDED)
def test_views_without_colours_are_those_of_earlier_runs(
    size: tuple[int, int],
    crop: Crop,
    boxes: list[tuple[int, int, int, int, int]],
    after: tuple[str, int],
) -> None:
    random = np.random.default_rng((0, 1, 2))
    views = [augment(picture(*size), 24, crop, random) for _ in boxes]
    assert [box for _, box in views] == boxes
    digest = hashlib.sha256(b"".join(image.tobytes() for image, _ in views)).hexdigest()
    assert (digest[:16], random.bit_generator.random_raw()) == after


@pytest.mark.parametrize("name", PRESETS)
def test_the_generator_alone_decides_the_view(name: str) -> None:
    def draw(seed: int) -> bytes:
        random = np.random.default_rng(seed)
        return b"".join(
            augment(picture(60, 40), 32, PRESETS[name], random)[0].tobytes() for _ in range(5)
        )

    np.random.seed(0)
    first = draw(1)
    np.random.seed(1)
    assert draw(1) == first
    assert draw(2) != first


@pytest.mark.parametrize("name", PRESETS)
def test_every_view_is_a_square_in_rgb(name: str) -> None:
    image, _ = augment(picture(50, 70), 24, PRESETS[name], np.random.default_rng(0))
    assert (image.size, image.mode) == ((24, 24), "RGB")


@settings(max_examples=200)
@given(
    st.integers(1, 700),
    st.integers(1, 700),
    st.sampled_from(sorted(PRESETS)),
    st.integers(0, 10_000),
)
def test_a_box_lies_inside_its_image(width: int, height: int, name: str, seed: int) -> None:
    box = sample_box(width, height, PRESETS[name], np.random.default_rng(seed))
    assert 0 <= box.left < box.left + box.width <= width
    assert 0 <= box.top < box.top + box.height <= height


def test_a_view_shows_its_box() -> None:
    image = picture(60, 40)
    for seed in range(10):
        shown, box = augment(image, 32, Crop(flip=0.5), np.random.default_rng(seed))
        cut = image.crop((box.left, box.top, box.left + box.width, box.top + box.height))
        whole = pixels(cut.resize((32, 32), Image.Resampling.BILINEAR))
        assert (pixels(shown) == (whole[:, ::-1] if box.flip else whole)).all()


def test_flip_mirrors_left_and_right() -> None:
    assert (view(flip=1) == view()[:, ::-1]).all()


def test_interpolation_is_the_one_asked_for() -> None:
    for name, filter in (
        ("bilinear", Image.Resampling.BILINEAR),
        ("bicubic", Image.Resampling.BICUBIC),
    ):
        enlarged = picture(8, 8).resize((32, 32), filter)
        assert (view(image=picture(8, 8), interpolation=name) == pixels(enlarged)).all()


def test_no_jitter_changes_nothing() -> None:
    unchanged = pixels(picture())
    assert (view(jitter=(0, 0, 0, 0)) == unchanged).all()
    assert (view(jitter=(1, 1, 1, 0.5), jitter_probability=0) == unchanged).all()


@pytest.mark.parametrize(
    ("which", "adjust"),
    enumerate([tv.adjust_brightness, tv.adjust_contrast, tv.adjust_saturation, tv.adjust_hue]),
)
def test_each_jitter_is_one_of_torchvisions_within_its_strength(which: int, adjust: Any) -> None:
    strength = 0.1
    jitter = [0.0] * 4
    jitter[which] = strength
    neutral = 0 if which == 3 else 1
    possible = [
        pixels(adjust(picture(), neutral + change))
        for change in np.linspace(-strength, strength, 401)
    ]
    changes = []
    for seed in range(20):
        shown = view(seed, jitter=tuple(jitter))
        distances = [abs(shown - candidate).max() for candidate in possible]
        assert min(distances) <= 1
        changes.append(int(np.argmin(distances)))
    assert min(changes) < 100
    assert max(changes) > 300


@pytest.mark.parametrize("turn", [-0.5, -0.1, -0.003, 0.0, 0.07, 0.5])
def test_hues_turn_as_torchvisions_do(turn: float) -> None:
    assert (
        pixels(transforms.turn_hue(picture(), turn)) == pixels(tv.adjust_hue(picture(), turn))
    ).all()


def test_a_third_of_the_circle_turns_red_into_green() -> None:
    red = Image.new("RGB", (1, 1), (255, 0, 0))
    r, g, b = pixels(transforms.turn_hue(red, 1 / 3))[0, 0]
    assert g == 255
    assert max(r, b) < 6  # hues are bytes


def test_jitter_comes_in_every_order(monkeypatch: pytest.MonkeyPatch) -> None:
    order: list[str] = []

    def record(name: str, image: Image.Image) -> Image.Image:
        order.append(name)
        return image

    for name in ("Brightness", "Contrast", "Color"):
        monkeypatch.setattr(
            getattr(ImageEnhance, name),
            "enhance",
            lambda enhancer, factor, name=name: record(name, enhancer.image),
        )
    monkeypatch.setattr(transforms, "turn_hue", lambda image, turn: record("hue", image))
    orders = set()
    for seed in range(300):
        order.clear()
        view(seed, image=picture(4, 4), jitter=(0.4, 0.4, 0.2, 0.1))
        orders.add(tuple(order))
    assert len(orders) == 24


def test_grey_makes_the_channels_equal_and_keeps_the_lightness() -> None:
    shown = view(grey=1)
    assert (shown == pixels(picture().convert("L"))[..., None]).all()


def test_blur_is_gaussian_of_radius_a_tenth_to_two() -> None:
    possible = [
        pixels(picture().filter(ImageFilter.GaussianBlur(radius)))
        for radius in np.linspace(0.1, 2, 200).tolist()
    ]
    which = []
    for seed in range(30):
        shown = view(seed, blur=1)
        distances = [abs(shown - candidate).mean() for candidate in possible]
        assert min(distances) < 1
        which.append(int(np.argmin(distances)))
    assert min(which) < 40
    assert max(which) > 160


def test_solarise_inverts_only_bright_pixels() -> None:
    before, after = view(), view(solarise=1)
    assert (after == np.where(before < 128, before, 255 - before)).all()


@pytest.mark.parametrize("field", ["flip", "grey", "blur", "solarise", "jitter_probability"])
@pytest.mark.parametrize("probability", [0.1, 0.5, 0.8])
def test_each_operation_happens_as_often_as_asked(field: str, probability: float) -> None:
    image = picture(8, 8)
    changes: dict[str, Any] = {field: probability}
    if field == "jitter_probability":
        changes["jitter"] = (1, 0, 0, 0)
    crop = replace(WHOLE, **changes)
    random = np.random.default_rng(0)
    n = 3000
    changed = sum(augment(image, 8, crop, random)[0].tobytes() != image.tobytes() for _ in range(n))
    # A blur or a brightness close to none changes nothing; 4 standard deviations and 3 % for it.
    slack = 4 * (probability * (1 - probability) / n) ** 0.5 + 0.03 * probability
    assert abs(changed / n - probability) < slack


@pytest.mark.parametrize(
    ("name", "scale", "flip", "jitter", "often", "rest"),
    [
        ("IJEPA", (0.3, 1), 0, (0, 0, 0, 0), 1, (0, 0, 0)),
        ("MAE", (0.2, 1), 0.5, (0, 0, 0, 0), 1, (0, 0, 0)),
        ("CAE", (0.08, 1), 0.5, (0, 0, 0, 0), 1, (0, 0, 0)),
        ("DATA2VEC", (0.08, 1), 0.5, (0.4, 0.4, 0.4, 0), 1, (0, 0, 0)),
        ("DINO_GLOBAL_1", (0.25, 1), 0.5, (0.4, 0.4, 0.2, 0.1), 0.8, (0.2, 1, 0)),
        ("DINO_GLOBAL_2", (0.25, 1), 0.5, (0.4, 0.4, 0.2, 0.1), 0.8, (0.2, 0.1, 0.2)),
        ("DINO_LOCAL", (0.05, 0.25), 0.5, (0.4, 0.4, 0.2, 0.1), 0.8, (0.2, 0.5, 0)),
        ("IBOT_GLOBAL_1", (0.32, 1), 0.5, (0.4, 0.4, 0.2, 0.1), 0.8, (0.2, 1, 0)),
        ("IBOT_GLOBAL_2", (0.32, 1), 0.5, (0.4, 0.4, 0.2, 0.1), 0.8, (0.2, 0.1, 0.2)),
        ("IBOT_LOCAL", (0.05, 0.32), 0.5, (0.4, 0.4, 0.2, 0.1), 0.8, (0.2, 0.5, 0)),
    ],
)
def test_presets_are_the_published_ones(
    name: str,
    scale: tuple[float, float],
    flip: float,
    jitter: Sequence[float],
    often: float,
    rest: tuple[float, float, float],
) -> None:
    crop = PRESETS[name]
    assert (crop.scale, crop.flip, crop.jitter, crop.jitter_probability) == (
        scale,
        flip,
        jitter,
        often,
    )
    assert (crop.grey, crop.blur, crop.solarise) == rest
    assert crop.aspect == (3 / 4, 4 / 3)
    assert crop.interpolation == ("bilinear" if name == "IJEPA" else "bicubic")


@settings(max_examples=200)
@given(st.data())
def test_tokens_of_a_view_are_those_that_nearest_neighbours_show(data: st.DataObject) -> None:
    rows, columns, across, down = (data.draw(st.integers(1, 16)) for _ in range(4))
    scale = data.draw(st.integers(1, 20))
    grid = (down, across)
    tokens = np.arange(rows * columns, dtype=np.uint8).reshape(rows, columns)
    image = Image.fromarray(np.kron(tokens, np.ones((scale, scale), np.uint8)))
    # Of an odd number of pixels no patch's centre lies between two pixels, where either is nearest.
    width, height = (2 * data.draw(st.integers(0, (n - 1) // 2)) + 1 for n in image.size)
    left = data.draw(st.integers(0, image.width - width))
    top = data.draw(st.integers(0, image.height - height))
    flip = data.draw(st.booleans())

    shown = image.crop((left, top, left + width, top + height))
    shown = shown.resize(grid[::-1], Image.Resampling.NEAREST)
    if flip:
        shown = shown.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    box = Box(left, top, width, height, flip)
    assert crop_tokens(tokens, image.size, box, grid).tolist() == np.asarray(shown).tolist()


def test_the_whole_image_has_its_own_tokens() -> None:
    tokens = np.arange(14 * 14).reshape(14, 14)
    whole = Box(0, 0, 500, 375, flip=False)
    assert (crop_tokens(tokens, (500, 375), whole, (14, 14)) == tokens).all()
    mirrored = crop_tokens(tokens, (500, 375), whole._replace(flip=True), (14, 14))
    assert (mirrored == tokens[:, ::-1]).all()


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("scale", (0.5, 0.2)),
        ("aspect", (0, 1)),
        ("interpolation", "lanczos"),
        ("jitter", (0.4, -0.1, 0, 0)),
        ("jitter", (0.4, 1.1, 0, 0)),
        ("jitter", (0, 0, 0, 0.6)),
        ("jitter_probability", 1.5),
        ("flip", float("nan")),
        ("grey", -0.1),
        ("blur", 2),
        ("solarise", 128),
    ],
)
def test_a_bad_value_is_refused_by_its_name(key: str, value: Any) -> None:
    with pytest.raises(UserError, match=rf"^crop(: {key} is |\.{key}: )"):
        strict(Crop, {key: value}, "crop")
