"""Fast pixels: JPEGs decoded only as finely as a crop needs, other images exactly."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ijepa.config import parse_run
from ijepa.data.fast_jpeg import Jpeg
from ijepa.data.loader import Images, TrainingViews, View
from ijepa.data.transforms import DINO_GLOBAL_1, DINO_LOCAL, IJEPA, MAE, Crop
from ijepa.errors import UserError
from tests.jpegs import Files, encoded, picture

pytest.importorskip("simplejpeg")


def views(files: Files, *kinds: View, pixels: str = "fast") -> list[Any]:
    """First image's views as whole numbers that may be subtracted."""
    made = TrainingViews(files, list(kinds), 0, pixels=pixels)  # type: ignore[arg-type]
    return [view.astype(int) for view in made[(0, 0)].views]


@pytest.fixture
def scales(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Scales at which images are decoded, in their order."""
    used: list[int] = []
    decode = Jpeg._decode

    def noted(self: Jpeg, scale: int) -> None:
        used.append(scale)
        decode(self, scale)

    monkeypatch.setattr(Jpeg, "_decode", noted)
    return used


@pytest.mark.parametrize("crop", [IJEPA, MAE, DINO_GLOBAL_1])
@pytest.mark.parametrize("mode", ["RGB", "L"])
def test_a_view_of_a_jpeg_decoded_whole_differs_by_rounding(
    crop: Crop, mode: str, scales: list[int]
) -> None:
    """Bilinear, bicubic, with flips and colours: all draws are those of exact pixels."""
    files = Files(encoded(picture(500, 375, mode)))
    (fast,), (exact,) = (views(files, View(224, crop), pixels=p) for p in ("fast", "exact"))
    assert scales == [1]
    assert np.abs(fast - exact).mean() < 0.5
    assert np.abs(fast - exact).max() <= 4


@pytest.mark.parametrize(("size", "scale"), [(224, 1), (190, 2), (90, 4), (40, 8)])
@pytest.mark.parametrize(("shape", "gap"), [((400, 400), 1), ((403, 387), 4)])
def test_a_large_crop_is_decoded_at_a_part_of_the_size_and_shows_the_same(
    size: int, scale: int, shape: tuple[int, int], gap: float, scales: list[int]
) -> None:
    """A box is rounded to the smaller size's pixels: by up to half a pixel of the view."""
    files = Files(encoded(picture(*shape)))
    whole = View(size, Crop(whole=True))
    (fast,), (exact,) = (views(files, whole, pixels=p) for p in ("fast", "exact"))
    assert scales == [scale]
    assert np.abs(fast - exact).mean() < gap


def test_views_share_what_is_decoded_finely_enough(scales: list[int]) -> None:
    """A global view of 32 pixels needs a quarter or an eighth; a local one needs no finer."""
    local = View(224, DINO_LOCAL)
    views(Files(encoded(picture(500, 375))), View(224, IJEPA), local, local)
    assert scales == [1]
    whole = View(40, Crop(whole=True))
    views(Files(encoded(picture(403, 387))), whole, View(90, Crop(whole=True)), whole)
    assert scales == [1, 8, 4]


@pytest.mark.parametrize(("mode", "kind"), [("RGB", "png"), ("CMYK", "jpeg"), ("L", "png")])
def test_other_images_are_exact(mode: str, kind: str, scales: list[int]) -> None:
    files = Files(encoded(picture(300, 200, mode), kind))
    (fast,), (exact,) = (views(files, View(64, IJEPA), pixels=p) for p in ("fast", "exact"))
    assert not scales
    assert (fast == exact).all()


def test_a_jpeg_with_a_fault_is_what_pil_makes_of_it() -> None:
    """PIL refuses a truncated file, and reads one in which a marker is out of place."""
    whole = encoded(picture(300, 200))
    with pytest.raises(OSError, match="truncated"):
        views(Files(whole[: len(whole) // 2]), View(64, IJEPA))
    odd = Files(whole[:-2] + bytes(40) + whole[-2:])
    (fast,), (exact,) = (views(odd, View(64, IJEPA), pixels=p) for p in ("fast", "exact"))
    assert np.abs(fast - exact).max() <= 4


def test_the_shards_of_a_run_without_jpegs_give_the_same_views(data: Path) -> None:
    images = Images(data, "train")
    fast, exact = (TrainingViews(images, [View(32, MAE)], 0, pixels=p) for p in ("fast", "exact"))
    assert (fast[(0, 60)].views[0] == exact[(0, 60)].views[0]).all()


def test_fast_pixels_are_another_run_and_exact_ones_that_of_earlier_versions(
    raw_run: dict[str, Any],
) -> None:
    plain = parse_run(raw_run)
    exact, fast = (parse_run({**raw_run, "pixels": pixels}) for pixels in ("exact", "fast"))
    assert exact.identity() == plain.identity() != fast.identity()


def test_a_missing_package_is_told_before_anything_is_read(
    raw_run: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ijepa.config.find_spec", lambda name: None)
    parse_run({**raw_run, "pixels": "exact"})
    with pytest.raises(UserError, match=r"pixels: fast needs the package simplejpeg.*exact"):
        parse_run({**raw_run, "pixels": "fast"})
